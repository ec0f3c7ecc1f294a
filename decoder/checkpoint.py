"""Decoders on disk: our own folders, and the files that NOVIC's authors publish.

A folder holds
    decoder.json          format version, the sizes, what encoder it was trained for
    decoder.safetensors   the weights
    nouns.txt             the dictionary, one noun per line
    tokens.npy            int64 [V], the tokenizer's id of each compact id
    tokenizer/            the tokenizer, as transformers saves it
Nothing that is read is executed: weights come from safetensors, or through torch's weights-only unpickler.
"""

from __future__ import annotations

import json
import pickle
import shutil
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoTokenizer

from decoder.errors import CheckpointError, DecoderError
from decoder.model import DecoderConfig, ObjectDecoder
from decoder.vocabulary import Vocabulary

POCKET = Path(__file__).parent / "pocket"
"""The bundled decoder, for the pocket encoder's embeddings."""

FORMAT = 1


def save_decoder(
    decoder: ObjectDecoder, path: str | Path, encoder: str, fingerprint: str = "", dtype: torch.dtype = torch.float32
) -> None:
    """Write a folder, whole or not at all.

    Args:
        decoder: what to write.
        path: the folder; replaced if it exists.
        encoder: name of the encoder whose embeddings it decodes.
        fingerprint: that encoder's fingerprint; "" when unknown.
        dtype: of the weights on disk.
    """
    folder = Path(path).expanduser()
    scratch = folder.with_name(folder.name + ".partial")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    about = {"format": FORMAT, "encoder": encoder, "fingerprint": fingerprint, "sizes": asdict(decoder.config)}
    (scratch / "decoder.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    weights = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in decoder.state_dict().items()}
    safetensors.torch.save_file(weights, scratch / "decoder.safetensors")
    (scratch / "nouns.txt").write_text("\n".join(decoder.vocabulary.nouns) + "\n", encoding="utf-8")
    np.save(scratch / "tokens.npy", decoder.vocabulary.tokenizer_ids)
    decoder.vocabulary.tokenizer.save_pretrained(scratch / "tokenizer")
    if folder.exists():
        shutil.rmtree(folder)
    scratch.rename(folder)


def describe(path: str | Path) -> dict[str, Any]:
    """What a folder's decoder is: its sizes, nouns and encoder.

    Raises:
        CheckpointError: there is no decoder of this version's format.
    """
    folder = Path(path).expanduser()
    try:
        about = _about(folder)
        nouns = (folder / "nouns.txt").read_text(encoding="utf-8").splitlines()
        size = (folder / "decoder.safetensors").stat().st_size
        return {
            "decoder": str(folder),
            "encoder": str(about["encoder"]),
            "fingerprint": str(about["fingerprint"]),
            "nouns": len(nouns),
            "megabytes": round(size / 1e6, 2),
            **about["sizes"],
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder} is no decoder that can be opened: {error}") from error


def load_decoder(path: str | Path) -> ObjectDecoder:
    """Open a folder that `save_decoder` wrote, in evaluation mode on the CPU.

    Raises:
        CheckpointError: there is no such folder, its format is unknown, or its files do not fit each other.
    """
    folder = Path(path).expanduser()
    try:
        about = _about(folder)
        config = DecoderConfig(**about["sizes"])
        nouns = (folder / "nouns.txt").read_text(encoding="utf-8").splitlines()
        tokens = np.load(folder / "tokens.npy")
        tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", trust_remote_code=False)
        weights = safetensors.torch.load_file(folder / "decoder.safetensors")
        if len(tokens) != config.vocabulary:
            raise CheckpointError(f"{folder} is damaged: {len(tokens)} tokens, but weights for {config.vocabulary}")
        decoder = ObjectDecoder(config, Vocabulary(tokenizer, tokens, config.token_length, nouns))
        for name in {"text_mean", "span"} & set(weights):
            setattr(decoder, name, weights[name].float())
        decoder.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    except DecoderError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{folder} is no decoder that can be opened: {error}") from error
    return decoder.eval()


def _about(folder: Path) -> dict[str, Any]:
    about: dict[str, Any] = json.loads((folder / "decoder.json").read_text(encoding="utf-8"))
    if about["format"] != FORMAT:
        raise CheckpointError(f"{folder} has decoder format {about['format']}; this version reads {FORMAT}")
    return about


def load_novic(path: str | Path, tokenizer: Any) -> ObjectDecoder:
    """Open a `.train` file of the published NOVIC, in evaluation mode on the CPU.

    Args:
        path: the file.
        tokenizer: the tokenizer of the encoder that the checkpoint was trained for (of transformers).

    Raises:
        CheckpointError: the file cannot be read without executing code, is truncated, or is a kind of decoder that
            this version does not build.
    """
    file = Path(path).expanduser()
    try:
        stored = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{file} does not exist") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{file} holds more than weights and settings, so it is not opened: code in it could run. "
            f"Published NOVIC checkpoints do not need that ({str(error).splitlines()[0]})"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise CheckpointError(f"{file} cannot be read as a checkpoint (truncated?): {error}") from error
    try:
        settings, target, state = stored["cfg_flat"], stored["target_config"], stored["model_state_dict"]
        _refuse_other_architectures(file, settings, target)
        config, weights = _translate(settings, target, state)
        nouns = stored["target_nouns"][int(stored["num_invalid_target_nouns"]) :]
        ids = target["compact_unmap"].numpy().astype(np.int64)
        vocabulary = Vocabulary(tokenizer, ids, config.token_length, nouns)
        decoder = ObjectDecoder(config, vocabulary)
        decoder.load_state_dict(weights)
    except (KeyError, TypeError, AttributeError, RuntimeError, ValueError, IndexError) as error:
        raise CheckpointError(f"{file} is no checkpoint of NOVIC's decoder: {error!r}") from error
    _check_tokenizer(file, vocabulary)
    return decoder.eval()


def _refuse_other_architectures(file: Path, settings: dict[str, Any], target: dict[str, Any]) -> None:
    """NOVIC's code has switches that its published checkpoints leave alone; what they would change is not built."""
    expected: dict[str, Any] = {
        "model": "PrefixedIterDecoder",
        "mlp_hidden_layer": "none",
        "layer_activation": "gelu",
        "layer_norm_first": True,
        "layer_bias": False,
        "logits_bias": False,
        "init_rezero_mode": "none",
        "weight_tying": True,
        "strictly_causal": False,
    }
    found = {name: settings[name] for name in expected}
    if different := {name: value for name, value in found.items() if value != expected[name]}:
        raise CheckpointError(f"{file} is a variant of the decoder that is not supported: {different}")
    if not target["compact_ids"] or target["start_token_id"] is not None or target["end_token_id"] != 0:
        raise CheckpointError(f"{file} numbers its tokens in another way than published decoders do")


def _translate(
    settings: dict[str, Any], target: dict[str, Any], state: dict[str, Tensor]
) -> tuple[DecoderConfig, dict[str, Tensor]]:
    hidden, layers = int(settings["hidden_dim"]), int(settings["num_layers"])
    config = DecoderConfig(
        embedding_dim=state["embed_mlp.mlp.0.weight"].shape[1],
        vocabulary=int(target["vocab_size"]),
        token_length=int(target["token_length"]),
        prefix=int(settings["mlp_seq_len"]),
        hidden=hidden,
        layers=layers,
        heads=int(settings["num_heads"]),
        feedforward=int(hidden * Fraction(settings["feedfwd_scale"])),
        dropout=float(settings["layer_dropout"]),
    )
    names = {
        "embed_prefix.weight": "embed_mlp.mlp.0.weight",
        "positions": "pos_embedding.embedding.weight",
        "norm.weight": "transformer.norm.weight",
    }
    for i in range(layers):
        ours, theirs = f"layers.{i}", f"transformer.layers.{i}"
        names |= {
            f"{ours}.norm1.weight": f"{theirs}.norm1.weight",
            f"{ours}.attention_in.weight": f"{theirs}.self_attn.in_proj_weight",
            f"{ours}.attention_out.weight": f"{theirs}.self_attn.out_proj.weight",
            f"{ours}.norm2.weight": f"{theirs}.norm2.weight",
            f"{ours}.feedforward_in.weight": f"{theirs}.linear1.weight",
            f"{ours}.feedforward_out.weight": f"{theirs}.linear2.weight",
        }
    weights = {ours: state[theirs].float() for ours, theirs in names.items()}
    # The output layer may have been padded to a multiple of 64 rows.
    weights["tokens"] = state["logits_linear.weight"][: config.vocabulary].float()
    return config, weights


def _check_tokenizer(file: Path, vocabulary: Vocabulary) -> None:
    """The tokenizer must read the dictionary with the tokens that the checkpoint has."""
    known = vocabulary.encodable(vocabulary.nouns[:1000])
    if len(known) < 0.99 * min(1000, len(vocabulary.nouns)):
        raise CheckpointError(
            f"{file} was trained with another tokenizer: only {len(known)} of its first "
            f"{min(1000, len(vocabulary.nouns))} nouns can be written with this one. Give the tokenizer of its encoder"
        )
