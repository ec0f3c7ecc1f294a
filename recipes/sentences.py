"""Write the default captions: our own sentences about the nouns of WordNet, most frequent first.

    python -m recipes.sentences --out retrieval/pocket/captions.txt

One sentence per noun that can be seen and that people use (wordfreq Zipf frequency of its rarest word at least 3.5):
"a photo of a goldfish, a kind of cyprinid: small golden or orange-red freshwater fishes ...". WordNet's licence lets
definitions be redistributed with its notice, which stands in retrieval/pocket/LICENSE-WORDNET.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from wordfreq import zipf_frequency

from recipes.wordnet import LEXICAL_FILES, Synset, noun_synsets, sense_order
from retrieval.prompts import article

MIN_ZIPF = 3.5


def frequency(noun: str) -> float:
    """Zipf frequency of the rarest word in the noun."""
    return min(zipf_frequency(word, "en") for word in noun.split())


def visible_nouns(min_zipf: float, synsets: dict[int, Synset]) -> list[tuple[str, Synset]]:
    """(noun, its first sense that can be seen), most frequent first; proper names are left out."""
    found = []
    for lemma, offsets in sense_order().items():
        seen = [o for o in offsets[:2] if synsets[o].lexical_file in LEXICAL_FILES]
        if not seen or not re.fullmatch(r"[a-z][a-z' -]+", lemma):
            continue
        spelled = next(word for word in synsets[seen[0]].lemmas if word.lower() == lemma)
        if spelled[0].isupper() or frequency(lemma) < min_zipf:
            continue
        found.append((spelled, synsets[seen[0]]))
    return sorted(found, key=lambda pair: (-frequency(pair[0]), pair[0]))


def sentence(noun: str, synset: Synset, synsets: dict[int, Synset]) -> str:
    kind = synsets[synset.hypernyms[0]].lemmas[0] if synset.hypernyms else ""
    kind = f", a kind of {kind}" if kind and kind.lower() != noun.lower() else ""
    definition = re.sub(r"\s*\([^)]*\)\s*", " ", synset.definition).split(";")[0].strip()
    return f"a photo of {article(noun)} {noun}{kind}: {definition}"


def sentences_about_nouns(min_zipf: float) -> list[str]:
    synsets = noun_synsets()
    found = visible_nouns(min_zipf, synsets)
    return list(dict.fromkeys(sentence(noun, synset, synsets) for noun, synset in found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    sentences = sentences_about_nouns(MIN_ZIPF)
    args.out.write_text("\n".join(sentences) + "\n")
    print(f"{len(sentences)} sentences")


if __name__ == "__main__":
    main()
