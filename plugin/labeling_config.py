"""A project's labeling config -> which questions it asks about which image, and the labels to choose from.

Questions about a whole `<Image>` are answered, everything else in a config is passed over:
    <Choices>, <Taxonomy>                        with a written label set: one of its labels
    <Taxonomy legacy="true">, <TextArea>         without one: any nouns, which the annotator sees as chips or lines
    <Choices value="$options">                   any nouns, which have to be put into the task's data, too
What counts as a label and how it is stored follows Label Studio 1.23's editor, see `Label.stored`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from plugin.errors import LabelingConfigError

_TEMPLATES = Path(__file__).parent / "templates"
_MAX_DEPTH = 100
"""No hand-written config nests this deep; a bound keeps the walk over hostile ones linear."""
_VARIABLE = re.compile(r"\$([\w\[\].{}]+)", re.ASCII)
"""What Label Studio's editor takes for a reference into the task's data: $image, $a.b, $images[0]."""
_PATH_STEP = re.compile(r"[^.\[\]]+")
_EXAMPLE = (
    '<View><Image name="image" value="$image"/><Choices name="choice" toName="image">'
    '<Choice value="cat"/><Choice value="dog"/></Choices></View>'
)


class Kind(StrEnum):
    """The tag of a question, which decides how its answer is written."""

    CHOICES = "choices"
    TAXONOMY = "taxonomy"
    TEXTAREA = "textarea"
    OPTIONS = "options"
    """Choices that take their labels from each task's data."""


TYPE_AND_KEY = {
    Kind.CHOICES: ("choices", "choices"),
    Kind.OPTIONS: ("choices", "choices"),
    Kind.TAXONOMY: ("taxonomy", "taxonomy"),
    Kind.TEXTAREA: ("textarea", "text"),
}
"""Of an answer in a result, of annotations and predictions alike: its type, and the key of its value."""

_QUESTIONS = frozenset({Kind.CHOICES.value, Kind.TAXONOMY.value, Kind.TEXTAREA.value})
"""Tags that ask one."""


@dataclass(frozen=True, slots=True)
class Label:
    """One `<Choice>`."""

    value: str
    alias: str | None = None
    hint: str | None = None
    path: tuple[str, ...] | None = None
    """From the outermost `<Choice>` to this one; in a Taxonomy, and where Choices say allowNested="true"."""

    @property
    def text(self) -> str:
        """The words to encode: what the annotator reads, unless that is only a number or a symbol."""
        for words in (self.value, self.hint, self.alias):
            if words and any(character.isalpha() for character in words):
                return " ".join(words.replace("_", " ").split())
        return self.value

    @property
    def stored(self) -> str | list[str]:
        """What annotations and predictions hold in value.choices for this label, the alias going before the value.

        With allowNested="true" every label is stored as a path, those of the first level too; the editor ticks
        nothing for a plain string there (seen in 1.23.2), nor for a value where there is an alias.
        """
        if self.path is not None:
            return list(self.path)
        return self.value if self.alias is None else self.alias


@dataclass(frozen=True, slots=True)
class Control:
    """One question about one image."""

    from_name: str
    to_name: str
    multiple: bool
    labels: tuple[Label, ...]
    """No two are stored alike; empty for an open question, which is answered with nouns."""
    image_source: str
    """The Image tag's value as written, such as "$image"; `image_value` reads it off a task."""
    kind: Kind = Kind.CHOICES
    options_key: str = ""
    """Of OPTIONS: the key of a task's data that holds them."""


@dataclass(frozen=True, slots=True)
class LabelingConfig:
    controls: tuple[Control, ...]
    """Never empty; in the order of the config."""


def parse_labeling_config(xml: str) -> LabelingConfig:
    """Find the questions that can be answered. The same text is parsed once.

    Raises:
        LabelingConfigError: it is no XML, or nothing in it can be answered.
    """
    if not isinstance(xml, str):
        raise LabelingConfigError(f"The labeling config is {type(xml).__name__}, not text. Send the project's XML.")
    return _parse_cached(xml)


@lru_cache(maxsize=32)  # 10,000 labels take about 3 MB
def _parse_cached(xml: str) -> LabelingConfig:
    elements = list(_walk(_read_xml(xml)))
    images = _images(elements)
    if not images:
        raise LabelingConfigError(
            f"The labeling config has no <Image> tag with a name and a value; it has {_kinds(elements)}. "
            f"Forelabel labels images: add one in the project's Settings > Labeling Interface, as in {_EXAMPLE}"
        )
    controls: list[Control] = []
    refusals: list[str] = []
    for element, in_repeater in elements:
        if _tag(element) in _QUESTIONS:
            outcome = _control(element, images, in_repeater)
            if isinstance(outcome, Control):
                controls.append(outcome)
            else:
                refusals.append(outcome)
    if not controls:
        raise LabelingConfigError(_nothing_to_answer(elements, refusals))
    return LabelingConfig(tuple(controls))


