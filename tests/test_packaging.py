"""The files around the code: pins, image, compose file, Makefile."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from backend.settings import Settings
from backend.studio_process import SETTINGS

ROOT = Path(__file__).parent.parent
PIN = re.compile(r"([A-Za-z0-9._-]+)==([^\s+]+)")


def pins(name: str) -> dict[str, str]:
    lines = [line for line in (ROOT / name).read_text("utf-8").splitlines() if line and not line.startswith("#")]
    found = [PIN.fullmatch(line) for line in lines]
    assert None not in found, f"{name}: every line must read name==version, without a local part such as +cpu"
    return {canonicalize_name(match[1]): match[2] for match in found if match}


def requirements() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = project["dependencies"] + extras["studio"] + extras["demo"] + extras["dev"]
    return [Requirement(line) for line in wanted]


def test_every_dependency_is_pinned_to_a_version_that_fits() -> None:
    pinned = pins("constraints.txt")
    for requirement in requirements():
        if requirement.name != "forelabel":
            assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), requirement


def test_label_studio_is_pinned_as_the_compose_file_runs_it() -> None:
    version = pins("constraints-studio.txt")["label-studio"]
    assert compose()["services"]["label-studio"]["image"] == f"heartexlabs/label-studio:{version}"


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))
    return loaded


def test_compose_sets_only_settings_that_exist() -> None:
    for name in compose()["services"]["backend"]["environment"]:
        assert name.removeprefix("FORELABEL_").lower() in Settings.model_fields, name


def test_compose_gives_label_studio_what_the_demo_gives_it() -> None:
    environment = compose()["services"]["label-studio"]["environment"]
    # Offline flags and no nginx are for the development server only: the image brings nginx and its own flags.
    needed = SETTINGS.keys() - {"FEATURE_FLAGS_OFFLINE", "USE_NGINX_FOR_UPLOADS"}
    assert {name: environment[name] for name in needed} == {name: SETTINGS[name] for name in needed}


def test_compose_keeps_data_in_declared_volumes() -> None:
    spec = compose()
    for name, service in spec["services"].items():
        named = [volume.split(":")[0] for volume in service["volumes"] if volume[0].isalpha()]
        assert named, f"{name} would lose its data"
        assert set(named) <= spec["volumes"].keys()
    assert "--appendonly" in spec["services"]["redis"]["command"]


def test_the_image_holds_every_package_that_is_installed() -> None:
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["packages"]
    dockerfile = (ROOT / "Dockerfile").read_text("utf-8")
    ignore = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    for package in packages:
        assert f"COPY {package} {package}" in dockerfile
        assert f"!{package}" in ignore


def test_the_licence_is_the_one_that_is_declared() -> None:
    assert tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["license"] == "Apache-2.0"
    assert "Apache License\n                           Version 2.0" in (ROOT / "LICENSE").read_text("utf-8")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "forelabel demo"),
        (["CHECK=1"], "forelabel demo --check"),
        (
            ["PHOTOS=~/my photos", "LABELS=cat,dog"],
            'forelabel demo --photos "~/my photos" --labels "cat,dog"',
        ),
    ],
)
def test_make_demo_hands_its_variables_on(arguments: list[str], expected: str) -> None:
    # Without what an outer `make test` hands down, which would be for its own targets.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    command = ["make", "-n", "demo", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert " ".join(done.stdout.splitlines()[-1].split()).endswith(expected)


def test_ci_runs_what_a_developer_runs() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert "exec make test" in script.read_text("utf-8")
