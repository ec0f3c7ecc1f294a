"""What became of the suggestions in one project, counted, and which confirmed labels are likely wrong.

A suggestion counts once per annotation and question; what was skipped is not counted.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from backend.answers import label_words
from backend.engine import Engine
from backend.memory import Confirmation, Stored
from backend.reranking import ProjectRanker, stored_key
from plugin.labeling_config import Control, Kind, LabelingConfig

BINS = 30
BIN_AT_LEAST = 20
"""Suggestions per bar: of fewer, a share says little (of 20 it is within 22 points, 19 times of 20)."""

LABEL_AT_LEAST = 5
LABELS_SHOWN = 100
PAIRS_SHOWN = 30
TASKS_PER_PAIR = 5

SUSPECT_ODDS = 4.0
"""The confirmed label has at most one chance in five beside the other. With 5 % of the labels changed by lot (10 labels
and 150 photos of Caltech-101, Tiny ImageNet or CIFAR-100, bundled encoder) this finds 91 to 94 % of them, and 37 to
62 % of what it finds is wrong; odds of 16 find 71 to 85 %, and 65 to 85 % of that is wrong. An overlooked error costs
more than a look at a right label, and the worst come first."""

Shown = Callable[[str], str]
"""A label as JSON -> what the annotator reads."""


@dataclass(frozen=True)
class Tally:
    suggested: int
    taken: int
    """Of these, as they were."""

    @property
    def share(self) -> float:
        return self.taken / self.suggested if self.suggested else 0.0


@dataclass(frozen=True)
class Bin:
    first: float
    """Seconds since 1970, as is `last`."""
    last: float
    tally: Tally


@dataclass(frozen=True)
class LabelFigures:
    question: str
    label: str
    tally: Tally
    """Of the times it was suggested, how often it stayed."""
    confirmed: int
    """Annotations that hold it, whatever was suggested."""


@dataclass(frozen=True)
class Pair:
    """A suggested label, and another one that was confirmed in its place."""

    question: str
    suggested: str
    confirmed: str
    count: int
    tasks: tuple[int, ...]
    """The latest few."""


@dataclass(frozen=True)
class Figures:
    annotations: int
    """With an answer."""
    skipped: int
    overall: Tally
    questions: dict[str, Tally]
    bins: list[Bin]
    """In the order of time, each of as many suggestions; empty where there are too few for two."""
    labels: list[LabelFigures]
    """Worst share first."""
    labels_rare: int
    """Not listed, since they were suggested fewer than LABEL_AT_LEAST times."""
    labels_left_out: int
    """Not listed, since there are too many."""
    pairs: list[Pair]
    """Most frequent first."""
    pairs_left_out: int


@dataclass(frozen=True)
class Suspect:
    """A confirmed label that all other confirmations contradict."""

    question: str
    task: int
    image: str
    """The task's value; "" where it is not known."""
    confirmed: str
    """What most annotators of the task said; of a tie all, with "or" between them."""
    believed: str
    own: float
    """Probability of the confirmed label, had nobody confirmed the task; of a tie the largest."""
    other: float
    """That of the believed one."""


@dataclass(frozen=True)
class _Judged:
    """One question of one annotation, and what had been suggested there. Labels as JSON, which can be compared."""

    question: Control
    confirmation: Confirmation
    suggested: frozenset[str]
    answered: frozenset[str]


def figures(confirmations: Sequence[Confirmation], config: LabelingConfig) -> Figures:
    """Count what became of the suggestions to the questions of `config`."""
    answered = sorted(
        (each for each in confirmations if not each.skipped), key=lambda each: (each.created, each.annotation)
    )
    judged = [
        _Judged(control, each, _keys(each.suggested[control.from_name]), _keys(each.answers.get(control.from_name, ())))
        for each in answered
        for control in config.controls
        if each.suggested.get(control.from_name)
    ]
    shown = {control.from_name: _shown(control) for control in config.controls}
    labels, pairs = _labels(answered, judged, shown), _pairs(judged, shown)
    often = [each for each in labels if each.tally.suggested >= LABEL_AT_LEAST]
    return Figures(
        annotations=len(answered),
        skipped=len(confirmations) - len(answered),
        overall=_tally(judged),
        questions={c.from_name: _tally([each for each in judged if each.question is c]) for c in config.controls},
        bins=_bins([each for each in judged if each.confirmation.created > 0]),
        labels=often[:LABELS_SHOWN],
        labels_rare=len(labels) - len(often),
        labels_left_out=len(often[LABELS_SHOWN:]),
        pairs=pairs[:PAIRS_SHOWN],
        pairs_left_out=len(pairs[PAIRS_SHOWN:]),
    )


