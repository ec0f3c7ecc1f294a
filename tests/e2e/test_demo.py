"""`forelabel demo --check`, as `make demo CHECK=1` runs it, twice."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from backend.demo_photos import SAMPLE_PHOTOS
from tests.e2e.harness import ROOT


def run_demo(data_dir: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "backend.cli", "demo", "--check"],
        cwd=ROOT,
        env={**os.environ, "FORELABEL_DATA_DIR": str(data_dir)},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.timeout(1500)
def test_the_demo_checks_itself_and_goes_on_where_it_left_off(tmp_path: Path) -> None:
    count = len(SAMPLE_PHOTOS)
    first = run_demo(tmp_path)
    assert f"imported {count} photos" in first
    assert f"{count} of {count} photos have exactly one prediction, from the label set" in first
    second = run_demo(tmp_path)
    assert f"imported 0 photos, {count} were there already" in second
    assert second.splitlines()[-4:] == first.splitlines()[-4:]
    left = subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, text=True)
    assert left.stdout == "", "the demo left processes behind"
