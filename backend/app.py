"""The HTTP side of the service: /health /setup /predict /webhook /metrics, as Label Studio 1.23 speaks them.

Knows HTTP and JSON; knows no image, no label and no model: all of that is behind `PrelabelerProtocol`.

Status codes and why:
- 400: the body is not the JSON object it should be; the answer says what arrived.
- 401: /setup, /predict and /webhook without the configured basic auth. /health stays open because probes send none,
  /metrics because it holds only counts, "/" because it says nothing else than what this is.
- 422: the project's labeling configuration cannot be used. Label Studio (1.23.2, ml/api_connector.py) shows the status
  line of an error and drops its body, then adds "it might be incompatible with the current labeling configuration";
  so the full reason is logged here as well, and `forelabel connect` prints it. /predict answers the same: no
  task of such a project can have an answer, and a 200 would hide why.
- 503: a webhook that could not be kept, since the memory of confirmed labels is down.
- 500: a bug; logged with its traceback. Never because of one image or of the embedding store.
"""

from __future__ import annotations

import base64
import hmac
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Protocol

import anyio
import anyio.to_thread
from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import SecretStr
from starlette.exceptions import HTTPException

from backend.memory import MemoryUnavailable
from backend.metrics import Metrics
from backend.settings import Settings
from plugin.errors import LabelingConfigError

logger = logging.getLogger(__name__)

PREDICT_THREADS = 16
"""Predictions at once. Each mostly waits for the encoder or for an image host, so more than cores; the rest queue up,
and /health, /setup and /webhook have threads of their own."""

BODY_EXCERPT = 80
"""Characters of a bad body that are quoted back: enough to recognise it."""


class PrelabelerProtocol(Protocol):
    """What the app needs of backend.prelabeler.Prelabeler."""

    @property
    def ready(self) -> bool:
        """Whether the model is loaded. It loads in the background, so that Label Studio can connect at once."""

    @property
    def failure(self) -> str | None:
        """Why the model could not be loaded; None while it may still be."""

    @property
    def metrics(self) -> Metrics: ...

    def start(self) -> None:
        """Begin to load the model; returns at once."""

    def close(self) -> None: ...

    def setup(
        self, project: str, label_config: str, hostname: str, access_token: str, extra_params: object = None
    ) -> str:
        """The model version, at once, also while the model loads.

        `extra_params` is what Label Studio holds for the backend in this project, and `params` of `predict` what a
        request says of the same: {"nouns": [...], "ban": [...]} for the names that open questions get.

        Raises:
            LabelingConfigError: the config cannot be used.
        """

    def predict(
        self, tasks: list[dict[str, Any]], *, project: str, label_config: str, deadline: float, params: object = None
    ) -> list[dict[str, Any] | list[Any]]:
        """One item per task, in order; an empty list for a task without a prediction.

        Must return soon after `deadline` (a time.monotonic() value) with what is done by then.

        Raises:
            LabelingConfigError: the config cannot be used.
        """

    def process_event(self, action: str, payload: dict[str, Any]) -> None:
        """Keep what a webhook says; must return within some milliseconds, the annotator waits for it.

        Raises:
            MemoryUnavailable: it could not be kept.
        """