def _tally(judged: Sequence[_Judged]) -> Tally:
    return Tally(len(judged), sum(each.suggested == each.answered for each in judged))


def _bins(judged: Sequence[_Judged]) -> list[Bin]:
    """Of what is in the order of time."""
    count = min(BINS, len(judged) // BIN_AT_LEAST)
    if count < 2:
        return []
    edges = [len(judged) * i // count for i in range(count + 1)]
    parts = [judged[start:end] for start, end in pairwise(edges)]
    return [Bin(part[0].confirmation.created, part[-1].confirmation.created, _tally(part)) for part in parts]


def _labels(
    answered: Sequence[Confirmation], judged: Sequence[_Judged], shown: Mapping[str, Shown]
) -> list[LabelFigures]:
    suggested, taken, confirmed = Counter[tuple[str, str]](), Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for each in judged:
        name = each.question.from_name
        suggested.update((name, label) for label in each.suggested)
        taken.update((name, label) for label in each.suggested & each.answered)
    for question in shown:
        for one in answered:
            confirmed.update((question, label) for label in _keys(one.answers.get(question, ())))
    found = [
        LabelFigures(
            name, shown[name](label), Tally(suggested[name, label], taken[name, label]), confirmed[name, label]
        )
        for name, label in suggested | confirmed
    ]
    return sorted(found, key=lambda each: (each.tally.share, -each.tally.suggested, each.question, each.label))


def _pairs(judged: Sequence[_Judged], shown: Mapping[str, Shown]) -> list[Pair]:
    tasks: defaultdict[tuple[str, str, str], list[int]] = defaultdict(list)
    for each in judged:
        single = _has_one_answer(each.question) and len(each.suggested) == len(each.answered) == 1
        if single and each.suggested != each.answered:
            key = each.question.from_name, min(each.suggested), min(each.answered)
            tasks[key].append(each.confirmation.task)
    found = [
        Pair(name, shown[name](old), shown[name](new), len(of), tuple(dict.fromkeys(reversed(of)))[:TASKS_PER_PAIR])
        for (name, old, new), of in tasks.items()
    ]
    return sorted(found, key=lambda each: (-each.count, each.question, each.suggested, each.confirmed))


def _has_one_answer(control: Control) -> bool:
    return not control.multiple and (bool(control.labels) or control.kind is Kind.OPTIONS)


def find_suspects(
    ranker: ProjectRanker, engine: Engine, config: LabelingConfig, confirmations: Sequence[Confirmation]
) -> list[Suspect]:
    """Confirmed labels that are likely wrong, worst first: all of them, of which the page shows SUSPECTS_SHOWN.

    Args:
        ranker: has read what is confirmed (`refresh`); images that are not embedded yet are passed over.
        confirmations: of the same project.
    """
    tasks: defaultdict[int, list[Confirmation]] = defaultdict(list)
    for each in confirmations:
        tasks[each.task].append(each)
    found = [
        suspect
        for control in config.controls
        if control.labels and not control.multiple
        for suspect in _suspects(ranker, engine, control, tasks)
    ]
    return sorted(found, key=lambda each: (each.own / each.other, -each.other, each.task))


def _suspects(
    ranker: ProjectRanker, engine: Engine, control: Control, tasks: Mapping[int, Sequence[Confirmation]]
) -> Iterator[Suspect]:
    index = {stored_key(label.stored): i for i, label in enumerate(control.labels)}
    shown = _shown(control)
    names = [shown(key) for key in index]
    judged, probabilities = ranker.left_out(control, engine.label_embeddings(*label_words(control)))
    for task, row in zip(judged, probabilities.tolist(), strict=True):
        given = tasks.get(task, ())
        votes = Counter(label for each in given for label in _keys(each.answers.get(control.from_name, ())))
        most = max((votes[label] for label in index), default=0)
        own = [i for label, i in index.items() if votes[label] == most > 0]
        if not own:  # the memory has changed since `confirmations` was read
            continue
        best = max(range(len(row)), key=row.__getitem__)
        own_probability = max(row[i] for i in own)
        if best not in own and row[best] >= SUSPECT_ODDS * own_probability:
            image = max(given, key=lambda each: each.annotation).images.get(control.image_source, "")
            confirmed = " or ".join(names[i] for i in own)
            yield Suspect(control.from_name, task, image, confirmed, names[best], own_probability, row[best])


def _keys(stored: Sequence[Stored]) -> frozenset[str]:
    return frozenset(map(stored_key, stored))


def _shown(control: Control) -> Shown:
    values = {stored_key(label.stored): label.value for label in control.labels if label.path is None}

    def shown(key: str) -> str:
        stored: Stored = json.loads(key)
        return values.get(key) or (stored if isinstance(stored, str) else " / ".join(stored))

    return shown
