from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.confirmations import Confirmations, Votes
from retrieval.errors import RetrievalError
from retrieval.xmore import softmax

SCALE = 12.0


def unit(n: int, d: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def clusters(labels: int, each: int, d: int, seed: int, spread: float = 0.4) -> tuple[np.ndarray, np.ndarray]:
    """Images around one centre per label: embeddings [labels * each, d] and their labels."""
    y = np.repeat(np.arange(labels), each)
    rows = unit(labels, d, seed=1)[y] + spread * unit(len(y), d, seed)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True), y


def state(memory: Confirmations, seed: int = 5) -> np.ndarray:
    """What re-ranking says of some images: all of the memory's state has a part in it."""
    images = unit(6, memory._labels.shape[1], seed)
    return memory.rerank(images, softmax(SCALE * images @ memory._labels.T))


EVENTS = st.lists(
    st.tuples(st.sampled_from(["add", "replace", "remove"]), st.integers(0, 8), st.integers(0, 4)), max_size=40
)


@settings(max_examples=60, deadline=None)
@given(events=EVENTS, seed=st.integers(0, 50))
def test_any_history_leaves_what_adding_the_rest_gives(events: list[tuple[str, int, int]], seed: int) -> None:
    labels, images = unit(5, 7, 2), unit(40, 7, seed)
    memory, remaining = Confirmations(labels, SCALE), dict[int, tuple[np.ndarray, int]]()
    for step, (what, key, label) in enumerate(events):
        if what == "remove":
            memory.remove(key)
            remaining.pop(key, None)
        else:
            getattr(memory, what)(key, images[step], [label])
            remaining[key] = images[step], label
    fresh = Confirmations(labels, SCALE)
    for key in sorted(remaining, reverse=True):
        fresh.add(key, remaining[key][0], [remaining[key][1]])
    assert len(memory) == len(remaining)
    np.testing.assert_allclose(memory._sums._gram, fresh._sums._gram, atol=1e-6)
    np.testing.assert_allclose(memory._sums._cross, fresh._sums._cross, atol=1e-6)
    np.testing.assert_allclose(memory.counts, fresh.counts, atol=1e-6)
    np.testing.assert_allclose(state(memory), state(fresh), atol=1e-6)


def test_many_at_once_are_one_by_one() -> None:
    images, y = clusters(4, 5, 16, seed=3)
    single, many = Confirmations(unit(4, 16, 2), SCALE), Confirmations(unit(4, 16, 2), SCALE)
    for i, label in enumerate(y):
        single.add(i, images[i], int(label))
    many.add_many(
        [0, *range(len(y))], np.concatenate([images[:1], images]), [3, *map(int, y)]
    )  # 0 twice: the last counts
    np.testing.assert_allclose(state(single), state(many), atol=1e-6)
    assert len(many) == 20 and many.counts.sum() == pytest.approx(20)


def test_leave_one_out_is_what_leaving_one_out_gives() -> None:
    images, y = clusters(3, 4, 10, seed=3)
    memory = Confirmations(unit(3, 10, 2), SCALE)
    memory.add_many(list(range(12)), images, list(map(int, y)))
    got = memory._sums.left_out(np.arange(12))
    for i in range(12):
        without = Confirmations(unit(3, 10, 2), SCALE)
        rest = [j for j in range(12) if j != i]
        without.add_many(rest, images[rest], [int(y[j]) for j in rest])
        np.testing.assert_allclose(got[i], without._sums.evidence(images[i : i + 1])[0], atol=1e-9)
    others = Confirmations(unit(3, 10, 2), SCALE)
    others.add_many(list(range(4, 12)), images[4:], list(map(int, y[4:])))
    together, _ = memory._sums.left_out_together([np.arange(4), np.arange(8, 10)])  # all of label 0, some of 2
    np.testing.assert_allclose(together, others._sums.evidence(images[:4]), atol=1e-9)


def test_while_labels_are_still_new_the_evidence_counts_for_less() -> None:
    """The same confirmations of eight labels, when there is another that may come, and when there is none."""
    images, y = clusters(8, 2, 24, seed=3)
    labels = unit(9, 24, 99)
    settled, growing = Confirmations(labels[:8], SCALE), Confirmations(labels, SCALE)
    for memory in (settled, growing):
        memory.add_many(list(range(16)), images, list(map(int, y)))
    assert growing.trust()[1] < settled.trust()[1]


def test_nothing_confirmed_changes_nothing() -> None:
    memory = Confirmations(unit(4, 8, 2), SCALE)
    images = unit(3, 8, 4)
    before = softmax(SCALE * images @ unit(4, 8, 2).T)
    np.testing.assert_array_equal(memory.rerank(images, before), before)
    memory.add(1, images[0], 2)
    assert memory.rerank(images[:1], before[:1])[0, 2] > before[0, 2]
    memory.remove(1)
    memory.remove("never seen")
    np.testing.assert_array_equal(memory.rerank(images, before), before)


