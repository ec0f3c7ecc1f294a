"""Unit image embeddings -> the answers to a question, re-ranked by what the team has confirmed."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.engine import Engine
from backend.naming import BEAM_WIDTH, Names
from backend.reranking import ProjectRanker
from decoder.errors import DecoderError
from plugin.labeling_config import Control
from plugin.predictions import choices_prediction, names_prediction

logger = logging.getLogger(__name__)

MULTIPLE_THRESHOLD = 0.25
"""Where several answers are allowed, labels with at least this share of the probability are ticked: at most four, until
confirmations say that more of them belong together."""


@dataclass(frozen=True)
class NamingRules:
    """What a request says of the names it wants."""

    nouns: tuple[str, ...] = ()
    """Name with these alone; empty for the decoder's dictionary."""
    banned: tuple[str, ...] = ()

    @classmethod
    def read(cls, params: object) -> NamingRules:
        """From {"nouns": [...], "ban": [...]}, or its JSON text; whatever else there is, is passed over."""
        if isinstance(params, str):
            try:
                params = json.loads(params)
            except ValueError:
                return cls()
        if not isinstance(params, dict):
            return cls()
        nouns, banned = (
            tuple(str(noun).strip() for noun in listed if str(noun).strip()) if isinstance(listed, list) else ()
            for listed in (params.get("nouns"), params.get("ban"))
        )
        return cls(nouns, banned)

    def allow(self, noun: str) -> bool:
        """Whether a noun may be said, in whatever case."""
        said = noun.lower()
        return (not self.nouns or said in map(str.lower, self.nouns)) and said not in map(str.lower, self.banned)


@dataclass(frozen=True)
class Answer:
    """The answer to one question about one task."""

    region: dict[str, Any]
    """An item of a prediction's `result`."""
    score: float
    """In 0..1; the lowest comes first in Label Studio's uncertainty sampling."""


def choose(engine: Engine, control: Control, images: NDArray[np.float32], ranker: ProjectRanker | None) -> list[Answer]:
    """Answer a question with a label set: images [b, d] -> [b].

    An answer's score is its probability, lowered where its label has fewer confirmed images than others: by plain
    uncertainty a queue can fall behind a random one (PCB, arXiv 2311.11178), since it asks for the same few labels.
    """
    words = label_words(control)
    probabilities = engine.classify(images, *words).probabilities
    urgency: NDArray[np.float32] = np.ones(len(control.labels), np.float32)
    if ranker is not None:
        labels = engine.label_embeddings(*words)
        probabilities, urgency = ranker.choose(control, labels, images, probabilities)
    answers = []
    for row in probabilities:
        ranked = list(zip(control.labels, row.tolist(), strict=True))
        best = int(row.argmax())
        region = choices_prediction(control, ranked, MULTIPLE_THRESHOLD)
        answers.append(Answer(region, float(row[best] * urgency[best])))
    return answers


def name(engine: Engine, images: NDArray[np.float32], rules: NamingRules) -> list[Names]:
    """Nouns of images [b, d]; none where there is no decoder: what has a label set is answered all the same."""
    try:
        return engine.namer.name(images, BEAM_WIDTH, rules.nouns, rules.banned)
    except DecoderError as error:
        logger.warning("no names: %s", error)
        return [[] for _ in images]


def name_answer(control: Control, names: Names, threshold: float) -> Answer | None:
    """Answer an open question with nouns of at least `threshold`, the best one in any case."""
    if not names:
        return None
    region = names_prediction(control, names, threshold)
    return Answer(region, region["score"])


def label_words(control: Control) -> tuple[list[str], list[str | None]]:
    """What the encoder reads of a control's labels: their words and, where they say more, their hints."""
    texts = [label.text for label in control.labels]
    return texts, [
        label.hint if label.hint != text else None for label, text in zip(control.labels, texts, strict=True)
    ]


def prepare(engine: Engine, control: Control) -> None:
    """Embed a question's labels now, so that the first image need not wait for them."""
    if control.labels:
        engine.prepare(*label_words(control))
