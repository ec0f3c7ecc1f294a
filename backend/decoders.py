"""What `forelabel decoder train | import | info` do: make decoders, and say what one is."""

from __future__ import annotations

import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm
from transformers import AutoTokenizer

from decoder.checkpoint import describe, load_novic, save_decoder
from decoder.dataset import EmbeddedTexts, captions_with_nouns, embed_texts, multisets, prompts
from decoder.errors import CheckpointError, DecoderError, NounError
from decoder.model import DecoderConfig, ObjectDecoder
from decoder.nouns import load_nouns
from decoder.train import EmbeddedNouns, Samples, TrainOptions, train
from decoder.vocabulary import Vocabulary
from retrieval.caption_sources import read_captions
from retrieval.devices import choose_device
from retrieval.encoder import DualEncoder
from retrieval.towers import POCKET

SHARES = (0.5, 0.1, 0.1, 0.3)
"""Of prompts, pairs, triples and captions among the samples; the paper gives captions 30 %."""


@dataclass(frozen=True)
class Sizes:
    """The sizes of a new decoder, in the terms of `DecoderConfig`."""

    hidden: int
    layers: int
    heads: int
    feedforward: int


@dataclass(frozen=True)
class Recipe:
    """What to train and how, whatever the texts come from."""

    out: Path
    sizes: Sizes
    options: TrainOptions
    device: str = "auto"
    centre: bool = True
    """Subtract the texts' mean, see `ObjectDecoder.read_images`."""
    dtype: str = "float32"
    """Of the weights on disk."""


@dataclass(frozen=True)
class Texts:
    """What texts an encoder embeds for training."""

    threshold: str = "FT6"
    """Which nouns of the dictionary, "FT0" to "FT9"."""
    added: Path | None = None
    """A file with nouns of the user's own."""
    captions: Path | None = None
    """Any source that `forelabel index build` reads; those that name a noun join the training."""
    per_noun: int = 20
    """Sentences about a noun of middling frequency."""
    cache: Path = Path("texts")
    """Folder that keeps the embeddings."""


@contextmanager
def texts_bar() -> Iterator[Callable[[int, int], None]]:
    """A progress bar for `train_on_encoder`'s texts; silent where stderr is no terminal."""
    with tqdm(desc="texts", unit="", file=sys.stderr, disable=None) as bar:

        def embedded(more: int, total: int) -> None:
            bar.total = total
            bar.update(more)

        yield embedded


@contextmanager
def training_bar(steps: int) -> Iterator[Callable[[int, float], None]]:
    """A progress bar for the steps of a training; silent where stderr is no terminal."""
    with tqdm(desc="training", total=steps, unit="", file=sys.stderr, disable=None) as bar:

        def trained(step: int, loss: float) -> None:
            bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
            bar.update(step - bar.n)

        yield trained


def train_on_file(
    recipe: Recipe,
    file: Path,
    encoder: DualEncoder | None,
    progress: Callable[[int, float], None],
) -> dict[str, Any]:
    """Train on text embeddings that were made elsewhere: an .npz with the arrays `nouns` and `embeddings`.

    Args:
        recipe: what to train.
        file: several rows may have the same noun.
        encoder: whose embeddings they are, where it is at hand: gives the tokenizer, and the decoder is tied to it.
        progress: told the steps done and the loss.

    Returns:
        What there is to say of the result.

    Raises:
        NounError: the file cannot be used.
        DecoderError: the embeddings are of another size than the encoder's.
    """
    arrays = read_arrays(file, ("nouns", "embeddings"))
    # A mixture of two nouns is what a photo of two things is near to; without any, more of the photos are misread.
    samples = EmbeddedNouns(arrays["nouns"], arrays["embeddings"], mixtures=(2, 1, 1))
    dim = samples.vectors.shape[1]
    if encoder is not None and encoder.dim != dim:
        raise DecoderError(f"{file} holds embeddings of length {dim}, but those of {encoder.name} have {encoder.dim}")
    tokenizer = encoder.tokenizer if encoder else AutoTokenizer.from_pretrained(POCKET / "text")
    vocabulary = Vocabulary.from_nouns(tokenizer, samples.nouns)
    return _train(recipe, vocabulary, samples, encoder, samples.vectors, progress)


