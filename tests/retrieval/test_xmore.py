from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.captions import CaptionIndex
from retrieval.errors import RetrievalError
from retrieval.xmore import XMoRe, XMoReOptions, confidence, mix, scale_with_confidence, softmax

SCALE = 20.0


def unit(n: int, d: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def index(n: int, d: int, seed: int = 9) -> CaptionIndex:
    return CaptionIndex.from_embeddings(unit(n, d, seed), [f"caption {i}" for i in range(n)])


@settings(max_examples=40, deadline=None)
@given(
    b=st.integers(0, 5),
    c=st.integers(1, 40),
    n=st.integers(0, 60),
    d=st.integers(2, 24),
    k=st.integers(1, 20),
    seed=st.integers(0, 99),
)
def test_probabilities_are_probabilities(b: int, c: int, n: int, d: int, k: int, seed: int) -> None:
    xmore = XMoRe(unit(c, d, seed), index(n, d), SCALE, XMoReOptions(captions=k))
    got = xmore.predict(unit(b, d, seed + 1))
    for p in (got.probabilities, got.image_probabilities, got.text_probabilities):
        assert p.shape == (b, c) and p.dtype == np.float32
        assert np.isfinite(p).all() and (p >= 0).all()
        np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-4)
    for sure in (got.image_confidence, got.text_confidence):
        assert sure.shape == (b,) and ((sure >= 0) & (sure <= 1)).all()
    assert got.caption_ids.shape == (b, min(k, n))


def test_follows_the_formula_literally() -> None:
    """Against a slow transcription of the module's docstring, for a fixed text scale."""
    labels, captions, images = unit(7, 12, 1), unit(30, 12, 2), unit(4, 12, 3)
    options = XMoReOptions(captions=5, retrieval_scale=11.0, text_scale=6.0)
    got = XMoRe(labels, CaptionIndex.from_embeddings(captions, ["x"] * 30), SCALE, options).predict(images)
    for row, x in enumerate(images.astype(np.float64)):
        near = sorted(range(30), key=lambda i: -float(x @ captions[i]))[:5]
        a = np.exp([11.0 * float(x @ captions[i]) for i in near])
        r = sum(w * captions[i].astype(np.float64) for w, i in zip(a / a.sum(), near, strict=True))
        r = r / np.linalg.norm(r)
        image, text = np.exp(SCALE * labels @ x), np.exp(6.0 * labels @ r)
        image, text = image / image.sum(), text / text.sum()
        w_image, w_text = (1 + (p * np.log(p)).sum() / np.log(7) for p in (image, text))
        np.testing.assert_allclose(
            got.probabilities[row], (w_image * image + w_text * text) / (w_image + w_text), atol=1e-5
        )
        assert list(got.caption_ids[row]) == near


def test_without_captions_it_is_zero_shot() -> None:
    labels, images = unit(5, 8, 1), unit(3, 8, 2)
    for captions in (None, index(0, 8)):
        got = XMoRe(labels, captions, SCALE).predict(images)
        np.testing.assert_allclose(got.probabilities, softmax(SCALE * images @ labels.T), atol=1e-6)
        assert got.caption_ids.shape == (3, 0) and not got.text_confidence.any()


def test_one_label_is_certain_and_duplicates_share() -> None:
    images = unit(3, 8, 2)
    np.testing.assert_allclose(XMoRe(unit(1, 8, 1), index(9, 8), SCALE).predict(images).probabilities, 1, atol=1e-6)
    twice = np.repeat(unit(2, 8, 1), 2, axis=0)
    got = XMoRe(twice, index(9, 8), SCALE).predict(images).probabilities
    np.testing.assert_allclose(got[:, 0], got[:, 1], atol=1e-6)


def test_more_than_ten_thousand_labels() -> None:
    got = XMoRe(unit(12_000, 16, 1), index(50, 16), SCALE).predict(unit(2, 16, 2))
    np.testing.assert_allclose(got.probabilities.sum(axis=1), 1, atol=1e-3)


def test_a_batch_answers_as_its_images_alone() -> None:
    xmore, images = XMoRe(unit(9, 8, 1), index(40, 8), SCALE), unit(6, 8, 2)
    together = xmore.predict(images).probabilities
    alone = np.concatenate([xmore.predict(images[i : i + 1]).probabilities for i in range(6)])
    np.testing.assert_allclose(together, alone, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(b=st.integers(1, 6), c=st.integers(2, 50), target=st.floats(0, 1), seed=st.integers(0, 99))
def test_mean_confidence_is_met_where_it_can_be(b: int, c: int, target: float, seed: int) -> None:
    cosines = unit(b, 8, seed) @ unit(c, 8, seed + 1).T
    scale = scale_with_confidence(cosines, target)
    flattest, sharpest = (confidence(softmax(s * cosines)).mean() for s in (0.1, 1000.0))
    got = confidence(softmax(scale * cosines)).mean()
    assert got == pytest.approx(np.clip(target, flattest, sharpest), abs=2e-3)


def test_the_text_scale_is_calibrated_on_the_captions_themselves() -> None:
    """Against a slow transcription: every caption asks for its nearest others."""
    labels, captions = unit(7, 12, 1), unit(30, 12, 2)
    xmore = XMoRe(labels, index(30, 12, 2), SCALE, XMoReOptions(captions=4, text_confidence=0.1))
    means = []
    for i, caption in enumerate(captions):
        near = sorted((j for j in range(30) if j != i), key=lambda j: -float(caption @ captions[j]))[:4]
        mean = captions[near].mean(axis=0)
        means.append(mean / np.linalg.norm(mean))
    by_text = softmax(xmore.text_scale * np.stack(means) @ labels.T)
    assert confidence(by_text).mean() == pytest.approx(0.1, abs=1e-4)


def test_a_single_caption_calibrates_on_itself() -> None:
    assert np.isfinite(XMoRe(unit(3, 8, 1), index(1, 8), SCALE).predict(unit(2, 8, 2)).probabilities).all()


def test_confidence_and_mix() -> None:
    sure = confidence(np.array([[1.0, 0, 0, 0], [0.25, 0.25, 0.25, 0.25]]))
    np.testing.assert_allclose(sure, [1, 0], atol=1e-6)
    image, text = np.array([[0.9, 0.1]]), np.array([[0.2, 0.8]])
    np.testing.assert_allclose(mix(image, np.array([0.0]), text, np.array([0.0])), image)
    np.testing.assert_allclose(mix(image, np.array([0.3]), text, np.array([0.1])), [[0.725, 0.275]])


@pytest.mark.parametrize("labels", [np.zeros((0, 8)), np.zeros(8)])
def test_bad_labels_are_refused(labels: np.ndarray) -> None:
    with pytest.raises(RetrievalError, match="at least one label"):
        XMoRe(labels, None, SCALE)


def test_two_encoders_are_not_mixed() -> None:
    with pytest.raises(RetrievalError, match="two encoders"):
        XMoRe(unit(2, 8, 1), index(3, 9), SCALE)
    with pytest.raises(RetrievalError, match=r"need \[b, 8\]"):
        XMoRe(unit(2, 8, 1), None, SCALE).predict(unit(1, 9, 1))
