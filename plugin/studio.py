"""The few calls to Label Studio that are made, over label-studio-sdk.

The SDK takes seconds to import and brings forty packages, so it is imported at the first call. It is the extra
`studio`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import httpx

from plugin.annotations import project_key
from plugin.errors import StudioError

if TYPE_CHECKING:
    from label_studio_sdk import LabelStudio

T = TypeVar("T")

CHUNK_SIZE = 50
"""Label Studio hands all the tasks of one "Retrieve predictions" to the backend in one request, which it drops after
100 s, and the proxy before it usually after 60 s: 50 tasks leave a slow encoder about a second for each."""

UPLOAD_FILES = 50
"""Label Studio refuses more than 100 files in one request."""
UPLOAD_BYTES = 64_000_000
"""Label Studio refuses bodies over 250 MB, and the proxy in its Docker image over 200 MB."""
UPLOAD_SUFFIXES = frozenset({".bmp", ".gif", ".jpg", ".jpeg", ".png", ".webp"})
"""The pictures among the file types that Label Studio 1.23 lets in."""
IMPORT_TASKS = 1000

_PAGE_SIZE = 500
_ANNOTATIONS_PAGE_SIZE = 100
"""Tasks with all their annotations: tens of kilobytes each where several people answer many questions."""

_Conditions = Sequence[tuple[str, str, int | bool]]
"""(column, operator, value) of the data manager's filters, all of which must hold."""
_UNPREDICTED: _Conditions = (("total_predictions", "equal", 0),)
_UNTOUCHED: _Conditions = (
    ("total_annotations", "equal", 0),
    ("cancelled_annotations", "equal", 0),
    ("draft_exists", "equal", False),
)
_ANNOTATED: tuple[_Conditions, ...] = (
    (("total_annotations", "greater", 0),),
    (("total_annotations", "equal", 0), ("cancelled_annotations", "greater", 0)),
)
"""The first counts no skips."""
_ANNOTATED_FIELDS = (
    "id,data,predictions,annotations,task,result,was_cancelled,completed_by,created_at,updated_at,parent_prediction"
)
"""Label Studio reads the same list for the tasks and for the annotations in them."""

_TIMEOUT_S = 60.0
_LONG_TIMEOUT_S = 150.0
"""For what Label Studio does while the caller waits: its own limit for /predict is 100 s."""
_LONG = {"timeout_in_seconds": _LONG_TIMEOUT_S}

_LOGIN_HELP = (
    "It takes a personal access token (Account & Settings > Personal Access Token, a long text beginning with ey) "
    "or a legacy token (Account & Settings > Legacy Token, 40 hex digits). Legacy tokens only work where they are "
    "allowed: Organization > API Tokens Settings, or `label-studio start --enable-legacy-api-token` at the very "
    "first start."
)


