from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from retrieval.prompts import TEMPLATES, embed_labels, prompts, templates_for
from tests.retrieval.test_captions import FakeEncoder


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("cat", "a photo of a cat."),
        ("acorn", "a photo of an acorn."),
        ("golden_retriever", "a photo of a golden retriever."),
    ],
)
def test_articles_and_underscores(label: str, expected: str) -> None:
    assert prompts(label, ["a photo of {a label}."]) == [expected]


def test_label_with_braces_is_taken_literally() -> None:
    assert prompts("{a label}", ["see {label}"]) == ["see {a label}"]


def test_one_unit_vector_per_label_and_hints_move_it() -> None:
    encoder = FakeEncoder()
    plain = embed_labels(encoder, ["cat", "BT"], templates=["{label}"])  # type: ignore[arg-type]
    hinted = embed_labels(encoder, ["cat", "BT"], [None, "bell tower"], ["{label}"])  # type: ignore[arg-type]
    np.testing.assert_allclose(np.linalg.norm(hinted, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(plain[0], hinted[0], atol=1e-6)
    both = encoder.embed_texts(["BT", "bell tower"]).sum(axis=0)
    np.testing.assert_allclose(hinted[1], both / np.linalg.norm(both), atol=1e-5)


def test_the_models_own_templates_come_first() -> None:
    assert templates_for(SimpleNamespace(templates=("x {label}",), family="clip")) == ("x {label}",)  # type: ignore[arg-type]
    assert templates_for(SimpleNamespace(templates=None, family="clip")) == TEMPLATES["clip"]  # type: ignore[arg-type]
    assert len(templates_for(SimpleNamespace(templates=None, family="align"))) == 1  # type: ignore[arg-type]
