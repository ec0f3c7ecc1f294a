"""X-MoRe: cross-modal retrieval and modality ensemble, without training (Eom, Ho, Oh, Yun: arXiv 2308.15273).

The paper states the idea: retrieve texts for the image with CLIP, classify by image and by retrieved text, and weigh
the two by how reliable each is. The details below are this project's reading; docs/xmore.md measures each.

    R(x)    = the K captions with the highest x.r
    r       = normalise(sum_k a_k r_k),  a = softmax_k(retrieval_scale x.r_k)
    p_image = softmax_c(image_scale x.t_c);   p_text = softmax_c(text_scale r.t_c)
    p       = (w_image p_image + w_text p_text) / (w_image + w_text),  w = confidence = 1 - H(p) / log C

text_scale: text-text cosines live in another range than image-text ones, so the image's scale does not fit them: the
retrieved text is the less accurate modality, and must not be the more certain one. Unless it is given, the scale is
calibrated without images and labels: captions of the index are asked as if they were images, and the scale is the one
at which their mean confidence is `text_confidence`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.captions import CaptionIndex
from retrieval.errors import RetrievalError

Floats = NDArray[np.floating[Any]]

CALIBRATION_CAPTIONS = 256
"""Asked to find the text scale: with 64 or 1,024 it comes out within 8 %."""


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
    """Choices of the method. How the defaults were chosen stands in docs/xmore.md."""

    captions: int = 16
    """K, captions retrieved per image."""
    retrieval_scale: float = 0.0
    """Sharpness of the mean over the retrieved captions; 0 is the plain mean."""
    text_scale: float | None = None
    """Scale on text-text cosines; None calibrates it to `text_confidence`."""
    text_confidence: float = 0.02
    """What the confidence by text is to be on average, in 0..1."""


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
        self._scale, self.options = float(logit_scale), options or XMoReOptions()
        self.label_embeddings = labels
        """[c, d], float32."""
        self._captions = captions if captions is not None and len(captions) else None
        self.text_scale: float = self._calibrated() if self.options.text_scale is None else self.options.text_scale
        """The scale in force on text-text cosines."""

    def _calibrated(self) -> float:
        captions = self._captions
        if captions is None:
            return 1.0
        asked = np.linspace(0, len(captions) - 1, min(CALIBRATION_CAPTIONS, len(captions))).astype(np.int64)
        # The nearest caption of a caption is itself.
        similarities, ids = captions.search(captions.embeddings(asked), self.options.captions + 1)
        rest = slice(1, None) if ids.shape[1] > 1 else slice(None)
        cosines = self._by_text(captions, similarities[:, rest], ids[:, rest])
        return scale_with_confidence(cosines, self.options.text_confidence)

    def _by_text(self, captions: CaptionIndex, similarities: Floats, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Cosines [b, c] of the labels to the mean of the retrieved captions."""
        weights = softmax(self.options.retrieval_scale * similarities)
        cosines: NDArray[np.float32] = mean_direction(weights, captions.embeddings(ids)) @ self.label_embeddings.T
        return cosines

    def predict(self, image_embeddings: Floats) -> XMoRePrediction:
        """Unit image embeddings [b, d] -> probabilities over the labels, and what they came from."""
        images = np.asarray(image_embeddings, np.float32)
        if images.ndim != 2 or images.shape[1] != self.label_embeddings.shape[1]:
            raise RetrievalError(
                f"image embeddings have shape {images.shape}; need [b, {self.label_embeddings.shape[1]}]"
            )
        by_image = softmax(self._scale * images @ self.label_embeddings.T)
        sure_image = confidence(by_image)
        if self._captions is None:
            uniform = np.full_like(by_image, 1 / by_image.shape[1])
            none = np.zeros((len(images), 0), np.int64)
            return XMoRePrediction(by_image, by_image, uniform, sure_image, np.zeros_like(sure_image), none)
        similarities, ids = self._captions.search(images, self.options.captions)
        by_text = softmax(self.text_scale * self._by_text(self._captions, similarities, ids))
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


def scale_with_confidence(cosines: Floats, target: float, steps: int = 20) -> float:
    """The s at which softmax(s cosines) has this mean confidence, by bisection: cosines [b, c], target in 0..1.

    Of 0.1 <= s <= 1000 the nearest, which is what a target of 0 or 1 gets; all of them fit a single label.
    """
    low, high = np.log(0.1), np.log(1000.0)
    for _ in range(steps):  # on a log axis: 20 halvings give s to 0.001 %
        middle = (low + high) / 2
        if float(confidence(softmax(np.exp(middle) * cosines)).mean()) < target:
            low = middle
        else:
            high = middle
    return float(np.exp((low + high) / 2))
