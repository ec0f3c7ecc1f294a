"""What both stores promise, held against a real SQLite file and a real Redis."""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from retrieval.errors import RetrievalError, StoreUnavailable
from retrieval.store import EmbeddingStore, decode_embeddings, embedding_key, encode_embeddings, open_store

DIM = 64
ROOM = 10**9
MEASURED = 10**6


def key(number: int) -> str:
    return embedding_key("encoder", str(number).encode())


def embedding(number: int, dim: int = DIM) -> NDArray[np.float32]:
    vector = np.random.default_rng(number).standard_normal(dim).astype(np.float32)
    unit: NDArray[np.float32] = vector / np.linalg.norm(vector)
    return unit


def same(got: NDArray[np.float16] | None, number: int, dim: int = DIM) -> bool:
    return (
        got is not None and got.dtype == np.float16 and bool((got == embedding(number, dim).astype(np.float16)).all())
    )


@pytest.fixture(params=["sqlite", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/new folder/embeddings.db"
    address: str = request.getfixturevalue("redis_server")
    with redis.Redis.from_url(address) as client:
        client.flushall()
    return address


Opener = Callable[[int], EmbeddingStore]


@pytest.fixture
def opened(url: str) -> Iterator[Opener]:
    """Opens the store with a bound; closed at the end."""
    stores: list[EmbeddingStore] = []

    def opener(max_bytes: int) -> EmbeddingStore:
        stores.append(open_store(url, max_bytes))
        return stores[-1]

    yield opener
    for store in stores:
        store.close()


def entry_bytes(opened: Opener) -> int:
    """What one embedding of DIM dimensions counts."""
    store = opened(ROOM)
    before = store.stats().bytes
    store.put_many({key(MEASURED): embedding(MEASURED)})
    return store.stats().bytes - before


# --- keys and bytes


def test_the_key_is_the_encoder_and_the_content() -> None:
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert embedding_key("clip-1", b"") == f"forelabel:embedding:clip-1:{empty}"


def test_the_layout_is_little_endian_half_floats_without_a_header() -> None:
    assert encode_embeddings([np.array([1.0, -2.0, 0.5])]) == [bytes.fromhex("003c 00c0 0038")]


@given(st.lists(hnp.arrays(np.float16, st.integers(0, 40), elements=hnp.from_dtype(np.dtype(np.float16))), max_size=8))
def test_bytes_round_trip(arrays: list[NDArray[np.float16]]) -> None:
    decoded = decode_embeddings(encode_embeddings(arrays))
    assert len(decoded) == len(arrays)
    for before, after in zip(arrays, decoded, strict=True):
        if before.size and np.isfinite(before).all():
            assert after is not None
            assert after.tobytes() == before.tobytes()
        else:
            assert after is None


@given(st.lists(st.none() | st.binary(max_size=20), max_size=8), st.none() | st.integers(1, 10))
def test_any_bytes_are_an_embedding_or_a_miss(values: list[bytes | None], dim: int | None) -> None:
    for value, got in zip(values, decode_embeddings(values, dim), strict=True):
        assert got is None or (got.tobytes() == value and np.isfinite(got).all() and dim in (None, got.size))


def test_an_embedding_has_one_axis() -> None:
    with pytest.raises(ValueError, match=r"the shape \(1, 4\)"):
        encode_embeddings([np.zeros((1, 4))])


@pytest.mark.parametrize(
    "address", ["memcached://host", "embeddings.db", "", "sqlite://x", "sqlite:///", "redis://h/0?db=x"]
)
def test_an_unknown_address_is_refused(address: str) -> None:
    with pytest.raises(RetrievalError) as caught:
        open_store(address, ROOM)
    assert not isinstance(caught.value, StoreUnavailable)


def test_a_refused_address_keeps_its_password() -> None:
    with pytest.raises(RetrievalError) as caught:
        open_store("mongodb://user:secret@host", ROOM)
    assert "secret" not in str(caught.value)
    assert "sqlite:///" in str(caught.value)


# --- both stores


def test_what_was_put_is_got_in_order(opened: Opener) -> None:
    store = opened(ROOM)
    store.put_many({key(n): embedding(n) for n in range(3)})
    got = store.get_many([key(2), key(9), key(0), key(2)])
    assert same(got[0], 2)
    assert got[1] is None
    assert same(got[2], 0)
    assert same(got[3], 2)


def test_nothing_asked_nothing_answered(opened: Opener) -> None:
    store = opened(ROOM)
    store.put_many({})
    assert store.get_many([]) == []
    assert store.stats().entries == 0
    assert store.stats().bytes == 0


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_any_float_is_kept_as_half(opened: Opener, dtype: Any) -> None:
    store = opened(ROOM)
    store.put_many({key(1): embedding(1).astype(dtype)})
    assert same(store.get_many([key(1)])[0], 1)


def test_what_is_not_finite_is_not_kept(opened: Opener) -> None:
    store = opened(ROOM)
    store.put_many({"a": np.full(4, np.nan), "b": np.full(4, 1e9), "c": np.zeros(0), key(1): embedding(1)})
    assert store.stats().entries == 1
    assert [got is None for got in store.get_many(["a", "b", "c", key(1)])] == [True, True, True, False]


def test_another_dimension_is_a_miss(opened: Opener) -> None:
    store = opened(ROOM)
    store.put_many({key(1): embedding(1, 32), key(2): embedding(2, DIM)})
    got = store.get_many([key(1), key(2)], dim=DIM)
    assert got[0] is None
    assert same(got[1], 2)
    store.put_many({key(1): embedding(1, DIM)})
    assert same(store.get_many([key(1)], dim=DIM)[0], 1)


def test_putting_again_replaces_and_counts_once(opened: Opener) -> None:
    store = opened(ROOM)
    store.put_many({key(1): embedding(1, 32)})
    store.put_many({key(1): embedding(1, DIM)})
    assert store.stats().entries == 1
    one = store.stats().bytes
    store.put_many({key(2): embedding(2, DIM)})
    assert store.stats().bytes == 2 * one


def test_ten_thousand_keys_at_once(opened: Opener) -> None:
    store = opened(ROOM)
    store.put_many({key(n): embedding(n) for n in range(0, 10_000, 2)})
    got = store.get_many([key(n) for n in range(10_000)])
    assert len(got) == 10_000
    assert all(same(got[n], n) if n % 2 == 0 else got[n] is None for n in range(10_000))
    assert store.stats().entries == 5_000


def test_what_one_has_put_the_next_one_gets(opened: Opener) -> None:
    first = opened(ROOM)
    first.put_many({key(1): embedding(1)})
    first.close()
    second = opened(ROOM)
    assert same(second.get_many([key(1)])[0], 1)
    assert second.stats().entries == 1


# --- size


def test_the_least_recently_used_goes_first(opened: Opener) -> None:
    store = opened(10 * entry_bytes(opened))
    for n in range(9):
        store.put_many({key(n): embedding(n)})  # with the one that was measured, full
    store.get_many([key(MEASURED), key(0), key(1)])
    store.put_many({key(9): embedding(9), key(10): embedding(10)})
    held = [got is not None for got in store.get_many([key(n) for n in (MEASURED, *range(11))])]
    assert held == [True, True, True, False, False, *[True] * 7]


def test_the_size_is_bounded_at_every_moment(opened: Opener) -> None:
    bound = 50 * entry_bytes(opened) + 10
    store = opened(bound)
    for batch in range(20):
        store.put_many({key(n): embedding(n) for n in range(batch * 13, batch * 13 + 20)})
        assert store.stats().bytes <= bound
    assert store.stats().entries == 50
    assert same(store.get_many([key(19 * 13 + 19)])[0], 19 * 13 + 19)


def test_more_at_once_than_there_is_room_for(opened: Opener) -> None:
    bound = 7 * entry_bytes(opened)
    store = opened(bound)
    store.put_many({key(n): embedding(n) for n in range(1_200)})
    assert store.stats().entries == 7
    assert store.stats().bytes <= bound


def test_embeddings_of_several_dimensions_share_the_bound(opened: Opener) -> None:
    bound = 40 * entry_bytes(opened)
    store = opened(bound)
    for n in range(200):
        store.put_many({key(n): embedding(n, 8 + 24 * (n % 5))})
        assert store.stats().bytes <= bound


def test_a_lowered_bound_is_reached(opened: Opener) -> None:
    unit = entry_bytes(opened)
    opened(ROOM).put_many({key(n): embedding(n) for n in range(3_000)})
    store = opened(5 * unit)
    for n in range(60):
        store.put_many({key(n): embedding(n)})
    assert store.stats().entries == 5


def test_what_is_counted_is_what_is_taken(opened: Opener, url: str) -> None:
    dim, count = 512, 5_000
    store = opened(ROOM)
    before = _taken(url)
    for start in range(0, count, 500):
        store.put_many({key(n): embedding(n, dim) for n in range(start, start + 500)})
    counted = store.stats().bytes
    store.close()
    assert 0.75 < (_taken(url) - before) / counted < 1.25


def _taken(url: str) -> int:
    if url.startswith("sqlite"):
        return os.path.getsize(url.removeprefix("sqlite:///"))  # noqa: PTH202
    with redis.Redis.from_url(url) as client:
        info: Any = client.info("memory")
        return int(info["used_memory"])


# --- several at once


def test_threads_share_a_store(opened: Opener) -> None:
    store = opened(300 * entry_bytes(opened))

    def work(worker: int) -> bool:
        numbers = range(worker * 20, worker * 20 + 40)
        for _ in range(5):
            store.put_many({key(n): embedding(n) for n in numbers})
            got = store.get_many([key(n) for n in numbers])
            if not all(same(value, n) for value, n in zip(got, numbers, strict=True)):
                return False
        return True

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(work, range(8)))
    assert store.stats().entries == 181


def put_and_get(url: str, worker: int) -> int:
    """Runs in a process of its own."""
    store = open_store(url, ROOM)
    try:
        for start in range(0, 200, 20):
            numbers = range(worker * 100 + start, worker * 100 + start + 20)
            store.put_many({key(n): embedding(n) for n in numbers})
            got = store.get_many([key(n) for n in numbers])
            assert all(same(value, n) for value, n in zip(got, numbers, strict=True))
        return store.stats().entries
    finally:
        store.close()


def test_processes_share_a_store(opened: Opener, url: str) -> None:
    with ProcessPoolExecutor(3, mp_context=multiprocessing.get_context("spawn")) as processes:
        assert all(entries >= 200 for entries in processes.map(put_and_get, [url] * 3, range(3)))
    assert opened(ROOM).stats().entries == 400


# --- foreign data


@pytest.mark.parametrize("foreign", [b"", b"odd", b"\x00\x7c" * DIM, b"text that is no embedding!"])
def test_foreign_bytes_are_a_miss_and_are_replaced(opened: Opener, url: str, foreign: bytes) -> None:
    store = opened(ROOM)
    store.put_many({key(1): embedding(1)})
    if url.startswith("sqlite"):
        with sqlite3.connect(url.removeprefix("sqlite:///")) as connection:
            connection.execute("UPDATE embedding SET value = ?", (foreign,))
        connection.close()
    else:
        with redis.Redis.from_url(url) as client:
            client.set(key(1), foreign)
    assert store.get_many([key(1)], dim=DIM) == [None]
    store.put_many({key(1): embedding(1)})
    assert same(store.get_many([key(1)], dim=DIM)[0], 1)
    assert store.stats().entries == 1
