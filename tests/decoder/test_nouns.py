from __future__ import annotations

from pathlib import Path

import pytest

from decoder.errors import NounError
from decoder.nouns import OWN_FREQUENCY, Noun, load_nouns, read_nouns


def test_the_dictionary() -> None:
    every = load_nouns()
    assert len(every) > 20_000
    by_name = {noun.singular: noun for noun in every}
    assert len(by_name) == len(every)
    assert all(noun.frequency > 0 for noun in every)
    assert by_name["goose"].plural == "geese"
    assert by_name["sheep"].plural == "sheep"
    assert by_name["knife"].plural == "knives"
    assert "theatre" in by_name["theater"].spellings
    for abstract in ("idea", "freedom", "theory", "month", "happiness"):
        assert abstract not in by_name


def test_thresholds_keep_the_commonest() -> None:
    sizes = [len(load_nouns(f"FT{n}")) for n in range(10)]
    assert sizes == sorted(sizes, reverse=True)
    assert {"cat", "dog", "car"} <= {noun.singular for noun in load_nouns("FT9")}
    for wrong in ("FT10", "ft1", "", "all"):
        with pytest.raises(NounError, match="FT0"):
            load_nouns(wrong)


def test_users_add_their_own(tmp_path: Path) -> None:
    file = tmp_path / "nouns.tsv"
    file.write_text("# ours\n\nsolder bridge\ncat\tkitties\tkitty|puss\t3.5\nsolder bridge\tx\n", encoding="utf-8")
    own = [Noun("solder bridge", frequency=OWN_FREQUENCY), Noun("cat", "kitties", ("kitty", "puss"), 3.5)]
    assert read_nouns(file) == own
    nouns = load_nouns("FT9", file)
    assert nouns[-2:] == own
    assert sum(noun.singular == "cat" for noun in nouns) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no noun"),
        (b"cat\t\t\tmany\n", "line 1: got 'cat"),
        (b"cat\ndog\tdogs\t\t-1\n", "line 2"),
        (b"\tcats\n", "line 1"),
        (b"\xff\xfe\x00", "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_files_that_cannot_be_used(content: bytes | None, message: str, tmp_path: Path) -> None:
    file = tmp_path / "nouns.tsv"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(NounError, match=message):
        read_nouns(file)
