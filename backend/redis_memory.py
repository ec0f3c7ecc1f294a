"""Confirmed labels in Redis, which may hold other data too.

What is written, all of a project under one prefix whose braces keep it in one slot of a cluster, without expiry:

    forelabel:memory:{PROJECT}:sequence    string, decimal integer
    forelabel:memory:{PROJECT}:rows        hash, annotation -> a row as backend.memory describes it, byte for byte
    forelabel:memory:{PROJECT}:changed     sorted set, annotation -> sequence at its last change
    forelabel:memory:{PROJECT}:tasks       sorted set, annotation -> task, of those that are not removed

A write is one script: it compares the rows that the decision was based on with those that are held, and writes all or
nothing. Where another process came first, the decision is taken again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from backend.memory import Column, Confirmation, Held, Memory, MemoryUnavailable, decode_rows, encode_row
from retrieval.errors import RetrievalError
from retrieval.store import chunks

CONNECT_TIMEOUT_S = 0.5
"""Redis is near; Label Studio gives a webhook one second."""

ANSWER_TIMEOUT_S = 5.0
"""Several times what a script with 10,000 rows takes on a busy machine."""

# KEYS: sequence, rows, changed, tasks. ARGV: for each row its annotation, what is held ("" for nothing), the task
# ("" for a removed one), what is to be held.
_WRITE = """
for i = 1, #ARGV, 4 do
    if (redis.call('HGET', KEYS[2], ARGV[i]) or '') ~= ARGV[i + 1] then return 0 end
end
local now = redis.call('INCR', KEYS[1])
for i = 1, #ARGV, 4 do
    redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 3])
    redis.call('ZADD', KEYS[3], now, ARGV[i])
    if ARGV[i + 2] == '' then
        redis.call('ZREM', KEYS[4], ARGV[i])
    else
        redis.call('ZADD', KEYS[4], ARGV[i + 2], ARGV[i])
    end
end
return 1
"""


class RedisMemory(Memory):
    """Confirmed labels in the Redis at `url`: redis://, rediss:// or unix://, as redis-py reads it.

    Opens without asking it, so that it may come up later.

    Raises:
        RetrievalError: the address cannot be read.
    """

    def __init__(self, url: str) -> None:
        try:
            self._redis = redis.Redis.from_url(
                url,
                socket_connect_timeout=CONNECT_TIMEOUT_S,
                socket_timeout=ANSWER_TIMEOUT_S,
                # A connection that Redis dropped while idle is opened again; a timeout is not waited for twice.
                retry=Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
                protocol=2,
            )
        except ValueError:
            # Its own words may quote a password that is not percent-encoded.
            raise RetrievalError(
                "the Redis address of the memory of confirmed labels cannot be read. "
                "Write redis://user:password@host:6379/0 with the special characters of the password percent-encoded"
            ) from None
        self._write = self._redis.register_script(_WRITE)

    def sequence(self, project: str) -> int:
        with self._asking():
            value: Any = self._redis.get(_key(project, "sequence"))
        return int(value or 0)

    @property
    def durability(self) -> str:
        try:
            with self._asking():
                settings: Any = self._redis.config_get("append*") | self._redis.config_get("maxmemory-policy")
        except _Refused:
            return (
                "Redis does not tell how it keeps data (CONFIG GET is refused): ask who runs it for appendonly yes, "
                "without which a restart of Redis may lose confirmed labels."
            )
        fsync, policy = settings.get("appendfsync"), settings.get("maxmemory-policy", "")
        if policy.startswith("allkeys"):
            return (
                f"Redis has maxmemory-policy {policy}: once it is full it drops confirmed labels like anything else; "
                "set noeviction, or a Redis of their own."
            )
        if settings.get("appendonly") != "yes":
            return (
                "Redis has appendonly no: a restart of Redis loses the labels confirmed since its last snapshot, "
                "or all of them; set appendonly yes."
            )
        outcome = {
            "always": "is on Redis's disk before it is acknowledged: it survives a crash of Redis and a power cut",
            "everysec": "survives a crash of Redis; a power cut costs those of about the last second",
        }.get(fsync, "survives a crash of Redis; a power cut costs those of about the last half minute")
        return f"Redis has appendonly yes and appendfsync {fsync}: a confirmed label {outcome}."

    def close(self) -> None:
        self._redis.close()

    def _change(
        self, project: str, column: Column, ids: Sequence[int], decide: Callable[[dict[int, Held]], dict[int, Held]]
    ) -> int:
        keys = [_key(project, name) for name in ("sequence", "rows", "changed", "tasks")]
        while True:  # a turn is lost only to another process that wrote, so somebody always gets on
            with self._asking():
                annotations = self._of_tasks(project, ids) if column == "task" else ids
                held = {each: row for each, row in self._rows(project, annotations) if row is not None}
            written = decide(decode_rows(held))
            if not written:
                return 0
            args: list[bytes | int] = []
            for each, new in written.items():
                args += [each, held.get(each, b""), new.task if isinstance(new, Confirmation) else b"", encode_row(new)]
            with self._asking():
                if self._write(keys=keys, args=args):
                    return len(written)

    def _changed(self, project: str, after: int) -> tuple[list[tuple[int, bytes]], int]:
        with self._asking():
            pipeline = self._redis.pipeline()
            pipeline.get(_key(project, "sequence"))
            pipeline.zrangebyscore(_key(project, "changed"), f"({after}", "+inf")
            now, annotations = pipeline.execute()
            # Not in one script, which would block Redis: a row may be newer than `now`, and will come again.
            rows = self._rows(project, [int(each) for each in annotations])
        return [(each, row) for each, row in rows if row is not None], int(now or 0)

    def _of_tasks(self, project: str, tasks: Sequence[int]) -> list[int]:
        pipeline = self._redis.pipeline(transaction=False)
        for task in tasks:
            pipeline.zrangebyscore(_key(project, "tasks"), task, task)
        return [int(each) for found in pipeline.execute() for each in found]

    def _rows(self, project: str, annotations: Sequence[int]) -> list[tuple[int, bytes | None]]:
        found: list[tuple[int, bytes | None]] = []
        for chunk in chunks(annotations):
            rows: Any = self._redis.hmget(_key(project, "rows"), [str(each) for each in chunk])
            found.extend(zip(chunk, rows, strict=True))
        return found

    @contextmanager
    def _asking(self) -> Iterator[None]:
        try:
            yield
        except (redis.ConnectionError, redis.TimeoutError, OSError) as error:
            raise MemoryUnavailable(
                f"Redis, which keeps the confirmed labels, does not answer ({error}). "
                "Start it, or set FORELABEL_MEMORY to another address"
            ) from error
        except redis.RedisError as error:
            raise _Refused(
                f"Redis, which keeps the confirmed labels, refused ({error}). "
                "Check its disk, its maxmemory, its role and this user's rights"
            ) from error


class _Refused(MemoryUnavailable):
    """Redis answers, but not this."""


def _key(project: str, name: str) -> str:
    return f"forelabel:memory:{{{project}}}:{name}"
