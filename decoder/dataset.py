"""What a decoder is trained on: texts that name nouns, and their embeddings, computed once per encoder.

Three kinds of text (arXiv 2407.11211):
    prompts      one noun in one of many sentences, in singular or plural, commoner nouns in more of them
    multisets    two or three nouns in one sentence; each is a target of weight 1/m
    captions     sentences that people wrote, and the dictionary's nouns in them
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from decoder.errors import NounError
from decoder.nouns import Noun
from decoder.train import Batch, mean_of_each
from retrieval.encoder import DualEncoder

MOST_NOUNS = 3
"""Nouns that one text can name."""

SINGULAR = (
    "{a noun}",
    "a photo of {a noun}.",
    "a picture of {a noun}.",
    "an image of {a noun}.",
    "a snapshot of {a noun}.",
    "a close-up of {a noun}.",
    "a detailed photo of {a noun}.",
    "a blurry photo of {a noun}.",
    "a dark photo of {a noun}.",
    "a bright photo of {a noun}.",
    "a cropped photo of {a noun}.",
    "a pixelated photo of {a noun}.",
    "a black and white photo of {a noun}.",
    "an old photo of {a noun}.",
    "a good photo of {a noun}.",
    "a bad photo of {a noun}.",
    "a photo of the {noun}.",
    "a photo of one {noun}.",
    "a photo of my {noun}.",
    "a photo of a large {noun}.",
    "a photo of a small {noun}.",
    "a photo of a nice {noun}.",
    "a photo of a strange {noun}.",
    "a photo of a clean {noun}.",
    "a photo of a dirty {noun}.",
    "a photo of a single {noun} on its own.",
    "a photo of {a noun} outdoors.",
    "a photo of {a noun} indoors.",
    "a photo of {a noun} in the distance.",
    "a photo of {a noun} seen from above.",
    "a photo of {a noun} on a plain background.",
    "a photo that shows {a noun}.",
    "there is {a noun} here.",
    "this is {a noun}.",
    "someone took a picture of {a noun}.",
    "{a noun} in the middle of the picture.",
    "a drawing of {a noun}.",
    "a painting of {a noun}.",
    "a sketch of {a noun}.",
    "a sculpture of {a noun}.",
    "a toy {noun}.",
    "a rendering of {a noun}.",
)
PLURAL = (
    "{nouns}",
    "a photo of {nouns}.",
    "a picture of {nouns}.",
    "an image of {nouns}.",
    "a close-up of {nouns}.",
    "a blurry photo of {nouns}.",
    "a bright photo of {nouns}.",
    "a black and white photo of {nouns}.",
    "a photo of the {nouns}.",
    "a photo of some {nouns}.",
    "a photo of many {nouns}.",
    "a photo of two {nouns}.",
    "a photo of several {nouns}.",
    "a photo of large {nouns}.",
    "a photo of small {nouns}.",
    "a photo of a group of {nouns}.",
    "a photo of {nouns} outdoors.",
    "a photo of {nouns} indoors.",
    "a photo of {nouns} side by side.",
    "there are {nouns} here.",
    "these are {nouns}.",
    "a drawing of {nouns}.",
    "a painting of {nouns}.",
)
TOGETHER = (
    "{all}",
    "a photo of {all}.",
    "a picture of {all}.",
    "an image that shows {all}.",
    "a photo of {all} together.",
    "there is {all} here.",
)
"""For two and three nouns, each with its article."""


@dataclass(frozen=True)
class Text:
    """A text and the one to MOST_NOUNS nouns that it names, by their positions in the dictionary."""

    words: str
    nouns: tuple[int, ...]


def with_article(noun: str) -> str:
    """ "a cat", "an owl", and "scissors" without one: by the first letter, and a few words whose sound differs."""
    first = noun.split()[0].lower() if noun.split() else ""
    if re.match(r"(hour|heir|honest|honou?r)", first):
        return f"an {noun}"
    if re.match(r"(uni(?!n|m)|use|usu|eu|ewe|one|ut[ei]|ubi|u-|ura|uk[eu])", first):
        return f"a {noun}"
    return f"{'an' if first[:1] in tuple('aeiou') else 'a'} {noun}"


def prompts(nouns: Sequence[Noun], per_noun: int, seed: int = 0) -> list[Text]:
    """Sentences about one noun each.

    Args:
        nouns: the dictionary.
        per_noun: sentences for a noun of middling frequency (6); the commonest get twice as many, rare ones half.
        seed: of the choice of sentences and spellings. Each noun stands alone, too, in singular and plural.
    """
    rng = np.random.default_rng(seed)
    found: dict[tuple[str, int], None] = {}
    for position, noun in enumerate(nouns):
        for alone in filter(None, (noun.singular, noun.plural)):
            found[alone, position] = None
        count = round(per_noun * float(np.clip(noun.frequency / 6, 0.5, 2)))
        counted = noun.plural == noun.singular  # "scissors": never with an article
        for _ in range(count):
            if noun.plural and (counted or rng.random() < len(PLURAL) / len(SINGULAR + PLURAL)):
                words = PLURAL[rng.integers(len(PLURAL))].replace("{nouns}", noun.plural)
            else:
                spelled = [noun.singular] * 2 + list(noun.spellings)
                word = spelled[rng.integers(len(spelled))]
                template = SINGULAR[rng.integers(len(SINGULAR))]
                words = template.replace("{a noun}", with_article(word)).replace("{noun}", word)
            found[words, position] = None
    return [Text(words, (position,)) for words, position in found]


def multisets(nouns: Sequence[Noun], count: int, size: int, seed: int = 0) -> list[Text]:
    """Sentences about `size` different nouns, drawn by frequency."""
    if len(nouns) < size:
        return []
    rng = np.random.default_rng([seed, size])
    weights = np.array([noun.frequency for noun in nouns])
    texts = []
    for _ in range(count):
        chosen = rng.choice(len(nouns), size, replace=False, p=weights / weights.sum())
        parts = [n.plural if n.plural == n.singular else with_article(n.singular) for n in (nouns[i] for i in chosen)]
        listed = " and ".join([", ".join(parts[:-1]), parts[-1]])
        template = TOGETHER[rng.integers(len(TOGETHER))]
        texts.append(Text(template.replace("{all}", listed), tuple(int(i) for i in chosen)))
    return texts


def captions_with_nouns(captions: Iterable[str], nouns: Sequence[Noun]) -> list[Text]:
    """The captions that name one to MOST_NOUNS nouns of the dictionary, in singular, plural or another spelling.

    The longest noun at a place counts ("hot dog", not "dog").
    """
    forms: dict[tuple[str, ...], int] = {}
    for position, noun in enumerate(nouns):
        for form in (noun.singular, noun.plural, *noun.spellings):
            if form:
                forms.setdefault(tuple(form.lower().split()), position)
    longest = max(map(len, forms), default=0)
    texts = []
    for caption in captions:
        words = re.findall(r"[\w'-]+", caption.lower())
        found: dict[int, None] = {}
        at = 0
        while at < len(words):
            for length in range(min(longest, len(words) - at), 0, -1):
                named = forms.get(tuple(words[at : at + length]))
                if named is not None:
                    found[named] = None
                    at += length
                    break
            else:
                at += 1
        if 1 <= len(found) <= MOST_NOUNS:
            texts.append(Text(caption.strip(), tuple(found)))
    return texts


class EmbeddedTexts:
    """Texts of several kinds and their embeddings, to draw samples from."""

    def __init__(self, kinds: Sequence[Sequence[Text]], shares: Sequence[float], embeddings: NDArray[np.float16]):
        """
        Args:
            kinds: the texts of each kind, one kind after the other as in `embeddings`.
            shares: how often each kind is drawn; a kind without texts is left out.
            embeddings: [n, d], unit norm.

        Raises:
            NounError: there is no text, or their number is not that of the embeddings.
        """
        sizes = [len(texts) for texts in kinds]
        if sum(sizes) != len(embeddings) or not sum(sizes):
            raise NounError(f"got {sum(sizes)} texts and {len(embeddings)} embeddings; need as many, and at least one")
        self.embeddings = embeddings
        self.starts = np.cumsum([0, *sizes])
        weights = np.array([share if size else 0.0 for share, size in zip(shares, sizes, strict=True)])
        self.shares = weights / weights.sum()
        texts = [text for group in kinds for text in group]
        self.counts = np.array([len(text.nouns) for text in texts])
        self.nouns = np.full((len(texts), MOST_NOUNS), -1)
        for row, text in zip(self.nouns, texts, strict=True):
            row[: len(text.nouns)] = text.nouns

    def noun_means(self) -> NDArray[np.float32]:
        alone = np.flatnonzero(self.counts == 1)
        return mean_of_each(np.asarray(self.embeddings[alone], np.float32), self.nouns[alone, 0], self.nouns.max() + 1)

    def draw(self, rng: np.random.Generator, count: int) -> Batch:
        kind = rng.choice(len(self.shares), count, p=self.shares)
        first, size = self.starts[kind], np.diff(self.starts)[kind]
        rows = first + (rng.random(count) * size).astype(np.int64)
        rows = np.sort(rows[: int(np.searchsorted(self.counts[rows].cumsum(), count, "right")) or 1])
        repeated = np.repeat(rows, self.counts[rows])
        vectors = np.asarray(self.embeddings[repeated], np.float32)
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)
        targets = self.nouns[rows]
        return Batch(vectors, targets[targets >= 0], (1 / self.counts[repeated]).astype(np.float32))


def embed_texts(
    texts: Sequence[Text], encoder: DualEncoder, folder: Path, progress: Callable[[int], None] = lambda n: None
) -> NDArray[np.float16]:
    """Embeddings [n, d] of the texts, memory-mapped from a folder of their own under `folder`.

    They are computed once per encoder and set of texts; a run that was stopped goes on where it was.
    """
    words = [text.words for text in texts]
    digest = hashlib.sha256(json.dumps([encoder.fingerprint, words]).encode()).hexdigest()[:16]
    place = folder / f"texts-{digest}"
    place.mkdir(parents=True, exist_ok=True)
    file, marker = place / "embeddings.f16", place / "done.json"
    shape = (len(words), encoder.dim)
    done = json.loads(marker.read_text())["done"] if marker.exists() and file.exists() else 0
    stored = np.memmap(file, np.float16, "r+" if done else "w+", shape=shape)
    progress(done)
    for start in range(done, len(words), 4096):
        part = words[start : start + 4096]
        stored[start : start + len(part)] = encoder.embed_texts(part)
        stored.flush()
        scratch = marker.with_suffix(".partial")
        scratch.write_text(json.dumps({"done": start + len(part), "encoder": encoder.name}))
        scratch.replace(marker)
        progress(len(part))
    return np.memmap(file, np.float16, "r", shape=shape)
