"""Servers that tests of several rooms talk to: a real Redis, on a free port, in a folder of its own."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from hypothesis import settings

# How long an example takes says more about the machine than about the code.
settings.register_profile("forelabel", deadline=None)
settings.load_profile("forelabel")


class RedisProcess:
    """A redis-server that can be stopped and started again on the same port. Keeps nothing on disk."""

    def __init__(self, folder: Path) -> None:
        program = shutil.which("redis-server")
        if program is None:
            pytest.fail("redis-server is not installed: apt-get install redis-server (macOS: brew install redis)")
        self._folder = folder
        self._port = free_port()
        self._command = [program, "--port", str(self._port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"redis://127.0.0.1:{self._port}/0"

    def start(self) -> None:
        with (self._folder / "redis.log").open("ab") as log:
            self._process = subprocess.Popen(self._command, cwd=self._folder, stdout=log, stderr=log)
        with redis.Redis(port=self._port) as client:
            for _ in range(600):
                try:
                    client.ping()
                except redis.RedisError:
                    time.sleep(0.05)
                else:
                    return
        pytest.fail(f"redis-server did not come up:\n{(self._folder / 'redis.log').read_text()}")

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def free_port() -> int:
    """A TCP port of the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a Redis that all tests share; a test that uses it clears what it needs cleared."""
    server = RedisProcess(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server.url
    server.stop()


@pytest.fixture
def stoppable_redis(tmp_path: Path) -> Iterator[RedisProcess]:
    """A Redis of the test's own, running: `.url`, `.stop()`, `.start()`."""
    server = RedisProcess(tmp_path)
    server.start()
    yield server
    server.stop()
