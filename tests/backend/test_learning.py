from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from backend import learning as module
from backend.learning import Learning, Seen
from backend.memory import MemoryUnavailable
from backend.metrics import Metrics
from plugin.labeling_config import Control, parse_labeling_config
from retrieval.encoder import DualEncoder

DIM = 16
ENCODER = cast(DualEncoder, SimpleNamespace(dim=DIM, fingerprint="stub", logit_scale=10.0))
PROJECT, KEY = {"id": 3, "created_at": "2026-01-01T00:00:00Z"}, "3.1767225600"
ONE = '<Choices name="kind" toName="image"><Choice value="cat"/><Choice value="dog"/><Choice value="owl"/></Choices>'
SEVERAL = ONE.replace("<Choices ", '<Choices choice="multiple" ')
OPEN = '<Taxonomy name="kind" toName="image" legacy="true"/>'
LABELS = np.eye(3, DIM, dtype=np.float32)
ASKED = np.full((1, 3), 1 / 3, np.float32)


def config(question: str) -> str:
    return f'<View><Image name="image" value="$image"/>{question}</View>'


def control(question: str) -> Control:
    return parse_labeling_config(config(question)).controls[0]


def photo(kind: int, seed: int = 0) -> np.ndarray:
    """Photos of one kind are near each other, and say nothing to the label texts."""
    row = np.random.default_rng(100 + kind).normal(size=DIM) + 0.2 * np.random.default_rng(seed).normal(size=DIM)
    return (row / np.linalg.norm(row)).astype(np.float32)


def event(
    annotation: int,
    task: int,
    answer: Sequence[str],
    *,
    question: str = ONE,
    second: int = 1,
    cancelled: bool = False,
    action: str = "ANNOTATION_CREATED",
) -> tuple[str, dict[str, Any]]:
    kind = "taxonomy" if question == OPEN else "choices"
    value = {kind: [[noun] for noun in answer] if question == OPEN else list(answer)}
    described = {
        "id": annotation,
        "task": task,
        "result": [{"from_name": "kind", "to_name": "image", "type": kind, "value": value}],
        "was_cancelled": cancelled,
        "updated_at": f"2026-02-01T00:00:{second:02d}Z",
        "created_at": "2026-02-01T00:00:00Z",
        "completed_by": 1,
    }
    payload = {
        "annotation": described,
        "task": {"id": task, "data": {"image": f"photo-{task}"}},
        "project": {**PROJECT, "label_config": config(question)},
    }
    return action, payload


class Bench:
    """A Learning on a SQLite memory, whose image host holds `images`."""

    def __init__(self, folder: Path) -> None:
        self.images: dict[str, np.ndarray] = {}
        self.asked: list[str] = []
        self.metrics = Metrics()
        self.learning = Learning(f"sqlite:///{folder / 'memory.db'}", self.metrics, self.embed)
        self.learning.use(ENCODER)

    def embed(self, project: str, values: Sequence[tuple[str, int]]) -> list[np.ndarray | None]:
        assert all(value == f"photo-{task}" for value, task in values)
        self.asked += [value for value, _ in values]
        return [self.images.get(value) for value, _ in values]

    def saw(self, task: int, image: np.ndarray, suggested: Sequence[str] = ()) -> None:
        value = f"photo-{task}"
        found = {"kind": list(suggested)} if suggested else {}
        self.learning.saw(KEY, task, Seen({"$image": value}, {"$image": image.astype(np.float16)}, found))  # type: ignore[arg-type]

    def choose(self, image: np.ndarray, question: str = ONE) -> np.ndarray:
        ranker = self.learning.ranker(KEY)
        assert ranker is not None
        return ranker.choose(control(question), LABELS, image[None], ASKED)[0][0]

    def counts(self) -> np.ndarray:
        ranker = self.learning.ranker(KEY)
        assert ranker is not None
        self.choose(photo(0))
        return ranker._learners[control(ONE)].memory.counts


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.learning.close()


def eventually(ask: Callable[[], object]) -> None:
    give_up = time.monotonic() + 20
    while not ask():
        assert time.monotonic() < give_up, "it did not come about in time"
        time.sleep(0.02)


def test_the_next_suggestion_knows_what_was_just_confirmed(bench: Bench) -> None:
    for task in range(1, 5):
        bench.saw(task, photo(task % 2, seed=task), ["owl"])
        bench.learning.process_event(*event(task + 10, task, ["cat" if task % 2 == 0 else "dog"]))
    assert bench.choose(photo(0, seed=50)).argmax() == 0
    assert bench.choose(photo(1, seed=51)).argmax() == 1
    assert bench.asked == []  # what was predicted need not be fetched again


