"""Ranked labels and nouns -> the prediction JSON that Label Studio stores."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any, Final

from plugin.labeling_config import TYPE_AND_KEY, Control, Kind, Label

UNREADABLE: Final[Sequence[dict[str, Any]]] = []
"""The item for a task whose image cannot be read: no predictions.

In Label Studio 1.23.2 such a task keeps no stored prediction, while the others of the same request get theirs, so it is
asked for again once the image is there."""


def choices_prediction(control: Control, ranked: Sequence[tuple[Label, float]], threshold: float) -> dict[str, Any]:
    """The answer to a question with a label set, one item of a prediction's `result`.

    Args:
        control: the question.
        ranked: labels of `control` with their scores in [0, 1], in any order, at least one.
        threshold: where several answers are allowed, every label with at least this score is ticked, the best one
            always. Where one is allowed it is the best.
    """
    if not ranked:
        raise ValueError(f"No label was ranked for {control.from_name!r}; rank at least one.")
    ordered = sorted(((label, _score(score)) for label, score in ranked), key=lambda pair: pair[1], reverse=True)
    taken = [label for label, score in ordered if score >= threshold] if control.multiple else []
    return _region(control, [label.stored for label in taken or [ordered[0][0]]], ordered[0][1])


def names_prediction(control: Control, names: Sequence[tuple[str, float]], threshold: float) -> dict[str, Any]:
    """The answer to an open question, one item of a prediction's `result`.

    Args:
        control: the question.
        names: nouns with their scores in [0, 1], best first, at least one.
        threshold: nouns with at least this score are filled in, the best one always. Of Choices with one answer it is
            the best that is ticked.
    """
    if not names:
        raise ValueError(f"No noun was found for {control.from_name!r}; give at least one.")
    taken = [noun for noun, score in names if score >= threshold] or [names[0][0]]
    if control.kind is Kind.OPTIONS and not control.multiple:
        taken = taken[:1]
    return _region(control, [[noun] for noun in taken] if control.kind is Kind.TAXONOMY else taken, _score(names[0][1]))


def options(names: Sequence[tuple[str, float]]) -> list[dict[str, str]]:
    """What a task's data holds for `<Choices value="$options">`: nouns with their scores, best first.

    Plain texts would show as empty lines (seen in 1.23.2), so each has the HTML to show.
    """
    return [{"value": noun, "html": f"{html.escape(noun)} <b>{100 * _score(score):.0f}%</b>"} for noun, score in names]


def _region(control: Control, values: Sequence[Any], score: float) -> dict[str, Any]:
    type_, key = TYPE_AND_KEY[control.kind]
    return {
        "from_name": control.from_name,
        "to_name": control.to_name,
        "type": type_,
        "value": {key: list(values)},
        "score": score,
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
