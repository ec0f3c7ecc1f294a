"""Records of `forelabel label` and `name` as tasks with predictions, to import in Label Studio."""

from __future__ import annotations

from typing import Any

from plugin.labeling_config import Control, Kind, Label
from plugin.predictions import build_prediction, choices_prediction, names_prediction

NAMES = Control("names", "image", True, (), "$image", Kind.TAXONOMY)
"""The question of the template image-naming."""


def label_task(record: dict[str, Any], model: str) -> dict[str, Any]:
    """One task for a project made from the template image-classification (Choices "choice" on Image "image").

    `data.image` is the path as it was given: Label Studio shows it once its local storage serves that folder. An image
    that could not be read becomes a task without prediction.
    """
    if "error" in record:
        return _task(record, None, model)
    ranked = [(Label(item["label"]), item["score"]) for item in record["labels"]]
    control = Control("choice", "image", False, tuple(label for label, _ in ranked), "$image")
    return _task(record, choices_prediction(control, ranked, threshold=1.0), model)


def name_task(record: dict[str, Any], model: str, threshold: float) -> dict[str, Any]:
    """The same for the template image-naming; names below `threshold` are left out, but for the best."""
    names = [(item["label"], item["score"]) for item in record.get("labels", [])]
    return _task(record, names_prediction(NAMES, names, threshold) if names else None, model)


def _task(record: dict[str, Any], answer: dict[str, Any] | None, model: str) -> dict[str, Any]:
    predictions = [build_prediction([answer], answer["score"], f"forelabel-{model}")] if answer else []
    return {"data": {"image": record["image"]}, "predictions": predictions}