def test_an_event_twice_late_changed_or_deleted(bench: Bench) -> None:
    bench.saw(1, photo(0))
    process = bench.learning.process_event
    process(*event(10, 1, ["cat"], second=1))
    process(*event(10, 1, ["cat"], second=1))
    np.testing.assert_array_equal(bench.counts(), [1, 0, 0])
    process(*event(10, 1, ["dog"], second=5, action="ANNOTATION_UPDATED"))
    process(*event(10, 1, ["owl"], second=3, action="ANNOTATION_UPDATED"))  # overtaken on its way
    np.testing.assert_array_equal(bench.counts(), [0, 1, 0])
    process("ANNOTATIONS_DELETED", {"annotations": [{"id": 10}], "project": PROJECT})
    process(*event(10, 1, ["cat"], second=9))  # its creation comes last
    np.testing.assert_array_equal(bench.counts(), [0, 0, 0])
    bench.saw(2, photo(0))
    process(*event(11, 2, ["cat"]))
    process("TASKS_DELETED", {"tasks": [{"id": 2}], "project": PROJECT})
    np.testing.assert_array_equal(bench.counts(), [0, 0, 0])


def test_the_majority_of_a_task_counts_once_and_skips_do_not(bench: Bench) -> None:
    bench.saw(1, photo(0))
    process = bench.learning.process_event
    process(*event(10, 1, ["cat"]))
    process(*event(11, 1, ["dog"]))
    np.testing.assert_allclose(bench.counts(), [0.5, 0.5, 0])
    process(*event(12, 1, ["dog"]))
    process(*event(13, 1, [], cancelled=True))
    np.testing.assert_allclose(bench.counts(), [0, 1, 0])
    process("ANNOTATIONS_DELETED", {"annotations": [{"id": 11}, {"id": 12}], "project": PROJECT})
    np.testing.assert_allclose(bench.counts(), [1, 0, 0])


def test_many_annotations_in_one_event(bench: Bench) -> None:
    events = [event(10 + task, task, ["cat"])[1] for task in range(1, 4)]
    for task in range(1, 4):
        bench.images[f"photo-{task}"] = photo(0, seed=task)
    bulk = {key: [each[key] for each in events] for key in ("annotation", "task")}
    bench.learning.process_event("ANNOTATIONS_CREATED", {**bulk, "project": events[0]["project"]})
    eventually(lambda: bench.counts()[0] == 3)


