"""A Label Studio of one's own on this machine, for the demo and the end-to-end tests.

Label Studio pins packages that clash with ours, so it is run as a program from its own virtual environment and never
imported. The settings are those that its own behaviour makes necessary; each says why.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from backend.child_process import ChildProcess, ask

START_TIMEOUT_S = 300.0
"""The first start runs some hundred database migrations: a minute on a fast laptop, several on a busy small machine."""

PROGRAM_SETTING = "FORELABEL_LABEL_STUDIO"

SETTINGS = {
    # Without this, connecting a backend on this machine is refused: 403 "reserved network address".
    "USE_DEFAULT_BANNED_SUBNETS": "false",
    # Nothing is to leave this machine: no statistics, no version check, no error reports, no remote feature flags.
    "COLLECT_ANALYTICS": "0",
    "LATEST_VERSION_CHECK": "0",
    "SENTRY_DSN": "",
    "FRONTEND_SENTRY_DSN": "",
    "FEATURE_FLAGS_OFFLINE": "true",
    # The development server has no nginx in front to hand out uploaded files.
    "USE_NGINX_FOR_UPLOADS": "false",
}


class StudioNotFoundError(Exception):
    """There is no Label Studio program; the message says how to get one."""


@dataclass(frozen=True)
class StudioLogin:
    """The user that a fresh Label Studio is given."""

    email: str
    password: str = field(repr=False)
    token: str = field(repr=False)
    """40 hex digits: a legacy access token, which does not expire."""


def find_label_studio() -> Path:
    """The Label Studio program: the one in FORELABEL_LABEL_STUDIO, in .venv-studio beside the packages, or on PATH.

    Raises:
        StudioNotFoundError: there is none.
    """
    if named := os.environ.get(PROGRAM_SETTING):
        if os.access(named, os.X_OK):
            return Path(named)
        raise StudioNotFoundError(
            f"{PROGRAM_SETTING} is {named!r}, which is not a program; name the label-studio executable"
        )
    beside = Path(__file__).parent.parent / ".venv-studio" / "bin" / "label-studio"
    if beside.exists():
        return beside
    if on_path := shutil.which("label-studio"):
        return Path(on_path)
    raise StudioNotFoundError(
        "Label Studio is not installed. `make demo` installs it in a checkout; elsewhere make it an environment of its"
        f" own (`python -m venv studio && studio/bin/pip install label-studio`) and set {PROGRAM_SETTING}"
        " to studio/bin/label-studio"
    )


class StudioProcess(ChildProcess):
    """A Label Studio that listens on this machine only."""

    def __init__(self, data_dir: Path, port: int, login: StudioLogin, log: Path) -> None:
        """Start it; `wait` before using it. A second start on the same `data_dir` finds the first one's projects."""
        self.url = f"http://127.0.0.1:{port}"
        data_dir.mkdir(parents=True, exist_ok=True)
        environment = {
            **SETTINGS,
            "LABEL_STUDIO_BASE_DATA_DIR": str(data_dir),
            "DATABASE_NAME": str(data_dir / "label_studio.sqlite3"),
            # By environment and not by flags: everyone on the machine can read a command line.
            "LABEL_STUDIO_USERNAME": login.email,
            "LABEL_STUDIO_PASSWORD": login.password,
            "LABEL_STUDIO_USER_TOKEN": login.token,
        }
        command = [str(find_label_studio()), "start", "--no-browser", "--init"]
        # Without the first of these (read when the organisation is made) the token would get 401.
        command += ["--enable-legacy-api-token", "--internal-host", "127.0.0.1", "-p", str(port)]
        super().__init__("Label Studio", command, log=log, env=environment)

    def wait(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Return once it answers.

        Raises:
            ChildProcessError: it has ended, or the time is up.
        """
        self.wait_until(lambda: ask(f"{self.url}/health") is not None, timeout_s)
