"""The demo without its servers; tests/e2e/test_demo.py runs it whole."""

from __future__ import annotations

import json
import socket
import stat
from pathlib import Path
from typing import Any, cast

import pytest

from backend import demo
from backend.demo_check import check_names, check_predictions, upload_name
from backend.demo_photos import SAMPLE_LABELS, SAMPLE_PHOTOS, photos_in
from backend.studio_process import StudioNotFoundError, find_label_studio
from plugin.studio import UPLOAD_SUFFIXES, Studio

PHOTOS = [photo.path for photo in SAMPLE_PHOTOS]


class FakeStudio:
    """Holds one task per photo, and the choices that are given for each."""

    def __init__(self, choices: list[list[list[str]]]) -> None:
        self._choices = choices

    def tasks(self, project_id: int) -> list[dict[str, Any]]:
        return [
            {"id": number, "data": {"image": f"/data/upload/{project_id}/0123abcd-{path.name}"}}
            for number, path in enumerate(PHOTOS)
        ]

    def predictions(self, project_id: int) -> list[dict[str, Any]]:
        return [
            {"id": 1, "task": task, "result": [{"value": {"choices": labels}}] if labels else []}
            for task, predictions in enumerate(self._choices)
            for labels in predictions
        ]


def check(choices: list[list[list[str]]]) -> Any:
    return check_predictions(cast(Studio, FakeStudio(choices)), 7, PHOTOS, SAMPLE_LABELS, SAMPLE_PHOTOS)


def right() -> list[list[list[str]]]:
    return [[[min(photo.accepted)]] for photo in SAMPLE_PHOTOS]


def test_every_sample_photo_is_there_and_has_a_label_of_the_set() -> None:
    assert len(SAMPLE_PHOTOS) >= 12
    assert len({photo.file for photo in SAMPLE_PHOTOS}) == len(SAMPLE_PHOTOS)
    for photo in SAMPLE_PHOTOS:
        assert photo.path.stat().st_size > 10_000
        assert photo.path.suffix in UPLOAD_SUFFIXES
        assert photo.accepted
        assert photo.accepted <= set(SAMPLE_LABELS)
    unused = set(SAMPLE_LABELS) - {label for photo in SAMPLE_PHOTOS for label in photo.accepted}
    assert len(unused) >= 5, "a label set without distractors would be too easy"


def test_the_check_passes_when_all_is_right() -> None:
    report = check(right())
    assert report.passed
    assert report.lines[-1] == "PASSED"


@pytest.mark.parametrize(
    ("third", "passed"), [([["tabby", "cat"]], True), ([["tabby"], ["cat"]], True), ([[]], False), ([], False)]
)
def test_the_check_wants_a_name_for_every_photo(third: list[list[str]], passed: bool) -> None:
    class Named(FakeStudio):
        def predictions(self, project_id: int) -> list[dict[str, Any]]:
            return [
                {"task": task, "result": [{"value": {"taxonomy": [[name] for name in names]}}]}
                for task, predictions in enumerate(self._choices)
                for names in predictions
            ]

    choices = [[["thing"]] for _ in PHOTOS]
    choices[3] = third
    report = check_names(cast(Studio, Named(choices)), 8, PHOTOS)
    assert report.passed == passed
    assert report.lines[-1] == f"{len(PHOTOS) - (not passed)} of {len(PHOTOS)} photos have names"


def test_the_check_wants_two_thirds_right() -> None:
    choices = right()
    for wrong in range(len(PHOTOS) // 3):
        choices[wrong] = [["pizza"]]
    assert check(choices).passed
    choices[len(PHOTOS) // 3] = [["pizza"]]
    report = check(choices)
    assert not report.passed
    assert any("wrong" in line and "pizza" in line for line in report.lines)


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param([], id="no prediction"),
        pytest.param([["cat"], ["cat"]], id="two predictions"),
        pytest.param([["cat", "dog"]], id="two choices"),
        pytest.param([[]], id="no choice"),
        pytest.param([["unicorn"]], id="not in the label set"),
    ],
)
def test_the_check_fails_for_one_fault(fault: list[list[str]]) -> None:
    choices = right()
    choices[3] = fault
    report = check(choices)
    assert not report.passed
    assert sum("FAULT" in line for line in report.lines) == 1


def test_photos_that_never_arrived_are_faults() -> None:
    report = check_predictions(cast(Studio, FakeStudio(right())), 7, [Path("other.jpg")], SAMPLE_LABELS, ())
    assert not report.passed
    assert "not in the project" in report.lines[0]


@pytest.mark.parametrize(
    ("stored", "own"),
    [
        ("/data/upload/4/f5a86d2d-chelsea.png", "chelsea.png"),
        ("/data/upload/4/f5a86d2d-my-cat_1.jpg", "my-cat 1.jpg"),
        ("/data/upload/12/0123abcd-caf%C3%A9_2.jpg", "café (2).jpg"),
    ],
)
def test_uploads_are_recognised_by_name(stored: str, own: str) -> None:
    assert upload_name(stored) == upload_name(own)


def test_a_folder_of_photos(tmp_path: Path) -> None:
    for name in ("b.JPG", "sub/a.png", "notes.txt", ".hidden"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    found = photos_in(tmp_path, UPLOAD_SUFFIXES)
    assert [path.relative_to(tmp_path).as_posix() for path in found] == ["b.JPG", "sub/a.png"]
    with pytest.raises(FileNotFoundError, match="not a folder"):
        photos_in(tmp_path / "none", UPLOAD_SUFFIXES)
    with pytest.raises(FileNotFoundError, match=r"no image.*\.jpg"):
        photos_in(tmp_path / "sub", {".jpg"})


def test_a_taken_port_is_passed_over_or_reported() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert port < demo._port(None, port) <= port + demo.PORTS_TRIED
        with pytest.raises(demo.DemoError, match=f"port {port} is in use"):
            demo._port(port, 8080)


def test_the_login_is_made_once_and_for_this_user_alone(tmp_path: Path) -> None:
    path = tmp_path / "login.json"
    login = demo._login(path)
    assert len(login.token) == 40
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert demo._login(path) == login
    assert login.password not in repr(login)
    assert json.loads(path.read_text())["password"] == login.password


def test_one_demo_per_folder(tmp_path: Path) -> None:
    with demo._locked(tmp_path), pytest.raises(demo.DemoError, match="already running"), demo._locked(tmp_path):
        pass
    with demo._locked(tmp_path):
        pass


def test_a_project_per_folder_and_label_set() -> None:
    assert demo._title(None, SAMPLE_LABELS) == "Forelabel demo"
    assert demo._title(Path("/x/holiday"), ("cat", "dog")) == "holiday: cat, dog"
    long = [demo._title(Path("/x/holiday"), [*map(str, range(50)), last]) for last in ("a", "b")]
    assert long[0] != long[1]
    assert all(len(title) <= demo.TITLE_LENGTH for title in long)


def test_a_folder_without_photos_is_one_line_and_a_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORELABEL_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr(demo.signal, "signal", lambda *args: None)
    assert demo.run_demo(photos=tmp_path / "nowhere") == 1
    assert capsys.readouterr().err.splitlines() == [
        f"forelabel demo: {tmp_path / 'nowhere'} is not a folder; name one with photos in it"
    ]


def test_label_studio_is_looked_for_where_the_setting_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "label-studio"
    monkeypatch.setenv("FORELABEL_LABEL_STUDIO", str(program))
    with pytest.raises(StudioNotFoundError, match="not a program"):
        find_label_studio()
    program.touch(mode=0o700)
    assert find_label_studio() == program
