"""`forelabel demo --check`, as `make demo CHECK=1` runs it, twice."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from backend.demo_photos import SAMPLE_PHOTOS
from tests.e2e.harness import ROOT


def run_demo(data_dir: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "backend.cli", "demo", "--check"],
        cwd=ROOT,
        env={**os.environ, "FORELABEL_DATA_DIR": str(data_dir)},
        capture_output=True,
        text=True,
        timeout=1200,
    )


@pytest.mark.timeout(1500)
def test_the_demo_checks_itself_and_goes_on_where_it_left_off(tmp_path: Path) -> None:
    count = len(SAMPLE_PHOTOS)
    first = run_demo(tmp_path)
    report = first.stdout + first.stderr
    assert f"imported {count} photos" in first.stdout, report
    assert f"{count} of {count} photos have exactly one prediction, from the label set" in first.stdout, report
    second = run_demo(tmp_path)
    assert f"imported 0 photos, {count} were there already" in second.stdout, second.stdout + second.stderr
    assert second.stdout.splitlines()[-4:] == first.stdout.splitlines()[-4:]
    left = subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, text=True)
    assert left.stdout == "", "the demo left processes behind"
    found = re.search(r"(\d+) of \d+ are right", first.stdout)
    assert found, report
    assert (first.returncode == 0) == (3 * int(found[1]) >= 2 * count)
    if first.returncode:
        pytest.xfail(f"the pocket encoder is right on {found[1]} of {count} sample photos; two thirds are wanted")
