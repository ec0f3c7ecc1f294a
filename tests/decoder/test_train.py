from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from decoder.beam import beam_search
from decoder.dataset import EmbeddedTexts, Text
from decoder.errors import DecoderError, NounError
from decoder.model import DecoderConfig, ObjectDecoder
from decoder.noise import Noise
from decoder.train import STATE, EmbeddedNouns, TrainOptions, schedule, train, weighted_loss
from decoder.vocabulary import Vocabulary
from tests.decoder.published import make_tokenizer

NOUNS = ["w0", "w1 w2", "w1 w3 w4", "w5", "w6 w0", "w7 w7 w7"]


def new_decoder(nouns: list[str] | None = None, seed: int = 0) -> ObjectDecoder:
    torch.manual_seed(seed)
    vocabulary = Vocabulary.from_nouns(make_tokenizer(9), nouns or NOUNS)
    config = DecoderConfig(16, len(vocabulary), vocabulary.token_length, 2, 32, 2, 4, 16)
    return ObjectDecoder(config, vocabulary)


def samples(**more: tuple[float, float, float]) -> EmbeddedNouns:
    rows = np.random.default_rng(0).normal(size=(len(NOUNS), 16))
    return EmbeddedNouns(np.array(NOUNS), rows / np.linalg.norm(rows, axis=1, keepdims=True), **more)


def test_a_trained_decoder_names_what_it_was_trained_on(tmp_path: Path) -> None:
    decoder, data = new_decoder(), samples(mixtures=(0.8, 0.1, 0.1))
    seen: list[tuple[int, float]] = []
    options = TrainOptions(steps=300, batch=64, lr=5e-3, noise=Noise(gaussian=1.0, angles=(10, 30)))
    last = train(decoder, data, options, tmp_path, lambda step, loss: seen.append((step, loss)))
    assert [step for step, _ in seen] == list(range(1, 301))
    assert last == seen[-1][1] < seen[0][1] / 2
    found = beam_search(decoder, data.vectors, 3)
    assert [names[0] for names in found.nouns] == NOUNS


def test_it_starts_as_a_nearest_noun_search() -> None:
    """Before any training: each noun's embedding, shaken, gives the first token of that noun."""
    rng = np.random.default_rng(0)
    nouns = [f"w{i} w{i + 1}" for i in range(0, 40, 2)]
    rows = rng.normal(size=(len(nouns), 64))
    data = EmbeddedNouns(np.array(nouns), rows)
    torch.manual_seed(0)
    vocabulary = Vocabulary.from_nouns(make_tokenizer(41), nouns)
    decoder = ObjectDecoder(DecoderConfig(64, len(vocabulary), vocabulary.token_length, 4, 96, 3, 4, 32), vocabulary)
    shaken = torch.from_numpy(data.vectors + 0.05 * rng.normal(size=rows.shape)).float()

    def first_tokens_right() -> float:
        first = decoder.eval()(shaken, torch.from_numpy(vocabulary.dictionary))[:, 0].argmax(1)
        return (first.numpy() == vocabulary.dictionary[:, 0]).mean()

    assert first_tokens_right() < 0.5
    decoder.start_from(torch.from_numpy(data.noun_means()))
    assert first_tokens_right() > 0.9


def test_a_noun_without_a_text_of_its_own_starts_at_random() -> None:
    decoder = new_decoder()
    means = torch.from_numpy(samples().noun_means())
    means[3] = 0  # "w5", whose token no other noun has
    token = decoder.vocabulary.dictionary[3, 0]
    before = decoder.tokens.detach().clone()
    decoder.start_from(means)
    assert torch.equal(decoder.tokens[token], before[token])
    assert torch.equal(decoder.tokens[0], before[0])  # the end token
    assert not torch.equal(decoder.tokens, before)


def test_means_of_texts_about_one_noun() -> None:
    texts = [Text("a", (0,)), Text("b", (0,)), Text("c", (0, 1)), Text("d", (1,))]
    rows = np.eye(4, dtype=np.float16)
    means = EmbeddedTexts([texts[:2], texts[2:]], (1, 1), rows).noun_means()
    assert means.tolist() == [[0.5, 0.5, 0, 0], [0, 0, 0, 1]]


