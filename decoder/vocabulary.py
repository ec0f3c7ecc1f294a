"""The tokens a decoder speaks in, and the nouns of its dictionary.

Token ids are compact: those of the tokenizer that the dictionary uses, renumbered. 0 ends a noun and pads it; there is
no start token.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decoder.errors import NounError
from decoder.trie import Trie

END = 0


class Vocabulary:
    """Nouns to token ids and back."""

    def __init__(self, tokenizer: Any, tokenizer_ids: NDArray[np.int64], token_length: int, nouns: Sequence[str]):
        """
        Args:
            tokenizer: a tokenizer of transformers.
            tokenizer_ids: [V], the tokenizer's id of each compact id; that of 0 is its end token.
            token_length: C, tokens of the longest noun with its end token.
            nouns: the dictionary.
        """
        self.tokenizer, self.tokenizer_ids, self.token_length = tokenizer, tokenizer_ids, token_length
        self.nouns = tuple(nouns)
        self._compact = {int(id_): i for i, id_ in enumerate(tokenizer_ids) if i != END}
        self._decoded: dict[tuple[int, ...], str] = {}

    @classmethod
    def from_nouns(cls, tokenizer: Any, nouns: Sequence[str]) -> Vocabulary:
        """The tokens that these nouns need, and no more.

        Raises:
            NounError: no noun is given, or one has no tokens or cannot be told from another by them.
        """
        if not nouns:
            raise NounError("the list of nouns is empty; give at least one")
        ids = _tokenize(tokenizer, nouns)
        if blank := [noun for noun, row in zip(nouns, ids, strict=True) if not row]:
            raise NounError(f"{_named(blank)} cannot be tokenised; leave it out")
        used = np.array(sorted({id_ for row in ids for id_ in row}), np.int64)
        end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
        length = max(map(len, ids)) + 1
        return cls(tokenizer, np.concatenate([[-1 if end is None else end], used]).astype(np.int64), length, nouns)

    def __len__(self) -> int:
        return len(self.tokenizer_ids)

    def encode(self, nouns: Sequence[str]) -> NDArray[np.int64]:
        """Nouns -> compact ids [n, C], padded with 0.

        Raises:
            NounError: naming the nouns that have no tokens, too many, or one that the decoder was not trained with.
        """
        out = np.zeros((len(nouns), self.token_length), np.int64)
        unknown, long, blank = [], [], []
        for i, (noun, ids) in enumerate(zip(nouns, _tokenize(self.tokenizer, nouns), strict=True)):
            if not ids:
                blank.append(noun)
            elif any(id_ not in self._compact for id_ in ids):
                unknown.append(noun)
            elif len(ids) >= self.token_length:
                long.append(noun)
            else:
                out[i, : len(ids)] = [self._compact[id_] for id_ in ids]
        problems = [
            f"{_named(found)} {why}"
            for found, why in (
                (blank, "cannot be tokenised"),
                (unknown, "needs tokens that this decoder was not trained with"),
                (long, f"is longer than this decoder's {self.token_length - 1} tokens"),
            )
            if found
        ]
        if problems:
            raise NounError("; ".join(problems) + ". Leave these nouns out")
        return out

    def encodable(self, nouns: Sequence[str]) -> list[str]:
        """Those of the nouns that `encode` takes, in order."""
        return [
            noun
            for noun, ids in zip(nouns, _tokenize(self.tokenizer, nouns), strict=True)
            if 0 < len(ids) < self.token_length and all(id_ in self._compact for id_ in ids)
        ]

    def decode(self, tokens: Sequence[int]) -> str:
        """Compact ids up to the first 0 -> text, as the tokenizer spells it ("ipod" for the dictionary's "iPod")."""
        key = before_end(tokens)
        if key not in self._decoded:
            originals = [int(self.tokenizer_ids[id_]) for id_ in key]
            text = self.tokenizer.decode(originals, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            self._decoded[key] = text.strip()
        return self._decoded[key]

    def spelling(self, tokens: Sequence[int]) -> str:
        """As `decode`, but as the dictionary spells the noun, where it has it."""
        return self._spellings.get(before_end(tokens)) or self.decode(tokens)

    @cached_property
    def trie(self) -> Trie:
        """The dictionary as a trie."""
        return Trie(self.dictionary)

    @cached_property
    def dictionary(self) -> NDArray[np.int64]:
        """The dictionary as `encode` gives it."""
        return self.encode(self.nouns)

    @cached_property
    def _spellings(self) -> dict[tuple[int, ...], str]:
        return dict(zip(map(before_end, self.dictionary.tolist()), self.nouns, strict=True))


def before_end(tokens: Sequence[int]) -> tuple[int, ...]:
    """The tokens before the first end token."""
    ids = tuple(tokens)
    return ids[: ids.index(END)] if END in ids else ids


def _tokenize(tokenizer: Any, nouns: Sequence[str]) -> list[list[int]]:
    ids: list[list[int]] = tokenizer(list(nouns), add_special_tokens=False)["input_ids"] if nouns else []
    return ids


def _named(nouns: Sequence[str]) -> str:
    shown = ", ".join(repr(noun) for noun in nouns[:5])
    return shown if len(nouns) <= 5 else f"{shown} and {len(nouns) - 5} more"
