"""Beam search over the tokens of nouns, with a key/value cache, guided by a trie or free (arXiv 2407.11211).

The scores are the paper's: the sum of the tokens' log-probabilities, the end token's included; a noun of the greatest
length ends without one. Finished candidates stay in the beam and compete with longer ones.

    guided, not renormalised   log-softmax over all tokens, then only the dictionary's continuations are taken
    guided, renormalised       log-softmax over the dictionary's continuations
    not guided                 every token may follow; the first one may not be the end token
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from decoder.errors import DecoderError
from decoder.model import ObjectDecoder
from decoder.trie import ROOT, Trie


@dataclass(frozen=True)
class Beams:
    """The best nouns of each of b embeddings, best first: k of them, the beam width or all nouns if those are fewer."""

    nouns: list[list[str]]
    """[b][k], as the tokenizer spells them; `Vocabulary.spelling` gives the dictionary's form."""
    tokens: list[list[list[int]]]
    """[b][k][t], compact ids padded with 0 to the longest of the batch."""
    logprobs: NDArray[np.float32]
    """[b, k]."""


@torch.inference_mode()
def beam_search(
    decoder: ObjectDecoder,
    embeddings: NDArray[np.floating[Any]] | Tensor,
    beam_width: int = 10,
    guided: bool = True,
    renormalise: bool = False,
    temperature: float = 1.0,
    trie: Trie | None = None,
) -> Beams:
    """Name embeddings.

    Args:
        decoder: in whatever mode; it is put into evaluation mode.
        embeddings: unit image embeddings [b, F], as the encoder gives them; `ObjectDecoder.read_images` puts them as
            the decoder wants them.
        beam_width: candidates kept at each step, and the most that are answered.
        guided: only nouns of the dictionary, or of `trie`.
        renormalise: see the module's docstring; guided only.
        temperature: divides the logits.
        trie: the nouns to be guided to instead of the dictionary (`Trie(decoder.vocabulary.encode(nouns))`).

    Raises:
        DecoderError: the embeddings have another length, or an argument is out of range.
    """
    decoder.eval()
    device = decoder.tokens.device
    vectors = torch.as_tensor(embeddings, dtype=decoder.tokens.dtype, device=device)
    if vectors.ndim != 2 or vectors.shape[1] != decoder.config.embedding_dim:
        shape = tuple(vectors.shape)
        raise DecoderError(f"got embeddings of shape {shape}; this decoder needs [b, {decoder.config.embedding_dim}]")
    if beam_width < 1 or not temperature > 0:
        raise DecoderError(f"beam width {beam_width} and temperature {temperature} must be positive")
    if not len(vectors):
        return Beams([], [], np.zeros((0, beam_width), np.float32))
    nouns = (trie or decoder.vocabulary.trie) if guided else None
    scores, tokens = _search(decoder, decoder.read_images(vectors), beam_width, nouns, renormalise, temperature)
    scores, tokens = scores.cpu(), tokens.cpu()
    found = int(torch.isfinite(scores).sum(1).max())
    rows = tokens[:, :found].tolist()
    decode = decoder.vocabulary.decode
    return Beams([[decode(row) for row in image] for image in rows], rows, scores[:, :found].float().numpy())


def _search(
    decoder: ObjectDecoder, vectors: Tensor, width: int, trie: Trie | None, renormalise: bool, temperature: float
) -> tuple[Tensor, Tensor]:
    """Scores [b, width], -inf where there are fewer nouns, and tokens [b, width, t]."""
    b, device = len(vectors), vectors.device
    steps = decoder.config.token_length - 1
    starts = edges = None
    if trie is not None:
        starts, edges = (torch.from_numpy(a).to(device) for a in (trie.starts, trie.tokens))
    # The beam of each image: its candidates' scores, whether they have ended, and their tokens.
    scores = torch.full((b, width), -torch.inf, device=device, dtype=vectors.dtype)
    scores[:, 0] = 0
    ended = torch.zeros(b, width, dtype=torch.bool, device=device)
    tokens = torch.zeros(b, width, steps, dtype=torch.long, device=device)
    # The candidates that still grow, in the order of the cache: image, place in its beam, score, node of the trie.
    owner, slot = torch.arange(b, device=device), torch.zeros(b, dtype=torch.long, device=device)
    score, node = scores[:, 0], torch.full((b,), ROOT, device=device)
    logits, cache = decoder.read_prefix(vectors)
    for step in range(steps):
        if temperature != 1.0:
            logits = logits / temperature
        if starts is not None and edges is not None:
            parent, edge = _children(starts, node)
            token, child = edges[edge], edge + 1
            value = logits[parent, token]
            whole = _logsumexp_by_parent(value, parent, len(logits)) if renormalise else logits.logsumexp(-1)
            value = value - whole[parent] + score[parent]
        else:
            logprobs = logits.log_softmax(-1)
            if step == 0:
                logprobs[:, 0] = -torch.inf
            best = logprobs.topk(min(width, logprobs.shape[1]), dim=-1)
            parent = torch.arange(len(logits), device=device).repeat_interleave(best.indices.shape[1])
            token = best.indices.flatten()
            child = torch.zeros_like(token)
            value = best.values.flatten() + score[parent]
        # Per image, the ended candidates and all continuations side by side, of which the best stay.
        image = owner[parent]
        count = torch.bincount(image, minlength=b)
        first = count.cumsum(0) - count
        grown = torch.full((b, int(count.max())), -torch.inf, device=device, dtype=value.dtype)
        grown[image, torch.arange(len(image), device=device) - first[image]] = value
        best = torch.cat([scores.masked_fill(~ended, -torch.inf), grown], 1).topk(width, dim=1)
        scores = best.values
        from_ended = best.indices < width
        chosen = torch.where(from_ended, 0, first[:, None] + best.indices - width).clamp(max=len(value) - 1)
        grew = ~from_ended & torch.isfinite(scores)
        previous_slot = torch.where(from_ended, best.indices, slot[parent[chosen]])
        tokens = tokens.gather(1, previous_slot[:, :, None].expand(-1, -1, steps))
        tokens[:, :, step] = torch.where(grew, token[chosen], 0)
        ended = from_ended | (grew & (token[chosen] == 0))
        growing = grew & ~ended
        rows = chosen[growing]
        if not len(rows) or step + 1 == steps:
            return scores, tokens[:, :, : step + 1]
        previous = parent[rows]
        owner, slot = growing.nonzero(as_tuple=True)
        score, node = scores[growing], child[rows]
        for held in cache:
            held.keys, held.values = held.keys[previous], held.values[previous]
        logits = decoder.read_token(token[rows], owner, cache)
    raise AssertionError("unreachable: the last step returns")


def _children(starts: Tensor, node: Tensor) -> tuple[Tensor, Tensor]:
    """Every edge that leaves each of n nodes: the position of its node among them, and the edge, in that order."""
    first = starts[node]
    count = starts[node + 1] - first
    parent = torch.arange(len(node), device=node.device).repeat_interleave(count)
    within = torch.arange(len(parent), device=node.device) - (count.cumsum(0) - count)[parent]
    return parent, first[parent] + within


def _logsumexp_by_parent(values: Tensor, parent: Tensor, parents: int) -> Tensor:
    """[e] values of n parents -> [n]."""
    empty = torch.full((parents,), -torch.inf, device=values.device, dtype=values.dtype)
    highest = empty.scatter_reduce(0, parent, values, "amax")
    total = torch.zeros_like(empty).scatter_add(0, parent, (values - highest[parent]).exp())
    return highest + total.log()
