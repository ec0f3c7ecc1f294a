"""Label Studio's events -> the durable memory -> re-ranking, and the model version that moves with it."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.memory import Confirmation, Memory, MemoryUnavailable, Stored, open_memory
from backend.metrics import Metrics
from backend.reranking import ProjectRanker
from plugin.annotations import Annotation, project_key, read_annotation, usable_id
from plugin.errors import PluginError
from plugin.labeling_config import parse_labeling_config
from retrieval.encoder import DualEncoder

logger = logging.getLogger(__name__)

BURST_S = 0.5
"""The version moves at most so often. Nobody labels faster, so that an annotator's next task is always asked for anew;
an import of thousands of annotations does not make Label Studio ask thousands of times."""

SEEN_KEPT = 20_000
"""Tasks whose embedding and suggestion are remembered until they are annotated: about 40 MB with 512 dimensions."""

PROJECTS_KEPT = 64
"""Projects whose confirmations are in this process at once: 10,000 with 512 dimensions are about 40 MB."""

EMBED_AT_ONCE = 32

RETRY_S = 30.0
"""After so long a confirmed image that could not be read is tried again, when the project is asked about."""

Embed = Callable[[str, Sequence[tuple[str, int]]], Sequence[NDArray[np.float32] | None]]
"""(project, image values with a task each) -> their embeddings; None for what cannot be read now."""


@dataclass(frozen=True)
class Seen:
    """What was predicted of a task."""

    images: dict[str, str]
    """Image source -> value, as in Confirmation."""
    embeddings: dict[str, NDArray[np.float16]]
    suggested: dict[str, list[Stored]] = field(default_factory=dict)


class Learning:
    """The confirmations of all projects. Safe to call from several threads; several processes may share the memory."""

    def __init__(self, memory_url: str, metrics: Metrics, embed: Embed) -> None:
        """
        Args:
            memory_url: as `open_memory` reads it. One that cannot be opened now is tried again at each use.
            metrics: where suggestions taken and changed are counted.
            embed: for what was confirmed before this process had seen its image.

        Raises:
            RetrievalError: the address itself is wrong.
        """
        self._url, self._metrics, self._embed = memory_url, metrics, embed
        self._encoder: DualEncoder | None = None
        self._lock = threading.Lock()
        self._memory: Memory | None = None
        self._seen: OrderedDict[tuple[str, int], Seen] = OrderedDict()
        self._versions: dict[str, tuple[int, float]] = {}
        self._rankers: OrderedDict[str, ProjectRanker] = OrderedDict()
        self._not_before: dict[tuple[str, int], float] = {}
        """Annotations whose image is being embedded, or could not be: when to try again."""
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="forelabel-learn")
        with suppress(MemoryUnavailable):
            self._opened()

    def use(self, encoder: DualEncoder) -> None:
        """From now on re-rank with this encoder's embeddings."""
        self._encoder = encoder

    def close(self) -> None:
        self._worker.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            if self._memory:
                self._memory.close()

    def _opened(self) -> Memory:
        with self._lock:
            if self._memory is None:
                self._memory = open_memory(self._url)
            return self._memory

    def version(self, project: str) -> int:
        """A number that moves with what is confirmed in the project; 0 as long as that is nothing."""
        shown, since = self._versions.get(project, (0, -BURST_S))
        now = time.monotonic()
        if now - since < BURST_S:
            return shown
        try:
            number = self._opened().sequence(project)
        except MemoryUnavailable as error:
            logger.warning("the memory of confirmed labels does not answer: %s", error)
            return shown
        if number != shown:
            self._versions[project] = number, now
        return number

    def ranker(self, project: str) -> ProjectRanker | None:
        """The project's confirmations as they are now; as they were known last if the memory is down, or None."""
        if self._encoder is None or not project:
            return None
        try:
            memory = self._opened()
            with self._lock:
                ranker = self._rankers.get(project) or ProjectRanker(project, memory, self._encoder)
                self._rankers[project] = ranker
                self._rankers.move_to_end(project)
                while len(self._rankers) > PROJECTS_KEPT:
                    self._rankers.popitem(last=False)
            ranker.refresh()
            self._embed_later(project, ranker.pending())
        except MemoryUnavailable as error:
            logger.warning("suggestions do not know the latest confirmed labels: %s", error)
            return self._rankers.get(project)
        return ranker

    def saw(self, project: str, task: object, seen: Seen) -> None:
        """Remember what was predicted of a task, for when it is annotated."""
        if project and isinstance(task, int):
            with self._lock:
                self._seen[project, task] = seen
                self._seen.move_to_end((project, task))
                while len(self._seen) > SEEN_KEPT:
                    self._seen.popitem(last=False)

    def process_event(self, action: str, payload: Mapping[str, Any]) -> None:
        """Keep what a webhook says. What it returns from is durable, as far as the memory is.

        Raises:
            MemoryUnavailable: it could not be kept: `forelabel sync` finds it in Label Studio later.
        """
        described = payload.get("project")
        if not isinstance(described, Mapping):
            return
        try:
            project = project_key(described)
            changed = self._keep(action, project, described, payload)
        except PluginError as error:
            logger.warning("webhook %s is passed over: %s", action, error)
            return
        logger.info("webhook %s, project %s: %d changes", action, project, changed)
        if changed and self._encoder:
            with suppress(RuntimeError):  # at the end of the service
                self._worker.submit(self.ranker, project)  # so that the next prediction finds it done

    def _keep(self, action: str, project: str, described: Mapping[str, Any], payload: Mapping[str, Any]) -> int:
        if action in ("ANNOTATION_CREATED", "ANNOTATIONS_CREATED", "ANNOTATION_UPDATED"):
            confirmed = list(self._read(project, str(described.get("label_config") or ""), payload))
            changed = self._opened().put(project, confirmed)
            if changed and action == "ANNOTATION_CREATED":
                self._count(confirmed[0])
            return changed
        if action == "ANNOTATIONS_DELETED":
            return self._opened().remove(project, _ids(payload.get("annotations")))
        if action == "TASKS_DELETED":
            return self._opened().remove_tasks(project, _ids(payload.get("tasks")))
        return 0

    def _read(self, project: str, label_config: str, payload: Mapping[str, Any]) -> Iterator[Confirmation]:
        """The annotations of an event, with what is known of their tasks."""
        config = parse_labeling_config(label_config)
        tasks = {usable_id(task.get("id")): task for task in _mappings(payload.get("task"))}
        for annotation in _mappings(payload.get("annotation")):
            id_ = usable_id(annotation.get("task"))
            task = tasks.get(id_) or {"id": id_}
            try:
                read = read_annotation(annotation, task, config)
            except PluginError as error:
                logger.warning("an annotation is passed over: %s", error)
                continue
            found = to_confirmation(read)
            with self._lock:
                seen = self._seen.get((project, found.task))
            if seen is not None and self._encoder is not None:
                found = replace(
                    found,
                    suggested=found.suggested or seen.suggested,
                    fingerprint=self._encoder.fingerprint,
                    embeddings={s: e for s, e in seen.embeddings.items() if seen.images[s] == found.images.get(s)},
                )
            yield found

    def _count(self, confirmation: Confirmation) -> None:
        if confirmation.skipped:
            return
        for question, suggested in confirmation.suggested.items():
            taken = sorted(map(str, suggested)) == sorted(map(str, confirmation.answers.get(question, [])))
            self._metrics.suggestion(taken)

    def _embed_later(self, project: str, pending: Sequence[Confirmation]) -> None:
        """One at a time per annotation; what could not be read is tried again after RETRY_S."""
        now = time.monotonic()
        with self._lock:
            due = [each for each in pending if now >= self._not_before.get((project, each.annotation), 0)]
            self._not_before.update({(project, each.annotation): now + RETRY_S for each in due})
        for start in range(0, len(due), EMBED_AT_ONCE):
            with suppress(RuntimeError):  # at the end of the service
                self._worker.submit(self._embed_now, project, due[start : start + EMBED_AT_ONCE])

    def _embed_now(self, project: str, confirmations: Sequence[Confirmation]) -> None:
        encoder = self._encoder
        if encoder is None:
            return
        try:
            wanted = {value: each.task for each in confirmations for value in each.images.values()}
            found = dict(zip(wanted, self._embed(project, list(wanted.items())), strict=True))
            done = 0
            for each in confirmations:
                embeddings = {source: e for source, value in each.images.items() if (e := found[value]) is not None}
                if embeddings:
                    self._opened().attach(project, each.annotation, encoder.fingerprint, embeddings, each.images)
                    done += 1
                    with self._lock:
                        self._not_before.pop((project, each.annotation), None)
            if done:
                self.ranker(project)
        except Exception:
            logger.exception("confirmed images of project %s could not be embedded yet", project)


def to_confirmation(annotation: Annotation) -> Confirmation:
    """What is kept of an annotation; its image is embedded later."""
    return Confirmation(
        annotation.id,
        annotation.task,
        annotation.updated,
        annotation.created,
        annotation.annotator,
        annotation.answers,
        annotation.suggested,
        annotation.images,
        skipped=annotation.skipped,
    )


def _mappings(value: object) -> list[Mapping[str, Any]]:
    """An event carries one of what it is about, or a list of them."""
    return [each for each in (value if isinstance(value, list) else [value]) if isinstance(each, Mapping)]


def _ids(value: object) -> list[int]:
    return [id_ for each in _mappings(value) if (id_ := usable_id(each.get("id"))) is not None]
