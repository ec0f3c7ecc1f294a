from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from PIL import Image

from backend.engine import Engine
from backend.memory import Confirmation, Stored
from backend.report import SUSPECTS_SHOWN, Suspect, figures, find_suspects, write_report
from backend.report_figures import Bin, LabelFigures, Pair, Tally
from backend.reranking import ProjectRanker
from backend.sqlite_memory import SqliteMemory
from plugin.labeling_config import LabelingConfig, parse_labeling_config
from retrieval.encoder import DualEncoder

DIM = 16
KINDS = ["cat", "dog", "owl"]
LABELS = np.eye(3, DIM, dtype=np.float32)


def config(*questions: str) -> LabelingConfig:
    return parse_labeling_config(f'<View><Image name="image" value="$image"/>{"".join(questions)}</View>')


def choices(name: str, labels: Sequence[str], more: str = "") -> str:
    inner = "".join(f"<Choice {label if '=' in label else f'value={label!r}'}/>" for label in labels)
    return f'<Choices name="{name}" toName="image" {more}>{inner}</Choices>'


KIND = choices("kind", KINDS)
TRAITS = choices("traits", ["wet", "old"], 'choice="multiple"')


def confirmed(
    annotation: int,
    answers: dict[str, list[Stored]],
    suggested: dict[str, list[Stored]] | None = None,
    task: int | None = None,
    created: float | None = None,
    embedding: np.ndarray | None = None,
) -> Confirmation:
    created = float(annotation) if created is None else created
    found = {} if embedding is None else {"$image": embedding.astype(np.float16)}
    task = annotation if task is None else task
    images = {"$image": f"photo {task}"}
    return Confirmation(annotation, task, created, created, 1, answers, suggested or {}, images, "stub", found)


def kinds(annotation: int, suggested: str, answered: str, task: int | None = None) -> Confirmation:
    return confirmed(annotation, {"kind": [answered]}, {"kind": [suggested]}, task)


def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (600, 400), "red").save(buffer, "JPEG")
    return buffer.getvalue()


# --- figures


def test_one_question_counted_by_hand() -> None:
    rows = [
        *[kinds(i, "cat", "cat") for i in range(1, 5)],
        *[kinds(i, "cat", "dog") for i in range(5, 12)],
        kinds(12, "cat", "dog", task=11),  # a second annotator
        kinds(13, "cat", "owl"),
        *[kinds(i, "dog", "dog") for i in range(14, 19)],
        kinds(19, "owl", "cat"),
        replace(confirmed(20, {}, {"kind": ["cat"]}), skipped=True),
        confirmed(21, {"kind": ["owl"]}),  # nothing was suggested
        confirmed(22, {"other": ["x"]}, {"kind": ["dog"]}),  # the suggestion was taken out, and nothing put in
    ]
    found = figures(rows[::-1], config(KIND))
    assert (found.annotations, found.skipped) == (21, 1)
    assert found.overall == Tally(20, 9)
    assert found.labels == [
        LabelFigures("kind", "cat", Tally(13, 4), 5),
        LabelFigures("kind", "dog", Tally(6, 5), 13),
    ]
    assert (found.labels_rare, found.labels_left_out) == (1, 0)
    assert found.pairs == [
        Pair("kind", "cat", "dog", 8, (11, 10, 9, 8, 7)),  # the latest five, each once
        Pair("kind", "cat", "owl", 1, (13,)),
        Pair("kind", "owl", "cat", 1, (19,)),
    ]
    assert found.bins == []


def test_several_answers_are_taken_as_a_set_and_each_label_for_itself() -> None:
    suggested: list[Stored] = ["wet", "old"]
    answers: list[list[Stored]] = [["old", "wet"], ["old"], ["old"], ["old", "new"], []]
    rows = [
        confirmed(i, {"traits": answer, "kind": ["cat"]}, {"traits": suggested}) for i, answer in enumerate(answers)
    ]
    found = figures(rows, config(KIND, TRAITS))
    assert found.questions == {"kind": Tally(0, 0), "traits": Tally(5, 1)}
    assert [(each.label, each.tally, each.confirmed) for each in found.labels] == [
        ("wet", Tally(5, 1), 1),
        ("old", Tally(5, 4), 4),
    ]
    assert found.pairs == []  # which label took the place of which is not said


def test_labels_are_shown_as_the_annotator_reads_them() -> None:
    tree = '<Taxonomy name="tree" toName="image"><Choice value="bird"><Choice value="owl"/></Choice></Taxonomy>'
    asked = config(choices("kind", ['value="House cat" alias="c"', 'value="dog"']), tree)
    rows = [
        confirmed(i, {"kind": ["dog"], "tree": [["bird", "owl"]]}, {"kind": ["c"], "tree": [["bird", "owl"]]})
        for i in range(5)
    ]
    found = figures(rows, asked)
    assert [each.label for each in found.labels] == ["House cat", "bird / owl"]
    assert [(each.suggested, each.confirmed) for each in found.pairs] == [("House cat", "dog")]
    assert found.overall == Tally(10, 5)


