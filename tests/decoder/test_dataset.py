from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from decoder.dataset import (
    PLURAL,
    SINGULAR,
    EmbeddedTexts,
    Text,
    captions_with_nouns,
    embed_texts,
    multisets,
    prompts,
    with_article,
)
from decoder.errors import NounError
from decoder.nouns import Noun

NOUNS = [
    Noun("cat", "cats", frequency=12.0),
    Noun("hot dog", "hot dogs", ("hot-dog",), 6.0),
    Noun("scissors", "scissors", frequency=6.0),
    Noun("bacon", "", frequency=1.0),
    Noun("dog", "dogs", frequency=12.0),
]


@pytest.mark.parametrize(
    ("noun", "expected"),
    [
        ("cat", "a cat"),
        ("owl", "an owl"),
        ("hourglass", "an hourglass"),
        ("house", "a house"),
        ("unicycle", "a unicycle"),
        ("umbrella", "an umbrella"),
        ("uniform", "a uniform"),
        ("utensil", "a utensil"),
        ("one-way street", "a one-way street"),
        ("onion", "an onion"),
        ("eucalyptus", "a eucalyptus"),
        ("ukulele", "a ukulele"),
        ("urchin", "an urchin"),
        ("iPod", "an iPod"),
    ],
)
def test_articles(noun: str, expected: str) -> None:
    assert with_article(noun) == expected


def test_prompts_name_their_noun_in_the_right_number() -> None:
    texts = prompts(NOUNS, 60)
    assert len(set(texts)) == len(texts)
    words = {position: [text.words for text in texts if text.nouns == (position,)] for position in range(len(NOUNS))}
    assert {"cat", "cats", "a photo of a cat.", "a photo of cats."} <= set(words[0])
    assert any("hot-dog" in text for text in words[1])
    assert not any("a scissors" in text for text in words[2])
    assert all("bacon" in text and "bacons" not in text for text in words[3])
    assert len(words[0]) > len(words[1]) > len(words[3])  # the commoner, the more
    assert not any("{" in text for group in words.values() for text in group)
    assert all(template.count("{a noun}") + template.count("{noun}") == 1 for template in SINGULAR)
    assert all(template.count("{nouns}") == 1 for template in PLURAL)


def test_multisets_name_different_nouns() -> None:
    for size in (2, 3):
        texts = multisets(NOUNS, 50, size)
        assert len(texts) == 50
        for text in texts:
            assert len(set(text.nouns)) == size
            assert all(NOUNS[i].singular in text.words for i in text.nouns)
    assert any("a cat, a dog and scissors" in t.words or "scissors" in t.words for t in multisets(NOUNS, 50, 3))
    assert multisets(NOUNS[:1], 5, 2) == []


def test_captions_keep_the_longest_noun() -> None:
    captions = ["Two cats eat a hot dog.", "A HOT-DOG stand", "nothing here", "a dog, a cat, scissors and bacon"]
    assert captions_with_nouns(captions, NOUNS) == [
        Text("Two cats eat a hot dog.", (0, 1)),
        Text("A HOT-DOG stand", (1,)),
    ]


class CountingEncoder:
    name, fingerprint, dim = "counting", "c0", 4

    def __init__(self, fail_after: int = 10**9) -> None:
        self.asked, self.fail_after = 0, fail_after

    def embed_texts(self, texts: list[str]) -> np.ndarray:
        self.asked += len(texts)
        if self.asked > self.fail_after:
            raise KeyboardInterrupt
        rows = np.array([[len(t), t.count("a"), 1, 2] for t in texts], np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_texts_are_embedded_once_and_a_stopped_run_goes_on(tmp_path: Path) -> None:
    texts = [Text(f"text {i}", (0,)) for i in range(10_000)]
    with pytest.raises(KeyboardInterrupt):
        embed_texts(texts, CountingEncoder(9000), tmp_path)  # type: ignore[arg-type]
    second = CountingEncoder()
    told: list[int] = []
    embedded = embed_texts(texts, second, tmp_path, told.append)  # type: ignore[arg-type]
    assert second.asked == 10_000 - 8192
    assert sum(told) == 10_000
    np.testing.assert_allclose(embedded, CountingEncoder().embed_texts([t.words for t in texts]), atol=1e-3)
    third = CountingEncoder()
    embed_texts(texts, third, tmp_path)  # type: ignore[arg-type]
    assert third.asked == 0
    other = CountingEncoder()
    other.fingerprint = "c1"
    embed_texts(texts, other, tmp_path)  # type: ignore[arg-type]
    assert other.asked == 10_000


def test_samples_are_drawn_by_kind_and_weighed() -> None:
    kinds = [[Text("a", (0,)), Text("b", (1,))], [Text("a and b", (0, 1))], []]
    rows = np.eye(3, 4, dtype=np.float16)
    data = EmbeddedTexts(kinds, (0.5, 0.5, 0.9), rows)
    batch = data.draw(np.random.default_rng(0), 1000)
    assert 990 <= len(batch.nouns) <= 1000
    both = batch.weights == 0.5
    assert (batch.embeddings[both] == rows[2]).all()
    assert set(batch.nouns[both]) == {0, 1}
    assert both.mean() == pytest.approx(2 / 3, abs=0.05)  # as many texts, two targets each
    assert (batch.embeddings[~both] == rows[batch.nouns[~both]]).all()
    with pytest.raises(NounError, match="1 texts and 3 embeddings"):
        EmbeddedTexts([[Text("a", (0,))]], (1.0,), rows)
