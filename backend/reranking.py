"""What the team has confirmed in one project, ready to re-rank with: the durable memory, kept in step in this process.

Each question of a labeling config has a learner of its own, fed with one image per task: where several annotators
answered a task the majority counts, and of a tie each half.
"""

from __future__ import annotations

import json
import threading
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from backend.memory import Confirmation, Memory, Removed, Stored
from backend.naming import Names
from plugin.labeling_config import Control
from retrieval.confirmations import Confirmations, Votes
from retrieval.embedder import unit_norm
from retrieval.encoder import DualEncoder

NEW_NAME = 0.02
"""The probability, before re-ranking, of a noun that the decoder did not say: half the evidence of yes brings it to
29 %, all of it to 89 %."""

NEW_NAME_FROM = 0.5
"""A noun that the decoder did not say is suggested from this on: more likely than not."""

QUESTIONS_KEPT = 8
"""Learners per project, each with its own copy of the embeddings: a config has a few questions, and each change of its
labels makes new ones."""

Floats = NDArray[np.float32]
Learner = TypeVar("Learner", "OneOf", "SeveralOf", "Open")
ByTask = Mapping[int, Sequence[Confirmation]]
"""Task -> its annotations, skips among them."""


class ProjectRanker:
    """The confirmations of one project, as far as this process has read them. Safe to call from several threads."""

    def __init__(self, project: str, memory: Memory, encoder: DualEncoder) -> None:
        self._project, self._memory, self._encoder = project, memory, encoder
        self._lock = threading.RLock()
        self._sequence = 0
        self._annotations: dict[int, Confirmation] = {}
        self._pending: dict[int, Confirmation] = {}
        self._tasks: defaultdict[int, set[int]] = defaultdict(set)
        self._learners: OrderedDict[Control, Any] = OrderedDict()

    def refresh(self) -> None:
        """Read what has changed in the memory.

        Raises:
            MemoryUnavailable: the memory does not answer; what was read before stays.
        """
        with self._lock:
            changed, now = self._memory.changes(self._project, self._sequence)
            if now < self._sequence:  # it was lost, or put back from a backup
                changed, now = self._memory.changes(self._project)
                self._annotations.clear()
                self._pending.clear()
                self._tasks.clear()
                self._learners.clear()
            touched: set[int] = set()
            for each in changed:
                if before := self._annotations.pop(each.annotation, None):
                    self._tasks[before.task].discard(each.annotation)
                    touched.add(before.task)
                if not isinstance(each, Removed):
                    self._annotations[each.annotation] = each
                    self._tasks[each.task].add(each.annotation)
                    touched.add(each.task)
            for learner in self._learners.values():
                learner.update(self._answered(touched))
            self._sequence = now
            for each in changed:
                if isinstance(each, Confirmation) and not self._embedded(each):
                    self._pending[each.annotation] = each
                else:
                    self._pending.pop(each.annotation, None)

    def held(self) -> list[Confirmation]:
        """All that is confirmed, and the skips."""
        with self._lock:
            return list(self._annotations.values())

    def pending(self) -> list[Confirmation]:
        """What this encoder has not embedded yet."""
        with self._lock:
            return list(self._pending.values())

    def _embedded(self, confirmation: Confirmation) -> bool:
        """A skipped task teaches nothing, so that it needs no embedding."""
        ours = confirmation.fingerprint == self._encoder.fingerprint
        return confirmation.skipped or (ours and confirmation.images.keys() <= confirmation.embeddings.keys())

    def _answered(self, tasks: Iterable[int]) -> dict[int, list[Confirmation]]:
        return {task: [self._annotations[i] for i in sorted(self._tasks[task])] for task in tasks}

    def choose(self, control: Control, labels: Floats, images: Floats, probabilities: Floats) -> tuple[Floats, Floats]:
        """Re-rank a question with a label set.

        Args:
            labels: its label embeddings [c, d].
            images: unit embeddings [b, d].
            probabilities: [b, c].

        Returns:
            The new probabilities [b, c], and how urgently each label needs more confirmed images [c], in 0..1.
        """
        with self._lock:
            if control.multiple:
                several = self._learner(control, lambda: SeveralOf(control, self._encoder))
                return several.memory.rerank(images, probabilities), several.urgency()
            one = self._learner(control, self._one_of(control, labels))
            return one.memory.rerank(images, probabilities), one.urgency()

    def name(
        self, control: Control, images: Floats, named: Sequence[Names], allowed: Callable[[str], bool]
    ) -> list[Names]:
        """Re-rank an open question's nouns, best first. Nouns that the team has chosen join, where they are allowed."""
        with self._lock:
            return self._learner(control, lambda: Open(control, self._encoder)).rerank(images, named, allowed)

    def left_out(self, control: Control, labels: Floats) -> tuple[list[int], Floats]:
        """Of a question with one answer: the confirmed tasks [n], and what each would be labelled had nobody [n, c]."""
        with self._lock:
            tasks, probabilities = self._learner(control, self._one_of(control, labels)).memory.left_out()
            return [int(str(task)) for task in tasks], probabilities

    def _one_of(self, control: Control, labels: Floats) -> Callable[[], OneOf]:
        return lambda: OneOf(control, self._encoder, labels)

    def _learner(self, control: Control, make: Callable[[], Learner]) -> Learner:
        """The question's own; its control decides its kind."""
        learner: Learner | None = self._learners.get(control)
        if learner is None:
            learner = make()
            learner.update(self._answered(list(self._tasks)))
            self._learners[control] = learner
            if len(self._learners) > QUESTIONS_KEPT:
                self._learners.popitem(last=False)
        self._learners.move_to_end(control)
        return learner


