"""Prelabeler: Label Studio's tasks -> predictions. What the HTTP app calls."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from label_studio_ml.model import LabelStudioMLBase

from backend.answers import Answer, NamingRules, choose, name, name_answer, prepare
from backend.engine import Engine
from backend.guarded_http import ImageError
from backend.images import FetchPolicy, ImageFetcher
from backend.learning import Learning, Seen
from backend.metrics import Metrics
from backend.naming import Names, decoder_folder
from backend.reranking import ProjectRanker
from backend.settings import Settings
from backend.task_options import TaskOptions
from plugin.annotations import read_answers
from plugin.errors import LabelingConfigError
from plugin.labeling_config import Kind, LabelingConfig, image_value, parse_labeling_config
from plugin.predictions import UNREADABLE, build_prediction
from retrieval.embedder import Embedding

logger = logging.getLogger(__name__)

CHUNK = 64
"""Tasks whose image files are held in memory at once; the next chunk is fetched while this one is embedded."""

RESERVE_S = 2.0
"""Kept of the deadline for writing the answer, after fetching and embedding."""

PROJECTS_KEPT = 10_000

Item = dict[str, Any] | list[Any]


@dataclass(frozen=True)
class Project:
    """What /setup said of a project."""

    key: str = ""
    """What Label Studio calls it: its number, and when it was made."""
    hostname: str = ""
    """Label Studio's address."""
    token: str = ""
    rules: NamingRules = field(default_factory=NamingRules)


