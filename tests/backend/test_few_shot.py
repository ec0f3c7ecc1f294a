from __future__ import annotations

import numpy as np
import pytest

from backend.few_shot import METHODS, Confirmed, accuracy, draw, gda, prototypes, queue_acceptance, tip_adapter

D, LABELS = 16, 5


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


TEXTS = unit(np.random.default_rng(0).normal(size=(LABELS, D)))
CENTRES = unit(TEXTS + 0.9 * unit(np.random.default_rng(1).normal(size=(LABELS, D))))


def photos(each: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Photos around centres that their texts only point at."""
    y = np.repeat(np.arange(LABELS), each)
    return unit(CENTRES[y] + 0.6 * unit(np.random.default_rng(seed).normal(size=(len(y), D)))), y


def test_draws_hold_each_label_so_often_and_grow() -> None:
    labels = np.array([0, 0, 0, 1, 1, 2])
    for seed in range(5):
        two, one = draw(labels, 2, seed), draw(labels, 1, seed)
        assert np.bincount(labels[two]).tolist() == [2, 2, 1]
        assert set(one) < set(two)
        assert len(draw(labels, 0, seed)) == 0
    assert not np.array_equal(draw(np.zeros(50, int), 5, 0), draw(np.zeros(50, int), 5, 1))


@pytest.mark.parametrize("method", METHODS)
def test_nothing_confirmed_is_zero_shot_and_much_confirmed_is_better(method: str) -> None:
    x, y = photos(40, seed=2)
    asked, truth = photos(60, seed=3)
    before = np.exp(10 * asked @ TEXTS.T)
    before /= before.sum(axis=1, keepdims=True)
    nothing = Confirmed(x[:0], y[:0], TEXTS, 10.0)
    rank = METHODS[method]
    np.testing.assert_array_equal(rank(nothing, asked, before).argmax(1), before.argmax(1))
    right = float((rank(Confirmed(x, y, TEXTS, 10.0), asked, before).argmax(1) == truth).mean())
    alone = float((before.argmax(1) == truth).mean())
    assert right == alone if method == "zero_shot" else right > alone


def test_formulas_literally() -> None:
    x, y = photos(4, seed=2)
    asked, _ = photos(2, seed=3)
    confirmed = Confirmed(x, y, TEXTS, 10.0)
    tip, near = tip_adapter(confirmed, asked, asked), prototypes(confirmed, asked, asked)
    for q, tip_row, near_row in zip(asked.astype(float), tip, near, strict=True):
        for c in range(LABELS):
            votes = sum(np.exp(-(1 - q @ x[i])) for i in range(len(x)) if y[i] == c)
            assert tip_row[c] == pytest.approx(10 * q @ TEXTS[c] + 1.17 * votes, rel=1e-4)
            mean = x[y == c].sum(0) + TEXTS[c]
            assert near_row[c] == pytest.approx(q @ mean / np.linalg.norm(mean), rel=1e-4)


def test_gda_leaves_labels_without_images_to_zero_shot() -> None:
    x, y = photos(10, seed=2)
    known = y < 3
    asked, _ = photos(5, seed=3)
    scores = gda(Confirmed(x[known], y[known], TEXTS, 10.0), asked, asked)
    np.testing.assert_allclose(scores[:, 3:], 10 * asked @ TEXTS[3:].T, rtol=1e-4)
    assert np.isfinite(scores).all()


def test_accuracy_is_the_mean_over_draws() -> None:
    x, y = photos(6, seed=2)
    asked, truth = photos(20, seed=3)
    before = np.full((len(asked), LABELS), 1 / LABELS, np.float32)
    pool = Confirmed(x, y, TEXTS, 10.0)
    draws = [draw(y, 2, seed) for seed in range(3)]
    together = accuracy(pool, draws, asked, truth, before)
    single = [accuracy(pool, [rows], asked, truth, before) for rows in draws]
    for method in METHODS:
        assert together[method]["top1"] == pytest.approx(np.mean([each[method]["top1"] for each in single]), abs=1e-4)
        assert together[method]["top1"] <= together[method]["top5"] == 1


def test_a_queue_is_asked_before_it_is_confirmed() -> None:
    """Texts that say nothing: only what came before can be of use, so the first of each label is a guess."""
    x, y = photos(20, seed=2)
    nothing = unit(np.random.default_rng(9).normal(size=(LABELS, D)))
    got = queue_acceptance(x, y, nothing, 10.0, run=10, length=60, seed=0)
    assert got == queue_acceptance(x, y, nothing, 10.0, run=10, length=60, seed=0)
    assert got["zero_shot"] < 0.5 < got["reranked"] < 1
