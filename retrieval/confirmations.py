"""Confirmed labels -> re-ranked scores, at once and without training.

What is remembered are sums over the confirmed images: A = I + sum x x', B = sum x y', x a unit embedding and y its
label. Adding, replacing and removing are exact, in any order. An image q then has evidence for each label by ridge
regression, u = q' A^-1 B, and is re-ranked by the product of what the encoder says and what the confirmations say,

    p  is proportional to  p0^a exp(g u)

How much to trust each, (a, g), is what makes the confirmed labels most likely when each is left out in turn, which a
ridge regression gives in closed form: u_i = y_i - (y_i - x_i' A^-1 B) / (1 - x_i' A^-1 x_i). While there are labels
that nobody has confirmed, an image also counts, in one of n parts, as what it would be without all n images of its
label: each label has been new once. Nobody tunes anything: where the confirmations do not tell labels apart, g becomes
0, which is the encoder alone. A label that nobody has confirmed has no evidence and keeps its p0. docs/reranking.md
measures this against Tip-Adapter, GDA and prototypes.

The regression is that of ProKeR (Bendou et al., CVPR 2025) with a linear kernel, which is what makes the sums small and
exact; the product and the leave-one-out choice are this project's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import RetrievalError
from retrieval.xmore import softmax

Floats = NDArray[np.floating[Any]]
Labels = int | Sequence[int] | Mapping[int, float]
"""A label's index, several that share one image equally, or each with its share."""

TRUST_IN_ENCODER = (0.25, 0.5, 1.0)
"""Tried for a: confirmations may count for more than the encoder, which stays calibrated for itself at 1."""

WEIGHT_OF_EVIDENCE = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
"""Tried for g; at 64 the confirmations alone decide."""

EXPECTED_PRODUCT = 2.0
"""g a before there is anything to judge g by, as with one image of each label: left out, it says nothing of its own
label. The more the encoder has been wrong, the more a confirmation is expected to say. Of what did alike on train
photos (docs/lab-notes.md) the most careful."""

EXPECTATION_STRENGTH = 2.0
"""Of that, in nats per squared e-fold: a few confirmations outweigh it."""

JUDGED_AT_MOST = 256
"""Confirmations that are left out in turn: enough to tell the weights apart, and bounded, since annotators wait. With
more than 350 labels fewer, so that confirmations x labels stays the same."""

UPDATES_OF_INVERSE = 64
"""Images by which A^-1 is brought up to date, each with an error of about 1e-16, before it is computed anew."""

NEWCOMERS = 64
"""Labels with more images than this are not judged as newcomers: it would weigh less than 2 %."""

NEWCOMERS_JUDGED = 32
"""Labels that are judged as newcomers, for all of them; with more than 350 labels fewer."""

LEAST = 1e-6
"""Below this a probability counts as this, so that no label is out of reach for the evidence."""

EVIDENCE_OF_YES = 6.0
"""Log-odds that full evidence of yes or no adds to a label that is asked for on its own: 50 % becomes 99.8 %."""

_LABELS_JUDGED = 350


View = tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]
"""Some of the judged images: which [m], their evidence [m, c], and how much each counts [m]."""