def test_learns_labels_that_the_encoder_gets_wrong() -> None:
    """The texts say nothing of the images: only the confirmations can tell them apart."""
    labels = unit(6, 24, 99)
    images, y = clusters(6, 4, 24, seed=3)
    new, truth = clusters(6, 30, 24, seed=4)
    before = softmax(SCALE * new @ labels.T)
    memory = Confirmations(labels, SCALE)
    memory.add_many(list(range(len(y))), images, list(map(int, y)))
    after = memory.rerank(new, before)
    assert (before.argmax(1) == truth).mean() < 0.5 < 0.95 < (after.argmax(1) == truth).mean()
    np.testing.assert_allclose(after.sum(1), 1, atol=1e-5)


def test_confirmations_that_tell_nothing_leave_the_encoder_alone() -> None:
    """Labels drawn by lot: left out in turn, they speak against any weight of the evidence."""
    rng = np.random.default_rng(0)
    labels = unit(5, 16, 1)

    def photos(seed: int) -> np.ndarray:
        rows = labels[np.random.default_rng(seed).integers(0, 5, 200)] + 0.3 * unit(200, 16, seed)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    memory, new = Confirmations(labels, SCALE), photos(4)
    memory.add_many(list(range(200)), photos(3), [int(label) for label in rng.integers(0, 5, 200)])
    before = softmax(SCALE * new @ labels.T)
    assert (memory.rerank(new, before).argmax(1) == before.argmax(1)).mean() > 0.95


def test_a_label_that_nobody_confirmed_keeps_its_chance() -> None:
    labels = unit(6, 24, 1)
    images, y = clusters(5, 8, 24, seed=3)  # nothing of label 5
    memory = Confirmations(labels, SCALE)
    memory.add_many(list(range(len(y))), images, list(map(int, y)))
    of_the_last = labels[5:] + 0.2 * unit(20, 24, 8)
    of_the_last /= np.linalg.norm(of_the_last, axis=1, keepdims=True)
    after = memory.rerank(of_the_last, softmax(SCALE * of_the_last @ labels.T))
    assert (after.argmax(1) == 5).mean() > 0.9


def test_annotators_who_disagree_share_the_image() -> None:
    memory = Confirmations(unit(3, 8, 2), SCALE)
    memory.add(1, unit(1, 8, 3)[0], {0: 2, 2: 1})
    np.testing.assert_allclose(memory.counts, [2 / 3, 0, 1 / 3])
    memory.replace(1, unit(1, 8, 3)[0], [0, 2])
    np.testing.assert_allclose(memory.counts, [0.5, 0, 0.5])


def test_many_labels_and_many_images_are_judged_by_a_sample_that_the_order_does_not_change() -> None:
    images, y = clusters(40, 30, 32, seed=3)
    one, other = Confirmations(unit(40, 32, 2), SCALE), Confirmations(unit(40, 32, 2), SCALE)
    one.add_many(list(range(1200)), images, list(map(int, y)))
    back = np.arange(1200)[::-1]
    other.add_many(back.tolist(), images[back], [int(label) for label in y[back]])
    assert one.trust() == other.trust()
    sample = one._sums.sample(100)
    assert len(sample) == 100
    assert {one._sums._keys[i] for i in sample} == {other._sums._keys[i] for i in other._sums.sample(100)}


@pytest.mark.parametrize(
    ("embedding", "labels", "message"),
    [
        (np.ones(3), [0], "shape"),
        (np.full(4, np.nan), [0], "not finite"),
        (np.ones(4) / 2, [], "at least one"),
        (np.ones(4) / 2, [2], "from 0 to 1"),
        (np.ones(4) / 2, -1, "from 0 to 1"),
    ],
)
def test_says_what_is_wrong_and_keeps_what_there_was(embedding: np.ndarray, labels: Any, message: str) -> None:
    memory = Confirmations(unit(2, 4, 2), SCALE)
    memory.add(7, unit(1, 4, 3)[0], 1)
    before = state(memory)
    with pytest.raises(RetrievalError, match=message):
        memory.add(7, embedding, labels)
    np.testing.assert_array_equal(state(memory), before)
    with pytest.raises(RetrievalError, match="shape"):
        memory.rerank(unit(3, 4, 1), np.ones((3, 5)))


def test_votes_raise_what_is_chosen_and_sink_what_is_taken_out() -> None:
    images, _ = clusters(2, 6, 16, seed=3, spread=0.2)
    votes = Votes(16)
    before = np.full((2, 4), 0.3)
    looked_at = np.stack([images[0], images[6]])
    np.testing.assert_allclose(votes.rerank(looked_at, before), before)
    # Of the first kind of image 0 is chosen and 1 taken out; of the second 2 is chosen, a label that is new by then.
    votes.add_many(list(range(6)), images[:6], [{0: 1.0, 1: -1.0}] * 6)
    votes.add_many(list(range(6, 12)), images[6:], [{2: 1.0}] * 6)
    after = votes.rerank(looked_at, before)
    assert after[0, 0] > 0.9 and after[0, 1] < 0.05 and after[1, 2] > 0.9
    np.testing.assert_allclose(after[:, 3], before[:, 3])  # nobody said anything of it
    for key in range(12):
        votes.remove(key)
    np.testing.assert_allclose(votes.rerank(looked_at, before), before, atol=1e-6)