def test_a_killed_run_ends_as_one_that_was_not(tmp_path: Path) -> None:
    """Killed with SIGKILL, in the middle, in a process of its own."""
    script = (
        "import sys; from pathlib import Path\n"
        "from tests.decoder.test_train import *\n"
        "options = TrainOptions(steps=120, batch=32, interval=0.0)\n"
        "decoder = new_decoder()\n"
        "loss = train(decoder, samples(), options, Path(sys.argv[1]))\n"
        "print(loss.hex(), decoder.tokens.sum().item().hex())\n"
    )

    def run(folder: Path) -> subprocess.Popen[str]:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", script, str(folder)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)

    whole, _ = run(tmp_path / "whole").communicate(timeout=300)
    killed = run(tmp_path / "killed")
    while not (tmp_path / "killed" / STATE).exists():
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    step = torch.load(tmp_path / "killed" / STATE, weights_only=True)["step"]
    assert 0 < step < 120
    resumed, _ = run(tmp_path / "killed").communicate(timeout=300)
    assert resumed == whole


def test_other_options_do_not_go_on_with_a_state(tmp_path: Path) -> None:
    options = TrainOptions(steps=2, batch=8, interval=-1.0)
    train(new_decoder(), samples(), options, tmp_path)
    train(new_decoder(), samples(), dataclasses.replace(options, interval=9.0), tmp_path)
    with pytest.raises(DecoderError, match="other options"):
        train(new_decoder(), samples(), dataclasses.replace(options, batch=9), tmp_path)


@given(st.integers(1, 20), st.floats(0, 5), st.floats(0, 1))
def test_noise_keeps_unit_norm(b: int, gaussian: float, rotated: float) -> None:
    clean = torch.nn.functional.normalize(torch.randn(b, 8), dim=1)
    noisy = Noise(gaussian, rotated=rotated)(clean)
    assert noisy.shape == clean.shape
    torch.testing.assert_close(noisy.norm(dim=1), torch.ones(b))


def test_the_two_noises_are_as_strong_as_they_say() -> None:
    torch.manual_seed(0)
    clean = torch.nn.functional.normalize(torch.randn(4000, 512), dim=1)
    turned = (Noise(rotated=1.0)(clean) * clean).sum(1).acos().rad2deg()
    assert 44.9 < float(turned.min()) < 46
    assert 74 < float(turned.max()) < 75.1
    shaken = (Noise(rotated=0.0)(clean) * clean).sum(1)
    assert float(shaken.mean()) == pytest.approx(1 / (1 + 3.25**2) ** 0.5, abs=0.01)
    either = (Noise(gaussian=0.0)(clean) * clean).sum(1)
    assert float((either < 0.9).float().mean()) == pytest.approx(0.15, abs=0.02)


def test_multisets_weigh_their_nouns_alike() -> None:
    data = samples(mixtures=(1.0, 1.0, 1.0))
    batch = data.draw(np.random.default_rng(0), 600)
    assert 590 <= len(batch.nouns) <= 600
    assert set(np.round(1 / batch.weights).astype(int)) == {1, 2, 3}
    np.testing.assert_allclose(np.linalg.norm(batch.embeddings, axis=1), 1, atol=1e-5)
    texts = len(np.unique(batch.embeddings.round(5), axis=0))
    assert float(batch.weights.sum()) == pytest.approx(round(float(batch.weights.sum())), abs=1e-3)
    assert texts <= round(float(batch.weights.sum()))


@pytest.mark.parametrize("short", [1, 2, 4])
def test_the_loss_counts_tokens_up_to_the_first_end(short: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("decoder.train.SHORT", short)
    decoder = new_decoder().eval()
    embeddings = torch.nn.functional.normalize(torch.randn(2, 16), dim=1)
    targets = torch.from_numpy(decoder.vocabulary.encode(["w0", "w1 w3 w4"]))
    logprobs = decoder(embeddings, targets).log_softmax(-1)
    short = -logprobs[0, :2].gather(1, targets[0, :2, None]).sum()
    long = -logprobs[1, :4].gather(1, targets[1, :4, None]).sum()
    expected = (short * 1.0 + long * 0.5) / (2 * 1.0 + 4 * 0.5)
    torch.testing.assert_close(weighted_loss(decoder, embeddings, targets, torch.tensor([1.0, 0.5])), expected)


def test_the_learning_rate_rises_and_falls() -> None:
    options = TrainOptions(steps=100, warmup=0.1)
    factors = [schedule(step, options) for step in range(100)]
    assert factors[9] == 1
    assert factors[:10] == sorted(factors[:10])
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[-1] < 0.01


@pytest.mark.parametrize(
    ("nouns", "embeddings", "message"),
    [
        ([], np.zeros((0, 4)), "0 nouns"),
        (["a"], np.zeros((2, 4)), r"1 nouns and embeddings of shape \(2, 4\)"),
        (["a"], np.zeros((1, 4)), "zero vectors"),
        (["a"], np.full((1, 4), np.nan), "NaN"),
    ],
)
def test_embeddings_that_cannot_be_used(nouns: list[str], embeddings: np.ndarray, message: str) -> None:
    with pytest.raises(NounError, match=message):
        EmbeddedNouns(np.array(nouns), embeddings)
