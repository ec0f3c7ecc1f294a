from __future__ import annotations

import base64

import httpx
import pytest

from plugin.connect import connect
from plugin.errors import LabelingConfigError, StudioError
from plugin.labeling_config import parse_labeling_config
from plugin.studio import Studio

BACKEND = "http://backend:9090"
LOGIN = "Basic " + base64.b64encode(b"user:pass").decode()


def test_a_new_project_is_connected(studio: Studio, label_studio) -> None:
    done = connect(studio, BACKEND, create="photos", template="image-tags", labels=["cat", "dog"])
    project = label_studio.projects[done.project_id]
    (control,) = parse_labeling_config(project["label_config"]).controls
    assert [label.value for label in control.labels] == ["cat", "dog"]
    (row,) = label_studio.backends.values()
    assert (row["url"], row["title"], row["is_interactive"]) == (BACKEND, "v1", False)
    assert project["model_version"] == done.model_version == "v1"
    assert done.project_url == f"http://studio.test/projects/{done.project_id}/data"
    assert [hook["url"] for hook in label_studio.webhooks.values()] == [f"{BACKEND}/webhook"]
    assert any("made project" in step for step in done.steps)


@pytest.mark.parametrize("login", [None, "user:pass"])
@pytest.mark.parametrize("slash", ["", "/"])
def test_run_twice_it_changes_nothing(studio: Studio, label_studio, login: str | None, slash: str) -> None:
    label_studio.backend_login = ("user", "pass") if login else None
    first = connect(studio, BACKEND, create="photos", basic_auth=login)
    label_studio.log.clear()
    again = connect(studio, BACKEND + slash, create="photos", basic_auth=login)
    assert again.project_id == first.project_id
    assert not label_studio.changes()
    assert sum("already" in step for step in again.steps) == 5


def test_the_webhook_gets_the_login(studio: Studio, label_studio) -> None:
    label_studio.backend_login = ("user", "pass")
    connect(studio, BACKEND, project=label_studio.add_project(), basic_auth="user:pass")
    (hook,) = label_studio.webhooks.values()
    assert hook["headers"] == {"Authorization": LOGIN}


def test_a_webhook_keeps_what_others_have_set(studio: Studio, label_studio) -> None:
    project = label_studio.add_project()
    label_studio.add_webhook(
        project, f"{BACKEND}/webhook", headers={"X-Team": "a"}, actions=["ANNOTATION_CREATED"], is_active=False
    )
    label_studio.backend_login = ("user", "pass")
    connect(studio, BACKEND, project=project, basic_auth="user:pass")
    (hook,) = label_studio.webhooks.values()
    assert hook["headers"] == {"X-Team": "a", "Authorization": LOGIN}
    assert hook["actions"] == ["ANNOTATION_CREATED"]
    assert hook["is_active"]


def test_the_webhook_is_not_told_of_added_labels(studio: Studio, label_studio) -> None:
    """Label Studio 1.23.2 would fail, and show the annotator an error."""
    connect(studio, BACKEND, project=label_studio.add_project())
    (hook,) = label_studio.webhooks.values()
    assert not hook["send_for_all_actions"]
    assert "ANNOTATION_CREATED" in hook["actions"]
    assert not [action for action in hook["actions"] if action.startswith("LABEL_LINK")]


def test_a_missing_webhook_is_made(studio: Studio, label_studio) -> None:
    project = label_studio.add_project()
    connect(studio, BACKEND, project=project)
    label_studio.webhooks.clear()
    done = connect(studio, BACKEND, project=project)
    (hook,) = label_studio.webhooks.values()
    assert (hook["url"], hook["send_for_all_actions"]) == (f"{BACKEND}/webhook", False)
    assert f"made the webhook {BACKEND}/webhook" in done.steps


def test_a_backend_that_moved_is_followed(studio: Studio, label_studio) -> None:
    project = label_studio.add_project()
    connect(studio, BACKEND, project=project)
    connect(studio, "http://elsewhere:9090", project=project)
    assert [row["url"] for row in label_studio.backends.values()] == ["http://elsewhere:9090"]
    assert [hook["url"] for hook in label_studio.webhooks.values()] == ["http://elsewhere:9090/webhook"]


def test_a_new_password_is_passed_on(studio: Studio, label_studio) -> None:
    project = label_studio.add_project()
    label_studio.backend_login = ("user", "old")
    connect(studio, BACKEND, project=project, basic_auth="user:old")
    label_studio.backend_login = ("user", "pass")
    connect(studio, BACKEND, project=project, basic_auth="user:pass")
    assert [row["basic_auth_pass"] for row in label_studio.backends.values()] == ["pass"]
    assert [hook["headers"] for hook in label_studio.webhooks.values()] == [{"Authorization": LOGIN}]


def test_a_new_model_version_becomes_the_title(studio: Studio, label_studio) -> None:
    project = label_studio.add_project()
    connect(studio, BACKEND, project=project)
    label_studio.backend_version = "v2"
    assert connect(studio, BACKEND, project=project).model_version == "v2"
    assert label_studio.backends[1]["title"] == label_studio.projects[project]["model_version"] == "v2"


