"""How sure the first suggestion is when the right label is in the set, and when the set holds nothing it can know.

python -m benchmarks.unknown_labels
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from backend.engine import Engine
from backend.settings import Settings
from benchmarks.accuracy import SETS
from benchmarks.report import require_data, write
from benchmarks.xmore_choices import photos

PHOTOS = 1500
FOREIGN = (
    "mitochondrion",
    "quarterly report",
    "subduction zone",
    "pleural effusion",
    "court ruling",
    "soldering defect",
    "Gram stain",
    "string quartet",
    "tax form",
    "magnetic resonance scan",
)
"""Ten labels that no photo of everyday things shows."""


def main() -> None:
    require_data()
    with tempfile.TemporaryDirectory() as scratch:
        engine = Engine(Settings(model="pocket", device="cpu", captions="none", data_dir=Path(scratch)))
        measure(engine)
        engine.close()


def measure(engine: Engine) -> None:
    rng = np.random.default_rng(0)
    rows = []
    for title, file in SETS.items():
        images, labels, names = photos(file, engine.encoder, "validation", PHOTOS)
        known, right = [], []
        for image, label in zip(images, labels, strict=True):
            others = rng.choice(np.delete(np.arange(len(names)), label), 9, replace=False)
            ten = [names[label], *(names[i] for i in others)]
            p = engine.classify(image[None], sorted(ten)).probabilities[0]
            known.append(p.max())
            right.append(sorted(ten)[p.argmax()] == names[label])
        foreign = engine.classify(images, FOREIGN).probabilities.max(axis=1)
        row = [
            title,
            100 * np.mean(right),
            100 * np.mean(known),
            100 * np.mean(foreign),
            100 * np.quantile(foreign, 0.95),
        ]
        rows.append([row[0], *(float(v) for v in row[1:])])
    header = ["ten labels", "right, top 1 %", "mean score", "mean score, ten foreign labels", "its 95th percentile"]
    write("unknown_labels", header, rows)


if __name__ == "__main__":
    main()
