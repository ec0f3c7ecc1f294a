"""Children end with their parent: by stop(), by the parent's death, and together with what they started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from backend.child_process import ChildProcess, ChildProcessError, ask

# Starts a grandchild, writes both process ids into the file that is named, and sleeps.
FAMILY = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("started", flush=True)
with open(sys.argv[1] + ".part", "w") as file:
    file.write(f"{os.getpid()} {child.pid}")
os.rename(sys.argv[1] + ".part", sys.argv[1])
time.sleep(600)
"""

PARENT = """
import sys, time
from pathlib import Path
from backend.child_process import ChildProcess
child = ChildProcess("Family", [sys.executable, "-c", sys.argv[1], sys.argv[2]], Path(sys.argv[3]))
time.sleep(600)
"""


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie is dead; in a container nobody may reap it.
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"


def eventually(holds: Callable[[], bool], timeout_s: float = 60) -> None:
    give_up = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < give_up
        time.sleep(0.05)


def test_stop_ends_the_whole_family(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    child = ChildProcess("Family", [sys.executable, "-c", FAMILY, str(pids)], tmp_path / "logs" / "family.log")
    child.wait_until(pids.exists, 60)
    family = [int(pid) for pid in pids.read_text().split()]
    assert child.running
    assert all(alive(pid) for pid in family)
    child.stop()
    child.stop()
    assert not child.running
    eventually(lambda: not any(alive(pid) for pid in family))
    assert (tmp_path / "logs" / "family.log").read_text() == "started\n"


def test_a_killed_parent_takes_its_children_along(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    command = [sys.executable, "-c", PARENT, FAMILY, str(pids), str(tmp_path / "log")]
    parent = subprocess.Popen(command, cwd=Path(__file__).parents[2])
    eventually(pids.exists)
    family = [int(pid) for pid in pids.read_text().split()]
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    eventually(lambda: not any(alive(pid) for pid in family))


def test_a_child_that_ends_is_reported_with_its_last_words(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "print('no such setting: FOO'); raise SystemExit(3)"]
    child = ChildProcess("The backend", command, tmp_path / "backend.log")
    with pytest.raises(ChildProcessError, match=r"(?s)The backend ended with exit status 3.*no such setting: FOO"):
        child.wait_until(lambda: False, 60)
    child.stop()


def test_a_child_that_is_never_ready_is_reported(tmp_path: Path) -> None:
    child = ChildProcess("Sleeper", [sys.executable, "-c", "import time; time.sleep(600)"], tmp_path / "log")
    with pytest.raises(ChildProcessError, match="Sleeper was not ready after 0 s"):
        child.wait_until(lambda: False, 0)
    child.stop()


def test_the_environment_is_added_to_ones_own(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import os; print(os.environ['COLOUR'], 'PATH' in os.environ)"]
    child = ChildProcess("Printer", command, tmp_path / "log", {"COLOUR": "blue"})
    eventually(lambda: not child.running)
    child.stop()
    assert (tmp_path / "log").read_text() == "blue True\n"


def test_asking_a_port_that_nobody_listens_on() -> None:
    assert ask("http://127.0.0.1:9/health") is None
