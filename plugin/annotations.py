"""Label Studio's annotations -> what the annotator answered to each question.

Read are the annotations of webhooks and those that its API lists; both as 1.23 writes them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from plugin.errors import AnnotationError
from plugin.labeling_config import TYPE_AND_KEY, Control, LabelingConfig, image_value

Stored = str | list[str]
"""What Label Studio keeps for one label; the list is a path, see `plugin.labeling_config.Label.stored`."""

ANSWERS_KEPT = 100
"""Per question: nobody ticks more, and what arrives here is anybody's who can reach the service."""

NOUN_LENGTH = 100
"""Characters; a longer line of a TextArea is a text, from which no noun is learnt."""


@dataclass(frozen=True)
class Annotation:
    """What one annotator left at one task."""

    id: int
    task: int
    updated: float
    """Seconds since 1970, as is `created`; 0.0 where Label Studio does not say."""
    created: float
    annotator: int | None
    answers: dict[str, list[Stored]]
    """A question's name -> its answer without repeats, to an open question nouns; one left blank is absent."""
    suggested: dict[str, list[Stored]]
    """The same of the prediction that the annotator started from, where Label Studio says."""
    images: dict[str, str]
    """Image source as written in the labeling config, such as "$image" -> the task's value."""
    skipped: bool = False
    """The annotator gave no answer on purpose, which is not the same as leaving all blank."""


def read_annotation(annotation: Mapping[str, Any], task: Mapping[str, Any], config: LabelingConfig) -> Annotation:
    """Read an annotation of a task; what in it is broken or answers no question of the config is passed over.

    Raises:
        AnnotationError: it has no usable id, or there is none of its task.
    """
    ids = usable_id(annotation.get("id")), usable_id(task.get("id")) or usable_id(annotation.get("task"))
    if ids[0] is None or ids[1] is None:
        raise AnnotationError(
            f"An annotation has the id {annotation.get('id')!r} and belongs to the task {task.get('id')!r}; both must "
            "be positive numbers. Is this Label Studio's?"
        )
    data = task.get("data")
    images = {control.image_source: image_value(data, control) for control in config.controls}  # type: ignore[arg-type]
    annotator = annotation.get("completed_by")
    return Annotation(
        id=ids[0],
        task=ids[1],
        updated=_seconds(annotation.get("updated_at")) or 0.0,
        created=_seconds(annotation.get("created_at")) or 0.0,
        annotator=usable_id(annotator.get("id") if isinstance(annotator, Mapping) else annotator),
        answers={} if annotation.get("was_cancelled") else read_answers(annotation.get("result"), config),
        suggested=_suggested(annotation, config),
        images={source: value for source, value in images.items() if value is not None},
        skipped=bool(annotation.get("was_cancelled")),
    )


def project_key(project: Mapping[str, Any]) -> str:
    """What /setup and /predict call a project, such as "2.1795319235": its id and the second it was made in.

    Raises:
        AnnotationError: one of them is missing.
    """
    id_, created = usable_id(project.get("id")), _seconds(project.get("created_at"))
    if id_ is None or created is None:
        raise AnnotationError(
            f"A project has the id {project.get('id')!r} and was made at {project.get('created_at')!r}; a number and "
            "a time in ISO 8601 are needed. Is this Label Studio's?"
        )
    return f"{id_}.{int(created)}"


def _suggested(annotation: Mapping[str, Any], config: LabelingConfig) -> dict[str, list[Stored]]:
    """Label Studio keeps the prediction of the version that is the project's, even where the annotator was shown one of
    another version; only that one's id is right then."""
    prediction, shown = annotation.get("prediction"), annotation.get("parent_prediction")
    if not isinstance(prediction, Mapping) or (shown is not None and shown != prediction.get("id")):
        return {}
    return read_answers(prediction.get("result"), config)


def read_answers(result: Any, config: LabelingConfig) -> dict[str, list[Stored]]:
    """The result of an annotation or a prediction -> question's name -> its answer; blank ones are absent."""
    answers: dict[str, list[Stored]] = {}
    for control in config.controls:
        found = {json.dumps(answer): answer for value in _values(result, control) for answer in _read(value, control)}
        if found:
            answers[control.from_name] = list(found.values())[:ANSWERS_KEPT]
    return answers


def _values(result: Any, control: Control) -> Iterator[Any]:
    """What `result` holds for this question. Labels of regions and of single pages have more beside them."""
    type_, key = TYPE_AND_KEY[control.kind]
    for region in result if isinstance(result, list) else ():
        if not isinstance(region, Mapping) or "item_index" in region:
            continue
        value = region.get("value")
        if (region.get("from_name"), region.get("type")) != (control.from_name, type_):
            continue
        if isinstance(value, Mapping) and value.keys() == {key}:
            held = value[key]
            yield from held if isinstance(held, list) else [held]


def _read(value: Any, control: Control) -> Iterator[Stored]:
    if isinstance(value, list) and value and all(isinstance(step, str) for step in value):
        path = value
    elif isinstance(value, str):
        path = [value]
    else:
        return
    if control.labels:
        yield value
    else:
        yield from (noun for line in path[-1].splitlines() if 0 < len(noun := line.strip()) <= NOUN_LENGTH)


def usable_id(value: Any) -> int | None:
    """An id of Label Studio's, or None for what is none."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**63 else None


def _seconds(time: Any) -> float | None:
    """Seconds since 1970; None for what is no time in ISO 8601. One without an offset is in UTC."""
    try:
        moment = datetime.fromisoformat(time)
    except (TypeError, ValueError):
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
