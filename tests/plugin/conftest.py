"""A Label Studio small enough to read: what 1.23.2 was seen to do, for the calls that plugin makes."""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from plugin.studio import Studio

LEGACY_TOKEN = "0123456789abcdef0123456789abcdef01234567"
CONFIG = '<View><Image name="i" value="$image"/><Choices name="c" toName="i"><Choice value="cat"/></Choices></View>'


class FakeStudio:
    """Routes requests to its methods; `refuse` overrules one, `log` has every request."""

    def __init__(self) -> None:
        self.projects: dict[int, dict[str, Any]] = {}
        self.backends: dict[int, dict[str, Any]] = {}
        self.webhooks: dict[int, dict[str, Any]] = {}
        self.tasks: dict[int, dict[str, Any]] = {}
        self.predictions: list[dict[str, Any]] = []
        self.stored = 0
        self.annotations = 0
        self.on_retrieval: Callable[[], None] = lambda: None
        self.backend_version = "v1"
        self.backend_login: tuple[str, str] | None = None
        self.predictable: Callable[[int], bool] = lambda task_id: True
        self.refuse: dict[str, httpx.Response | Exception] = {}
        self.log: list[tuple[str, str]] = []
        self.accepted = {f"Token {LEGACY_TOKEN}"}

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path.rstrip("/")
        self.log.append((request.method, path))
        refusal = self.refuse.get(f"{request.method} {path}")
        if isinstance(refusal, Exception):
            raise refusal
        if refusal is not None:
            return refusal
        if path == "/api/version":
            return httpx.Response(200, json={"release": "1.23.2"})
        if path == "/api/token/refresh":
            return httpx.Response(401, json={"detail": "Token is invalid"})
        if request.headers.get("Authorization") not in self.accepted:
            return httpx.Response(401, json={"detail": "Invalid token."})
        content_type = request.headers.get("Content-Type", "")
        body = json.loads(request.content) if "json" in content_type and request.content else request.content
        for pattern, method in self._routes().items():
            verb, _, route = pattern.partition(" ")
            if verb == request.method and (match := re.fullmatch(route, path)):
                return method(*map(int, match.groups()), body=body, params=request.url.params)
        return httpx.Response(404, text="<!doctype html>\n<html><body>404</body></html>")

    def changes(self) -> list[tuple[str, str]]:
        return [entry for entry in self.log if entry[0] != "GET"]

    def _routes(self) -> dict[str, Callable[..., httpx.Response]]:
        return {
            "GET /api/current-user/whoami": lambda **_: httpx.Response(200, json={"id": 1, "email": "a@b.c"}),
            "GET /api/projects": self._list_projects,
            "POST /api/projects": self._create_project,
            r"GET /api/projects/(\d+)": self._project,
            r"PATCH /api/projects/(\d+)": self._update_project,
            r"POST /api/projects/(\d+)/import": self._import,
            r"GET /api/projects/(\d+)/model-versions": self._model_versions,
            "GET /api/ml": self._list_backends,
            "POST /api/ml": self._create_backend,
            r"PATCH /api/ml/(\d+)": self._update_backend,
            "GET /api/webhooks": self._list_webhooks,
            "POST /api/webhooks": self._create_webhook,
            r"PATCH /api/webhooks/(\d+)": self._update_webhook,
            "GET /api/tasks": self._list_tasks,
            "POST /api/dm/actions": self._retrieve,
            "GET /api/predictions": self._list_predictions,
            r"PATCH /api/predictions/(\d+)": self._update_prediction,
            r"DELETE /api/predictions/(\d+)": self._delete_prediction,
        }

    def add_project(self, title: str = "photos", label_config: str = CONFIG) -> int:
        id_ = len(self.projects) + 1
        self.projects[id_] = {
            "id": id_,
            "title": title,
            "created_at": "2026-11-22T18:50:35.987654Z",
            "label_config": label_config,
            "model_version": "",
            "show_collab_predictions": True,
        }
        return id_

    def add_tasks(self, project: int, count: int) -> list[int]:
        ids = [len(self.tasks) + number for number in range(1, count + 1)]
        self.tasks |= {
            id_: {"id": id_, "project": project, "data": {"image": f"{id_}.png"}, "annotations": [], "draft": False}
            for id_ in ids
        }
        return ids

    def annotate(self, task_id: int, cancelled: bool = False, parent_prediction: int | None = None) -> None:
        self.annotations += 1
        self.tasks[task_id]["annotations"].append(
            {"id": self.annotations, "was_cancelled": cancelled, "parent_prediction": parent_prediction, "result": []}
        )

    def add_prediction(self, task_id: int, model_version: str) -> int:
        self.stored += 1
        self.predictions.append(
            {"id": self.stored, "task": task_id, "result": [], "score": 0.5, "model_version": model_version}
        )
        return self.stored

    def _list_projects(self, *, body: Any, params: httpx.QueryParams) -> httpx.Response:
        if int(params.get("page", 1)) > 1:
            return httpx.Response(404, json={"detail": "Invalid page."})
        part = params.get("title", "")
        found = [p for p in reversed(self.projects.values()) if part.lower() in p["title"].lower()]
        return httpx.Response(200, json={"count": len(found), "next": None, "previous": None, "results": found})

    def _create_project(self, *, body: Any, params: Any) -> httpx.Response:
        if len(body["title"]) < 3:
            return _invalid(title="Ensure this field has at least 3 characters.")
        return httpx.Response(201, json=self.projects[self.add_project(body["title"], body["label_config"])])

    def _project(self, id_: int, *, body: Any, params: Any) -> httpx.Response:
        if id_ not in self.projects:
            return httpx.Response(404, json={"detail": "No Project matches the given query."})
        return httpx.Response(200, json=self.projects[id_])

    def _update_project(self, id_: int, *, body: Any, params: Any) -> httpx.Response:
        if body["model_version"] not in {row["title"] for row in self.backends.values()}:
            return _invalid(model_version="Model version doesn't exist.")
        self.projects[id_] |= body
        return httpx.Response(200, json=self.projects[id_])

    def _import(self, id_: int, *, body: Any, params: Any) -> httpx.Response:
        if isinstance(body, bytes):
            names = re.findall(rb'filename="([^"]+)"', body)
            data = [{"image": name.decode()} for name in names]
        else:
            data = body
        ids = self.add_tasks(id_, len(data))
        for task_id, values in zip(ids, data, strict=True):
            self.tasks[task_id]["data"] = values
        return httpx.Response(201, json={"task_count": len(ids), "task_ids": ids})

    def _model_versions(self, id_: int, *, body: Any, params: Any) -> httpx.Response:
        return httpx.Response(200, json={"v1": len(self.predictions)} if self.predictions else {})

    def _login_is_right(self, row: dict[str, Any]) -> bool:
        given = (row.get("basic_auth_user"), row.get("basic_auth_pass")) if row["auth_method"] != "NONE" else None
        return given == self.backend_login

    def _list_backends(self, *, body: Any, params: httpx.QueryParams) -> httpx.Response:
        rows = [row for row in self.backends.values() if row["project"] == int(params["project"])]
        for row in rows:
            if not row.get("broken"):
                row["state"] = "CO" if self._login_is_right(row) else "DI"
                row["model_version"] = self.backend_version
        return httpx.Response(200, json=[{k: v for k, v in row.items() if k != "basic_auth_pass"} for row in rows])

    def _save_backend(self, row: dict[str, Any]) -> httpx.Response | None:
        if not self._login_is_right(row):
            return _invalid(
                non_field_errors="Able to connect to ML Server, but authentication parameters were either not provided "
                "or are incorrect."
            )
        row |= {"state": "CO", "readable_state": "Connected", "model_version": self.backend_version}
        self.backends[row["id"]] = row
        return None

    def _create_backend(self, *, body: Any, params: Any) -> httpx.Response:
        row = {"id": len(self.backends) + 1, "error_message": None, **body}
        if refused := self._save_backend(row):
            return refused
        project = self.projects[body["project"]]
        project["model_version"] = project["model_version"] or body["title"]
        hook = f"{body['url'].rstrip('/')}/webhook"
        if hook not in {known["url"] for known in self.webhooks.values()}:
            self.add_webhook(body["project"], hook)
        return httpx.Response(201, json=row)

    def _update_backend(self, id_: int, *, body: Any, params: Any) -> httpx.Response:
        if "url" not in body or "project" not in body:
            return httpx.Response(500, json={"detail": "missing 1 required positional argument: 'url'"})
        old = self.backends[id_]
        project = self.projects[old["project"]]
        # Tried with what was sent alone; an empty password stands for the one that is kept.
        sent = {"auth_method": "NONE", **body}
        sent["basic_auth_pass"] = body.get("basic_auth_pass") or old.get("basic_auth_pass")
        if not self._login_is_right(sent):
            return _invalid(non_field_errors="Reason: 401 Client Error: Unauthorized")
        if refused := self._save_backend(old | sent):
            return refused
        if project["model_version"] == old["title"]:
            project["model_version"] = body["title"]
        return httpx.Response(200, json=self.backends[id_])

    def add_webhook(self, project: int, url: str, **fields: Any) -> None:
        id_ = len(self.webhooks) + 1
        defaults = {"headers": {}, "is_active": True, "send_payload": True, "actions": []}
        defaults["send_for_all_actions"] = "actions" not in fields
        self.webhooks[id_] = {"id": id_, "project": project, "url": url} | defaults | fields

    def _list_webhooks(self, *, body: Any, params: httpx.QueryParams) -> httpx.Response:
        hooks = [hook for hook in self.webhooks.values() if hook["project"] == int(params["project"])]
        return httpx.Response(200, json=hooks)

    def _create_webhook(self, *, body: Any, params: Any) -> httpx.Response:
        self.add_webhook(**body)
        return httpx.Response(201, json=self.webhooks[len(self.webhooks)])

    def _update_webhook(self, id_: int, *, body: Any, params: Any) -> httpx.Response:
        self.webhooks[id_] |= {"actions": []} | body
        return httpx.Response(200, json=self.webhooks[id_])

    def _list_tasks(self, *, body: Any, params: httpx.QueryParams) -> httpx.Response:
        query = json.loads(params["query"])
        selected = query.get("selectedItems", {}).get("included") or self.tasks
        found = [
            task
            for id_, task in sorted(self.tasks.items())
            if task["project"] == int(params["project"]) and id_ in selected and self._meets(task, query["filters"])
        ]
        # It is about the tasks and about the annotations in them.
        include = set(params["include"].split(","))
        tasks = []
        for task in found[: int(params["page_size"])]:
            shown = {key: task[key] for key in ("id", "data") if key in include}
            if params["fields"] == "all" and "annotations" in include:
                shown["annotations"] = [
                    {key: value for key, value in annotation.items() if key in include}
                    for annotation in task["annotations"]
                ]
            if params["fields"] == "all" and "predictions" in include:
                shown["predictions"] = self.predictions_of(task["id"])
            tasks.append(shown)
        return httpx.Response(200, json={"total": len(found), "tasks": tasks})

    def _meets(self, task: dict[str, Any], filters: dict[str, Any]) -> bool:
        assert filters["conjunction"] == "and"
        cancelled = [annotation["was_cancelled"] for annotation in task["annotations"]]
        columns = {
            "id": task["id"],
            "total_predictions": len(self.predictions_of(task["id"])),
            "total_annotations": cancelled.count(False),
            "cancelled_annotations": cancelled.count(True),
            "draft_exists": task["draft"],
        }
        operators: dict[str, Callable[[Any, Any], bool]] = {"equal": operator.eq, "greater": operator.gt}
        return all(
            operators[item["operator"]](columns[item["filter"].removeprefix("filter:tasks:")], item["value"])
            for item in filters["items"]
        )

    def predictions_of(self, task_id: int) -> list[dict[str, Any]]:
        return [prediction for prediction in self.predictions if prediction["task"] == task_id]

    def _retrieve(self, *, body: Any, params: httpx.QueryParams) -> httpx.Response:
        self.on_retrieval()
        asked = body["selectedItems"]["included"] or list(self.tasks)
        for task_id in asked:
            there = {prediction["model_version"] for prediction in self.predictions_of(task_id)}
            if self.backend_version not in there and self.predictable(task_id):
                self.add_prediction(task_id, self.backend_version)
        return httpx.Response(
            200, json={"processed_items": len(asked), "detail": f"Retrieved {len(asked)} predictions"}
        )

    def _update_prediction(self, id_: int, *, body: Any, params: Any) -> httpx.Response:
        prediction = next(prediction for prediction in self.predictions if prediction["id"] == id_)
        prediction |= body
        return httpx.Response(200, json=prediction)

    def _delete_prediction(self, id_: int, *, body: Any, params: Any) -> httpx.Response:
        left = [prediction for prediction in self.predictions if prediction["id"] != id_]
        if len(left) == len(self.predictions):
            return httpx.Response(404, json={"detail": "No Prediction matches the given query."})
        self.predictions = left
        return httpx.Response(204)

    def _list_predictions(self, *, body: Any, params: Any) -> httpx.Response:
        return httpx.Response(200, json=self.predictions)


def _invalid(**fields: str) -> httpx.Response:
    errors = {name: [text] for name, text in fields.items()}
    return httpx.Response(400, json={"detail": "Validation error", "validation_errors": errors})


@pytest.fixture
def label_studio() -> FakeStudio:
    return FakeStudio()


@pytest.fixture
def studio(label_studio: FakeStudio) -> Iterator[Studio]:
    studio = Studio("http://studio.test/", LEGACY_TOKEN, httpx.MockTransport(label_studio))
    yield studio
    studio.close()
