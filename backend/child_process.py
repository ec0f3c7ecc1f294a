"""A child process that ends when its parent does, however the parent ends.

`ChildProcess` starts this file as a program, a watcher in a process group of its own. The watcher runs
the command and holds the read end of a pipe. When the parent closes the pipe, or dies and the system closes it, the
watcher ends the whole group: SIGTERM first, SIGKILL after a grace time. Ctrl-C in the terminal reaches the parent only,
which can then stop its children in order.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

GRACE_S = 10.0
"""From SIGTERM to SIGKILL: Redis writes its append-only file and uvicorn ends its requests in less."""

POLL_S = 0.5
"""Between two looks whether a child is ready: a start takes seconds, and the child needs the processor itself."""

LOG_TAIL_LINES = 15


class ChildProcessError(Exception):
    """A child ended or did not become ready; the message carries the end of its log."""


class ChildProcess:
    """A running command with its output in a log file."""

    def __init__(self, name: str, command: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> None:
        """Start it.

        Args:
            name: for messages, as in "Label Studio".
            command: program and arguments; no shell is involved.
            log: gets standard output and standard error; begun anew.
            env: added to this process's environment.
        """
        self.name = name
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            self._watcher = subprocess.Popen(  # noqa: S603  (a list, not a shell line)
                [sys.executable, "-P", __file__, *command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )

    @property
    def running(self) -> bool:
        return self._watcher.poll() is None

    def wait_until(self, ready: Callable[[], bool], timeout_s: float) -> None:
        """Return once `ready()` holds.

        Raises:
            ChildProcessError: the process has ended, or the time is up.
        """
        give_up = time.monotonic() + timeout_s
        while not ready():
            if not self.running:
                raise ChildProcessError(f"{self.name} ended with exit status {self._watcher.returncode}.{self._tail()}")
            if time.monotonic() > give_up:
                raise ChildProcessError(f"{self.name} was not ready after {timeout_s:.0f} s.{self._tail()}")
            time.sleep(POLL_S)

    def stop(self) -> None:
        """End the process and all that it started; returns when they are gone. Does nothing the second time."""
        if self._watcher.stdin and not self._watcher.stdin.closed:
            self._watcher.stdin.close()
        self._watcher.wait()

    def _tail(self) -> str:
        lines = self.log.read_text("utf-8", "replace").splitlines()[-LOG_TAIL_LINES:]
        return "\n".join([f" The end of {self.log}:", *(f"    {line}" for line in lines)])


def ask(url: str, timeout_s: float = 2.0) -> dict[str, Any] | None:
    """What a server on this machine answers to a GET, given 200 and a JSON object; None for anything else.

    Over http.client, since it is asked again and again while the server starts: a proxy is not to be asked for this
    machine, and a TLS context is not to be made each time.
    """
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout_s)
    try:
        connection.request("GET", parts.path)
        response = connection.getresponse()
        body = json.loads(response.read()) if response.status == 200 else None
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()
    return body if isinstance(body, dict) else None


def _watch(command: Sequence[str]) -> None:
    """The watcher's side: run `command`, and end the group when the pipe on standard input closes."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)  # noqa: S603

    def follow() -> None:
        os._exit(process.wait())  # from a thread, while the main one is blocked in read()

    threading.Thread(target=follow, daemon=True).start()
    sys.stdin.buffer.read()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.killpg(0, signal.SIGTERM)
    time.sleep(GRACE_S)  # follow() ends this when the process has ended
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    _watch(sys.argv[1:])