def create_app(settings: Settings, prelabeler: PrelabelerProtocol) -> FastAPI:
    """The ASGI app of `forelabel serve`. It starts the prelabeler, and closes it at the end."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        prelabeler.start()
        yield
        await anyio.to_thread.run_sync(prelabeler.close)

    # No generated docs: their pages load scripts from a CDN, and Label Studio has no use for them.
    app = FastAPI(title="Forelabel", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    prelabeler.metrics.watch_ready(lambda: prelabeler.ready)
    _add_error_answers(app, prelabeler.metrics)
    _add_open_routes(app, prelabeler)
    _add_guarded_routes(app, settings, prelabeler)
    return app


def _add_open_routes(app: FastAPI, prelabeler: PrelabelerProtocol) -> None:
    @app.get("/")
    async def root() -> dict[str, Any]:
        return {
            "name": "Forelabel",
            "what": "A Label Studio ML backend. Connect it under Settings > Model, with this address.",
            "ready": prelabeler.ready,
        }

    @app.get("/health")
    async def health() -> dict[str, Any]:
        # "UP" also while the model loads: the service is there, and predictions wait for the model.
        failure = {"failure": prelabeler.failure} if prelabeler.failure else {}
        return {"status": "UP", "ready": prelabeler.ready, **failure}

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(prelabeler.metrics.exposition(), media_type=CONTENT_TYPE_LATEST)


def _add_guarded_routes(app: FastAPI, settings: Settings, prelabeler: PrelabelerProtocol) -> None:
    auth = [Depends(_basic_auth(settings.basic_auth))]
    predict_threads = anyio.CapacityLimiter(PREDICT_THREADS)
    event_threads = anyio.CapacityLimiter(1)  # one by one: an update must not overtake the creation it belongs to

    @app.post("/setup", dependencies=auth)
    async def setup(request: Request) -> Response:
        return await _in_thread(_setup, prelabeler, await request.body())

    @app.post("/predict", dependencies=auth)
    async def predict(request: Request) -> Response:
        deadline = time.monotonic() + settings.predict_deadline_s
        return await _in_thread(_predict, prelabeler, await request.body(), deadline, limiter=predict_threads)

    @app.post("/webhook", dependencies=auth)
    async def webhook(request: Request) -> Response:
        return await _in_thread(_process_event, prelabeler, await request.body(), limiter=event_threads)


async def _in_thread(work: Callable[..., Any], *args: Any, limiter: anyio.CapacityLimiter | None = None) -> Response:
    """Answer with what `work` makes. JSON is read and written there, too: 2,000 tasks are megabytes of it."""

    def answer() -> bytes:
        return json.dumps(work(*args), allow_nan=False).encode()

    content = await anyio.to_thread.run_sync(answer, limiter=limiter)
    return Response(content, media_type="application/json")


def _setup(prelabeler: PrelabelerProtocol, raw: bytes) -> dict[str, Any]:
    body = _json_object(raw)
    project, schema, hostname, token = (_text(body, key) for key in ("project", "schema", "hostname", "access_token"))
    return {"model_version": prelabeler.setup(project, schema, hostname, token, body.get("extra_params"))}


def _process_event(prelabeler: PrelabelerProtocol, raw: bytes) -> dict[str, Any]:
    body = _json_object(raw)
    action = _text(body, "action")
    prelabeler.metrics.webhook(action)
    try:
        prelabeler.process_event(action, body)
    except MemoryUnavailable as error:
        logger.error("webhook %s is lost until `forelabel sync` is run: %s", action, error)
        raise HTTPException(503, str(error)) from error
    return {"status": "ok"}


def _predict(prelabeler: PrelabelerProtocol, raw: bytes, deadline: float) -> dict[str, Any]:
    body = _json_object(raw)
    tasks = body.get("tasks") or []
    if not isinstance(tasks, list):
        raise HTTPException(400, f'"tasks" is a {type(tasks).__name__}; send a list of tasks')
    results: list[dict[str, Any] | list[Any]] = [[] for _ in tasks]
    positions = [i for i, task in enumerate(tasks) if isinstance(task, dict)]
    if positions:
        items = prelabeler.predict(
            [tasks[i] for i in positions],
            project=_text(body, "project"),
            label_config=_text(body, "label_config"),
            deadline=deadline,
            params=body.get("params"),
        )
        for i, item in zip(positions, items, strict=True):
            results[i] = item
    predicted = sum(bool(item) for item in results)
    prelabeler.metrics.tasks(predicted=predicted, empty=len(results) - predicted)
    return {"results": results}


def _json_object(raw: bytes) -> dict[str, Any]:
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        excerpt = raw[:BODY_EXCERPT].decode("utf-8", "replace")
        arrived = f"{len(raw)} bytes that begin with {excerpt!r}" if raw else "an empty body"
        raise HTTPException(400, f"the body is not JSON: {arrived}. Send a JSON object.") from None
    if not isinstance(body, dict):
        raise HTTPException(400, f"the body is a JSON {type(body).__name__}; send a JSON object")
    return body


def _text(body: dict[str, Any], key: str) -> str:
    """A field as text; what is missing or null is empty, and a project may arrive as a number."""
    value = body.get(key)
    return "" if value is None else str(value)


def _basic_auth(expected: SecretStr) -> Callable[[Request], Awaitable[None]]:
    wanted = expected.get_secret_value().encode()

    async def check(request: Request) -> None:
        if not wanted:
            return
        scheme, _, encoded = request.headers.get("authorization", "").partition(" ")
        try:
            given = base64.b64decode(encoded, validate=True) if scheme.lower() == "basic" else b""
        except ValueError:
            given = b""
        if not hmac.compare_digest(given, wanted):
            raise HTTPException(
                401,
                "this backend asks for basic auth: enter its user and password in Label Studio under Settings > Model,"
                " and in the webhook's Authorization header (`forelabel connect` does both)",
                {"WWW-Authenticate": 'Basic realm="forelabel"'},
            )

    return check


def _add_error_answers(app: FastAPI, metrics: Metrics) -> None:
    """Every error is a JSON object {"error": ...}; every request is counted and timed."""

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        return _error(error.status_code, str(error.detail), error.headers)

    @app.exception_handler(LabelingConfigError)
    async def config_error(request: Request, error: LabelingConfigError) -> Response:
        logger.warning("%s: labeling configuration refused: %s", request.url.path, error)
        return _error(422, str(error))

    @app.middleware("http")
    async def answer_and_count(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        started = time.monotonic()
        try:
            response = await call_next(request)
        except Exception as error:
            logger.exception("%s %s failed", request.method, request.url.path)
            response = _error(500, f"{type(error).__name__}; the log of the backend has the traceback")
        # Only known routes get a time series: a scanner must not be able to make up thousands.
        route = request.scope.get("route")
        metrics.request(getattr(route, "path", "other"), response.status_code, time.monotonic() - started)
        return response


def _error(status: int, detail: str, headers: Any = None) -> JSONResponse:
    return JSONResponse({"error": detail}, status, headers)
