"""The command line as a person types it, on the bundled model and pictures drawn on the spot."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from backend import cli
from backend.labelling import find_images, read_labels
from tests.retrieval.tiny_models import encoded, photo

runner = CliRunner()
OFFLINE = ["--captions", "none"]


@pytest.fixture(autouse=True)
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data directory of the test's own; settings that a command exports end with the test."""
    for name in ("MODEL", "DEVICE", "STORE", "CAPTIONS", "DECODER", "MEMORY", "STUDIO_URL", "STUDIO_TOKEN"):
        monkeypatch.setenv(f"FORELABEL_{name}", "")
        monkeypatch.delenv(f"FORELABEL_{name}")
    monkeypatch.setenv("FORELABEL_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    (folder / "b.png").write_bytes(encoded(photo(80, 60, 1)))
    (folder / "deep" / "a.jpg").write_bytes(encoded(photo(80, 60, 2), "JPEG"))
    (folder / "notes.txt").write_text("not a photo")
    return folder


def run(*args: str) -> tuple[int, list[dict], str]:
    """(exit status, JSON lines of stdout, stderr), the way `forelabel` itself ends."""
    status = 0
    try:
        with cli._one_line_errors():
            result = runner.invoke(cli.app, list(args), standalone_mode=False, catch_exceptions=True)
            if result.exception is not None:
                raise result.exception
    except SystemExit as end:
        status = int(end.code or 0)
    return status, [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")], result.stderr


def test_label_writes_one_line_per_image(photos: Path) -> None:
    status, lines, _ = run("label", str(photos), "--labels", "cat, dog,house", "--top", "2", *OFFLINE)
    assert status == 0
    assert [Path(line["image"]).name for line in lines] == ["b.png", "a.jpg"]
    for line in lines:
        scores = [item["score"] for item in line["labels"]]
        assert len(scores) == 2 and scores == sorted(scores, reverse=True) and all(0 <= s <= 1 for s in scores)
        assert line["captions"] == []


def test_label_goes_on_after_a_bad_image(photos: Path) -> None:
    (photos / "a_bad.jpg").write_text("I am no JPEG")
    (photos / "c_empty.png").write_bytes(b"")
    status, lines, _ = run("label", str(photos), "gone.jpg", "--labels", "cat,dog", *OFFLINE)
    assert status == 1
    assert [("error" in line) for line in lines] == [True, False, True, False, True]
    assert "cannot be read" in lines[-1]["error"] and "0 bytes" in lines[2]["error"]


def test_label_for_studio_and_html(photos: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    (photos / "bad.jpg").write_text("<script>")
    args = ["label", str(photos), "--labels", "<cat>,dog", "--format", "studio", "--html", str(page), *OFFLINE]
    result = runner.invoke(cli.app, args)
    tasks = json.loads(result.stdout)
    assert [len(task["predictions"]) for task in tasks] == [1, 0, 1]
    region = tasks[0]["predictions"][0]["result"][0]
    assert region["type"] == "choices" and region["value"]["choices"][0] in ("<cat>", "dog")
    html = page.read_text()
    assert html.count("<img") == 2 and "&lt;cat&gt;" in html and "<script>" not in html


@pytest.mark.parametrize(
    "args", [[], ["--labels", " , "], ["--labels", "a", "--labels-file", "x"], ["--labels-file", "none.txt"]]
)
def test_label_needs_a_label_set(args: list[str], photos: Path) -> None:
    result = runner.invoke(cli.app, ["label", str(photos), *args])
    assert result.exit_code == 2


def test_label_set_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_text("cat\n\n dog \ncat\n")
    assert read_labels(None, tmp_path / "l.txt") == ["cat", "dog"]


def test_find_images_keeps_order_and_drops_repeats(photos: Path) -> None:
    odd = photos / "notes.txt"
    found = find_images([odd, photos, photos / "b.png"])
    assert [p.name for p in found] == ["notes.txt", "b.png", "a.jpg"]


def test_index_build_then_label_with_it(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_text("a cat on a sofa\na red house\na dog at the beach\n")
    status, lines, _ = run("index", "build", str(tmp_path / "captions.txt"), "--out", str(tmp_path / "index"))
    assert status == 0 and lines[0]["captions"] == 3
    status, lines, _ = run("label", str(photos), "--labels", "cat,dog", "--captions", str(tmp_path / "index"))
    assert status == 0 and len(lines[0]["captions"]) == 3


def test_index_of_nothing_known(tmp_path: Path) -> None:
    (tmp_path / "captions.csv").write_text("a,b\n1,2\n")
    status, _, _ = run("index", "build", str(tmp_path / "captions.csv"), "--out", str(tmp_path / "index"))
    assert status == 1 and not (tmp_path / "index").exists()


def test_eval_counts_what_is_right(tmp_path: Path) -> None:
    rows = {
        "image": [encoded(photo(32, 32, i)) for i in range(6)] + [b"bad"],
        "kind": ["cat", "dog", "car", "tree", "cup", "bed", "cat"],
        "split": ["train"] + ["validation"] * 6,
    }
    pq.write_table(pa.table(rows), tmp_path / "d.parquet")
    args = ["eval", str(tmp_path / "d.parquet"), "--label-column", "kind", "--json", *OFFLINE]
    status, (result,), _ = run(*args, "--split", "validation")
    assert status == 0
    assert (result["images"], result["labels"], result["unreadable"]) == (5, 6, 1)
    for method in ("zero_shot", "xmore"):
        assert 0 <= result[method]["top1"] <= result[method]["top5"] <= 1
    assert result["xmore"] == result["zero_shot"]
    assert run(*args)[1][0]["images"] == 6


def test_eval_after_confirmed_images(tmp_path: Path) -> None:
    """Rows of the other split are confirmed; without a split every other one of each label is, and the rest asked."""
    rows = {
        "image": [
            encoded(Image.new("RGB", (32, 32), ((90 + i, 20, 20), (240, 240, 255 - i))[i % 2])) for i in range(16)
        ]
        + [b"bad"],
        "kind": [("cat", "dog")[i % 2] for i in range(17)],
        "split": ["train"] * 8 + ["validation"] * 8 + ["train"],
    }
    pq.write_table(pa.table(rows), tmp_path / "d.parquet")
    args = ["eval", str(tmp_path / "d.parquet"), "--label-column", "kind", "--json", "--shots", "0,1,9", *OFFLINE]
    for more, images in ((["--split", "validation"], 8), ([], 16)):
        status, (result,), _ = run(*args, *more, "--seeds", "2")
        assert status == 0 and result["images"] == images
        assert list(result["shots"]) == ["0", "1", "9"]
        assert result["shots"]["9"]["reranked"] == {"top1": 1.0, "top5": 1.0}  # dark red and white
    assert result["shots"]["0"]["reranked"]["top5"] == 1.0
    wrong = runner.invoke(cli.app, [*args, "--shots", "many"])
    assert wrong.exit_code == 2 and "many" in wrong.stderr


@pytest.mark.parametrize(
    "args",
    [
        ["nowhere.parquet", "--label-column", "x"],
        ["d.parquet", "--label-column", "wrong"],
        ["t.txt", "--label-column", "x"],
    ],
)
def test_eval_of_a_wrong_dataset(args: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pq.write_table(pa.table({"image": [b"x"], "label": ["a"]}), "d.parquet")
    Path("t.txt").write_text("no parquet")
    assert run("eval", *args, *OFFLINE)[0] == 1


def test_doctor_masks_secrets_and_says_what_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORELABEL_STUDIO_TOKEN", "s3cret-token")
    monkeypatch.setenv("FORELABEL_BASIC_AUTH", "user:passw0rd")
    monkeypatch.setenv("FORELABEL_CAPTIONS", "none")
    status, (report,), _ = run("doctor", "--json")
    assert status == 0 and all(part["ok"] for part in report["parts"].values())
    assert "s3cret" not in json.dumps(report) and "passw0rd" not in json.dumps(report)
    monkeypatch.setenv("FORELABEL_STORE", "redis://user:hidden@127.0.0.1:1/0")
    status, (report,), _ = run("doctor", "--json")
    assert status == 1 and not report["parts"]["store"]["ok"] and report["parts"]["encoder"]["ok"]
    assert not report["parts"]["confirmed labels"]["ok"]  # they are kept in the store's Redis
    assert "hidden" not in json.dumps(report)


@pytest.mark.parametrize(("name", "value"), [("FORELABEL_PORT", "many"), ("FORELABEL_BASIC_AUTH", "nocolon")])
def test_a_wrong_setting_is_named(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as end, cli._one_line_errors():
        cli._settings()
    assert end.value.code == 2 and name in capsys.readouterr().err


def test_every_command_shows_an_example() -> None:
    commands = [[c.name or c.callback.__name__] for c in cli.app.registered_commands]  # type: ignore[union-attr]
    commands += [["index", "build"], ["decoder", "train"], ["decoder", "import"], ["decoder", "info"]]
    assert len(commands) == 15
    for command in commands:
        shown = re.sub(r"\x1b\[[0-9;]*m", "", runner.invoke(cli.app, [*command, "--help"]).stdout)
        assert "Example:" in shown, command
