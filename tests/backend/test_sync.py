from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from backend.memory import Confirmation, Memory, open_memory
from backend.sync import Differences, synchronise
from plugin.studio import Studio

KEY = "1.100"
CONFIG = (
    '<View><Image name="image" value="$image"/><Choices name="kind" toName="image">'
    '<Choice value="cat"/><Choice value="dog"/></Choices></View>'
)


def task(id_: int, label: str, second: int = 1) -> dict[str, Any]:
    """As Studio.annotated_tasks gives it; its annotation's id is ten times the task's."""
    result = [{"from_name": "kind", "to_name": "image", "type": "choices", "value": {"choices": [label]}}]
    annotation = {"id": 10 * id_, "result": result, "updated_at": f"1970-01-01T00:00:{second:02d}Z"}
    return {"id": id_, "data": {"image": f"photo-{id_}"}, "annotations": [annotation]}


def held(id_: int, label: str, second: float = 1.0, suggested: str = "") -> Confirmation:
    found = {"kind": [suggested]} if suggested else {}
    return Confirmation(10 * id_, id_, second, 0.0, None, {"kind": [label]}, found, {"$image": f"photo-{id_}"})  # type: ignore[arg-type]


class Listing:
    """Label Studio, but for its list of annotated tasks: after each, `meanwhile` happens."""

    def __init__(self, tasks: list[dict[str, Any]], meanwhile: Callable[[], None] = lambda: None) -> None:
        self._tasks, self._meanwhile = tasks, meanwhile

    def project_key(self, project_id: int) -> str:
        return KEY

    def label_config(self, project_id: int) -> str:
        return CONFIG

    def annotated_tasks(self, project_id: int) -> Iterator[dict[str, Any]]:
        for each in self._tasks:
            yield each
            self._meanwhile()


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Memory]:
    opened = open_memory(f"sqlite:///{tmp_path / 'memory.db'}")
    yield opened
    opened.close()


def sync(listing: Listing, memory: Memory) -> Differences:
    *_, last = synchronise(cast(Studio, listing), 1, memory)
    return last


def answers(memory: Memory) -> dict[int, Any]:
    rows, _ = memory.changes(KEY)
    return {each.task: each.answers["kind"][0] for each in rows if isinstance(each, Confirmation)}


def test_the_memory_holds_just_what_label_studio_has(memory: Memory) -> None:
    memory.put(KEY, [held(1, "cat", suggested="dog"), held(2, "cat"), held(3, "cat"), held(4, "cat", second=99)])
    listing = Listing([task(1, "cat"), task(2, "dog"), task(4, "dog"), task(5, "dog")])
    assert sync(listing, memory) == Differences(annotations=4, added=1, changed=2, removed=1)
    # 4 was held as newer than Label Studio says: it was put back from a backup, or its clock.
    assert answers(memory) == {1: "cat", 2: "dog", 4: "dog", 5: "dog"}
    rows, _ = memory.changes(KEY)
    assert [each.suggested for each in rows if isinstance(each, Confirmation) and each.task == 1] == [{"kind": ["dog"]}]
    assert sync(listing, memory) == Differences(annotations=4, added=0, changed=0, removed=0)


def test_what_a_webhook_brings_meanwhile_stays(memory: Memory) -> None:
    memory.put(KEY, [held(1, "cat"), held(2, "cat")])

    def meanwhile() -> None:
        """Task 1 is changed, 2 (which was not listed) too, 3 is new, and 4 is deleted after it was listed."""
        memory.put(KEY, [held(1, "dog", second=50), held(2, "dog", second=50), held(3, "dog", second=50)])
        memory.remove(KEY, [40])

    assert sync(Listing([task(1, "cat"), task(4, "cat")], meanwhile), memory) == Differences(2, 0, 0, 0)
    assert answers(memory) == {1: "dog", 2: "dog", 3: "dog"}
