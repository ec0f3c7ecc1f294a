from __future__ import annotations

import time
from xml.sax.saxutils import quoteattr

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from plugin.errors import LabelingConfigError
from plugin.labeling_config import Control, Kind, Label, config_from_template, image_value, parse_labeling_config

IMAGE = '<Image name="i" value="$image"/>'
CHOICES = '<Choices name="c" toName="i"><Choice value="cat"/><Choice value="dog"/></Choices>'


def view(*parts: str) -> str:
    return f"<View>{''.join(parts)}</View>"


def only_control(xml: str) -> Control:
    (control,) = parse_labeling_config(xml).controls
    return control


def stored(xml: str) -> list[str | list[str]]:
    return [label.stored for label in only_control(xml).labels]


def test_a_plain_config() -> None:
    assert only_control(view(IMAGE, CHOICES)) == Control(
        from_name="c", to_name="i", multiple=False, labels=(Label("cat"), Label("dog")), image_source="$image"
    )


@pytest.mark.parametrize(
    ("choice", "multiple"),
    [("", False), ('choice="single"', False), ('choice="single-radio"', False), ('choice="multiple"', True)],
)
def test_one_answer_or_several(choice: str, multiple: bool) -> None:
    xml = view(IMAGE, f'<Choices name="c" toName="i" {choice}><Choice value="cat"/></Choices>')
    assert only_control(xml).multiple is multiple


# Each row was seen in Label Studio 1.23.2's editor: what a prediction must hold for the choice to be ticked, and what
# the annotation then holds.
@pytest.mark.parametrize(
    ("attributes", "choices", "expected"),
    [
        ("", '<Choice value="Cat" alias="cat"/><Choice value="Dog"/>', ["cat", "Dog"]),
        ("", '<Choice value=" Cat "/>', [" Cat "]),
        ("", '<Choice value="Animal"><Choice value="Cat"/></Choice><Choice value="Car"/>', ["Animal", "Car"]),
        (
            'allowNested="true"',
            '<Choice value="Animal" alias="animal"><Choice value="Cat" alias="cat"/><Choice value="Dog"/></Choice>'
            '<Choice value="Car"/>',
            [["animal", "cat"], ["animal", "Dog"], ["Car"]],
        ),
        ("", '<View><Header value="h"/><Choice value="x"/></View><Choice value="y"/>', ["x", "y"]),
        ("", '<Choice value="$5 bill"/><Choice value="US$ note"/>', ["US$ note"]),
        ('value="$options"', '<Choice value="fixed"/>', ["fixed"]),
        ("", '<Choice value="Cat"/><Choice value="Cat"/><Choice value="Dog"/>', ["Cat", "Dog"]),
        ("", '<Choice value="Cat" alias=""/><Choice value="Dog"/>', ["", "Dog"]),
    ],
)
def test_what_is_stored(attributes: str, choices: str, expected: list[str | list[str]]) -> None:
    assert stored(view(IMAGE, f'<Choices name="c" toName="i" {attributes}>{choices}</Choices>')) == expected


@pytest.mark.parametrize(
    ("label", "text"),
    [
        (Label("cat"), "cat"),
        (Label("Cat", alias="c01", hint="a small felid"), "Cat"),
        (Label("golden_retriever"), "golden retriever"),
        (Label("  red   wine "), "red wine"),
        (Label("1", hint="no animal"), "no animal"),
        (Label("1", alias="no_animal"), "no animal"),
        (Label("👍", hint="42"), "👍"),
        (Label("кошка"), "кошка"),
    ],
)
def test_the_words_to_encode(label: Label, text: str) -> None:
    assert label.text == text


