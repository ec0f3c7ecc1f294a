"""Connect a backend to a project of Label Studio, so that its tasks are pre-labelled. Run twice, it changes nothing."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from plugin.errors import LabelingConfigError, StudioError
from plugin.labeling_config import config_from_template, parse_labeling_config
from plugin.studio import Studio

_MARK = "Forelabel"
"""The description of our backend rows: how one is recognised after its address or title has changed."""

_ACTIONS = (
    "ANNOTATION_CREATED",
    "ANNOTATIONS_CREATED",
    "ANNOTATION_UPDATED",
    "ANNOTATIONS_DELETED",
    "TASKS_DELETED",
    "PROJECT_UPDATED",
)
"""What the webhook is told. Label Studio's own is told all, for which it waits each time; and telling one of a label
that an annotator adds to a Taxonomy, Label Studio 1.23.2 fails ("list.count() takes exactly one argument") and shows
the annotator that error."""


@dataclass(frozen=True)
class Connection:
    project_id: int
    project_url: str
    model_version: str
    steps: tuple[str, ...]
    """What was done, a line each; "already ..." where nothing was to do."""


def connect(
    studio: Studio,
    backend_url: str,
    *,
    project: int | None = None,
    create: str | None = None,
    template: str = "image-classification",
    labels: Sequence[str] = (),
    basic_auth: str | None = None,
) -> Connection:
    """Make or take a project, and have Label Studio ask the backend about its tasks.

    Args:
        backend_url: the backend's address as Label Studio reaches it.
        project: the id of a project to attach.
        create: the title of a project to make, or to attach where there is one of that title.
        template: the labeling config of a project that is made: a bundled template or an .xml file.
        labels: in place of the template's own.
        basic_auth: "user:password" that the backend asks for.

    Raises:
        StudioError: Label Studio is not there, refuses the token, cannot reach the backend, ...
        LabelingConfigError: nothing in the project's labeling config can be answered.
    """
    backend_url = backend_url.strip().rstrip("/")
    if not re.match(r"https?://[^/]", backend_url):
        raise StudioError(f"The backend's address is {backend_url!r}; write it like http://localhost:9090.")
    if (project is None) == (create is None):
        raise StudioError(
            "Say either which project to attach (--project N) or the title of one to make (--create TITLE)."
        )
    if basic_auth and ":" not in basic_auth:
        raise StudioError('The backend\'s login must read "user:password".')
    steps = [f"found Label Studio {studio.check()} at {studio.url}"]
    if project is not None:
        project_id = _attach(studio, project, steps)
    else:
        project_id = _make(studio, create or "", template, labels, steps)
    settings = _project(studio, project_id)
    try:
        parse_labeling_config(settings.label_config or "")
    except LabelingConfigError as error:
        raise LabelingConfigError(f"Project {project_id} cannot be pre-labelled. {error}") from error
    row = _connect_backend(studio, project_id, backend_url, basic_auth, steps)
    _connect_webhook(studio, project_id, backend_url, basic_auth, steps)
    _switch_on(studio, project_id, row.title, steps)
    return Connection(project_id, f"{studio.url}/projects/{project_id}/data", row.title, tuple(steps))


def _attach(studio: Studio, project_id: int, steps: list[str]) -> int:
    title = _project(studio, project_id).title
    steps.append(f'found project {project_id} "{title}"')
    return project_id


def _make(studio: Studio, title: str, template: str, labels: Sequence[str], steps: list[str]) -> int:
    found = studio.projects(title)
    if len(found) > 1:
        ids = ", ".join(str(project_id) for project_id, _ in found)
        raise StudioError(
            f"There are {len(found)} projects with the title {title!r}: say which with --project ({ids})."
        )
    if found:
        steps.append(f'project {found[0][0]} "{title}" was already there; its labels are left as they are')
        return found[0][0]
    project_id = studio.create_project(title, config_from_template(template, labels))
    steps.append(f'made project {project_id} "{title}" from the template {template}')
    return project_id


def _project(studio: Studio, project_id: int) -> Any:
    try:
        return studio.call(f"find project {project_id}", lambda sdk: sdk.projects.get(project_id))
    except StudioError as error:
        if error.status != 404:
            raise
        known = ", ".join(f'{id_} "{title}"' for id_, title in studio.projects()[:10])
        raise StudioError(
            f"There is no project {project_id} at {studio.url}. "
            + (f"There are: {known}." if known else "There is none at all: make one with --create TITLE."),
            error.status,
            error.detail,
        ) from error


def _connect_backend(studio: Studio, project_id: int, url: str, basic_auth: str | None, steps: list[str]) -> Any:
    """The backend's row, its title equal to the model version: Label Studio only shows predictions of a version that is
    the project's, and only takes a backend for live if its title is."""
    row = _our_backend(studio, project_id, url)
    wanted: dict[str, Any] = {"project": project_id, "url": url, "is_interactive": False, "auth_method": "NONE"}
    if basic_auth:
        user, _, password = basic_auth.partition(":")
        wanted |= {"auth_method": "BASIC_AUTH", "basic_auth_user": user, "basic_auth_pass": password}
    visible = {name: value for name, value in wanted.items() if name != "basic_auth_pass"}
    if row is None:
        row = _ask(studio, url, lambda sdk: sdk.ml.create(**wanted, title=_MARK, description=_MARK))
        steps.append(f"connected the backend at {url}")
    # Listing it, Label Studio has just asked it with the stored password: Connected means that one is right, too.
    elif row.state == "CO" and all(getattr(row, name) == value for name, value in visible.items()):
        steps.append(f"the backend at {url} was already connected")
    else:
        old_url = row.url.rstrip("/")
        row = _ask(studio, url, lambda sdk: sdk.ml.update(row.id, **wanted, title=row.title))
        if old_url != url:
            _move_webhook(studio, project_id, f"{old_url}/webhook", f"{url}/webhook")
        steps.append(f"updated the backend at {url}")
    version = row.model_version
    if not version:
        raise StudioError(
            f"The backend at {url} names no model_version. Is it Forelabel's? Run `forelabel serve` there."
        )
    if _model(row.title) == _model(version):
        # What follows moves with the confirmed labels: `forelabel refresh` makes the two agree.
        steps.append(f"its title was already its model version, {row.title}")
        return row
    steps.append(f"set its title to its model version, {version}")
    return _ask(studio, url, lambda sdk: sdk.ml.update(row.id, **wanted, title=version))


