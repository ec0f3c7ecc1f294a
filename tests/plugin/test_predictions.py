from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plugin.labeling_config import Control, Kind, Label, parse_labeling_config
from plugin.predictions import UNREADABLE, build_prediction, choices_prediction, names_prediction, options

CAT, DOG, OWL = Label("Cat", alias="cat"), Label("dog"), Label("owl", path=("bird", "owl"))
SINGLE = Control("c", "i", multiple=False, labels=(CAT, DOG, OWL), image_source="$image")
MULTIPLE = Control("c", "i", multiple=True, labels=(CAT, DOG, OWL), image_source="$image")


def test_the_json_that_label_studio_stores() -> None:
    region = choices_prediction(SINGLE, [(CAT, 0.9), (DOG, 0.8)], threshold=0.5)
    assert build_prediction([region], 0.9, "v1") == {
        "model_version": "v1",
        "score": 0.9,
        "result": [{"from_name": "c", "to_name": "i", "type": "choices", "value": {"choices": ["cat"]}, "score": 0.9}],
    }


@pytest.mark.parametrize(
    ("control", "ranked", "threshold", "choices"),
    [
        (SINGLE, [(DOG, 0.2), (CAT, 0.7)], 0.0, ["cat"]),
        (SINGLE, [(OWL, 1.0)], 0.5, [["bird", "owl"]]),
        (MULTIPLE, [(DOG, 0.5), (CAT, 0.7), (OWL, 0.4)], 0.5, ["cat", "dog"]),
        (MULTIPLE, [(DOG, 0.1), (CAT, 0.2)], 0.5, ["cat"]),
        (MULTIPLE, [(OWL, 0.6), (CAT, 0.6)], 0.5, [["bird", "owl"], "cat"]),
    ],
)
def test_what_is_ticked(
    control: Control, ranked: list[tuple[Label, float]], threshold: float, choices: list[object]
) -> None:
    assert choices_prediction(control, ranked, threshold)["value"] == {"choices": choices}


NAMES = [("otter", 0.6), ("sea otter", 0.25), ("beaver", 0.05)]


@pytest.mark.parametrize(
    ("kind", "multiple", "type_", "value"),
    [
        (Kind.TAXONOMY, False, "taxonomy", {"taxonomy": [["otter"], ["sea otter"]]}),
        (Kind.TEXTAREA, False, "textarea", {"text": ["otter", "sea otter"]}),
        (Kind.OPTIONS, False, "choices", {"choices": ["otter"]}),
        (Kind.OPTIONS, True, "choices", {"choices": ["otter", "sea otter"]}),
    ],
)
def test_names_as_each_tag_holds_them(kind: Kind, multiple: bool, type_: str, value: dict[str, object]) -> None:
    region = names_prediction(Control("t", "i", multiple, (), "$image", kind), NAMES, 0.1)
    assert region == {"from_name": "t", "to_name": "i", "type": type_, "value": value, "score": 0.6}


def test_the_best_name_is_given_however_unsure_it_is() -> None:
    control = Control("t", "i", False, (), "$image", Kind.TEXTAREA)
    assert names_prediction(control, NAMES, 0.9)["value"] == {"text": ["otter"]}
    with pytest.raises(ValueError, match="give at least one"):
        names_prediction(control, [], 0.1)


def test_options_show_their_score_and_cannot_inject() -> None:
    assert options([("otter", 0.614), ("<b>", 0.0)]) == [
        {"value": "otter", "html": "otter <b>61%</b>"},
        {"value": "<b>", "html": "&lt;b&gt; <b>0%</b>"},
    ]


def test_a_taxonomy_with_labels_holds_paths() -> None:
    control = Control("t", "i", False, (Label("dog", path=("animal", "dog")),), "$image", Kind.TAXONOMY)
    region = choices_prediction(control, [(control.labels[0], 0.5)], 0.1)
    assert (region["type"], region["value"]) == ("taxonomy", {"taxonomy": [["animal", "dog"]]})


def test_nothing_ranked_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="rank at least one"):
        choices_prediction(SINGLE, [], 0.5)


def test_an_unreadable_image_has_no_prediction() -> None:
    assert json.dumps(UNREADABLE) == "[]"


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([CAT, DOG, OWL]), st.floats()), min_size=1),
    st.floats(0, 1),
    st.sampled_from([SINGLE, MULTIPLE]),
)
def test_any_scores_give_json_that_label_studio_takes(
    ranked: list[tuple[Label, float]], threshold: float, control: Control
) -> None:
    region = choices_prediction(control, ranked, threshold)
    prediction = build_prediction([region], region["score"], "v1")
    json.dumps(prediction, allow_nan=False)
    assert type(prediction["score"]) is float
    assert 0 <= prediction["score"] <= 1
    assert 1 <= len(region["value"]["choices"]) <= (len(ranked) if control.multiple else 1)
    if not any(math.isnan(score) for _, score in ranked):
        best = max(ranked, key=lambda pair: min(max(pair[1], 0.0), 1.0))
        assert region["score"] == pytest.approx(min(max(best[1], 0.0), 1.0), abs=1e-6)


def test_label_studios_own_check_of_predictions_finds_nothing() -> None:
    from label_studio_sdk.label_interface import LabelInterface

    xml = (
        '<View><Image name="i" value="$a"/><Image name="j" value="$b"/>'
        '<Choices name="c" toName="i"><Choice value="Cat" alias="cat"/><Choice value="Dog"/></Choices>'
        '<Choices name="d" toName="j" choice="multiple"><Choice value="x"/><Choice value="y"/></Choices></View>'
    )
    regions = [
        choices_prediction(control, [(label, 0.7) for label in control.labels], 0.5)
        for control in parse_labeling_config(xml).controls
    ]
    assert [region["value"]["choices"] for region in regions] == [["cat"], ["x", "y"]]
    assert LabelInterface(xml).validate_prediction(build_prediction(regions, 0.7, "v1"), return_errors=True) == []