def test_time_is_cut_into_parts_of_equal_count() -> None:
    rows = [kinds(i, "cat", "cat" if i > 20 else "dog") for i in range(1, 42)]
    unknown = [confirmed(i, {"kind": ["cat"]}, {"kind": ["cat"]}, created=0.0) for i in range(100, 120)]
    found = figures(rows + unknown, config(KIND))
    assert found.bins == [Bin(1.0, 20.0, Tally(20, 0)), Bin(21.0, 41.0, Tally(21, 21))]
    assert found.overall == Tally(61, 41)
    many = figures([kinds(i, "cat", "cat") for i in range(1, 1001)], config(KIND)).bins
    assert len(many) == 30 and {each.tally.suggested for each in many} == {33, 34}


def test_long_lists_are_cut_and_say_so() -> None:
    names = [f"label {i}" for i in range(110)]
    rows = [kinds(6 * i + j, name, "dog" if j else name) for i, name in enumerate(names) for j in range(5)]
    found = figures(rows, config(choices("kind", [*names, "dog"])))
    assert (len(found.labels), found.labels_left_out, found.labels_rare) == (100, 10, 1)
    assert (len(found.pairs), found.pairs_left_out) == (30, 80)


# --- suspects


def photo(kind: int, seed: int) -> np.ndarray:
    """Photos of one kind are near each other, and say nothing to the label texts."""
    row = np.random.default_rng(100 + kind).normal(size=DIM) + 0.2 * np.random.default_rng(seed).normal(size=DIM)
    return np.asarray(row / np.linalg.norm(row), np.float32)


def suspects(folder: Path, rows: Sequence[Confirmation], asked: LabelingConfig) -> list[Suspect]:
    encoder = cast(DualEncoder, SimpleNamespace(dim=DIM, fingerprint="stub", logit_scale=10.0))
    engine = cast(Engine, SimpleNamespace(label_embeddings=lambda texts, hints=None: LABELS[: len(texts)]))
    with closing(SqliteMemory(folder / "memory.db")) as memory:
        memory.put("1.1", rows)
        ranker = ProjectRanker("1.1", memory, encoder)
        ranker.refresh()
        return find_suspects(ranker, engine, asked, rows)


def test_a_wrong_label_is_found(tmp_path: Path) -> None:
    rows = [confirmed(i, {"kind": [KINDS[i % 3]], "traits": ["wet"]}, embedding=photo(i % 3, i)) for i in range(1, 76)]
    rows[14] = confirmed(15, {"kind": ["owl"]}, embedding=photo(0, 15))  # a cat
    rows[20] = confirmed(21, {"kind": ["dog"]}, embedding=photo(0, 21))  # a cat, which two others know
    rows += [confirmed(i, {"kind": ["cat"]}, task=21, embedding=photo(0, 21)) for i in (100, 101)]
    rows[23] = confirmed(24, {"kind": ["dog"]}, embedding=photo(0, 24))  # a cat, of which one is as sure as the other
    rows += [confirmed(102, {"kind": ["cat"]}, task=24, embedding=photo(0, 24))]
    rows[29] = confirmed(30, {}, embedding=photo(0, 30))
    rows[32] = confirmed(33, {"kind": ["dog"]}, embedding=photo(0, 33))  # a cat, with two who are wrong
    rows += [confirmed(103, {"kind": ["owl"]}, task=33, embedding=photo(0, 33))]
    rows[35] = confirmed(36, {"kind": ["dog"]})  # a cat that is not embedded yet
    rows[38] = confirmed(39, {"kind": ["cat"]}, embedding=photo(0, 39))  # a cat, with two who say owl
    rows += [confirmed(i, {"kind": ["owl"]}, task=39, embedding=photo(0, 39)) for i in (105, 106)]
    rows += [confirmed(104, {"kind": ["mouse"]}, embedding=photo(0, 104))]  # a label that the config has no more
    found = suspects(tmp_path, rows, config(KIND, TRAITS))
    assert {(each.task, each.confirmed, each.believed) for each in found} == {
        (15, "owl", "cat"),
        (33, "dog or owl", "cat"),
        (39, "owl", "cat"),
    }
    assert all(each.question == "kind" and each.image == f"photo {each.task}" for each in found)
    odds = [each.other / each.own for each in found]
    assert odds == sorted(odds, reverse=True) and min(odds) >= 4 and all(each.own + each.other <= 1 for each in found)


def test_suspects_have_odds_of_four_and_the_worst_come_first() -> None:
    rows = [[0.2, 0.79, 0.01], [0.19, 0.8, 0.01], [0.1, 0.4, 0.5], [0.3, 0.3, 0.4], [0, 1, 0]]
    left_out = [1, 2, 3, 4, 5], np.array(rows, np.float32)  # task 5 was annotated since `confirmations` was read
    ranker = cast(ProjectRanker, SimpleNamespace(left_out=lambda control, labels: left_out))
    engine = cast(Engine, SimpleNamespace(label_embeddings=lambda texts, hints=None: LABELS))
    found = find_suspects(ranker, engine, config(KIND), [confirmed(i, {"kind": ["cat"]}) for i in range(1, 5)])
    assert [(each.task, each.believed) for each in found] == [(3, "owl"), (2, "dog")]


