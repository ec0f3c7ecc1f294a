from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import pytest

from retrieval.embedder import Embedder, NotInTime
from retrieval.errors import UnreadableImage
from retrieval.store import EmbeddingStore, ResilientStore, StoreStats, embedding_key, open_store


class FakeEncoder:
    """Embeds bytes by their length; b"bad" cannot be read. Counts what it was asked."""

    fingerprint, dim = "f", 4

    def __init__(self, delay: float = 0.0) -> None:
        self.asked: list[bytes] = []
        self.delay = delay

    def iter_embed_images(
        self, images: Sequence[bytes], batch_size: int, expired: Callable[[], bool]
    ) -> Iterator[np.ndarray | UnreadableImage]:
        for start in range(0, len(images), batch_size):
            for image in images[start : start + batch_size]:
                self.asked.append(image)
                time.sleep(self.delay)
                yield UnreadableImage("bad") if image == b"bad" else unit(len(image))
            if expired():
                return


class MemoryStore(EmbeddingStore):
    def __init__(self) -> None:
        self.rows: dict[str, np.ndarray] = {}

    def get_many(self, keys: Sequence[str], dim: int | None = None) -> list[np.ndarray | None]:
        return [self.rows.get(key) for key in keys]

    def put_many(self, items: Mapping[str, np.ndarray]) -> None:
        self.rows.update({key: np.asarray(value, np.float16) for key, value in items.items()})

    def stats(self) -> StoreStats:
        raise NotImplementedError

    def close(self) -> None: ...


def unit(n: int) -> np.ndarray:
    vector = np.array([1, n, n * n, 2], np.float32)
    return vector / np.linalg.norm(vector)


def make(delay: float = 0.0, batch_size: int = 2) -> tuple[Embedder, FakeEncoder, MemoryStore]:
    encoder, store = FakeEncoder(delay), MemoryStore()
    return Embedder(encoder, store, batch_size), encoder, store  # type: ignore[arg-type]


def test_each_image_is_embedded_once() -> None:
    embedder, encoder, _ = make()
    images = [b"a", b"bb", b"a", b"bad", b"ccc"]
    counts: list[tuple[int, int]] = []
    cold = embedder.embed(images, counted=lambda *count: counts.append(count))
    assert encoder.asked == [b"a", b"bb", b"bad", b"ccc"]
    warm = embedder.embed(images, counted=lambda *count: counts.append(count))
    assert encoder.asked[4:] == [b"bad"]  # what cannot be read is not remembered: it may be mended
    for first, second in zip(cold, warm, strict=True):
        if isinstance(first, np.ndarray):
            np.testing.assert_array_equal(first, second)
            assert float(np.linalg.norm(first)) == pytest.approx(1, abs=1e-5)
        else:
            assert isinstance(first, UnreadableImage)
    assert counts == [(0, 4), (3, 1)]  # hits and misses among the distinct images of each call


def test_concurrent_requests_for_one_image_compute_it_once() -> None:
    embedder, encoder, _ = make(delay=0.05)
    results: list[object] = []
    threads = [threading.Thread(target=lambda: results.extend(embedder.embed([b"x", b"yy"]))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(encoder.asked) == [b"x", b"yy"]
    assert len(results) == 16 and all(isinstance(r, np.ndarray) for r in results)


def test_deadline_keeps_what_was_done() -> None:
    embedder, encoder, store = make(delay=0.02)
    images = [bytes(n) for n in range(1, 9)]
    first = embedder.embed(images, deadline=time.monotonic() + 0.03)
    done = [r for r in first if isinstance(r, np.ndarray)]
    assert 0 < len(done) < 8 and all(isinstance(r, np.ndarray | NotInTime) for r in first)
    assert len(store.rows) == len(done)
    again = embedder.embed(images)
    assert all(isinstance(r, np.ndarray) for r in again)
    assert len(encoder.asked) == 8


def test_past_deadline_answers_only_from_the_store() -> None:
    embedder, encoder, _ = make()
    embedder.embed([b"a"])
    cached, late = embedder.embed([b"a", b"bb"], deadline=time.monotonic() - 1)
    assert isinstance(cached, np.ndarray) and isinstance(late, NotInTime)
    assert encoder.asked == [b"a"]


@pytest.mark.parametrize("foreign", [np.zeros(4), np.full(4, 9.0), np.full(4, np.nan)])
def test_foreign_rows_count_as_misses(foreign: np.ndarray) -> None:
    embedder, encoder, store = make()
    store.rows[embedding_key("f", b"a")] = foreign.astype(np.float16)
    (result,) = embedder.embed([b"a"])
    assert isinstance(result, np.ndarray) and encoder.asked == [b"a"]
    np.testing.assert_allclose(store.rows[embedding_key("f", b"a")].astype(np.float32), unit(1), atol=1e-3)


def test_a_store_that_is_down_costs_speed_not_answers() -> None:
    encoder = FakeEncoder()
    store = ResilientStore(lambda: open_store("redis://127.0.0.1:1/0", 10**8))
    embedder = Embedder(encoder, store, 2)  # type: ignore[arg-type]
    for _ in range(2):
        assert all(isinstance(r, np.ndarray) for r in embedder.embed([b"a", b"bb"]))
    assert encoder.asked == [b"a", b"bb"] * 2


def test_a_failing_encoder_leaves_nobody_waiting() -> None:
    embedder, encoder, _ = make()

    def fail(*args: object) -> Iterator[np.ndarray]:
        raise MemoryError("out of memory")

    encoder.iter_embed_images = fail  # type: ignore[assignment]
    with pytest.raises(MemoryError):
        embedder.embed([b"a"])
    del encoder.iter_embed_images  # type: ignore[method-assign]
    assert isinstance(embedder.embed([b"a"])[0], np.ndarray)