class OneOf:
    """A label set of which one is right."""

    def __init__(self, control: Control, encoder: DualEncoder, labels: Floats) -> None:
        self._control, self._encoder = control, encoder
        self._index = {stored_key(label.stored): i for i, label in enumerate(control.labels)}
        self.memory = Confirmations(labels, encoder.logit_scale)

    def update(self, tasks: ByTask) -> None:
        learned: list[tuple[int, NDArray[np.float16], dict[int, float]]] = []
        for task, given in tasks.items():
            stored = [stored_key(each) for one in given for each in one.answers.get(self._control.from_name, ())]
            votes = Counter(self._index[key] for key in stored if key in self._index)
            image = _embedding(given, self._control, self._encoder)
            if votes and image is not None:
                most = max(votes.values())
                learned.append((task, image, {label: 1.0 for label, count in votes.items() if count == most}))
            else:
                self.memory.remove(task)
        if learned:
            keys, images, labels = zip(*learned, strict=True)
            self.memory.add_many(keys, unit_norm(np.stack(images)), labels)

    def urgency(self) -> Floats:
        """Labels with fewer confirmed images than the mean label need more: (n + 1) / (mean + 1), at most 1."""
        counts = self.memory.counts
        urgency: Floats = np.minimum((counts + 1) / (counts.mean() + 1), 1).astype(np.float32)
        return urgency


class SeveralOf:
    """A label set of which several may be right."""

    def __init__(self, control: Control, encoder: DualEncoder) -> None:
        self._control, self._encoder = control, encoder
        self._index = {stored_key(label.stored): i for i, label in enumerate(control.labels)}
        self.memory = Votes(encoder.dim)

    def update(self, tasks: ByTask) -> None:
        _update_votes(
            self.memory, tasks, self._control, self._encoder, lambda stored: self._index.get(stored_key(stored))
        )

    def urgency(self) -> Floats:
        """Not told apart: a label that was left out is as well known as one that was ticked."""
        return np.ones(len(self._index), np.float32)


class Open:
    """A question that is answered with nouns."""

    def __init__(self, control: Control, encoder: DualEncoder) -> None:
        self._control, self._encoder = control, encoder
        self._index: dict[str, int] = {}
        self._spelled: list[str] = []
        self.memory = Votes(encoder.dim)

    def update(self, tasks: ByTask) -> None:
        _update_votes(self.memory, tasks, self._control, self._encoder, self._known)

    def _known(self, stored: Stored) -> int:
        noun = stored if isinstance(stored, str) else stored[-1]
        if noun.lower() not in self._index:
            self._index[noun.lower()] = len(self._spelled)
            self._spelled.append(noun)
        return self._index[noun.lower()]

    def rerank(self, images: Floats, named: Sequence[Names], allowed: Callable[[str], bool]) -> list[Names]:
        if not len(self.memory):
            return list(named)
        before = np.full((len(named), len(self._spelled)), NEW_NAME, np.float32)
        for i, names in enumerate(named):
            for noun, probability in names:
                if (column := self._index.get(noun.lower())) is not None:
                    before[i, column] = probability
        after = self.memory.rerank(images, before)
        ranked: list[Names] = []
        for names, row in zip(named, after, strict=True):
            scores = {noun.lower(): (noun, probability) for noun, probability in names}
            for said, (noun, _) in list(scores.items()):
                if (column := self._index.get(said)) is not None:
                    scores[said] = noun, float(row[column])
            for column in np.flatnonzero(row >= NEW_NAME_FROM).tolist():
                noun = self._spelled[column]
                if noun.lower() not in scores and allowed(noun):
                    scores[noun.lower()] = noun, float(row[column])
            ranked.append(sorted(scores.values(), key=lambda pair: -pair[1]))
        return ranked


def _update_votes(
    memory: Votes, tasks: ByTask, control: Control, encoder: DualEncoder, index: Callable[[Stored], int | None]
) -> None:
    """Per task and label, the mean over its annotators of 1 for chosen and -1 for suggested and taken out."""
    learned: list[tuple[int, NDArray[np.float16], dict[int, float]]] = []
    for task, given in tasks.items():
        counting = [each for each in given if not each.skipped]
        votes: Counter[int] = Counter()
        for each in counting:
            chosen = {index(stored) for stored in each.answers.get(control.from_name, ())}
            suggested = {index(stored) for stored in each.suggested.get(control.from_name, ())}
            votes.update({label: 1 for label in chosen if label is not None})
            votes.update({label: -1 for label in suggested - chosen if label is not None})
        image = _embedding(counting, control, encoder)
        if any(votes.values()) and image is not None:
            learned.append((task, image, {label: vote / len(counting) for label, vote in votes.items() if vote}))
        else:
            memory.remove(task)
    if learned:
        keys, images, shares = zip(*learned, strict=True)
        memory.add_many(keys, unit_norm(np.stack(images)), shares)


def _embedding(given: Sequence[Confirmation], control: Control, encoder: DualEncoder) -> NDArray[np.float16] | None:
    """The task's image, from the annotation that has seen it last."""
    for each in reversed(given):
        if each.fingerprint == encoder.fingerprint and control.image_source in each.embeddings:
            return each.embeddings[control.image_source]
    return None


def stored_key(stored: Stored) -> str:
    """By which labels can be told apart and looked up: a path is a list."""
    return json.dumps(stored)
