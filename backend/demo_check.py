"""Whether the demo did what it promises, seen from Label Studio's side: the stored predictions, over its API."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from backend.demo_photos import SamplePhoto
from plugin.studio import Studio

SHARE_RIGHT = 2 / 3
"""Of the sample photos, at least this share must carry a label that an annotator would accept."""

_UPLOADED = re.compile(r"/data/upload/\d+/[0-9a-f]{8}-(.+)")


@dataclass(frozen=True)
class CheckReport:
    passed: bool
    lines: tuple[str, ...]
    """One per photo, and the verdict."""


def upload_name(value: str) -> str:
    """The name of an uploaded photo as Label Studio stores it, from its path there or from the file's own name."""
    uploaded = _UPLOADED.fullmatch(unquote(value))
    name = uploaded[1] if uploaded else value
    return re.sub(r"[^-\w.]", "", name.strip().replace(" ", "_"))


def check_predictions(
    client: Studio, project_id: int, photos: Sequence[Path], labels: Collection[str], judged: Sequence[SamplePhoto]
) -> CheckReport:
    """Every photo has one prediction with one choice of `labels`, and enough of the `judged` ones are right."""
    predictions: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for prediction in client.predictions(project_id):
        predictions[prediction["task"]].append(prediction)
    choices: dict[str, list[list[str]]] = defaultdict(list)
    for task in client.tasks(project_id):
        name = upload_name(next(iter(task["data"].values())))
        choices[name].append([choice for found in predictions[task["id"]] for choice in _choices(found)])
    accepted = {photo.file: photo.accepted for photo in judged}
    lines, faults, right = [], 0, 0
    for photo in photos:
        stored = choices[upload_name(photo.name)]
        sound = bool(stored) and all(len(found) == 1 and found[0] in labels for found in stored)
        faults += not sound
        is_right = sound and stored[0][0] in accepted.get(photo.name, ())
        right += is_right
        said = ", ".join(" + ".join(found) or "nothing" for found in stored) or "not in the project"
        verdict = ("right" if is_right else "wrong") if judged and sound else ("sound" if sound else "FAULT")
        lines.append(f"  {verdict:5}  {photo.name:24} {said}")
    enough = right >= SHARE_RIGHT * len(judged)
    lines.append(f"{len(photos) - faults} of {len(photos)} photos have exactly one prediction, from the label set")
    if judged:
        lines.append(f"{right} of {len(judged)} are right; at least {SHARE_RIGHT:.0%} must be")
    lines.append("PASSED" if (passed := not faults and enough) else "FAILED")
    return CheckReport(passed, tuple(lines))


def check_names(client: Studio, project_id: int, photos: Sequence[Path]) -> CheckReport:
    """Every photo has one prediction with at least one name. What fits a photo is for its viewer to say."""
    names: dict[str, list[list[str]]] = defaultdict(list)
    files = {task["id"]: upload_name(next(iter(task["data"].values()))) for task in client.tasks(project_id)}
    for prediction in client.predictions(project_id):
        said = [path[-1] for region in prediction["result"] for path in region["value"].get("taxonomy", ())]
        names[files[prediction["task"]]].append(said)
    lines, sound = [], 0
    for photo in photos:
        stored = names[upload_name(photo.name)]
        good = bool(stored) and all(stored)
        sound += good
        said_of = "; ".join(", ".join(found) or "nothing" for found in stored) or "nothing"
        lines.append(f"  {'named' if good else 'FAULT':5}  {photo.name:24} {said_of}")
    lines.append(f"{sound} of {len(photos)} photos have names")
    return CheckReport(sound == len(photos), tuple(lines))


def _choices(prediction: dict[str, Any]) -> list[str]:
    """The chosen labels of a prediction; "?" for one that chooses none, which is in no label set."""
    return [choice for region in prediction["result"] for choice in region["value"].get("choices", ())] or ["?"]
