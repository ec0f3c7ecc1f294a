"""Train the pocket encoder's image tower: a small ResNet whose 384 outputs are the embedding.

Loss, per photo, on cosines times a learned logit scale:
  own     cross-entropy over the class names of the photo's own data set (seen classes only);
  wide    cross-entropy to the image teacher's distribution over its 1,000 class names;
  near    1 - cosine to the text of the photo's own class, or to the mean of its captions.
Every step draws each class's text anew (name, synonym or prompt), so that the image lands near all of them.

Photos are shown in random crops of 64, then 80 px, and used whole at 96: cheaper, and the apparent size of objects in
training and use then agrees (Touvron et al., "Fixing the train-test resolution discrepancy", 2019).
For the first HOLD_OUT_SHARE of the run, 30 classes are absent altogether; the weights at that point, saved as
image-unseen.pt, are what the figure for unseen classes is measured on. They join for the rest.

The texts are the teacher's, so that image and text tower need not wait for each other. A short second run with
--bundled-text then fits the image tower to the text tower as it came out.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import math
import queue
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name
from transformers import ResNetConfig, ResNetForImageClassification

from recipes.pocket_data import SETS, PhotoSet, held_out_classes, load, teacher_names
from recipes.text_teacher import DIM, TextTeacher, centre
from retrieval.encoder import load_encoder

EDGE = 96
HOLD_OUT_SHARE = 0.75
EDGES = ((0.55, 64), (1.0, 80))
"""Until this share of the run, photos are shown at this edge."""
MIN_AREA = 0.4
GREY_SHARE = 0.1
"""Share of photos shown without colour: scans, textures and old photographs have none, nearly all train photos do."""
NEAR_WEIGHT = 4.0
"""Weight of 1 - cosine. Cross-entropy alone places photos where they differ most from the other classes, not near
their own text: a ridge regression to the texts, afterwards, raised unseen classes from 33 to 45 % (docs/lab-notes.md).
"""
REPEATS = {"tiny-imagenet-64px": 1, "cifar100-32px": 1, "caltech101-144px": 3, "flickr8k-1000-pairs": 1}
WIDE_WEIGHT = {"tiny-imagenet-64px": 0.3, "cifar100-32px": 0.3, "caltech101-144px": 0.3, "flickr8k-1000-pairs": 1.0}
PROMPTS = ("a photo of a {}.",)
MEAN = torch.tensor([0.485, 0.456, 0.406])
STD = torch.tensor([0.229, 0.224, 0.225])
LUMA = torch.tensor([0.299, 0.587, 0.114])
"""Of red, green and blue in a grey photo: ITU-R BT.601."""


def build_tower() -> ResNetForImageClassification:
    return ResNetForImageClassification(
        ResNetConfig(
            embedding_size=32,
            hidden_sizes=[48, 96, 192, 384],
            depths=[1, 1, 1, 1],
            layer_type="basic",
            num_labels=DIM,
        )
    )


class Texts:
    """Embeddings of every way to write each class: the teacher's, or those of the bundled text tower."""

    def __init__(self, sets: list[PhotoSet], synonyms: dict[str, list[str]], cache: Path, bundled: bool) -> None:
        self.names = teacher_names()
        written: list[str] = []
        for photo_set in sets:
            for name in photo_set.classes:
                written += [name, *synonyms.get(name, [])]
        for names in self.names:
            written += names
        plain = sorted(set(written))
        captions = [text for photo_set in sets for texts in photo_set.captions for text in texts]
        texts = plain + [prompt.format(text) for prompt in PROMPTS for text in plain] + captions
        store = cache / "names.npz"
        if store.exists():
            with np.load(store) as held:
                raw = held["embeddings"]
        else:
            raw = TextTeacher().embed(texts)
            np.savez(store, embeddings=raw, mean=raw[: len(plain)].mean(0))
        self.mean: NDArray[np.float32] = raw[: len(plain)].mean(0)
        self.row = {text: i for i, text in enumerate(texts)}
        vectors = load_encoder("pocket", "cpu").embed_texts(texts) if bundled else centre(raw, self.mean)
        self.vectors = torch.from_numpy(vectors)
        self.synonyms = synonyms

    def variants(self, name: str) -> list[int]:
        """Row ids of the ways to write a class: its own name half of the time, a prompt or a synonym otherwise."""
        prompts = [self.row[prompt.format(name)] for prompt in PROMPTS]
        others = [self.row[other] for other in self.synonyms.get(name, []) if other != name]
        return [self.row[name]] * 2 * len(prompts + others) + prompts + others

    def draw(self, written: tuple[NDArray[np.int64], NDArray[np.int64]], rng: np.random.Generator) -> Tensor:
        """One way to write each class, [c, 384], from what `ways` returned."""
        table, counts = written
        return self.vectors[torch.from_numpy(table[np.arange(len(table)), rng.integers(counts)])]

    def ways(self, names: list[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The variants of each class in a padded table [c, most], and their number [c]."""
        rows = [self.variants(name) for name in names]
        table = np.zeros((len(rows), max(map(len, rows))), np.int64)
        for line, row in zip(table, rows, strict=True):
            line[: len(row)] = row
        return table, np.array([len(row) for row in rows])


def augment(photos: Tensor, edge: int, rng: np.random.Generator) -> Tensor:
    """Random crop (area MIN_AREA-1, aspect 3/4-4/3), flip, some grey: uint8 [b, h, w, 3] -> [b, 3, edge, edge]."""
    b = len(photos)
    area = rng.uniform(MIN_AREA, 1.0, b)
    aspect = np.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3), b))
    half_w, half_h = np.minimum(np.sqrt(area * aspect), 1), np.minimum(np.sqrt(area / aspect), 1)
    theta = np.zeros((b, 2, 3), np.float32)
    theta[:, 0, 0] = half_w * rng.choice([-1, 1], b)
    theta[:, 1, 1] = half_h
    theta[:, 0, 2] = rng.uniform(-1, 1, b) * (1 - half_w)
    theta[:, 1, 2] = rng.uniform(-1, 1, b) * (1 - half_h)
    grid = F.affine_grid(torch.from_numpy(theta).to(photos.device), [b, 3, edge, edge], align_corners=False)
    pixels = photos.permute(0, 3, 1, 2).float().div_(255)
    grey = torch.from_numpy(rng.random(b) < GREY_SHARE).to(photos.device)
    pixels[grey] = (pixels[grey] * LUMA.to(pixels).view(3, 1, 1)).sum(1, keepdim=True).expand(-1, 3, -1, -1)
    pixels = (pixels - MEAN.to(pixels).view(3, 1, 1)) / STD.to(pixels).view(3, 1, 1)
    return F.grid_sample(pixels, grid, mode="bilinear", padding_mode="reflection", align_corners=False).contiguous(
        memory_format=torch.channels_last
    )


def whole(photos: NDArray[np.uint8], device: torch.device | str) -> Tensor:
    """Photos [n, h, w, 3] as they are embedded in use: [n, 3, EDGE, EDGE]."""
    pixels = torch.from_numpy(photos).to(device).permute(0, 3, 1, 2).float().div_(255)
    if pixels.shape[-1] != EDGE:
        pixels = F.interpolate(pixels, (EDGE, EDGE), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    pixels = (pixels - MEAN.to(pixels).view(3, 1, 1)) / STD.to(pixels).view(3, 1, 1)
    return pixels.contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def embed(model: nn.Module, photos: NDArray[np.uint8]) -> Tensor:
    """Photos [n, h, w, 3] -> unit embeddings [n, 384], at EDGE px."""
    model.eval()
    device = next(model.parameters()).device
    batches = [whole(photos[start : start + 250], device) for start in range(0, len(photos), 250)]
    return torch.cat([F.normalize(model(pixels).logits, dim=-1).cpu() for pixels in batches])


@torch.no_grad()
def recalibrate(model: nn.Module, sets: list[NDArray[np.uint8]], per_set: int = 2500) -> None:
    """Take the batch norms' statistics anew from whole train photos [n, h, w, 3] at EDGE px, as they are shown in use.

    Training saw crops at other sizes, whose statistics differ (Touvron et al. 2019).
    """
    rng = np.random.default_rng(0)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over all batches
    model.train()
    photos = [whole(shown[rng.permutation(len(shown))[:per_set]], "cpu") for shown in sets]
    device = next(model.parameters()).device
    pixels = torch.cat(photos)[torch.from_numpy(rng.permutation(sum(map(len, photos))))]
    for batch in pixels.split(250):
        model(batch.to(device).contiguous(memory_format=torch.channels_last))
    for norm in norms:
        norm.momentum = 0.1
    model.eval()


def ten_way(embeddings: Tensor, labels: Tensor, names: Tensor, draws: int = 1000) -> float:
    """Top-1 among ten classes drawn at random from those given, mean over draws."""
    rng = np.random.default_rng(0)
    cosines = embeddings @ names.T
    scores = []
    for _ in range(draws):
        ten = torch.from_numpy(rng.choice(len(names), 10, replace=False))
        rows = torch.isin(labels, ten)
        scores.append((ten[cosines[rows][:, ten].argmax(1)] == labels[rows]).float().mean().item())
    return float(np.mean(scores))


def report(model: nn.Module, validation: list[PhotoSet], texts: Texts, held_out: dict[str, list[str]]) -> str:
    line, unseen_x, unseen_y, unseen_t = [], [], [], []
    for photo_set in validation:
        embeddings = embed(model, photo_set.photos)
        names = texts.vectors[[texts.row[name] for name in photo_set.classes]].cpu()
        best = (embeddings @ names.T).argmax(1)
        labels = torch.from_numpy(photo_set.labels)
        line.append(f"{photo_set.name} {100 * (best == labels).float().mean():.2f}")
        for name in held_out[photo_set.name]:
            i = photo_set.classes.index(name)
            rows = labels == i
            unseen_x.append(embeddings[rows])
            unseen_y.append(torch.full((int(rows.sum()),), len(unseen_t)))
            unseen_t.append(names[i])
    score = ten_way(torch.cat(unseen_x), torch.cat(unseen_y), torch.stack(unseen_t))
    return " | ".join([*line, f"held-out ten-way {100 * score:.2f}"])


def shared_replica(model: nn.Module) -> nn.Module:
    """A copy with the same parameter tensors and running statistics of its own."""
    replica = copy.deepcopy(model)
    for mine, theirs in zip(replica.parameters(), model.parameters(), strict=True):
        mine.data = theirs.data
    return replica


class Muon:
    """Momentum whose matrix updates are orthogonalised by Newton-Schulz (Jordan et al. 2024), for convolution kernels.

    Kernels [out, in, h, w] are seen as matrices [out, in * h * w]; an update has the spectral norm of one times
    sqrt(max(1, out / fan_in)).
    """

    COEFFICIENTS = (3.4445, -4.7750, 2.0315)

    def __init__(self, parameters: list[nn.Parameter], momentum: float = 0.95, weight_decay: float = 0.02) -> None:
        self.parameters, self.momentum, self.weight_decay = parameters, momentum, weight_decay
        self.buffers = [torch.zeros_like(p) for p in parameters]

    @torch.no_grad()
    def update(self, p: nn.Parameter, buffer: Tensor, lr: float) -> None:
        a, b, c = self.COEFFICIENTS
        assert p.grad is not None
        buffer.lerp_(p.grad, 1 - self.momentum)
        update = p.grad.lerp(buffer, self.momentum).reshape(len(p), -1)
        tall = update.shape[0] > update.shape[1]
        x = update.T if tall else update
        x = x / (x.norm() + 1e-7)
        gram = x @ x.T
        product = identity = torch.eye(len(x), device=x.device)
        for _ in range(4):  # all in the short dimension: each iterate is a polynomial of the Gram matrix times x
            factor = a * identity + b * gram + c * gram @ gram
            product, gram = factor @ product, factor @ gram @ factor
        x = product @ x
        x = x.T if tall else x
        p.mul_(1 - lr * self.weight_decay)
        p.add_(x.reshape(p.shape), alpha=-lr * math.sqrt(max(1.0, x.shape[0] / x.shape[1])))

    def step(self, lr: float, pool: ThreadPoolExecutor) -> None:
        list(pool.map(partial(self.update, lr=lr), self.parameters, self.buffers))


def schedule(share: float, warmup: float = 0.05) -> float:
    """Factor of the learning rate at this share of the run: linear warm-up, then cosine to zero."""
    if share < warmup:
        return max(share, 0.001) / warmup
    return 0.5 * (1 + math.cos(math.pi * (share - warmup) / (1 - warmup)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--epochs", type=float, default=8)
    parser.add_argument("--minutes", type=float, help="end after this long instead of after --epochs")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--muon-lr", type=float, default=0.03, help="0: AdamW for everything")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--start", type=Path, help="weights to go on from (image.pt of an earlier run)")
    parser.add_argument("--hold-out-share", type=float, default=HOLD_OUT_SHARE, help="0: no class is held out")
    parser.add_argument("--edge", type=int, help="show photos at this edge all along, instead of at 64 and then 80")
    parser.add_argument("--bundled-text", action="store_true", help="learn towards the text tower of retrieval/pocket")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    torch.manual_seed(0)

    train = [load(name, "train", args.cache) for name in SETS]
    labelled = [s for s in train if s.classes]
    validation = [load(s.name, "validation", args.cache) for s in labelled]
    held_out = held_out_classes({s.name: s.classes for s in labelled})
    synonyms = {names[0]: names[1:3] for names in teacher_names()}
    texts = Texts(train, synonyms, args.cache, args.bundled_text)
    class_rows = {s.name: texts.ways(s.classes) for s in labelled}
    wide_rows = texts.ways([names[0] for names in texts.names])
    seen_mask = {s.name: torch.tensor([name not in held_out[s.name] for name in s.classes]) for s in labelled}
    captions = [texts.vectors[[texts.row[t] for t in group]] for s in train for group in s.captions]
    caption_mean = F.normalize(torch.stack([group.mean(0) for group in captions]), dim=-1)
    texts.vectors, caption_mean = texts.vectors.to(args.device), caption_mean.to(args.device)
    seen_mask = {name: mask.to(args.device) for name, mask in seen_mask.items()}

    def epoch_order(everything: bool) -> NDArray[np.int64]:
        """(set, row) pairs of one epoch, shuffled; held-out classes left out until `everything`."""
        pairs = []
        for i, s in enumerate(train):
            rows = np.arange(len(s.photos))
            if s.classes and not everything:
                rows = rows[seen_mask[s.name].numpy()[s.labels]]
            rows = np.tile(rows, REPEATS[s.name])
            pairs.append(np.stack([np.full(len(rows), i), rows], 1))
        order = np.concatenate(pairs)
        rng.shuffle(order)
        return order

    order = epoch_order(everything=args.hold_out_share <= 0)
    steps = int(args.epochs * len(order) / args.batch)
    model = build_tower()
    if args.start:
        model.load_state_dict(torch.load(args.start, weights_only=True)["model"])
    model = model.to(args.device, memory_format=torch.channels_last)
    average = copy.deepcopy(model)
    log_scale = nn.Parameter(torch.tensor(math.log(16.0), device=args.device))
    decay = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    muon = Muon([p for p in decay if p.ndim == 4]) if args.muon_lr else None
    adam = [p for p in decay if muon is None or p.ndim != 4]
    optimizer = torch.optim.AdamW(
        [{"params": adam, "weight_decay": 0.05}, {"params": [*plain, log_scale], "weight_decay": 0.0}], lr=args.lr
    )
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, {steps} steps", flush=True)
    # On a CPU, each thread takes micro-batches through its own replica on one core (they share the weights, not the
    # running statistics): threads then meet once per step, not in every layer, which is what costs most where a core
    # is busy with something else.
    threads = torch.get_num_threads() if args.device == "cpu" else 1
    micro = 64 if args.device == "cpu" else args.batch
    replicas: queue.SimpleQueue[nn.Module] = queue.SimpleQueue()
    replicas.put(model)
    for _ in range(threads - 1):
        replicas.put(shared_replica(model))
    parameters = [*model.parameters(), log_scale]

    def gradients(pairs: NDArray[np.int64], seed: list[int], edge: int, everything: bool) -> tuple[float, list[Tensor]]:
        """Loss and gradients of a micro-batch of (set, row) pairs."""
        rng = np.random.default_rng(seed)
        groups = [(i, pairs[pairs[:, 0] == i, 1]) for i in range(len(train))]
        groups = [(i, rows) for i, rows in groups if len(rows)]
        pixels = torch.cat(
            [augment(torch.from_numpy(train[i].photos[rows]).to(args.device), edge, rng) for i, rows in groups]
        )
        replica = replicas.get()
        embeddings = F.normalize(replica(pixels.contiguous(memory_format=torch.channels_last)).logits, dim=-1)
        scale = log_scale.exp().clamp(max=50)
        wide = F.log_softmax(scale * embeddings @ texts.draw(wide_rows, rng).T, dim=-1)
        loss, start = torch.zeros((), device=args.device), 0
        for i, rows in groups:
            s, part = train[i], slice(start, start + len(rows))
            start += len(rows)
            likely = wide[part].gather(1, torch.from_numpy(s.teacher_ids[rows]).to(args.device))
            soft = torch.from_numpy(s.teacher_probabilities[rows]).to(args.device)
            loss = loss - WIDE_WEIGHT[s.name] * (soft * likely).sum()
            if s.classes:
                cosines = embeddings[part] @ texts.draw(class_rows[s.name], rng).T
                labels = torch.from_numpy(s.labels[rows]).to(args.device)
                loss = loss + NEAR_WEIGHT * (1 - cosines.gather(1, labels[:, None])).sum()
                logits = scale * cosines
                if not everything:
                    logits = logits.masked_fill(~seen_mask[s.name], -1e4)
                loss = loss + F.cross_entropy(logits, labels, reduction="sum")
            else:
                loss = loss + NEAR_WEIGHT * (1 - (embeddings[part] * caption_mean[rows]).sum(1)).sum()
        loss = loss / len(pairs)
        found = torch.autograd.grad(loss, [*replica.parameters(), log_scale])
        replicas.put(replica)
        return loss.item(), list(found)

    checkpoint, began, done = args.out / "checkpoint.pt", time.time(), 0.0
    first, position, running, unseen_saved, saved = 0, 0, 0.0, False, time.time()
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        log_scale.data.copy_(state["log_scale"])
        if muon:
            for held, stored in zip(muon.buffers, state["muon"], strict=True):
                held.copy_(stored)
        first, done, unseen_saved = state["step"], state["share"], state["unseen_saved"]
        order = epoch_order(unseen_saved or args.hold_out_share <= 0)
        print(f"going on from step {first} ({100 * done:.1f} %)", flush=True)
    pool = ThreadPoolExecutor(
        threads, initializer=lambda: torch.set_num_threads(1 if args.device == "cpu" else threads)
    )
    model.train()
    for step in itertools.count(first):
        share = done + (time.time() - began) / (60 * args.minutes) if args.minutes else step / steps
        if share >= 1:
            break
        everything = share >= args.hold_out_share
        if everything and not unseen_saved and args.hold_out_share > 0:
            unseen_saved = True
            unseen = copy.deepcopy(average)
            recalibrate(unseen, [s.photos[seen_mask[s.name].cpu().numpy()[s.labels]] for s in labelled])
            torch.save({"model": unseen.state_dict(), "scale": log_scale.exp().item()}, args.out / "image-unseen.pt")
            print("unseen:", report(unseen, validation, texts, held_out), flush=True)
            order, position = epoch_order(everything), 0
        if position + args.batch > len(order):
            order, position = epoch_order(everything), 0
        batch = order[position : position + args.batch]
        position += args.batch
        edge = args.edge or next(edge for until, edge in EDGES if share < until)
        parts = [batch[start : start + micro] for start in range(0, len(batch), micro)]
        work = partial(gradients, edge=edge, everything=everything)
        results = list(pool.map(work, parts, [[step, i] for i in range(len(parts))]))
        total = results[0][1]
        for _, found in results[1:]:
            torch._foreach_add_(total, found)
        torch._foreach_div_(total, len(results))
        for parameter, gradient in zip(parameters, total, strict=True):
            parameter.grad = gradient
        for group in optimizer.param_groups:
            group["lr"] = args.lr * schedule(share)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if muon:
            muon.step(args.muon_lr * schedule(share), pool)
        if step % 4 == 0:
            keep = min(0.992, 1 - 4 / (step + 4))
            for slow, fast in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
                if slow.dtype.is_floating_point:
                    slow.lerp_(fast.detach(), 1 - keep)
                else:
                    slow.copy_(fast)
        running += (sum(loss for loss, _ in results) / len(results) - running) / min(step - first + 1, 50)
        if step % 50 == 49:
            rate = (step + 1 - first) * args.batch / (time.time() - began)
            scale = log_scale.exp().item()
            print(
                f"{step + 1} ({100 * share:.1f} %) loss {running:.3f} scale {scale:.1f} {rate:.0f} photos/s", flush=True
            )
        if time.time() - saved > 300:
            saved = time.time()
            state = {
                "model": model.state_dict(),
                "average": average.state_dict(),
                "optimizer": optimizer.state_dict(),
                "muon": muon.buffers if muon else [],
                "log_scale": log_scale.detach(),
                "step": step + 1,
                "share": share,
                "unseen_saved": unseen_saved,
            }
            torch.save(state, checkpoint.with_suffix(".partial"))
            checkpoint.with_suffix(".partial").replace(checkpoint)
    print("before the statistics:", report(average, validation, texts, held_out), flush=True)
    recalibrate(average, [s.photos for s in labelled])
    torch.save(
        {"model": average.state_dict(), "scale": log_scale.exp().item(), "mean": torch.from_numpy(texts.mean)},
        args.out / "image.pt",
    )
    print("final:", report(average, validation, texts, held_out), flush=True)


if __name__ == "__main__":
    main()
