"""The token sequences of a list of nouns as a trie, in flat arrays that a whole beam is looked up in at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from decoder.errors import NounError

ROOT = 0


class Trie:
    """Node 0 is the root. Edge e leads to node e + 1, and the edges of node n are starts[n]:starts[n + 1]."""

    def __init__(self, sequences: NDArray[np.int64]) -> None:
        """
        Args:
            sequences: token ids [n, C], ended and padded with 0; repeats count once. The last column is never read: a
                noun of C - 1 tokens ends there without an end token.

        Raises:
            NounError: no sequence is given, or one is empty.
        """
        if not len(sequences):
            raise NounError("the list of nouns is empty; give at least one")
        rows = np.unique(sequences[:, :-1], axis=0)
        if not rows.shape[1] or (rows[:, 0] == 0).any():
            raise NounError("a noun without tokens cannot be guided to")
        node: NDArray[np.int64] = np.zeros(len(rows), np.int64)
        parents, tokens = [], []
        edges = 0
        for column in range(rows.shape[1]):
            token = rows[:, column]
            fresh = np.ones(len(rows), bool)
            fresh[1:] = (node[1:] != node[:-1]) | (token[1:] != token[:-1])
            parents.append(node[fresh])
            tokens.append(token[fresh])
            node = edges + np.cumsum(fresh)
            edges += int(fresh.sum())
            going = token != 0
            rows, node = rows[going], node[going]
            if not len(rows):
                break
        self.tokens: NDArray[np.int64] = np.concatenate(tokens)
        """[edges], the token of each edge; 0 ends the noun."""
        self.starts: NDArray[np.int64] = np.searchsorted(np.concatenate(parents), np.arange(edges + 2))
        """[nodes + 1]."""
        self.nouns = int((self.tokens == 0).sum()) + len(rows)
        """Different sequences."""
