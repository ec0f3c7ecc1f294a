from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plugin.annotations import Annotation, project_key, read_annotation
from plugin.errors import AnnotationError
from plugin.labeling_config import Kind, parse_labeling_config

CONFIG = parse_labeling_config(
    """<View>
    <Image name="i" value="$image"/><Image name="j" value="$second"/>
    <Choices name="flat" toName="i" choice="multiple"><Choice value="Cat" alias="cat"/><Choice value="dog"/></Choices>
    <Choices name="nested" toName="i" allowNested="true"><Choice value="bird"><Choice value="owl"/></Choice></Choices>
    <Taxonomy name="tree" toName="j"><Choice value="animal"><Choice value="dog"/></Choice></Taxonomy>
    <Taxonomy name="chips" toName="i" legacy="true"/>
    <TextArea name="lines" toName="i"/>
    <Choices name="offered" toName="i" value="$options"/>
    </View>"""
)
TASK = {"id": 7, "data": {"image": "/data/upload/1/a.png", "second": ""}}


def region(name: str, type_: str, value: object, **more: object) -> dict[str, Any]:
    return {"id": "x", "from_name": name, "to_name": "i", "type": type_, "value": value, **more}


ANSWERED = [
    region("flat", "choices", {"choices": ["dog", "cat", "dog"]}, origin="prediction-changed"),
    region("nested", "choices", {"choices": [["bird", "owl"]]}),
    region("tree", "taxonomy", {"taxonomy": [["animal", "dog"], ["animal"]]}),
    region("chips", "taxonomy", {"taxonomy": [["animal", " otter "], ["otter"], ["fish"]]}),
    region("lines", "textarea", {"text": ["river\n an otter ", "  ", "river"]}),
    region("offered", "choices", {"choices": ["otter"]}),
]
ANSWERS = {
    "flat": ["dog", "cat"],
    "nested": [["bird", "owl"]],
    "tree": [["animal", "dog"], ["animal"]],
    "chips": ["otter", "fish"],
    "lines": ["river", "an otter"],
    "offered": ["otter"],
}


def annotation(result: object = None, **fields: object) -> dict[str, Any]:
    """As in a webhook of 1.23.2."""
    return {
        "id": 3,
        "task": 7,
        "result": ANSWERED if result is None else result,
        "was_cancelled": False,
        "created_at": "2026-11-22T18:57:27.5Z",
        "updated_at": "2026-11-22T19:57:28.250000+01:00",
        "completed_by": 1,
        "prediction": {},
        "parent_prediction": None,
        **fields,
    }


def answers(*result: object) -> dict[str, list[str | list[str]]]:
    return read_annotation(annotation(list(result)), TASK, CONFIG).answers


def test_an_annotation() -> None:
    assert {control.kind for control in CONFIG.controls} == set(Kind)
    assert read_annotation(annotation(), TASK, CONFIG) == Annotation(
        id=3,
        task=7,
        updated=1795373848.25,
        created=1795373847.5,
        annotator=1,
        answers=ANSWERS,
        suggested={},
        images={"$image": "/data/upload/1/a.png"},
    )


def test_answers_are_written_as_the_labels_are_stored() -> None:
    by_name = {control.from_name: control for control in CONFIG.controls}
    read = read_annotation(annotation(), TASK, CONFIG).answers
    for name in ("flat", "nested"):
        assert all(label.stored in read[name] for label in by_name[name].labels)
    assert by_name["tree"].labels[0].stored in read["tree"]


def test_a_skipped_task_has_no_answers() -> None:
    read = read_annotation(annotation(was_cancelled=True), TASK, CONFIG)
    assert (read.answers, read.skipped, read.id, read.images) == ({}, True, 3, {"$image": "/data/upload/1/a.png"})
    assert not read_annotation(annotation(result=[]), TASK, CONFIG).skipped  # all blank is an answer


