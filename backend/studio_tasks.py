"""Records of `forelabel label` as tasks with predictions, to import in Label Studio."""

from __future__ import annotations

from typing import Any

from plugin.labeling_config import Control, Label
from plugin.predictions import build_prediction, choices_prediction


def studio_task(record: dict[str, Any], model: str) -> dict[str, Any]:
    """One task for a project made from the template image-classification (Choices "choice" on Image "image").

    `data.image` is the path as it was given: Label Studio shows it once its local storage serves that folder. An image
    that could not be read becomes a task without prediction.
    """
    task: dict[str, Any] = {"data": {"image": record["image"]}, "predictions": []}
    if "error" not in record:
        ranked = [(Label(item["label"]), item["score"]) for item in record["labels"]]
        control = Control("choice", "image", False, tuple(label for label, _ in ranked), "$image")
        answer = choices_prediction(control, ranked, threshold=1.0)
        task["predictions"] = [build_prediction([answer], answer["score"], f"forelabel-{model}")]
    return task