def image_value(task_data: Mapping[str, Any], control: Control) -> str | None:
    """The image a task shows for this question: a URL, path or data URI; None when the task has none.

    Follows the editor: a key as written first, then a path ($a.b, $images[0]), then variables inside a longer text.
    Of a list of pages, the first speaks for all.
    """
    if not isinstance(task_data, Mapping):
        return None
    source = control.image_source
    found: Any
    if source.startswith("$") and source[1:] in task_data:
        found = task_data[source[1:]]
    elif whole := _VARIABLE.fullmatch(source):
        found = _look_up(task_data, whole[1])
    else:
        parts = [_look_up(task_data, name) for name in _VARIABLE.findall(source)]
        if not all(isinstance(part, str | int) for part in parts):
            return None
        values = iter(parts)
        found = _VARIABLE.sub(lambda _: str(next(values)), source)
    if isinstance(found, list) and found:
        found = found[0]
    return found.strip() or None if isinstance(found, str) else None


def config_from_template(template: str, labels: Sequence[str] = ()) -> str:
    """A labeling config to start a project with.

    Args:
        template: the name of a bundled template, or the path of an XML file.
        labels: replace the template's own labels; empty keeps those.

    Raises:
        LabelingConfigError: no such template, or it has no Choices to put the labels in.
    """
    path = Path(template)
    if path.suffix != ".xml":
        path = _TEMPLATES / f"{template}.xml"
    try:
        xml = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        bundled = ", ".join(sorted(file.stem for file in _TEMPLATES.glob("*.xml")))
        raise LabelingConfigError(
            f"There is no template {template!r} ({error}). Use one of {bundled}, or the path of an .xml file."
        ) from error
    wanted = list(dict.fromkeys(label.strip() for label in labels if label.strip()))
    if not wanted:
        return xml
    root = _read_xml(xml)
    choices = next((e for e, _ in _walk(root) if _tag(e) == "choices" and not e.get("value")), None)
    if choices is None:
        raise LabelingConfigError(f"The template {template!r} has no <Choices> to put the labels in. See {_EXAMPLE}")
    choices[:] = [ElementTree.Element("Choice", {"value": label}) for label in wanted]
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _read_xml(xml: str) -> ElementTree.Element:
    if not xml.strip():
        raise LabelingConfigError(
            "The labeling config is empty. Set one in the project's Settings > Labeling Interface, "
            f"for example {_EXAMPLE}"
        )
    if "<!DOCTYPE" in xml:
        raise LabelingConfigError(
            "The labeling config has a DOCTYPE, which can make a parser read files or run out of memory. "
            "Label Studio refuses it too: remove it."
        )
    try:
        return ElementTree.fromstring(xml)  # noqa: S314 - without a DOCTYPE there are no entities to expand
    except (ElementTree.ParseError, ValueError) as error:
        raise LabelingConfigError(
            f"The labeling config is not well-formed XML ({error}); it begins with {xml.strip()[:60]!r}. "
            "Correct it in the project's Settings > Labeling Interface."
        ) from error


def _walk(root: ElementTree.Element) -> Iterator[tuple[ElementTree.Element, bool]]:
    """Every element in document order, and whether it stands in a <Repeater>."""
    waiting = [(root, False, 0)]
    while waiting:
        element, in_repeater, depth = waiting.pop()
        if depth > _MAX_DEPTH:
            raise LabelingConfigError(f"The labeling config nests more than {_MAX_DEPTH} tags. Make it flatter.")
        in_repeater = in_repeater or _tag(element) == "repeater"
        yield element, in_repeater
        waiting.extend((child, in_repeater, depth + 1) for child in reversed(element))


def _tag(element: ElementTree.Element) -> str:
    """Lower case, since the editor does not tell <Choices> from <choices>."""
    return element.tag.rpartition("}")[2].lower()


def _flag(element: ElementTree.Element, name: str) -> bool:
    return element.get(name, "").strip().lower() == "true"


def _kinds(elements: Sequence[tuple[ElementTree.Element, bool]]) -> str:
    names = list(dict.fromkeys(element.tag for element, _ in elements))
    return ", ".join(f"<{name}>" for name in names[:8]) + (" and others" if len(names) > 8 else "")


