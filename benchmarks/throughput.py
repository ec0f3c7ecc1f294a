"""`forelabel label` on 1,000 photos against what the machine allows, and with a warm cache.

    python -m benchmarks.throughput

The bound is cores / (CPU seconds of decoding at reduced scale + CPU seconds of the bare batched forward, per image),
each measured alone on one core. The photos are 1,000 different crops, 1024 x 768, of the photos that scikit-image and
scikit-learn ship. Start-up (imports, loading the model) is not counted in images/s, and is printed beside.
"""

from __future__ import annotations

import io
import os
import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from backend.demo_photos import SAMPLE_PHOTOS
from backend.engine import Engine
from backend.labelling import label_images
from backend.settings import Settings
from benchmarks.report import write
from retrieval.devices import choose_device
from retrieval.preprocess import decode_image
from retrieval.towers import load_towers

PHOTOS = 1000
RUNS = 3
"""Of which medians are printed: other machines on the same host make single runs differ by a tenth."""
LABELS = [
    f"{kind} {thing}" for kind in ("small", "red", "old", "large") for thing in ("cat", "dog", "car", "house", "tree")
]


def make_photos(folder: Path) -> list[Path]:
    rng = random.Random(0)  # noqa: S311 - a repeatable set of crops
    sources = [Image.open(photo.path).convert("RGB") for photo in SAMPLE_PHOTOS]
    paths = []
    for number in range(PHOTOS):
        source = sources[number % len(sources)]
        scale = rng.uniform(0.5, 1.0)
        width, height = int(source.width * scale), int(source.height * scale)
        left, top = rng.randint(0, source.width - width), rng.randint(0, source.height - height)
        path = folder / f"{number:04}.jpg"
        source.crop((left, top, left + width, top + height)).resize((1024, 768), Image.Resampling.BICUBIC).save(
            path, quality=90
        )
        paths.append(path)
    return paths


@contextmanager
def one_core() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def cpu_seconds_of_decoding(files: list[bytes], min_edge: int) -> float:
    """Per image: JPEG at reduced scale, upright, RGB."""
    started = time.process_time()
    for file in files:
        decode_image(file, min_edge=min_edge)
    return (time.process_time() - started) / len(files)


def cpu_seconds_of_forward(batch_size: int) -> float:
    """Per image: the image tower alone on batches of random pixels."""
    towers = load_towers("pocket", choose_device("cpu"))
    assert towers.preprocessing is not None
    pixels = torch.randn(batch_size, 3, *towers.preprocessing.size).to(choose_device("cpu").dtype)
    with one_core(), torch.inference_mode():
        for _ in range(5):
            towers.image({"pixel_values": pixels})
        started = time.process_time()
        for _ in range(30):
            towers.image({"pixel_values": pixels})
        return (time.process_time() - started) / (30 * batch_size)


def images_per_second(engine: Engine, paths: list[Path]) -> float:
    started = time.perf_counter()
    records = list(label_images(engine, paths, LABELS, top=5))
    elapsed = time.perf_counter() - started
    assert len(records) == len(paths) and not any("error" in record for record in records)
    return len(paths) / elapsed


def latency_on_one_core(file: bytes) -> float:
    """Milliseconds from bytes to embedding, one image at a time, median of 100."""
    from retrieval.encoder import load_encoder

    with one_core():
        encoder = load_encoder("pocket", "cpu")
        buffer = io.BytesIO(file).getvalue()
        times = []
        for _ in range(110):
            started = time.perf_counter()
            encoder.embed_images([buffer])
            times.append(time.perf_counter() - started)
        encoder.close()
    return 1000 * sorted(times[10:])[50]


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        paths = make_photos(Path(scratch))
        files = [path.read_bytes() for path in paths]
        started = time.perf_counter()
        settings = Settings(model="pocket", device="cpu", captions="default", data_dir=Path(scratch) / "data")
        Engine(settings).close()  # builds the default captions, once per machine
        first_start = time.perf_counter() - started
        started = time.perf_counter()
        engine = Engine(settings)
        start_up = time.perf_counter() - started
        cores = os.cpu_count() or 1
        runs = []
        for run in range(RUNS):  # each with a store of its own, and its own measure of the bound
            engine.close()
            engine = Engine(settings.model_copy(update={"store": f"sqlite:///{scratch}/run{run}.db"}))
            engine.prepare(LABELS)
            decoding = cpu_seconds_of_decoding(files, engine.encoder.min_edge)
            forward = cpu_seconds_of_forward(settings.batch_size)
            cold = images_per_second(engine, paths)
            runs.append((decoding, forward, cores / (decoding + forward), cold, cold * (decoding + forward) / cores))
        decoding, forward, bound, cold, share = np.median(runs, axis=0).tolist()
        warm = max(images_per_second(engine, paths) for _ in range(3))
        rows = [
            ["decoding at reduced scale, CPU ms per image", 1000 * decoding],
            ["bare batched forward, CPU ms per image", 1000 * forward],
            ["what the machine allows, images/s", bound],
            ["uncached, images/s", cold],
            ["uncached / what the machine allows", share],
            ["warm cache, images/s", warm],
            ["warm / uncached", warm / cold],
            ["one image on one core, bytes to embedding, ms", latency_on_one_core(files[0])],
            ["loading the model and the captions, s", start_up],
            ["the same the first time on a machine, s", first_start],
        ]
        write(
            "throughput",
            ["pocket encoder, 1,000 photos of 1024 x 768", "value"],
            [[name, float(v)] for name, v in rows],
            shares_of_the_runs=", ".join(f"{run[-1]:.2f}" for run in runs),
        )
        engine.close()


if __name__ == "__main__":
    main()