def test_several_images_and_questions() -> None:
    controls = parse_labeling_config(
        view(
            '<Image name="left" value="$a"/><Image name="right" value="$b"/><Text name="t" value="$t"/>',
            '<Choices name="l" toName="left"><Choice value="x"/></Choices>',
            '<Choices name="about_text" toName="t"><Choice value="x"/></Choices>',
            '<Choices name="per_box" toName="left" perRegion="true"><Choice value="x"/></Choices>',
            '<Choices name="r" toName="right" choice="multiple"><Choice value="y"/></Choices>',
            '<Choices name="both" toName="left,right"><Choice value="same"/></Choices>',
        )
    ).controls
    assert [(control.from_name, control.to_name, control.image_source) for control in controls] == [
        ("l", "left", "$a"),
        ("r", "right", "$b"),
        ("both", "left", "$a"),
    ]


@pytest.mark.parametrize(
    ("tag", "kind", "multiple"),
    [
        ('<Taxonomy name="c" toName="i" legacy="true"/>', Kind.TAXONOMY, False),
        ('<TextArea name="c" toName="i"/>', Kind.TEXTAREA, False),
        ('<TextArea name="c" toName="i"><Choice value="ignored"/></TextArea>', Kind.TEXTAREA, False),
        ('<Choices name="c" toName="i" value="$options"/>', Kind.OPTIONS, False),
        ('<choices name="c" toName="i" value=" $options " choice="multiple"/>', Kind.OPTIONS, True),
    ],
)
def test_open_questions(tag: str, kind: Kind, multiple: bool) -> None:
    key = "options" if kind is Kind.OPTIONS else ""
    assert only_control(view(IMAGE, tag)) == Control("c", "i", multiple, (), "$image", kind, key)


def test_a_taxonomy_with_labels_is_closed() -> None:
    tree = (
        '<Choice value="animal"><Choice value="dog"/><Choice value="cat" alias="felis"/></Choice><Choice value="car"/>'
    )
    control = only_control(view(IMAGE, f'<Taxonomy name="c" toName="i">{tree}</Taxonomy>'))
    assert control.kind is Kind.TAXONOMY
    assert [label.stored for label in control.labels] == [["animal", "dog"], ["animal", "felis"], ["car"]]


def test_a_label_set_and_an_open_tag_side_by_side() -> None:
    config = parse_labeling_config(view(IMAGE, CHOICES, '<Taxonomy name="t" toName="i" legacy="true"/>'))
    assert [(control.kind, bool(control.labels)) for control in config.controls] == [
        (Kind.CHOICES, True),
        (Kind.TAXONOMY, False),
    ]


@pytest.mark.parametrize(
    ("xml", "says"),
    [
        ("", "empty"),
        ("  \n", "empty"),
        ("<View>", "not well-formed"),
        ("cat, dog", "not well-formed"),
        ('<View name="\ud800"/>', "not well-formed"),
        ('<!DOCTYPE x [<!ENTITY a "b">]><View>&a;</View>', "DOCTYPE"),
        ("<View/>", "no <Image>"),
        (view('<Text name="t" value="$text"/>'), "<View>, <Text>"),
        (view('<Image value="$image"/>', CHOICES), "no <Image>"),
        (view(IMAGE), "asks nothing about a whole image; it has <View>, <Image>"),
        (view(IMAGE, '<Taxonomy name="tax" toName="i"/>'), 'Taxonomy name="tax".*add legacy="true"'),
        (view(IMAGE, '<TextArea name="t" toName="i" perRegion="true"/>'), "regions"),
        (view(IMAGE, '<TextArea name="t" toName="text"/>'), "no image"),
        (view(IMAGE, '<Options name="c" toName="i" value="$options"/>'), "asks nothing"),
        (view(IMAGE, '<Choices name="c" toName="i"/>'), "empty label set"),
        (view(IMAGE, '<Choices name="c" toName="i"><Choice value=" "/><Choice/></Choices>'), "empty label set"),
        (view(IMAGE, '<Choices name="c" toName="i" value="options"/>'), 'value="\\$options"'),
        (view(IMAGE, '<Choices name="c" toName="j"><Choice value="x"/></Choices>'), 'toName="j".*point it at "i"'),
        (view(IMAGE, '<Choices name="c"><Choice value="x"/></Choices>'), "no image"),
        (view(IMAGE, '<Choices toName="i"><Choice value="x"/></Choices>'), "no name"),
        (view(IMAGE, CHOICES.replace('toName="i"', 'toName="i" perRegion="true"')), "labels regions"),
        (view(IMAGE, CHOICES.replace('toName="i"', 'toName="i" perItem="true"')), "single pages"),
        (view(f'<Repeater on="$images" indexFlag="{{{{idx}}}}">{IMAGE}{CHOICES}</Repeater>'), "Repeater"),
        (view('<Image name="i" value="image"/>', CHOICES), 'write value="\\$image"'),
        ("<a>" * 5000 + "</a>" * 5000, "nests"),
    ],
)
def test_refusals_say_what_arrived(xml: str, says: str) -> None:
    with pytest.raises(LabelingConfigError, match=says):
        parse_labeling_config(xml)


