"""The HTTP side alone, with a fake prelabeler behind it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from backend.app import PREDICT_THREADS, create_app
from backend.metrics import Metrics
from backend.settings import Settings
from plugin.errors import LabelingConfigError

CONFIG = '<View><Image name="image" value="$image"/></View>'


class FakePrelabeler:
    """Predicts each task's number; a config that says "bad" cannot be used; a task with "boom" is a bug."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.ready = False
        self.failure: str | None = None
        self.started = self.closed = False
        self.gate: threading.Event | None = None
        self.calls: list[dict[str, Any]] = []
        self.events: list[tuple[str, dict[str, Any]]] = []

    def start(self) -> None:
        self.started = True

    def close(self) -> None:
        self.closed = True

    def setup(
        self, project: str, label_config: str, hostname: str, access_token: str, extra_params: object = None
    ) -> str:
        if "bad" in label_config:
            raise LabelingConfigError("there is no <Choices> for an image; add one")
        self.calls.append({"project": project, "hostname": hostname, "access_token": access_token})
        return "v1"

    def predict(
        self, tasks: list[dict[str, Any]], *, project: str, label_config: str, deadline: float, params: object = None
    ) -> list[dict[str, Any] | list[Any]]:
        if "bad" in label_config:
            raise LabelingConfigError("there is no <Choices> for an image; add one")
        if self.gate:
            self.gate.wait(60)
        self.calls.append({"tasks": tasks, "project": project, "deadline": deadline})
        if any("boom" in task for task in tasks):
            raise RuntimeError("a bug")
        return [{"score": 0.5, "result": [task["id"]]} if "id" in task else [] for task in tasks]

    def process_event(self, action: str, payload: dict[str, Any]) -> None:
        self.events.append((action, payload))


@pytest.fixture
def prelabeler() -> FakePrelabeler:
    return FakePrelabeler()


@pytest.fixture
def client(prelabeler: FakePrelabeler) -> Iterator[TestClient]:
    with TestClient(create_app(Settings(), prelabeler)) as client:
        yield client


@pytest.fixture
def guarded(prelabeler: FakePrelabeler) -> Iterator[TestClient]:
    with TestClient(create_app(Settings(basic_auth="me:päss:word"), prelabeler)) as client:  # type: ignore[arg-type]
        yield client


def test_the_prelabeler_lives_as_long_as_the_app(prelabeler: FakePrelabeler) -> None:
    with TestClient(create_app(Settings(), prelabeler)):
        assert prelabeler.started
        assert not prelabeler.closed
    assert prelabeler.closed


def test_health_and_setup_answer_while_the_model_loads(client: TestClient, prelabeler: FakePrelabeler) -> None:
    assert client.get("/health").json() == {"status": "UP", "ready": False}
    body = {
        "project": "2.179",
        "schema": CONFIG,
        "hostname": "http://studio",
        "access_token": "t",
        "extra_params": None,
    }
    assert client.post("/setup", json=body).json() == {"model_version": "v1"}
    assert prelabeler.calls == [{"project": "2.179", "hostname": "http://studio", "access_token": "t"}]
    prelabeler.ready = True
    assert client.get("/health").json()["ready"] is True
    assert "Label Studio" in client.get("/").json()["what"]


def test_predict_keeps_the_order(client: TestClient, prelabeler: FakePrelabeler) -> None:
    before = time.monotonic()
    tasks = [{"id": 2}, {"id": 1}, {}]
    answer = client.post("/predict", json={"tasks": tasks, "project": 7, "label_config": CONFIG, "params": {}})
    assert answer.status_code == 200
    assert answer.json() == {"results": [{"score": 0.5, "result": [2]}, {"score": 0.5, "result": [1]}, []]}
    assert prelabeler.calls[0]["project"] == "7"
    assert 79 < prelabeler.calls[0]["deadline"] - before < 81


@pytest.mark.parametrize("body", [{}, {"tasks": []}, {"tasks": None}, {"tasks": [], "label_config": "bad"}])
def test_predict_with_no_tasks(client: TestClient, body: dict[str, Any]) -> None:
    answer = client.post("/predict", json=body)
    assert (answer.status_code, answer.json()) == (200, {"results": []})


def test_predict_with_2000_tasks(client: TestClient) -> None:
    tasks = [{"id": i, "data": {"image": f"/data/upload/1/{i}.jpg"}} for i in range(2000)]
    results = client.post("/predict", json={"tasks": tasks, "label_config": CONFIG}).json()["results"]
    assert [item["result"] for item in results] == [[i] for i in range(2000)]


def test_a_task_that_is_no_object_gets_an_empty_item(client: TestClient) -> None:
    answer = client.post("/predict", json={"tasks": [None, {"id": 1}, "x", [], 3]})
    assert answer.json() == {"results": [[], {"score": 0.5, "result": [1]}, [], [], []]}
    only_bad = client.post("/predict", json={"tasks": ["x"]})
    assert only_bad.json() == {"results": [[]]}


