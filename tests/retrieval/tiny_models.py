"""Small models with random weights in the published file layouts, made on the spot: no model hub is needed."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTokenizer,
    Siglip2Config,
    Siglip2ImageProcessorPil,
    Siglip2Model,
    Siglip2Tokenizer,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    SiglipTokenizer,
)

TEXTS = ["a cat", "a photo of a dog on the beach", "an espresso", "two people in a gondola, Venice", "x"]
TOWER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def make_clip(folder: Path) -> Path:
    """As openai/clip-vit-base-patch32 is published: shortest edge, centre crop, lower-cased BPE, 77 tokens."""
    torch.manual_seed(1)
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)] + [","]
    pieces = letters + [f"{x}</w>" for x in letters] + ["ca", "cat</w>"]
    vocabulary = {piece: i for i, piece in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])}
    start, end = vocabulary["<|startoftext|>"], vocabulary["<|endoftext|>"]
    text = {**TOWER, "vocab_size": len(vocabulary), "bos_token_id": start, "eos_token_id": end, "pad_token_id": end}
    config = CLIPConfig(
        text_config=text, vision_config={**TOWER, "image_size": 48, "patch_size": 16}, projection_dim=24
    )
    CLIPModel(config).save_pretrained(folder)
    CLIPTokenizer(vocab=vocabulary, merges=[("c", "a"), ("ca", "t</w>")], model_max_length=77).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48}).save_pretrained(folder)
    return folder


def make_siglip(folder: Path) -> Path:
    """As google/siglip-base-patch16-224 is published: square resize, SentencePiece, 64 tokens always."""
    torch.manual_seed(2)
    folder.mkdir(parents=True, exist_ok=True)
    corpus = folder / "corpus.txt"
    corpus.write_text("\n".join(TEXTS * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(folder / "spiece"),
        vocab_size=60,
        pad_id=0,
        unk_id=2,
        eos_id=1,
        bos_id=-1,
        hard_vocab_limit=False,
        minloglevel=3,
    )
    corpus.unlink()
    SiglipTokenizer(vocab_file=str(folder / "spiece.model"), model_max_length=64).save_pretrained(folder)
    text = {**TOWER, "vocab_size": 80, "max_position_embeddings": 64, "projection_size": 32}
    SiglipModel(
        SiglipConfig(text_config=text, vision_config={**TOWER, "image_size": 48, "patch_size": 16})
    ).save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": 48, "width": 48}, resample=3).save_pretrained(folder)
    return folder


def make_siglip2(folder: Path) -> Path:
    """As google/siglip2-base-patch16-naflex is published: patches of the native aspect, 64 lower-cased BPE tokens."""
    torch.manual_seed(3)
    bpe = Tokenizer(BPE(unk_token="<unk>"))
    bpe.pre_tokenizer = ByteLevel()
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    bpe.train_from_iterator(TEXTS, BpeTrainer(vocab_size=120, special_tokens=special))
    bpe.save(str(folder.parent / "bpe.json"))
    Siglip2Tokenizer(tokenizer_file=str(folder.parent / "bpe.json"), model_max_length=64).save_pretrained(folder)
    text = {**TOWER, "vocab_size": 400, "max_position_embeddings": 64, "projection_size": 32}
    Siglip2Model(
        Siglip2Config(text_config=text, vision_config={**TOWER, "num_patches": 16, "patch_size": 16})
    ).save_pretrained(folder)
    Siglip2ImageProcessorPil(patch_size=16, max_num_patches=16).save_pretrained(folder)
    return folder


MAKERS = {"clip": make_clip, "siglip": make_siglip, "siglip2": make_siglip2}


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """A smooth picture with edges, like a photo and unlike noise."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    picture = coarse.resize((width, height), Image.Resampling.BICUBIC)
    picture.paste((250, 240, 20), (width // 4, height // 3, width // 2, 2 * height // 3))
    return picture


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()
