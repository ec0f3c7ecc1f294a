"""The house rules that a linter cannot know: who may import whom, and what a running server must not carry."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

ALLOWED = {
    "backend": {"plugin", "retrieval", "decoder"},
    "decoder": {"retrieval"},
    "plugin": set[str](),
    "retrieval": set[str](),
}
"""Arrows of the design: a package may import itself and these."""

OUTSIDE = {"benchmarks", "recipes", "tests"}
"""They drive the four and are not installed: none of the four may import them."""

SDK_FILE = Path("plugin/studio.py")
"""The only one that knows label-studio-sdk, which serving does not need."""


def imported_modules(source: str) -> set[str]:
    """Dotted names of everything that a file imports, at its top or inside a function."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide who imports whom"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def sources() -> Iterator[tuple[Path, set[str]]]:
    for package in ALLOWED:
        for path in sorted((ROOT / package).rglob("*.py")):
            yield path.relative_to(ROOT), imported_modules(path.read_text("utf-8"))


def test_the_rule_sees_every_kind_of_import() -> None:
    source = "import a.b\nfrom c import d\ndef f():\n    from e.f import g\n    import h as i\n"
    assert imported_modules(source) == {"a.b", "c.d", "e.f.g", "h"}


def test_packages_import_only_what_the_design_allows() -> None:
    seen = list(sources())
    assert len(seen) > 10
    wrong = [
        f"{path} imports {name}"
        for path, names in seen
        for name in sorted(names)
        if (top := name.partition(".")[0]) in (ALLOWED.keys() | OUTSIDE)
        and top != path.parts[0]
        and top not in ALLOWED[path.parts[0]]
    ]
    assert wrong == []


def test_the_decoder_knows_only_the_encoder_of_retrieval() -> None:
    wrong = [
        f"{path} imports {name}"
        for path, names in sources()
        for name in sorted(names)
        if path.parts[0] == "decoder"
        and name.startswith("retrieval.")
        and not name.startswith(("retrieval.encoder", "retrieval.errors"))
    ]
    assert wrong == []


def test_only_one_file_knows_the_sdk() -> None:
    knowing = {path for path, names in sources() if any(name.startswith("label_studio_sdk") for name in names)}
    assert knowing <= {SDK_FILE}


def test_the_plugin_needs_no_torch() -> None:
    heavy = {"torch", "transformers", "faiss", "fastapi"}
    wrong = [
        path for path, names in sources() if path.parts[0] == "plugin" and {n.partition(".")[0] for n in names} & heavy
    ]
    assert wrong == []


SERVE_ONE_REQUEST = """
import sys
import time
import uvicorn
from backend import cli

def run(app, **options):  # in place of the endless server: one start, one round of requests, one stop
    from fastapi.testclient import TestClient
    from uvicorn.importer import import_from_string
    with TestClient(import_from_string(app)()) as client:
        while not client.get("/health").json()["ready"]:
            time.sleep(0.2)
        assert client.post("/predict", json={"tasks": []}).json() == {"results": []}
        print("MODULES", *sorted(sys.modules))

uvicorn.run = run
sys.argv = ["forelabel", "serve"]
cli.main()
"""


@pytest.fixture(scope="module")
def server_modules(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The modules of a process that runs `forelabel serve`."""
    data_dir = str(tmp_path_factory.mktemp("data"))
    # No captions: to build their index takes a while, and imports nothing that the model does not.
    environment = {**os.environ, "FORELABEL_DATA_DIR": data_dir, "FORELABEL_CAPTIONS": "none"}
    done = subprocess.run(
        [sys.executable, "-c", SERVE_ONE_REQUEST],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "MODULES" in done.stdout, done.stderr
    return set(done.stdout.partition("MODULES")[2].split())


@pytest.mark.parametrize("module", ["flask", "werkzeug", "label_studio_ml.api", "label_studio_sdk", "pytest"])
def test_a_running_server_does_not_carry(server_modules: set[str], module: str) -> None:
    """label-studio-ml pins Flask 1.1.2 of 2020, whose known holes are no concern as long as it is never imported."""
    assert module not in server_modules


def test_a_running_server_carries_the_base_class(server_modules: set[str]) -> None:
    assert {"label_studio_ml.model", "backend.app"} <= server_modules
