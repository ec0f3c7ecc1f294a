"""Confirmed labels in one SQLite file (WAL), which several threads and processes may use at once.

project(name, sequence)
held(project, annotation, task, sequence, value)    sequence: the project's at the last change of this row
                                                    task: NULL where the annotation was removed
                                                    value: a row as backend.memory describes it
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from backend.memory import Column, Confirmation, Held, Memory, MemoryUnavailable, decode_rows, encode_row
from retrieval.errors import RetrievalError
from retrieval.sqlite_store import result_code, switch_to_wal

T = TypeVar("T")

BUSY_TIMEOUT_S = 5.0
"""How long a writer waits for another one: several times what 10,000 rows at once take."""

_APPLICATION_ID = int.from_bytes(b"fmem")
_SCHEMA = (
    f"PRAGMA application_id = {_APPLICATION_ID}",
    "CREATE TABLE project (name TEXT PRIMARY KEY, sequence INTEGER NOT NULL)",
    """CREATE TABLE held
        (project TEXT NOT NULL, annotation INTEGER NOT NULL, task INTEGER, sequence INTEGER NOT NULL,
        value BLOB NOT NULL, PRIMARY KEY (project, annotation))""",
    "CREATE INDEX held_sequence ON held (project, sequence)",
    "CREATE INDEX held_task ON held (project, task)",
)
_SELECT: dict[Column, str] = {
    "annotation": """SELECT annotation, value FROM held
        WHERE project = ? AND annotation IN (SELECT value FROM json_each(?))""",
    "task": "SELECT annotation, value FROM held WHERE project = ? AND task IN (SELECT value FROM json_each(?))",
}


class SqliteMemory(Memory):
    """Confirmed labels in the SQLite file at `path`, which is made (with its folder) where there is none.

    Raises:
        MemoryUnavailable: nothing can be kept there now, or the file is damaged. It is left as it is.
        RetrievalError: the file is a database of something else, and is left alone.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._file: os.stat_result | None = None
        self._closed = False
        self._run(lambda connection: None)

    def sequence(self, project: str) -> int:
        return self._run(lambda connection: _sequence(connection, project))

    @property
    def durability(self) -> str:
        return (
            f"A confirmed label is on the disk that holds {self._path} before it is acknowledged "
            "(SQLite, synchronous=FULL): it survives a crash of this service or machine and a power cut."
        )

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._disconnect()

    def _change(
        self, project: str, column: Column, ids: Sequence[int], decide: Callable[[dict[int, Held]], dict[int, Held]]
    ) -> int:
        def change(connection: sqlite3.Connection) -> int:
            with connection:
                connection.execute("BEGIN IMMEDIATE")
                held = dict(connection.execute(_SELECT[column], (project, json.dumps(list(ids)))))
                if written := decide(decode_rows(held)):
                    now = _sequence(connection, project) + 1
                    connection.execute("INSERT OR REPLACE INTO project VALUES (?, ?)", (project, now))
                    connection.executemany(
                        "INSERT OR REPLACE INTO held VALUES (?, ?, ?, ?, ?)",
                        [
                            (project, key, each.task if isinstance(each, Confirmation) else None, now, encode_row(each))
                            for key, each in written.items()
                        ],
                    )
            return len(written)

        return self._run(change)

    def _changed(self, project: str, after: int) -> tuple[list[tuple[int, bytes]], int]:
        def changed(connection: sqlite3.Connection) -> tuple[list[tuple[int, bytes]], int]:
            with connection:
                connection.execute("BEGIN")  # both queries see the same moment
                rows = connection.execute(
                    """SELECT annotation, value FROM held WHERE project = ? AND sequence > ?
                        ORDER BY sequence, annotation""",
                    (project, after),
                ).fetchall()
                return rows, _sequence(connection, project)

        return self._run(changed)

    def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """`work` with the connection, one thread at a time. After an error the next call connects anew."""
        if not self._lock.acquire(timeout=BUSY_TIMEOUT_S):
            raise MemoryUnavailable(f"{self._path} is busy: other threads have been waiting for it, too. Try again")
        try:
            return work(self._connected())
        except (sqlite3.Error, OSError) as error:
            self._disconnect()
            raise self._translated(error) from error
        finally:
            self._lock.release()

    def _connected(self) -> sqlite3.Connection:
        if self._closed:
            raise MemoryUnavailable(f"the memory of confirmed labels {self._path} is closed. Open it again")
        if self._connection is not None and not self._is_still_there():
            self._disconnect()
        if self._connection is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(
                self._path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
            try:
                _prepare(self._connection, self._path)
                self._file = self._path.stat()
            except BaseException:
                self._disconnect()
                raise
        return self._connection

    def _is_still_there(self) -> bool:
        """False once the file was moved away or another one put in its place: nobody would find what is written."""
        try:
            return self._file is not None and os.path.samestat(self._path.stat(), self._file)
        except FileNotFoundError:
            return False

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _translated(self, error: sqlite3.Error | OSError) -> MemoryUnavailable:
        if result_code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return MemoryUnavailable(
                f"{self._path}, the memory of confirmed labels, is damaged ({error}). "
                "Restore it from a backup, or move it away and run `forelabel sync`"
            )
        return MemoryUnavailable(
            f"{self._path}, the memory of confirmed labels, cannot be used ({error}). "
            "Make its folder writable, free some disk, or set FORELABEL_MEMORY to another place"
        )


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    """WAL, and the schema if the file is new."""
    switch_to_wal(connection, BUSY_TIMEOUT_S)
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA journal_size_limit = 64000000")
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if tables and application != _APPLICATION_ID:
            raise RetrievalError(
                f"{path} is a SQLite database of something else and is left alone; "
                "set FORELABEL_MEMORY to a file of its own"
            )
        if not tables:
            for statement in _SCHEMA:
                connection.execute(statement)


def _sequence(connection: sqlite3.Connection, project: str) -> int:
    row = connection.execute("SELECT sequence FROM project WHERE name = ?", (project,)).fetchone()
    return row[0] if row else 0
