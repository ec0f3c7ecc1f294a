"""Prelabeler: Label Studio's tasks -> predictions. What the HTTP app calls."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from label_studio_ml.model import LabelStudioMLBase
from numpy.typing import NDArray

from backend.engine import Engine
from backend.guarded_http import ImageError
from backend.images import FetchPolicy, ImageFetcher
from backend.metrics import Metrics
from backend.naming import Names, decoder_folder
from backend.settings import Settings
from backend.task_options import TaskOptions
from decoder.errors import DecoderError
from plugin.errors import LabelingConfigError
from plugin.labeling_config import Control, Kind, LabelingConfig, image_value, parse_labeling_config
from plugin.predictions import UNREADABLE, build_prediction, choices_prediction, names_prediction
from retrieval.embedder import Embedding

logger = logging.getLogger(__name__)

CHUNK = 64
"""Tasks whose image files are held in memory at once; the next chunk is fetched while this one is embedded."""

RESERVE_S = 2.0
"""Kept of the deadline for writing the answer, after fetching and embedding."""

MULTIPLE_THRESHOLD = 0.25
"""Where several answers are allowed, labels with at least this share of the probability are ticked: at most four."""

PROJECTS_KEPT = 10_000

Item = dict[str, Any] | list[Any]


@dataclass(frozen=True)
class NamingRules:
    """What a request says of the names it wants."""

    nouns: tuple[str, ...] = ()
    """Name with these alone; empty for the decoder's dictionary."""
    banned: tuple[str, ...] = ()

    @classmethod
    def read(cls, params: object) -> NamingRules:
        """From {"nouns": [...], "ban": [...]}, or its JSON text; whatever else there is, is passed over."""
        if isinstance(params, str):
            try:
                params = json.loads(params)
            except ValueError:
                return cls()
        if not isinstance(params, dict):
            return cls()
        nouns, banned = (
            tuple(str(noun).strip() for noun in listed if str(noun).strip()) if isinstance(listed, list) else ()
            for listed in (params.get("nouns"), params.get("ban"))
        )
        return cls(nouns, banned)


@dataclass(frozen=True)
class Project:
    """What /setup said of a project."""

    hostname: str = ""
    """Label Studio's address."""
    token: str = ""
    rules: NamingRules = NamingRules()


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
        self._background = ThreadPoolExecutor(1, thread_name_prefix="forelabel-load")
        self._fetcher = ImageFetcher(
            FetchPolicy(
                studio_url=settings.studio_url,
                studio_token=settings.studio_token.get_secret_value(),
                local_files_root=settings.local_files_root,
                allowed_hosts=settings.allowed_hosts,
                max_bytes=settings.max_image_bytes,
                timeout_s=settings.fetch_timeout_s,
            )
        )

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
        if self._engine:
            self._engine.close()

    def setup(
        self, project: str, label_config: str, hostname: str, access_token: str, extra_params: object = None
    ) -> str:
        """The model version, at once. Embeds the project's labels in the background."""
        config = self._answerable(label_config)
        self._projects[project] = Project(hostname, access_token, NamingRules.read(extra_params))
        self._projects.move_to_end(project)
        while len(self._projects) > PROJECTS_KEPT:
            self._projects.popitem(last=False)
        self._background.submit(self._prepare, config)
        return self.model_version

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
                if control.labels:
                    self._engine.prepare(*_words(control))

    def process_event(self, action: str, payload: dict[str, Any]) -> None:
        """Webhooks are acknowledged; nothing is learned from them yet."""
        project = payload.get("project")
        logger.info("webhook %s, project %s", action, project.get("id") if isinstance(project, dict) else project)

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
        known = self._projects.get(project, Project())
        rules = NamingRules.read(params)
        if rules != NamingRules():
            known = replace(known, rules=rules)
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
                items += self._predict_chunk(engine, chunk, config, images, end, known)
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
    ) -> list[Item]:
        keys = list(images)
        results = engine.embedder.embed([images[key] for key in keys], end, self.metrics.cache)
        embeddings: dict[tuple[int, str], Embedding] = {}
        for key, result in zip(keys, results, strict=True):
            if isinstance(result, Exception):
                self._unreadable(tasks[key[0]], result)
            else:
                embeddings[key] = result
        regions: dict[int, list[dict[str, Any]]] = {}
        names_of: dict[str, list[Names]] = {}  # of an image source: several open questions may ask about it

        for control in config.controls:
            positions = [p for p, source in embeddings if source == control.image_source]
            if not positions:
                continue
            stacked = np.stack([embeddings[p, control.image_source] for p in positions])
            if control.labels:
                answers = _choose(engine, control, stacked)
            else:
                if control.image_source not in names_of:
                    names_of[control.image_source] = self._name(engine, stacked, project.rules)
                named = names_of[control.image_source]
                answers = [names_prediction(control, n, self.settings.name_threshold) if n else None for n in named]
                if control.kind is Kind.OPTIONS:
                    named_tasks = [(tasks[p], names) for p, names in zip(positions, named, strict=True)]
                    self._options.fill(control.options_key, named_tasks, project.token)
            for position, answer in zip(positions, answers, strict=True):
                if answer is not None:
                    regions.setdefault(position, []).append(answer)
        return [self._item(regions.get(position)) for position in range(len(tasks))]

    def _name(self, engine: Engine, embeddings: NDArray[np.float32], rules: NamingRules) -> list[Names]:
        """Nouns of each image; none where there is no decoder: what has a label set is answered all the same."""
        try:
            return engine.namer.name(embeddings, self.settings.names, rules.nouns, rules.banned)
        except DecoderError as error:
            logger.warning("no names: %s", error)
            return [[] for _ in embeddings]

    def _item(self, regions: list[dict[str, Any]] | None) -> Item:
        """The score of a task is that of its least sure answer: uncertainty sampling then shows it early."""
        if not regions:
            return UNREADABLE  # type: ignore[return-value]
        return build_prediction(regions, min(region["score"] for region in regions), self.model_version)

    def _unreadable(self, task: dict[str, Any], error: Exception) -> None:
        self.metrics.images_unreadable(1)
        logger.warning("task %s: no prediction: %s", task.get("id"), error)


def _choose(engine: Engine, control: Control, embeddings: NDArray[np.float32]) -> list[dict[str, Any] | None]:
    probabilities = engine.classify(embeddings, *_words(control)).probabilities
    return [
        choices_prediction(control, list(zip(control.labels, row.tolist(), strict=True)), MULTIPLE_THRESHOLD)
        for row in probabilities
    ]


def _words(control: Control) -> tuple[list[str], list[str | None]]:
    """What the encoder reads of a control's labels: their words and, where they say more, their hints."""
    texts = [label.text for label in control.labels]
    return texts, [
        label.hint if label.hint != text else None for label, text in zip(control.labels, texts, strict=True)
    ]
