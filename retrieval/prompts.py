"""Label -> prompt sentences -> one embedding per label."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from retrieval.encoder import DualEncoder

TEMPLATES: dict[str, tuple[str, ...]] = {
    # The seven that OpenAI's prompt notebook found to be enough for ImageNet (Radford et al. 2021, openai/CLIP).
    "clip": (
        "itap of {a label}.",
        "a bad photo of the {label}.",
        "a origami {label}.",
        "a photo of the large {label}.",
        "{a label} in a video game.",
        "art of the {label}.",
        "a photo of the small {label}.",
    ),
    # The sentence that the model cards of SigLIP and SigLIP 2 use.
    "siglip": ("This is a photo of {label}.",),
    "siglip2": ("This is a photo of {label}.",),
}
DEFAULT_TEMPLATES = ("a photo of {a label}.",)
"""For other families (Radford et al. 2021, section 3.1.4)."""


def templates_for(encoder: DualEncoder) -> tuple[str, ...]:
    """The model's own templates if it brings some, else its family's."""
    return encoder.templates or TEMPLATES.get(encoder.family, DEFAULT_TEMPLATES)


def article(words: str) -> str:
    """ "a" or "an", by the first letter."""
    return "an" if words[:1].lower() in tuple("aeiou") else "a"


def prompts(label: str, templates: Sequence[str]) -> list[str]:
    """Fill templates: "{label}" is the words of the label, "{a label}" the same with its article."""
    words = " ".join(label.replace("_", " ").split())
    return [t.replace("{a label}", f"{article(words)} {words}").replace("{label}", words) for t in templates]


def embed_labels(
    encoder: DualEncoder,
    labels: Sequence[str],
    hints: Sequence[str | None] | None = None,
    templates: Sequence[str] | None = None,
) -> NDArray[np.float32]:
    """One unit embedding per label: the mean over its prompts, renormalised (Radford et al. 2021, section 3.1.4).

    Args:
        encoder: gives the text embeddings.
        labels: c labels, as annotators see them.
        hints: what a labeling config says beside a label (its tooltip); counts as a second way to write the label.
        templates: None takes `templates_for(encoder)`.

    Returns:
        float32 [c, d].
    """
    chosen = templates_for(encoder) if templates is None else templates
    sentences: list[str] = []
    owners: list[int] = []
    for i, label in enumerate(labels):
        hint = hints[i] if hints else None
        for words in (label, hint) if hint else (label,):
            filled = prompts(words, chosen)
            sentences += filled
            owners += [i] * len(filled)
    total = np.zeros((len(labels), encoder.dim), np.float64)
    np.add.at(total, owners, encoder.embed_texts(sentences))
    norms = np.linalg.norm(total, axis=1, keepdims=True)
    unit: NDArray[np.float32] = (total / np.maximum(norms, 1e-12)).astype(np.float32)
    return unit
