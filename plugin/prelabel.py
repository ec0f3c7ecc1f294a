"""Have a whole project pre-labelled, through Label Studio's own "Retrieve predictions"."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from plugin.errors import StudioError
from plugin.studio import CHUNK_SIZE, Studio, batched


@dataclass(frozen=True)
class Progress:
    """How far pre-labelling has come, in tasks."""

    total: int
    """Without a prediction at the beginning."""
    asked: int
    stored: int
    """Have one now."""


def prelabel(studio: Studio, project_id: int, chunk_size: int = CHUNK_SIZE) -> Iterator[Progress]:
    """Have every task that lacks a prediction predicted, in chunks; progress after each.

    A backend that runs out of time answers for a part and finds the rest in its cache when asked again, so what is left
    is asked for again as long as that helps. Tasks whose image cannot be read stay without a prediction.

    Raises:
        StudioError: nothing is connected, or Label Studio has lost the backend.
    """
    require_backend(studio, project_id)
    pending = studio.unpredicted(project_id)
    total, asked, stored = len(pending), 0, 0
    yield Progress(total, asked, stored)
    helped = True
    while pending and helped:
        left: list[int] = []
        for chunk in batched(pending, chunk_size):
            studio.retrieve_predictions(project_id, chunk, chunk_size)
            missing = studio.unpredicted(project_id, among=chunk)
            if len(missing) == len(chunk):
                require_backend(studio, project_id)
            left += missing
            asked = min(total, asked + len(chunk))
            stored += len(chunk) - len(missing)
            yield Progress(total, asked, stored)
        helped = len(left) < len(pending)
        pending = left


def require_backend(studio: Studio, project_id: int) -> Any:
    """The row of the project's backend, which Label Studio has just asked for its state and model version.

    Raises:
        StudioError: nothing is connected, or Label Studio has lost the backend.
    """
    rows = studio.call(f"list the backends of project {project_id}", lambda sdk: sdk.ml.list(project=project_id))
    if not rows:
        raise StudioError(
            f"Project {project_id} has no ML backend. Run `forelabel connect --project {project_id}` first."
        )
    if rows[0].state != "CO":
        raise StudioError(
            f"Label Studio has lost the backend at {rows[0].url} (state {rows[0].readable_state}: "
            f"{rows[0].error_message or 'it does not answer /health'}). Start it with `forelabel serve` and try again."
        )
    return rows[0]
