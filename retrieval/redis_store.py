"""Embeddings in Redis, which may hold other data too.

What is written, all under one prefix:

    forelabel:embedding:{fingerprint}:{sha256}   string, the embedding
    forelabel:embedding-index                    sorted set, key -> time of last use (microseconds since 1970)
    forelabel:embedding-bytes                    integer, what the keys of the index take

Size rule: a key counts as its value, its name twice (in the keyspace and in the index) and ENTRY_OVERHEAD, which is
what Redis's memory grows by. After each write the least recently used keys of the index are deleted until `max_bytes`
holds. Only keys of the index are ever deleted, so other data is safe. Should Redis evict by itself (maxmemory-policy
allkeys-*), what it took is a miss, and the count comes right as those keys reach the end of the index.

Redis Cluster is not supported: one script touches several keys.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import redis
from numpy.typing import NDArray
from redis.backoff import NoBackoff
from redis.retry import Retry

from retrieval.errors import RetrievalError, StoreUnavailable
from retrieval.store import EmbeddingStore, StoreNotWritable, StoreStats, chunks, decode_embeddings, encoded_chunks

INDEX = "forelabel:embedding-index"
TOTAL = "forelabel:embedding-bytes"

ENTRY_OVERHEAD = 450
"""Redis's own bookkeeping per key and index entry: used_memory of 20,000 embeddings; a test holds it to that."""

CONNECT_TIMEOUT_S = 0.5
"""Redis is near; waiting longer costs more than encoding an image again."""

ANSWER_TIMEOUT_S = 2.0
"""Twenty times what a chunk takes on a busy machine."""

# KEYS: index, total, then the embeddings' keys. ARGV: now, max_bytes, overhead, then the values.
_PUT = """
local index, total = KEYS[1], KEYS[2]
local overhead = tonumber(ARGV[3])
local function size(key, value_bytes) return value_bytes + 2 * #key + overhead end
local function length(key)
    local answer = redis.pcall('STRLEN', key)
    return type(answer) == 'number' and answer > 0 and answer
end
local bytes, count = tonumber(redis.call('GET', total)), redis.call('ZCARD', index)
if not bytes or count == 0 then  -- the first write, or one of the two was lost: all entries are about as large as this
    bytes = count * size(KEYS[3], #ARGV[4])
end
for i = 3, #KEYS do
    local key, value = KEYS[i], ARGV[i + 1]
    if redis.call('ZADD', index, ARGV[1], key) == 1 then
        bytes = bytes + size(key, #value)
    else
        bytes = bytes + #value - (length(key) or #value)
    end
    redis.call('SET', key, value)
end
local budget = 10 * #KEYS + 100  -- a bound that was lowered is reached over several writes, none of which blocks Redis
while bytes > tonumber(ARGV[2]) and budget > 0 do
    count = redis.call('ZCARD', index)
    if count == 0 then bytes = 0 break end
    local oldest = redis.call('ZPOPMIN', index)[1]
    local held = length(oldest)  -- none if Redis took it by itself: the mean is near enough
    bytes = bytes - (held and size(oldest, held) or math.floor(bytes / count))
    redis.call('DEL', oldest)
    budget = budget - 1
end
redis.call('SET', total, string.format('%.0f', math.max(bytes, 0)))
"""


class RedisStore(EmbeddingStore):
    """Embeddings in Redis. Connects at the first call, so opening one never fails because Redis is down.

    Args:
        url: redis://, rediss:// or unix://, as redis-py reads it.
        max_bytes: the bound, counted as the module's docstring says.
    """

    def __init__(self, url: str, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        try:
            self._redis = redis.Redis.from_url(
                url,
                socket_connect_timeout=CONNECT_TIMEOUT_S,
                socket_timeout=ANSWER_TIMEOUT_S,
                # A connection that Redis dropped while idle is opened again; a timeout is not waited for twice.
                retry=Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
                protocol=2,  # every server speaks it, and it needs no round trip of its own
            )
        except ValueError as error:
            raise RetrievalError(f"the address of the Redis store cannot be read: {error}") from None
        self._put = self._redis.register_script(_PUT)

    def get_many(self, keys: Sequence[str], dim: int | None = None) -> list[NDArray[np.float16] | None]:
        found: list[NDArray[np.float16] | None] = []
        for chunk in chunks(keys):
            with self._asking():
                values: Any = self._redis.mget(chunk)
            found.extend(decode_embeddings(values, dim))
        self._touch([key for key, embedding in zip(keys, found, strict=True) if embedding is not None])
        return found

    def put_many(self, items: Mapping[str, NDArray[Any]]) -> None:
        for chunk in encoded_chunks(items):
            keys, values = zip(*chunk, strict=True)
            with self._asking(writing=True):
                self._put(keys=[INDEX, TOTAL, *keys], args=[_now(), self._max_bytes, ENTRY_OVERHEAD, *values])

    def stats(self) -> StoreStats:
        with self._asking():
            pipeline = self._redis.pipeline(transaction=False)
            pipeline.zcard(INDEX)
            pipeline.get(TOTAL)
            entries, size = pipeline.execute()
        return StoreStats("redis", int(entries), int(size or 0), self._max_bytes)

    def close(self) -> None:
        self._redis.close()

    def _touch(self, keys: Sequence[str]) -> None:
        now = _now()
        # The embeddings are at hand: a use that cannot be noted only makes the order of eviction less exact.
        with suppress(redis.RedisError):
            for chunk in chunks(keys):
                self._redis.zadd(INDEX, dict.fromkeys(chunk, now), xx=True)

    @contextmanager
    def _asking(self, writing: bool = False) -> Iterator[None]:
        try:
            yield
        except (redis.ConnectionError, redis.TimeoutError, OSError) as error:
            raise StoreUnavailable(
                f"Redis does not answer ({error}). Start it, or set FORELABEL_STORE to another address"
            ) from error
        except redis.RedisError as error:
            kind = StoreNotWritable if writing else StoreUnavailable
            raise kind(f"Redis refused ({error}). Check its maxmemory, its role and this user's rights") from error


def _now() -> int:
    return time.time_ns() // 1000
