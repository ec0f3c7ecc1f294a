"""What confirmed labels bring, beside the published rules that need no training, and how soon.

python -m benchmarks.reranking [--seeds 5] [--only shots|queue|freshness]

1. Accuracy after 0 to 16 confirmed photos of each label (train photos confirmed, validation photos asked).
2. A queue: validation photos in runs of one label, each suggestion confirmed or corrected, from nothing.
3. From an event to a re-ranked prediction with 1,000 labels, 512 dimensions and 10,000 confirmed images.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from backend.engine import Engine
from backend.evaluation import evaluate
from backend.few_shot import METHODS, queue_acceptance
from backend.learning import Learning, Seen
from backend.metrics import Metrics
from backend.settings import Settings
from benchmarks.accuracy import SETS
from benchmarks.report import DATA, require_data, write
from plugin.labeling_config import parse_labeling_config
from retrieval.confirmations import Confirmations
from retrieval.encoder import DualEncoder

SHOTS = (0, 1, 2, 4, 8, 16)
QUEUE = 1000
QUEUE_SEEDS = 1
"""Each takes minutes: every method is fitted anew before each photo."""
RUN = 10.0
"""Mean photos of one label in a row."""
LABELS, DIM, CONFIRMED, EVENTS = 1000, 512, 10_000, 50

Floats = NDArray[np.float32]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", choices=["shots", "queue", "freshness"])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if args.only in (None, "freshness"):
            freshness(Path(scratch))
        if args.only == "freshness":
            return
        require_data()
        engine = Engine(Settings(model="pocket", captions="none", data_dir=Path(scratch), device="cpu"))
        if args.only in (None, "shots"):
            accuracy(engine, args.seeds)
        if args.only in (None, "queue"):
            queues(engine, min(args.seeds, QUEUE_SEEDS))
        engine.close()


def accuracy(engine: Engine, seeds: int) -> None:
    rows: list[list[Any]] = []
    behind, below = 0.0, 0.0
    for name, file in SETS.items():
        result = evaluate(engine, DATA / f"{file}.parquet", "label", split="validation", shots=SHOTS, seeds=seeds)
        for count, methods in result["shots"].items():
            top1 = {method: 100 * methods[method]["top1"] for method in METHODS}
            rows.append([name, count, *top1.values()])
            behind = max(behind, max(top1.values()) - top1["reranked"])
            below = max(below, top1["zero_shot"] - top1["reranked"])
    header = ["validation set", "confirmed per label", *METHODS]
    write(
        "reranking-shots",
        header,
        rows,
        seeds=seeds,
        furthest_behind_the_best=f"{behind:.2f}",
        furthest_below_zero_shot=f"{below:.2f}",
        encoder=engine.encoder.fingerprint,
    )


def queues(engine: Engine, seeds: int) -> None:
    rows = []
    for name, file in SETS.items():
        images, truth, names = _validation(engine, DATA / f"{file}.parquet")
        texts = engine.label_embeddings(names)
        shares = [
            queue_acceptance(images, truth, texts, engine.encoder.logit_scale, RUN, QUEUE, seed)
            for seed in range(seeds)
        ]
        rows.append([name, *(100 * float(np.mean([share[method] for share in shares])) for method in METHODS)])
    write("reranking-queue", ["validation set", *METHODS], rows, photos=QUEUE, mean_run=RUN, seeds=seeds)


def freshness(folder: Path) -> None:
    """A real memory on this disk; embeddings drawn by lot, since their content costs nothing."""
    rng = np.random.default_rng(0)
    encoder = cast(DualEncoder, SimpleNamespace(dim=DIM, fingerprint="drawn", logit_scale=20.0))
    texts, images = _units(rng, LABELS), _units(rng, CONFIRMED + 2 * EVENTS)
    choices = "".join(f'<Choice value="label {i}"/>' for i in range(LABELS))
    xml = f'<View><Image name="image" value="$image"/><Choices name="choice" toName="image">{choices}</Choices></View>'
    (control,) = parse_labeling_config(xml).controls
    learning = Learning(f"sqlite:///{folder / 'memory.db'}", Metrics(), lambda project, values: [None for _ in values])
    learning.use(encoder)
    project = {"id": 1, "created_at": "2026-01-01T00:00:00Z", "label_config": xml}
    key = "1.1767225600"

    def event(i: int, label: int) -> tuple[str, dict[str, Any]]:
        value = f"photo {i}"
        learning.saw(key, i, Seen({"$image": value}, {"$image": images[i].astype(np.float16)}))
        result = [{"from_name": "choice", "type": "choices", "value": {"choices": [f"label {label}"]}}]
        annotation = {"id": i, "task": i, "result": result, "updated_at": "2026-01-02T00:00:00Z"}
        return "ANNOTATION_CREATED", {
            "annotation": annotation,
            "task": {"id": i, "data": {"image": value}},
            "project": project,
        }

    labels = rng.integers(0, LABELS - 100, len(images)).tolist()  # some labels are still new, which takes longer
    for i in range(1, CONFIRMED + 1):
        learning.process_event(*event(i, labels[i]))
    before: Floats = np.full((1, LABELS), 1 / LABELS, np.float32)

    def rerank(batch: Floats) -> Floats:
        ranker = learning.ranker(key)
        assert ranker is not None
        return ranker.choose(control, texts, batch, np.repeat(before, len(batch), axis=0))[0]

    rerank(images[:1])
    waits = []
    for i in range(CONFIRMED + 1, CONFIRMED + EVENTS + 1):
        action, payload = event(i, labels[i])
        started = time.perf_counter()
        learning.process_event(action, payload)
        acknowledged = time.perf_counter()
        rerank(images[i : i + 1])
        waits.append((acknowledged - started, time.perf_counter() - started))
        time.sleep(0.1)
    acknowledged_ms, fresh_ms = 1000 * np.median(np.array(waits), axis=0)
    anew = Confirmations(texts, encoder.logit_scale)

    def from_scratch() -> None:
        anew.add_many(range(CONFIRMED), images[:CONFIRMED], labels[:CONFIRMED])
        anew.rerank(images[:1], before)

    scratch_ms = 1000 * _seconds(from_scratch)
    batch_ms = 1000 * min(_seconds(lambda: rerank(images[:64])) for _ in range(5)) / 64
    learning.close()
    header = ["step", "ms", "times faster than from scratch"]
    write(
        "reranking-freshness",
        header,
        [
            ["event kept and acknowledged (median)", float(acknowledged_ms), ""],
            ["event to re-ranked prediction (median)", float(fresh_ms), float(scratch_ms / fresh_ms)],
            ["the same from scratch", float(scratch_ms), 1.0],
            ["re-ranking, per image of a batch of 64", float(batch_ms), ""],
        ],
        labels=LABELS,
        dimensions=DIM,
        confirmed=CONFIRMED,
    )


def _validation(engine: Engine, source: Path) -> tuple[Floats, NDArray[np.int64], list[str]]:
    """Embeddings, labels and the label set of the validation photos; they are in the store by now."""
    table = pq.read_table(source, columns=["image", "label", "split"]).to_pylist()
    names = sorted({str(row["label"]) for row in table})
    rows = [row for row in table if row["split"] == "validation"]
    found = engine.embedder.embed([row["image"] for row in rows])
    kept = [(each, names.index(str(row["label"]))) for each, row in zip(found, rows, strict=True)]
    return np.stack([np.asarray(each) for each, _ in kept]), np.array([label for _, label in kept]), names


def _units(rng: np.random.Generator, n: int) -> Floats:
    rows = rng.normal(size=(n, DIM)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
