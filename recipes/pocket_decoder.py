"""Train the bundled decoder on the pocket encoder's text embeddings.

    python -m recipes.pocket_decoder --out OUT --work FOLDER

It is what `forelabel decoder train` does, on the whole noun dictionary, the class names of the image teacher and of the
labelled sets (as NOVIC adds the names of its benchmarks), and the bundled captions. No photo has a part in it. The
weights are stored in float16.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from backend.decoders import Recipe, Sizes, Texts, texts_bar, train_on_encoder, training_bar
from decoder.nouns import load_nouns
from decoder.train import TrainOptions
from recipes.pocket_data import SETS, load, teacher_names
from retrieval.encoder import load_encoder
from retrieval.towers import POCKET


def write_class_names(path: Path) -> None:
    """The class names that the dictionary lacks, one per line."""
    known = {form.lower() for noun in load_nouns() for form in (noun.singular, noun.plural, *noun.spellings) if form}
    names = [name for group in teacher_names() for name in group]
    for photo_set in SETS:
        names += load(photo_set, "train", path.parent).classes
    fresh = dict.fromkeys(name for name in names if name.lower() not in known)
    path.write_text("\n".join(fresh) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="where class names and embeddings are kept")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--batch", type=int, default=1024)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    encoder = load_encoder("pocket")
    write_class_names(args.work / "class-names.txt")
    recipe = Recipe(args.out, Sizes(192, 3, 6, 96), TrainOptions(args.steps, args.batch, args.lr), dtype="float16")
    texts = Texts("FT0", args.work / "class-names.txt", POCKET / "captions.txt", 8, args.work / "texts")
    with texts_bar() as embedded, training_bar(args.steps) as trained:
        print(train_on_encoder(recipe, encoder, texts, embedded, trained))


if __name__ == "__main__":
    main()
