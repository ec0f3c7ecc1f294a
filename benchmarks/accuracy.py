"""Zero-shot and X-MoRe on the validation photos, with the default captions and with captions of the data sets.

python -m benchmarks.accuracy
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from backend.engine import Engine
from backend.evaluation import evaluate
from backend.settings import Settings
from benchmarks.report import DATA, require_data, write
from retrieval.caption_sources import build_index, read_captions

SETS = {"Tiny ImageNet": "tiny-imagenet-64px", "Caltech-101": "caltech101-144px", "CIFAR-100": "cifar100-32px"}
CAPTIONS = ("captions-flickr8k.txt", "captions-cc3m-validation.txt")


def main() -> None:
    require_data()
    with tempfile.TemporaryDirectory() as scratch:
        settings = Settings(model="pocket", captions="default", data_dir=Path(scratch), device="cpu")
        with_default = Engine(settings)
        captions = (c for name in CAPTIONS for c in read_captions(DATA / name))
        build_index(captions, with_default.encoder, "shared").save(Path(scratch) / "shared")
        with_shared = Engine(settings.model_copy(update={"captions": str(Path(scratch) / "shared")}))
        rows, gains = [], []
        for name, file in SETS.items():
            source = DATA / f"{file}.parquet"
            first, second = (evaluate(e, source, "label", split="validation") for e in (with_default, with_shared))
            zero, default, shared = (
                100 * r[m]["top1"] for r, m in ((first, "zero_shot"), (first, "xmore"), (second, "xmore"))
            )
            gains.append((default - zero, shared - zero))
            rows.append(
                [name, first["images"], first["labels"], zero, 100 * first["zero_shot"]["top5"], default, shared]
            )
        mean = np.array(rows, dtype=object)[:, 3:].astype(float).mean(axis=0)
        rows.append(["mean", "", "", *mean.tolist()])
        header = [
            "validation set",
            "photos",
            "labels",
            "zero-shot top 1",
            "zero-shot top 5",
            "X-MoRe, default captions",
            "X-MoRe, Flickr8k + CC3M captions",
        ]
        worst = min(min(pair) for pair in gains)
        write("accuracy", header, rows, worst_change=f"{worst:+.2f}", encoder=first["fingerprint"])


if __name__ == "__main__":
    main()
