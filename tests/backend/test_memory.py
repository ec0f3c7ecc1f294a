"""What both memories promise, held against a real SQLite file and a real Redis."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing
from itertools import count
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from backend.memory import Confirmation, Held, Memory, MemoryUnavailable, Removed, encode_row, open_memory
from retrieval.errors import RetrievalError

if TYPE_CHECKING:
    from tests.conftest import RedisProcess

P = "2.1795319235"


def confirmed(annotation: int, updated: float = 1.0, image: str = "a.jpg", task: int = 7, **more: Any) -> Confirmation:
    answers = more.pop("answers", {"kind": [f"label {updated}", ["animal", "cat \ud800"]]})
    return Confirmation(annotation, task, updated, 0.5, None, answers, {}, {"$image": image}, **more)


def vector(number: int, dim: int = 8) -> NDArray[np.float16]:
    return np.random.default_rng(number).standard_normal(dim).astype(np.float16)


def everything(memory: Memory, project: str = P) -> dict[int, Held]:
    return {each.annotation: each for each in memory.changes(project)[0]}


def embeddings_of(memory: Memory, annotation: int = 1) -> tuple[str, dict[str, list[float]]]:
    held = everything(memory)[annotation]
    assert isinstance(held, Confirmation)
    return held.fingerprint, {source: embedding.tolist() for source, embedding in held.embeddings.items()}


@pytest.fixture(params=["sqlite", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/new folder/memory.db"
    address: str = request.getfixturevalue("redis_server")
    with redis.Redis.from_url(address) as client:
        client.flushall()
    return address


@pytest.fixture
def memory(url: str) -> Iterator[Memory]:
    with closing(open_memory(url)) as opened:
        yield opened


def test_the_layout_of_a_row() -> None:
    row = Confirmation(
        5, 7, 2.0, 1.0, 3, {"q": [["a", "é"]]}, {}, {"$b": "x"}, "clip", {"$b": np.array([1, -2], np.float16)}
    )
    assert encode_row(row) == (
        rb'{"annotation": 5, "annotator": 3, "answers": {"q": [["a", "\u00e9"]]}, "created": 1.0, '
        rb'"embeddings": {"$b": 2}, "fingerprint": "clip", "images": {"$b": "x"}, "skipped": false, "suggested": {}, '
        rb'"task": 7, "updated": 2.0}' + b"\n\x00\x3c\x00\xc0"
    )
    assert encode_row(Removed(5)) == b"removed"


# --- events


events = st.lists(
    st.tuples(st.just("put"), st.lists(st.tuples(st.integers(1, 3), st.integers(1, 4)), max_size=3))
    | st.tuples(st.just("remove"), st.lists(st.integers(1, 3), min_size=1, max_size=2)),
    max_size=8,
)
numbers = count()


@given(events)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_order_of_events_does_not_matter(memory: Memory, drawn: Sequence[tuple[str, list[Any]]]) -> None:
    def play() -> int:
        return sum(
            memory.remove(project, each)
            if what == "remove"
            else memory.put(project, [confirmed(annotation, updated) for annotation, updated in each])
            for what, each in drawn
        )

    project = f"{next(numbers)}.1"
    memory.put(project, [confirmed(99)])  # the changes after the first one tell the removed, too
    play()
    last: dict[int, Held] = {}
    for annotation in (1, 2, 3):
        updates = [u for what, each in drawn if what == "put" for a, u in each if a == annotation]
        if any(what == "remove" and annotation in each for what, each in drawn):
            last[annotation] = Removed(annotation)
        elif updates:
            last[annotation] = confirmed(annotation, max(updates))
    changed, now = memory.changes(project, after=1)
    assert sorted(changed, key=lambda each: each.annotation) == list(last.values())
    assert play() == 0
    assert memory.sequence(project) == now


def test_what_was_put_comes_back(memory: Memory) -> None:
    one = confirmed(1, fingerprint="e", embeddings={"$image": np.linspace(-1, 1, 8)})
    skipped = confirmed(2, answers={}, embeddings={"$image": np.full(8, np.nan)}, fingerprint="e")
    assert memory.put(P, [one, skipped]) == 2
    assert memory.changes(P) == ([one, skipped], 1)
    assert embeddings_of(memory, 1) == ("e", {"$image": np.linspace(-1, 1, 8).astype(np.float16).tolist()})
    assert embeddings_of(memory, 2)[1] == {}
    assert (memory.put(P, []), memory.remove(P, []), memory.remove_tasks(P, [])) == (0, 0, 0)
    assert memory.changes("another") == ([], 0)


def test_changes_come_once_and_oldest_first(memory: Memory) -> None:
    memory.put(P, [confirmed(n) for n in (1, 2, 3)])
    memory.put(P, [confirmed(2, 2), confirmed(2, 3)])
    memory.remove(P, [1, 9])
    memory.put(P, [confirmed(4)])
    assert memory.sequence(P) == 4
    assert memory.changes(P) == ([confirmed(3), confirmed(2, 3), confirmed(4)], 4)
    assert memory.changes(P, after=1) == ([confirmed(2, 3), Removed(1), Removed(9), confirmed(4)], 4)
    assert memory.changes(P, after=4) == ([], 4)


def test_tasks_are_removed_with_their_annotations(memory: Memory) -> None:
    memory.put(P, [confirmed(1), confirmed(2), confirmed(3, task=8), confirmed(4, task=9)])
    memory.put("another", [confirmed(1)])
    assert memory.remove_tasks(P, [7, 9, 10]) == 3
    assert memory.remove_tasks(P, [7, 9, 10]) == 0
    assert memory.put(P, [confirmed(1, 5)]) == 0
    assert everything(memory) == {3: confirmed(3, task=8)}
    assert everything(memory, "another") == {1: confirmed(1)}


def test_what_label_studio_was_asked_for_is_always_kept(memory: Memory) -> None:
    memory.put(P, [confirmed(1, 5)])
    memory.remove(P, [2])
    truth = [confirmed(1, 4), confirmed(2, 4)]
    assert memory.put(P, [*truth, confirmed(1, 5, answers={})]) == 0
    assert memory.put(P, truth, authoritative=True) == 2
    assert everything(memory) == {1: truth[0], 2: truth[1]}
    now = memory.sequence(P)
    assert memory.put(P, truth, authoritative=True) == 0
    assert memory.sequence(P) == now
    assert memory.remove_tasks(P, [7]) == 2


# --- embeddings


def test_embeddings_are_attached_to_the_images_they_are_of(memory: Memory) -> None:
    a, b = {"$image": vector(1)}, {"$other": vector(2)}
    both = {"$image": "a.jpg", "$other": "b.jpg"}
    memory.put(P, [Confirmation(1, 7, 1, 1, None, {}, {}, both)])
    memory.remove(P, [2])
    for annotation, images in ((1, {**both, "$image": "new.jpg"}), (2, both), (3, both), (1, {"$other": "b.jpg"})):
        assert not memory.attach(P, annotation, "e", a, images)
    assert not memory.attach(P, 1, "e", {"$image": np.full(8, np.inf)}, both)
    assert memory.sequence(P) == 2
    assert memory.attach(P, 1, "e", a, both)
    assert memory.attach(P, 1, "e", b, both)
    assert memory.sequence(P) == 4
    assert [each.annotation for each in memory.changes(P, after=2)[0]] == [1]
    assert embeddings_of(memory) == ("e", {"$image": vector(1).tolist(), "$other": vector(2).tolist()})
    assert memory.attach(P, 1, "f", b, both)
    assert embeddings_of(memory) == ("f", {"$other": vector(2).tolist()})


@pytest.mark.parametrize(
    ("later", "expected"),
    [
        ({}, ("e", {"$image": vector(1).tolist()})),
        ({"fingerprint": "e"}, ("e", {"$image": vector(1).tolist()})),
        ({"fingerprint": "f"}, ("f", {})),
        ({"image": "b.jpg"}, ("", {})),
        ({"embeddings": {"$image": vector(2)}, "fingerprint": "e"}, ("e", {"$image": vector(2).tolist()})),
        ({"embeddings": {"$image": vector(2)}, "fingerprint": "f"}, ("f", {"$image": vector(2).tolist()})),
    ],
)
@pytest.mark.parametrize("authoritative", [False, True])
def test_embeddings_survive_an_update(
    memory: Memory, later: dict[str, Any], expected: tuple[str, dict[str, Any]], authoritative: bool
) -> None:
    memory.put(P, [confirmed(1, fingerprint="e", embeddings={"$image": vector(1)})])
    assert memory.put(P, [confirmed(1, 2, **later)], authoritative) == 1
    assert embeddings_of(memory) == expected


# --- many, and several at once


def test_ten_thousand(memory: Memory) -> None:
    vectors = np.random.default_rng(0).standard_normal((10_000, 512)).astype(np.float16)
    rows = [confirmed(n, fingerprint="e", embeddings={"$image": each}) for n, each in enumerate(vectors)]
    assert memory.put(P, rows) == 10_000
    got, now = memory.changes(P)
    assert now == 1
    got.sort(key=lambda each: each.annotation)
    assert got == rows
    assert (np.stack([each.embeddings["$image"] for each in got if isinstance(each, Confirmation)]) == vectors).all()
    assert memory.remove_tasks(P, [7]) == 10_000


def test_the_sequence_is_one_query_and_every_write_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connections: list[sqlite3.Connection] = []
    connect = sqlite3.connect

    def connect_and_keep(*args: Any, **options: Any) -> sqlite3.Connection:
        connections.append(connect(*args, **options))
        return connections[-1]

    monkeypatch.setattr("sqlite3.connect", connect_and_keep)
    with closing(open_memory(f"sqlite:///{tmp_path}/memory.db")) as memory:
        memory.put(P, [confirmed(n) for n in range(100)])
        (connection,) = connections
        queries: list[str] = []
        connection.set_trace_callback(queries.append)
        assert memory.sequence(P) == 1
        assert len(queries) == 1
        assert connection.execute("EXPLAIN QUERY PLAN " + queries[0]).fetchone()[3].startswith("SEARCH project")
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_the_sequence_is_one_command(stoppable_redis: RedisProcess) -> None:
    with redis.Redis.from_url(stoppable_redis.url) as client, closing(open_memory(stoppable_redis.url)) as memory:
        memory.put(P, [confirmed(n) for n in range(100)])
        client.config_resetstat()
        assert memory.sequence(P) == 1
        asked: Any = client.info("commandstats")
        assert {name: stats["calls"] for name, stats in asked.items() if "config" not in name} == {"cmdstat_get": 1}


def test_threads_share_a_memory(memory: Memory) -> None:
    def work(worker: int) -> int:
        return sum(memory.put(P, [confirmed(n), confirmed(100 * worker + n)]) for n in range(10, 30))

    with ThreadPoolExecutor(6) as threads:
        assert sum(threads.map(work, range(1, 7))) == 20 * 7
    assert len(everything(memory)) == 20 * 7


start: Barrier


def wait_for_each_other(barrier: Barrier) -> None:
    global start
    start = barrier


def write_one_by_one(url: str, worker: int) -> tuple[int, int]:
    """Runs in a process of its own: what it wrote of events that all processes get, and of its own."""
    start.wait()
    with closing(open_memory(url)) as memory:
        shared = own = 0
        for n in range(1, 41):
            shared += memory.put(P, [confirmed(n)]) + memory.remove(P, [n + 100])
            own += memory.put(P, [confirmed(1000 * worker + n)])
        return shared, own


def test_processes_lose_nothing_and_count_once(url: str) -> None:
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(3, spawn, wait_for_each_other, (spawn.Barrier(3),)) as processes:
        written = list(processes.map(write_one_by_one, [url] * 3, (1, 2, 3)))
    assert sum(shared for shared, _ in written) == 80
    assert [own for _, own in written] == [40] * 3
    with closing(open_memory(url)) as memory:
        assert len(everything(memory)) == 160
        assert memory.sequence(P) == 80 + 120


WRITER = """
import sys
from itertools import count
from backend.memory import Confirmation, open_memory
memory = open_memory(sys.argv[1])
for n in count(1):
    memory.put("p", [Confirmation(n, 1, 1, 1, None, {"q": ["label " * 50]}, {}, {})])
    print(n, flush=True)
