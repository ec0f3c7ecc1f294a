"""Reads WordNet 3.0's noun file (Debian's wordnet-base, /usr/share/wordnet)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

FOLDER = Path("/usr/share/wordnet")

LEXICAL_FILES = {5: "animal", 6: "artifact", 8: "body", 11: "event", 12: "feeling", 13: "food", 17: "object"} | {
    18: "person",
    19: "phenomenon",
    20: "plant",
    21: "possession",
}
"""The lexical files whose nouns can be seen (NOVIC, appendix; numbers as in lexnames(5WN))."""


@dataclass(frozen=True)
class Synset:
    offset: int
    lexical_file: int
    lemmas: tuple[str, ...]
    hypernyms: tuple[int, ...]
    gloss: str
    instance: bool
    """One particular thing, such as a river or a person of history."""

    @property
    def definition(self) -> str:
        """The gloss without its examples."""
        return self.gloss.split('; "')[0].strip()


def noun_synsets() -> dict[int, Synset]:
    """Offset -> synset, for all nouns."""
    path = FOLDER / "data.noun"
    if not path.exists():
        raise SystemExit(f"{path} is missing: apt-get install wordnet-base")
    synsets = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("  "):
            continue  # licence header
        fields, gloss = line.split(" | ", 1)
        parts = fields.split()
        count = int(parts[3], 16)
        lemmas = tuple(parts[4 + 2 * i].replace("_", " ") for i in range(count))
        at = 4 + 2 * count
        pointers = [parts[at + 1 + 4 * i : at + 5 + 4 * i] for i in range(int(parts[at]))]
        hypernyms = tuple(int(p[1]) for p in pointers if p[0] in ("@", "@i") and p[2] == "n")
        offset = int(parts[0])
        instance = any(p[0] == "@i" for p in pointers)
        synsets[offset] = Synset(offset, int(parts[1]), lemmas, hypernyms, gloss.strip(), instance)
    return synsets


def sense_order() -> dict[str, list[int]]:
    """Lemma (lower case) -> synset offsets, the most frequent sense first (index.noun)."""
    order = {}
    for line in (FOLDER / "index.noun").read_text(encoding="utf-8").splitlines():
        if not line.startswith("  "):
            parts = line.split()
            senses = int(parts[2])
            order[parts[0].replace("_", " ")] = [int(offset) for offset in parts[-senses:]]
    return order
