"""Embeddings in one SQLite file (WAL), which several threads and processes may use at once.

    embedding(id, key, value, used)   key: 128 bits of a hash of the key; used: last use, microseconds since 1970
    total(entries, value_bytes)       one row, kept true by triggers

Size rule: a row counts as its value and ENTRY_OVERHEAD, which is what the file grows by. Every write drops the least
recently used rows until `max_bytes` holds, and new rows take the places of dropped ones, so the file stops growing.
Uses are noted in batches, with the next write at the latest.
"""

from __future__ import annotations

import hashlib
import logging
import math
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import RetrievalError, StoreUnavailable
from retrieval.store import EmbeddingStore, StoreNotWritable, StoreStats, chunks, decode_embeddings, encoded_chunks

logger = logging.getLogger(__name__)

T = TypeVar("T")

ENTRY_OVERHEAD = 400
"""The hash, both indexes and the unused end of each page: the file of 20,000 embeddings; a test holds it to that."""

BUSY_TIMEOUT_S = 2.0
"""How long a writer waits for another one; a chunk takes some hundredths of a second."""

NOTE_USES_AT = 2000
"""Uses that are noted at once when nothing is written meanwhile: one write per several batches."""

_APPLICATION_ID = int.from_bytes(b"fore")
_SCHEMA = (
    f"PRAGMA application_id = {_APPLICATION_ID}",
    """CREATE TABLE embedding
        (id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, value BLOB NOT NULL, used INTEGER NOT NULL)""",
    "CREATE INDEX embedding_used ON embedding (used)",
    "CREATE TABLE total (entries INTEGER NOT NULL, value_bytes INTEGER NOT NULL)",
    "INSERT INTO total VALUES (0, 0)",
    """CREATE TRIGGER inserted AFTER INSERT ON embedding BEGIN
        UPDATE total SET entries = entries + 1, value_bytes = value_bytes + length(new.value); END""",
    """CREATE TRIGGER deleted AFTER DELETE ON embedding BEGIN
        UPDATE total SET entries = entries - 1, value_bytes = value_bytes - length(old.value); END""",
    """CREATE TRIGGER updated AFTER UPDATE OF value ON embedding BEGIN
        UPDATE total SET value_bytes = value_bytes + length(new.value) - length(old.value); END""",
)

_SELECT = "SELECT key, CAST(value AS BLOB) FROM embedding WHERE key IN"

MAX_DROPS = 5_000
"""Rows that one write drops at most: a bound that was lowered is reached over several writes, none of them long."""


