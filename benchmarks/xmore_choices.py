"""What each choice of X-MoRe does, on train photos: a check that it does no harm (docs/xmore.md).

python -m benchmarks.xmore_choices
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from backend.engine import default_captions
from benchmarks.accuracy import CAPTIONS, SETS
from benchmarks.report import DATA, require_data, write
from retrieval.caption_sources import build_index, read_captions
from retrieval.encoder import DualEncoder, load_encoder
from retrieval.prompts import embed_labels
from retrieval.xmore import XMoRe, XMoReOptions

PHOTOS = 4000
"""Train photos per data set, evenly spaced."""

BASE = XMoReOptions()
CHOICES: dict[str, XMoReOptions] = {
    "defaults": BASE,
    **{f"K = {k}": replace(BASE, captions=k) for k in (4, 8, 32, 64)},
    **{f"retrieval scale {s}": replace(BASE, retrieval_scale=float(s)) for s in (8, 32)},
    **{f"text confidence {c}": replace(BASE, text_confidence=c) for c in (0.01, 0.03, 0.05, 0.1)},
    **{f"text scale {s}": replace(BASE, text_scale=float(s)) for s in (4, 8, 12, 16)},
}


def photos(
    file: str, encoder: DualEncoder, split: str, count: int
) -> tuple[NDArray[np.float32], NDArray[np.int64], list[str]]:
    """Unit embeddings [n, d], labels [n] and the class names of evenly spaced photos of a split."""
    table = pq.read_table(DATA / f"{file}.parquet", columns=["image", "label", "split"])
    names = sorted(set(table["label"].to_pylist()))
    rows = np.flatnonzero(np.array(table["split"].to_pylist()) == split)
    rows = rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int)]
    labels = np.array([names.index(label) for label in table["label"].take(rows).to_pylist()])
    return encoder.embed_images(table["image"].take(rows).to_pylist(), batch_size=64), labels, names


def main() -> None:
    require_data()
    encoder = load_encoder("pocket", "cpu")
    with tempfile.TemporaryDirectory() as scratch:
        default = default_captions(Path(scratch), encoder)
    shared = build_index((c for name in CAPTIONS for c in read_captions(DATA / name)), encoder, "shared")
    columns: dict[str, dict[str, float]] = {name: {} for name in ("zero-shot", *CHOICES)}
    for title, file in SETS.items():
        images, labels, names = photos(file, encoder, "train", PHOTOS)
        embedded = embed_labels(encoder, names)
        for kind, index in (("default", default), ("shared", shared)):
            for name, options in CHOICES.items():
                prediction = XMoRe(embedded, index, encoder.logit_scale, options).predict(images)
                zero = 100 * float((prediction.image_probabilities.argmax(1) == labels).mean())
                score = 100 * float((prediction.probabilities.argmax(1) == labels).mean())
                columns["zero-shot"][f"{title}, {kind}"] = zero
                columns[name][f"{title}, {kind}"] = score - zero
    header = ["choice", *columns["zero-shot"], "mean", "least"]
    rows = []
    for name, scores in columns.items():
        values = list(scores.values())
        rows.append([name, *values, float(np.mean(values)), min(values)])
    write("xmore_choices", header, rows)


if __name__ == "__main__":
    main()
