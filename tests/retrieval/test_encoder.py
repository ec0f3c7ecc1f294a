"""The encoder answers what transformers' own processor and model answer for the same weights."""

from __future__ import annotations

import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoProcessor,
    AutoTokenizer,
)

from retrieval.devices import choose_device
from retrieval.encoder import DualEncoder, load_encoder
from retrieval.errors import ModelError, UnreadableImage
from retrieval.towers import POCKET
from tests.retrieval.tiny_models import MAKERS, TEXTS, encoded, photo

PHOTOS = [photo(64, 48), photo(200, 300, 1), photo(48, 48, 2), photo(37, 211, 3)]


@pytest.fixture(scope="module", params=list(MAKERS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = MAKERS[request.param](tmp_path_factory.mktemp(request.param) / request.param)
    return made


@pytest.fixture(scope="module")
def pocket() -> DualEncoder:
    return load_encoder("pocket", device="cpu")


def cosines(a: np.ndarray, b: torch.Tensor) -> np.ndarray:
    unit = torch.nn.functional.normalize(b.float(), dim=-1).numpy()
    return (a * unit).sum(axis=1)


def reference(output: object) -> torch.Tensor:
    return output if isinstance(output, torch.Tensor) else output.pooler_output  # type: ignore[attr-defined]


@torch.inference_mode()
def test_equals_transformers(folder: Path) -> None:
    encoder = load_encoder(str(folder), device="cpu")
    model = AutoModel.from_pretrained(folder).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        processor = AutoProcessor.from_pretrained(folder, backend="pil")
    pixels = processor.image_processor(images=PHOTOS, return_tensors="pt")
    assert cosines(encoder.embed_images(PHOTOS), reference(model.get_image_features(**pixels))).min() > 0.999
    padding = "max_length" if "siglip" in model.config.model_type else True
    tokens = processor.tokenizer(TEXTS, padding=padding, max_length=64, truncation=True, return_tensors="pt")
    assert cosines(encoder.embed_texts(TEXTS), reference(model.get_text_features(**tokens))).min() > 0.999
    assert encoder.logit_scale == pytest.approx(model.logit_scale.exp().item(), rel=1e-5)
    assert encoder.logit_bias == pytest.approx(float(getattr(model, "logit_bias", 0.0)))


def test_reduced_scale_jpeg_decoding_changes_little(folder: Path) -> None:
    encoder = load_encoder(str(folder), device="cpu")
    large = photo(1600, 1200, 5)
    from_jpeg, in_full = encoder.embed_images([encoded(large, "JPEG", quality=95), large])
    assert float(from_jpeg @ in_full) > 0.999


def test_batches_do_not_change_the_answer(folder: Path) -> None:
    encoder = load_encoder(str(folder), device="cpu")
    together = encoder.embed_images(PHOTOS * 3, batch_size=5)
    alone = np.concatenate([encoder.embed_images([p]) for p in PHOTOS * 3])
    np.testing.assert_allclose(together, alone, atol=2e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    texts = encoder.embed_texts(TEXTS)
    np.testing.assert_allclose(texts[3], encoder.embed_texts([TEXTS[3]])[0], atol=2e-5)


def test_nothing_in_nothing_out(pocket: DualEncoder) -> None:
    assert pocket.embed_images([]).shape == (0, pocket.dim)
    assert pocket.embed_texts([]).shape == (0, pocket.dim)


@torch.inference_mode()
def test_pocket_opens_with_stock_transformers(pocket: DualEncoder) -> None:
    """The two towers are ordinary classification models whose logits are the embedding."""
    image = AutoModelForImageClassification.from_pretrained(POCKET / "image", dtype=torch.float32).eval()
    text = AutoModelForSequenceClassification.from_pretrained(POCKET / "text", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(POCKET / "text")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import AutoImageProcessor

        processor = AutoImageProcessor.from_pretrained(POCKET / "image", backend="pil")
    assert cosines(pocket.embed_images(PHOTOS), image(**processor(PHOTOS, return_tensors="pt")).logits).min() > 0.999
    tokens = tokenizer(TEXTS, padding=True, return_tensors="pt")
    assert cosines(pocket.embed_texts(TEXTS), text(**tokens).logits).min() > 0.999


def test_pocket_fits_in_16_megabytes() -> None:
    files = [file for part in ("image", "text") for file in (POCKET / part).iterdir()]
    assert sum(file.stat().st_size for file in files) <= 16_000_000


def test_unreadable_image_names_its_position(pocket: DualEncoder) -> None:
    with pytest.raises(UnreadableImage, match="image 1: .*empty"):
        pocket.embed_images([encoded(PHOTOS[0]), b""])
    results = list(pocket.iter_embed_images([encoded(PHOTOS[0]), b"junk", encoded(PHOTOS[1])], batch_size=2))
    assert [isinstance(r, UnreadableImage) for r in results] == [False, True, False]


def test_expired_stops_between_batches(pocket: DualEncoder) -> None:
    images = [encoded(photo(20, 20, i)) for i in range(10)]
    assert len(list(pocket.iter_embed_images(images, batch_size=3, expired=lambda: True))) == 3


def test_several_threads_get_the_same_answer(pocket: DualEncoder) -> None:
    wanted = pocket.embed_texts(TEXTS)
    answers: list[np.ndarray] = []
    threads = [threading.Thread(target=lambda: answers.append(pocket.embed_texts(TEXTS))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 8
    for answer in answers:
        np.testing.assert_allclose(answer, wanted, atol=1e-5)


def test_fingerprint_follows_weights_and_preprocessing(tmp_path: Path) -> None:
    folder = MAKERS["clip"](tmp_path / "clip")
    first = load_encoder(str(folder), device="cpu").fingerprint
    assert load_encoder(str(folder), device="cpu").fingerprint == first
    config = folder / "preprocessor_config.json"
    config.write_text(config.read_text().replace('"resample": 3', '"resample": 2'))
    changed = load_encoder(str(folder), device="cpu").fingerprint
    assert changed != first
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-2] ^= 0x01
    (folder / "model.safetensors").write_bytes(bytes(weights))
    assert load_encoder(str(folder), device="cpu").fingerprint not in (first, changed)


@pytest.mark.parametrize("made", ["nothing", "empty", "pickle only"])
def test_a_folder_without_a_model_says_what_to_do(made: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    if made == "empty":
        folder.mkdir()
    if made == "pickle only":
        MAKERS["clip"](folder)
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="safetensors"):
        load_encoder(str(folder), device="cpu")


def test_device_is_explained() -> None:
    assert choose_device("cpu").reason.startswith("cpu (asked for)")
    assert choose_device().dtype in (torch.float32, torch.bfloat16, torch.float16)
    with pytest.raises(ModelError, match="auto, cpu, cuda"):
        choose_device("tpu")
