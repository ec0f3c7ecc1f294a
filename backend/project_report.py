"""Puts together what `forelabel report` shows of a project: the memory, Label Studio's config, and the pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from backend.engine import Engine
from backend.guarded_http import ImageError
from backend.images import FetchPolicy, ImageFetcher
from backend.memory import open_memory
from backend.report import Suspect, find_suspects, write_report
from backend.reranking import ProjectRanker
from backend.settings import Settings
from plugin.labeling_config import parse_labeling_config
from plugin.studio import Studio


@dataclass(frozen=True)
class Reported:
    """What a report is about."""

    annotations: int
    """Skips among them."""
    not_embedded: int
    """Annotations that have a label but whose image the encoder in force has not embedded: the running service does."""
    suspects: int


def report_project(studio: Studio, project_id: int, engine: Engine, settings: Settings, out: Path) -> Reported:
    """Write the page of a project to `out`.

    Raises:
        StudioError: Label Studio does not answer.
        LabelingConfigError: nothing in the project's labeling config can be answered.
        MemoryUnavailable: the memory does not answer.
        OSError: `out` cannot be written.
    """
    key, config = studio.project_key(project_id), parse_labeling_config(studio.label_config(project_id))
    title = dict(studio.projects()).get(project_id, f"project {project_id}")
    memory = open_memory(settings.memory_url)
    fetcher = ImageFetcher(FetchPolicy.of(settings))
    try:
        ranker = ProjectRanker(key, memory, engine.encoder)
        ranker.refresh()
        held = ranker.held()
        suspects = find_suspects(ranker, engine, config, held)

        def picture(suspect: Suspect) -> bytes | None:
            try:
                return fetcher.fetch(suspect.image, task_id=suspect.task)
            except ImageError:
                return None

        write_report(
            out,
            title,
            held,
            config,
            suspects,
            lambda task: f"{studio.url}/projects/{project_id}/data?task={task}",
            picture,
        )
        return Reported(len(held), len(ranker.pending()), len(suspects))
    finally:
        memory.close()
        fetcher.close()
