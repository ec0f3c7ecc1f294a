"""What confirmed labels are worth: our re-ranking beside the published rules that need no training, on one dataset.

Each method sees the same confirmed images and no others. What a method leaves to be tuned is tuned by leaving each
confirmed image out in turn, since nothing else is at hand where it would be used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from retrieval.confirmations import Confirmations
from retrieval.xmore import softmax

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]

ALPHAS = (0.0, 0.25, 0.5, 1.17, 2.0, 4.0, 8.0, 16.0, 32.0)
BETAS = (1.0, 2.0, 4.0, 8.0, 16.0)
GDA_ALPHAS = (0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)


@dataclass(frozen=True)
class Confirmed:
    """n confirmed images of a label set."""

    images: Floats
    """Unit embeddings [n, d]."""
    labels: Labels
    """[n], indices into the label set."""
    texts: Floats
    """Unit embeddings of the label set [c, d]."""
    scale: float
    """The encoder's factor on image-text cosines."""

    def zero_shot(self, images: Floats) -> Floats:
        """Logits [b, c]."""
        logits: Floats = (self.scale * (images @ self.texts.T)).astype(np.float32)
        return logits

    def one_hot(self) -> Floats:
        rows: Floats = np.eye(len(self.texts), dtype=np.float32)[self.labels]
        return rows


Method = Callable[[Confirmed, Floats, Floats], Floats]
"""(confirmed, images [b, d], probabilities before [b, c]) -> scores [b, c], of which the highest is the answer."""


def zero_shot(confirmed: Confirmed, images: Floats, before: Floats) -> Floats:
    """The encoder alone."""
    return confirmed.zero_shot(images)


def reranked(confirmed: Confirmed, images: Floats, before: Floats) -> Floats:
    """What this product does."""
    memory = Confirmations(confirmed.texts, confirmed.scale)
    memory.add_many(range(len(confirmed.labels)), confirmed.images, confirmed.labels.tolist())
    return memory.rerank(images, before)


def tip_adapter(confirmed: Confirmed, images: Floats, before: Floats) -> Floats:
    """Tip-Adapter without training (Zhang et al., ECCV 2022), with the values of its repository for ImageNet."""
    return _tip_adapter(confirmed, images, 1.17, 1.0)


def tip_adapter_tuned(confirmed: Confirmed, images: Floats, before: Floats) -> Floats:
    """The same, its two values those that get most of the confirmed images right, each left out in turn."""
    if not len(confirmed.labels):
        return confirmed.zero_shot(images)
    own, y = confirmed.zero_shot(confirmed.images), confirmed.one_hot()
    best, chosen = -1.0, (0.0, 1.0)
    for beta in BETAS:
        near = np.exp(-beta * (1 - confirmed.images @ confirmed.images.T))
        np.fill_diagonal(near, 0)
        votes = near @ y
        for alpha in ALPHAS:
            right = float(((own + alpha * votes).argmax(axis=1) == confirmed.labels).mean())
            if right > best:
                best, chosen = right, (alpha, beta)
    return _tip_adapter(confirmed, images, *chosen)


def _tip_adapter(confirmed: Confirmed, images: Floats, alpha: float, beta: float) -> Floats:
    near = np.exp(-beta * (1 - images @ confirmed.images.T))
    scores: Floats = (confirmed.zero_shot(images) + alpha * (near @ confirmed.one_hot())).astype(np.float32)
    return scores


def gda(confirmed: Confirmed, images: Floats, before: Floats) -> Floats:
    """Gaussian discriminant analysis beside zero-shot (Wang et al., ICLR 2024).

    A label without an image has no mean: it keeps its zero-shot score. The weight alpha is the one that gets most of
    the confirmed images right, the mean of an image's own label without that image.
    """
    x, y = confirmed.images.astype(np.float64), confirmed.labels
    if not len(y):
        return confirmed.zero_shot(images)
    counts = np.bincount(y, minlength=len(confirmed.texts))
    means = confirmed.one_hot().T.astype(np.float64) @ x / np.maximum(counts, 1)[:, None]
    rest = x - means[y]
    n, d = x.shape
    scatter = rest.T @ rest  # (n - 1) times the covariance
    trace = np.trace(scatter) / max(n - 1, 1)
    precision = d * np.linalg.inv(scatter + trace * np.eye(d)) if trace > 1e-9 else np.eye(d)

    def offsets(of: NDArray[np.float64]) -> NDArray[np.float64]:
        """Of the discriminants of these means [k, d] -> [k]."""
        return np.asarray(-0.5 * np.einsum("kd,kd->k", of @ precision, of))

    known = counts > 0
    logits = images.astype(np.float64) @ (means @ precision).T + offsets(means)
    own = x @ (means @ precision).T + offsets(means)
    without = (means[y] * counts[y, None] - x) / np.maximum(counts[y] - 1, 1)[:, None]
    own[np.arange(n), y] = np.where(
        counts[y] > 1, np.einsum("nd,nd->n", x, without @ precision) + offsets(without), -np.inf
    )
    by_encoder = confirmed.zero_shot(confirmed.images)
    right = [
        ((by_encoder + np.where(known, alpha * own, 0) if alpha else by_encoder).argmax(axis=1) == y).mean()
        for alpha in GDA_ALPHAS
    ]
    alpha = GDA_ALPHAS[int(np.argmax(right))]
    result: Floats = (confirmed.zero_shot(images) + np.where(known, alpha * logits, 0)).astype(np.float32)
    return result


