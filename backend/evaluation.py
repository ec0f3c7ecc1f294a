"""What `forelabel eval` does: accuracy of zero-shot and of X-MoRe on a labelled parquet file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from backend.engine import Engine
from backend.few_shot import Confirmed, Labels, accuracy, draw, shares, top_hits

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
    shots: Sequence[int] = (),
    seeds: int = 5,
) -> dict[str, Any]:
    """Fractions of images whose label is the first, or among the first five.

    The label set is every distinct label of the file, whatever the split. With `shots`, also after so many confirmed
    images of each label, which are drawn `seeds` times: from the rows of the other splits; without `split` from
    every other image of each label, and then only the rest is asked for these.

    Raises:
        DatasetError: the file or a column is missing, or the split has no rows.
    """
    try:
        with pq.ParquetFile(dataset) as file:
            rows = _Rows(file, dataset, label_column, image_column, split)
            engine.prepare(rows.names)
            images, asked = _embedded(engine, rows, rows.asked, progress)
            truth = rows.labels[asked]
            if not len(images):
                raise DatasetError(f"{dataset} has no readable images" + (f" in the split {split!r}" if split else ""))
            starts = range(0, len(images), ROWS)
            predictions = [engine.classify(images[start : start + ROWS], rows.names) for start in starts]
            by_image = np.concatenate([p.image_probabilities for p in predictions])
            mixed = np.concatenate([p.probabilities for p in predictions])
            result: dict[str, Any] = {
                "dataset": str(dataset),
                "split": split,
                "images": len(images),
                "unreadable": len(rows.asked) - len(asked),
                "labels": len(rows.names),
                "encoder": engine.encoder.name,
                "fingerprint": engine.encoder.fingerprint,
                "captions": len(engine.captions) if engine.captions is not None else 0,
                "zero_shot": shares(top_hits(by_image, truth), len(images)),
                "xmore": shares(top_hits(mixed, truth), len(images)),
            }
            if shots:
                kept = np.zeros(len(asked), np.bool_) if split else _every_other(truth)
                pool = rows.others if split else asked[kept]
                queried = images[~kept], truth[~kept], mixed[~kept]
                result["shots"] = _after_shots(engine, rows, pool, queried, shots, seeds, progress)
            return result
    except (OSError, ValueError) as error:  # pyarrow.ArrowInvalid is a ValueError
        raise DatasetError(f"{dataset} cannot be read as parquet: {error}") from error


def _after_shots(
    engine: Engine,
    rows: _Rows,
    pool: Labels,
    asked: tuple[NDArray[np.float32], Labels, NDArray[np.float32]],
    shots: Sequence[int],
    seeds: int,
    progress: Callable[[int], None],
) -> dict[str, dict[str, dict[str, float]]]:
    """Shots -> method -> {"top1", "top5"}."""
    draws = {
        (count, seed): pool[draw(rows.labels[pool], count, seed)]
        for count in shots
        for seed in range(seeds if count else 1)
    }
    wanted = np.unique(np.concatenate([*draws.values(), np.zeros(0, np.int64)]))
    embeddings, found = _embedded(engine, rows, wanted, progress)
    labels = engine.label_embeddings(rows.names)
    confirmed = Confirmed(embeddings, rows.labels[found], labels, engine.encoder.logit_scale)
    images, truth, before = asked
    table = {}
    for count in shots:
        drawn = [np.flatnonzero(np.isin(found, draws[count, seed])) for seed in range(seeds if count else 1)]
        table[str(count)] = accuracy(confirmed, drawn, images, truth, before)
    return table


class _Rows:
    """What is in a dataset, but for its images."""

    def __init__(
        self, file: pq.ParquetFile, dataset: Path, label_column: str, image_column: str, split: str | None
    ) -> None:
        columns = file.schema_arrow.names
        for column in (label_column, image_column, *(["split"] if split else [])):
            if column not in columns:
                raise DatasetError(f"{dataset} has the columns {columns}, but no {column!r}")
        self.file, self.image_column = file, image_column
        table = file.read([label_column, *(["split"] if split else [])])
        labels = [None if label is None else str(label) for label in table[label_column].to_pylist()]
        self.names = sorted({label for label in labels if label is not None})
        index = {name: i for i, name in enumerate(self.names)}
        self.labels = np.array([-1 if label is None else index[label] for label in labels], np.int64)
        """[rows], indices into `names`; -1 for none."""
        splits = table["split"].to_pylist() if split else [None] * len(labels)
        inside: NDArray[np.bool_] = np.array([each == split for each in splits], np.bool_)
        labelled = self.labels >= 0
        self.asked = np.flatnonzero(labelled & inside)
        self.others = np.flatnonzero(labelled & ~inside)


def _embedded(
    engine: Engine, rows: _Rows, wanted: Labels, progress: Callable[[int], None]
) -> tuple[NDArray[np.float32], Labels]:
    """Embeddings [n, d] of those of these rows whose image can be read, in order, and which rows they are [n]."""
    embeddings: list[NDArray[np.float32]] = []
    found: list[int] = []
    start = 0
    for batch in rows.file.iter_batches(ROWS, columns=[rows.image_column]):
        here = wanted[(wanted >= start) & (wanted < start + len(batch))].tolist()
        images = [_image_bytes(batch[rows.image_column][row - start].as_py()) or b"" for row in here]
        for row, result in zip(here, engine.embedder.embed(images), strict=True):
            if isinstance(result, np.ndarray):
                embeddings.append(result)
                found.append(row)
        start += len(batch)
        progress(len(here))
    stacked = np.stack(embeddings) if embeddings else np.zeros((0, engine.encoder.dim), np.float32)
    return stacked, np.array(found, np.int64)


def _every_other(labels: Labels) -> NDArray[np.bool_]:
    """Of each label the second, the fourth and so on."""
    chosen = np.zeros(len(labels), np.bool_)
    for label in np.unique(labels):
        chosen[np.flatnonzero(labels == label)[1::2]] = True
    return chosen


def _image_bytes(value: Any) -> bytes | None:
    """A binary column, or the {"bytes", "path"} struct of Hugging Face datasets."""
    if isinstance(value, dict):
        value = value.get("bytes")
    return value if isinstance(value, bytes) else None
