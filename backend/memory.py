"""What annotators have confirmed, kept for good: the rules, and the rows that both stores hold.

A row, the same in SQLite (a BLOB) and in Redis (a hash field's value), is one of

    removed     these seven bytes: the annotation is gone, and one that arrives late must not bring it back
    {...}       a JSON object, ASCII, keys sorted: every field of Confirmation by its name, but under "embeddings" the
                dimensions alone, {image source: d}
    0x0A        one line feed (JSON has none)
    ...         the embeddings in the order of that object, little-endian IEEE 754 half floats, 2 * d bytes each
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import RetrievalError
from retrieval.store import decode_embeddings, encode_embeddings

Stored = str | list[str]
"""What Label Studio keeps for a label: its value, or a path (Taxonomy, Choices with allowNested)."""

_REMOVED = b"removed"


class MemoryUnavailable(Exception):  # noqa: N818
    """The memory did not answer, or cannot be read. The message says what to do and holds no password."""


@dataclass(frozen=True)
class Confirmation:
    """An annotation as it was last seen. Two are equal whatever their embeddings and the fingerprint of these."""

    annotation: int
    task: int
    updated: float
    """When Label Studio last changed it, seconds since 1970."""
    created: float
    annotator: int | None
    answers: dict[str, list[Stored]]
    """Question's name -> what the annotator left there."""
    suggested: dict[str, list[Stored]]
    """Question's name -> what had been suggested, where that is known."""
    images: dict[str, str]
    """Image source as the labeling config writes it ("$image") -> the task's value."""
    fingerprint: str = field(default="", compare=False)
    """Of the encoder that made the embeddings."""
    embeddings: dict[str, NDArray[np.float16]] = field(default_factory=dict, compare=False)
    """Image source -> [d], read-only; an image that is not embedded yet is missing."""
    skipped: bool = False
    """The annotator gave no answer on purpose, which is not the same as leaving all blank."""


@dataclass(frozen=True)
class Removed:
    """An annotation that was deleted."""

    annotation: int


Held = Confirmation | Removed
Column = Literal["annotation", "task"]


class Memory(ABC):
    """Confirmations by project and annotation.

    Every method may be called from any thread, and several processes may use one memory; each raises MemoryUnavailable.
    What a method has written when it returns is durable, see `durability`. A `project` is what Label Studio calls it in
    /predict: "2.1795319235".
    """

    def put(self, project: str, confirmations: Sequence[Confirmation], authoritative: bool = False) -> int:
        """Keep each in the place of what is held for its annotation; how many were written.

        Left out is what is not newer (`updated`) than what is held, and what was removed, so that events may come twice
        and in any order. `authoritative` ones, which Label Studio has just been asked for, are kept in any case. Same
        contents are not written again. A held embedding survives while the image's value stays the same, unless
        another fingerprint arrives; one that arrives empty or not finite is not kept.
        """

        def decide(held: dict[int, Held]) -> dict[int, Held]:
            written: dict[int, Held] = {}
            for new in confirmations:
                now = written.get(new.annotation, held.get(new.annotation))
                if (successor := _successor(now, new, authoritative)) is not None:
                    written[new.annotation] = successor
            return written

        return self._change(project, "annotation", [new.annotation for new in confirmations], decide)

    def remove(self, project: str, annotations: Sequence[int]) -> int:
        """Forget these, and know them as removed, also those never seen; how many were not known as removed."""

        def decide(held: dict[int, Held]) -> dict[int, Held]:
            return {each: Removed(each) for each in annotations if not isinstance(held.get(each), Removed)}

        return self._change(project, "annotation", annotations, decide)

    def remove_tasks(self, project: str, tasks: Sequence[int]) -> int:
        """Remove all that is held of these tasks; how many annotations that were."""
        return self._change(project, "task", tasks, lambda held: {each: Removed(each) for each in held})

    def attach(
        self,
        project: str,
        annotation: int,
        fingerprint: str,
        embeddings: Mapping[str, NDArray[Any]],
        images: Mapping[str, str],
    ) -> bool:
        """Keep embeddings (image source -> [d], any float dtype) with a held annotation; whether it was done.

        It is not when the annotation is not held (any more), when its images are not `images` (source -> value) any
        more, or when no embedding is finite. Embeddings by another encoder go.
        """
        arrived = _finite(embeddings)

        def decide(held: dict[int, Held]) -> dict[int, Held]:
            now = held.get(annotation)
            if not isinstance(now, Confirmation) or not arrived.keys() <= images.keys():
                return {}
            if not arrived or not images.items() <= now.images.items():
                return {}
            others = now.embeddings if now.fingerprint == fingerprint else {}
            return {annotation: replace(now, fingerprint=fingerprint, embeddings=others | arrived)}

        return self._change(project, "annotation", [annotation], decide) == 1

    def changes(self, project: str, after: int = 0) -> tuple[list[Held], int]:
        """What has changed since the sequence number `after`, and the number now.

        Each annotation comes once, as it is now, oldest change first. After 0 that is everything held, without Removed.
        A number now that is below `after` means that the memory was lost or put back: ask again, after 0.
        """
        rows, now = self._changed(project, after)
        held = [_decode(annotation, row) for annotation, row in rows]
        return [each for each in held if after or isinstance(each, Confirmation)], now

    @abstractmethod
    def sequence(self, project: str) -> int:
        """A number that each call that wrote something moves by one; 0 for an unknown project. One cheap query."""

    @property
    @abstractmethod
    def durability(self) -> str:
        """One sentence: what an acknowledged confirmation survives."""

    @abstractmethod
    def close(self) -> None:
        """Let go of files and connections."""

    @abstractmethod
    def _change(
        self, project: str, column: Column, ids: Sequence[int], decide: Callable[[dict[int, Held]], dict[int, Held]]
    ) -> int:
        """In one atomic step: read the rows whose `column` is among `ids`, write what `decide` makes of them.

        `decide` may be called more than once. Returns how many rows were written.
        """

    @abstractmethod
    def _changed(self, project: str, after: int) -> tuple[list[tuple[int, bytes]], int]:
        """(annotation, row) of what has changed since `after`, oldest change first, and the sequence number."""