def _images(elements: Sequence[tuple[ElementTree.Element, bool]]) -> dict[str, str]:
    """Image name -> its value as written; valueList is the form for several pages."""
    found: dict[str, str] = {}
    for element, _ in elements:
        source = element.get("value") or element.get("valueList")
        name = element.get("name")
        if _tag(element) == "image" and name and source:
            found[name] = source
    return found


def _control(element: ElementTree.Element, images: Mapping[str, str], in_repeater: bool) -> Control | str:
    """The question this tag asks, or why it cannot be answered."""
    name, targets = element.get("name"), element.get("toName", "")
    tag = f'<{element.tag} name="{name}">'
    if not name:
        return f"a <{element.tag}> has no name: give it one"
    for flag, what in (("perRegion", "regions"), ("perItem", "single pages")):
        if _flag(element, flag):
            return f'{tag} labels {what} ({flag}="true"): add one for the whole image'
    if in_repeater:
        return f"{tag} stands in a <Repeater>, which is not supported: take it out"
    target = next((target for target in map(str.strip, targets.split(",")) if target in images), None)
    if target is None:
        known = ", ".join(f'"{image}"' for image in images)
        return f'{tag} belongs to toName="{targets}", which is no image: point it at {known}'
    source = images[target]
    if not _VARIABLE.search(source) and not source.startswith("$"):
        return f'<Image name="{target}"> shows "{source}" in every task: write value="$image" to show the task\'s own'
    kind = Kind(_tag(element))
    labels = () if kind is Kind.TEXTAREA else _labels(element, nested=kind is Kind.TAXONOMY)
    multiple = element.get("choice", "").strip().lower() == "multiple"
    options = ""
    if kind is Kind.CHOICES and not labels:
        variable = _VARIABLE.fullmatch(element.get("value", "").strip())
        if variable is None:
            return f'{tag} has an empty label set: put <Choice value="..."/> tags in, or value="$options" for any nouns'
        kind, options = Kind.OPTIONS, variable[1]
    if kind is Kind.TAXONOMY and not labels and not _flag(element, "legacy"):
        return (
            f'{tag} has no labels, and shows no others: put <Choice value="..."/> tags in, or add legacy="true" to be '
            "suggested any nouns"
        )
    return Control(name, target, multiple, labels, source, kind, options)


def _labels(element: ElementTree.Element, nested: bool) -> tuple[Label, ...]:
    """The labels an annotator can pick, in order. A <View> may group them.

    As in the editor, a Choice within a Choice exists only in a Taxonomy or with allowNested="true", and then the outer
    one only stands for all of its inner ones. Values with a variable in them read differently in every task and are
    left out.
    """
    nested = nested or _flag(element, "allowNested")
    found: dict[tuple[str, ...], Label] = {}
    waiting: list[tuple[ElementTree.Element, tuple[str, ...]]] = [(child, ()) for child in reversed(element)]
    while waiting:
        element, parents = waiting.pop()
        if _tag(element) != "choice":
            waiting.extend((child, parents) for child in reversed(element))
            continue
        value, alias = element.get("value", ""), element.get("alias")
        path = (*parents, value if alias is None else alias)
        if nested and len(element):
            waiting.extend((child, path) for child in reversed(element))
        elif value.strip() and not _VARIABLE.search(value):
            found.setdefault(path, Label(value, alias, element.get("hint"), path if nested else None))
    return tuple(found.values())


def _nothing_to_answer(elements: Sequence[tuple[ElementTree.Element, bool]], refusals: Sequence[str]) -> str:
    if refusals:
        return "Nothing in the labeling config can be answered: " + "; ".join(refusals[:5]) + "."
    return (
        f"The labeling config asks nothing about a whole image; it has {_kinds(elements)}. Forelabel answers "
        "<Choices>, <Taxonomy> and <TextArea>: add one in the project's Settings > Labeling Interface, as in "
        + _EXAMPLE
    )


def _look_up(data: Mapping[str, Any], path: str) -> Any:
    """data["a"]["b"][0] for "a.b[0]", None where it leads nowhere."""
    found: Any = data
    for step in _PATH_STEP.findall(path) if path not in data else [path]:
        if isinstance(found, Mapping):
            found = found.get(step)
        elif isinstance(found, list) and step.isascii() and step.isdigit() and int(step[:9]) < len(found):
            found = found[int(step[:9])]
        else:
            return None
    return found