def train_on_encoder(
    recipe: Recipe,
    encoder: DualEncoder,
    texts: Texts,
    embedding: Callable[[int, int], None],
    progress: Callable[[int, float], None],
) -> dict[str, Any]:
    """Train on texts about the nouns of a dictionary, embedded with an encoder.

    Args:
        recipe: what to train.
        encoder: whose image embeddings are to be named.
        texts: which texts.
        embedding: told how many more texts are embedded, and of how many.
        progress: told the steps done and the loss.

    Returns:
        What there is to say of the result.

    Raises:
        NounError: the nouns cannot be used.
    """
    nouns = load_nouns(texts.threshold, texts.added)
    vocabulary = Vocabulary.from_nouns(encoder.tokenizer, [noun.singular for noun in nouns])
    singles = prompts(nouns, texts.per_noun)
    pairs, triples = (multisets(nouns, len(singles) // 4, size) for size in (2, 3))
    written = captions_with_nouns(read_captions(texts.captions), nouns) if texts.captions else []
    kinds = (singles, pairs, triples, written)
    every = [text for kind in kinds for text in kind]
    embeddings = embed_texts(every, encoder, texts.cache, lambda more: embedding(more, len(every)))
    samples = EmbeddedTexts(kinds, SHARES, embeddings)
    return _train(recipe, vocabulary, samples, encoder, embeddings[: len(singles)], progress)


def _train(
    recipe: Recipe,
    vocabulary: Vocabulary,
    samples: Samples,
    encoder: DualEncoder | None,
    texts: NDArray[np.floating[Any]],
    progress: Callable[[int, float], None],
) -> dict[str, Any]:
    """Train; `texts` [n, F] are those whose mean is subtracted."""
    config = DecoderConfig(texts.shape[1], len(vocabulary), vocabulary.token_length, **asdict(recipe.sizes))
    torch.manual_seed(recipe.options.seed)
    decoder = ObjectDecoder(config, vocabulary)
    mean = torch.from_numpy(np.asarray(texts, np.float32).mean(0)) if recipe.centre else None
    decoder.start_from(torch.from_numpy(samples.noun_means()), mean)
    decoder = decoder.to(choose_device(recipe.device).name)
    state = recipe.out.with_name(recipe.out.name + ".training")
    began = time.monotonic()
    loss = train(decoder, samples, recipe.options, state, progress)
    seconds = time.monotonic() - began
    about = (encoder.name, encoder.fingerprint) if encoder else ("", "")
    save_decoder(decoder, recipe.out, *about, getattr(torch, recipe.dtype))
    for file in state.glob("*"):
        file.unlink()
    state.rmdir()
    return {**describe(recipe.out), "loss": round(loss, 4), "seconds": round(seconds, 1)}


def import_novic(file: Path, encoder: DualEncoder, out: Path) -> dict[str, Any]:
    """Read a published `.train` file and write our own form.

    Raises:
        CheckpointError: the file cannot be used, or is for other embeddings than the encoder's.
    """
    decoder = load_novic(file, encoder.tokenizer)
    if decoder.config.embedding_dim != encoder.dim:
        raise CheckpointError(
            f"{file} decodes embeddings of length {decoder.config.embedding_dim}, but those of {encoder.name} have "
            f"{encoder.dim}: name the encoder that it was trained for with --model (docs/naming.md lists them)"
        )
    save_decoder(decoder, out, encoder.name, encoder.fingerprint)
    return describe(out)


def read_arrays(file: Path, names: tuple[str, ...]) -> dict[str, NDArray[Any]]:
    """Arrays of an .npz file, read without executing anything in it.

    Raises:
        NounError: it cannot be read, or an array is missing.
    """
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as held:
            missing = [name for name in names if name not in held.files]
            if missing:
                raise NounError(f"{file} holds the arrays {held.files}, but no {missing[0]!r}; it needs {list(names)}")
            return {name: held[name] for name in names}
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise NounError(f"{file} cannot be read as an .npz file with {list(names)}: {error}") from error
