"""Puts nouns into the data of tasks whose `<Choices value="$options">` show what stands there."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from backend.naming import Names
from backend.settings import Settings
from plugin.predictions import options
from plugin.studio import Studio

logger = logging.getLogger(__name__)

WRITERS = 2
"""Tasks written at once: Label Studio is also serving annotators."""


class TaskOptions:
    """Writes in the background: an annotator who waits for a suggestion does not wait for this.

    Only to the Label Studio of the settings: the address that /setup brings is anybody's who can reach this service.
    """

    def __init__(self, settings: Settings) -> None:
        self._url, self._token = settings.studio_url, settings.studio_token.get_secret_value()
        self._writers = ThreadPoolExecutor(WRITERS, thread_name_prefix="forelabel-options")
        self._studios: dict[str, Studio] = {}
        """By token."""

    def fill(self, key: str, named: Sequence[tuple[dict[str, Any], Names]], token: str) -> None:
        """Begin to write each task's nouns, where they are not there yet.

        Args:
            key: of the task's data, which the Choices show.
            named: tasks as Label Studio sent them, and their nouns.
            token: the one that /setup brought; that of the settings goes before.
        """
        if not self._url or not (self._token or token):
            logger.warning("options are not written: set FORELABEL_STUDIO_URL and FORELABEL_STUDIO_TOKEN")
            return
        for task, names in named:
            data = task.get("data")
            wanted = options(names)
            if names and isinstance(data, dict) and data.get(key) != wanted:
                self._writers.submit(self._write, task.get("id"), {**data, key: wanted}, self._token or token)

    def _write(self, task_id: Any, data: dict[str, Any], token: str) -> None:
        try:
            if token not in self._studios:
                self._studios[token] = Studio(self._url, token)
            self._studios[token].update_task(int(task_id), data)
        except Exception as error:
            logger.warning("task %s: its options could not be written: %s", task_id, error)

    def close(self) -> None:
        """Give up what has not begun."""
        self._writers.shutdown(wait=False, cancel_futures=True)
        for studio in self._studios.values():
            studio.close()
