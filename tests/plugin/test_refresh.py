from __future__ import annotations

import pytest

from plugin.connect import connect
from plugin.errors import StudioError
from plugin.prelabel import prelabel
from plugin.refresh import Progress, refresh
from plugin.studio import Studio

BACKEND = "http://backend:9090"
OLD, NEW, NEWER = "forelabel-1", "forelabel-2", "forelabel-3"


@pytest.fixture
def tasks(studio: Studio, label_studio) -> list[int]:
    """Six tasks of project 1 with predictions of the old version, since which the backend has learnt."""
    label_studio.backend_version = OLD
    project = label_studio.add_project()
    ids = label_studio.add_tasks(project, 6)
    connect(studio, BACKEND, project=project)
    list(prelabel(studio, project))
    label_studio.backend_version = NEW
    return list(ids)


def held(label_studio) -> dict[int, list[str]]:
    return {id_: [p["model_version"] for p in label_studio.predictions_of(id_)] for id_ in label_studio.tasks}


def test_new_predictions_take_the_place_of_the_old_ones(studio: Studio, label_studio, tasks: list[int]) -> None:
    ids = [prediction["id"] for prediction in label_studio.predictions]
    assert list(refresh(studio, 1, chunk_size=4)) == [Progress(6, 0, 0), Progress(6, 4, 4), Progress(6, 6, 6)]
    assert held(label_studio) == {id_: [NEW] for id_ in tasks}
    # An annotator who has a task open sends the id of what was shown: it must still be there.
    assert [prediction["id"] for prediction in label_studio.predictions] == ids
    assert label_studio.backends[1]["title"] == label_studio.projects[1]["model_version"] == NEW
    label_studio.log.clear()
    assert list(refresh(studio, 1))[-1] == Progress(6, 6, 0)
    assert not any("predictions" in path for _, path in label_studio.changes())


def test_what_somebody_has_opened_is_left_alone(studio: Studio, label_studio, tasks: list[int]) -> None:
    annotated, skipped, draft, *untouched = tasks
    label_studio.annotate(annotated)
    label_studio.annotate(skipped, cancelled=True)
    label_studio.tasks[draft]["draft"] = True
    assert list(refresh(studio, 1))[-1] == Progress(3, 3, 3)
    assert held(label_studio) == {id_: [NEW if id_ in untouched else OLD] for id_ in tasks}


def test_what_is_opened_meanwhile_is_left_alone_too(studio: Studio, label_studio, tasks: list[int]) -> None:
    def open_one_of_this_chunk_and_one_of_the_next() -> None:
        label_studio.tasks[tasks[0]]["draft"] = label_studio.tasks[tasks[5]]["draft"] = True

    label_studio.on_retrieval = open_one_of_this_chunk_and_one_of_the_next
    assert list(refresh(studio, 1, chunk_size=3))[-1] == Progress(6, 6, 4)
    assert held(label_studio) == {tasks[0]: [OLD, NEW], **{id_: [NEW] for id_ in tasks[1:5]}, tasks[5]: [OLD]}


def test_a_task_without_a_new_prediction_keeps_the_old_one(studio: Studio, label_studio, tasks: list[int]) -> None:
    label_studio.predictable = lambda task_id: task_id != tasks[1]
    assert list(refresh(studio, 1))[-1] == Progress(6, 6, 5)
    assert held(label_studio) == {id_: [OLD if id_ == tasks[1] else NEW] for id_ in tasks}
    assert label_studio.backends[1]["title"] == label_studio.projects[1]["model_version"] == NEW


def test_predictions_of_others_are_not_deleted(studio: Studio, label_studio, tasks: list[int]) -> None:
    label_studio.add_prediction(tasks[0], "imported")
    label_studio.predictions = [p for p in label_studio.predictions if p["task"] != tasks[1]]
    label_studio.add_prediction(tasks[1], "imported")
    list(refresh(studio, 1))
    assert held(label_studio) == {
        **{id_: [NEW] for id_ in tasks}, tasks[0]: [NEW, "imported"], tasks[1]: ["imported", NEW],
    }  # fmt: skip


def test_what_a_run_that_was_stopped_left_behind_is_tidied_up(studio: Studio, label_studio, tasks: list[int]) -> None:
    label_studio.add_prediction(tasks[0], NEW)
    assert list(refresh(studio, 1))[-1] == Progress(6, 6, 5)
    assert held(label_studio) == {id_: [NEW] for id_ in tasks}


def test_a_version_that_moves_on_the_way(studio: Studio, label_studio, tasks: list[int]) -> None:
    retrievals: list[str] = []

    def learn() -> None:
        retrievals.append(label_studio.backend_version)
        label_studio.backend_version = NEW if len(retrievals) == 1 else NEWER

    label_studio.on_retrieval = learn
    list(refresh(studio, 1, chunk_size=2))
    assert held(label_studio) == {id_: [NEW if id_ in tasks[:2] else NEWER] for id_ in tasks}
    assert label_studio.backends[1]["title"] == label_studio.projects[1]["model_version"] == NEWER


def test_a_backend_with_a_login_keeps_it(studio: Studio, label_studio) -> None:
    label_studio.backend_version, label_studio.backend_login = OLD, ("user", "secret")
    project = label_studio.add_project()
    connect(studio, BACKEND, project=project, basic_auth="user:secret")
    label_studio.backend_version = NEW
    list(refresh(studio, project))
    assert label_studio.backends[1]["title"] == label_studio.projects[project]["model_version"] == NEW
    assert label_studio.backends[1]["basic_auth_pass"] == "secret"


def test_a_backend_that_is_lost_on_the_way_stops_it(studio: Studio, label_studio, tasks: list[int]) -> None:
    def crash() -> None:
        if label_studio.log.count(("POST", "/api/dm/actions")) == 3:  # the first was made to pre-label
            label_studio.backends[1] |= {"broken": True, "state": "DI", "readable_state": "Disconnected"}
            label_studio.predictable = lambda task_id: False

    label_studio.on_retrieval = crash
    with pytest.raises(StudioError, match=r"lost the backend at http://backend:9090.*forelabel serve"):
        list(refresh(studio, 1, chunk_size=2))
    assert held(label_studio) == {id_: [NEW if id_ in tasks[:2] else OLD] for id_ in tasks}


def test_a_project_without_backend(studio: Studio, label_studio) -> None:
    with pytest.raises(StudioError, match="forelabel connect"):
        list(refresh(studio, label_studio.add_project()))
