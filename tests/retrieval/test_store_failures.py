"""A store that is down, hangs, is full or damaged costs speed, never an answer."""

from __future__ import annotations

import logging
import os
import socket
import sqlite3
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import redis
from numpy.typing import NDArray

from retrieval.errors import RetrievalError, StoreUnavailable
from retrieval.redis_store import INDEX, TOTAL
from retrieval.store import EmbeddingStore, ResilientStore, StoreNotWritable, StoreStats, open_store

if TYPE_CHECKING:
    from tests.conftest import RedisProcess

ROOM = 10**9
ITEMS = {f"forelabel:embedding:e:{n}": np.full(8, n / 10, np.float16) for n in range(5)}
KEYS = list(ITEMS)
NOBODY = 65534

HANG_S = 30
"""Far more than any answer takes on a busy machine, far less than for ever."""


def held(store: EmbeddingStore) -> int:
    return sum(got is not None for got in store.get_many(KEYS))


@contextmanager
def resilient(url: str, retry_after_s: float = 0.0) -> Iterator[ResilientStore]:
    with closing(ResilientStore(lambda: open_store(url, ROOM), retry_after_s)) as store:
        yield store


# --- ResilientStore with a fake inside


class FlakyStore(EmbeddingStore):
    """A dictionary that fails on demand."""

    def __init__(self) -> None:
        self.kept: dict[str, NDArray[np.float16]] = {}
        self.reading: StoreUnavailable | None = None
        self.writing: StoreUnavailable | None = None
        self.asked = 0
        self.opened = 0

    def open(self) -> FlakyStore:
        self.opened += 1
        return self

    def get_many(self, keys: Sequence[str], dim: int | None = None) -> list[NDArray[np.float16] | None]:
        self.asked += 1
        if self.reading:
            raise self.reading
        return [self.kept.get(key) for key in keys]

    def put_many(self, items: Mapping[str, NDArray[Any]]) -> None:
        self.asked += 1
        if self.writing:
            raise self.writing
        self.kept.update(items)

    def stats(self) -> StoreStats:
        if self.reading:
            raise self.reading
        return StoreStats("flaky", len(self.kept), 0, ROOM)

    def close(self) -> None:
        pass


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_an_outage_is_told_once_and_so_is_its_end(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    inner, clock = FlakyStore(), Clock()
    store = ResilientStore(inner.open, retry_after_s=5, clock=clock)
    store.put_many(ITEMS)
    inner.reading = StoreUnavailable("gone")
    for _ in range(3):
        assert held(store) == 0
        clock.now += 6
    assert not store.available
    inner.reading = None
    assert held(store) == 5
    assert store.available
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "gone" in caplog.text


def test_a_store_that_is_down_is_not_asked_before_its_time() -> None:
    inner, clock = FlakyStore(), Clock()
    store = ResilientStore(inner.open, retry_after_s=5, clock=clock)
    inner.reading = inner.writing = StoreUnavailable("gone")
    held(store)
    assert inner.asked == 1
    clock.now += 4.9
    held(store)
    store.put_many(ITEMS)
    with pytest.raises(StoreUnavailable):
        store.stats()
    assert inner.asked == 1
    clock.now += 0.2
    held(store)
    assert (inner.asked, inner.opened) == (2, 2)


def test_a_store_that_refuses_writes_still_answers(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    inner, clock = FlakyStore(), Clock()
    store = ResilientStore(inner.open, retry_after_s=5, clock=clock)
    store.put_many(ITEMS)
    inner.writing = StoreNotWritable("full")
    for _ in range(3):
        store.put_many({"new": np.zeros(2)})
        assert held(store) == 5
        assert store.available
        clock.now += 6
    inner.writing = None
    store.put_many({"new": np.zeros(2)})
    assert "new" in inner.kept
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


def test_a_store_may_be_down_at_the_start() -> None:
    def opener() -> EmbeddingStore:
        if not up:
            raise StoreUnavailable("not yet")
        return inner

    up, inner = False, FlakyStore()
    store = ResilientStore(opener, retry_after_s=0)
    assert not store.available
    assert held(store) == 0
    up = True
    store.put_many(ITEMS)
    assert held(store) == 5
    assert store.stats().entries == 5


def test_a_wrong_address_is_told_at_once() -> None:
    with pytest.raises(RetrievalError, match="of no known kind"):
        ResilientStore(lambda: open_store("mysql://host", ROOM))


# --- Redis


def test_redis_that_is_stopped_in_the_middle_and_comes_back(
    stoppable_redis: RedisProcess, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "retrieval")
    with resilient(stoppable_redis.url) as store:
        store.put_many(ITEMS)
        assert held(store) == 5
        stoppable_redis.stop()
        began = time.monotonic()
        for _ in range(3):
            assert held(store) == 0
            store.put_many(ITEMS)
        assert time.monotonic() - began < HANG_S
        assert not store.available
        stoppable_redis.start()
        store.put_many(ITEMS)
        assert held(store) == 5
        assert store.available
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


def test_redis_that_restarts_between_two_calls_is_not_noticed(stoppable_redis: RedisProcess) -> None:
    with closing(open_store(stoppable_redis.url, ROOM)) as store:
        store.put_many(ITEMS)
        stoppable_redis.stop()
        stoppable_redis.start()
        assert held(store) == 0
        store.put_many(ITEMS)
        assert held(store) == 5


def test_redis_that_accepts_and_never_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        began = time.monotonic()
        with closing(open_store(url, ROOM)) as store, pytest.raises(StoreUnavailable, match="does not answer"):
            store.get_many(KEYS)
        with resilient(url, retry_after_s=1000) as store:
            for _ in range(50):
                assert held(store) == 0
                store.put_many(ITEMS)
        assert time.monotonic() - began < HANG_S


def test_redis_that_is_full_still_answers(stoppable_redis: RedisProcess) -> None:
    with redis.Redis.from_url(stoppable_redis.url) as client, resilient(stoppable_redis.url) as store:
        store.put_many(ITEMS)
        client.config_set("maxmemory", 1)
        store.put_many({"new": np.zeros(8)})
        assert held(store) == 5
        assert store.available
        client.config_set("maxmemory", 0)
        store.put_many({"new": np.zeros(8)})
        assert store.stats().entries == 6


def test_the_bound_leaves_other_data_in_redis_alone(stoppable_redis: RedisProcess) -> None:
    with redis.Redis.from_url(stoppable_redis.url) as client, closing(open_store(stoppable_redis.url, 20_000)) as store:
        others = {f"session:{n}": bytes(1000) for n in range(100)}
        client.mset(others)
        for n in range(200):
            store.put_many({f"forelabel:embedding:e:{n}": np.ones(64)})
        assert client.mget(list(others)) == list(others.values())
        assert store.stats().bytes <= 20_000
        # The embeddings that are left, the index and the count.
        assert client.dbsize() == 100 + store.stats().entries + 2


@pytest.mark.parametrize("lost", ["values", "index", "count", "everything"])
def test_what_redis_evicts_by_itself_does_not_break_the_bound(stoppable_redis: RedisProcess, lost: str) -> None:
    with redis.Redis.from_url(stoppable_redis.url) as client, closing(open_store(stoppable_redis.url, 20_000)) as store:
        for n in range(100):
            store.put_many({f"forelabel:embedding:e:{n:03}": np.ones(64)})
        full = store.stats()
        embeddings = list(client.scan_iter("forelabel:embedding:e:*"))
        taken = {
            "values": embeddings[::2],
            "index": [INDEX],
            "count": [TOTAL],
            "everything": [*embeddings, INDEX, TOTAL],
        }
        client.delete(*taken[lost])
        for n in range(100, 200):
            store.put_many({f"forelabel:embedding:e:{n:03}": np.ones(64)})
            assert store.stats().bytes <= 20_000
        if lost == "index":
            client.delete(*embeddings)
        assert store.stats().entries == pytest.approx(full.entries, abs=1)
        assert sum(1 for _ in client.scan_iter("forelabel:embedding:e:*")) == store.stats().entries


def test_a_key_of_another_type_is_a_miss(stoppable_redis: RedisProcess) -> None:
    with redis.Redis.from_url(stoppable_redis.url) as client, closing(open_store(stoppable_redis.url, ROOM)) as store:
        client.rpush(KEYS[0], "a", "list")
        assert held(store) == 0
        store.put_many(ITEMS)
        assert held(store) == 5


# --- SQLite


@pytest.mark.parametrize("moment", ["before", "meanwhile"])
def test_a_damaged_file_is_moved_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture, moment: str) -> None:
    path = tmp_path / "embeddings.db"
    url = f"sqlite:///{path}"
    with closing(open_store(url, ROOM)) as store:
        store.put_many({f"{n}": np.ones(512) for n in range(200)})
    damage = bytes(range(256)) * 40
    if moment == "before":
        path.write_bytes(damage)
    with closing(open_store(url, ROOM)) as store:
        if moment == "meanwhile":
            with path.open("r+b") as file:
                file.write(damage)
        assert held(store) == 0
        store.put_many(ITEMS)
        assert held(store) == 5
        assert store.stats().entries == 5
    assert "is damaged" in caplog.text
    aside = [file for file in tmp_path.iterdir() if ".damaged-" in file.name]
    assert len(aside) == 1
    assert aside[0].read_bytes().startswith(damage)


def test_a_database_of_something_else_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "studio.sqlite3"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE task (id INTEGER)")
        connection.commit()
    before = path.read_bytes()
    with pytest.raises(RetrievalError, match="of something else") as caught:
        open_store(f"sqlite:///{path}", ROOM)
    assert not isinstance(caught.value, StoreUnavailable)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("task",)]
    assert path.read_bytes()[100:] == before[100:]


