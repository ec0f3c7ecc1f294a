"""Names without a label set: a decoder of the pocket encoder on validation photos.

apt-get install wordnet-base; python -m benchmarks.naming [DECODER]

free      guided by the whole dictionary; a name is right if it is the class, a synonym of it, or a WordNet hypernym
          within two steps (of the class's most frequent visible sense)
by list   guided by the class names; top 1 as a share of the encoder's own zero-shot top 1
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from backend.engine import Engine
from backend.naming import Names
from backend.settings import Settings
from benchmarks.accuracy import SETS
from benchmarks.report import DATA, require_data, write
from recipes.nouns import visible_senses
from recipes.pocket_data import readable, singular
from recipes.wordnet import Synset, noun_synsets, sense_order
from retrieval.prompts import embed_labels

STEPS = 2
CHUNK = 512


def right_names(label: str, synsets: dict[int, Synset], senses: dict[str, list[int]]) -> set[str]:
    """Singulars, in lower case, that are right for a class."""
    accepted = {singular(label)}
    offsets = senses.get(label.lower()) or senses.get(singular(label))
    level = {offsets[0]} if offsets else set()
    for _ in range(STEPS + 1):
        accepted |= {singular(lemma) for offset in level for lemma in synsets[offset].lemmas}
        level = {parent for offset in level for parent in synsets[offset].hypernyms}
    return accepted


def share_right(named: list[Names], labels: list[str], accepted: dict[str, set[str]], top: int) -> float:
    hits = [
        any(singular(noun) in accepted[label] for noun, _ in names[:top])
        for names, label in zip(named, labels, strict=True)
    ]
    return 100 * float(np.mean(hits))


def name_all(engine: Engine, images: NDArray[np.float32], nouns: list[str]) -> list[Names]:
    chunks = [images[start : start + CHUNK] for start in range(0, len(images), CHUNK)]
    return [names for chunk in chunks for names in engine.namer.name(chunk, 5, nouns)]


def main() -> None:
    require_data()
    synsets = noun_synsets()
    visible = {noun.lower(): offsets for noun, offsets in visible_senses(synsets).items()}
    senses = {**sense_order(), **visible}
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        engine = Engine(
            Settings(model="pocket", decoder=(sys.argv[1:] or ["auto"])[0], captions="none", data_dir=Path(scratch))
        )
        for title in ("Tiny ImageNet", "Caltech-101"):
            table = pq.read_table(DATA / f"{SETS[title]}.parquet", columns=["image", "label", "split"])
            validation = table.filter([split == "validation" for split in table["split"].to_pylist()])
            labels = [readable(label) for label in validation["label"].to_pylist()]
            names = sorted({readable(label) for label in table["label"].to_pylist()})
            images = engine.encoder.embed_images(validation["image"].to_pylist(), batch_size=64)
            accepted = {name: right_names(name, synsets, senses) for name in names}
            free = name_all(engine, images, [])
            sayable = set(engine.namer.decoder().vocabulary.encodable(names))
            listed = name_all(engine, images, [name if name in sayable else singular(name) for name in names])
            by_list = 100 * float(
                np.mean([n[0][0] in (label, singular(label)) for n, label in zip(listed, labels, strict=True)])
            )
            zero = (images @ embed_labels(engine.encoder, names).T).argmax(1)
            zero_shot = 100 * float(np.mean([names[i] == label for i, label in zip(zero, labels, strict=True)]))
            rows.append(
                [
                    title,
                    len(labels),
                    share_right(free, labels, accepted, 1),
                    share_right(free, labels, accepted, 5),
                    by_list,
                    zero_shot,
                    by_list / zero_shot,
                ]
            )
        nouns = len(engine.namer.decoder().vocabulary.nouns)
        engine.close()
    header = ["validation set", "photos", "free, top 1", "free, top 5", "by list, top 1", "zero-shot, top 1", "share"]
    write("naming", header, rows, nouns=nouns)


if __name__ == "__main__":
    main()
