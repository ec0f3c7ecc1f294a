"""Write the trained towers to retrieval/pocket/ in float16, in folders that stock transformers opens.

python -m recipes.pocket_export --image OUT/image.pt --text OUT --to retrieval/pocket
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from transformers import BertTokenizer

from recipes.pocket_image_tower import EDGE, MEAN, PROMPTS, STD, build_tower
from recipes.pocket_text_tower import MAX_TOKENS, build_student
from recipes.sentences import MIN_ZIPF, sentences_about_nouns

SIZE_LIMIT = 16_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True, help="folder with text.pt and vocab.txt")
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--logit-scale", type=float, help="default: the one learned with the image tower")
    args = parser.parse_args()
    held = torch.load(args.image, weights_only=True)
    image = build_tower()
    image.load_state_dict(held["model"])
    image.half().save_pretrained(args.to / "image")
    processor = {
        "image_processor_type": "SiglipImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": EDGE, "width": EDGE},
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [round(float(v), 4) for v in MEAN],
        "image_std": [round(float(v), 4) for v in STD],
    }
    (args.to / "image" / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n")
    vocabulary = args.text / "vocab.txt"
    text = build_student(len(vocabulary.read_text().splitlines()))
    text.load_state_dict(torch.load(args.text / "text.pt", weights_only=True))
    text.half().save_pretrained(args.to / "text")
    BertTokenizer(str(vocabulary), do_lower_case=True, model_max_length=MAX_TOKENS).save_pretrained(args.to / "text")
    about = {
        "logit_scale": round(args.logit_scale or float(held["scale"]), 3),
        "max_tokens": MAX_TOKENS,
        "templates": ["{label}", *(prompt.replace("a {}", "{a label}") for prompt in PROMPTS)],
    }
    (args.to / "dual_encoder.json").write_text(json.dumps(about, indent=2) + "\n")
    (args.to / "captions.txt").write_text("\n".join(sentences_about_nouns(MIN_ZIPF)) + "\n")
    size = sum(f.stat().st_size for part in ("image", "text") for f in (args.to / part).iterdir())
    print(f"both towers: {size / 1e6:.2f} MB")
    assert size <= SIZE_LIMIT, "the pocket encoder has outgrown its 16 MB"


if __name__ == "__main__":
    main()
