from __future__ import annotations

import pytest

from plugin.connect import connect
from plugin.errors import StudioError
from plugin.prelabel import Progress, prelabel
from plugin.studio import Studio

BACKEND = "http://backend:9090"


@pytest.fixture
def project(studio: Studio, label_studio) -> int:
    project = int(label_studio.add_project())
    connect(studio, BACKEND, project=project)
    return project


def retrievals(label_studio) -> int:
    return sum(path == "/api/dm/actions" for _, path in label_studio.log)


def test_every_task_is_asked_for_in_chunks(studio: Studio, label_studio, project: int) -> None:
    label_studio.add_tasks(project, 25)
    assert list(prelabel(studio, project, chunk_size=10)) == [
        Progress(25, 0, 0),
        Progress(25, 10, 10),
        Progress(25, 20, 20),
        Progress(25, 25, 25),
    ]
    assert list(prelabel(studio, project)) == [Progress(0, 0, 0)]


def test_unreadable_images_are_asked_for_once_more_and_then_left(studio: Studio, label_studio, project: int) -> None:
    bad = set(label_studio.add_tasks(project, 10)[:4])
    label_studio.predictable = lambda task_id: task_id not in bad
    assert list(prelabel(studio, project, chunk_size=5))[-1] == Progress(10, 10, 6)
    assert retrievals(label_studio) == 3


def test_what_did_not_fit_into_the_time_is_asked_for_again(studio: Studio, label_studio, project: int) -> None:
    label_studio.add_tasks(project, 10)
    label_studio.predictable = lambda task_id: task_id <= 4 * retrievals(label_studio)
    assert list(prelabel(studio, project, chunk_size=10))[-1] == Progress(10, 10, 10)
    assert retrievals(label_studio) == 3


def test_a_backend_that_is_lost_on_the_way_stops_it(studio: Studio, label_studio, project: int) -> None:
    label_studio.add_tasks(project, 30)

    def crash(task_id: int) -> bool:
        if task_id > 10:
            label_studio.backends[1] |= {"broken": True, "state": "DI", "readable_state": "Disconnected"}
        return task_id <= 10

    label_studio.predictable = crash
    with pytest.raises(StudioError, match=r"lost the backend at http://backend:9090.*forelabel serve"):
        list(prelabel(studio, project, chunk_size=10))
    assert retrievals(label_studio) == 2


def test_a_project_without_backend(studio: Studio, label_studio) -> None:
    with pytest.raises(StudioError, match="forelabel connect"):
        list(prelabel(studio, label_studio.add_project()))
