"""Average the weights of two runs of the image tower, one of which went on from the other.

    python -m recipes.pocket_average --first EARLIER.pt --second LATER.pt --share 0.35 --cache CACHE --out OUT

The later run fits the train photos better than it fits others; weights between the two do better on these (Wortsman et
al., "Robust fine-tuning of zero-shot models", CVPR 2022). The batch norms' statistics are taken anew.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from recipes.pocket_data import SETS, load
from recipes.pocket_image_tower import build_tower, recalibrate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=Path, required=True)
    parser.add_argument("--second", type=Path, required=True)
    parser.add_argument("--share", type=float, default=0.5, help="of the second")
    parser.add_argument("--cache", type=Path, required=True, help="where the train photos are")
    parser.add_argument("--out", type=Path, required=True, help="folder for image.pt")
    args = parser.parse_args()
    first, second = (torch.load(path, weights_only=True)["model"] for path in (args.first, args.second))
    averaged = {
        name: weight.lerp(second[name], args.share) if weight.dtype.is_floating_point else weight
        for name, weight in first.items()
    }
    model = build_tower()
    model.load_state_dict(averaged)
    photo_sets = [load(name, "train", args.cache) for name in SETS]
    recalibrate(model.to(memory_format=torch.channels_last), [s.photos for s in photo_sets if s.classes])
    args.out.mkdir(parents=True, exist_ok=True)
    torch.save({"model": model.state_dict()}, args.out / "image.pt")


if __name__ == "__main__":
    main()
