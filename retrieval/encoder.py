"""DualEncoder: images and texts to unit vectors of one space. Knows nothing about labels, captions or caching."""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from retrieval.devices import Device, choose_device
from retrieval.errors import UnreadableImage
from retrieval.preprocess import MAX_PIXELS, decode_image, to_rgb
from retrieval.towers import Towers, load_towers

PIXELS_VERSION = "2"
"""Part of the fingerprint: raise it when decoding or resizing changes what the encoder sees."""

TEXT_BATCH = 256
"""Texts per forward pass; they are sorted by length, so padding stays small."""

ImageLike = bytes | Image.Image
Outcome = NDArray[np.float32] | UnreadableImage


class DualEncoder:
    """An image tower and a text tower. Safe to call from several threads.

    Example:
        >>> encoder = load_encoder("pocket")
        >>> images = encoder.embed_images([Path("cat.jpg").read_bytes()])   # float32 [1, d], unit norm
        >>> texts = encoder.embed_texts(["cat", "dog"])                     # float32 [2, d], unit norm
        >>> encoder.logit_scale * images @ texts.T
    """

    def __init__(self, name: str, towers: Towers, device: Device, max_pixels: int = MAX_PIXELS) -> None:
        self.name, self.device, self.max_pixels = name, device, max_pixels
        self._towers = towers
        self._tokenizer_lock = threading.Lock()
        self._threads = torch.get_num_threads()
        self._batch_per_thread = device.name == "cpu" and self._threads > 1
        # torch's thread count is the calling thread's own: workers use one core each, the forward thread all of them.
        self._workers = ThreadPoolExecutor(self._threads, "forelabel-image", lambda: torch.set_num_threads(1))
        self._forwards = ThreadPoolExecutor(1, "forelabel-forward", lambda: torch.set_num_threads(self._threads))
        described = f"{PIXELS_VERSION}|{towers.family}|{towers.preprocessing or towers.processor.to_dict()}"
        self.fingerprint: str = hashlib.sha256(f"{towers.weights}|{described}".encode()).hexdigest()[:16]
        """16 hex digits that change when the weights or the preprocessing do; part of every stored key."""
        self.dim: int = int(self.embed_texts([""]).shape[1])
        """Length d of every embedding."""

    @property
    def logit_scale(self) -> float:
        """Factor on cosines before the softmax (CLIP) or sigmoid (SigLIP); already exponentiated."""
        return self._towers.logit_scale

    @property
    def logit_bias(self) -> float:
        """SigLIP's learned bias; 0 where the family has none."""
        return self._towers.logit_bias

    @property
    def family(self) -> str:
        """ "clip", "siglip", "siglip2", "pocket" or another model type of transformers."""
        return self._towers.family

    @property
    def templates(self) -> tuple[str, ...] | None:
        """Prompt templates that come with the model, or None."""
        return self._towers.templates

    @property
    def tokenizer(self) -> Any:
        """The text tower's tokenizer, of transformers."""
        return self._towers.tokenizer

    @property
    def min_edge(self) -> int | None:
        """JPEGs are decoded at the smallest scale whose shorter edge is this long; None decodes in full."""
        return self._towers.preprocessing.min_edge if self._towers.preprocessing else None

    def embed_images(self, images: Sequence[ImageLike], batch_size: int = 32) -> NDArray[np.float32]:
        """Images (file bytes or PIL) -> unit embeddings, float32 [n, d].

        Raises:
            UnreadableImage: naming the position of the first image that cannot be decoded.
        """
        out = np.zeros((len(images), self.dim), np.float32)
        for i, result in enumerate(self.iter_embed_images(images, batch_size)):
            if isinstance(result, UnreadableImage):
                raise UnreadableImage(f"image {i}: {result}") from result
            out[i] = result
        return out

    def iter_embed_images(
        self, images: Sequence[ImageLike], batch_size: int = 32, expired: Callable[[], bool] = lambda: False
    ) -> Iterator[Outcome]:
        """One unit embedding [d], or the reason why there is none, per image and in order.

        Stops early, between batches, once `expired` says so.
        """
        batches = [images[i : i + batch_size] for i in range(0, len(images), batch_size)]
        coming = iter(batches)
        ahead = 2 * self._threads if self._batch_per_thread else 2
        running = deque(self._submit(batch, alone=len(batches) == 1) for batch in islice(coming, ahead))
        while running:
            yield from running.popleft().result()
            if expired():
                break
            running.extend(self._submit(batch, alone=False) for batch in islice(coming, 1))
        for future in running:
            future.cancel()

    def _submit(self, batch: Sequence[ImageLike], alone: bool) -> Future[list[Outcome]]:
        """Begin to decode and embed a batch.

        On a CPU, batches run side by side, each on one core from decoding to embedding: cores then never wait for each
        other within a layer. A batch that comes alone, and any batch on a GPU, is decoded on all cores instead and
        goes through the model at once.
        """
        if self._batch_per_thread and not alone:
            return self._workers.submit(lambda: self._embed_prepared([self._prepare(image) for image in batch]))
        decoding = [self._workers.submit(self._prepare, image) for image in batch]
        return self._forwards.submit(lambda: self._embed_prepared([future.result() for future in decoding]))

    def _embed_prepared(self, prepared: list[Any]) -> list[Outcome]:
        good = [p for p in prepared if not isinstance(p, UnreadableImage)]
        rows = iter(self._forward_images(good) if good else ())
        return [item if isinstance(item, UnreadableImage) else next(rows) for item in prepared]

    def _prepare(self, image: ImageLike) -> NDArray[np.uint8] | Image.Image | UnreadableImage:
        preprocessing = self._towers.preprocessing
        try:
            rgb = decode_image(image, self.max_pixels, self.min_edge) if isinstance(image, bytes) else to_rgb(image)
            return preprocessing.pixels(rgb) if preprocessing else rgb
        except UnreadableImage as error:
            return error

    def _forward_images(self, prepared: list[Any]) -> NDArray[np.float32]:
        preprocessing = self._towers.preprocessing
        if preprocessing:
            pixels = torch.from_numpy(np.stack(prepared)).to(self.device.name).permute(0, 3, 1, 2).float()
            mean = torch.tensor(preprocessing.mean, device=pixels.device).view(3, 1, 1)
            std = torch.tensor(preprocessing.std, device=pixels.device).view(3, 1, 1)
            pixels.mul_(preprocessing.rescale / std).sub_(mean / std)
            inputs = {"pixel_values": pixels.to(self.device.dtype)}
        else:
            inputs = self._move(self._towers.processor(images=prepared, return_tensors="pt"))
        with torch.inference_mode():
            return _unit(self._towers.image(inputs))

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Texts -> unit embeddings, float32 [n, d]. Texts beyond the model's length are cut."""
        if not len(texts):
            return np.zeros((0, self.dim), np.float32)
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        parts = [
            self._forward_texts([texts[i] for i in order[s : s + TEXT_BATCH]]) for s in range(0, len(order), TEXT_BATCH)
        ]
        embeddings = np.concatenate(parts)
        out = np.empty_like(embeddings)
        out[order] = embeddings
        return out

    def _forward_texts(self, texts: list[str]) -> NDArray[np.float32]:
        with self._tokenizer_lock:  # fast tokenizers refuse concurrent use when padding changes
            tokens = self._towers.tokenizer(texts, return_tensors="pt", **self._towers.tokenize)
        with torch.inference_mode():
            return _unit(self._towers.text(self._move(tokens)))

    def _move(self, inputs: Any) -> dict[str, torch.Tensor]:
        dtype = self.device.dtype
        moved = {key: value.to(self.device.name) for key, value in inputs.items()}
        return {key: value.to(dtype) if value.is_floating_point() else value for key, value in moved.items()}

    def close(self) -> None:
        """Stop the threads."""
        self._workers.shutdown(wait=False, cancel_futures=True)
        self._forwards.shutdown(wait=False, cancel_futures=True)


def _unit(features: torch.Tensor) -> NDArray[np.float32]:
    """Features [b, d] of any dtype -> float32 rows of unit norm."""
    unit: NDArray[np.float32] = torch.nn.functional.normalize(features.float(), dim=-1).cpu().numpy()
    return unit


def load_encoder(name_or_path: str = "pocket", device: str = "auto", max_pixels: int = MAX_PIXELS) -> DualEncoder:
    """Open an encoder.

    Args:
        name_or_path: "pocket" for the bundled model, else a hub name or a folder with a CLIP, SigLIP or SigLIP 2 model.
        device: "auto", "cpu", "cuda" or "cuda:N".
        max_pixels: larger images are refused.

    Raises:
        ModelError: the model or the device cannot be used.
    """
    chosen = choose_device(device)
    return DualEncoder(name_or_path, load_towers(name_or_path, chosen), chosen, max_pixels)