class _RidgeSums:
    """The sums, and the confirmed images behind them."""

    def __init__(self, dim: int, labels: int) -> None:
        self.dim = dim
        self._gram: NDArray[np.float64] = np.eye(dim)
        self._cross: NDArray[np.float64] = np.zeros((dim, labels))
        self._embeddings: NDArray[np.float32] = np.zeros((0, dim), np.float32)  # rows beyond len(self) are room to grow
        self._orders: NDArray[np.uint64] = np.zeros(0, np.uint64)
        self._main: NDArray[np.int64] = np.zeros(0, np.int64)
        self._keys: list[Hashable] = []
        self._rows: dict[Hashable, int] = {}
        self._targets: list[dict[int, float]] = []
        self._inverse: NDArray[np.float64] | None = None
        self._updated = 0

    def __len__(self) -> int:
        return len(self._keys)

    def put(self, keys: Sequence[Hashable], embeddings: Floats, targets: Sequence[dict[int, float]]) -> None:
        """Add the images, or replace those that are known by these keys: [n, d]. Of a repeated key the last counts."""
        last = {key: i for i, key in enumerate(keys)}
        self.drop([key for key in last if key in self._rows])
        rows = embeddings[list(last.values())].astype(np.float32)
        old = len(self)
        self._reserve(old + len(rows))
        self._embeddings[old : old + len(rows)] = rows
        for offset, (key, i) in enumerate(last.items()):
            self._rows[key] = old + offset
            self._orders[old + offset] = _order(key)
            self._main[old + offset] = max(targets[i], key=targets[i].__getitem__, default=-1)
            self._keys.append(key)
            self._targets.append(targets[i])
        self._sum(np.arange(old, old + len(rows)), 1.0)

    def drop(self, keys: Sequence[Hashable]) -> None:
        """Take the images out again; unknown keys are passed over."""
        known = [key for key in dict.fromkeys(keys) if key in self._rows]
        self._sum(np.array([self._rows[key] for key in known], np.int64), -1.0)
        for key in known:
            row, last = self._rows.pop(key), len(self) - 1
            for rows in (self._embeddings, self._orders, self._main):
                rows[row] = rows[last]
            self._keys[row], self._targets[row] = self._keys[last], self._targets[last]
            if row != last:
                self._rows[self._keys[row]] = row
            self._keys.pop()
            self._targets.pop()

    def _sum(self, rows: NDArray[np.int64], sign: float) -> None:
        if not len(rows):
            return
        x = self._embeddings[rows].astype(np.float64)
        self._gram += sign * (x.T @ x)
        labels = max((label for row in rows for label in self._targets[row]), default=-1) + 1
        if labels > self._cross.shape[1]:
            self._cross = np.pad(
                self._cross, ((0, 0), (0, max(labels, 2 * self._cross.shape[1]) - self._cross.shape[1]))
            )
        for vector, row in zip(x, rows, strict=True):
            for label, share in self._targets[row].items():
                self._cross[:, label] += sign * share * vector
        self._updated += len(rows)
        if self._inverse is not None and self._updated <= UPDATES_OF_INVERSE:
            for vector in x:  # Sherman and Morrison: d^2 steps instead of d^3
                product = self._inverse @ vector
                self._inverse -= np.outer(product, product) * (sign / (1 + sign * (vector @ product)))
        else:
            self._inverse = None

    def _reserve(self, rows: int) -> None:
        if rows > len(self._embeddings):
            more = max(rows, 2 * len(self._embeddings), 64) - len(self._embeddings)
            self._embeddings = np.pad(self._embeddings, ((0, more), (0, 0)))
            self._orders = np.pad(self._orders, (0, more))
            self._main = np.pad(self._main, (0, more))

    def evidence(self, images: Floats) -> NDArray[np.float64]:
        """u of unit embeddings [b, d] -> [b, labels]."""
        scores: NDArray[np.float64] = (images.astype(np.float64) @ self.inverse()) @ self._cross
        return scores

    def inverse(self) -> NDArray[np.float64]:
        """A^-1 [d, d]; A's eigenvalues are at least 1, so it always exists."""
        if self._inverse is None:
            self._inverse = np.asarray(np.linalg.inv(self._gram), np.float64)
            self._updated = 0
        return self._inverse

    def sample(self, size: int) -> NDArray[np.int64]:
        """Rows of at most `size` images, drawn by their keys alone, so that the order they came in does not matter."""
        orders = self._orders[: len(self)]
        if len(orders) <= size:
            return np.argsort(orders)
        return np.sort(np.argpartition(orders, size)[:size])

    def left_out(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """The evidence of these images had they not been confirmed themselves: [n, labels]."""
        x = self._embeddings[rows].astype(np.float64)
        projected = x @ self.inverse()
        leverage = (projected * x).sum(axis=1, keepdims=True)
        y = self.targets(rows)
        out: NDArray[np.float64] = y - (y - projected @ self._cross) / (1 - leverage)
        return out

    def left_out_together(self, groups: Sequence[NDArray[np.int64]]) -> list[NDArray[np.float64]]:
        """As `left_out`, but of all images of a group at once: [n, labels] for each group of n rows."""
        rows = np.concatenate([*groups, np.zeros(0, np.int64)])
        x, y = self._embeddings[rows].astype(np.float64), self.targets(rows)
        projected = x @ self.inverse()
        rest = y - projected @ self._cross
        out, start = [], 0
        for group in groups:
            here = slice(start, start := start + len(group))
            kept = np.eye(len(group)) - projected[here] @ x[here].T
            out.append(y[here] - np.linalg.solve(kept, rest[here]))
        return out

    def target(self, key: Hashable) -> dict[int, float]:
        """Label -> share of an image; empty for one that is not known."""
        row = self._rows.get(key)
        return {} if row is None else self._targets[row]

    def targets(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        y = np.zeros((len(rows), self._cross.shape[1]))
        for i, row in enumerate(rows):
            for label, share in self._targets[row].items():
                y[i, label] = share
        return y

    def main_labels(self) -> NDArray[np.int64]:
        """Of each row, the label with the greatest share [n]."""
        return self._main[: len(self)]

    def embeddings(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        return self._embeddings[rows]


class Confirmations:
    """The memory of a question that has one right answer. Not safe for several threads at once."""

    def __init__(self, label_embeddings: Floats, logit_scale: float) -> None:
        """
        Args:
            label_embeddings: unit text embeddings [c, d], c >= 1.
            logit_scale: the encoder's factor on image-text cosines.

        Raises:
            RetrievalError: the label embeddings are not [c, d] with c >= 1.
        """
        self._labels = np.asarray(label_embeddings, np.float32)
        if self._labels.ndim != 2 or not len(self._labels):
            raise RetrievalError(
                f"label embeddings have shape {self._labels.shape}; need [c, d] with at least one label"
            )
        self._scale = float(logit_scale)
        self._sums = _RidgeSums(self._labels.shape[1], len(self._labels))
        self._counts = np.zeros(len(self._labels))
        self._trust: tuple[float, float] | None = None

    def __len__(self) -> int:
        return len(self._sums)

    @property
    def counts(self) -> NDArray[np.float64]:
        """Confirmed images of each label [c]."""
        return self._counts.copy()

    def add(self, annotation_id: Hashable, embedding: Floats, labels: Labels) -> None:
        """Remember an image's label. An id that is known is replaced.

        Args:
            annotation_id: by which it can be replaced and removed.
            embedding: unit image embedding [d].
            labels: the index of the label; several share the image, where annotators disagree.

        Raises:
            RetrievalError: the embedding is not [d] and finite, there is no label, or an index is out of range.
        """
        self.add_many([annotation_id], np.asarray(embedding)[None], [labels])

    def add_many(self, annotation_ids: Sequence[Hashable], embeddings: Floats, labels: Sequence[Labels]) -> None:
        """As `add`, for n images at once: embeddings [n, d]."""
        rows = _checked(embeddings, self._sums.dim)
        shares = [_shares(label, len(self._labels)) for label in labels]
        latest = dict(zip(annotation_ids, shares, strict=True))
        self._count([self._sums.target(key) for key in latest], -1)
        self._sums.put(annotation_ids, rows, shares)
        self._count(list(latest.values()), 1)

    def replace(self, annotation_id: Hashable, embedding: Floats, labels: Labels) -> None:
        """As `add`: the image counts with its new label alone."""
        self.add(annotation_id, embedding, labels)

    def remove(self, annotation_id: Hashable) -> None:
        """Forget an image; one that is not known is no error."""
        self._count([self._sums.target(annotation_id)], -1)
        self._sums.drop([annotation_id])

    def _count(self, shares: Sequence[dict[int, float]], sign: int) -> None:
        for share in shares:
            for label, part in share.items():
                self._counts[label] += sign * part
        self._trust = None

    def rerank(self, image_embeddings: Floats, probabilities: Floats) -> NDArray[np.float32]:
        """Unit image embeddings [b, d] and their probabilities [b, c] -> [b, c], rows sum to 1.

        Raises:
            RetrievalError: the shapes do not fit each other or the labels.
        """
        images, before = _checked(image_embeddings, self._sums.dim), np.asarray(probabilities)
        if before.shape != (len(images), len(self._labels)):
            raise RetrievalError(f"probabilities have shape {before.shape}; need {(len(images), len(self._labels))}")
        trust, weight = self.trust()
        if weight == 0:
            return before.astype(np.float32)
        logits = trust * np.log(np.maximum(before, LEAST)) + weight * self._sums.evidence(images)
        return softmax(logits)

    def left_out(self) -> tuple[list[Hashable], NDArray[np.float32]]:
        """Ids of the remembered images, and what they would be labelled had they not been confirmed: [n], [n, c]."""
        rows = np.arange(len(self))
        trust, weight = self.trust()
        cosines = self._sums.embeddings(rows) @ self._labels.T
        logits = trust * self._scale * cosines + weight * self._sums.left_out(rows)
        return list(self._sums._keys), softmax(logits)

    def trust(self) -> tuple[float, float]:
        """(a, g) in force: the exponent of the encoder's probabilities and the weight of the evidence."""
        if self._trust is None:
            self._trust = self._judged() if len(self) else (1.0, 0.0)
        return self._trust

    def _judged(self) -> tuple[float, float]:
        size = max(JUDGED_AT_MOST * _LABELS_JUDGED // max(len(self._labels), _LABELS_JUDGED), 64)
        rows = self._sums.sample(size)
        y = self._sums.targets(rows)
        by_encoder = (self._scale * (self._sums.embeddings(rows) @ self._labels.T)).astype(np.float32)
        left_out, every = self._sums.left_out(rows), np.arange(len(rows))
        if (self._counts > 0.5).all():
            # The next image is of a confirmed label, for which the only image of one cannot stand once it is left out.
            # It does say how far the encoder can be trusted.
            left_out[(y * self._counts).sum(axis=1) < 1.5] = 0
            views: list[View] = [(every, left_out, np.ones(len(rows)))]
        else:
            # Each confirmed label has been new once, so one in its n images is judged as the first of its label.
            parts = np.ones(len(rows))
            views = [(every, left_out, parts), self._as_newcomers(rows, parts)]
        y = y.astype(np.float32)
        judged = [(by_encoder[at], u.astype(np.float32), y[at], parts) for at, u, parts in views]

        def loss(trust: float, weight: float) -> float:
            expected = np.log((weight + 1) / (EXPECTED_PRODUCT / trust + 1)) ** 2
            total = EXPECTATION_STRENGTH * float(expected)
            for encoder, evidence, truth, parts in judged:
                logits = np.float32(trust) * encoder + np.float32(weight) * evidence
                right = (truth * logits).sum(axis=1)
                top = logits.max(axis=1)
                np.exp(np.subtract(logits, top[:, None], out=logits), out=logits)
                total += float((parts * (top + np.log(logits.sum(axis=1)) - right)).sum())
            return total

        # Of equal losses the first: the one nearer to the encoder alone.
        return min(
            ((a, g) for a in reversed(TRUST_IN_ENCODER) for g in WEIGHT_OF_EVIDENCE), key=lambda pair: loss(*pair)
        )

    def _as_newcomers(self, rows: NDArray[np.int64], parts: NDArray[np.float64]) -> View:
        """Some of these images, judged as if none of their label had been confirmed. What all such count is taken off
        the `parts` [n]."""
        main = self._sums.main_labels()
        labels, first, images = np.unique(main[rows], return_index=True, return_counts=True)
        counts = np.bincount(main, minlength=len(self._labels))[labels]
        few = np.flatnonzero(counts <= NEWCOMERS)
        parts -= np.where(counts <= NEWCOMERS, 1 / counts, 0)[np.searchsorted(labels, main[rows])]
        size = max(NEWCOMERS_JUDGED * _LABELS_JUDGED // max(len(self._labels), _LABELS_JUDGED), 1)
        chosen = few[np.unique(np.linspace(0, len(few) - 1, size).astype(np.int64))] if len(few) > size else few
        members = [np.flatnonzero(main == labels[i]) for i in chosen]
        together = self._sums.left_out_together(members)
        places = [int(first[i]) for i in chosen]
        evidence = [u[np.searchsorted(each, rows[at])] for u, each, at in zip(together, members, places, strict=True)]
        # The images of a label stand for each other, and the chosen labels for all.
        weight = (images[few] / counts[few]).sum() / max(len(chosen), 1)
        return (
            np.array(places, np.int64),
            np.array(evidence).reshape(len(chosen), len(self._labels)),
            np.full(len(chosen), weight),
        )


class Votes:
    """The memory of labels that are right or wrong each for itself: several answers at once, and free nouns.

    A chosen label has the target 1, one that was suggested and taken out -1; of the others nothing is known. Labels
    are counted from 0 and may grow. Not safe for several threads at once.
    """

    def __init__(self, dim: int) -> None:
        self._sums = _RidgeSums(dim, 0)

    def __len__(self) -> int:
        return len(self._sums)

    def add_many(
        self, annotation_ids: Sequence[Hashable], embeddings: Floats, votes: Sequence[Mapping[int, float]]
    ) -> None:
        """Remember images [n, d] with their votes, label -> -1..1; ids that are known are replaced."""
        self._sums.put(annotation_ids, _checked(embeddings, self._sums.dim), [dict(vote) for vote in votes])

    def remove(self, annotation_id: Hashable) -> None:
        """Forget an image; one that is not known is no error."""
        self._sums.drop([annotation_id])

    def rerank(self, image_embeddings: Floats, probabilities: Floats) -> NDArray[np.float32]:
        """Unit image embeddings [b, d], and a probability for each label on its own [b, c] -> [b, c]."""
        images, before = _checked(image_embeddings, self._sums.dim), np.asarray(probabilities, np.float64)
        evidence = np.zeros(before.shape)
        known = self._sums.evidence(images)[:, : before.shape[1]]
        evidence[:, : known.shape[1]] = known
        p = np.clip(before, LEAST, 1 - LEAST)
        logits = np.log(p) - np.log1p(-p) + EVIDENCE_OF_YES * evidence
        after: NDArray[np.float32] = np.where(evidence == 0, before, 1 / (1 + np.exp(-logits))).astype(np.float32)
        return after


def _checked(embeddings: Floats, dim: int) -> NDArray[np.float32]:
    rows = np.asarray(embeddings, np.float32)
    if rows.ndim != 2 or rows.shape[1] != dim:
        raise RetrievalError(f"image embeddings have shape {rows.shape}; need [n, {dim}]")
    if not np.isfinite(rows).all():
        raise RetrievalError("an image embedding is not finite; embed the image again")
    return rows


def _shares(labels: Labels, count: int) -> dict[int, float]:
    """Label -> share of the image, together 1."""
    if isinstance(labels, Mapping):
        shares = {int(label): float(share) for label, share in labels.items()}
    else:
        indices = [int(labels)] if isinstance(labels, int | np.integer) else [int(label) for label in labels]
        shares = dict.fromkeys(indices, 1.0)
    if not shares or not all(0 <= label < count for label in shares) or not all(s > 0 for s in shares.values()):
        raise RetrievalError(f"labels are {labels!r}; need at least one index from 0 to {count - 1}")
    total = sum(shares.values())
    return {label: share / total for label, share in shares.items()}


def _order(key: Hashable) -> int:
    """A number that the key alone decides: the same in every process, unlike hash()."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest())