class Prelabeler(LabelStudioMLBase):  # type: ignore[misc]
    """One for all projects; nothing of one project reaches another but the embeddings of identical images."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.metrics = Metrics()
        self.model_version = f"forelabel-{version('forelabel')}-{Path(settings.model).name}"
        self._engine: Engine | None = None
        self._failure: Exception | None = None
        self._loaded = threading.Event()
        self._projects: OrderedDict[str, Project] = OrderedDict()
        self._options = TaskOptions(settings)
        self._learning = Learning(settings.memory_url, self.metrics, self._embed_values)
        self._background = ThreadPoolExecutor(1, thread_name_prefix="forelabel-load")
        self._fetcher = ImageFetcher(FetchPolicy.of(settings))

    @property
    def ready(self) -> bool:
        return self._engine is not None

    @property
    def failure(self) -> str | None:
        """Why the model could not be loaded; None while it may still be."""
        return None if self._failure is None else f"{type(self._failure).__name__}: {self._failure}"

    def start(self) -> None:
        """Begin to load the model; returns at once."""
        self._background.submit(self._load)

    def _load(self) -> None:
        try:
            started = time.monotonic()
            self._engine = Engine(self.settings)
            self._learning.use(self._engine.encoder)
            self.metrics.watch_store(lambda: self._engine is not None and self._engine.store.available)
            logger.info("ready after %.1f s: %s", time.monotonic() - started, self._engine.encoder.device.reason)
        except Exception as error:
            self._failure = error
            logger.exception("the model could not be loaded; predictions stay empty until this is mended")
        finally:
            self._loaded.set()

    def close(self) -> None:
        self._background.shutdown(wait=False, cancel_futures=True)  # a model that still loads must not hold up the end
        self._fetcher.close()
        self._options.close()
        self._learning.close()
        if self._engine:
            self._engine.close()

    def setup(
        self, project: str, label_config: str, hostname: str, access_token: str, extra_params: object = None
    ) -> str:
        """The model version, at once. Embeds the project's labels in the background."""
        config = self._answerable(label_config)
        self._projects[project] = Project(project, hostname, access_token, NamingRules.read(extra_params))
        self._projects.move_to_end(project)
        while len(self._projects) > PROJECTS_KEPT:
            self._projects.popitem(last=False)
        self._background.submit(self._prepare, config)
        return self._version(project)

    def _version(self, project: str) -> str:
        """It moves with what is confirmed: Label Studio then asks again about the next task."""
        number = self._learning.version(project)
        return f"{self.model_version}+{number}" if number else str(self.model_version)

    def _answerable(self, label_config: str) -> LabelingConfig:
        """The config, refused where it asks only for names and there is nothing to name with."""
        config = parse_labeling_config(label_config)
        named = decoder_folder(self.settings.decoder, self.settings.model) is not None
        if not named and not any(control.labels for control in config.controls):
            raise LabelingConfigError(
                "The labeling config asks only open questions, and the backend has no decoder to name images with: set "
                "FORELABEL_DECODER to a folder of `forelabel decoder train` or `import`, or add labels to choose from."
            )
        return config

    def _prepare(self, config: LabelingConfig) -> None:
        if self._engine:
            for control in config.controls:
                prepare(self._engine, control)

    def process_event(self, action: str, payload: dict[str, Any]) -> None:
        """Keep what was confirmed, durably.

        Raises:
            MemoryUnavailable: it could not be kept.
        """
        self._learning.process_event(action, payload)

    def _embed_values(self, project: str, values: Sequence[tuple[str, int]]) -> list[Embedding | None]:
        """Embeddings of images, each of a task, that were confirmed without having been predicted here."""
        engine, known = self._engine, self._projects.get(project, Project())
        if engine is None:
            return [None for _ in values]
        deadline = time.monotonic() + self.settings.predict_deadline_s
        files = self._fetcher.fetch_many(
            [value for value, _ in values],
            task_ids=[task for _, task in values],
            studio_url=known.hostname,
            studio_token=known.token,
            deadline=deadline,
        )
        results = iter(engine.embedder.embed([file for file in files if isinstance(file, bytes)], deadline))
        embedded = [next(results) if isinstance(file, bytes) else file for file in files]
        return [each if isinstance(each, np.ndarray) else None for each in embedded]

    def _ranker(self, project: str) -> ProjectRanker | None:
        """What is confirmed in the project; None where that cannot be known: suggestions are made all the same."""
        try:
            return self._learning.ranker(project)
        except Exception:
            logger.exception("project %s is suggested for without what was confirmed in it", project)
            return None

    def predict(
        self,
        tasks: list[dict[str, Any]],
        context: dict[str, Any] | None = None,
        *,
        project: str = "",
        label_config: str = "",
        deadline: float | None = None,
        params: object = None,
        **kwargs: Any,
    ) -> list[Item]:
        """One item per task, in order; an empty list where no image could be read or reached in time.

        `params` may hold {"nouns": [...], "ban": [...]}: names for open questions are then held to these nouns, or
        leave these out. The same in the backend's extra parameters in Label Studio stands for the whole project.
        """
        config = self._answerable(label_config)
        known = self._projects.get(project, Project(project))
        rules = NamingRules.read(params)
        if rules != NamingRules():
            known = replace(known, rules=rules)
        version, ranker = self._version(project), self._ranker(project)
        end = (time.monotonic() + self.settings.predict_deadline_s if deadline is None else deadline) - RESERVE_S
        engine = self._wait_for_engine(end)
        if engine is None:
            return [UNREADABLE for _ in tasks]  # type: ignore[misc]
        chunks = [tasks[i : i + CHUNK] for i in range(0, len(tasks), CHUNK)]
        items: list[Item] = []
        with ThreadPoolExecutor(1, thread_name_prefix="forelabel-fetch-ahead") as ahead:
            coming = iter(chunks)
            fetching = deque(ahead.submit(self._fetch, chunk, config, known, end) for chunk in islice(coming, 1))
            for chunk in chunks:
                images = fetching.popleft().result()
                fetching.extend(ahead.submit(self._fetch, after, config, known, end) for after in islice(coming, 1))
                items += self._predict_chunk(engine, chunk, config, images, end, known, version, ranker)
        return items

    def _wait_for_engine(self, end: float) -> Engine | None:
        self._loaded.wait(max(0.0, end - time.monotonic()))
        if self._engine is None:
            logger.warning("no predictions: %s", self._failure or "the model is still loading; ask again in a moment")
        return self._engine

    def _fetch(
        self, tasks: Sequence[dict[str, Any]], config: LabelingConfig, project: Project, end: float
    ) -> dict[tuple[int, str], bytes]:
        """(position of the task, image source) -> file; what cannot be fetched is logged and left out."""
        wanted: dict[tuple[int, str], str] = {}
        for position, task in enumerate(tasks):
            for control in config.controls:
                value = image_value(task.get("data") or {}, control)
                if value:
                    wanted[position, control.image_source] = value
        files = self._fetcher.fetch_many(
            list(wanted.values()),
            task_ids=[tasks[position].get("id") for position, _ in wanted],
            studio_url=project.hostname,
            studio_token=project.token,
            deadline=end,
        )
        images: dict[tuple[int, str], bytes] = {}
        for key, file in zip(wanted, files, strict=True):
            if isinstance(file, ImageError):
                self._unreadable(tasks[key[0]], file)
            else:
                images[key] = file
        return images

    def _predict_chunk(
        self,
        engine: Engine,
        tasks: Sequence[dict[str, Any]],
        config: LabelingConfig,
        images: dict[tuple[int, str], bytes],
        end: float,
        project: Project,
        version: str,
        ranker: ProjectRanker | None,
    ) -> list[Item]:
        keys = list(images)
        results = engine.embedder.embed([images[key] for key in keys], end, self.metrics.cache)
        embeddings: dict[tuple[int, str], Embedding] = {}
        for key, result in zip(keys, results, strict=True):
            if isinstance(result, Exception):
                self._unreadable(tasks[key[0]], result)
            else:
                embeddings[key] = result
        answers: dict[int, list[Answer]] = {}
        names_of: dict[str, list[Names]] = {}  # of an image source: several open questions may ask about it
        for control in config.controls:
            positions = [p for p, source in embeddings if source == control.image_source]
            if not positions:
                continue
            stacked = np.stack([embeddings[p, control.image_source] for p in positions])
            found: Sequence[Answer | None]
            if control.labels:
                found = choose(engine, control, stacked, ranker)
            else:
                if control.image_source not in names_of:
                    names_of[control.image_source] = name(engine, stacked, project.rules)
                named = names_of[control.image_source]
                if ranker is not None:
                    named = ranker.name(control, stacked, named, project.rules.allow)
                named = [names[: self.settings.names] for names in named]
                found = [name_answer(control, names, self.settings.name_threshold) for names in named]
                if control.kind is Kind.OPTIONS:
                    named_tasks = [(tasks[p], names) for p, names in zip(positions, named, strict=True)]
                    self._options.fill(control.options_key, named_tasks, project.token)
            for position, answer in zip(positions, found, strict=True):
                if answer is not None:
                    answers.setdefault(position, []).append(answer)
        for position, given in answers.items():
            self._remember(project.key, tasks[position], config, given, embeddings, position)
        return [self._item(answers.get(position), version) for position in range(len(tasks))]

    def _remember(
        self,
        project: str,
        task: dict[str, Any],
        config: LabelingConfig,
        given: Sequence[Answer],
        embeddings: dict[tuple[int, str], Embedding],
        position: int,
    ) -> None:
        """For when the task is annotated: its image need not be fetched then, and what was suggested is known."""
        images = {control.image_source: image_value(task.get("data") or {}, control) for control in config.controls}
        seen = {source: value for source, value in images.items() if value and (position, source) in embeddings}
        halves = {source: embeddings[position, source].astype(np.float16) for source in seen}
        suggested = read_answers([answer.region for answer in given], config)
        self._learning.saw(project, task.get("id"), Seen(seen, halves, suggested))

    def _item(self, answers: Sequence[Answer] | None, version: str) -> Item:
        """The score of a task is the lowest of its answers'."""
        if not answers:
            return UNREADABLE  # type: ignore[return-value]
        regions = [answer.region for answer in answers]
        return build_prediction(regions, min(answer.score for answer in answers), version)

    def _unreadable(self, task: dict[str, Any], error: Exception) -> None:
        self.metrics.images_unreadable(1)
        logger.warning("task %s: no prediction: %s", task.get("id"), error)
