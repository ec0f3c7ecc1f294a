"""Choose the pocket encoder's logit scale on classes that its image tower has not seen.

    python -m recipes.pocket_calibrate --image OUT/image-unseen.pt --cache CACHE

The scale that training learns fits the seen classes and is far too sure of anything else. This one minimises the
negative log-likelihood, ten-way, of train photos of the 30 held-out classes, with the weights from before these joined.
It is therefore rather too modest on labels that the model knows than too sure on those it does not.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from recipes.pocket_data import SETS, held_out_classes, load
from recipes.pocket_image_tower import build_tower, embed
from recipes.text_teacher import TextTeacher, centre

SCALES = np.geomspace(2, 60, 40)
DRAWS = 300


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    args = parser.parse_args()
    model = build_tower()
    model.load_state_dict(torch.load(args.image, weights_only=True)["model"])
    with np.load(args.cache / "names.npz") as names:
        mean = names["mean"]
    teacher, photos, truth, labels = TextTeacher(), [], [], []
    sets = [load(name, "train", args.cache) for name in SETS if name != "flickr8k-1000-pairs"]
    held_out = held_out_classes({s.name: s.classes for s in sets})
    for s in sets:
        for name in held_out[s.name]:
            rows = np.flatnonzero(s.labels == s.classes.index(name))[:100]
            photos.append(embed(model, s.photos[rows]))
            truth.append(np.full(len(rows), len(labels)))
            labels.append(name)
    texts = torch.from_numpy(centre(teacher.embed(labels), mean))
    cosines, target = torch.cat(photos) @ texts.T, torch.from_numpy(np.concatenate(truth))
    losses = np.zeros(len(SCALES))
    rng = np.random.default_rng(0)
    for _ in range(DRAWS):
        ten = torch.from_numpy(rng.choice(len(labels), 10, replace=False))
        rows = torch.isin(target, ten)
        wanted = (target[rows][:, None] == ten).float().argmax(1)
        for i, scale in enumerate(SCALES):
            losses[i] += torch.nn.functional.cross_entropy(float(scale) * cosines[rows][:, ten], wanted).item() / DRAWS
    for scale, loss in zip(SCALES, losses, strict=True):
        print(f"scale {scale:6.2f}  nll {loss:.4f}")
    print(f"best {SCALES[losses.argmin()]:.2f} (chance {np.log(10):.4f})")


if __name__ == "__main__":
    main()
