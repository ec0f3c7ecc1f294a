"""Write the object noun dictionary: decoder/nouns.tsv, from WordNet and word frequencies.

    pip install inflect wordfreq; apt-get install wordnet-base
    python -m recipes.nouns --out decoder/nouns.tsv

A noun is taken if one of its two most frequent senses, proper names aside, lies in one of the lexical files that NOVIC
uses and is a physical entity (so nothing abstract). Proper names are WordNet's instances ("Paris"), and capitalised
single words but for animals, plants and food ("Oregonian", "Adam", a drug, but not "Chihuahua"); capitalised nouns of
several words are none ("German shepherd"). Spellings of one sense that differ only in hyphens,
spaces or between British and American English are one entry, in WordNet's order. Its frequency is

    4 (z - 1),  z = Zipf frequency (wordfreq) - 2 for each further word + log10(visible share)

The first deduction stands for words being rarer together than wordfreq, which sees them apart, says; the visible share
for "can" being a verb more often than a tin: among the occurrences of the word that WordNet's authors tagged, those in
a visible sense, (visible + 0.5) / (all + 1). FTn keeps what is greater than n: NOVIC's thresholds, over another corpus.
"""

from __future__ import annotations

import argparse
import math
import re
from collections import Counter
from functools import cache
from pathlib import Path

import inflect
from wordfreq import zipf_frequency

from recipes.wordnet import FOLDER, LEXICAL_FILES, Synset, noun_synsets, sense_order

BRITISH = (
    (r"our", "or"),
    (r"tre$", "ter"),
    (r"is(e|er|ing|ation)$", r"iz\1"),
    (r"ae|oe", "e"),
    (r"grey", "gray"),
    (r"ogue$", "og"),
    (r"plough", "plow"),
    (r"tyre", "tire"),
    (r"ll", "l"),
)

PERSON = 18
NAMED_KINDS = (5, 13, 20)
"""Animals, food and plants: what has a capital there is mostly a breed or a variety."""


def frequency(noun: str, share: float) -> float:
    """See the module's docstring."""
    further = len(re.split(r"[ -]", noun)) - 1
    return round(4 * (zipf_frequency(noun, "en") - 2 * further + math.log10(share) - 1), 1)


def visible_shares(visible: set[str]) -> dict[str, float]:
    """Noun -> its visible share (cntlist.rev), given the sense keys "noun%1:06" (word, kind, lexical file) that are."""
    seen: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for line in (FOLDER / "cntlist.rev").read_text(encoding="utf-8").splitlines():
        key, _, count = line.split()
        noun = key.split("%")[0].replace("_", " ")
        total[noun] += int(count)
        if key.rsplit(":", 3)[0] in visible:
            seen[noun] += int(count)
    return {noun: (seen[noun] + 0.5) / (count + 1) for noun, count in total.items()}


def letters(noun: str) -> str:
    """What spellings of one noun share."""
    spelled = re.sub(r"[^a-z]", "", noun.lower())
    for pattern, replacement in BRITISH:
        spelled = re.sub(pattern, replacement, spelled)
    return spelled


def visible_senses(synsets: dict[int, Synset]) -> dict[str, list[int]]:
    """Noun -> its senses that are physical entities of a visible kind, if the first or second of all is one."""
    root = next(offset for offset, synset in synsets.items() if synset.lemmas[0] == "physical entity")

    @cache
    def physical(offset: int) -> bool:
        return offset == root or any(physical(parent) for parent in synsets[offset].hypernyms)

    def visible(offset: int) -> bool:
        return synsets[offset].lexical_file in LEXICAL_FILES and physical(offset)

    def spelled(lemma: str, offset: int) -> str:
        return next(word for word in synsets[offset].lemmas if word.lower() == lemma)

    def proper(lemma: str, offset: int) -> bool:
        synset, word = synsets[offset], spelled(lemma, offset)
        named = word[0].isupper() and (" " not in word or synset.lexical_file == PERSON)
        return synset.instance or (named and synset.lexical_file not in NAMED_KINDS) or word.isupper()

    found = {}
    for lemma, every in sense_order().items():
        offsets = [offset for offset in every if not proper(lemma, offset)]
        if any(map(visible, offsets[:2])) and re.fullmatch(r"[a-z][a-z' .-]*[a-z]", lemma):
            senses = [offset for offset in offsets if visible(offset)]
            found[spelled(lemma, senses[0])] = senses
    return found


class Plurals:
    """Irregular ones from WordNet's exceptions, the others by inflect."""

    def __init__(self) -> None:
        self.rules = inflect.engine()
        self.irregular: dict[str, str] = {}
        for line in (FOLDER / "noun.exc").read_text(encoding="utf-8").splitlines():
            plural, singular = line.split()[:2]
            self.irregular.setdefault(singular.replace("_", " "), plural.replace("_", " "))

    def of(self, noun: str) -> str:
        """The plural; the noun itself where it is one already; "" where people do not use one."""
        head, last = noun[: -len(last_word(noun))], last_word(noun)
        regular = self.rules.plural_noun(noun) or noun + "s"
        if regular == noun or (re.search(r"[^sui]s$", last) and self.rules.singular_noun(last)):
            return noun
        irregular = head + self.irregular[last] if last in self.irregular else regular
        plural = max((regular, irregular), key=lambda word: zipf_frequency(word, "en"))
        if not head and zipf_frequency(noun, "en") > 3 and zipf_frequency(plural, "en") == 0:
            return ""
        return plural


def last_word(noun: str) -> str:
    return re.split(r"[ -]", noun)[-1]


def entries() -> list[tuple[str, str, str, float]]:
    """(singular, plural, other spellings joined by "|", frequency), most frequent first."""
    plurals, synsets = Plurals(), noun_synsets()
    senses = visible_senses(synsets)
    keys = {
        f"{noun.lower().replace(' ', '_')}%1:{synsets[sense].lexical_file:02}"
        for noun, offsets in senses.items()
        for sense in offsets
    }
    shares = visible_shares(keys)
    spellings: dict[tuple[int, str], list[str]] = {}
    for noun, (sense, *_) in senses.items():
        spellings.setdefault((sense, letters(noun)), []).append(noun)
    found = []
    for (sense, _), group in spellings.items():
        main, *others = sorted(group, key=synsets[sense].lemmas.index)
        if (value := frequency(main, shares.get(main.lower(), 0.5))) > 0:
            found.append((main, plurals.of(main), "|".join(others), value))
    return sorted(found, key=lambda entry: (-entry[3], entry[0]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    found = entries()
    args.out.write_text("".join("\t".join(map(str, entry)) + "\n" for entry in found), encoding="utf-8")
    for n in range(10):
        print(f"FT{n}: {sum(entry[3] > n for entry in found)} nouns")


if __name__ == "__main__":
    main()
