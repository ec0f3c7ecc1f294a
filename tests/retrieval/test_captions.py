from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.caption_sources import build_index, read_captions
from retrieval.captions import CaptionIndex, merge
from retrieval.errors import CaptionIndexError

CAPTIONS = ["a cat on a mat", "ein Hund läuft 🐕", "third"]


def unit(n: int, d: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)


class FakeEncoder:
    """Embeds a text by its hash: enough to tell texts apart."""

    name, fingerprint, dim = "fake", "f00d", 8

    def embed_texts(self, texts: list[str]) -> np.ndarray:
        return np.concatenate([unit(1, 8, sum(map(ord, text)) + len(text)) for text in texts])


def write(path: Path, content: Any) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.table(content), path)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("name", "content", "column"),
    [
        ("c.txt", "\n".join([*CAPTIONS, "", "  ", CAPTIONS[0]]), None),
        ("c.csv", "id,caption\n" + "\n".join(f'{i},"{c}"' for i, c in enumerate(CAPTIONS)), None),
        ("c.tsv", "words\turl\n" + "\n".join(f"{c}\thttp://x/{i}" for i, c in enumerate(CAPTIONS)), "words"),
        ("c.tsv", "\n".join(f"{c}\thttp://x/{i}" for i, c in enumerate(CAPTIONS)), "0"),
        ("c.jsonl", "\n".join(json.dumps({"text": c}) for c in CAPTIONS), None),
        ("c.jsonl", "\n".join(json.dumps(c) for c in CAPTIONS) + "\n\n", None),
        ("c.parquet", {"caption": CAPTIONS}, None),
        ("c.parquet", {"captions": [CAPTIONS[:2], CAPTIONS[2:]]}, None),
        ("c.json", {"images": [], "annotations": [{"image_id": 1, "caption": c} for c in CAPTIONS]}, None),
    ],
)
def test_sources(name: str, content: Any, column: str | None, tmp_path: Path) -> None:
    assert list(read_captions(write(tmp_path / name, content), column)) == CAPTIONS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.docx", "x", "read from .txt"),
        ("c.csv", "a,b\n1,2\n", r"columns \['a', 'b'\].*--column"),
        ("c.jsonl", '{"text": "x"}\n{oops\n', "line 2 is not JSON"),
        ("c.json", {"annotations": [{"bbox": []}]}, "no COCO captions file"),
        ("c.json", "[1, 2", "cannot be read"),
        ("c.parquet", None, "cannot be read"),
        ("missing.txt", None, "cannot be read"),
    ],
)
def test_bad_sources_say_what_arrived(name: str, content: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if content is not None:
        write(path, content)
    elif name.startswith("c."):
        path.write_bytes(b"PAR1 not really")
    with pytest.raises(CaptionIndexError, match=message):
        list(read_captions(path))


def test_build_save_open_round_trip(tmp_path: Path) -> None:
    told: list[int] = []
    built = build_index(iter(CAPTIONS), FakeEncoder(), "here", told.append)  # type: ignore[arg-type]
    assert sum(told) == 3
    built.save(tmp_path / "index")
    opened = CaptionIndex.open(tmp_path / "index", "f00d")
    assert len(opened) == 3 and opened.dim == 8 and opened.texts([2, 0, 1]) == [CAPTIONS[i] for i in (2, 0, 1)]
    similarities, ids = opened.search(FakeEncoder().embed_texts([CAPTIONS[1]]), 2)
    assert ids[0, 0] == 1 and similarities[0, 0] == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(
        opened.embeddings(np.array([[0, 1]]))[0], FakeEncoder().embed_texts(CAPTIONS[:2]), atol=1e-6
    )
    built.save(tmp_path / "index")
    assert not (tmp_path / "index.partial").exists()


def test_another_encoder_is_refused(tmp_path: Path) -> None:
    build_index(iter(CAPTIONS), FakeEncoder(), "here").save(tmp_path / "index")  # type: ignore[arg-type]
    with pytest.raises(CaptionIndexError, match="encoder 'fake'.*forelabel index build"):
        CaptionIndex.open(tmp_path / "index", "beef")


@pytest.mark.parametrize("damage", ["no folder", "no vectors", "short texts", "format", "not json"])
def test_damaged_index_is_refused(damage: str, tmp_path: Path) -> None:
    folder = tmp_path / "index"
    if damage != "no folder":
        build_index(iter(CAPTIONS), FakeEncoder(), "here").save(folder)  # type: ignore[arg-type]
    if damage == "no vectors":
        (folder / "vectors.faiss").unlink()
    if damage == "short texts":
        (folder / "texts.bin").write_bytes(b"a")
    if damage == "format":
        (folder / "index.json").write_text('{"format": 99}')
    if damage == "not json":
        (folder / "index.json").write_text("{")
    with pytest.raises(CaptionIndexError, match="index build|rebuild"):
        CaptionIndex.open(folder)


def test_empty_index(tmp_path: Path) -> None:
    empty = build_index(iter([]), FakeEncoder(), "nothing")  # type: ignore[arg-type]
    empty.save(tmp_path / "index")
    opened = CaptionIndex.open(tmp_path / "index")
    assert len(opened) == 0 and opened.search(unit(2, 8), 5)[1].shape == (2, 0)
    assert opened.embeddings(np.zeros((2, 0), np.int64)).shape == (2, 0, 8)


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 40), k=st.integers(1, 50), b=st.integers(0, 4), texts=st.data())
def test_search_is_exact(n: int, k: int, b: int, texts: st.DataObject) -> None:
    words = texts.draw(st.lists(st.text(max_size=12), min_size=n, max_size=n))
    vectors, queries = unit(n, 6, 1), unit(b, 6, 2)
    index = CaptionIndex.from_embeddings(vectors, words)
    similarities, ids = index.search(queries, k)
    assert ids.shape == (b, min(n, k))
    np.testing.assert_allclose(similarities, -np.sort(-(queries @ vectors.T), axis=1)[:, : min(n, k)], atol=1e-5)
    assert index.texts(range(n)) == words


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(CaptionIndexError, match=r"\(2, 4\) for 3 captions"):
        CaptionIndex.from_embeddings(unit(2, 4), CAPTIONS)
    with pytest.raises(CaptionIndexError, match="NaN"):
        CaptionIndex.from_embeddings(np.full((3, 4), np.nan), CAPTIONS)
    with pytest.raises(CaptionIndexError, match="dimension 5"):
        CaptionIndex.from_embeddings(unit(3, 4), CAPTIONS).search(unit(1, 5), 1)


def test_merge_keeps_all() -> None:
    one, two = (
        CaptionIndex.from_embeddings(unit(2, 4), CAPTIONS[:2]),
        CaptionIndex.from_embeddings(unit(1, 4, 5), CAPTIONS[2:]),
    )
    assert merge([one]) is one
    assert merge([one, two]).texts(range(3)) == CAPTIONS
