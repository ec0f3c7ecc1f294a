"""Names for images without a label set: a decoder that fits the encoder, and the lists of nouns it is held to."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from decoder.beam import beam_search
from decoder.checkpoint import POCKET, describe, load_decoder
from decoder.errors import CheckpointError
from decoder.model import ObjectDecoder
from decoder.trie import Trie
from decoder.vocabulary import before_end
from retrieval.encoder import DualEncoder

LISTS_KEPT = 32
"""Lists of nouns whose tries stay in memory: 100,000 nouns are about 5 MB."""

BEAM_WIDTH = 10
"""The paper's."""

Names = list[tuple[str, float]]
"""Nouns and their probabilities, best first."""


def decoder_folder(setting: str, model: str) -> Path | None:
    """The decoder that FORELABEL_DECODER names for an encoder; None where there is none."""
    if setting == "auto":
        return POCKET if model == "pocket" else None
    return None if setting in ("", "none") else Path(setting)


class NounList(NamedTuple):
    """Nouns that a request allows."""

    trie: Trie
    spelled: dict[tuple[int, ...], str]
    """Tokens -> the noun as it was given; what is missing is spelled as the dictionary has it."""


class Namer:
    """Opens its decoder when it is first asked. Safe to call from several threads."""

    def __init__(self, folder: Path | None, encoder: DualEncoder) -> None:
        """
        Args:
            folder: the decoder's; None where there is none.
            encoder: whose embeddings are named.
        """
        self._folder, self._encoder = folder, encoder
        self._lock = threading.Lock()
        self._decoder: ObjectDecoder | None = None
        self._lists: OrderedDict[tuple[tuple[str, ...], tuple[str, ...]], NounList] = OrderedDict()

    def name(
        self, embeddings: NDArray[np.float32], top: int, nouns: Sequence[str] = (), banned: Sequence[str] = ()
    ) -> list[Names]:
        """The nouns of each unit image embedding [b, d], at most `top`.

        A noun's probability is that of its tokens, the end included, among all that the decoder could say.

        Args:
            embeddings: what to name.
            top: how many nouns.
            nouns: name with these alone; empty for the decoder's dictionary.
            banned: never say these, in whatever case.

        Raises:
            CheckpointError: there is no decoder for this encoder, or it cannot be opened.
            NounError: a noun of the list cannot be said by the decoder, or no noun is left.
        """
        decoder = self.decoder()
        with self._lock:
            allowed = self._allowed(decoder, tuple(nouns), tuple(banned))
        beams = beam_search(decoder, embeddings, max(top, BEAM_WIDTH), trie=allowed.trie)
        spelled = [
            [allowed.spelled.get(before_end(tokens)) or decoder.vocabulary.spelling(tokens) for tokens in image]
            for image in beams.tokens
        ]
        scores = np.exp(np.minimum(beams.logprobs, 0)).tolist()
        return [
            [(noun, score) for noun, score in zip(names, row, strict=True) if score > 0][:top]
            for names, row in zip(spelled, scores, strict=True)
        ]

    def prepare(self, nouns: Sequence[str] = (), banned: Sequence[str] = ()) -> None:
        """Open the decoder and read a list of nouns now, so that the first image need not wait. Raises as `name`."""
        decoder = self.decoder()
        with self._lock:
            self._allowed(decoder, tuple(nouns), tuple(banned))

    def decoder(self) -> ObjectDecoder:
        """The decoder, opened. Raises CheckpointError as `name` does."""
        with self._lock:
            if self._decoder is None:
                if self._folder is None:
                    raise CheckpointError(
                        f"naming needs a decoder for {self._encoder.name}: make one with `forelabel decoder train` or "
                        "`import`, and name its folder in FORELABEL_DECODER"
                    )
                self._refuse_other_encoders(self._folder)
                self._decoder = load_decoder(self._folder).to(torch.device(self._encoder.device.name))
            return self._decoder

    def _refuse_other_encoders(self, folder: Path) -> None:
        about, encoder = describe(folder), self._encoder
        if about["embedding_dim"] != encoder.dim or about["fingerprint"] not in ("", encoder.fingerprint):
            raise CheckpointError(
                f"the decoder in {folder} reads embeddings of {about['encoder'] or 'an unnamed encoder'} (length "
                f"{about['embedding_dim']}, fingerprint {about['fingerprint'] or 'unknown'}), not those of "
                f"{encoder.name} (length {encoder.dim}, fingerprint {encoder.fingerprint}): train one with "
                f"`forelabel decoder train --model {encoder.name}`"
            )

    def _allowed(self, decoder: ObjectDecoder, nouns: tuple[str, ...], banned: tuple[str, ...]) -> NounList:
        if not nouns and not banned:
            return NounList(decoder.vocabulary.trie, {})
        key = (nouns, banned)
        if key not in self._lists:
            never = {noun.lower() for noun in banned}
            allowed = [noun for noun in nouns or decoder.vocabulary.nouns if noun.lower() not in never]
            encoded = decoder.vocabulary.encode(allowed)
            spelled = dict(zip(map(before_end, encoded.tolist()), allowed, strict=True))
            self._lists[key] = NounList(Trie(encoded), spelled)
            if len(self._lists) > LISTS_KEPT:
                self._lists.popitem(last=False)
        self._lists.move_to_end(key)
        return self._lists[key]
