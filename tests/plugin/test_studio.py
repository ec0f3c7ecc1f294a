from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from plugin import studio as studio_module
from plugin.errors import StudioError
from plugin.studio import Studio


def jwt(**claims: object) -> str:
    parts = ({"alg": "HS256", "typ": "JWT"}, claims)
    return (
        ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts) + ".c2ln"
    )


def test_importing_it_does_not_import_the_sdk() -> None:
    code = "import sys, plugin.studio, plugin.connect; sys.exit('label_studio_sdk' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("url", ["", "localhost:8080", "ftp://host", "http://"])
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(StudioError, match="write it like http://localhost:8080"):
        Studio(url, "token")


@pytest.mark.parametrize("token", ["", "  ", "two words", "line\nbreak", "schlüssel"])
def test_a_token_that_is_none(token: str) -> None:
    with pytest.raises(StudioError, match="personal access token"):
        Studio("http://studio.test", token)


def test_check_gives_the_version(studio: Studio) -> None:
    assert studio.check() == "1.23.2"


def test_a_wrong_token(label_studio) -> None:
    wrong = "f" * 40
    with pytest.raises(StudioError, match=r"Invalid token.*personal access token.*--enable-legacy-api-token") as caught:
        Studio("http://studio.test", wrong, httpx.MockTransport(label_studio)).check()
    assert caught.value.status == 401
    assert wrong not in str(caught.value)


@pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20")  # the SDK's own
def test_a_personal_access_token_is_exchanged(label_studio) -> None:
    access = jwt(token_type="access", exp=8102529037)
    label_studio.refuse["POST /api/token/refresh"] = httpx.Response(200, json={"access": access})
    label_studio.accepted = {f"Bearer {access}"}
    personal = Studio(
        "http://studio.test", jwt(token_type="refresh", exp=8102529037), httpx.MockTransport(label_studio)
    )
    assert personal.check() == "1.23.2"


@pytest.mark.parametrize("expires", [1000, 8102529037])
def test_a_personal_access_token_that_is_no_longer_good(label_studio, expires: int) -> None:
    old = jwt(token_type="refresh", exp=expires)
    with pytest.raises(StudioError, match="personal access token"):
        Studio("http://studio.test", old, httpx.MockTransport(label_studio)).check()


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (httpx.ConnectError("Connection refused"), "Connection refused.*Is it running"),
        (httpx.ReadTimeout(""), "ReadTimeout"),
        (httpx.Response(200, text="<html>hello</html>"), "a web page, not its API.*Is that its address"),
        (httpx.Response(404, json={}), "404.*Is that its address"),
        (httpx.Response(200, json={}), "names no release"),
        (httpx.Response(502, text="Bad gateway"), "502.*Bad gateway"),
    ],
)
def test_no_label_studio_there(studio: Studio, label_studio, answer: object, says: str) -> None:
    label_studio.refuse["GET /api/version"] = answer
    with pytest.raises(StudioError, match=says):
        studio.check()


def test_no_right_to_do_it(studio: Studio, label_studio) -> None:
    label_studio.refuse["POST /api/projects"] = httpx.Response(403, json={"detail": "You do not have permission."})
    with pytest.raises(StudioError, match=r"do not have permission.*may change the project"):
        studio.create_project("photos", "<View/>")


def test_errors_of_fields_are_named(studio: Studio) -> None:
    with pytest.raises(StudioError, match="title: Ensure this field has at least 3"):
        studio.create_project("ab", "<View/>")


def test_projects_are_found_by_their_whole_title(studio: Studio, label_studio) -> None:
    label_studio.add_project("photos of 2025")
    wanted = label_studio.add_project("photos")
    assert studio.projects("photos") == [(wanted, "photos")]
    assert len(studio.projects()) == 2


def test_photos_go_up_in_batches_and_keep_their_order(studio: Studio, label_studio, tmp_path: Path) -> None:
    project = label_studio.add_project()
    paths = [tmp_path / f"{number:03}.PNG" for number in range(120)]
    for path in paths:
        path.write_bytes(b"x")
    ids = studio.import_photos(project, paths)
    assert [label_studio.tasks[id_]["data"]["image"] for id_ in ids] == [path.name for path in paths]
    assert len(label_studio.changes()) == 3


