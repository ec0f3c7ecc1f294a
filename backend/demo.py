"""`forelabel demo`: Label Studio, the backend and the store on this machine, and two projects of pre-labelled photos.

Everything is kept in one folder, so that a second run finds what the first one made. Every process that is started
here ends with this one.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import redis

from backend.child_process import ChildProcess, ChildProcessError, ask
from backend.demo_check import check_names, check_predictions, upload_name
from backend.demo_photos import SAMPLE_LABELS, SAMPLE_PHOTOS, photos_in
from backend.settings import Settings
from backend.studio_process import StudioLogin, StudioNotFoundError, StudioProcess
from plugin.connect import Connection, connect
from plugin.errors import PluginError
from plugin.prelabel import prelabel
from plugin.studio import UPLOAD_SUFFIXES, Studio

BACKEND_TIMEOUT_S = 900.0
"""A model of the hub is downloaded at the first start, and the default caption index is built."""

PORTS_TRIED = 50
TITLE_LENGTH = 50
"""The most that Label Studio takes."""


class DemoError(Exception):
    """The demo cannot go on; the message says why and what to do."""


@dataclass(frozen=True)
class _Options:
    photos: Path | None
    labels: tuple[str, ...]
    check: bool
    folder: Path
    studio_port: int | None
    backend_port: int | None


def run_demo(
    photos: Path | None = None,
    labels: Sequence[str] = (),
    check: bool = False,
    studio_port: int | None = None,
    backend_port: int | None = None,
) -> int:
    """Run it until Ctrl-C, or until the check is done. Call it from the main thread.

    Args:
        photos: a folder of the user's own; None for the sample photos.
        labels: the label set; empty for that of the sample photos.
        check: verify the stored predictions and end, in place of waiting for Ctrl-C.
        studio_port: Label Studio's; None for 8080 or the next free one.
        backend_port: None for 9090 or the next free one.

    Returns:
        The exit status: 0 unless something failed.
    """
    options = _Options(
        photos=photos.expanduser().resolve() if photos else None,
        labels=tuple(dict.fromkeys(labels)) or SAMPLE_LABELS,
        check=check,
        folder=Settings().data_dir.expanduser().resolve() / "demo",
        studio_port=studio_port,
        backend_port=backend_port,
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # `kill` ends it as Ctrl-C does: children first
    try:
        with contextlib.ExitStack() as stack:
            return _run(options, stack)
    except (DemoError, PluginError, ChildProcessError, StudioNotFoundError, OSError) as error:
        print(f"forelabel demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped. The same command goes on where this left off.")
        return 130 if check else 0


def _run(options: _Options, stack: contextlib.ExitStack) -> int:
    photos = _photos(options.photos)
    stack.enter_context(_locked(options.folder))
    login = _login(options.folder / "login.json")
    logs = options.folder / "logs"

    _say("Starting Label Studio (the very first start sets up its database, which takes a minute or two)")
    studio_port = _port(options.studio_port, 8080)
    studio = StudioProcess(options.folder / "label-studio", studio_port, login, logs / "label-studio.log")
    stack.callback(studio.stop)
    store_url, children = _start_store(options.folder, stack)
    backend_url, backend = _start_backend(_port(options.backend_port, 9090), logs, studio.url, login, store_url)
    stack.callback(backend.stop)
    studio.wait()
    backend.wait_until(lambda: _model_loaded(backend_url), BACKEND_TIMEOUT_S)

    client = Studio(studio.url, login.token)
    stack.callback(client.close)
    title = _title(options.photos, options.labels)
    labelled = _prelabelled(client, backend_url, title, photos, labels=options.labels)
    naming_title = _short(f"{_subject(options.photos)}: any name")
    named = _prelabelled(client, backend_url, naming_title, photos, template="image-naming")
    if options.check:
        judged = SAMPLE_PHOTOS if options.labels == SAMPLE_LABELS and not options.photos else ()
        reports = [
            check_names(client, named.project_id, photos),
            check_predictions(client, labelled.project_id, photos, options.labels, judged),
        ]
        for report in reports:
            print("\n".join(report.lines), flush=True)
        return 0 if all(report.passed for report in reports) else 1
    _say(
        f"\nOpen   {labelled.project_url}   a label set\n       {named.project_url}   any name\n"
        f"Login  {login.email}\n       {login.password}\n"
        f"\n{len(photos)} photos carry suggestions: open one, correct it if need be, submit. Ctrl-C stops everything."
    )
    _watch([studio, backend, *children])
    return 1


def _prelabelled(
    client: Studio,
    backend_url: str,
    title: str,
    photos: Sequence[Path],
    template: str = "image-classification",
    labels: Sequence[str] = (),
) -> Connection:
    """A connected project of these photos, each with its suggestion."""
    basic_auth = Settings().basic_auth.get_secret_value() or None
    connection = connect(client, backend_url, create=title, template=template, labels=labels, basic_auth=basic_auth)
    for step in connection.steps:
        _say(f"  {step}")
    _import_missing(client, connection.project_id, photos)
    for progress in prelabel(client, connection.project_id):
        _say(f"  pre-labelled {progress.stored} of {progress.total}")
    return connection


def _say(text: str) -> None:
    print(text, flush=True)


def _photos(folder: Path | None) -> list[Path]:
    if folder is None:
        try:
            return [photo.path for photo in SAMPLE_PHOTOS]
        except ModuleNotFoundError as error:
            raise DemoError(f"{error}. The sample photos come with: pip install 'forelabel[demo]'") from None
    return photos_in(folder, UPLOAD_SUFFIXES)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One demo per folder: two Label Studios on one SQLite file would get in each other's way."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DemoError(
                f"a demo is already running on {folder}; stop it, or set FORELABEL_DATA_DIR to another folder"
            ) from None
        yield


def _login(path: Path) -> StudioLogin:
    """The login that was made at the first run."""
    if path.exists():
        return StudioLogin(**json.loads(path.read_text("utf-8")))
    login = StudioLogin("admin@example.com", secrets.token_urlsafe(9), secrets.token_hex(20))
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(asdict(login), file)
    return login


def _port(wanted: int | None, usual: int) -> int:
    """The wanted port, which must be free; else the usual one or the next free one."""
    if wanted is not None:
        if not _is_free(wanted):
            raise DemoError(f"port {wanted} is in use; name another one, or none to have a free one chosen")
        return wanted
    for port in range(usual, usual + PORTS_TRIED):
        if _is_free(port):
            return port
    raise DemoError(f"no free port from {usual} to {usual + PORTS_TRIED - 1}; name one")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As servers do: the last run's connections in TIME_WAIT are no hindrance, a listener is.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _start_store(folder: Path, stack: contextlib.ExitStack) -> tuple[str, list[ChildProcess]]:
    """The URL of the embedding store, and the Redis behind it where this machine has one."""
    if configured := Settings().store:
        _say("Embeddings are kept in the store that FORELABEL_STORE names")
        return configured, []
    if not (program := shutil.which("redis-server")):
        _say("Embeddings are kept in SQLite: there is no redis-server here, and the demo does well without")
        return Settings().store_url, []
    data = folder / "redis"
    data.mkdir(exist_ok=True)
    # A socket file, in a folder of this user alone: no port that others could be using or could reach. Its path must be
    # short, which `folder` may not be.
    path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="forelabel-"))) / "redis.sock"
    command = [program, "--port", "0", "--unixsocket", str(path), "--dir", str(data), "--appendonly", "yes"]
    server = ChildProcess("Redis", command, folder / "logs" / "redis.log")
    stack.callback(server.stop)
    server.wait_until(lambda: _pings(path), timeout_s=60)
    _say("Embeddings are kept in Redis, with an append-only file")
    return f"unix://{path}", [server]


def _pings(path: Path) -> bool:
    with contextlib.suppress(redis.RedisError), redis.Redis(unix_socket_path=str(path)) as client:
        return bool(client.ping())
    return False


def _start_backend(
    port: int, logs: Path, studio_url: str, login: StudioLogin, store_url: str
) -> tuple[str, ChildProcess]:
    """Its address and its process. Every FORELABEL_ variable that is not set here reaches it as the user set it."""
    environment = {
        "FORELABEL_HOST": "127.0.0.1",
        "FORELABEL_PORT": str(port),
        "FORELABEL_STORE": store_url,
        "FORELABEL_STUDIO_URL": studio_url,
        "FORELABEL_STUDIO_TOKEN": login.token,
    }
    _say(f"Starting the backend with the model {Settings().model!r}")
    command = [sys.executable, "-m", "backend.cli", "serve"]
    return f"http://127.0.0.1:{port}", ChildProcess("The backend", command, logs / "backend.log", environment)


def _model_loaded(backend_url: str) -> bool:
    health = ask(f"{backend_url}/health") or {}
    if health.get("failure"):
        raise DemoError(f"the backend cannot load its model: {health['failure']}")
    return bool(health.get("ready"))


def _title(folder: Path | None, labels: Sequence[str]) -> str:
    """A project per folder and label set: other labels must not meet annotations made with the first ones."""
    if folder is None and tuple(labels) == SAMPLE_LABELS:
        return "Forelabel demo"
    return _short(f"{_subject(folder)}: {', '.join(labels)}")


def _subject(folder: Path | None) -> str:
    return folder.name if folder else "Forelabel demo"


def _short(title: str) -> str:
    """The title as Label Studio takes it; two long ones stay different."""
    if len(title) <= TITLE_LENGTH:
        return title
    digest = hashlib.sha256(title.encode()).hexdigest()[:6]
    return f"{title[: TITLE_LENGTH - len(digest) - 2]}… {digest}"


def _import_missing(client: Studio, project_id: int, photos: Sequence[Path]) -> None:
    there = Counter(upload_name(value) for task in client.tasks(project_id) for value in task["data"].values())
    missing = []
    for photo in photos:
        name = upload_name(photo.name)
        if there[name]:
            there[name] -= 1
        else:
            missing.append(photo)
    client.import_photos(project_id, missing)
    _say(f"  imported {len(missing)} photos, {len(photos) - len(missing)} were there already")


def _watch(children: Sequence[ChildProcess]) -> None:
    """Wait until one of them ends, which none should."""
    while all(child.running for child in children):
        time.sleep(1)
    ended = next(child for child in children if not child.running)
    raise DemoError(f"{ended.name} has ended; {ended.log} says why")