class Studio:
    """A Label Studio, reached with somebody's token."""

    def __init__(self, url: str, token: str, transport: httpx.BaseTransport | None = None) -> None:
        """
        Args:
            url: its address, such as http://localhost:8080.
            token: a personal access token or a legacy token.
            transport: the seam for tests.
        """
        self.url = url.strip().rstrip("/")
        if not re.match(r"https?://[^/]", self.url):
            raise StudioError(f"Label Studio's address is {url!r}; write it like http://localhost:8080.")
        self._token = token.strip()
        if not re.fullmatch(r"[!-~]+", self._token):
            raise StudioError(f"There is no usable token for Label Studio at {self.url}. {_LOGIN_HELP}")
        self._http = httpx.Client(timeout=_TIMEOUT_S, follow_redirects=True, transport=transport)

    def close(self) -> None:
        self._http.close()

    def call(self, doing: str, request: Callable[[LabelStudio], T]) -> T:
        """Run SDK calls; what goes wrong becomes a StudioError that says what was being done and what to do.

        Args:
            doing: completes "Could not ...".
        """
        try:
            from label_studio_sdk.core.api_error import ApiError
        except ImportError as error:
            raise StudioError(
                "Talking to Label Studio needs its SDK, which is not installed. Run: pip install 'forelabel[studio]'"
            ) from error
        try:
            return request(self._sdk)
        except ApiError as error:
            raise self._explained(doing, error.status_code, error.body) from error
        except (httpx.HTTPError, ValueError) as error:
            reason = str(error) or type(error).__name__
            raise StudioError(
                f"Could not {doing}: Label Studio at {self.url} gave no usable answer ({reason}). "
                "Is it running, and is that its address?"
            ) from error

    def check(self) -> str:
        """Label Studio's version, once the token is known to be good."""
        version = self.call("log in to Label Studio", lambda sdk: sdk.versions.get()).release
        if not isinstance(version, str):
            raise StudioError(f"There is no Label Studio at {self.url}: it names no release. Check the address.")
        self.call("log in to Label Studio", lambda sdk: sdk.users.whoami())
        return version

    def projects(self, title: str | None = None) -> list[tuple[int, str]]:
        """(id, title) of every project, or of those with exactly this title; the newest first."""
        found = self.call(
            "list the projects",
            lambda sdk: [(p.id, p.title) for p in sdk.projects.list(title=title, include="id,title", page_size=100)],
        )
        return [(id_, name) for id_, name in found if title is None or name == title]

    def create_project(self, title: str, label_config: str) -> int:
        project = self.call(
            f"make the project {title!r}", lambda sdk: sdk.projects.create(title=title, label_config=label_config)
        )
        return int(project.id)

    def update_task(self, task_id: int, data: Mapping[str, Any]) -> None:
        """Replace a task's data."""
        self.call(f"update task {task_id}", lambda sdk: sdk.tasks.update(str(task_id), data=dict(data)))

    def import_tasks(self, project_id: int, tasks: Sequence[Mapping[str, Any]]) -> list[int]:
        """Add tasks, each given as its data. The ids of the new tasks, in the same order."""
        return [
            task_id for batch in batched(tasks, IMPORT_TASKS) for task_id in self._import(project_id, json=list(batch))
        ]

    def import_photos(self, project_id: int, paths: Sequence[Path]) -> list[int]:
        """Upload image files, one task each. The ids of the new tasks, in the same order.

        Only for projects with one data key: Label Studio would not know which of several to put the file under.
        """
        foreign = [str(path) for path in paths if path.suffix.lower() not in UPLOAD_SUFFIXES]
        if foreign:
            raise StudioError(
                f"Label Studio takes no upload of {', '.join(foreign[:5])}{' ...' if len(foreign) > 5 else ''}. "
                f"Convert them to one of {' '.join(sorted(UPLOAD_SUFFIXES))}, or serve the folder to Label Studio as "
                "local files."
            )
        ids: list[int] = []
        for batch in _upload_batches(paths):
            ids.extend(self._upload(project_id, batch))
        return ids

    def project_key(self, project_id: int) -> str:
        """What /setup and /predict call this project, see `plugin.annotations.project_key`."""
        return project_key(self._project(project_id))

    def label_config(self, project_id: int) -> str:
        return str(self._project(project_id)["label_config"])

    def tasks(self, project_id: int) -> Iterator[dict[str, Any]]:
        """Every task as {"id": int, "data": dict}, its values as /predict brings them."""
        for page in self._task_pages(project_id, "id,data"):
            for task in page:
                yield {"id": task["id"], "data": task["data"]}

    def annotated_tasks(self, project_id: int) -> Iterator[dict[str, Any]]:
        """Every task that somebody has annotated or skipped as {"id": int, "data": dict, "annotations": list}.

        Skips are among the annotations. Data and annotations are as in webhooks; "prediction" is there where it is what
        the annotator started from.
        """
        for conditions in _ANNOTATED:
            for page in self._task_pages(
                project_id, _ANNOTATED_FIELDS, conditions, fields="all", page_size=_ANNOTATIONS_PAGE_SIZE
            ):
                for task in page:
                    predictions = {prediction["id"]: prediction for prediction in task["predictions"]}
                    for annotation in task["annotations"]:
                        annotation["prediction"] = predictions.get(annotation["parent_prediction"])
                    yield {key: task[key] for key in ("id", "data", "annotations")}

    def unpredicted(self, project_id: int, among: Sequence[int] | None = None) -> list[int]:
        """The ids of the tasks that have no prediction."""
        return [task["id"] for page in self._task_pages(project_id, "id", _UNPREDICTED, among) for task in page]

    def untouched(self, project_id: int) -> list[int]:
        """The ids of the tasks that nobody has annotated, skipped or left a draft of."""
        return [task["id"] for page in self._task_pages(project_id, "id", _UNTOUCHED) for task in page]

    def untouched_predictions(self, project_id: int, among: Sequence[int]) -> dict[int, dict[int, dict[str, Any]]]:
        """Of those of these tasks that are untouched: task id -> prediction id -> prediction."""
        pages = self._task_pages(project_id, "id,predictions", _UNTOUCHED, among, fields="all")
        return {task["id"]: {found["id"]: found for found in task["predictions"]} for page in pages for task in page}

    def predictions(self, project_id: int) -> list[dict[str, Any]]:
        """Every stored prediction as {"id", "task", "result", "score", "model_version"}."""
        found = self.call(
            f"list the predictions of project {project_id}",
            lambda sdk: sdk.predictions.list(project=project_id, request_options=_LONG),
        )
        keys = ("id", "task", "result", "score", "model_version")
        return [{key: getattr(prediction, key) for key in keys} for prediction in found]

    def model_versions(self, project_id: int) -> dict[str, int]:
        """Model version -> number of stored predictions."""
        answer = self._request(
            f"list the model versions of project {project_id}", "GET", f"api/projects/{project_id}/model-versions"
        )
        return {str(version): int(count) for version, count in answer.items()}

    def update_prediction(self, id_: int, source: Mapping[str, Any]) -> None:
        """Give a stored prediction the result, the score and the model version of another."""
        self.call(
            f"update prediction {id_}",
            lambda sdk: sdk.predictions.update(
                id_, result=source["result"], score=source["score"], model_version=source["model_version"]
            ),
        )

    def delete_predictions(self, ids: Sequence[int]) -> None:
        """Delete stored predictions; those that are no longer there are passed over."""
        for id_ in ids:
            self._delete_prediction(id_)

    def retrieve_predictions(self, project_id: int, task_ids: Sequence[int], chunk_size: int = CHUNK_SIZE) -> None:
        """Have Label Studio ask its backend about these tasks, as its own "Retrieve predictions" does.

        It reports success whatever the backend did: see `unpredicted` for what came of it.
        """
        for chunk in batched(task_ids, chunk_size):
            self._retrieve(project_id, chunk)

    @cached_property
    def _sdk(self) -> LabelStudio:
        from label_studio_sdk import LabelStudio

        # No retries: the SDK repeats every call that failed, also those that had made something.
        return LabelStudio(base_url=self.url, api_key=self._token, httpx_client=self._http, max_retries=0)

    def _request(self, doing: str, method: str, path: str, **options: Any) -> Any:
        """A call that the SDK has no method for, with its address and authentication."""
        from label_studio_sdk.core.api_error import ApiError

        def request(sdk: LabelStudio) -> Any:
            response = sdk._client_wrapper.httpx_client.request(path, method=method, **options)
            if not response.is_success:
                raise ApiError(status_code=response.status_code, body=response.text)
            return response.json()

        return self.call(doing, request)

    def _delete_prediction(self, id_: int) -> None:
        try:
            self.call(f"delete prediction {id_}", lambda sdk: sdk.predictions.delete(id_))
        except StudioError as error:
            if error.status != 404:
                raise

    def _import(self, project_id: int, **body: Any) -> list[int]:
        """One import. The SDK has no method for uploads; both kinds answer alike."""
        answer = self._request(
            f"import into project {project_id}",
            "POST",
            f"api/projects/{project_id}/import",
            params={"return_task_ids": "true"},
            request_options=_LONG,
            **body,
        )
        return [int(task_id) for task_id in answer["task_ids"]]

    def _upload(self, project_id: int, paths: Sequence[Path]) -> list[int]:
        with ExitStack() as opened:
            try:
                # Label Studio keeps one file per field name.
                files = {
                    f"file{index}": (path.name, opened.enter_context(path.open("rb")))
                    for index, path in enumerate(paths)
                }
            except OSError as error:
                raise StudioError(f"Could not read a photo: {error}. Leave it out or make it readable.") from error
            return self._import(project_id, files=files)

    def _retrieve(self, project_id: int, task_ids: Sequence[int]) -> None:
        """One request for all of them. Never without ids: Label Studio takes that for every task of the project."""
        self.call(
            f"retrieve predictions in project {project_id}",
            lambda sdk: sdk.actions.create(
                id="retrieve_tasks_predictions",
                project=project_id,
                selected_items={"all": False, "included": list(task_ids)},
                request_options=_LONG,
            ),
        )

    def _project(self, project_id: int) -> dict[str, Any]:
        found: dict[str, Any] = self._request(f"find project {project_id}", "GET", f"api/projects/{project_id}/")
        return found

    def _task_pages(
        self,
        project_id: int,
        include: str,
        conditions: _Conditions = (),
        among: Sequence[int] | None = None,
        fields: str = "task_only",
        page_size: int = _PAGE_SIZE,
    ) -> Iterator[list[dict[str, Any]]]:
        """Tasks in the order of their ids, page by page.

        A page begins after the last id and has no number: what annotators do meanwhile would move tasks from one
        numbered page to another.
        """
        if among is not None and not among:
            return  # Label Studio takes an empty selection for every task.
        last = 0
        while True:
            query: dict[str, Any] = {
                "filters": {
                    "conjunction": "and",
                    "items": [_filter(*condition) for condition in (*conditions, ("id", "greater", last))],
                }
            }
            if among is not None:
                query["selectedItems"] = {"all": False, "included": list(among)}
            answer = self._request(
                f"list the tasks of project {project_id}",
                "GET",
                "api/tasks/",
                params={
                    "project": project_id,
                    "include": include,
                    "fields": fields,
                    "page_size": page_size,
                    "resolve_uri": "false",
                    "query": json.dumps(query),
                },
            )
            page = answer["tasks"]
            yield page
            if not page or len(page) >= answer["total"]:
                return
            last = page[-1]["id"]

    def _explained(self, doing: str, status: int | None, body: Any) -> StudioError:
        detail = _detail(body)
        message = f"Could not {doing}: Label Studio at {self.url} answered {status} ({detail})."
        if status == 401:
            message = f"Could not {doing}: Label Studio at {self.url} refused the token ({detail}). {_LOGIN_HELP}"
        elif status == 403:
            message += " Use the token of somebody who may change the project."
        elif status is not None and (status < 300 or status == 404):
            message += " Is that its address?"
        return StudioError(message, status, detail)


