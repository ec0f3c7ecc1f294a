"""Reads captions from files, streaming: .txt .csv .tsv .jsonl .parquet and COCO captions .json."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from retrieval.captions import CaptionIndex
from retrieval.encoder import DualEncoder
from retrieval.errors import CaptionIndexError

COLUMNS = ("caption", "captions", "text", "sentence", "title", "alt_text", "description", "TEXT")
"""Column names that are taken for captions, the first that is there, unless one is named."""

CHUNK = 2048
"""Captions embedded at a time: enough to sort by length within, little to hold."""


def read_captions(source: Path, column: str | None = None) -> Iterator[str]:
    """Captions of one file, blank ones and exact repeats left out.

    Args:
        source: the file; its suffix says how it is read.
        column: the column or key that holds captions; a number counts columns of a .csv or .tsv without header from 0.

    Raises:
        CaptionIndexError: an unknown suffix, a missing column, or a file that is not what its suffix says.
    """
    readers = {
        ".txt": lambda: iter(_lines(source)),
        ".csv": lambda: _table(source, column, ","),
        ".tsv": lambda: _table(source, column, "\t"),
        ".jsonl": lambda: _json_lines(source, column),
        ".parquet": lambda: _parquet(source, column),
        ".json": lambda: _coco(source),
    }
    reader = readers.get(source.suffix.lower())
    if reader is None:
        raise CaptionIndexError(f"{source} ends in {source.suffix!r}; captions are read from {', '.join(readers)}")
    seen: set[int] = set()
    try:
        for caption in reader():
            text = " ".join(caption.split())
            if text and hash(text) not in seen:
                seen.add(hash(text))
                yield text
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise CaptionIndexError(f"{source} cannot be read as {source.suffix} captions: {error}") from error


def build_index(
    captions: Iterator[str], encoder: DualEncoder, source: str, progress: Callable[[int], None] = lambda n: None
) -> CaptionIndex:
    """Embed captions as they stream in. `progress` is told the number of captions of each chunk done."""
    texts: list[str] = []
    parts: list[NDArray[np.float32]] = []
    chunk: list[str] = []

    def flush() -> None:
        parts.append(encoder.embed_texts(chunk))
        texts.extend(chunk)
        progress(len(chunk))
        chunk.clear()

    for caption in captions:
        chunk.append(caption)
        if len(chunk) == CHUNK:
            flush()
    if chunk:
        flush()
    vectors = np.concatenate(parts) if parts else np.zeros((0, encoder.dim), np.float32)
    about = {"encoder": encoder.name, "fingerprint": encoder.fingerprint, "source": source}
    return CaptionIndex.from_embeddings(vectors, texts, about)


def _lines(source: Path) -> Iterator[str]:
    with source.open(encoding="utf-8", errors="replace") as stream:
        yield from stream


def _table(source: Path, column: str | None, delimiter: str) -> Iterator[str]:
    with source.open(encoding="utf-8", errors="replace", newline="") as stream:
        rows = csv.reader(stream, delimiter=delimiter)
        if column is not None and column.isdigit():
            yield from (row[int(column)] for row in rows if len(row) > int(column))
            return
        header = next(rows, [])
        place = header.index(_pick(header, column, source))
        yield from (row[place] for row in rows if len(row) > place)


def _json_lines(source: Path, column: str | None) -> Iterator[str]:
    for number, line in enumerate(_lines(source), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise CaptionIndexError(f"{source} line {number} is not JSON: {error}") from error
        if isinstance(value, dict):
            value = value[_pick(list(value), column, source)]
        yield from _flat(value)


def _parquet(source: Path, column: str | None) -> Iterator[str]:
    with pq.ParquetFile(source) as file:
        name = _pick(file.schema_arrow.names, column, source)
        for batch in file.iter_batches(columns=[name]):
            for value in batch.column(0).to_pylist():
                yield from _flat(value)


def _coco(source: Path) -> Iterator[str]:
    with source.open(encoding="utf-8") as stream:
        yield from _coco_annotations(stream, source)


def _coco_annotations(stream: TextIO, source: Path) -> Iterator[str]:
    document = json.load(stream)
    annotations = document.get("annotations") if isinstance(document, dict) else None
    if not isinstance(annotations, list) or not all("caption" in a for a in annotations):
        raise CaptionIndexError(f'{source} is no COCO captions file: it needs {{"annotations": [{{"caption": ...}}]}}')
    for annotation in annotations:
        yield str(annotation["caption"])


def _flat(value: Any) -> Iterator[str]:
    """A caption, or a list of them (Flickr style)."""
    if isinstance(value, list):
        for item in value:
            yield from _flat(item)
    elif value is not None:
        yield str(value)


def _pick(names: list[str], column: str | None, source: Path) -> str:
    wanted = (column,) if column else COLUMNS
    for name in wanted:
        if name in names:
            return name
    raise CaptionIndexError(f"{source} has the columns {names}; say which one holds captions with --column")
