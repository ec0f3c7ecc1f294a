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
from retrieval.prompts import embed_labels

LISTS_KEPT = 32
"""Lists of nouns whose tries stay in memory: 100,000 nouns are about 5 MB."""

BEAM_WIDTH = 10
"""The paper's."""

OWN_TEXT_SHARE = 0.5
"""Of how sure the decoder is of a noun by the noun's own text, this share is taken off the noun's score where a list is
given: the decoder prefers the nouns that were frequent in training, and a list's are all as likely. Chosen on crops of
train photos (docs/lab-notes.md)."""

LIST_JUDGED = 500
"""Longer lists are taken as they are: their texts would have to be embedded while somebody waits."""

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
    ahead: dict[tuple[int, ...], float]
    """Tokens -> what is taken off the log-probability; empty for nothing."""


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

        A noun's probability is that of its tokens, the end included, among all that the decoder could say. With a list
        of nouns, the best of the list share what they have together: see OWN_TEXT_SHARE.

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
        named = []
        for image, logprobs in zip(beams.tokens, np.minimum(beams.logprobs, 0), strict=True):
            tokens = [before_end(row) for row in image]
            spelled = [allowed.spelled.get(key) or decoder.vocabulary.spelling(key) for key in tokens]
            scores = np.exp(logprobs)
            if allowed.ahead:
                # What the nouns share stays; how they share it follows from what is left.
                left = logprobs - np.array([allowed.ahead.get(key, 0.0) for key in tokens])
                weights = np.exp(left - left.max())
                scores = scores.sum() * weights / weights.sum()
            ranked = sorted(zip(spelled, scores.tolist(), strict=True), key=lambda pair: -pair[1])
            named.append([(noun, score) for noun, score in ranked if score > 0][:top])
        return named

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

    def _ahead(self, decoder: ObjectDecoder, nouns: Sequence[str], tokens: NDArray[np.int64]) -> list[float]:
        device = decoder.tokens.device
        texts = torch.from_numpy(embed_labels(self._encoder, nouns)).to(device, decoder.tokens.dtype)
        decoder.eval()  # and read as images are, like the scores that it is taken off
        sure = decoder.noun_logprobs(decoder.read_images(texts), torch.from_numpy(tokens).to(device))
        return [OWN_TEXT_SHARE * value for value in sure.tolist()]

    def _allowed(self, decoder: ObjectDecoder, nouns: tuple[str, ...], banned: tuple[str, ...]) -> NounList:
        if not nouns and not banned:
            return NounList(decoder.vocabulary.trie, {}, {})
        key = (nouns, banned)
        if key not in self._lists:
            never = {noun.lower() for noun in banned}
            allowed = [noun for noun in nouns or decoder.vocabulary.nouns if noun.lower() not in never]
            encoded = decoder.vocabulary.encode(allowed)
            tokens = [before_end(row) for row in encoded.tolist()]
            ahead = self._ahead(decoder, allowed, encoded) if nouns and len(allowed) <= LIST_JUDGED else []
            self._lists[key] = NounList(
                Trie(encoded), dict(zip(tokens, allowed, strict=True)), dict(zip(tokens, ahead, strict=False))
            )
            if len(self._lists) > LISTS_KEPT:
                self._lists.popitem(last=False)
        self._lists.move_to_end(key)
        return self._lists[key]
