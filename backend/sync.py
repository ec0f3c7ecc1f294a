"""The memory of confirmed labels, brought in line with Label Studio's own annotations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from backend.learning import to_confirmation
from backend.memory import Confirmation, Memory
from plugin.annotations import Annotation, read_annotation
from plugin.labeling_config import parse_labeling_config
from plugin.studio import Studio

AT_ONCE = 100
"""Annotations written at once: what Label Studio was asked for must not be old by then."""


@dataclass(frozen=True)
class Differences:
    """How a memory differed from Label Studio, in annotations."""

    annotations: int
    """That Label Studio has, skips among them."""
    added: int
    changed: int
    removed: int


def synchronise(studio: Studio, project_id: int, memory: Memory) -> Iterator[Differences]:
    """Ask Label Studio for every annotation of the project and make the memory hold just these; the state after each
    batch, the last one is the result.

    Annotators may go on meanwhile: what the webhook brings during the run is newer than what was asked for, and stays.

    Raises:
        StudioError: Label Studio does not answer.
        LabelingConfigError: nothing in the project's labeling config can be answered.
        MemoryUnavailable: the memory does not answer.
    """
    project = studio.project_key(project_id)
    config = parse_labeling_config(studio.label_config(project_id))
    rows, asked = memory.changes(project)
    held = {each.annotation: each for each in rows if isinstance(each, Confirmation)}
    listed: set[int] = set()
    added = changed = 0

    def untouched(annotations: Iterable[int]) -> set[int]:
        """Those that no webhook has changed since Label Studio was first asked."""
        since, _ = memory.changes(project, asked)
        return set(annotations) - ({each.annotation for each in since} - written)

    written: set[int] = set()
    for batch in _batches(
        read_annotation(annotation, task, config)
        for task in studio.annotated_tasks(project_id)
        for annotation in task["annotations"]
    ):
        differing: list[Confirmation] = []
        for each in map(to_confirmation, batch):
            listed.add(each.annotation)
            before = held.get(each.annotation)
            # What was suggested is known better by whoever suggested it.
            now = each if before is None else replace(each, suggested=before.suggested or each.suggested)
            if now != before:
                differing.append(now)
        current = untouched(each.annotation for each in differing)
        differing = [each for each in differing if each.annotation in current]
        added += sum(each.annotation not in held for each in differing)
        changed += sum(each.annotation in held for each in differing)
        memory.put(project, differing, authoritative=True)
        written.update(each.annotation for each in differing)
        yield Differences(len(listed), added, changed, 0)
    gone = untouched(annotation for annotation in held if annotation not in listed)
    memory.remove(project, sorted(gone))
    yield Differences(len(listed), added, changed, len(gone))


def _batches(annotations: Iterator[Annotation]) -> Iterator[list[Annotation]]:
    batch: list[Annotation] = []
    for each in annotations:
        batch.append(each)
        if len(batch) == AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch
