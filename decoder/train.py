"""Trains an ObjectDecoder on text embeddings alone, and goes on where it was stopped.

Every step draws its samples, noise and dropout from generators seeded by the step's number, and the state is kept at
intervals, so a run that was killed and taken up again ends in the same weights.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its usual name

from decoder.errors import DecoderError, NounError
from decoder.model import ObjectDecoder
from decoder.noise import Noise

STATE = "training.pt"
SHORT = 4
"""Tokens of a noun that is not long, its end token included."""


@dataclass(frozen=True)
class TrainOptions:
    """How to train. The optimizer's settings are the paper's (AdamW, cosine to 0, weight decay on matrices only)."""

    steps: int = 600
    batch: int = 1024
    """Samples per step; the paper's 8192 needs a GPU."""
    lr: float = 1.5e-3
    warmup: float = 0.05
    """Share of the steps in which the learning rate rises."""
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    noise: Noise | None = field(default_factory=Noise)
    """None trains without noise, which makes a decoder less sure of what it reads in images (docs/lab-notes.md)."""
    seed: int = 0
    interval: float = 60.0
    """Seconds between two saved states, which is what a kill can cost."""


@dataclass(frozen=True)
class Batch:
    """b samples; a text that names m nouns is m samples, of weight 1/m each."""

    embeddings: NDArray[np.float32]
    """[b, F], unit norm, without noise."""
    nouns: NDArray[np.int64]
    """[b], positions in the dictionary."""
    weights: NDArray[np.float32]
    """[b]."""


class Samples(Protocol):
    """Where training samples come from."""

    def draw(self, rng: np.random.Generator, count: int) -> Batch:
        """About `count` samples; the same ones for a generator in the same state."""

    def noun_means(self) -> NDArray[np.float32]:
        """[n, F], the mean of the embeddings of texts that name this noun of the dictionary alone; zeros if none do."""


class EmbeddedNouns:
    """Text embeddings that were made elsewhere, one or several per noun, mixed into multisets of one to three nouns.

    A mixture's embedding is the normalised sum of its nouns', which stands in for the text "a cat and a dog" (NOVIC
    embeds such texts; here there is no text encoder).
    """

    def __init__(
        self,
        nouns: NDArray[np.str_],
        embeddings: NDArray[np.floating[Any]],
        mixtures: tuple[float, float, float] = (1, 0, 0),
    ) -> None:
        """
        Args:
            nouns: [n], the noun of each embedding.
            embeddings: [n, F], unit norm.
            mixtures: shares of texts that name one, two and three nouns.

        Raises:
            NounError: the arrays do not fit each other, are empty or not finite.
        """
        vectors = np.asarray(embeddings, np.float32)
        if vectors.ndim != 2 or len(vectors) != len(nouns) or not len(nouns):
            raise NounError(f"got {len(nouns)} nouns and embeddings of shape {vectors.shape}; need n and [n, F], n > 0")
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        if not np.isfinite(vectors).all() or (norms == 0).any():
            raise NounError("the embeddings hold NaN, infinity or zero vectors; make them again")
        self.vectors = vectors / norms
        self.nouns = tuple(dict.fromkeys(str(noun) for noun in nouns))
        position = {noun: i for i, noun in enumerate(self.nouns)}
        self.owners = np.array([position[str(noun)] for noun in nouns])
        self.mixtures = np.array(mixtures, float) / sum(mixtures)

    def noun_means(self) -> NDArray[np.float32]:
        return mean_of_each(self.vectors, self.owners, len(self.nouns))

    def draw(self, rng: np.random.Generator, count: int) -> Batch:
        number = 1 + rng.choice(3, count, p=self.mixtures)
        number = number[: int(np.searchsorted(number.cumsum(), count, "right")) or 1]
        text = np.repeat(np.arange(len(number)), number)
        rows = rng.integers(len(self.vectors), size=len(text))
        mixed = np.zeros((len(number), self.vectors.shape[1]), np.float32)
        np.add.at(mixed, text, self.vectors[rows])
        mixed /= np.maximum(np.linalg.norm(mixed, axis=1, keepdims=True), 1e-12)
        return Batch(mixed[text], self.owners[rows], (1 / number[text]).astype(np.float32))


def mean_of_each(vectors: NDArray[np.float32], owners: NDArray[np.int64], count: int) -> NDArray[np.float32]:
    """Means [count, F] of the vectors [n, F] of each owner [n]; zeros where it has none."""
    means = np.zeros((count, vectors.shape[1]), np.float32)
    np.add.at(means, owners, vectors)
    means /= np.maximum(np.bincount(owners, minlength=count), 1)[:, None]
    return means


