"""`forelabel decoder` and `forelabel name`, as a person types them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from typer import BadParameter

from backend.decoders import import_novic, read_arrays
from backend.naming import Namer
from decoder.checkpoint import load_decoder
from decoder.errors import CheckpointError, DecoderError, NounError
from retrieval.encoder import DualEncoder
from retrieval.prompts import embed_labels
from tests.backend.conftest import WORDS
from tests.backend.test_cli import data_dir, photos, run  # noqa: F401 - fixtures
from tests.decoder.published import Sizes, make_published

SMALL = ["--steps", "120", "--batch", "64", "--hidden", "32", "--layers", "1", "--heads", "4", "--feedforward", "32"]


def test_train_on_a_file_and_name_the_texts_back(texts: Path, encoder: DualEncoder, tmp_path: Path) -> None:
    out = tmp_path / "mine"
    status, lines, _ = run("decoder", "train", "--embeddings", str(texts), "--out", str(out), *SMALL)
    assert status == 0
    assert (lines[0]["nouns"], lines[0]["embedding_dim"], lines[0]["encoder"]) == (6, encoder.dim, "")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["mine"]  # no state is left behind
    assert run("decoder", "info", str(out))[1][0] == {k: v for k, v in lines[0].items() if k not in ("loss", "seconds")}
    decoder = load_decoder(out)
    assert decoder.text_mean is not None
    texts_without_mean = encoder.embed_texts(WORDS) - decoder.text_mean.numpy()
    named = Namer(out, encoder).name(texts_without_mean, top=2)
    assert [names[0][0] for names in named] == WORDS
    assert all(len(names) == 2 and 1 >= names[0][1] >= names[1][1] > 0 for names in named)


def test_train_with_an_encoder(photos: Path, tmp_path: Path) -> None:  # noqa: F811
    own = tmp_path / "own.txt"
    own.write_text("zorilla\tzorillas\nrobot arm\n")
    captions = tmp_path / "captions.txt"
    captions.write_text("A zorilla looks at a robot arm.\nNothing of note.\n")
    args = ["decoder", "train", "--model", "pocket", "--nouns", "FT9", "--add-nouns", str(own), "--out"]
    more = ["--captions", str(captions), "--texts-per-noun", "0", *SMALL, "--steps", "2"]
    status, lines, _ = run(*args, str(tmp_path / "mine"), *more)
    assert status == 0
    assert lines[0]["encoder"] == "pocket" and lines[0]["nouns"] > 2000
    decoder = load_decoder(tmp_path / "mine")
    assert decoder.vocabulary.nouns[-2:] == ("zorilla", "robot arm")
    assert decoder.span is not None and decoder.span.shape == (32, decoder.config.embedding_dim)
    status, lines, _ = run(
        "name", str(photos), "--decoder", str(tmp_path / "mine"), "--only", "robot arm,zorilla", "--top", "3"
    )
    assert status == 0
    assert all({item["label"] for item in line["labels"]} == {"zorilla", "robot arm"} for line in lines)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"nouns": np.array(["a"])}, "no 'embeddings'"),
        ({"nouns": np.array([], "<U3"), "embeddings": np.zeros((0, 4))}, "n > 0"),
        ({"nouns": np.array(["cat", ""]), "embeddings": np.ones((2, 4))}, "cannot be tokenised"),
        ({"nouns": np.array(["cat", "dog"]), "embeddings": np.full((2, 4), np.nan)}, "NaN"),
        ({"nouns": np.array(["cat"], object), "embeddings": np.ones((1, 4))}, "cannot be read"),
    ],
)
def test_embeddings_that_cannot_be_used(
    arrays: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "bad.npz", **arrays)
    status, _, _ = run("decoder", "train", "--embeddings", str(tmp_path / "bad.npz"), "--out", str(tmp_path / "d"))
    assert status == 1 and message in capsys.readouterr().err
    assert not (tmp_path / "d").exists()


def test_files_that_are_no_arrays(tmp_path: Path) -> None:
    for content in (b"", b"PK\x03\x04 broken", b"hello"):
        (tmp_path / "x.npz").write_bytes(content)
        with pytest.raises(NounError, match="x.npz"):
            read_arrays(tmp_path / "x.npz", ("nouns",))
    with pytest.raises(NounError, match="cannot be read"):
        read_arrays(tmp_path / "gone.npz", ("nouns",))


def test_embeddings_of_another_length_than_the_encoders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "x.npz", nouns=np.array(["cat"]), embeddings=np.ones((1, 7)))
    args = ["decoder", "train", "--embeddings", str(tmp_path / "x.npz"), "--model", "pocket", "--out"]
    status, _, _ = run(*args, str(tmp_path / "d"))
    errors = capsys.readouterr().err
    assert status == 1 and "length 7" in errors and "384" in errors


def test_import_of_a_published_checkpoint(tmp_path: Path) -> None:
    file = tmp_path / "x.train"
    _, tokenizer = make_published(file, Sizes())
    encoder: Any = SimpleNamespace(tokenizer=tokenizer, dim=12, name="some-clip", fingerprint="f" * 16)
    about = import_novic(file, encoder, tmp_path / "imported")
    assert (about["encoder"], about["fingerprint"], about["embedding_dim"]) == ("some-clip", "f" * 16, 12)
    assert load_decoder(tmp_path / "imported").text_mean is None


def test_import_for_another_embedding_size(tmp_path: Path) -> None:
    file = tmp_path / "x.train"
    _, tokenizer = make_published(file, Sizes())
    encoder: Any = SimpleNamespace(tokenizer=tokenizer, dim=13, name="some-clip", fingerprint="f")
    with pytest.raises(CheckpointError, match="length 12, but those of some-clip have 13"):
        import_novic(file, encoder, tmp_path / "imported")
    assert not (tmp_path / "imported").exists()


def test_import_with_the_wrong_encoder_or_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_published(tmp_path / "x.train", Sizes())
    (tmp_path / "y.train").write_text("no checkpoint")
    for name, message in (("x.train", "another tokenizer"), ("y.train", "y.train"), ("z.train", "does not exist")):
        args = ["decoder", "import", str(tmp_path / name), "--model", "pocket", "--out", str(tmp_path / "d")]
        status, _, _ = run(*args)
        errors = capsys.readouterr().err
        assert status == 1 and message in errors and "\n" not in errors.strip()


def test_name_writes_one_line_per_image(small_decoder: Path, photos: Path) -> None:  # noqa: F811
    (photos / "bad.jpg").write_text("I am no JPEG")
    status, lines, errors = run("name", str(photos), "--decoder", str(small_decoder), "--top", "4", "--ban", "Cat, dog")
    assert status == 1 and "1 of 3 images" in errors
    assert [("error" in line) for line in lines] == [False, True, False]
    for line in (lines[0], lines[2]):
        assert len(line["labels"]) == 4
        assert not {item["label"] for item in line["labels"]} & {"cat", "dog"}


def test_name_for_studio(small_decoder: Path, photos: Path) -> None:  # noqa: F811
    from typer.testing import CliRunner

    from backend.cli import app

    result = CliRunner().invoke(app, ["name", str(photos), "--decoder", str(small_decoder), "--format", "studio"])
    tasks = json.loads(result.stdout)
    for task in tasks:
        (region,) = task["predictions"][0]["result"]
        assert (region["type"], region["from_name"]) == ("taxonomy", "names")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--only", "cat,xylophone qqq"], "xylophone"),
        (["--ban", ",".join(WORDS)], "empty"),
        (["--decoder", "none"], "naming needs a decoder"),
        (["--decoder", "nowhere"], "nowhere is no decoder"),
    ],
)
def test_name_says_what_is_wrong(
    args: list[str],
    message: str,
    small_decoder: Path,
    photos: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = args if "--decoder" in args else ["--decoder", str(small_decoder), *args]
    status, lines, _ = run("name", str(photos), *given)
    assert (status, lines) == (1, [])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("args", [["--only", " , "], ["--only-file", "gone.txt"]])
def test_a_list_of_nouns_that_is_none(args: list[str], photos: Path) -> None:  # noqa: F811
    with pytest.raises(BadParameter, match=r"list of nouns is empty|gone.txt cannot be read"):
        run("name", str(photos), *args)


def test_a_decoder_of_another_encoder_is_refused(small_decoder: Path, tmp_path: Path) -> None:
    other: Any = SimpleNamespace(name="clip", dim=512, fingerprint="other", family="clip")
    with pytest.raises(CheckpointError, match="not those of clip"):
        Namer(small_decoder, other).decoder()


def test_of_a_list_no_noun_is_ahead_for_being_said_often(small_decoder: Path, encoder: DualEncoder) -> None:
    """What half of the certainty about its own text is taken off is ranked anew, and what all share stays."""
    namer = Namer(small_decoder, encoder)
    decoder = namer.decoder()
    image = encoder.embed_texts(["a teapot"])
    dictionary = dict(namer.name(image, 6)[0])
    listed = namer.name(image, 6, nouns=WORDS)[0]
    texts = torch.from_numpy(embed_labels(encoder, WORDS))
    own = decoder.noun_logprobs(decoder.read_images(texts), torch.from_numpy(decoder.vocabulary.encode(WORDS)))
    left = {noun: dictionary[noun] / np.exp(0.5 * float(logprob)) for noun, logprob in zip(WORDS, own, strict=True)}
    assert [noun for noun, _ in listed] == sorted(left, key=lambda noun: -left[noun])
    for noun, score in listed:
        assert score == pytest.approx(left[noun] / sum(left.values()) * sum(dictionary.values()), rel=1e-3)


def test_lists_of_nouns(small_decoder: Path, encoder: DualEncoder) -> None:
    namer = Namer(small_decoder, encoder)
    image = encoder.embed_texts(["a teapot"])
    everything = namer.name(image, top=50)[0]
    assert {noun for noun, _ in everything} == set(WORDS)  # a beam wider than the list
    assert sum(score for _, score in everything) <= 1 + 1e-5
    assert [noun for noun, _ in namer.name(image, 5, nouns=("palm tree",))[0]] == ["palm tree"]
    assert [noun for noun, _ in namer.name(image, 5, nouns=("Palm Tree", "DOG"), banned=("dog",))[0]] == ["Palm Tree"]
    many = tuple(f"{a} {b}" for a in WORDS for b in WORDS) * 3000
    assert len(many) > 100_000
    fitting = tuple(namer.decoder().vocabulary.encodable(many))
    assert len(namer.name(image, 5, nouns=fitting)[0]) == 5
    with pytest.raises(DecoderError):
        namer.name(np.zeros((1, 3), np.float32), 5)
