"""The object noun dictionary: what a decoder may say, and how often people say it.

nouns.tsv (made by recipes/nouns.py from WordNet, whose licence is beside it) has one noun a line: singular, plural,
other spellings joined by "|", frequency. The frequency is logarithmic, and FTn stands for the nouns above n: FT0 for
all, FT9 for the commonest (the names are NOVIC's; the numbers of nouns are this dictionary's).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from decoder.errors import NounError

BUNDLED = Path(__file__).parent / "nouns.tsv"

OWN_FREQUENCY = 10.0
"""Of nouns that a user adds without one: they are added because they matter."""


@dataclass(frozen=True)
class Noun:
    """One thing and how it is written."""

    singular: str
    plural: str = ""
    """"" where people use none; the singular itself where both are one word."""
    spellings: tuple[str, ...] = ()
    """Other ways to write the singular."""
    frequency: float = OWN_FREQUENCY
    """Logarithmic, above 0."""


def load_nouns(threshold: str = "FT0", added: Path | None = None) -> list[Noun]:
    """The bundled dictionary from a frequency on, most frequent first, and the user's nouns after it.

    Args:
        threshold: "FT0" to "FT9".
        added: a file as `read_nouns` takes it; a noun in both is taken from there.

    Raises:
        NounError: no such threshold, or the file cannot be used.
    """
    if not re.fullmatch(r"FT[0-9]", threshold):
        raise NounError(f"{threshold!r} is no frequency threshold; give one of FT0 (all nouns) to FT9 (the commonest)")
    least = float(threshold[2:])
    own = read_nouns(added) if added else []
    ours = {noun.singular.lower() for noun in own}
    bundled = _parse(BUNDLED.read_text(encoding="utf-8").splitlines(), BUNDLED)
    return [noun for noun in bundled if noun.frequency > least and noun.singular.lower() not in ours] + own


def read_nouns(path: Path) -> list[Noun]:
    """A user's nouns: one a line, and after it, separated by tabs, plural, other spellings (a|b) and frequency, if any.

    Empty lines and lines that begin with # are skipped; of a noun that comes twice the first counts.

    Raises:
        NounError: the file cannot be read, a frequency is no positive number, or no noun is in it.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise NounError(f"the nouns file {path} cannot be read: {error}") from error
    found: dict[str, Noun] = {}
    for noun in _parse(lines, path):
        found.setdefault(noun.singular.lower(), noun)
    if not found:
        raise NounError(f"{path} holds no noun; write one per line")
    return list(found.values())


def _parse(lines: Iterable[str], path: Path) -> list[Noun]:
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        singular, plural, spellings, frequency = [field.strip() for field in (line + "\t\t\t").split("\t")[:4]]
        try:
            value = float(frequency) if frequency else OWN_FREQUENCY
        except ValueError:
            value = 0.0
        if not singular or not value > 0:
            raise NounError(
                f"{path}, line {number}: got {line!r}; write noun, plural, other spellings (a|b) and frequency (above "
                "0), separated by tabs; all but the noun may be left out"
            )
        found.append(Noun(singular, plural, tuple(filter(None, spellings.split("|"))), value))
    return found