def batched(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _filter(column: str, operator: str, value: int | bool) -> dict[str, Any]:
    kind = "Boolean" if isinstance(value, bool) else "Number"
    return {"filter": f"filter:tasks:{column}", "operator": operator, "type": kind, "value": value}


def _upload_batches(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """Batches within both of Label Studio's limits; a file over UPLOAD_BYTES goes alone."""
    batch: list[Path] = []
    size = 0
    for path in paths:
        try:
            weight = path.stat().st_size
        except OSError as error:
            raise StudioError(f"Could not read a photo: {error}. Leave it out or correct the path.") from error
        if batch and (len(batch) == UPLOAD_FILES or size + weight > UPLOAD_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(path)
        size += weight
    if batch:
        yield batch


def _detail(body: Any) -> str:
    """Label Studio's own words out of an error body, without its HTML, in one line."""
    if isinstance(body, str):
        try:
            body = json.loads(body)
        except ValueError:
            return "a web page, not its API" if "<html" in body.lower() else body.strip()[:300]
    if not isinstance(body, Mapping):
        return str(body)[:300]
    fields = body.get("validation_errors")
    if isinstance(fields, Mapping) and fields:
        words = "; ".join(_field_error(str(name), texts) for name, texts in fields.items())
    else:
        words = str(body.get("detail") or body)
    return " ".join(re.sub(r"<[^>]+>", "", words).split())[:600]


def _field_error(name: str, texts: Any) -> str:
    words = " ".join(map(str, texts if isinstance(texts, list) else [texts]))
    return words if name == "non_field_errors" else f"{name}: {words}"
