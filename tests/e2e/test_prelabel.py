"""What an annotator and a project's owner see: a real Label Studio, driven over its API and in Chromium."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver

from backend.demo_photos import SAMPLE_LABELS
from plugin.connect import Connection, connect
from plugin.errors import StudioError
from plugin.studio import Studio
from tests.e2e.harness import (
    BASIC_AUTH,
    CAT,
    FLOWER,
    MOTORCYCLE,
    Backend,
    annotations_of,
    eventually,
    open_task,
    prelabel_all,
    screenshot,
    submit,
    ticked,
)


def make_project(studio: Studio, backend: Backend, title: str, labels: Sequence[str] = SAMPLE_LABELS) -> Connection:
    return connect(studio, backend.url, create=title, labels=labels, basic_auth=BASIC_AUTH)


def chosen(prediction: dict[str, Any]) -> list[str]:
    (region,) = prediction["result"]
    choices: list[str] = region["value"]["choices"]
    return choices


def test_a_suggestion_is_ticked_submitted_and_reported_back(
    studio: Studio, backend: Backend, browser: webdriver.Chrome, tmp_path: Path
) -> None:
    project_id = make_project(studio, backend, "Suggestion to annotation").project_id
    cat, motorcycle = studio.import_photos(project_id, [CAT, MOTORCYCLE])
    predictions = prelabel_all(studio, project_id)
    assert predictions.keys() == {cat, motorcycle}
    suggested = chosen(predictions[motorcycle])
    assert len(suggested) == 1
    assert suggested[0] in SAMPLE_LABELS
    assert 0 < predictions[motorcycle]["score"] <= 1

    assert open_task(browser, studio, project_id, motorcycle, tmp_path, ticked) == suggested
    screenshot(browser, tmp_path, "prelabelled-task.png")

    webhooks = backend.metric("forelabel_webhooks_total", action="ANNOTATION_CREATED")
    submit(browser)
    (annotation,) = eventually(lambda: annotations_of(studio, motorcycle))
    assert annotation.result[0]["value"]["choices"] == suggested
    assert annotation.result[0]["origin"] == "prediction"
    assert annotation.parent_prediction == predictions[motorcycle]["id"]
    eventually(lambda: backend.metric("forelabel_webhooks_total", action="ANNOTATION_CREATED") == webhooks + 1)
    assert backend.metric("forelabel_requests_total", status="401") == 0
    assert len(studio.predictions(project_id)) == 2


def test_one_unreadable_photo_harms_no_other(studio: Studio, backend: Backend, tmp_path: Path) -> None:
    truncated, text, empty = (tmp_path / name for name in ("truncated.jpg", "text.jpg", "tiny.png"))
    truncated.write_bytes(FLOWER.read_bytes()[:600])
    text.write_text("this is not a picture")
    empty.write_bytes(b"\x89PNG\r\n\x1a\n")
    project_id = make_project(studio, backend, "One unreadable photo").project_id
    ids = studio.import_photos(project_id, [CAT, truncated, FLOWER, text, MOTORCYCLE, empty])
    unreadable = backend.metric("forelabel_images_unreadable_total")
    predictions = prelabel_all(studio, project_id)
    assert set(predictions) == {ids[0], ids[2], ids[4]}
    assert sorted(studio.unpredicted(project_id)) == [ids[1], ids[3], ids[5]]
    assert backend.metric("forelabel_images_unreadable_total") >= unreadable + 3
    assert backend.metric("forelabel_requests_total", route="/predict", status="500") == 0


def test_projects_side_by_side_keep_to_their_own_labels(studio: Studio, backend: Backend) -> None:
    sets = {"Animals": ("cat", "dog", "horse"), "Vehicles": ("car", "motorcycle", "bus")}
    projects = {name: make_project(studio, backend, name, labels).project_id for name, labels in sets.items()}
    for project_id in projects.values():
        studio.import_photos(project_id, [CAT, MOTORCYCLE])
    for name, project_id in projects.items():
        for prediction in prelabel_all(studio, project_id).values():
            assert chosen(prediction)[0] in sets[name]


def test_the_same_photo_again_comes_from_the_cache(studio: Studio, backend: Backend) -> None:
    project_id = make_project(studio, backend, "Same photo again").project_id
    studio.import_photos(project_id, [FLOWER])
    first = prelabel_all(studio, project_id)
    hits, misses = (backend.metric("forelabel_cache_lookups_total", outcome=kind) for kind in ("hit", "miss"))
    (again,) = studio.import_photos(project_id, [FLOWER])
    second = prelabel_all(studio, project_id)
    assert chosen(second[again]) == chosen(next(iter(first.values())))
    assert backend.metric("forelabel_cache_lookups_total", outcome="hit") == hits + 1
    assert backend.metric("forelabel_cache_lookups_total", outcome="miss") == misses


def test_a_config_without_choices_is_refused_on_connecting(studio: Studio, backend: Backend) -> None:
    """In Label Studio's own dialogue, too: it drops the reason, but adds that the config may be at fault."""
    config = (
        '<View><Image name="image" value="$image"/><RectangleLabels name="box" toName="image">'
        '<Label value="cat"/></RectangleLabels></View>'
    )
    project_id = studio.create_project("No choices", config)
    user, password = BASIC_AUTH.split(":")
    with pytest.raises(StudioError, match=r"422 Client Error.*current labeling configuration"):
        studio.call(
            "connect",
            lambda sdk: sdk.ml.create(
                project=project_id,
                url=backend.url,
                auth_method="BASIC_AUTH",
                basic_auth_user=user,
                basic_auth_pass=password,
            ),
        )


def test_connecting_again_changes_nothing(studio: Studio, backend: Backend) -> None:
    first = make_project(studio, backend, "Connected twice")
    again = make_project(studio, backend, "Connected twice")
    assert again.project_id == first.project_id
    assert again.model_version == first.model_version
    assert all("already" in step for step in again.steps[1:]), again.steps
    rows = studio.call("list backends", lambda sdk: sdk.ml.list(project=first.project_id))
    hooks = studio.call("list webhooks", lambda sdk: sdk.webhooks.list(project=str(first.project_id)))
    assert (len(rows), len(hooks)) == (1, 1)