def _model(version: str) -> str:
    """A version without the number that moves with the confirmed labels."""
    return re.sub(r"\+\d+$", "", version)


def _our_backend(studio: Studio, project_id: int, url: str) -> Any:
    """The row at this address, else the one that an earlier run has marked; None where there is none at all."""
    rows = studio.call(f"list the backends of project {project_id}", lambda sdk: sdk.ml.list(project=project_id))
    rows = sorted(rows, key=lambda row: int(row.id))
    ours = [row for row in rows if row.url.rstrip("/") == url] or [row for row in rows if row.description == _MARK]
    if rows and rows[0] not in ours:
        raise StudioError(
            f"Project {project_id} already has another ML backend, {rows[0].title!r} at {rows[0].url}, and "
            "Label Studio only asks the first. Remove it in the project's Settings > Model, then run this again."
        )
    return rows[0] if rows else None


def _move_webhook(studio: Studio, project_id: int, old: str, new: str) -> None:
    """Label Studio leaves the old webhook behind, which would delay every submit by a second."""
    hooks = _webhooks(studio, project_id)
    if any(hook.url == new for hook in hooks):
        return
    hook = next((hook for hook in hooks if hook.url == old), None)
    if hook is not None:
        studio.call("move the webhook", lambda sdk: sdk.webhooks.update(hook.id, url=new, actions=hook.actions))


