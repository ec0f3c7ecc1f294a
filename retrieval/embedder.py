"""Each image is embedded once: content hash, store, single flight, encoder.

Requests for the same bytes that arrive while they are being embedded wait for that one result.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import numpy as np
from numpy.typing import NDArray

from retrieval.encoder import DualEncoder
from retrieval.errors import RetrievalError, UnreadableImage
from retrieval.store import EmbeddingStore, embedding_key

Embedding = NDArray[np.float32]


class NotInTime(RetrievalError):  # noqa: N818 - reads as what it is in a log line
    """The deadline came first. What was embedded by then is stored, so asking again goes on from there."""


class Embedder:
    """An encoder with a store in front of it. Safe to call from several threads."""

    def __init__(self, encoder: DualEncoder, store: EmbeddingStore, batch_size: int = 32) -> None:
        self.encoder, self.store, self.batch_size = encoder, store, batch_size
        self._lock = threading.Lock()
        self._in_flight: dict[str, Future[Embedding]] = {}

    def embed(
        self,
        images: Sequence[bytes],
        deadline: float | None = None,
        counted: Callable[[int, int], None] = lambda hits, misses: None,
    ) -> list[Embedding | RetrievalError]:
        """Image files -> one unit embedding [d] each, or the error that says why there is none.

        Args:
            images: the files' bytes.
            deadline: time.monotonic() after which the images not begun yet answer NotInTime.
            counted: told how many distinct images the store had, and how many it had not.
        """
        keys = [embedding_key(self.encoder.fingerprint, image) for image in images]
        image_of = dict(zip(keys, images, strict=True))  # repeats within the request count once
        distinct = list(image_of)
        found = dict(zip(distinct, map(_usable, self.store.get_many(distinct, self.encoder.dim)), strict=True))
        missing = [key for key in distinct if found[key] is None]
        counted(len(distinct) - len(missing), len(missing))
        results: dict[str, Embedding | RetrievalError] = {k: v for k, v in found.items() if v is not None}
        results |= self._embed_missing({key: image_of[key] for key in missing}, deadline)
        return [results[key] for key in keys]

    def _embed_missing(self, images: dict[str, bytes], deadline: float | None) -> dict[str, Embedding | RetrievalError]:
        mine: dict[str, Future[Embedding]] = {}
        others: dict[str, Future[Embedding]] = {}
        with self._lock:
            for key in images:
                running = self._in_flight.get(key)
                if running is None:
                    mine[key] = self._in_flight[key] = Future()
                else:
                    others[key] = running
        try:
            self._encode({key: images[key] for key in mine}, mine, deadline)
        finally:
            with self._lock:
                for key, future in mine.items():
                    del self._in_flight[key]
                    if not future.done():
                        future.set_exception(NotInTime("the time for this request is over; the image was not reached"))
        return {key: _wait(future, deadline) for key, future in (mine | others).items()}

    def _encode(self, images: dict[str, bytes], futures: dict[str, Future[Embedding]], deadline: float | None) -> None:
        """Embed and store batch by batch, so that a request cut short keeps what it has done."""
        expired: Callable[[], bool] = lambda: deadline is not None and time.monotonic() > deadline  # noqa: E731
        if expired():
            return
        done: dict[str, NDArray[np.float16]] = {}
        keys = list(images)
        for key, result in zip(
            keys, self.encoder.iter_embed_images([images[k] for k in keys], self.batch_size, expired), strict=False
        ):
            if isinstance(result, UnreadableImage):
                futures[key].set_exception(result)
                continue
            # What is answered now is what the store will answer later, to the last bit.
            done[key] = result.astype(np.float16)
            futures[key].set_result(unit_norm(done[key]))
            if len(done) >= self.batch_size:
                self.store.put_many(done)
                done = {}
        if done:
            self.store.put_many(done)


def unit_norm(stored: NDArray[np.float16]) -> Embedding:
    """Stored rows [..., d], which float16 has rounded, as float32 of unit norm."""
    vectors = stored.astype(np.float32)
    unit: Embedding = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-6)
    return unit


def _usable(stored: NDArray[np.float16] | None) -> Embedding | None:
    """A row of the store, or a miss where it is no unit vector (foreign bytes under our key)."""
    return (
        unit_norm(stored)
        if stored is not None and 0.9 < float(np.linalg.norm(stored.astype(np.float32))) < 1.1
        else None
    )


def _wait(future: Future[Embedding], deadline: float | None) -> Embedding | RetrievalError:
    """The result, or the error as a value; somebody else's embedding is waited for until the deadline."""
    try:
        return future.result(None if deadline is None else max(0.0, deadline - time.monotonic()) + 0.05)
    except RetrievalError as error:
        return error
    except TimeoutError:
        return NotInTime("the time for this request is over while another request embeds the image")