def test_large_photos_go_up_in_smaller_batches(
    studio: Studio, label_studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(studio_module, "UPLOAD_BYTES", 10)
    paths = [tmp_path / f"{number}.jpg" for number in range(3)]
    for path, size in zip(paths, (4, 5, 40), strict=True):
        path.write_bytes(b"x" * size)
    assert len(studio.import_photos(label_studio.add_project(), paths)) == 3
    assert len(label_studio.changes()) == 2


def test_photos_that_label_studio_would_refuse_stop_all_before_the_first(studio: Studio, label_studio) -> None:
    with pytest.raises(StudioError, match=r"scan\.tiff.*\.jpg"):
        studio.import_photos(label_studio.add_project(), [Path("a.png"), Path("scan.tiff")])
    assert not label_studio.changes()


def test_a_photo_that_is_not_there(studio: Studio, label_studio) -> None:
    with pytest.raises(StudioError, match=r"Could not read a photo.*a\.png"):
        studio.import_photos(label_studio.add_project(), [Path("no/such/a.png")])


def test_tasks_come_back_page_by_page(studio: Studio, label_studio) -> None:
    project = label_studio.add_project()
    ids = studio.import_tasks(project, [{"image": f"{number}.png"} for number in range(1200)])
    tasks = list(studio.tasks(project))
    assert [task["id"] for task in tasks] == ids
    assert tasks[-1] == {"id": ids[-1], "data": {"image": "1199.png"}}


def test_a_last_page_that_is_full(studio: Studio, label_studio) -> None:
    project = label_studio.add_project()
    label_studio.add_tasks(project, 500)
    assert len(list(studio.tasks(project))) == 500


def test_predictions(studio: Studio, label_studio) -> None:
    project = label_studio.add_project()
    first, second, third = label_studio.add_tasks(project, 3)
    studio.retrieve_predictions(project, [first, third])
    assert studio.unpredicted(project) == [second]
    assert studio.unpredicted(project, among=[first, third]) == []
    assert studio.model_versions(project) == {"v1": 2}
    assert studio.predictions(project)[1] == {
        "id": 2, "task": third, "result": [], "score": 0.5, "model_version": "v1",
    }  # fmt: skip


def test_asking_about_no_task_does_not_ask_about_all(studio: Studio, label_studio) -> None:
    project = label_studio.add_project()
    label_studio.add_tasks(project, 3)
    studio.retrieve_predictions(project, [])
    assert not label_studio.predictions


def test_annotated_tasks_come_with_their_annotations_and_skips(studio: Studio, label_studio) -> None:
    project = label_studio.add_project()
    annotated, untouched, skipped, both = label_studio.add_tasks(project, 4)
    shown = label_studio.add_prediction(annotated, "v1")
    label_studio.add_prediction(untouched, "v1")
    label_studio.annotate(annotated, parent_prediction=shown)
    label_studio.annotate(skipped, cancelled=True)
    label_studio.annotate(both)
    label_studio.annotate(both, cancelled=True)
    tasks = list(studio.annotated_tasks(project))
    assert sorted((task["id"], len(task["annotations"])) for task in tasks) == [(annotated, 1), (skipped, 1), (both, 2)]
    found = {task.pop("id"): task for task in tasks}
    assert found[annotated] == {
        "data": {"image": "1.png"},
        "annotations": [
            {
                "result": [],
                "was_cancelled": False,
                "id": 1,
                "parent_prediction": shown,
                "prediction": label_studio.predictions[0],
            }
        ],
    }
    assert [a["prediction"] for task in (found[skipped], found[both]) for a in task["annotations"]] == [None] * 3


def test_tasks_that_are_opened_between_two_pages_hide_no_others(studio: Studio, label_studio) -> None:
    project = label_studio.add_project()
    ids = label_studio.add_tasks(project, 5)
    pages = studio._task_pages(project, "id", studio_module._UNTOUCHED, page_size=2)
    seen = [task["id"] for task in next(pages)]
    label_studio.annotate(ids[0])
    seen += [task["id"] for page in pages for task in page]
    assert seen == ids
    assert studio.untouched(project) == ids[1:]


def test_asking_for_no_task_in_particular_does_not_find_all(studio: Studio, label_studio) -> None:
    project = label_studio.add_project()
    label_studio.add_tasks(project, 3)
    assert studio.unpredicted(project, among=[]) == []
    assert studio.untouched_predictions(project, []) == {}


def test_deleting_what_somebody_else_has_deleted(studio: Studio, label_studio) -> None:
    (task,) = label_studio.add_tasks(label_studio.add_project(), 1)
    ids = [label_studio.add_prediction(task, "v1") for _ in range(2)]
    studio.delete_predictions(ids[:1])
    studio.delete_predictions(ids)
    assert not label_studio.predictions
    label_studio.refuse[f"DELETE /api/predictions/{ids[0]}"] = httpx.Response(403, json={"detail": "No."})
    with pytest.raises(StudioError, match="Could not delete prediction 1.*may change the project"):
        studio.delete_predictions(ids)


def test_what_a_project_is(studio: Studio, label_studio) -> None:
    project = label_studio.add_project(label_config="<View/>")
    assert studio.project_key(project) == "1.1795373435"
    assert studio.label_config(project) == "<View/>"
    with pytest.raises(StudioError, match="find project 9.*404"):
        studio.project_key(9)
