"""Loads the two towers of a dual encoder from a Hugging Face name or folder.

Two layouts are known:
  - any transformers model with get_image_features and get_text_features (CLIP, SigLIP, SigLIP 2, ...);
  - the pocket layout: a folder with `dual_encoder.json` and the subfolders image/ and text/, each a stock transformers
    classification model whose logits are the embedding.
Weights are read from safetensors only and no code of a model repository is run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)
from transformers.utils import logging as transformers_logging

from retrieval.devices import Device
from retrieval.errors import ModelError
from retrieval.preprocess import Preprocessing

transformers_logging.disable_progress_bar()  # theirs would run into ours on stderr

POCKET = Path(__file__).parent / "pocket"
SAFE = {"trust_remote_code": False}


@dataclass(frozen=True)
class Towers:
    """Everything `DualEncoder` needs, whatever the family."""

    family: str
    image: Callable[[dict[str, Tensor]], Tensor]
    """{"pixel_values": [b, 3, h, w], ...} -> features [b, d], not normalised."""
    text: Callable[[dict[str, Tensor]], Tensor]
    """Tokenizer output -> features [b, d], not normalised."""
    tokenizer: Any
    tokenize: dict[str, Any]
    """Padding and truncation as the family was trained."""
    preprocessing: Preprocessing | None
    """None where only `processor` knows the steps (SigLIP 2 NaFlex)."""
    processor: Any
    logit_scale: float
    logit_bias: float
    templates: tuple[str, ...] | None
    """Prompt templates that come with the model, or None."""
    weights: str
    """sha256 of the weight files or, for hub models, of what was loaded."""


def load_towers(name_or_path: str, device: Device) -> Towers:
    """Open a model. Raises ModelError saying what was looked for and what to do."""
    folder = POCKET if name_or_path == "pocket" else Path(name_or_path).expanduser()
    try:
        if (folder / "dual_encoder.json").is_file():
            return _load_pocket_layout(folder, device)
        source = str(folder) if folder.is_dir() else name_or_path
        return _load_transformers(source, device)
    except ModelError:
        raise
    except Exception as error:  # transformers raises OSError, ValueError, KeyError, ImportError ... for a bad folder
        raise ModelError(
            f"cannot load {name_or_path!r} as an image-text encoder: {error}. "
            "Give 'pocket', a folder or hub name of a CLIP, SigLIP or SigLIP 2 model with safetensors weights"
        ) from error


def _load_transformers(source: str, device: Device) -> Towers:
    model = AutoModel.from_pretrained(source, use_safetensors=True, dtype=device.dtype, **SAFE).eval().to(device.name)
    if not (hasattr(model, "get_image_features") and hasattr(model, "get_text_features")):
        raise ModelError(f"{source!r} is a {model.config.model_type!r} model, not an image-text encoder")
    processor = AutoImageProcessor.from_pretrained(source, backend="pil", **SAFE)
    config = processor.to_dict()
    longest = int(getattr(model.config.text_config, "max_position_embeddings", 77))
    siglip = model.config.model_type.startswith("siglip")
    return Towers(
        family=model.config.model_type,
        image=lambda inputs: _features(model.get_image_features(**inputs)),
        text=lambda inputs: _features(model.get_text_features(**inputs)),
        tokenizer=AutoTokenizer.from_pretrained(source, **SAFE),
        # SigLIP was trained on texts padded to the full length, and its pooling sees the padding.
        tokenize={"padding": "max_length" if siglip else True, "truncation": True, "max_length": longest},
        preprocessing=None if "max_num_patches" in config else Preprocessing.from_config(config),
        processor=processor,
        logit_scale=float(model.logit_scale.detach().float().exp()),
        logit_bias=float(model.logit_bias.detach().float()) if hasattr(model, "logit_bias") else 0.0,
        templates=None,
        weights=_weights_digest(Path(source), model),
    )


def _load_pocket_layout(folder: Path, device: Device) -> Towers:
    settings = json.loads((folder / "dual_encoder.json").read_text())
    load = {"use_safetensors": True, "dtype": device.dtype, **SAFE}
    image = AutoModelForImageClassification.from_pretrained(folder / "image", **load).eval().to(device.name)
    text = AutoModelForSequenceClassification.from_pretrained(folder / "text", **load).eval().to(device.name)
    _fuse_batch_norms(image)
    image = image.to(memory_format=torch.channels_last)
    processor = AutoImageProcessor.from_pretrained(folder / "image", backend="pil", **SAFE)
    return Towers(
        family="pocket",
        image=lambda inputs: image(**inputs).logits,
        text=lambda inputs: text(**inputs).logits,
        tokenizer=AutoTokenizer.from_pretrained(folder / "text", **SAFE),
        tokenize={"padding": True, "truncation": True, "max_length": int(settings["max_tokens"])},
        preprocessing=Preprocessing.from_config(processor.to_dict()),
        processor=processor,
        logit_scale=float(settings["logit_scale"]),
        logit_bias=0.0,
        templates=tuple(settings["templates"]),
        weights=_weights_digest(folder, image, text),
    )


def _fuse_batch_norms(model: nn.Module) -> None:
    """Fold each batch norm into the convolution before it: the same answers, in less time."""
    for module in model.modules():
        convolution, norm = getattr(module, "convolution", None), getattr(module, "normalization", None)
        if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            module.convolution = fuse_conv_bn_eval(convolution, norm)
            module.normalization = nn.Identity()


def _features(output: Any) -> Tensor:
    """transformers 5 answers an output object whose pooler_output is projected; version 4 answered the tensor."""
    features: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return features


def _weights_digest(folder: Path, *models: nn.Module) -> str:
    """sha256 over a folder's safetensors files, or over the loaded parameters of a hub model."""
    digest = hashlib.sha256()
    files = sorted(folder.rglob("*.safetensors")) if folder.is_dir() else []
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    if not files:
        for model in models:
            for name, value in sorted(model.state_dict().items()):
                digest.update(name.encode())
                digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
