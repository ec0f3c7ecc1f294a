"""What `forelabel label` does: image files -> ranked labels, one record per image, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

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
    if labels_file is not None:
        try:
            parts = labels_file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"the labels file {labels_file} cannot be read: {error}") from error
    else:
        parts = (labels or "").split(",")
    found = list(dict.fromkeys(part.strip() for part in parts if part.strip()))
    if not found:
        raise ValueError("the label set is empty; name at least one label")
    return found


def label_images(engine: Engine, images: Sequence[Path], labels: Sequence[str], top: int) -> Iterator[dict[str, Any]]:
    """One record per image: {"image", "labels": [{"label", "score"}], "captions"} or {"image", "error"}."""
    engine.prepare(labels)
    threads = torch.get_num_threads()
    chunks = [images[start : start + CHUNK] for start in range(0, len(images), CHUNK)]
    # One core for each chunk, and one chunk more than cores, so that no core waits while another chunk is read.
    pool = ThreadPoolExecutor(threads + 1, "forelabel-label", lambda: torch.set_num_threads(1))
    try:
        coming = (pool.submit(_records, engine, chunk, labels, top) for chunk in chunks)  # submitted when drawn
        running = deque(islice(coming, threads + 1))
        while running:
            records = running.popleft().result()
            running.extend(islice(coming, 1))
            yield from records
    finally:
        pool.shutdown(cancel_futures=True)


def _records(engine: Engine, paths: Sequence[Path], labels: Sequence[str], top: int) -> list[dict[str, Any]]:
    files = [_read(path) for path in paths]
    results = iter(engine.embedder.embed([file for file in files if isinstance(file, bytes)]))
    outcomes = [next(results) if isinstance(file, bytes) else file for file in files]
    rows = iter(_rows(engine, [outcome for outcome in outcomes if isinstance(outcome, np.ndarray)], labels, top))
    return [
        {"image": str(path), **(next(rows) if isinstance(outcome, np.ndarray) else {"error": str(outcome)})}
        for path, outcome in zip(paths, outcomes, strict=True)
    ]


def _read(path: Path) -> bytes | RetrievalError:
    try:
        return path.read_bytes()
    except OSError as error:
        return UnreadableImage(f"the file cannot be read: {error.strerror or error}")


def _rows(engine: Engine, embedded: list[Any], labels: Sequence[str], top: int) -> list[dict[str, Any]]:
    if not embedded:
        return []
    prediction = engine.classify(np.stack(embedded), labels)
    rows = []
    for probabilities, ids in zip(prediction.probabilities, prediction.caption_ids, strict=True):
        best = np.argsort(-probabilities, kind="stable")[:top]
        ranked = [{"label": labels[i], "score": round(float(probabilities[i]), 4)} for i in best]
        captions = engine.captions.texts(ids[:CAPTIONS_SHOWN]) if engine.captions is not None else []
        rows.append({"labels": ranked, "captions": captions})
    return rows
