"""Have the suggestions of tasks that nobody has opened yet made anew, with all that was learnt since."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from plugin.prelabel import require_backend
from plugin.studio import CHUNK_SIZE, Studio, batched

_OURS = "forelabel-"
"""How each of our model versions begins. Predictions of others, such as imported ones, are not ours to delete."""


@dataclass(frozen=True)
class Progress:
    """How far it has come, in tasks."""

    total: int
    """That nobody had annotated, skipped or left a draft of at the beginning."""
    done: int
    """Label Studio was asked about, or were found taken up meanwhile."""
    replaced: int
    """Were given a new prediction."""


def refresh(studio: Studio, project_id: int, chunk_size: int = CHUNK_SIZE) -> Iterator[Progress]:
    """Replace the predictions of untouched tasks by new ones, in chunks; progress after each.

    Label Studio asks the backend for those that lack its present version. What it then holds anew is moved to where the
    older prediction was, under that one's id: annotators who have the task open send the id of the prediction that they
    were shown, and would be refused their annotation if that were deleted ("Invalid pk", seen in 1.23.2). A task for
    which nothing new was stored keeps what it has; it is asked for again as long as that helps, see `prelabel`.

    In the end the backend and the project are set to the new version, since uncertainty sampling only considers
    predictions of that one. The backend's version moves with each label that is confirmed meanwhile, so it is the one
    that most of these tasks have got.

    Raises:
        StudioError: nothing is connected, or Label Studio has lost the backend.
    """
    row = require_backend(studio, project_id)
    pending = studio.untouched(project_id)
    total, done, replaced = len(pending), 0, 0
    versions: Counter[str] = Counter()
    yield Progress(total, done, replaced)
    helped = True
    while pending and helped:
        left: list[int] = []
        for chunk in batched(pending, chunk_size):
            before = studio.untouched_predictions(project_id, chunk)
            if before:
                studio.retrieve_predictions(project_id, list(before), chunk_size)
                row = require_backend(studio, project_id)
            surplus: list[int] = []
            rewritten: dict[int, dict[str, Any]] = {}
            for task, held in studio.untouched_predictions(project_id, list(before)).items():
                ours = [id_ for id_ in held if (held[id_]["model_version"] or "").startswith(_OURS)]
                if new := [id_ for id_ in ours if id_ not in before[task]]:
                    kept = max((id_ for id_ in ours if id_ in before[task]), default=max(new))
                    rewritten[kept] = held[max(new)]
                    versions[held[max(new)]["model_version"]] += 1
                elif present := [id_ for id_ in ours if held[id_]["model_version"] == row.model_version]:
                    kept = max(present)
                    versions[row.model_version] += 1
                else:
                    left.append(task)
                    continue
                surplus += [id_ for id_ in ours if id_ != kept]
            studio.delete_predictions(surplus)
            for id_, source in rewritten.items():
                if id_ != source["id"]:
                    studio.update_prediction(id_, source)
            replaced += len(rewritten)
            done = min(total, done + len(chunk))
            yield Progress(total, done, replaced)
        helped = len(left) < len(pending)
        pending = left
    _set_version(studio, project_id, row, versions.most_common(1)[0][0] if versions else row.model_version)


def _set_version(studio: Studio, project_id: int, row: Any, version: str) -> None:
    if row.title != version:
        # Saving, Label Studio tries the backend with what it is sent; without a password it takes the one it has.
        login = (
            {"basic_auth_user": row.basic_auth_user, "basic_auth_pass": ""} if row.auth_method == "BASIC_AUTH" else {}
        )
        studio.call(
            f"set the title of the backend at {row.url}",
            lambda sdk: sdk.ml.update(
                row.id, project=project_id, url=row.url, auth_method=row.auth_method, title=version, **login
            ),
        )
    studio.call(
        f"set the model version of project {project_id}",
        lambda sdk: sdk.projects.update(project_id, model_version=version),
    )