@pytest.mark.parametrize("route", ["/setup", "/predict", "/webhook"])
@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "an empty body"),
        (b"hello", "hello"),
        (b"\xff\xfe\x00", "3 bytes"),
        (b"[1]", "JSON list"),
        (b"null", "JSON NoneType"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_a_body_that_is_no_json_object(client: TestClient, route: str, body: bytes, said: str) -> None:
    answer = client.post(route, content=body)
    assert answer.status_code == 400
    assert said in answer.json()["error"]
    assert "JSON object" in answer.json()["error"]


@pytest.mark.parametrize("tasks", [{"id": 1}, "x", 3])
def test_tasks_that_are_no_list(client: TestClient, tasks: Any) -> None:
    answer = client.post("/predict", json={"tasks": tasks})
    assert answer.status_code == 400
    assert "list of tasks" in answer.json()["error"]


def test_a_config_that_cannot_be_used(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    setup = client.post("/setup", json={"project": "1", "schema": "<bad/>"})
    predict = client.post("/predict", json={"tasks": [{"id": 1}], "label_config": "<bad/>"})
    for answer in (setup, predict):
        assert answer.status_code == 422
        assert "no <Choices>" in answer.json()["error"]
    assert caplog.text.count("no <Choices>") == 2


def test_a_bug_is_logged_and_answered_as_json(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        answer = client.post("/predict", json={"tasks": [{"boom": 1}]})
    assert answer.status_code == 500
    assert "RuntimeError" in answer.json()["error"]
    assert "Traceback" in caplog.text
    assert client.get("/health").status_code == 200


def test_webhooks_are_acknowledged_within_50_ms(client: TestClient, prelabeler: FakePrelabeler) -> None:
    client.post("/webhook", json={"action": "made up"})
    payload = {"action": "ANNOTATION_CREATED", "annotation": {"id": 1, "result": []}, "task": {"id": 2}}
    seconds = []
    for _ in range(10):
        started = time.perf_counter()
        answer = client.post("/webhook", json=payload)
        seconds.append(time.perf_counter() - started)
        assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
    assert min(seconds) < 0.05  # the least: the rest is what else this machine is doing
    assert prelabeler.events[-1] == ("ANNOTATION_CREATED", payload)
    text = client.get("/metrics").text
    assert 'forelabel_webhooks_total{action="ANNOTATION_CREATED"} 10.0' in text
    assert 'forelabel_webhooks_total{action="other"} 1.0' in text


def test_predictions_block_nobody_else(client: TestClient, prelabeler: FakePrelabeler) -> None:
    prelabeler.gate = threading.Event()
    answers: list[int] = []

    def predict() -> None:
        answers.append(client.post("/predict", json={"tasks": [{"id": 1}]}).status_code)

    threads = [threading.Thread(target=predict) for _ in range(PREDICT_THREADS * 3)]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    try:
        assert client.get("/health").status_code == 200
        assert client.post("/setup", json={"schema": CONFIG}).status_code == 200
        assert client.post("/webhook", json={"action": "ANNOTATION_CREATED"}).status_code == 200
        assert answers == []  # all of them are still waiting
    finally:
        prelabeler.gate.set()
        for thread in threads:
            thread.join()
    assert answers == [200] * len(threads)


@pytest.mark.parametrize("route", ["/setup", "/predict", "/webhook"])
def test_basic_auth(guarded: TestClient, route: str) -> None:
    refused = [
        guarded.post(route, json={}),
        guarded.post(route, json={}, auth=("me", "wrong")),
        guarded.post(route, json={}, headers={"Authorization": "Bearer abc"}),
        guarded.post(route, json={}, headers={"Authorization": "Basic !!!"}),
        guarded.post(route, json={}, headers={"Authorization": "Basic"}),
    ]
    for answer in refused:
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith("Basic ")
        assert "forelabel connect" in answer.json()["error"]
    assert guarded.post(route, json={}, auth=("me", "päss:word")).status_code == 200


def test_basic_auth_leaves_probes_alone(guarded: TestClient) -> None:
    assert [guarded.get(path).status_code for path in ("/", "/health", "/metrics")] == [200, 200, 200]


def test_metrics(client: TestClient, prelabeler: FakePrelabeler) -> None:
    client.post("/predict", json={"tasks": [{"id": 1}, {"id": 2}, {}]})
    for path in ("/nowhere", "/else"):
        assert client.get(path).status_code == 404
    prelabeler.metrics.images_unreadable(3)
    prelabeler.metrics.cache(hits=5, misses=2)
    prelabeler.metrics.watch_store(lambda: True)
    prelabeler.ready = True
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    for line in (
        'forelabel_tasks_total{outcome="predicted"} 2.0',
        'forelabel_tasks_total{outcome="empty"} 1.0',
        'forelabel_requests_total{route="/predict",status="200"} 1.0',
        'forelabel_requests_total{route="other",status="404"} 2.0',
        'forelabel_request_seconds_count{route="/predict"} 1.0',
        "forelabel_images_unreadable_total 3.0",
        'forelabel_cache_lookups_total{outcome="hit"} 5.0',
        'forelabel_cache_lookups_total{outcome="miss"} 2.0',
        "forelabel_store_available 1.0",
        "forelabel_model_ready 1.0",
    ):
        assert line in answer.text.splitlines(), line


def test_two_apps_do_not_share_numbers() -> None:
    first, second = FakePrelabeler(), FakePrelabeler()
    with TestClient(create_app(Settings(), first)) as one, TestClient(create_app(Settings(), second)) as other:
        one.post("/webhook", json={"action": "START_TRAINING"})
        assert "START_TRAINING" in one.get("/metrics").text
        assert "START_TRAINING" not in other.get("/metrics").text
