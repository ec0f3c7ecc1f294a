"""The photos and words that the pocket encoder learns from, read from ../shared/data (train splits only)."""

from __future__ import annotations

import hashlib
import io
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"
SETS = {"tiny-imagenet-64px": 64, "cifar100-32px": 32, "caltech101-144px": 112, "flickr8k-1000-pairs": 112}
"""Data set -> the edge at which its photos are kept in memory while training."""

HELD_OUT_PER_SET = 10
"""Classes per labelled set that are unseen in the first part of training: 30 in all."""


def readable(name: str) -> str:
    """Class name -> what an annotator would write: no underscores, single spaces."""
    return re.sub(r"[\s_]+", " ", name).strip()


def teacher_names() -> list[list[str]]:
    """The image teacher's 1,000 classes, each with its synonyms; class id = index + 1 (0 is background)."""
    lines = (DATA / "teacher-classes.txt").read_text().splitlines()[1:]
    return [[readable(part) for part in line.split(",") if part.strip()] for line in lines]


@dataclass(frozen=True)
class PhotoSet:
    name: str
    photos: NDArray[np.uint8]  # [n, edge, edge, 3]
    labels: NDArray[np.int64]  # [n], index into classes; -1 where the set has no labels
    classes: list[str]
    teacher_ids: NDArray[np.int64]  # [n, 16], 0-based, the background class dropped (probability 0)
    teacher_probabilities: NDArray[np.float32]  # [n, 16]
    captions: list[list[str]]


def load(name: str, split: str, cache: Path) -> PhotoSet:
    """One split of one set, its photos squashed to a square and cached as .npy."""
    edge = SETS[name]
    table = pq.read_table(DATA / f"{name}.parquet")
    columns = table.schema.names
    splits = np.array(table["split"].to_pylist()) if "split" in columns else np.full(table.num_rows, "train")
    rows = np.flatnonzero(splits == split)
    cached = cache / f"{name}-{split}-{edge}.npy"
    if cached.exists():
        photos = np.load(cached)
    else:
        blobs = table["image"].to_pylist()
        photos = np.zeros((len(rows), edge, edge, 3), np.uint8)
        for i, row in enumerate(rows):
            photo = Image.open(io.BytesIO(blobs[row])).convert("RGB")
            if photo.size != (edge, edge):
                photo = photo.resize((edge, edge), Image.Resampling.BICUBIC)
            photos[i] = np.asarray(photo)
        np.save(cached, photos)
    labels, classes = np.full(len(rows), -1, np.int64), []
    if "label" in columns:
        names = [readable(value) for value in table["label"].to_pylist()]
        classes = sorted(set(names))
        index = {value: i for i, value in enumerate(classes)}
        labels = np.array([index[names[row]] for row in rows])
    captions = table["captions"].to_pylist() if "captions" in columns else []
    with np.load(DATA / f"teacher-{name}.npz") as answer:
        ids = answer["classes"][rows].astype(np.int64) - 1
        probabilities = answer["probabilities"][rows].astype(np.float32)
    probabilities[ids < 0] = 0
    probabilities /= np.maximum(probabilities.sum(1, keepdims=True), 1e-6)
    return PhotoSet(name, photos, labels, classes, np.maximum(ids, 0), probabilities, captions)


def held_out_classes(classes_by_set: dict[str, list[str]]) -> dict[str, list[str]]:
    """Ten classes of each labelled set, drawn by the hash of their names (so by nothing that looks at a score).

    A class whose name also stands in another set is held out there too, so that it is unseen altogether.
    """

    def rank(name: str) -> str:
        return hashlib.sha256(f"held out: {name.lower()}".encode()).hexdigest()

    drawn: set[str] = set()
    for classes in classes_by_set.values():
        fresh = [name for name in sorted(classes, key=rank) if singular(name) not in drawn]
        drawn |= {singular(name) for name in fresh[:HELD_OUT_PER_SET]}
    return {key: [name for name in classes if singular(name) in drawn] for key, classes in classes_by_set.items()}


def singular(name: str) -> str:
    """Enough to see that "leopards" and "leopard" are one class."""
    lowered = name.lower()
    return lowered[:-1] if lowered.endswith("s") and not lowered.endswith("ss") else lowered