def open_memory(url: str) -> Memory:
    """The memory at `url`, which is read as retrieval.store.open_store reads it.

    Raises:
        RetrievalError: the address is of no known kind, or of a database of something else.
        MemoryUnavailable: the address is fine but the file there cannot be used.
    """
    scheme = url.partition("://")[0]
    if scheme == "sqlite":
        from backend.sqlite_memory import SqliteMemory
        from retrieval.sqlite_store import sqlite_path

        return SqliteMemory(sqlite_path(url))
    if scheme in ("redis", "rediss", "unix"):
        from backend.redis_memory import RedisMemory

        return RedisMemory(url)
    # Only the scheme is repeated: the rest may hold a password.
    raise RetrievalError(
        f'the address of the memory of confirmed labels begins with "{scheme[:20]}", which is of no known kind. '
        "Use one of redis://host:6379/0, rediss://host:6379/0, unix:///path/redis.sock, "
        "sqlite:///relative/path.db, sqlite:////absolute/path.db"
    )


def encode_row(held: Held) -> bytes:
    """As the module's docstring says."""
    if isinstance(held, Removed):
        return _REMOVED
    embeddings = sorted(held.embeddings.items())
    head = {**vars(held), "embeddings": {source: len(embedding) for source, embedding in embeddings}}
    # Only ASCII: Label Studio's JSON may hold lone surrogates, which UTF-8 cannot.
    text = json.dumps(head, sort_keys=True).encode()
    return text + b"\n" + b"".join(embedding.astype("<f2").tobytes() for _, embedding in embeddings)


def decode_rows(rows: Mapping[int, bytes]) -> dict[int, Held]:
    """What is held, by annotation.

    Raises:
        MemoryUnavailable: a row is not what `encode_row` writes.
    """
    return {annotation: _decode(annotation, row) for annotation, row in rows.items()}


def _decode(annotation: int, row: bytes) -> Held:
    if row == _REMOVED:
        return Removed(annotation)
    text, _, data = row.partition(b"\n")
    try:
        head = json.loads(text)
        dims = head["embeddings"]
        halves = np.frombuffer(data, "<f2").astype(np.float16, copy=False)
        if sum(dims.values()) != len(halves):
            raise ValueError(f"{len(data)} bytes of embeddings for the dimensions {dims}")
        ends = accumulate(dims.values())
        head["embeddings"] = {key: halves[end - dims[key] : end] for key, end in zip(dims, ends, strict=True)}
        return Confirmation(**head)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise MemoryUnavailable(
            f"what is held of annotation {annotation} cannot be read ({error}). Restore the memory of confirmed labels "
            "from a backup, or begin a new one and run `forelabel sync`"
        ) from error


def _successor(held: Held | None, new: Confirmation, authoritative: bool) -> Confirmation | None:
    """What takes the place of `held` when `new` arrives; None if nothing does."""
    if not authoritative and (isinstance(held, Removed) or (held is not None and held.updated >= new.updated)):
        return None
    if isinstance(held, Confirmation) and held.suggested:
        new = replace(new, suggested=held.suggested)  # what was suggested first; later ones know the answer
    if new == held:
        return None
    new = replace(new, embeddings=_finite(new.embeddings))
    if isinstance(held, Confirmation) and (
        new.fingerprint == held.fingerprint or not (new.fingerprint or new.embeddings)
    ):
        same = held.images.items() & new.images.items()
        survivors = {source: held.embeddings[source] for source, _ in same if source in held.embeddings}
        if survivors:
            new = replace(new, fingerprint=held.fingerprint, embeddings=survivors | new.embeddings)
    return new


def _finite(embeddings: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float16]]:
    """Those that can be kept, each [d] of any float dtype, as float16."""
    halves = decode_embeddings(encode_embeddings(list(embeddings.values())))
    return {source: half for source, half in zip(embeddings, halves, strict=True) if half is not None}