def test_what_is_no_text_is_refused() -> None:
    with pytest.raises(LabelingConfigError, match="NoneType"):
        parse_labeling_config(None)


@pytest.mark.parametrize(
    ("source", "data", "expected"),
    [
        ("$image", {"image": "/data/upload/1/a.png"}, "/data/upload/1/a.png"),
        ("$image", {"image": " a.png\n"}, "a.png"),
        ("$image", {"image": ""}, None),
        ("$image", {"image": None}, None),
        ("$image", {"image": 7}, None),
        ("$image", {"photo": "a.png"}, None),
        ("$image", {"image": ["1.png", "2.png"]}, "1.png"),
        ("$image", {"image": []}, None),
        ("$a.b", {"a": {"b": "x.png"}}, "x.png"),
        ("$a.b", {"a.b": "x.png"}, "x.png"),
        ("$a.b", {"a": "x.png"}, None),
        ("$images[0]", {"images": ["x.png"]}, "x.png"),
        ("$images[3]", {"images": ["x.png"]}, None),
        ("$a.images[1].url", {"a": {"images": [{}, {"url": "x.png"}]}}, "x.png"),
        ("$my-image", {"my-image": "x.png"}, "x.png"),
        ("$größe", {"größe": "x.png"}, "x.png"),
        ("https://host/$dir/$n.jpg", {"dir": "d", "n.jpg": "7.jpg"}, "https://host/d/7.jpg"),
        ("https://host/$dir/$n", {"dir": "d", "n": 7}, "https://host/d/7"),
        ("https://host/$dir/$n", {"dir": "d"}, None),
    ],
)
def test_the_image_of_a_task(source: str, data: dict[str, object], expected: str | None) -> None:
    assert image_value(data, only_control(view(f'<Image name="i" value="{source}"/>', CHOICES))) == expected


def test_the_first_page_speaks_for_all() -> None:
    control = only_control(view('<Image name="i" valueList="$pages"/>', CHOICES))
    assert image_value({"pages": ["1.png", "2.png"]}, control) == "1.png"


def test_task_data_that_is_no_object_has_no_image() -> None:
    assert image_value(None, only_control(view(IMAGE, CHOICES))) is None


def test_ten_thousand_labels_take_less_than_a_second() -> None:
    choices = "".join(f'<Choice value="label {n}" alias="l{n}" hint="sort {n}"/>' for n in range(10_000))
    started = time.process_time()
    labels = only_control(view(IMAGE, f'<Choices name="c" toName="i">{choices}</Choices>')).labels
    assert time.process_time() - started < 1.0
    assert len(labels) == 10_000


@pytest.mark.parametrize(("template", "multiple"), [("image-classification", False), ("image-tags", True)])
def test_templates(template: str, multiple: bool) -> None:
    assert only_control(config_from_template(template)).multiple is multiple
    control = only_control(config_from_template(template, ["cat", " dog ", "cat", "", 'black & "white" <3']))
    assert [label.value for label in control.labels] == ["cat", "dog", 'black & "white" <3']


