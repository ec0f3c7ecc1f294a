"""Nothing confirmed is lost: the backend and its Redis are killed again and again while annotations stream in.

python -m benchmarks.crashes [--kills 200]

A real Label Studio, a real Redis (appendfsync always), `forelabel serve`. One annotator creates, changes and deletes
annotations without a pause; at random points the backend or Redis gets kill -9 and is started again. What webhooks
could not bring in those moments, `forelabel sync` finds; then the memory must hold Label Studio's annotations and
nothing else, and two backends on one Redis must give the same answers.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from backend.child_process import ask
from backend.demo_photos import SAMPLE_LABELS, SAMPLE_PHOTOS
from backend.learning import to_confirmation
from backend.memory import Confirmation, Memory, open_memory
from backend.studio_process import StudioLogin, StudioProcess
from backend.sync import synchronise
from benchmarks.report import write
from plugin.annotations import read_annotation
from plugin.connect import connect
from plugin.errors import StudioError
from plugin.labeling_config import parse_labeling_config
from plugin.prelabel import prelabel
from plugin.studio import Studio

LOGIN = StudioLogin("annotator@example.com", "a-password-for-crashes", "89abcdef0123456789abcdef0123456789abcdef")
LONGEST_LIFE_S = 1.5
"""From a start to the next kill at most, so that most kills come in the middle of something."""
START_TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Outcome:
    """Of one storm; annotations, but for the kills."""

    kills: int
    events: int
    """Created, changed and deleted."""
    annotations: int
    """That Label Studio has in the end."""
    differing_before_sync: int
    """What webhooks could not bring while something was down."""
    differing_after_sync: int
    """Lost, changed or counted though deleted."""
    replicas_differ: int
    """Tasks that two backends on one Redis answer differently."""


class Program:
    """A server that can be killed and started again with the same command."""

    def __init__(self, command: list[str], log: Path, ready: Callable[[], bool], env: dict[str, str] | None = None):
        self._command, self._log, self._ready, self._env = command, log, ready, {**os.environ, **(env or {})}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, env=self._env)
        give_up = time.monotonic() + START_TIMEOUT_S
        while not self._ready():
            if self._process.poll() is not None or time.monotonic() > give_up:
                raise SystemExit(
                    f"{self._command[0]} did not come up:\n{self._log.read_text('utf-8', 'replace')[-2000:]}"
                )
            time.sleep(0.05)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


class Annotator(threading.Thread):
    """Creates, changes and deletes annotations until told to stop."""

    def __init__(self, studio: Studio, tasks: list[int], seed: int) -> None:
        super().__init__(daemon=True)
        self._studio, self._tasks, self._random = studio, tasks, random.Random(seed)  # noqa: S311
        self._made: list[int] = []
        self.events = 0
        self.enough = threading.Event()

    def run(self) -> None:
        while not self.enough.is_set():
            with suppress(StudioError):  # Label Studio itself is busy; its own list decides in the end
                self._act()
                self.events += 1

    def _act(self) -> None:
        result = [_choice(self._random.choice(SAMPLE_LABELS))]
        draw = self._random.random()
        if draw < 0.6 or not self._made:
            task = self._random.choice(self._tasks)
            made = self._studio.call("annotate", lambda sdk: sdk.annotations.create(task, result=result, lead_time=1.0))
            self._made.append(int(made.id))
        elif draw < 0.85:
            changed = self._random.choice(self._made)
            self._studio.call("change", lambda sdk: sdk.annotations.update(changed, result=result))
        else:
            gone = self._made.pop(self._random.randrange(len(self._made)))
            self._studio.call("delete", lambda sdk: sdk.annotations.delete(gone))


def storm(studio: Studio, folder: Path, kills: int, seed: int = 0) -> Outcome:
    """Kill the backend and Redis by turns, `kills` times in all, and look what is left."""
    draw = random.Random(seed)  # noqa: S311
    redis_port, ports = _free_port(), (_free_port(), _free_port())
    url = f"redis://127.0.0.1:{redis_port}/0"
    program = shutil.which("redis-server") or "redis-server"
    durable = ["--appendonly", "yes", "--appendfsync", "always", "--save", "", "--dir", str(folder)]
    redis = Program(
        [program, "--port", str(redis_port), "--bind", "127.0.0.1", *durable],
        folder / "redis.log",
        lambda: _listens(redis_port),
    )
    backends = [_backend(studio, url, port, folder) for port in ports]
    memory = open_memory(url)
    try:
        redis.start()
        backends[0].start()
        project_id = connect(studio, _address(ports[0]), create="A storm", labels=SAMPLE_LABELS).project_id
        tasks = studio.import_photos(project_id, [photo.path for photo in SAMPLE_PHOTOS[:6]])
        for _ in prelabel(studio, project_id):
            pass
        annotator = Annotator(studio, tasks, seed)
        annotator.start()
        for i in range(kills):
            time.sleep(draw.uniform(0, LONGEST_LIFE_S))
            victim = redis if i % 2 else backends[0]
            victim.kill()
            time.sleep(draw.uniform(0, 0.3))
            victim.start()
        if not annotator.is_alive():
            raise SystemExit("the annotator has stopped; nothing was put to the test")
        annotator.enough.set()
        annotator.join()
        before = _differing(studio, project_id, memory)
        for _ in synchronise(studio, project_id, memory):
            pass
        after = _differing(studio, project_id, memory)
        backends[1].start()
        answers = [_answers(studio, project_id, _address(port)) for port in ports]
        differ = sum(one != other for one, other in zip(*answers, strict=True))
        annotations = len(_listed(studio, project_id))
        return Outcome(kills, annotator.events, annotations, before, after, differ)
    finally:
        memory.close()
        for program in (*backends, redis):
            program.kill()


def _backend(studio: Studio, redis_url: str, port: int, folder: Path) -> Program:
    environment = {
        "FORELABEL_PORT": str(port),
        "FORELABEL_DATA_DIR": str(folder / f"backend-{port}"),
        "FORELABEL_STORE": redis_url,
        "FORELABEL_MEMORY": redis_url,
        "FORELABEL_CAPTIONS": "none",
        "FORELABEL_STUDIO_URL": studio.url,
        "FORELABEL_STUDIO_TOKEN": LOGIN.token,
        "FORELABEL_BASIC_AUTH": "",
    }
    command = [sys.executable, "-m", "backend.cli", "serve"]
    return Program(command, folder / "backend.log", lambda: ask(f"{_address(port)}/health") is not None, environment)


def _listed(studio: Studio, project_id: int) -> dict[int, Confirmation]:
    config = parse_labeling_config(studio.label_config(project_id))
    found = [
        to_confirmation(read_annotation(annotation, task, config))
        for task in studio.annotated_tasks(project_id)
        for annotation in task["annotations"]
    ]
    return {each.annotation: each for each in found}


def _differing(studio: Studio, project_id: int, memory: Memory) -> int:
    rows, _ = memory.changes(studio.project_key(project_id))
    held = {each.annotation: each.answers for each in rows if isinstance(each, Confirmation)}
    listed = {annotation: each.answers for annotation, each in _listed(studio, project_id).items()}
    return sum(held.get(annotation) != listed.get(annotation) for annotation in held.keys() | listed.keys())


def _answers(studio: Studio, project_id: int, address: str) -> list[Any]:
    """Each task's labels and score by one backend, asked until all that is confirmed is embedded there."""
    body = {
        "tasks": [{**task, "project": project_id} for task in studio.tasks(project_id)],
        "project": studio.project_key(project_id),
        "label_config": studio.label_config(project_id),
    }
    last: list[Any] = []
    for _ in range(60):
        answer = httpx.post(f"{address}/predict", json=body, timeout=120).raise_for_status().json()["results"]
        found = [[item["result"][0]["value"], round(item["score"], 4)] if item else None for item in answer]
        if found == last and None not in found:
            return found
        last = found
        time.sleep(1)
    return last


def _choice(label: str) -> dict[str, Any]:
    return {"from_name": "choice", "to_name": "image", "type": "choices", "value": {"choices": [label]}}


def _address(port: int) -> str:
    return f"http://127.0.0.1:{port}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        process = StudioProcess(folder / "studio", _free_port(), LOGIN, folder / "studio.log")
        try:
            process.wait()
            studio = Studio(process.url, LOGIN.token)
            outcome = storm(studio, folder, args.kills, args.seed)
            studio.close()
        finally:
            process.stop()
    write("crashes", ["what", "count"], [[name, count] for name, count in vars(outcome).items()], seed=args.seed)
    sys.exit(1 if outcome.differing_after_sync or outcome.replicas_differ else 0)


if __name__ == "__main__":
    main()