class SqliteStore(EmbeddingStore):
    """Embeddings in the SQLite file at `path`, which is made (with its folder) where there is none.

    A file that is damaged is moved aside and a new one begun: it held nothing that cannot be computed again.

    Raises:
        StoreUnavailable: nothing can be kept there now, for example because the folder is read-only.
        RetrievalError: the file is a database of something else, and is left alone.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self._path, self._max_bytes = path, max_bytes
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._inode = 0
        self._uses: dict[bytes, int] = {}
        self._closed = False
        self._run(lambda connection: None)

    def get_many(self, keys: Sequence[str], dim: int | None = None) -> list[NDArray[np.float16] | None]:
        hashes = [_hash(key) for key in keys]
        found = decode_embeddings(self._run(lambda connection: _select(connection, hashes)), dim)
        now = _now()
        hits = {digest: now for digest, embedding in zip(hashes, found, strict=True) if embedding is not None}
        with self._lock:
            self._uses.update(hits)
            due = len(self._uses) >= NOTE_USES_AT
        if due:
            # The embeddings are at hand: a use that cannot be noted only makes the order of eviction less exact.
            with suppress(StoreUnavailable):
                self._run(self._write_uses)
        return found

    def put_many(self, items: Mapping[str, NDArray[Any]]) -> None:
        for chunk in encoded_chunks(items):
            values = {_hash(key): value for key, value in chunk}
            self._run(partial(self._write, values=values), writing=True)

    def stats(self) -> StoreStats:
        entries, size = self._run(_total)
        return StoreStats("sqlite", entries, size, self._max_bytes)

    def close(self) -> None:
        with suppress(StoreUnavailable):
            self._run(self._write_uses)
        with self._lock:
            self._closed = True
            self._disconnect()

    def _write(self, connection: sqlite3.Connection, values: Mapping[bytes, bytes]) -> None:
        now = _now()
        with _transaction(connection):
            self._note_uses(connection)
            held = zip(values, _select(connection, list(values)), strict=True)
            known = {digest for digest, value in held if value is not None}
            connection.executemany(
                "UPDATE embedding SET value = ?, used = ? WHERE key = ?",
                [(values[digest], now, digest) for digest in known],
            )
            new = [(digest, value) for digest, value in values.items() if digest not in known]
            places: list[int | None] = [*self._drop_oldest(connection, sum(len(v) + ENTRY_OVERHEAD for _, v in new))]
            places.extend([None] * len(new))
            connection.executemany(
                "INSERT INTO embedding (id, key, value, used) VALUES (?, ?, ?, ?)",
                [(place, digest, value, now) for place, (digest, value) in zip(places, new, strict=False)],
            )
            self._drop_oldest(connection, 0)  # more came in than the store may hold, or rows of different sizes

    def _drop_oldest(self, connection: sqlite3.Connection, incoming: int) -> list[int]:
        """Makes room for so many bytes; the row ids that became free."""
        free: list[int] = []
        while len(free) < MAX_DROPS:
            entries, size = _total(connection)
            surplus = size + incoming - self._max_bytes
            if surplus <= 0 or not entries:
                break
            count = min(math.ceil(surplus * entries / size), MAX_DROPS - len(free))
            rows = connection.execute("SELECT id FROM embedding ORDER BY used LIMIT ?", (count,)).fetchall()
            connection.executemany("DELETE FROM embedding WHERE id = ?", rows)
            free.extend(row for (row,) in rows)
        return free

    def _write_uses(self, connection: sqlite3.Connection) -> None:
        with _transaction(connection):
            self._note_uses(connection)

    def _note_uses(self, connection: sqlite3.Connection) -> None:
        uses, self._uses = self._uses, {}
        connection.executemany("UPDATE embedding SET used = ? WHERE key = ?", [(now, key) for key, now in uses.items()])

    def _run(self, work: Callable[[sqlite3.Connection], T], writing: bool = False) -> T:
        """`work` with the connection, one thread at a time; once more on a new file if this one is damaged."""
        if not self._lock.acquire(timeout=BUSY_TIMEOUT_S):
            raise StoreUnavailable(f"{self._path} is busy: other threads have been waiting for it, too")
        try:
            return work(self._connected())
        except sqlite3.DatabaseError as error:
            if result_code(error) not in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise self._translated(error, writing) from error
            return self._begun_anew(work, error)
        except OSError as error:
            raise self._translated(error, writing) from error
        finally:
            self._lock.release()

    def _begun_anew(self, work: Callable[[sqlite3.Connection], T], damage: sqlite3.Error) -> T:
        try:
            self._set_aside(damage)
            return work(self._connected())
        except (sqlite3.Error, OSError) as error:
            raise self._translated(error, writing=False) from error

    def _connected(self) -> sqlite3.Connection:
        if self._closed:
            raise StoreUnavailable(f"the embedding store {self._path} is closed")
        if self._connection is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(
                self._path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
            self._inode = self._path.stat().st_ino
            try:
                _prepare(self._connection, self._path)
            except BaseException:
                self._disconnect()
                raise
        return self._connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _set_aside(self, error: sqlite3.Error) -> None:
        self._disconnect()
        with suppress(FileNotFoundError):
            if self._path.stat().st_ino != self._inode:
                return  # another process has done it
            aside = self._path.with_name(f"{self._path.name}.damaged-{time.strftime('%Y%m%dT%H%M%S')}")
            for suffix in ("-wal", "-shm"):
                # A write-ahead log left behind would be read into the new file.
                with suppress(FileNotFoundError):
                    Path(f"{self._path}{suffix}").unlink()
            self._path.rename(aside)
            logger.warning("%s is damaged (%s): moved to %s, beginning a new one", self._path, error, aside.name)

    def _translated(self, error: sqlite3.Error | OSError, writing: bool) -> StoreUnavailable:
        refusals = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
        kind = StoreNotWritable if writing and result_code(error) in refusals else StoreUnavailable
        return kind(
            f"{self._path} cannot be used ({error}). Make its folder writable, free some disk, "
            "or set FORELABEL_STORE to another place"
        )


def sqlite_path(url: str) -> Path:
    """sqlite:///relative/path or sqlite:////absolute/path, taken as it stands (no percent-decoding).

    Raises:
        RetrievalError: there is no path in it.
    """
    path = url.removeprefix("sqlite:///")
    if path == url or not path or path == ":memory:":
        raise RetrievalError(f'"{url}" names no file; write sqlite:///relative/path.db or sqlite:////absolute/path.db')
    return Path(path).expanduser()


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    """WAL, and the schema if the file is new."""
    switch_to_wal(connection, BUSY_TIMEOUT_S)
    connection.execute("PRAGMA synchronous = NORMAL")  # a power cut may cost the last writes, never the file
    connection.execute("PRAGMA journal_size_limit = 64000000")
    with _transaction(connection):
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if tables and application != _APPLICATION_ID:
            raise RetrievalError(
                f"{path} is a SQLite database of something else and is left alone; "
                "set FORELABEL_STORE to a file of its own"
            )
        if not tables:
            for statement in _SCHEMA:
                connection.execute(statement)


def switch_to_wal(connection: sqlite3.Connection, timeout_s: float) -> None:
    """SQLite answers "busy" at once, without its busy timeout, while two processes switch one file to WAL."""
    give_up = time.monotonic() + timeout_s
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL").fetchone()
            return
        except sqlite3.OperationalError as error:
            if result_code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > give_up:
                raise
            time.sleep(0.02)


def _total(connection: sqlite3.Connection) -> tuple[int, int]:
    """How many rows there are, and how many bytes they count."""
    entries, value_bytes = connection.execute("SELECT entries, value_bytes FROM total").fetchone()
    return entries, value_bytes + entries * ENTRY_OVERHEAD


def _select(connection: sqlite3.Connection, hashes: Sequence[bytes]) -> list[bytes | None]:
    held: dict[bytes, bytes] = {}
    for chunk in chunks(hashes):
        marks = ",".join("?" * len(chunk))
        held.update(connection.execute(f"{_SELECT} ({marks})", chunk))
    return [held.get(digest) for digest in hashes]


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # SQLite has rolled back by itself when the disk is full
            connection.execute("ROLLBACK")
        raise


def _hash(key: str) -> bytes:
    """A tenth of the key's length, which the table and its index would both hold."""
    return hashlib.blake2b(key.encode(), digest_size=16).digest()


def result_code(error: Exception) -> int:
    """SQLite's primary result code; 0 when the error did not come from SQLite itself."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _now() -> int:
    return time.time_ns() // 1000