def test_pre_labelling_is_switched_on(studio: Studio, label_studio) -> None:
    project = label_studio.add_project()
    label_studio.projects[project]["show_collab_predictions"] = False
    done = connect(studio, BACKEND, project=project)
    assert label_studio.projects[project]["show_collab_predictions"]
    assert "switched pre-labelling on with v1" in done.steps


def test_another_backend_is_not_pushed_aside(studio: Studio, label_studio) -> None:
    project = label_studio.add_project()
    label_studio.backends[1] = {
        "id": 1, "project": project, "url": "http://sam:9090", "title": "sam", "description": "", "auth_method": "NONE",
    }  # fmt: skip
    with pytest.raises(StudioError, match=r"'sam' at http://sam:9090.*Remove it"):
        connect(studio, BACKEND, project=project)
    assert not label_studio.changes()


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (
            403,
            {"detail": "URL resolves to a reserved network address (block: 127.0.0.0/8)"},
            "USE_DEFAULT_BANNED_SUBNETS=false",
        ),
        (
            400,
            {
                "validation_errors": {
                    "non_field_errors": ["Can't connect to ML backend, health check failed. <a>More</a>"]
                }
            },
            "forelabel serve.*host.docker.internal",
        ),
        (500, {"detail": "Can't resolve hostname backend"}, "cannot reach"),
        (
            400,
            {"validation_errors": {"non_field_errors": ["it doesn't look like a valid ML backend. Reason: 404"]}},
            "Is that its port",
        ),
        (
            400,
            {"validation_errors": {"non_field_errors": ["not a valid ML backend. Reason: 401 Client Error"]}},
            "FORELABEL_BASIC_AUTH",
        ),
        (403, {"detail": "You do not have permission."}, "may change the project"),
    ],
)
def test_what_to_do_when_label_studio_cannot_use_the_backend(
    studio: Studio, label_studio, status: int, body: dict[str, object], says: str
) -> None:
    label_studio.refuse["POST /api/ml"] = httpx.Response(status, json=body)
    with pytest.raises(StudioError, match=says) as caught:
        connect(studio, BACKEND, project=label_studio.add_project())
    assert "<a>" not in str(caught.value)


def test_a_backend_row_that_label_studio_left_behind_without_webhook(studio: Studio, label_studio) -> None:
    project = label_studio.add_project()
    connect(studio, BACKEND, project=project)
    label_studio.webhooks.clear()
    label_studio.refuse["POST /api/webhooks"] = httpx.Response(
        403, json={"detail": "URL resolves to a reserved network address (block: 10.0.0.0/8)"}
    )
    with pytest.raises(StudioError, match="USE_DEFAULT_BANNED_SUBNETS=false"):
        connect(studio, BACKEND, project=project)


def test_a_backend_that_asks_for_a_login(studio: Studio, label_studio) -> None:
    label_studio.backend_login = ("user", "pass")
    with pytest.raises(StudioError, match="FORELABEL_BASIC_AUTH=user:password"):
        connect(studio, BACKEND, project=label_studio.add_project(), basic_auth="user:wrong")


def test_a_project_that_is_not_there(studio: Studio, label_studio) -> None:
    with pytest.raises(StudioError, match="There is none at all: make one"):
        connect(studio, BACKEND, project=7)
    label_studio.add_project("photos")
    with pytest.raises(StudioError, match=r'no project 7 .* There are: 1 "photos"'):
        connect(studio, BACKEND, project=7)


def test_a_title_that_two_projects_have(studio: Studio, label_studio) -> None:
    label_studio.add_project("photos")
    label_studio.add_project("photos")
    with pytest.raises(StudioError, match=r"2 projects.*--project \(2, 1\)"):
        connect(studio, BACKEND, create="photos")


def test_a_project_that_cannot_be_answered_is_left_alone(studio: Studio, label_studio) -> None:
    project = label_studio.add_project(label_config="<View/>")
    with pytest.raises(LabelingConfigError, match=f"Project {project} cannot be pre-labelled.*no <Image>"):
        connect(studio, BACKEND, project=project)
    assert not label_studio.changes()


def test_a_backend_without_model_version(studio: Studio, label_studio) -> None:
    label_studio.backend_version = ""
    with pytest.raises(StudioError, match="names no model_version"):
        connect(studio, BACKEND, project=label_studio.add_project())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"backend_url": "localhost:9090", "project": 1}, "write it like http://localhost:9090"),
        ({"backend_url": BACKEND}, "which project"),
        ({"backend_url": BACKEND, "project": 1, "create": "photos"}, "which project"),
        ({"backend_url": BACKEND, "project": 1, "basic_auth": "secret"}, "user:password"),
    ],
)
def test_arguments_that_make_no_sense(studio: Studio, arguments: dict[str, object], says: str) -> None:
    with pytest.raises(StudioError, match=says):
        connect(studio, **arguments)
