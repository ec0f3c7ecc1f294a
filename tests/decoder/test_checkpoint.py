from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPTokenizer

from decoder.beam import beam_search
from decoder.checkpoint import load_decoder, load_novic, save_decoder
from decoder.errors import CheckpointError, NounError
from decoder.model import ObjectDecoder
from decoder.vocabulary import Vocabulary
from tests.decoder.published import Sizes, make_published, make_tokenizer

REFERENCE = Path(__file__).resolve().parents[2].parent / "shared" / "reference" / "novic"
SCORINGS = {"gp": {}, "gr": {"renormalise": True}, "gn": {"guided": False}}


@pytest.fixture(scope="module")
def published() -> ObjectDecoder:
    if not REFERENCE.is_dir():
        pytest.skip("the published code's answers are not here (../shared/reference)")
    return load_novic(
        REFERENCE / "ovod_chunk0001_reference.train", CLIPTokenizer.from_pretrained(REFERENCE / "tokenizer")
    )


def test_teacher_forced_logits_equal_the_published_codes(published: ObjectDecoder) -> None:
    answers = np.load(REFERENCE / "reference.npz")
    tokens = published.vocabulary.encode(published.vocabulary.nouns[:24])
    np.testing.assert_array_equal(tokens, answers["target_tokens"])
    with torch.inference_mode():
        logits = published(torch.from_numpy(answers["embeddings"]), torch.from_numpy(tokens))
    np.testing.assert_allclose(logits.numpy(), answers["target_logits"], atol=1e-4)


@pytest.mark.parametrize("scoring", SCORINGS)
def test_beam_search_equals_the_published_codes(published: ObjectDecoder, scoring: str) -> None:
    expected = json.loads((REFERENCE / "beams.json").read_text())[f"beam_k10_vnone_{scoring}_t1_a0"]
    embeddings = np.load(REFERENCE / "reference.npz")["embeddings"]
    found = beam_search(published, embeddings, 10, **SCORINGS[scoring])
    assert found.nouns == expected["nouns"]
    assert found.tokens == expected["tokens"]
    np.testing.assert_allclose(found.logprobs, expected["logprobs"], atol=1e-4)


def test_the_dictionary_keeps_its_spelling(published: ObjectDecoder) -> None:
    (tokens,) = published.vocabulary.encode(["iPod"])
    assert published.vocabulary.decode(tokens) == "ipod"
    assert published.vocabulary.spelling(tokens) == "iPod"


def test_saved_and_opened_it_answers_the_same(tmp_path: Path) -> None:
    _, tokenizer = make_published(tmp_path / "x.train", Sizes(invalid=2, quantised=True))
    decoder = load_novic(tmp_path / "x.train", tokenizer)
    save_decoder(decoder, tmp_path / "own", "some encoder")
    save_decoder(decoder, tmp_path / "own", "some encoder")  # replaces it
    again = load_decoder(tmp_path / "own")
    embeddings = np.eye(12, dtype=np.float32)
    assert again.vocabulary.nouns == decoder.vocabulary.nouns
    assert beam_search(again, embeddings).nouns == beam_search(decoder, embeddings).nouns


class Code:
    """What a pickle would run when opened."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> object:
        return (Path.touch, (self.marker,))


def test_a_file_that_holds_code_is_not_run(tmp_path: Path) -> None:
    content, tokenizer = make_published(tmp_path / "x.train", Sizes())
    marker = tmp_path / "ran"
    torch.save(content | {"extra": Code(marker)}, tmp_path / "x.train")
    with pytest.raises(CheckpointError, match="code in it could run"):
        load_novic(tmp_path / "x.train", tokenizer)
    assert not marker.exists()


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.98])
def test_a_truncated_file(keep: float, tmp_path: Path) -> None:
    _, tokenizer = make_published(tmp_path / "x.train", Sizes())
    whole = (tmp_path / "x.train").read_bytes()
    (tmp_path / "x.train").write_bytes(whole[: int(keep * len(whole)) if keep < 1 else int(keep)])
    with pytest.raises(CheckpointError, match=r"x\.train"):
        load_novic(tmp_path / "x.train", tokenizer)


def test_files_that_are_something_else(tmp_path: Path) -> None:
    content, tokenizer = make_published(tmp_path / "x.train", Sizes())
    with pytest.raises(CheckpointError, match="does not exist"):
        load_novic(tmp_path / "none.train", tokenizer)
    torch.save({"model": 1}, tmp_path / "other.train")
    with pytest.raises(CheckpointError, match="no checkpoint of NOVIC"):
        load_novic(tmp_path / "other.train", tokenizer)
    torch.save(content | {"cfg_flat": content["cfg_flat"] | {"layer_bias": True}}, tmp_path / "bias.train")
    with pytest.raises(CheckpointError, match=r"variant.*layer_bias"):
        load_novic(tmp_path / "bias.train", tokenizer)
    with pytest.raises(CheckpointError, match="another tokenizer"):
        load_novic(tmp_path / "x.train", make_tokenizer(2))
    short = {**content["model_state_dict"], "transformer.norm.weight": torch.ones(3)}
    torch.save(content | {"model_state_dict": short}, tmp_path / "short.train")
    with pytest.raises(CheckpointError, match="no checkpoint of NOVIC"):
        load_novic(tmp_path / "short.train", tokenizer)


def test_folders_that_are_no_decoder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no decoder that can be opened"):
        load_decoder(tmp_path)
    _, tokenizer = make_published(tmp_path / "x.train", Sizes())
    save_decoder(load_novic(tmp_path / "x.train", tokenizer), tmp_path / "own", "some encoder")
    about = json.loads((tmp_path / "own" / "decoder.json").read_text())
    (tmp_path / "own" / "decoder.json").write_text(json.dumps(about | {"format": 99}))
    with pytest.raises(CheckpointError, match="format 99"):
        load_decoder(tmp_path / "own")
    (tmp_path / "own" / "decoder.json").write_text(json.dumps(about))
    np.save(tmp_path / "own" / "tokens.npy", np.arange(3))
    with pytest.raises(CheckpointError, match="damaged"):
        load_decoder(tmp_path / "own")


def test_a_vocabulary_holds_the_tokens_of_its_nouns() -> None:
    tokenizer = make_tokenizer(9)
    vocabulary = Vocabulary.from_nouns(tokenizer, ["w1", "w1 w2 w3", "w8"])
    assert len(vocabulary) == 5
    assert vocabulary.token_length == 4
    assert [vocabulary.decode(row) for row in vocabulary.encode(vocabulary.nouns)] == ["w1", "w1 w2 w3", "w8"]
    with pytest.raises(NounError, match="empty"):
        Vocabulary.from_nouns(tokenizer, [])
    with pytest.raises(NounError, match="' ' cannot be tokenised"):
        Vocabulary.from_nouns(tokenizer, ["w1", " "])
