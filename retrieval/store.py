"""Where embeddings are kept, so that an image is encoded once. Knows no model and no image.

Key    forelabel:embedding:{encoder fingerprint}:{sha256 of the image bytes, hex}
Value  the embedding [d] as little-endian IEEE 754 half floats, without a header: 2 * d bytes

A value that cannot be an embedding (odd length, empty, not finite, not the dimension that was asked for) is a miss.
A store holds at most `max_bytes` and drops the least recently used first; each implementation says how it counts.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import RetrievalError, StoreUnavailable

logger = logging.getLogger(__name__)

T = TypeVar("T")

CHUNK = 500
"""Keys per round trip: half a megabyte of 512-dimensional embeddings, well inside the limits of SQLite and Redis."""


class StoreNotWritable(StoreUnavailable):
    """The store answers but takes no new embeddings: it is full, or read-only."""


@dataclass(frozen=True)
class StoreStats:
    """What a store holds. `bytes` is counted as `max_bytes` is: values, keys and the store's own bookkeeping."""

    kind: str
    entries: int
    bytes: int
    max_bytes: int


class EmbeddingStore(ABC):
    """Embeddings by key. Every method may be called from any thread; each raises StoreUnavailable."""

    @abstractmethod
    def get_many(self, keys: Sequence[str], dim: int | None = None) -> list[NDArray[np.float16] | None]:
        """The embedding [d] float16 (read-only) of each key, in order; None for a miss.

        With `dim`, an embedding of another dimension is a miss too.
        """

    @abstractmethod
    def put_many(self, items: Mapping[str, NDArray[Any]]) -> None:
        """Keep each embedding [d], any float dtype, as float16. One that is not finite is not kept."""

    @abstractmethod
    def stats(self) -> StoreStats:
        """What is held now."""

    @abstractmethod
    def close(self) -> None:
        """Let go of files and connections."""


def embedding_key(fingerprint: str, image_bytes: bytes) -> str:
    """The key of an image's embedding by one encoder."""
    return f"forelabel:embedding:{fingerprint}:{hashlib.sha256(image_bytes).hexdigest()}"


def encode_embeddings(embeddings: Sequence[NDArray[Any]]) -> list[bytes | None]:
    """Each [d] of any float dtype -> 2 * d bytes; None for one that could not be read back (empty or not finite)."""
    for embedding in embeddings:
        if embedding.ndim != 1:
            raise ValueError(f"an embedding has one axis, this array has the shape {embedding.shape}")
    if not embeddings:
        return []
    with np.errstate(over="ignore"):
        halves = np.concatenate(embeddings).astype("<f2")
    spans = _spans([len(embedding) for embedding in embeddings])
    data = halves.tobytes()
    return [data[2 * a : 2 * b] if good else None for a, b, good in zip(*spans, _finite(halves, *spans), strict=True)]