def test_regions_pages_other_types_and_unknown_questions_are_passed_over() -> None:
    assert answers(
        region("flat", "choices", {"choices": ["cat"], "x": 1, "y": 2, "width": 3, "height": 4}),
        region("flat", "choices", {"choices": ["cat"]}, item_index=2),
        region("flat", "labels", {"choices": ["cat"]}),
        region("flat", "choices", {"labels": ["cat"]}),
        region("boxes", "rectanglelabels", {"x": 1, "rectanglelabels": ["cat"]}),
        {"type": "relation", "from_id": "x", "to_id": "y"},
        region("lines", "textarea", {"text": []}),
        region("chips", "taxonomy", {"taxonomy": [[], [1], None, ["animal", " "]]}),
        region("nested", "choices", {"choices": [["bird", None], 5]}),
        None,
    ) == {}  # fmt: skip


def test_several_answers_to_one_question_are_put_together() -> None:
    lines = [region("lines", "textarea", {"text": text}) for text in (["a"], "b\na")]
    assert answers(*lines) == {"lines": ["a", "b"]}


@pytest.mark.parametrize(
    ("prediction", "shown", "suggested"),
    [
        ({"id": 5, "result": ANSWERED}, 5, ANSWERS),
        ({"id": 5, "result": ANSWERED}, None, ANSWERS),
        ({"id": 5, "result": ANSWERED}, 6, {}),
        ({}, 6, {}),
        (None, None, {}),
    ],
)
def test_what_was_suggested(prediction: object, shown: int | None, suggested: dict[str, object]) -> None:
    given = annotation([], was_cancelled=True, prediction=prediction, parent_prediction=shown)
    assert read_annotation(given, TASK, CONFIG).suggested == suggested


def test_what_may_be_missing() -> None:
    read = read_annotation({"id": 3, "task": 7}, {}, CONFIG)
    assert read == Annotation(3, 7, 0.0, 0.0, None, {}, {}, {})
    assert read_annotation(annotation(completed_by={"id": 4}, task=None), TASK, CONFIG).annotator == 4


@pytest.mark.parametrize("bad", [None, "3", True, 0, -1, 1.0])
def test_without_ids_there_is_nothing_to_remember(bad: object) -> None:
    with pytest.raises(AnnotationError, match="has the id .* belongs to the task"):
        read_annotation(annotation(id=bad), TASK, CONFIG)
    with pytest.raises(AnnotationError, match="belongs to the task"):
        read_annotation(annotation(task=bad), {"id": bad}, CONFIG)


def test_a_project_is_named_as_label_studio_does() -> None:
    assert project_key({"id": 2, "created_at": "2026-11-22T18:57:15.999999Z"}) == "2.1795373835"
    for broken in ({"id": 2}, {"created_at": "2026-11-22T18:57:15Z"}, {"id": 2, "created_at": "yesterday"}):
        with pytest.raises(AnnotationError, match="ISO 8601"):
            project_key(broken)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-1, 3)
    | st.text(max_size=3)
    | st.sampled_from(["cat", "2026-11-22T18:57Z"]),
    lambda values: (
        st.lists(values, max_size=3)
        | st.dictionaries(st.sampled_from(["id", "data", "result", "image", "choices", "text", "taxonomy"]), values)
    ),
    max_leaves=8,
)
VALUES = st.dictionaries(st.sampled_from(["choices", "text", "taxonomy"]), JSON, max_size=1) | JSON
RESULTS = st.lists(
    st.builds(region, st.sampled_from(list(ANSWERS)), st.sampled_from(["choices", "taxonomy", "textarea"]), VALUES)
    | JSON
)


@settings(deadline=None)
@given(
    RESULTS | JSON,
    st.dictionaries(st.sampled_from(["was_cancelled", "created_at", "updated_at", "completed_by", "prediction"]), JSON),
    st.fixed_dictionaries({"id": st.just(7), "data": JSON}),
)
def test_whatever_arrives_is_read(result: object, fields: dict[str, object], task: dict[str, object]) -> None:
    read = read_annotation({"id": 3, "result": result, **fields}, task, CONFIG)
    labels = {control.from_name: control.labels for control in CONFIG.controls}
    for name, values in (*read.answers.items(), *read.suggested.items()):
        assert values
        for value in values:
            assert values.count(value) == 1
            assert isinstance(value, str) if not labels[name] else isinstance(value, str | list)
            assert labels[name] or value == value.strip() != ""