def prototypes(confirmed: Confirmed, images: Floats, before: Floats) -> Floats:
    """The nearest mean of a label's images and its text (as in DMN, Zhang et al., CVPR 2024)."""
    means = confirmed.one_hot().T @ confirmed.images + confirmed.texts
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    cosines: Floats = images @ means.T
    return cosines


METHODS: Mapping[str, Method] = {
    "reranked": reranked,
    "zero_shot": zero_shot,
    "tip_adapter": tip_adapter,
    "tip_adapter_tuned": tip_adapter_tuned,
    "gda": gda,
    "prototypes": prototypes,
}


def draw(labels: Labels, shots: int, seed: int) -> Labels:
    """Rows of `shots` images of each label, fewer where there are not as many. More shots include those of fewer."""
    order = np.random.default_rng(seed).permutation(len(labels))
    return np.concatenate([order[labels[order] == label][:shots] for label in np.unique(labels)] or [order[:0]])


def accuracy(
    pool: Confirmed, draws: Sequence[Labels], images: Floats, truth: Labels, before: Floats
) -> dict[str, dict[str, float]]:
    """Method -> {"top1", "top5"}, fractions of 1, the mean over draws.

    Args:
        pool: what can be confirmed.
        draws: each the rows of the pool that are.
        images: unit embeddings [b, d] of what is asked.
        truth: [b], their labels.
        before: [b, c], the probabilities that are re-ranked.
    """
    hits = {method: np.zeros(2) for method in METHODS}
    for rows, (method, rank) in product(draws, METHODS.items()):
        confirmed = Confirmed(pool.images[rows], pool.labels[rows], pool.texts, pool.scale)
        hits[method] += top_hits(rank(confirmed, images, before), truth)
    return {method: shares(both, len(draws) * len(truth)) for method, both in hits.items()}


def top_hits(scores: Floats, truth: Labels) -> NDArray[np.float64]:
    """Images whose true label is the first, and among the first five: [b, c], [b] -> [2]."""
    right = np.argsort(-scores, axis=1, kind="stable")[:, :5] == truth[:, None]
    return np.array([right[:, 0].sum(), right.any(axis=1).sum()], np.float64)


def shares(hits: NDArray[np.float64], images: int) -> dict[str, float]:
    """Of `top_hits`, as fractions of 1."""
    return {f"top{k}": round(float(count) / images, 5) for k, count in zip((1, 5), hits, strict=True)}


def queue_acceptance(
    images: Floats, truth: Labels, texts: Floats, scale: float, run: float, length: int, seed: int
) -> dict[str, float]:
    """Method -> share of right first suggestions while a queue is labelled from nothing, each confirmed or corrected.

    Args:
        images: unit embeddings [n, d] that the queue is drawn from, without repeats.
        truth: [n], their labels.
        run: mean length of the runs of one label in which they come (geometric).
        length: photos in the queue.
        seed: of the draw.
    """
    rng = np.random.default_rng(seed)
    left = {label: list(rng.permutation(np.flatnonzero(truth == label))) for label in np.unique(truth)}
    order: list[int] = []
    while len(order) < length and left:
        label = rng.choice(list(left))
        for _ in range(min(int(rng.geometric(1 / run)), len(left[label]))):
            order.append(int(left[label].pop()))
        if not left[label]:
            del left[label]
    order = order[:length]
    right = dict.fromkeys(METHODS, 0)
    memory = Confirmations(texts, scale)
    for i, row in enumerate(order):
        image = images[row : row + 1]
        seen = order[:i]
        confirmed = Confirmed(images[seen], truth[seen], texts, scale)
        before = softmax(confirmed.zero_shot(image))
        for method, rank in METHODS.items():
            scores = memory.rerank(image, before) if method == "reranked" else rank(confirmed, image, before)
            right[method] += int(scores[0].argmax() == truth[row])
        memory.add(row, images[row], int(truth[row]))
    return {method: hits / len(order) for method, hits in right.items()}