def train(
    decoder: ObjectDecoder,
    samples: Samples,
    options: TrainOptions,
    folder: Path,
    progress: Callable[[int, float], None] = lambda step, loss: None,
) -> float:
    """Train in place, on the device that the decoder is on.

    Args:
        decoder: new, or of any state where `folder` holds a saved one.
        samples: the training data.
        options: how to train.
        folder: where the state is kept while training; a state that is found there is gone on from.
        progress: told the steps done and the loss (mean of the last hundred).

    Returns:
        The last loss, smoothed as for `progress`.

    Raises:
        DecoderError: the state in `folder` is of other options or sizes.
    """
    device = decoder.tokens.device
    matrices = [p for p in decoder.parameters() if p.ndim > 1]
    vectors = [p for p in decoder.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": options.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=options.lr,
        betas=options.betas,
    )
    folder.mkdir(parents=True, exist_ok=True)
    first, smoothed = _resume(decoder, optimizer, options, folder / STATE)
    dictionary = torch.from_numpy(decoder.vocabulary.dictionary).to(device)
    mixed_precision = device.type == "cuda"
    saved = time.monotonic()
    decoder.train()
    for step in range(first, options.steps):
        torch.manual_seed(options.seed * 1_000_003 + step)
        batch = samples.draw(np.random.default_rng([options.seed, step]), options.batch)
        embeddings = decoder.read_texts(torch.from_numpy(batch.embeddings).to(device))
        if options.noise is not None:
            embeddings = options.noise(embeddings)
        targets = dictionary[torch.from_numpy(batch.nouns).to(device)]
        with torch.autocast(device.type, torch.bfloat16, enabled=mixed_precision):
            loss = weighted_loss(decoder, embeddings, targets, torch.from_numpy(batch.weights).to(device))
        for group in optimizer.param_groups:
            group["lr"] = options.lr * schedule(step, options)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        smoothed += (loss.item() - smoothed) / min(step + 1, 100)
        progress(step + 1, smoothed)
        if time.monotonic() - saved > options.interval:
            _save(decoder, optimizer, options, folder / STATE, step + 1, smoothed)
            saved = time.monotonic()
    decoder.eval()
    return smoothed


def weighted_loss(decoder: ObjectDecoder, embeddings: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Mean cross-entropy per token up to the first end token, samples weighed: embeddings [b, F], targets [b, C].

    Padding costs nothing in the output layer, where V is large, and little in the layers: most nouns are short, and are
    computed apart from the few long ones.
    """
    lengths = (targets != 0).cumprod(1).sum(1) + 1  # with the end token
    states, labels, weighed = [], [], []
    for rows in (lengths <= SHORT, lengths > SHORT):
        if bool(rows.any()):
            longest = int(lengths[rows].max())
            counted = torch.arange(longest, device=targets.device) < lengths[rows, None]
            states.append(decoder.states(embeddings[rows], targets[rows, :longest])[counted])
            labels.append(targets[rows, :longest][counted])
            weighed.append(weights[rows, None].expand_as(counted)[counted])
    losses = F.cross_entropy(decoder.logits(torch.cat(states)).float(), torch.cat(labels), reduction="none")
    weight = torch.cat(weighed)
    return (losses * weight).sum() / weight.sum()


def schedule(step: int, options: TrainOptions) -> float:
    """Factor of the learning rate: linear warm-up, then cosine to 0."""
    warmup = max(1, round(options.warmup * options.steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, options.steps - warmup)))


def _described(decoder: ObjectDecoder, options: TrainOptions) -> str:
    """What must be the same for a run to be gone on with; the interval may differ."""
    how = {name: value for name, value in asdict(options).items() if name != "interval"}
    return json.dumps({"sizes": asdict(decoder.config), "options": how}, sort_keys=True)


def _resume(
    decoder: ObjectDecoder, optimizer: torch.optim.Optimizer, options: TrainOptions, path: Path
) -> tuple[int, float]:
    """The step to go on with, and the smoothed loss."""
    if not path.exists():
        return 0, 0.0
    state = torch.load(path, map_location=decoder.tokens.device, weights_only=True)
    if state["described"] != _described(decoder, options):
        raise DecoderError(
            f"{path} is the state of a training with other options: {state['described']}. "
            "Train with those to go on with it, or into another folder, or remove the file to begin anew"
        )
    decoder.load_state_dict(state["decoder"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"]), float(state["loss"])


def _save(
    decoder: ObjectDecoder, optimizer: torch.optim.Optimizer, options: TrainOptions, path: Path, step: int, loss: float
) -> None:
    """Whole or not at all: a kill while writing leaves the state before."""
    state = {
        "decoder": decoder.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
        "loss": loss,
        "described": _described(decoder, options),
    }
    scratch = path.with_suffix(".partial")
    torch.save(state, scratch)
    scratch.replace(path)
