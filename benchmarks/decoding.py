"""Beam search of a full-size decoder against a cache-free one as the paper describes it, at the same answers.

    python -m benchmarks.decoding

The decoder has the paper's sizes (H = 512, L = 6, 8 heads, beam 10, guided, not renormalised) and random weights; the
nouns are random token sequences with lengths like those of CLIP's tokenizer. The cache-free search runs the whole
sequences of all candidates through the transformer at every step and looks the dictionary up by comparing prefixes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.report import write
from decoder.beam import beam_search
from decoder.model import DecoderConfig, ObjectDecoder
from decoder.trie import Trie
from decoder.vocabulary import Vocabulary

WIDTH = 10
LENGTHS = (0.25, 0.40, 0.20, 0.10, 0.04, 0.01)
"""Share of nouns of 1, 2, ... tokens."""


class NoTokenizer:
    """Stands where a tokenizer would: the nouns are token sequences already."""

    def decode(self, ids: list[int], **_: Any) -> str:
        return " ".join(map(str, ids))


def make_decoder(nouns: int) -> tuple[ObjectDecoder, NDArray[np.int64]]:
    """A decoder and the token ids [nouns, C] of its dictionary."""
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    tokens = nouns // 2
    common = 1 / np.arange(1, tokens + 1) ** 0.7
    sequences = np.zeros((4 * nouns, len(LENGTHS) + 1), np.int64)
    lengths = rng.choice(np.arange(1, len(LENGTHS) + 1), len(sequences), p=LENGTHS)
    drawn = rng.choice(np.arange(1, tokens + 1), sequences.shape, p=common / common.sum())
    inside = np.arange(sequences.shape[1]) < lengths[:, None]
    sequences[inside] = drawn[inside]
    dictionary = rng.permutation(np.unique(sequences, axis=0))[:nouns]
    config = DecoderConfig(512, tokens + 1, dictionary.shape[1])
    vocabulary = Vocabulary(NoTokenizer(), np.arange(tokens + 1), dictionary.shape[1], ())
    return ObjectDecoder(config, vocabulary).eval(), dictionary


@torch.inference_mode()
def cache_free(decoder: ObjectDecoder, embeddings: Tensor, dictionary: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Scores [b, width] and tokens [b, width, t], best first."""
    b, steps = len(embeddings), decoder.config.token_length - 1
    v = decoder.config.vocabulary
    tokens = torch.zeros(b, width, steps + 1, dtype=torch.long)
    scores = torch.full((b, width), -torch.inf)
    scores[:, 0] = 0
    ended = torch.zeros(b, width, dtype=torch.bool)
    possible = torch.ones(b, width, len(dictionary), dtype=torch.bool)
    repeated = embeddings.repeat_interleave(width, 0)
    for step in range(steps):
        logits = decoder(repeated, tokens[:, :, : step + 1].view(b * width, -1))[:, -1].view(b, width, v)
        logits[..., 1:].masked_fill_(ended[..., None], -torch.inf)
        logprobs = logits.log_softmax(-1)
        index = dictionary[:, step].expand(b, width, -1).masked_fill(~possible, v)
        allowed = torch.full((b, width, v + 1), -torch.inf).scatter_(2, index, 0.0)[..., :v]
        allowed[..., 0].masked_fill_(ended, 0)
        best = (logprobs + allowed + scores[..., None]).view(b, -1).topk(width)
        scores, parent, token = best.values, best.indices // v, best.indices % v
        tokens = tokens.gather(1, parent[..., None].expand(-1, -1, steps + 1))
        tokens[:, :, step] = token
        ended = ended.gather(1, parent) | (token == 0)
        if bool(ended.all()):
            break
        possible = possible.gather(1, parent[..., None].expand(-1, -1, len(dictionary)))
        possible &= token[..., None] == dictionary[:, step]
    return scores, tokens[:, :, : step + 1]


def milliseconds(work: Callable[[], object], images: int, repeats: int) -> float:
    """Per image, median."""
    work()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return 1000 * float(np.median(times)) / images


def main() -> None:
    rows = []
    for nouns in (12_000, 40_000):
        decoder, dictionary = make_decoder(nouns)
        trie, sequences = Trie(dictionary), torch.from_numpy(dictionary)
        for batch in (1, 16, 64):
            embeddings = torch.nn.functional.normalize(torch.randn(batch, 512), dim=-1)
            ours = beam_search(decoder, embeddings, WIDTH, trie=trie)
            scores, tokens = cache_free(decoder, embeddings, sequences, WIDTH)
            np.testing.assert_allclose(ours.logprobs, scores.numpy(), atol=1e-3)
            same = float(np.mean([a == b for a, b in zip(ours.tokens, tokens.tolist(), strict=True)]))
            repeats = 10 if batch == 1 else 3

            def cached(embeddings: Tensor = embeddings, decoder: ObjectDecoder = decoder, trie: Trie = trie) -> object:
                return beam_search(decoder, embeddings, WIDTH, trie=trie)

            def plain(e: Tensor = embeddings, d: ObjectDecoder = decoder, s: Tensor = sequences) -> object:
                return cache_free(d, e, s, WIDTH)

            fast, slow = milliseconds(cached, batch, 3 * repeats), milliseconds(plain, batch, repeats)
            rows.append([nouns, batch, fast, slow, slow / fast, 100 * same])
    header = ["nouns", "images at once", "ms per image", "cache-free, ms per image", "times faster", "same beams, %"]
    write("decoding", header, rows)


if __name__ == "__main__":
    main()
