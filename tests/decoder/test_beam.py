"""Beam search answers what a plain, cache-free search over the published weights answers."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from decoder.beam import beam_search
from decoder.checkpoint import load_novic
from decoder.errors import DecoderError, NounError
from decoder.model import ObjectDecoder
from decoder.trie import Trie
from decoder.vocabulary import before_end
from tests.decoder.published import PlainDecoder, Sizes, make_published


def load(sizes: Sizes, seed: int = 0) -> tuple[ObjectDecoder, PlainDecoder]:
    with tempfile.TemporaryDirectory() as folder:
        content, tokenizer = make_published(Path(folder) / "x.train", sizes, seed)
        return load_novic(Path(folder) / "x.train", tokenizer), PlainDecoder(content, tokenizer)


def unit(b: int, d: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(b, d)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


sizes = st.builds(
    Sizes,
    embedding=st.integers(2, 20),
    hidden=st.sampled_from([8, 16, 24]),
    layers=st.integers(1, 3),
    heads=st.sampled_from([1, 2, 4]),
    scale=st.sampled_from(["1/4", "1/2", "2"]),
    prefix=st.integers(1, 5),
    words=st.integers(2, 12),
    nouns=st.integers(1, 40),
    longest=st.integers(1, 5),
    invalid=st.integers(0, 3),
    quantised=st.booleans(),
)


@settings(max_examples=40)
@given(
    sizes=sizes,
    seed=st.integers(0, 1000),
    b=st.integers(1, 4),
    width=st.integers(1, 12),
    mode=st.sampled_from([(True, False), (True, True), (False, False)]),
    temperature=st.sampled_from([1.0, 0.5, 3.0]),
)
def test_equals_a_plain_search(
    sizes: Sizes, seed: int, b: int, width: int, mode: tuple[bool, bool], temperature: float
) -> None:
    decoder, plain = load(sizes, seed)
    guided, renormalise = mode
    embeddings = unit(b, sizes.embedding, seed)
    found = beam_search(decoder, embeddings, width, guided, renormalise, temperature)
    for i, embedding in enumerate(torch.from_numpy(embeddings)):
        expected = plain.beam_search(embedding, width, guided, renormalise, temperature)
        scores = np.array([score for score, _ in expected])
        tokens = [tuple(token for token in row if token) for row in found.tokens[i]]
        np.testing.assert_allclose(found.logprobs[i][: len(scores)], scores, atol=1e-4)
        # Where two scores are nearer than rounding, either order is right.
        if len(scores) < 2 or np.min(-np.diff(scores)) > 1e-4:
            assert tokens[: len(expected)] == [tuple(token for token in row if token) for _, row in expected]


def test_a_batch_answers_as_its_images_alone() -> None:
    decoder, _ = load(Sizes(nouns=40))
    embeddings = unit(7, 12)
    together = beam_search(decoder, embeddings, 5)
    for i in range(7):
        alone = beam_search(decoder, embeddings[i : i + 1], 5)
        assert alone.nouns[0] == together.nouns[i]
        np.testing.assert_allclose(alone.logprobs[0], together.logprobs[i], atol=1e-5)


def test_a_beam_wider_than_the_list() -> None:
    decoder, _ = load(Sizes(nouns=3))
    found = beam_search(decoder, unit(2, 12), 10)
    assert found.logprobs.shape == (2, 3)
    assert all(sorted(names) == sorted(decoder.vocabulary.nouns) for names in found.nouns)


def test_probabilities_over_a_whole_list_add_up_to_one_when_renormalised() -> None:
    decoder, _ = load(Sizes(nouns=30))
    found = beam_search(decoder, unit(3, 12), 30, renormalise=True)
    np.testing.assert_allclose(np.exp(found.logprobs).sum(1), 1, atol=1e-4)


def test_guided_to_a_list_of_the_moment() -> None:
    decoder, _ = load(Sizes(nouns=30))
    wanted = list(decoder.vocabulary.nouns[3:8])
    found = beam_search(decoder, unit(2, 12), 10, trie=Trie(decoder.vocabulary.encode(wanted)))
    assert all(sorted(names) == sorted(wanted) for names in found.nouns)


def test_a_noun_scored_alone_gets_what_the_search_gives_it() -> None:
    decoder, _ = load(Sizes(nouns=30))
    decoder.eval()
    dictionary = torch.from_numpy(decoder.vocabulary.dictionary)
    for image in unit(3, 12):
        found = beam_search(decoder, image[None], 30)
        searched = {before_end(row): score for row, score in zip(found.tokens[0], found.logprobs[0], strict=True)}
        alone = decoder.noun_logprobs(decoder.read_images(torch.from_numpy(image[None])).expand(30, -1), dictionary)
        for row, score in zip(dictionary.tolist(), alone.tolist(), strict=True):
            assert score == pytest.approx(searched[before_end(row)], abs=1e-4)


def test_no_embeddings_no_names() -> None:
    decoder, _ = load(Sizes())
    assert beam_search(decoder, np.zeros((0, 12), np.float32)).nouns == []


@pytest.mark.parametrize(
    ("embeddings", "width", "temperature", "message"),
    [
        (np.zeros((2, 11), np.float32), 10, 1.0, r"shape \(2, 11\).*\[b, 12\]"),
        (np.zeros(12, np.float32), 10, 1.0, r"shape \(12,\)"),
        (np.zeros((2, 12), np.float32), 0, 1.0, "beam width 0"),
        (np.zeros((2, 12), np.float32), 1, 0.0, "temperature 0"),
    ],
)
def test_wrong_arguments(embeddings: np.ndarray, width: int, temperature: float, message: str) -> None:
    decoder, _ = load(Sizes())
    with pytest.raises(DecoderError, match=message):
        beam_search(decoder, embeddings, width, temperature=temperature)


def test_nouns_that_cannot_be_encoded_are_named() -> None:
    decoder, _ = load(Sizes(nouns=5, words=30))
    with pytest.raises(NounError, match=r"'' cannot be tokenised; 'zebra' needs tokens.*Leave"):
        decoder.vocabulary.encode(["", "zebra", decoder.vocabulary.nouns[0]])
    word = decoder.vocabulary.nouns[0].split()[0]
    with pytest.raises(NounError, match="longer than this decoder's 4 tokens"):
        decoder.vocabulary.encode([" ".join([word] * 5)])
    assert decoder.vocabulary.encodable(["", "zebra", word]) == [word]
    with pytest.raises(NounError, match="empty"):
        Trie(decoder.vocabulary.encode([]))
