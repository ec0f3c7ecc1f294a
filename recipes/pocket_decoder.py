"""Train a decoder on the pocket encoder's text embeddings, to be bundled once it names photos well.

    python -m recipes.pocket_decoder --out OUT --work FOLDER

It is what `forelabel decoder train` does, on the whole noun dictionary, the class names of the image teacher and of the
labelled sets (as NOVIC adds the names of its benchmarks), and the bundled captions. Photos give the images' mean alone,
and only train photos; the weights are stored in float16.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from backend.decoders import Recipe, Sizes, Texts, texts_bar, train_on_encoder, training_bar
from decoder.nouns import load_nouns
from decoder.train import TrainOptions
from recipes.pocket_data import SETS, load, teacher_names
from retrieval.encoder import DualEncoder, load_encoder
from retrieval.towers import POCKET

PHOTOS_PER_SET = 700


def write_class_names(path: Path) -> None:
    """The class names that the dictionary lacks, one per line."""
    known = {form.lower() for noun in load_nouns() for form in (noun.singular, noun.plural, *noun.spellings) if form}
    names = [name for group in teacher_names() for name in group]
    for photo_set in SETS:
        names += load(photo_set, "train", path.parent).classes
    fresh = dict.fromkeys(name for name in names if name.lower() not in known)
    path.write_text("\n".join(fresh) + "\n", encoding="utf-8")


def write_photo_embeddings(path: Path, encoder: DualEncoder) -> None:
    """Embeddings of evenly spaced train photos of every set, whose mean is the images'."""
    rows = []
    for name in SETS:
        photos = load(name, "train", path.parent).photos
        chosen = photos[np.linspace(0, len(photos) - 1, PHOTOS_PER_SET).astype(int)]
        rows.append(encoder.embed_images([Image.fromarray(photo) for photo in chosen]))
    np.savez(path, embeddings=np.concatenate(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="where photos, embeddings and the state are kept")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--lr", type=float, default=2.5e-3)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--raw", action="store_true", help="do not centre the modalities")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    encoder = load_encoder("pocket")
    write_class_names(args.work / "class-names.txt")
    write_photo_embeddings(args.work / "photos.npz", encoder)
    recipe = Recipe(
        args.out, Sizes(192, 3, 6, 96), TrainOptions(args.steps, args.batch, args.lr), "auto", not args.raw, "float16"
    )
    texts = Texts("FT0", args.work / "class-names.txt", POCKET / "captions.txt", 8, args.work / "texts")
    with texts_bar() as embedded, training_bar(args.steps) as trained:
        print(train_on_encoder(recipe, encoder, texts, args.work / "photos.npz", embedded, trained))


if __name__ == "__main__":
    main()
