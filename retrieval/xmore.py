"""X-MoRe: cross-modal retrieval and modality ensemble, without training (Eom, Ho, Oh, Yun: arXiv 2308.15273).

The paper states the idea: retrieve texts for the image with CLIP, classify by image and by retrieved text, and weigh
the two by how reliable each is. The details below are this project's reading; docs/xmore.md measures each.

    R(x)    = the K captions with the highest x.r
    r       = normalise(sum_k a_k r_k),  a = softmax_k(retrieval_scale x.r_k)
    p_image = softmax_c(image_scale x.t_c);   p_text = softmax_c(text_scale r.t_c)
    p       = (w_image p_image + w_text p_text) / (w_image + w_text),  w = confidence = 1 - H(p) / log C

text_scale: text-text cosines live in another range than image-text ones. Unless it is given, it is chosen for each
image, without labels, so that the text is `entropy_gap` nats less certain than the image: at the image's own
temperature the retrieved text is the less accurate but the more certain modality, and would outvote it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.captions import CaptionIndex
from retrieval.errors import RetrievalError

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class XMoRePrediction:
    """b images, c labels, k retrieved captions; k = 0 without an index."""

    probabilities: NDArray[np.float32]
    """[b, c], rows sum to 1."""
    image_probabilities: NDArray[np.float32]
    """[b, c], plain zero-shot."""
    text_probabilities: NDArray[np.float32]
    """[b, c], from the retrieved captions; uniform without an index."""
    image_confidence: NDArray[np.float32]
    """[b], 1 - H / log C, in 0..1."""
    text_confidence: NDArray[np.float32]
    """[b]; 0 without an index."""
    caption_ids: NDArray[np.int64]
    """[b, k], nearest first."""


@dataclass(frozen=True)
class XMoReOptions:
    """Choices of the method. The defaults did best on train photos with the pocket encoder: docs/xmore.md."""

    captions: int = 16
    """K, captions retrieved per image."""
    retrieval_scale: float = 0.0
    """Sharpness of the mean over the retrieved captions; 0 is the plain mean."""
    text_scale: float | None = None
    """Scale on text-text cosines; None chooses it per image from `entropy_gap`."""
    entropy_gap: float = 1.5
    """Nats by which the text is to be less certain than the image."""


class XMoRe:
    """Scores images against a fixed label set."""

    def __init__(
        self,
        label_embeddings: Floats,
        captions: CaptionIndex | None,
        logit_scale: float,
        options: XMoReOptions | None = None,
    ) -> None:
        """
        Args:
            label_embeddings: unit text embeddings [c, d], c >= 1.
            captions: the index to retrieve from; None or an empty one leaves plain zero-shot.
            logit_scale: the encoder's factor on image-text cosines.
            options: the method's choices.

        Raises:
            RetrievalError: the label embeddings are not [c, d] with c >= 1, or the index has another dimension.
        """
        labels = np.asarray(label_embeddings, np.float32)
        if labels.ndim != 2 or not len(labels):
            raise RetrievalError(f"label embeddings have shape {labels.shape}; need [c, d] with at least one label")
        if captions is not None and len(captions) and captions.dim != labels.shape[1]:
            raise RetrievalError(
                f"labels have dimension {labels.shape[1]}, captions {captions.dim}: two encoders are mixed"
            )
        self._labels, self._scale, self.options = labels, float(logit_scale), options or XMoReOptions()
        self._captions = captions if captions is not None and len(captions) else None

    def predict(self, image_embeddings: Floats) -> XMoRePrediction:
        """Unit image embeddings [b, d] -> probabilities over the labels, and what they came from."""
        images = np.asarray(image_embeddings, np.float32)
        if images.ndim != 2 or images.shape[1] != self._labels.shape[1]:
            raise RetrievalError(f"image embeddings have shape {images.shape}; need [b, {self._labels.shape[1]}]")
        by_image = softmax(self._scale * images @ self._labels.T)
        sure_image = confidence(by_image)
        if self._captions is None:
            uniform = np.full_like(by_image, 1 / by_image.shape[1])
            none = np.zeros((len(images), 0), np.int64)
            return XMoRePrediction(by_image, by_image, uniform, sure_image, np.zeros_like(sure_image), none)
        similarities, ids = self._captions.search(images, self.options.captions)
        weights = softmax(self.options.retrieval_scale * similarities)
        cosines = mean_direction(weights, self._captions.embeddings(ids)) @ self._labels.T
        if self.options.text_scale is not None:
            by_text = softmax(self.options.text_scale * cosines)
        else:
            by_text = softmax_with_entropy(cosines, entropy(by_image) + self.options.entropy_gap)
        sure_text = confidence(by_text)
        mixed = mix(by_image, sure_image, by_text, sure_text)
        return XMoRePrediction(mixed, by_image, by_text, sure_image, sure_text, ids)


def mean_direction(weights: Floats, vectors: Floats) -> NDArray[np.float32]:
    """Weighted mean of vectors, unit norm: weights [b, k], vectors [b, k, d] -> [b, d]."""
    mean: NDArray[np.float32] = np.einsum("bk,bkd->bd", weights, vectors).astype(np.float32)
    mean /= np.maximum(np.linalg.norm(mean, axis=-1, keepdims=True), 1e-12)
    return mean


def softmax(logits: Floats) -> NDArray[np.float32]:
    """Over the last axis."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities: NDArray[np.float32] = (shifted / shifted.sum(axis=-1, keepdims=True)).astype(np.float32)
    return probabilities


def entropy(probabilities: Floats) -> NDArray[np.float64]:
    """In nats, over the last axis: [b, c] -> [b]."""
    p = np.asarray(probabilities, np.float64)
    nats: NDArray[np.float64] = -(p * np.log(np.maximum(p, 1e-300))).sum(axis=-1)
    return nats


def confidence(probabilities: Floats) -> NDArray[np.float32]:
    """1 - H(p) / log C, clipped to 0..1: [b, c] -> [b]. A single label is certain."""
    labels = probabilities.shape[-1]
    if labels == 1:
        return np.ones(probabilities.shape[:-1], np.float32)
    sure: NDArray[np.float32] = np.clip(1 - entropy(probabilities) / np.log(labels), 0, 1).astype(np.float32)
    return sure


def mix(by_image: Floats, sure_image: Floats, by_text: Floats, sure_text: Floats) -> NDArray[np.float32]:
    """Mean of two distributions [b, c], weighed by their confidences [b]; the image alone where neither is sure."""
    total = sure_image + sure_text
    text_weight = np.divide(sure_text, total, out=np.zeros_like(total), where=total > 0)[:, None]
    mixed: NDArray[np.float32] = ((1 - text_weight) * by_image + text_weight * by_text).astype(np.float32)
    return mixed


def softmax_with_entropy(cosines: Floats, target: Floats, steps: int = 16) -> NDArray[np.float32]:
    """softmax(s cosines) with s chosen per row, by bisection, so that its entropy is `target`.

    Args:
        cosines: [b, c].
        target: [b], nats. Where it is log C or more, the flattest distribution that is tried (s = 0.5) is taken.
        steps: halvings of the interval 0.5 <= s <= 200 on a log axis: 16 give s to 0.01 %.
    """
    low: Floats = np.full(len(cosines), np.log(0.5))
    high: Floats = np.full(len(cosines), np.log(200.0))
    for _ in range(steps):
        middle = (low + high) / 2
        too_flat = entropy(softmax(np.exp(middle)[:, None] * cosines)) > target
        low, high = np.where(too_flat, middle, low), np.where(too_flat, high, middle)
    return softmax(np.exp((low + high) / 2)[:, None] * cosines)
