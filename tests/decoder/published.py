"""Files in the layout of NOVIC's published checkpoints, and a plain decoder that reads them: nothing cached, no trie.

The plain decoder follows the paper with torch's own transformer, so it shares no code with ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Sizes:
    embedding: int = 12
    hidden: int = 16
    layers: int = 2
    heads: int = 2
    scale: str = "1/4"
    prefix: int = 3
    words: int = 9
    nouns: int = 20
    longest: int = 4
    """Words of the longest noun."""
    invalid: int = 0
    quantised: bool = False


def make_tokenizer(words: int) -> PreTrainedTokenizerFast:
    """Words w0, w1, ... with ids in another order than the decoder's."""
    vocabulary = {"<end>": 0, "<unk>": 1} | {f"w{i}": words + 1 - i for i in range(words)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")


def make_published(path: Path, sizes: Sizes, seed: int = 0) -> tuple[dict[str, Any], PreTrainedTokenizerFast]:
    """Write a checkpoint with random weights; returns what was written."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    tokenizer = make_tokenizer(sizes.words)
    nouns: dict[str, None] = {" ".join(f"w{w}" for w in rng.integers(sizes.words, size=sizes.longest)): None}
    for length in rng.integers(1, sizes.longest + 1, size=4 * sizes.nouns):
        if len(nouns) < sizes.nouns:
            nouns[" ".join(f"w{w}" for w in rng.integers(sizes.words, size=length))] = None
    used = sorted({id_ for ids in tokenizer(list(nouns))["input_ids"] for id_ in ids})
    vocab = len(used) + 1
    compact_map = torch.full((sizes.words + 2,), -1)
    compact_map[0] = 0
    compact_map[used] = torch.arange(1, vocab)
    h, token_length = sizes.hidden, sizes.longest + 1
    k = int(h * float(eval(sizes.scale)))  # noqa: S307 - "1/4" and the like, written above
    sequence = sizes.prefix + token_length - 1

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape) / math.sqrt(shape[-1]) * 2

    state = {
        "causality_mask": torch.zeros(sequence, sequence),
        "embed_mlp.mlp.0.weight": normal(sizes.prefix * h, sizes.embedding),
        "logits_linear.weight": normal(math.ceil(vocab / 64) * 64 if sizes.quantised else vocab, h),
        "pos_embedding.embedding.weight": normal(sequence, h),
        "transformer.norm.weight": torch.rand(h) + 0.5,
    }
    if sizes.quantised:
        state["logits_linear.weight"][vocab:] = 0
    for i in range(sizes.layers):
        layer = f"transformer.layers.{i}"
        state |= {
            f"{layer}.self_attn.in_proj_weight": normal(3 * h, h),
            f"{layer}.self_attn.out_proj.weight": normal(h, h),
            f"{layer}.linear1.weight": normal(k, h),
            f"{layer}.linear2.weight": normal(h, k),
            f"{layer}.norm1.weight": torch.rand(h) + 0.5,
            f"{layer}.norm2.weight": torch.rand(h) + 0.5,
        }
    content = {
        "cfg_flat": {
            "embedder_spec": "openai:ViT-B/32",
            "model": "PrefixedIterDecoder",
            "vocab_quant": sizes.quantised,
            "hidden_dim": h,
            "feedfwd_scale": sizes.scale,
            "mlp_hidden_layer": "none",
            "input_dropout": 0.1,
            "num_layers": sizes.layers,
            "num_heads": sizes.heads,
            "layer_dropout": 0.1,
            "layer_activation": "gelu",
            "layer_norm_first": True,
            "layer_bias": False,
            "logits_bias": False,
            "init_rezero_mode": "none",
            "mlp_seq_len": sizes.prefix,
            "weight_tying": True,
            "strictly_causal": False,
        },
        "target_config": {
            "vocab_size": vocab,
            "token_dtype": torch.int64,
            "mask_dtype": torch.bool,
            "start_token_id": None,
            "end_token_id": 0,
            "pad_token_id": 0,
            "compact_ids": True,
            "compact_map": compact_map,
            "compact_unmap": torch.tensor([0, *used]),
            "fixed_token_length": True,
            "token_length": token_length,
            "use_masks": True,
        },
        "target_nouns": (*(f"invalid {i}" for i in range(sizes.invalid)), *nouns),
        "num_invalid_target_nouns": sizes.invalid,
        "model_state_dict": state,
    }
    torch.save(content, path)
    return content, tokenizer


class PlainDecoder:
    """The published computation, from the published weights."""

    def __init__(self, content: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> None:
        settings, self.target, self.state = content["cfg_flat"], content["target_config"], content["model_state_dict"]
        self.h, self.p = settings["hidden_dim"], settings["mlp_seq_len"]
        self.steps = self.target["token_length"] - 1
        feedforward = self.state["transformer.layers.0.linear1.weight"].shape[0]
        layer = nn.TransformerEncoderLayer(
            self.h, settings["num_heads"], feedforward, 0.0, "gelu", batch_first=True, norm_first=True, bias=False
        )
        layer.activation_relu_or_gelu = 0  # keeps torch's fused path, which needs biases, out of the way
        norm = nn.LayerNorm(self.h, bias=False)
        self.transformer = nn.TransformerEncoder(layer, settings["num_layers"], norm, enable_nested_tensor=False)
        prefix = "transformer."
        self.transformer.load_state_dict(
            {name.removeprefix(prefix): t for name, t in self.state.items() if name.startswith(prefix)}
        )
        self.transformer.eval()
        self.weight = self.state["logits_linear.weight"][: self.target["vocab_size"]]
        compact = self.target["compact_map"].tolist()
        nouns = content["target_nouns"][content["num_invalid_target_nouns"] :]
        self.sequences = {
            (*(compact[id_] for id_ in ids), *[0] * (self.steps + 1 - len(ids))): noun
            for noun, ids in zip(nouns, tokenizer(list(nouns))["input_ids"], strict=True)
        }

    @torch.inference_mode()
    def next_logits(self, embedding: Tensor, tokens: list[int]) -> Tensor:
        """[V]: what may follow these tokens."""
        x = (self.state["embed_mlp.mlp.0.weight"] @ embedding).view(self.p, self.h)
        x = torch.cat([x, self.weight[tokens]]) if tokens else x
        s = len(x)
        x = x + self.state["pos_embedding.embedding.weight"][:s]
        mask = torch.full((s, s), -torch.inf).triu(1)
        mask[: self.p, : self.p] = 0
        hidden: Tensor = self.transformer(x[None], mask=mask)[0, -1]
        return self.weight @ hidden

    def beam_search(
        self, embedding: Tensor, width: int, guided: bool, renormalise: bool, temperature: float
    ) -> list[tuple[float, tuple[int, ...]]]:
        """(log-probability, tokens), best first."""
        beam: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
        for step in range(self.steps):
            grown = []
            for score, tokens in beam:
                if tokens and tokens[-1] == 0:
                    grown.append((score, tokens))
                    continue
                logits = self.next_logits(embedding, list(tokens)) / temperature
                allowed = (
                    sorted({row[step] for row in self.sequences if row[:step] == tokens})
                    if guided
                    else list(range(1 if step == 0 else 0, len(logits)))
                )
                base = logits[allowed] if guided and renormalise else logits
                logprobs = logits - base.logsumexp(0)
                grown += [(score + float(logprobs[token]), (*tokens, token)) for token in allowed]
            beam = sorted(grown, reverse=True)[:width]
            if all(tokens[-1] == 0 for _, tokens in beam):
                break
        return beam