def decode_embeddings(values: Sequence[bytes | None], dim: int | None = None) -> list[NDArray[np.float16] | None]:
    """Each 2 * d bytes -> [d] float16, read-only; None for what cannot be an embedding (of that dimension)."""
    sound = [value if value and len(value) % 2 == 0 and dim in (None, len(value) // 2) else b"" for value in values]
    halves = np.frombuffer(b"".join(sound), "<f2").astype(np.float16, copy=False)
    spans = _spans([len(value) // 2 for value in sound])
    return [halves[a:b] if good else None for a, b, good in zip(*spans, _finite(halves, *spans), strict=True)]


def _spans(lengths: Sequence[int]) -> tuple[list[int], list[int]]:
    """Where each of several arrays, laid end to end, begins and ends."""
    ends = list(accumulate(lengths))
    return [0, *ends[:-1]] if ends else [], ends


def _finite(halves: NDArray[np.float16], begins: Sequence[int], ends: Sequence[int]) -> list[bool]:
    """Whether each span has something in it, and nothing but finite numbers."""
    finite = np.isfinite(halves)
    everywhere = bool(finite.all())  # the usual case, for which one look at all of them is enough
    return [a < b and (everywhere or bool(finite[a:b].all())) for a, b in zip(begins, ends, strict=True)]


def encoded_chunks(items: Mapping[str, NDArray[Any]]) -> Iterator[list[tuple[str, bytes]]]:
    """The items that can be kept, encoded, at most CHUNK at a time."""
    for keys in chunks(list(items)):
        values = encode_embeddings([items[key] for key in keys])
        if kept := [(key, value) for key, value in zip(keys, values, strict=True) if value is not None]:
            yield kept


def chunks(keys: Sequence[T]) -> Iterator[Sequence[T]]:
    """The keys in order, at most CHUNK at a time."""
    return (keys[start : start + CHUNK] for start in range(0, len(keys), CHUNK))


def open_store(url: str, max_bytes: int) -> EmbeddingStore:
    """The store at `url`.

    Raises:
        RetrievalError: the address is of no known kind.
        StoreUnavailable: the address is fine but nothing can be kept there now.
    """
    scheme = url.partition("://")[0]
    if scheme == "sqlite":
        from retrieval.sqlite_store import SqliteStore, sqlite_path

        return SqliteStore(sqlite_path(url), max_bytes)
    if scheme in ("redis", "rediss", "unix"):
        from retrieval.redis_store import RedisStore

        return RedisStore(url, max_bytes)
    # Only the scheme is repeated: the rest may hold a password.
    raise RetrievalError(
        f'the embedding store\'s address begins with "{scheme[:20]}", which is of no known kind. Use one of '
        "redis://host:6379/0, rediss://host:6379/0, unix:///path/redis.sock, "
        "sqlite:///relative/path.db, sqlite:////absolute/path.db"
    )


class _Outage:
    """Whether something is down, when to try it again, and the one line at each end."""

    def __init__(self, what: str, retry_after_s: float, clock: Callable[[], float]) -> None:
        self.down = False
        self._what, self._retry_after_s, self._clock = what, retry_after_s, clock
        self._retry_at = 0.0
        self._lock = threading.Lock()

    def skip(self) -> bool:
        """True while it is not worth trying. Of several threads, one is let through to try again."""
        with self._lock:
            now = self._clock()
            if self.down and now < self._retry_at:
                return True
            self._retry_at = now + self._retry_after_s
            return False

    def begin(self, error: StoreUnavailable) -> None:
        with self._lock:
            self._retry_at = self._clock() + self._retry_after_s
            if self.down:
                return
            self.down = True
        logger.warning("%s; trying again every %g s: %s", self._what, self._retry_after_s, error)

    def over(self) -> None:
        with self._lock:
            if not self.down:
                return
            self.down = False
        logger.info("the embedding store is back")


class ResilientStore(EmbeddingStore):
    """A store whose failure costs speed, never an answer.

    While the store inside is down, every key is a miss and nothing is kept, without waiting for it: it is tried again
    every `retry_after_s`, by one caller. A store that only refuses writes still answers reads.

    Args:
        opener: opens the store, now and after each failure, e.g. `lambda: open_store(url, max_bytes)`.
        retry_after_s: short enough that nobody restarts the service to get its cache back.
        clock: seconds, monotonic.

    Raises:
        RetrievalError: at once, when `opener` says that the address itself is wrong.
    """

    def __init__(
        self,
        opener: Callable[[], EmbeddingStore],
        retry_after_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._opener = opener
        self._store: EmbeddingStore | None = None
        self._open_lock = threading.Lock()
        self._outage = _Outage("the embedding store is down, images are encoded anew", retry_after_s, clock)
        self._refusal = _Outage("the embedding store takes no new embeddings", retry_after_s, clock)
        self._attempt(lambda store: None, None)

    @property
    def available(self) -> bool:
        """Whether the last attempt was answered."""
        return not self._outage.down

    def get_many(self, keys: Sequence[str], dim: int | None = None) -> list[NDArray[np.float16] | None]:
        misses: list[NDArray[np.float16] | None] = [None] * len(keys)
        return self._attempt(lambda store: store.get_many(keys, dim), misses)

    def put_many(self, items: Mapping[str, NDArray[Any]]) -> None:
        def put(store: EmbeddingStore) -> None:
            try:
                store.put_many(items)
            except StoreNotWritable as error:
                self._refusal.begin(error)
            else:
                self._refusal.over()

        if not self._refusal.skip():
            self._attempt(put, None)

    def stats(self) -> StoreStats:
        """As the store inside.

        Raises:
            StoreUnavailable: it is down.
        """
        stats = self._attempt(lambda store: store.stats(), None)
        if stats is None:
            raise StoreUnavailable("the embedding store is down; its own message is in the log")
        return stats

    def close(self) -> None:
        with self._open_lock:
            store, self._store = self._store, None
        if store is not None:
            store.close()

    def _attempt(self, use: Callable[[EmbeddingStore], T], otherwise: T) -> T:
        if self._outage.skip():
            return otherwise
        store: EmbeddingStore | None = None
        try:
            store = self._opened()
            result = use(store)
        except StoreUnavailable as error:
            self._discard(store, error)
            return otherwise
        self._outage.over()
        return result

    def _opened(self) -> EmbeddingStore:
        with self._open_lock:
            if self._store is None:
                self._store = self._opener()
            return self._store

    def _discard(self, store: EmbeddingStore | None, error: StoreUnavailable) -> None:
        with self._open_lock:
            if store is not self._store:
                return  # another thread has met the same failure and opened it again since
            self._store = None
        self._outage.begin(error)
        if store is not None:
            store.close()