def test_an_image_that_was_not_predicted_here_is_embedded_meanwhile(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.images["photo-1"] = photo(2)
    bench.learning.process_event(*event(10, 1, ["owl"]))
    bench.learning.process_event(*event(11, 9, ["owl"]))  # cannot be read: the other one goes on
    eventually(lambda: bench.counts()[2] == 1 and "photo-9" in bench.asked)
    assert sorted(bench.asked) == ["photo-1", "photo-9"]  # nothing is asked for over and over
    bench.images["photo-9"] = photo(2, seed=1)
    monkeypatch.setattr(module, "RETRY_S", -1)
    bench.learning._not_before.clear()  # as after a while
    eventually(lambda: bench.counts()[2] == 2)


def test_the_version_moves_with_what_changes_but_not_in_a_burst(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    version = bench.learning.version
    assert version(KEY) == 0
    bench.learning.process_event(*event(10, 1, ["cat"]))
    first = version(KEY)
    assert first > 0
    bench.learning.process_event(*event(11, 2, ["cat"]))
    assert version(KEY) == first  # at once after: held back
    now += module.BURST_S
    second = version(KEY)
    assert second > first
    now += module.BURST_S
    bench.learning.process_event(*event(11, 2, ["cat"]))  # again: nothing new
    assert version(KEY) == second
    assert version("4.1") == 0


def test_a_second_process_gives_the_same_answer(bench: Bench, tmp_path: Path) -> None:
    other = Bench(tmp_path)
    for task in range(1, 7):
        bench.saw(task, photo(task % 3, seed=task))
        bench.learning.process_event(*event(task + 10, task, [["cat", "dog", "owl"][task % 3]]))
        np.testing.assert_allclose(bench.choose(photo(1, seed=9)), other.choose(photo(1, seed=9)), atol=1e-6)
    other.learning.process_event("ANNOTATIONS_DELETED", {"annotations": [{"id": 11}], "project": PROJECT})
    np.testing.assert_allclose(bench.choose(photo(1, seed=9)), other.choose(photo(1, seed=9)), atol=1e-6)
    other.learning.close()


def test_labels_may_come_and_go(bench: Bench) -> None:
    for task in range(1, 5):
        bench.saw(task, photo(task % 2, seed=task))
        bench.learning.process_event(*event(task + 10, task, ["cat" if task % 2 == 0 else "dog"]))
    fewer = control(ONE.replace('<Choice value="cat"/>', ""))
    ranker = bench.learning.ranker(KEY)
    assert ranker is not None
    got = ranker.choose(fewer, LABELS[1:], photo(1)[None], ASKED[:, 1:])[0][0]
    assert got.argmax() == 0  # dog, which is first now
    assert bench.choose(photo(0)).argmax() == 0  # and with cat back, so is what was known of it


def test_labels_that_need_images_come_first(bench: Bench) -> None:
    for task in range(1, 7):
        bench.saw(task, photo(0, seed=task))
        bench.learning.process_event(*event(task + 10, task, ["cat"]))
    ranker = bench.learning.ranker(KEY)
    assert ranker is not None
    _, urgency = ranker.choose(control(ONE), LABELS, photo(0)[None], ASKED)
    np.testing.assert_allclose(urgency, [1, 1 / 3, 1 / 3], rtol=1e-5)


def test_several_answers_are_each_for_itself(bench: Bench) -> None:
    for task in range(1, 7):
        bench.saw(task, photo(0, seed=task), ["owl"])
        bench.learning.process_event(*event(task + 10, task, ["cat", "dog"], question=SEVERAL))
    got = bench.choose(photo(0, seed=50), SEVERAL)
    assert got[0] > 0.7 and got[1] > 0.7 and got[2] < 0.1


def test_nouns_rise_and_sink(bench: Bench) -> None:
    question = control(OPEN)
    for task in range(1, 7):
        bench.saw(task, photo(0, seed=task), ["cougar", "rock"])
        bench.learning.process_event(*event(task + 10, task, ["Tabby", "rock"], question=OPEN))
    ranker = bench.learning.ranker(KEY)
    assert ranker is not None
    said = [[("cougar", 0.6), ("rock", 0.2), ("sky", 0.1)]]
    (names,) = ranker.name(question, photo(0, seed=50)[None], said, lambda noun: True)
    scores = dict(names)
    assert names[0][0] in ("Tabby", "rock") and scores["Tabby"] > 0.5
    assert scores["rock"] > 0.6 and scores["cougar"] < 0.2 and scores["sky"] == 0.1
    for task in range(7, 13):  # all chips taken out: an answer, and no skip
        bench.saw(task, photo(2, seed=task), ["fog"])
        bench.learning.process_event(*event(task + 10, task, [], question=OPEN))
    (foggy,) = bench.learning.ranker(KEY).name(question, photo(2)[None], [[("fog", 0.6)]], lambda noun: True)  # type: ignore[union-attr]
    assert dict(foggy)["fog"] < 0.2
    (banned,) = ranker.name(question, photo(0, seed=50)[None], said, lambda noun: noun != "Tabby")
    assert "Tabby" not in dict(banned)
    (elsewhere,) = ranker.name(question, photo(1)[None], said, lambda noun: True)
    assert "Tabby" not in dict(elsewhere)  # other images are not concerned


def test_counts_suggestions_that_were_taken(bench: Bench) -> None:
    for task, answer in ((1, "cat"), (2, "cat"), (3, "dog")):
        bench.saw(task, photo(0, seed=task), ["cat"])
        bench.learning.process_event(*event(task + 10, task, [answer]))
        bench.learning.process_event(*event(task + 10, task, [answer]))
    bench.saw(4, photo(0), ["cat"])
    bench.learning.process_event(*event(14, 4, [], cancelled=True))
    text = bench.metrics.exposition().decode()
    assert 'forelabel_suggestions_total{outcome="taken"} 2.0' in text
    assert 'forelabel_suggestions_total{outcome="changed"} 1.0' in text


def test_what_cannot_be_kept_is_said_and_predictions_go_on(bench: Bench, tmp_path: Path) -> None:
    bench.saw(1, photo(0))
    bench.learning.process_event(*event(10, 1, ["cat"]))
    known = bench.choose(photo(0))
    for suffix in ("", "-wal", "-shm"):
        (tmp_path / f"memory.db{suffix}").unlink(missing_ok=True)
    (tmp_path / "memory.db").mkdir()
    with pytest.raises(MemoryUnavailable):
        bench.learning.process_event(*event(11, 2, ["dog"]))
    np.testing.assert_allclose(bench.choose(photo(0)), known)
    assert bench.learning.version(KEY) >= 0


@pytest.mark.parametrize(
    ("action", "payload"),
    [
        ("ANNOTATION_CREATED", {}),
        ("ANNOTATION_CREATED", {"project": PROJECT, "annotation": {"id": 1}}),
        ("ANNOTATION_CREATED", {"project": {**PROJECT, "label_config": config(ONE)}, "annotation": {"id": "x"}}),
        ("ANNOTATION_CREATED", {"project": {**PROJECT, "label_config": config(ONE)}, "annotation": [1, None, {}]}),
        (
            "ANNOTATION_CREATED",
            {"project": {**PROJECT, "label_config": config(ONE)}, "annotation": {"id": 5, "task": []}},
        ),
        ("ANNOTATIONS_DELETED", {"project": PROJECT, "annotations": "all"}),
        ("ANNOTATIONS_DELETED", {"project": PROJECT, "annotations": [{"id": 2**70}]}),
        ("ANNOTATIONS_DELETED", {"project": {"id": None}, "annotations": [{"id": 1}]}),
        ("PROJECT_UPDATED", {"project": PROJECT}),
    ],
)
def test_events_that_say_nothing_are_passed_over(bench: Bench, action: str, payload: dict[str, Any]) -> None:
    bench.saw(1, photo(0))
    bench.learning.process_event(*event(10, 1, ["cat"]))
    bench.learning.process_event(action, payload)
    np.testing.assert_array_equal(bench.counts(), [1, 0, 0])
