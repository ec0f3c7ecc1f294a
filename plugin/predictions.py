"""Ranked labels -> the prediction JSON that Label Studio stores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from plugin.labeling_config import Control, Label

UNREADABLE: Final[Sequence[dict[str, Any]]] = []
"""The item for a task whose image cannot be read: no predictions.

In Label Studio 1.23.2 such a task keeps no stored prediction, while the others of the same request get theirs, so it is
asked for again once the image is there."""


def choices_prediction(control: Control, ranked: Sequence[tuple[Label, float]], threshold: float) -> dict[str, Any]:
    """The answer to one question, one item of a prediction's `result`.

    Args:
        ranked: labels of `control` with their scores in [0, 1], in any order, at least one.
        threshold: where several answers are allowed, every label with at least this score is ticked, the best one
            always. Where one is allowed it is the best.
    """
    if not ranked:
        raise ValueError(f"No label was ranked for {control.from_name!r}; rank at least one.")
    ordered = sorted(((label, _score(score)) for label, score in ranked), key=lambda pair: pair[1], reverse=True)
    taken = [label for label, score in ordered if score >= threshold] if control.multiple else []
    return {
        "from_name": control.from_name,
        "to_name": control.to_name,
        "type": "choices",
        "value": {"choices": [label.stored for label in taken or [ordered[0][0]]]},
        "score": ordered[0][1],
    }


def build_prediction(regions: Sequence[dict[str, Any]], score: float, model_version: str) -> dict[str, Any]:
    """One task's prediction.

    Args:
        regions: the answers, one per question.
        score: in [0, 1]; Label Studio's uncertainty sampling shows the lowest first.
        model_version: what /setup answered, else Label Studio asks again at every retrieval.
    """
    return {"model_version": model_version, "score": _score(score), "result": list(regions)}


def _score(score: float) -> float:
    """A Python float within [0, 1], six digits; NaN is 0: Label Studio would refuse the whole batch for it."""
    number = float(score)
    return round(min(number, 1.0), 6) if number > 0 else 0.0
