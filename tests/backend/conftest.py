"""The bundled encoder, and a small untrained decoder for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from decoder.checkpoint import save_decoder
from decoder.model import DecoderConfig, ObjectDecoder
from decoder.vocabulary import Vocabulary
from retrieval.encoder import DualEncoder, load_encoder

WORDS = ["cat", "dog", "fire truck", "banana", "palm tree", "teapot"]


@pytest.fixture(scope="session")
def encoder() -> DualEncoder:
    return load_encoder("pocket", "cpu")


@pytest.fixture(scope="session")
def texts(encoder: DualEncoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("texts") / "texts.npz"
    np.savez(file, nouns=np.array(WORDS), embeddings=encoder.embed_texts(WORDS).astype(np.float16))
    return file


@pytest.fixture(scope="session")
def small_decoder(encoder: DualEncoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained decoder of WORDS for an encoder."""
    torch.manual_seed(0)
    vocabulary = Vocabulary.from_nouns(encoder.tokenizer, WORDS)
    config = DecoderConfig(encoder.dim, len(vocabulary), vocabulary.token_length, 2, 32, 1, 4, 16)
    folder = tmp_path_factory.mktemp("decoders") / "small"
    save_decoder(ObjectDecoder(config, vocabulary), folder, encoder.name, encoder.fingerprint)
    return folder