@pytest.mark.parametrize(
    ("template", "kinds"),
    [
        ("image-naming", [Kind.TAXONOMY]),
        ("image-naming-text", [Kind.TEXTAREA]),
        ("image-naming-options", [Kind.OPTIONS]),
        ("image-classification-and-naming", [Kind.TAXONOMY, Kind.CHOICES]),
    ],
)
def test_templates_of_open_questions(template: str, kinds: list[Kind]) -> None:
    assert [control.kind for control in parse_labeling_config(config_from_template(template)).controls] == kinds


def test_open_templates_take_no_labels() -> None:
    for template in ("image-naming", "image-naming-options"):
        with pytest.raises(LabelingConfigError, match="no <Choices> to put"):
            config_from_template(template, ["cat"])


def test_a_missing_template_is_answered_with_those_there_are() -> None:
    with pytest.raises(LabelingConfigError, match="image-classification, .*image-naming, .*image-tags"):
        config_from_template("no-such-template")


def test_a_template_without_choices_takes_no_labels(tmp_path) -> None:
    file = tmp_path / "mine.xml"
    file.write_text(view(IMAGE))
    with pytest.raises(LabelingConfigError, match="no <Choices>"):
        config_from_template(str(file), ["cat"])


XML_TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs"), exclude_characters="\ufffe\uffff"))
TAGS = st.sampled_from(
    ["View", "Image", "Choices", "Choice", "Taxonomy", "TextArea", "Repeater", "choices", "x:Choice", "A"]
)
ATTRIBUTES = st.dictionaries(
    st.sampled_from(
        ["name", "toName", "value", "valueList", "alias", "hint", "choice", "allowNested", "perRegion", "legacy"]
    ),
    st.sampled_from(["i", "c", "$image", "$a.b[0]", "true", "multiple", "i,c", "", "cat"]) | XML_TEXT,
)


@st.composite
def elements(draw: st.DrawFn, children: st.SearchStrategy[str] = st.just("")) -> str:  # noqa: B008
    tag = draw(TAGS)
    attributes = "".join(f" {name}={quoteattr(value)}" for name, value in draw(ATTRIBUTES).items())
    inside = "".join(draw(st.lists(children, max_size=4)))
    return f"<{tag}{attributes}>{inside}</{tag}>"


CONFIGS = st.recursive(elements(), elements, max_leaves=12)


@settings(deadline=None)
@given(st.text() | CONFIGS | CONFIGS.map(lambda inside: view(IMAGE, CHOICES, inside)))
@example(view(IMAGE, CHOICES))
def test_any_text_gives_controls_or_a_labeling_config_error(xml: str) -> None:
    try:
        controls = parse_labeling_config(xml).controls
    except LabelingConfigError as error:
        assert str(error)
        return
    assert controls
    for control in controls:
        assert control.labels or control.kind is not Kind.CHOICES
        kept = [tuple(label.stored) if label.path else label.stored for label in control.labels]
        assert len(set(kept)) == len(kept)
        assert image_value({"image": "x.png"}, control) in (None, "x.png") or "$" in control.image_source


@settings(deadline=None)
@given(st.lists(XML_TEXT.filter(str.strip), min_size=1, unique_by=str.strip))
def test_every_label_survives_the_way_through_a_template(labels: list[str]) -> None:
    written = [label.strip() for label in labels if "$" not in label]
    if written:
        control = only_control(config_from_template("image-tags", written))
        assert [label.stored for label in control.labels] == written


@settings(deadline=None)
@given(
    st.recursive(
        st.none() | st.integers() | XML_TEXT,
        lambda values: st.lists(values, max_size=3) | st.dictionaries(st.sampled_from("ab0"), values, max_size=3),
    ),
    st.sampled_from(["$a", "$a.b", "$a[0].b", "$a..b", "$[]", "$a[99999999999999999999]", "x$a/$b", "${a}"]),
)
def test_any_task_data_gives_an_image_or_none(data: object, source: str) -> None:
    found = image_value(data, Control("c", "i", False, (Label("x"),), source))
    assert found is None or (isinstance(found, str) and found.strip())
