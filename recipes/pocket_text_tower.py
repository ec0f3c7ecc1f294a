"""Distil the pocket encoder's text tower from the text teacher.

    corpus   nouns, class names and synonyms, prompts around them, sentences about nouns, captions
    teach    their teacher embeddings, cached (the slow part)
    train    a WordPiece vocabulary and a three-layer transformer whose 384 outputs match the centred teacher embedding

The student is stock AlbertForSequenceClassification with unshared layers: ALBERT's factorised token embedding is what
fits 15,000 word pieces into five megabytes. Each word piece begins as the teacher's embedding of that piece as a text,
in its 160 principal directions, so that most one-word names are half learned before the first step.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from tokenizers import BertWordPieceTokenizer
from torch.nn import functional as F  # noqa: N812 - its usual name
from transformers import AlbertConfig, AlbertForSequenceClassification

from recipes.pocket_data import DATA, readable, teacher_names
from recipes.pocket_image_tower import Muon, schedule
from recipes.sentences import frequency, sentences_about_nouns, visible_nouns
from recipes.text_teacher import DIM, TextTeacher, centre
from recipes.wordnet import noun_synsets
from retrieval.prompts import article

VOCABULARY = 15_000
TOKEN_DIM = 160
MAX_TOKENS = 40

SHARES = {
    "class": (0.25, 0.45),
    "noun": (0.33, 0.3),
    "plural": (0.04, 0.03),
    "prompt": (0.13, 0.12),
    "sentence": (0.12, 0.05),
    "caption": (0.13, 0.05),
}
"""Share of each kind of text in a batch, at the start and at the end. Names matter most: labels are written in them."""


def corpus(cache: Path) -> dict[str, list[str]]:
    """Kind -> texts, without repeats."""
    import pyarrow.parquet as pq

    classes = [readable(n) for names in teacher_names() for n in names]
    for name in ("tiny-imagenet-64px", "cifar100-32px", "caltech101-144px"):
        table = pq.read_table(DATA / f"{name}.parquet", columns=["label"])
        classes += sorted({readable(value) for value in table["label"].to_pylist()})
    lvis = json.loads((DATA / "lvis-categories.json").read_text())
    classes += [readable(word.split("_(")[0]) for category in lvis for word in category["synonyms"]]
    nouns = [noun for noun, _ in visible_nouns(1.5, noun_synsets())]
    common = [noun for noun in nouns if frequency(noun) >= 3.6]
    captions = (DATA / "captions-flickr8k.txt").read_text().splitlines()[::5]
    captions += (DATA / "captions-cc3m-validation.txt").read_text().splitlines()[::3]
    return {
        "class": list(dict.fromkeys(classes)),
        "noun": nouns,
        "plural": [noun + "s" for noun in common if not noun.endswith("s")],
        "prompt": [f"a photo of {article(n)} {n}." for n in dict.fromkeys(classes)]
        + [f"a photo of {article(n)} {n}." for n in common],
        "sentence": sentences_about_nouns(3.5),
        "caption": captions,
    }


def teach(texts: list[str], cache: Path) -> np.ndarray:
    stored = cache / "corpus.npy"
    if not stored.exists():
        np.save(stored, TextTeacher().embed(texts).astype(np.float16))
    return np.load(stored).astype(np.float32)


def build_student(vocabulary: int) -> AlbertForSequenceClassification:
    return AlbertForSequenceClassification(
        AlbertConfig(
            vocab_size=vocabulary,
            embedding_size=TOKEN_DIM,
            hidden_size=256,
            num_hidden_layers=3,
            num_hidden_groups=3,
            num_attention_heads=4,
            intermediate_size=768,
            max_position_embeddings=64,
            type_vocab_size=1,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            classifier_dropout_prob=0.0,
            num_labels=DIM,
            pad_token_id=0,
            bos_token_id=2,
            eos_token_id=3,
        )
    )


def token_embeddings(pieces: list[str], mean: np.ndarray) -> torch.Tensor:
    """Word pieces -> the teacher's embeddings of them as texts, in TOKEN_DIM principal directions: [n, TOKEN_DIM]."""
    taught = torch.from_numpy(centre(TextTeacher().embed([piece.removeprefix("##") for piece in pieces]), mean))
    directions = torch.linalg.svd(taught, full_matrices=False).Vh[:TOKEN_DIM]
    projected = taught @ directions.T
    return 0.2 * projected / projected.std()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--minutes", type=float, help="end after this long instead of after --steps")
    parser.add_argument("--muon-lr", type=float, default=0.02)
    parser.add_argument("--start", type=Path, help="weights to go on from (text.pt of an earlier run)")
    parser.add_argument("--teach-only", action="store_true")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    kinds = corpus(args.cache)
    texts = [text for group in kinds.values() for text in group]
    print({kind: len(group) for kind, group in kinds.items()}, flush=True)
    raw = teach(texts, args.cache)
    if args.teach_only:
        return
    with np.load(args.cache / "names.npz") as names:
        mean = names["mean"]
    target = torch.from_numpy(centre(raw, mean))

    vocabulary = args.out / "vocab.txt"
    if not vocabulary.exists():
        tokenizer = BertWordPieceTokenizer(lowercase=True)
        tokenizer.train_from_iterator(
            kinds["class"] * 20 + kinds["noun"] * 2 + kinds["caption"] + kinds["sentence"],
            vocab_size=VOCABULARY,
            min_frequency=2,
        )
        tokenizer.save_model(str(args.out))
    tokenizer = BertWordPieceTokenizer(str(vocabulary), lowercase=True)
    tokenizer.enable_truncation(MAX_TOKENS)
    encoded = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    lengths = np.array([len(ids) for ids in encoded])
    model = build_student(tokenizer.get_vocab_size())
    if args.start:
        model.load_state_dict(torch.load(args.start, weights_only=True))
    else:
        words = model.albert.embeddings.word_embeddings.weight
        words.data.copy_(token_embeddings(vocabulary.read_text().splitlines(), mean))
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters", flush=True)

    starts = np.cumsum([0, *[len(group) for group in kinds.values()]])
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "albert_layer_groups" in n]
    muon = Muon(matrices)
    hidden = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in hidden]
    optimizer = torch.optim.AdamW(rest, lr=2e-3, weight_decay=0.01, betas=(0.9, 0.98))
    workers = ThreadPoolExecutor(torch.get_num_threads(), initializer=lambda: torch.set_num_threads(1))
    began, running = time.time(), 0.0
    batch_size, pool = 256, 8
    pending: list[np.ndarray] = []
    for step in itertools.count():
        share = (time.time() - began) / (60 * args.minutes) if args.minutes else step / args.steps
        if share >= 1:
            break
        if not pending:  # sort a pool of batches by length, so that padding is little
            weights = np.concatenate(
                [np.full(len(g), np.interp(share, (0, 1), SHARES[k]) / len(g)) for k, g in kinds.items()]
            )
            cumulative = np.cumsum(weights / weights.sum())
            drawn = np.searchsorted(cumulative, rng.random(batch_size * pool)).clip(max=len(texts) - 1)
            drawn = drawn[np.argsort(lengths[drawn], kind="stable")].reshape(pool, batch_size)
            pending = [drawn[i] for i in rng.permutation(pool)]
        rows = pending.pop()
        width = int(lengths[rows].max())
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, : lengths[row]] = torch.tensor(encoded[row])
        outputs = F.normalize(model(input_ids=ids, attention_mask=(ids != 0).long()).logits, dim=-1)
        wanted = target[rows]
        cosine = (outputs * wanted).sum(1)
        contrast = F.cross_entropy(20 * outputs @ wanted.T, torch.arange(len(rows)))
        loss = (1 - cosine).mean() + 0.05 * contrast
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * schedule(share)
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        muon.step(args.muon_lr * schedule(share), workers)
        running += (cosine.mean().item() - running) / min(step + 1, 50)
        if step % 100 == 99:
            rate = (step + 1) / (time.time() - began)
            print(f"{step + 1} ({100 * share:.1f} %) cosine {running:.4f} {rate:.1f} steps/s", flush=True)
        if step % 500 == 499:
            torch.save(model.state_dict(), args.out / "text.pt")
    torch.save(model.state_dict(), args.out / "text.pt")
    model.eval()
    with torch.inference_mode():
        for number, kind in enumerate(kinds):
            rows = np.arange(starts[number], min(starts[number + 1], starts[number] + 1500))
            padded = torch.nn.utils.rnn.pad_sequence([torch.tensor(encoded[r]) for r in rows], batch_first=True)
            outputs = F.normalize(model(input_ids=padded, attention_mask=(padded != 0).long()).logits, dim=-1)
            print(f"{kind}: cosine to the teacher {(outputs * target[rows]).sum(1).mean():.4f}", flush=True)


if __name__ == "__main__":
    main()
