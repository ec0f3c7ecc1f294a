"""What `forelabel eval` does: accuracy of zero-shot and of X-MoRe on a labelled parquet file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from backend.engine import Engine

ROWS = 512
"""Rows read, embedded and scored at a time."""


class DatasetError(Exception):
    """A dataset that cannot be evaluated. The message says what arrived and what to do."""


def evaluate(
    engine: Engine,
    dataset: Path,
    label_column: str,
    image_column: str = "image",
    split: str | None = None,
    progress: Callable[[int], None] = lambda n: None,
) -> dict[str, Any]:
    """Fractions of images whose label is the first, or among the first five.

    The label set is every distinct label of the file, whatever the split.

    Raises:
        DatasetError: the file or a column is missing, or the split has no rows.
    """
    try:
        with pq.ParquetFile(dataset) as file:
            columns = file.schema_arrow.names
            for column in (label_column, image_column, *(["split"] if split else [])):
                if column not in columns:
                    raise DatasetError(f"{dataset} has the columns {columns}, but no {column!r}")
            names = sorted(
                {str(v) for v in file.read([label_column])[label_column].unique().to_pylist() if v is not None}
            )
            index = {name: i for i, name in enumerate(names)}
            engine.prepare(names)
            hits = {method: np.zeros(2, np.int64) for method in ("zero_shot", "xmore")}
            images = unreadable = 0
            for files, labels in _batches(file, label_column, image_column, split):
                results = engine.embedder.embed(files)
                kept = [i for i, result in enumerate(results) if isinstance(result, np.ndarray)]
                unreadable += len(results) - len(kept)
                if kept:
                    truth = np.array([index[labels[i]] for i in kept])
                    prediction = engine.classify(np.stack([np.asarray(results[i]) for i in kept]), names)
                    hits["zero_shot"] += _hits(prediction.image_probabilities, truth)
                    hits["xmore"] += _hits(prediction.probabilities, truth)
                    images += len(kept)
                progress(len(files))
    except OSError as error:
        raise DatasetError(f"{dataset} cannot be read as parquet: {error}") from error
    except ValueError as error:  # pyarrow.ArrowInvalid
        raise DatasetError(f"{dataset} cannot be read as parquet: {error}") from error
    if not images:
        raise DatasetError(f"{dataset} has no readable images" + (f" in the split {split!r}" if split else ""))
    scores = {m: {"top1": round(h[0] / images, 5), "top5": round(h[1] / images, 5)} for m, h in hits.items()}
    captions = len(engine.captions) if engine.captions is not None else 0
    return {
        "dataset": str(dataset),
        "split": split,
        "images": images,
        "unreadable": unreadable,
        "labels": len(names),
        "encoder": engine.encoder.name,
        "fingerprint": engine.encoder.fingerprint,
        "captions": captions,
        **scores,
    }


def _batches(
    file: pq.ParquetFile, label_column: str, image_column: str, split: str | None
) -> Iterator[tuple[list[bytes], list[str]]]:
    """(image files, labels) of the rows in the split that have both."""
    wanted = [label_column, image_column, *(["split"] if split else [])]
    for batch in file.iter_batches(ROWS, columns=wanted):
        rows = [row for row in batch.to_pylist() if split is None or row["split"] == split]
        found = [(_image_bytes(row[image_column]), row[label_column]) for row in rows]
        pairs = [(image, str(label)) for image, label in found if image is not None and label is not None]
        if pairs:
            yield [image for image, _ in pairs], [label for _, label in pairs]


def _image_bytes(value: Any) -> bytes | None:
    """A binary column, or the {"bytes", "path"} struct of Hugging Face datasets."""
    if isinstance(value, dict):
        value = value.get("bytes")
    return value if isinstance(value, bytes) else None


def _hits(probabilities: NDArray[np.float32], truth: NDArray[np.int64]) -> NDArray[np.int64]:
    """Images whose true label is the first, and among the first five: [b, c], [b] -> [2]."""
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, :5]
    right = best == truth[:, None]
    return np.array([right[:, 0].sum(), right.any(axis=1).sum()])