def test_nothing_is_suspected_without_contradiction(tmp_path: Path) -> None:
    rows = [confirmed(i, {"kind": [KINDS[i % 3]]}, embedding=photo(i % 3, i)) for i in range(1, 31)]
    assert suspects(tmp_path, rows, config(KIND)) == []
    multiple = config(choices("kind", KINDS, 'choice="multiple"'))
    rows[0] = confirmed(1, {"kind": ["owl"]}, embedding=photo(0, 1))
    assert suspects(tmp_path / "several", rows, multiple) == []


# --- the page


class Page(HTMLParser):
    """The tags, addresses and visible text of a page; fails where tags do not match."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for key, value in attrs if key in ("href", "src")]
        assert not any(key.startswith("on") for key, _ in attrs)
        if tag not in ("meta", "img", "link"):
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] != ["style"]:
            self.text += data


def page(
    folder: Path,
    rows: Sequence[Confirmation],
    found: Sequence[Suspect] = (),
    picture: bytes | None = None,
    asked: LabelingConfig | None = None,
    title: str = "Pets",
) -> Page:
    out = folder / "report.html"
    write_report(
        out, title, rows, asked or config(KIND), found, lambda task: f"/tasks/{task}?a=1&b=2", lambda _: picture
    )
    return Page(out.read_text(encoding="utf-8"))


def suspect(task: int = 7, confirmed: str = "owl") -> Suspect:
    return Suspect("kind", task, "a.jpg", confirmed, "cat", 0.001, 0.999)


def test_the_page_says_it_all_by_itself(tmp_path: Path) -> None:
    rows = [kinds(i, "cat", "cat" if i % 4 else "dog") for i in range(1, 81)] + [
        replace(confirmed(99, {}), skipped=True)
    ]
    shown = page(tmp_path, rows, [suspect(7), suspect(8)], jpeg())
    assert "75%of 80 suggestions taken as they were" in shown.text and "1 skipped" in shown.text
    assert shown.tags.count("rect") == 4 and "1 Jan" in shown.text
    assert "<1%" in shown.text and ">99%" in shown.text
    assert shown.tags.count("img") == 2 and not {"script", "link", "iframe", "object"} & set(shown.tags)
    assert "/tasks/7?a=1&b=2" in shown.addresses and "/tasks/80?a=1&b=2" in shown.addresses
    assert all(each.startswith(("/tasks/", "#", "data:image/jpeg;base64,")) for each in shown.addresses)


HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>&lt;\ud800"


def test_hostile_texts_are_only_text(tmp_path: Path) -> None:
    """Free text of annotators, names of questions and labels, the project's title."""
    name = "&lt;img src=x onerror=alert(1)&gt;"
    asked = config(
        f'<Choices name="{name}" toName="image" value="$options"/>', '<TextArea name="said" toName="image"/>'
    )
    question = asked.controls[0].from_name
    assert question == "<img src=x onerror=alert(1)>"
    rows = [
        confirmed(i, {question: [HOSTILE], "said": [HOSTILE, "x" * 5000]}, {question: ["cat"], "said": [HOSTILE]})
        for i in range(1, 9)
    ]
    shown = page(tmp_path, rows, [suspect(confirmed=HOSTILE)], None, asked, HOSTILE)
    assert not {"script", "img"} & set(shown.tags)
    assert shown.text.count(HOSTILE.replace("\ud800", "?")) >= 5  # title twice, label, pair, suspect
    assert question in shown.text and "x" * 200 not in shown.text


@pytest.mark.parametrize("picture", [None, b"", b"<script>I am no picture", jpeg()[:300]])
def test_a_picture_that_cannot_be_read_leaves_its_place(tmp_path: Path, picture: bytes | None) -> None:
    shown = page(tmp_path, [kinds(1, "cat", "owl")], [suspect()], picture)
    assert "img" not in shown.tags and "The picture cannot be read" in shown.text and "owl" in shown.text


def test_only_the_worst_are_shown(tmp_path: Path) -> None:
    found = [suspect(task) for task in range(1, SUSPECTS_SHOWN + 4)]
    shown = page(tmp_path, [kinds(1, "cat", "owl")], found)
    assert shown.tags.count("figure") == SUSPECTS_SHOWN and "3 less striking ones not shown" in shown.text
    assert f"/tasks/{SUSPECTS_SHOWN}?a=1&b=2" in shown.addresses
    assert f"/tasks/{SUSPECTS_SHOWN + 1}?a=1&b=2" not in shown.addresses


def test_an_empty_project_is_told_what_to_do(tmp_path: Path) -> None:
    for rows in ([], [replace(confirmed(1, {}, {"kind": ["cat"]}), skipped=True)]):
        shown = page(tmp_path, rows)
        assert "Nothing is confirmed yet" in shown.text and "forelabel connect" in shown.text
        assert "svg" not in shown.tags and "table" not in shown.tags and "%" not in shown.text
    unsuggested = page(tmp_path, [confirmed(1, {"kind": ["cat"]})])
    assert "forelabel prelabel" in unsuggested.text and "%" not in unsuggested.text