"""


def test_what_was_acknowledged_survives_a_kill(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/memory.db"
    with subprocess.Popen([sys.executable, "-c", WRITER, url], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        acknowledged = [int(next(writer.stdout)) for _ in range(100)]
        writer.kill()
        acknowledged += [int(line) for line in writer.stdout if line.endswith("\n")]
    with closing(open_memory(url)) as memory:
        held = everything(memory, "p")
        assert held.keys() >= set(acknowledged)
        assert memory.sequence("p") == len(held)
        assert memory.put("p", [confirmed(10**6)]) == 1


# --- addresses and failures


@pytest.mark.parametrize(
    "address",
    ["mongodb://u:secret@host", "memory.db", "", "sqlite:///", "redis://:secret/@host:6379/0", "redis://h/0?db=secret"],
)
def test_a_wrong_address_is_told_without_its_password(address: str) -> None:
    with pytest.raises(RetrievalError) as caught:
        open_memory(address)
    assert "secret" not in str(caught.value)
    assert "://" in str(caught.value)


def test_redis_that_is_down_and_comes_back(stoppable_redis: RedisProcess) -> None:
    stoppable_redis.stop()
    with closing(open_memory(stoppable_redis.url.replace("://", "://:secret@"))) as memory:
        asks = (
            lambda: memory.put(P, [confirmed(1)]),
            lambda: memory.remove_tasks(P, [1]),
            lambda: memory.changes(P),
            lambda: memory.sequence(P),
            lambda: memory.durability,
        )
        for ask in asks:
            with pytest.raises(MemoryUnavailable, match="does not answer .* Start it") as caught:
                ask()
            assert "secret" not in str(caught.value)
    stoppable_redis.start()
    with closing(open_memory(stoppable_redis.url)) as memory:
        assert memory.put(P, [confirmed(1)]) == 1
        stoppable_redis.stop()
        with pytest.raises(MemoryUnavailable):
            memory.sequence(P)
        stoppable_redis.start()
        assert memory.put(P, [confirmed(1)]) == 1
        assert memory.changes(P) == ([confirmed(1)], 1)


def test_redis_refuses(stoppable_redis: RedisProcess) -> None:
    with redis.Redis.from_url(stoppable_redis.url) as client, closing(open_memory(stoppable_redis.url)) as memory:
        memory.put(P, [confirmed(1)])
        client.config_set("maxmemory", 1)
        with pytest.raises(MemoryUnavailable, match=r"refused \(.*maxmemory"):
            memory.put(P, [confirmed(2)])
        client.config_set("maxmemory", 0)
        assert memory.changes(P) == ([confirmed(1)], 1)
        for foreign in (b"", b"[]\n", b"{}\n", encode_row(confirmed(1)) + b"xx"):
            client.hset(f"forelabel:memory:{{{P}}}:rows", "1", foreign)
            with pytest.raises(MemoryUnavailable, match="annotation 1 cannot be read .* `forelabel sync`"):
                memory.changes(P)


def test_redis_tells_what_a_label_survives(stoppable_redis: RedisProcess) -> None:
    with redis.Redis.from_url(stoppable_redis.url) as client, closing(open_memory(stoppable_redis.url)) as memory:
        assert "set appendonly yes" in memory.durability
        client.config_set("appendonly", "yes")
        for fsync, said in (("always", "survives a crash of Redis and a power cut"), ("everysec", "the last second")):
            client.config_set("appendfsync", fsync)
            assert said in memory.durability
        client.config_set("maxmemory-policy", "allkeys-lru")
        assert "drops confirmed labels" in memory.durability
        client.execute_command("ACL", "SETUSER", "plain", "on", ">secret", "~*", "&*", "+@all", "-config")
        with closing(open_memory(stoppable_redis.url.replace("://", "://plain:secret@"))) as plain:
            assert "CONFIG GET is refused" in plain.durability
            assert plain.put(P, [confirmed(1)]) == 1


def test_nothing_expires_and_a_project_lives_in_one_slot(stoppable_redis: RedisProcess) -> None:
    with redis.Redis.from_url(stoppable_redis.url) as client, closing(open_memory(stoppable_redis.url)) as memory:
        memory.put(P, [confirmed(1)])
        keys: Any = client.keys()
        assert {key.decode() for key in keys} == {
            f"forelabel:memory:{{{P}}}:{name}" for name in ("sequence", "rows", "changed", "tasks")
        }
        assert {client.ttl(key) for key in keys} == {-1}


@pytest.mark.parametrize("moment", ["before", "meanwhile"])
def test_a_damaged_file_is_left_until_it_is_restored(tmp_path: Path, moment: str) -> None:
    path, backup = tmp_path / "memory.db", tmp_path / "backup.db"
    url = f"sqlite:///{path}"
    with closing(open_memory(url)) as memory:
        memory.put(P, [confirmed(n) for n in range(500)])
    shutil.copy(path, backup)
    damage = os.urandom(path.stat().st_size)
    with closing(open_memory(url)) as memory:
        if moment == "before":
            memory.close()
        with path.open("r+b") as file:
            file.write(damage)
        for _ in range(2):
            with pytest.raises(MemoryUnavailable, match="is damaged .* `forelabel sync`"):
                open_memory(url) if moment == "before" else memory.changes(P)
        assert path.read_bytes() == damage
        shutil.copy(backup, path)
        with closing(open_memory(url)) if moment == "before" else closing(memory) as restored:
            assert len(everything(restored)) == 500


def test_a_file_that_was_moved_away_is_not_written_to(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/memory.db"
    with closing(open_memory(url)) as memory:
        memory.put(P, [confirmed(1)])
        for file in list(tmp_path.glob("memory.db*")):
            file.rename(file.with_name(file.name.replace("memory", "moved")))
        with closing(open_memory(url)) as another:
            another.put(P, [confirmed(2)])
        memory.put(P, [confirmed(3)])
        assert everything(memory).keys() == {2, 3}
    with closing(open_memory(f"sqlite:///{tmp_path}/moved.db")) as moved:
        assert everything(moved).keys() == {1}


def test_a_database_of_something_else_is_left_alone(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "other.db")) as connection:
        connection.execute("CREATE TABLE task (id INTEGER)")
    with pytest.raises(RetrievalError, match="of something else"):
        open_memory(f"sqlite:///{tmp_path}/other.db")


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MemoryUnavailable, match="Make its folder writable"):
        open_memory(f"sqlite:///{tmp_path}/file/memory.db")


def test_a_locked_file_is_told_and_works_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backend.sqlite_memory.BUSY_TIMEOUT_S", 0.05)
    path = tmp_path / "memory.db"
    with (
        closing(open_memory(f"sqlite:///{path}")) as memory,
        closing(sqlite3.connect(path, isolation_level=None)) as other,
    ):
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(MemoryUnavailable, match="locked"):
            memory.put(P, [confirmed(1)])
        other.execute("ROLLBACK")
        assert memory.put(P, [confirmed(1)]) == 1
    with pytest.raises(MemoryUnavailable, match="is closed"):
        memory.sequence(P)