def _connect_webhook(studio: Studio, project_id: int, url: str, basic_auth: str | None, steps: list[str]) -> None:
    """Label Studio makes the webhook together with the backend, but sends it no login, and more than is used."""
    target = f"{url}/webhook"
    login = {"Authorization": "Basic " + base64.b64encode(basic_auth.encode()).decode()} if basic_auth else {}
    hook = next((hook for hook in _webhooks(studio, project_id) if hook.url.rstrip("/") == target), None)
    if hook is None:
        _ask(
            studio,
            url,
            lambda sdk: sdk.webhooks.create(
                url=target,
                project=project_id,
                headers=login,
                send_payload=True,
                send_for_all_actions=False,
                actions=_ACTIONS,
            ),
        )
        steps.append(f"made the webhook {target}")
        return
    headers = {name: value for name, value in (hook.headers or {}).items() if name != "Authorization"} | login
    if hook.headers == headers and hook.is_active and hook.send_payload and not hook.send_for_all_actions:
        steps.append(f"the webhook {target} was already there" + (" with the login" if login else ""))
        return
    studio.call(
        "update the webhook",
        # Without `actions` Label Studio would forget the chosen ones.
        lambda sdk: sdk.webhooks.update(
            hook.id,
            headers=headers,
            is_active=True,
            send_payload=True,
            send_for_all_actions=False,
            actions=_ACTIONS if hook.send_for_all_actions else hook.actions,
        ),
    )
    login_sent = "the login" if login else "no login"
    steps.append(f"the webhook {target} now sends {login_sent}, and only what Forelabel uses")


def _webhooks(studio: Studio, project_id: int) -> Any:
    return studio.call(
        f"list the webhooks of project {project_id}", lambda sdk: sdk.webhooks.list(project=str(project_id))
    )


def _switch_on(studio: Studio, project_id: int, version: str, steps: list[str]) -> None:
    """ "Use predictions to prelabel tasks", with this version."""
    settings = _project(studio, project_id)
    if settings.show_collab_predictions and settings.model_version == version:
        steps.append(f"pre-labelling with {version} was already on")
        return
    studio.call(
        f"switch pre-labelling on in project {project_id}",
        lambda sdk: sdk.projects.update(project_id, show_collab_predictions=True, model_version=version),
    )
    steps.append(f"switched pre-labelling on with {version}")


def _ask(studio: Studio, backend_url: str, request: Callable[[Any], Any]) -> Any:
    """A call for which Label Studio tries the backend; what it says when that fails is put into what to do."""
    try:
        return studio.call(f"connect the backend at {backend_url}", request)
    except StudioError as error:
        advice = _advice(error, backend_url)
        if advice is None:
            raise
        raise StudioError(f"{advice} (Label Studio said: {error.detail})", error.status, error.detail) from error


def _advice(error: StudioError, url: str) -> str | None:
    said = error.detail.lower()
    if error.status == 403 and ("reserved network address" in said or "url was not allowed" in said):
        return (
            f"Label Studio refuses to call {url}, since its address is private or this machine's own. Start Label "
            "Studio with USE_DEFAULT_BANNED_SUBNETS=false in its environment, then run this again. "
            "ML_BLOCK_LOCAL_IP=false alone is not enough."
        )
    if "authentication parameters" in said or "401" in said or "unauthorized" in said:
        return (
            f"The backend at {url} asks for another login. Pass the one it was started with, "
            "FORELABEL_BASIC_AUTH=user:password."
        )
    if "health check failed" in said or "resolve hostname" in said:
        return (
            f"Label Studio cannot reach a backend at {url}. Start it with `forelabel serve`, and give the address as "
            "Label Studio's machine sees it: in a container, localhost is the container itself; use the service's name "
            "(http://backend:9090) or http://host.docker.internal:9090, and serve with --host 0.0.0.0."
        )
    if "valid ml backend" in said:
        return f"What answers at {url} refused this project. Is that its port? See the log of `forelabel serve`."
    return None