@contextmanager
def read_only_folder() -> Iterator[Path]:
    """A folder that may be read but not written, also when the tests run as root."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o555)
        root = os.geteuid() == 0
        if root:
            os.seteuid(NOBODY)
        try:
            yield folder
        finally:
            if root:
                os.seteuid(0)
            folder.chmod(0o755)


@pytest.mark.parametrize("path", ["embeddings.db", "new/embeddings.db"])
def test_a_read_only_folder(path: str) -> None:
    with read_only_folder() as folder:
        with pytest.raises(StoreUnavailable, match="Make its folder writable"):
            open_store(f"sqlite:///{folder}/{path}", ROOM)
        with resilient(f"sqlite:///{folder}/{path}") as store:
            store.put_many(ITEMS)
            assert held(store) == 0


def test_a_file_that_another_program_locks_still_answers(tmp_path: Path) -> None:
    path = tmp_path / "embeddings.db"
    with resilient(f"sqlite:///{path}") as store, closing(sqlite3.connect(path, isolation_level=None)) as other:
        store.put_many(ITEMS)
        other.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        store.put_many({"new": np.ones(8)})
        assert held(store) == 5
        assert time.monotonic() - began < HANG_S
        other.execute("ROLLBACK")
        store.put_many({"new": np.ones(8)})
        assert store.stats().entries == 6


def test_a_closed_store_says_so(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/embeddings.db", ROOM)
    store.close()
    store.close()
    with pytest.raises(StoreUnavailable, match="is closed"):
        store.get_many(KEYS)


def test_the_file_stops_growing(tmp_path: Path) -> None:
    """Dropped rows leave room all over the file; new rows must find it."""
    path = tmp_path / "embeddings.db"
    with closing(open_store(f"sqlite:///{path}", 1_000_000)) as store:
        for batch in range(30):
            store.put_many({f"{batch}:{n}": np.ones(512) for n in range(100)})
            store.get_many([f"{batch - 3}:{n}" for n in range(0, 100, 3)])
    assert path.stat().st_size < 1_300_000
