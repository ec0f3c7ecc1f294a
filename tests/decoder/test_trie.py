from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from decoder.trie import ROOT, Trie

sequences = st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=4), min_size=1, max_size=30)


def padded(rows: list[list[int]], length: int = 5) -> np.ndarray:
    return np.array([[*row, *[0] * (length - len(row))] for row in rows], np.int64)


def walk(trie: Trie, node: int = ROOT, before: tuple[int, ...] = ()) -> set[tuple[int, ...]]:
    """All sequences, the end token left out."""
    edges = range(trie.starts[node], trie.starts[node + 1])
    if not edges:
        return {tuple(token for token in before if token)}
    return set().union(*(walk(trie, edge + 1, (*before, int(trie.tokens[edge]))) for edge in edges))


@given(sequences)
def test_holds_exactly_what_it_was_given(rows: list[list[int]]) -> None:
    trie = Trie(padded(rows))
    assert walk(trie) == {tuple(row) for row in rows}
    assert trie.nouns == len({tuple(row) for row in rows})


def test_a_hundred_thousand_nouns() -> None:
    rows = np.zeros((100_000, 7), np.int64)
    rows[:, :6] = np.random.default_rng(0).integers(1, 10_000, (100_000, 6))
    assert Trie(rows).nouns == 100_000
