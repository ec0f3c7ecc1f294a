"""What `forelabel label` and `name` do: image files -> ranked labels or nouns, one record per image, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from backend.engine import Engine
from retrieval.errors import RetrievalError, UnreadableImage

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
"""What is taken from a folder; a file named on the command line is tried whatever it is called."""

CHUNK = 64
"""Files read and answered together; as many chunks as there are cores, and one more, are in memory at once."""

CAPTIONS_SHOWN = 3


def find_images(paths: Sequence[Path]) -> list[Path]:
    """Files as given, folders searched through, in a stable order and without repeats."""
    found: dict[Path, None] = {}
    for path in paths:
        if path.is_dir():
            for file in sorted(path.rglob("*")):
                if file.suffix.lower() in SUFFIXES and file.is_file():
                    found[file] = None
        else:
            found[path] = None
    return list(found)


def read_labels(labels: str | None, labels_file: Path | None) -> list[str]:
    """The label set of --labels or --labels-file (one per line), without blanks and repeats.

    Raises:
        ValueError: neither or both are given, the file cannot be read, or nothing is in it.
    """
    if (labels is None) == (labels_file is None):
        raise ValueError("give the label set once: --labels cat,dog,bird or --labels-file FILE (one label per line)")
    found = read_words(labels, labels_file)
    if not found:
        raise ValueError("the label set is empty; name at least one label")
    return found


def read_words(listed: str | None, file: Path | None) -> list[str]:
    """The words of a list with commas and of a file with one per line, without blanks and repeats.

    Raises:
        ValueError: the file cannot be read.
    """
    parts = (listed or "").split(",")
    if file is not None:
        try:
            parts += file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{file} cannot be read: {error}") from error
    return list(dict.fromkeys(part.strip() for part in parts if part.strip()))


Answer = Callable[[NDArray[np.float32]], list[dict[str, Any]]]
"""Unit embeddings [b, d], b > 0, -> what the record of each image says."""


def label_images(engine: Engine, images: Sequence[Path], labels: Sequence[str], top: int) -> Iterator[dict[str, Any]]:
    """One record per image: {"image", "labels": [{"label", "score"}], "captions"} or {"image", "error"}."""
    engine.prepare(labels)
    return _answer_images(engine, images, lambda embeddings: _ranked(engine, embeddings, labels, top))


def name_images(
    engine: Engine, images: Sequence[Path], top: int, nouns: Sequence[str] = (), banned: Sequence[str] = ()
) -> Iterator[dict[str, Any]]:
    """One record per image: {"image", "labels": [{"label", "score"}]} or {"image", "error"}; the labels are nouns.

    Raises:
        DecoderError: as `Namer.name` does.
    """
    engine.namer.prepare(nouns, banned)
    return _answer_images(
        engine,
        images,
        lambda embeddings: [
            {"labels": [_scored(noun, score) for noun, score in names]}
            for names in engine.namer.name(embeddings, top, nouns, banned)
        ],
    )


def _answer_images(engine: Engine, images: Sequence[Path], answer: Answer) -> Iterator[dict[str, Any]]:
    threads = torch.get_num_threads()
    chunks = [images[start : start + CHUNK] for start in range(0, len(images), CHUNK)]
    # One core for each chunk, and one chunk more than cores, so that no core waits while another chunk is read.
    pool = ThreadPoolExecutor(threads + 1, "forelabel-label", lambda: torch.set_num_threads(1))
    try:
        coming = (pool.submit(_records, engine, chunk, answer) for chunk in chunks)  # submitted when drawn
        running = deque(islice(coming, threads + 1))
        while running:
            records = running.popleft().result()
            running.extend(islice(coming, 1))
            yield from records
    finally:
        pool.shutdown(cancel_futures=True)


def _records(engine: Engine, paths: Sequence[Path], answer: Answer) -> list[dict[str, Any]]:
    files = [_read(path) for path in paths]
    results = iter(engine.embedder.embed([file for file in files if isinstance(file, bytes)]))
    outcomes = [next(results) if isinstance(file, bytes) else file for file in files]
    embedded = [outcome for outcome in outcomes if isinstance(outcome, np.ndarray)]
    rows = iter(answer(np.stack(embedded)) if embedded else ())
    return [
        {"image": str(path), **(next(rows) if isinstance(outcome, np.ndarray) else {"error": str(outcome)})}
        for path, outcome in zip(paths, outcomes, strict=True)
    ]


def _read(path: Path) -> bytes | RetrievalError:
    try:
        return path.read_bytes()
    except OSError as error:
        return UnreadableImage(f"the file cannot be read: {error.strerror or error}")


def _ranked(engine: Engine, embeddings: NDArray[np.float32], labels: Sequence[str], top: int) -> list[dict[str, Any]]:
    prediction = engine.classify(embeddings, labels)
    rows = []
    for probabilities, ids in zip(prediction.probabilities, prediction.caption_ids, strict=True):
        best = np.argsort(-probabilities, kind="stable")[:top]
        captions = engine.captions.texts(ids[:CAPTIONS_SHOWN]) if engine.captions is not None else []
        rows.append({"labels": [_scored(labels[i], float(probabilities[i])) for i in best], "captions": captions})
    return rows


def _scored(label: str, score: float) -> dict[str, Any]:
    return {"label": label, "score": round(score, 4)}
