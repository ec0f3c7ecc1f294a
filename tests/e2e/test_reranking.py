"""What an annotator sees of re-ranking: a real Label Studio, its label stream in Chromium, a real backend."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait
from typer.testing import CliRunner

from backend.cli import app
from backend.demo_photos import SAMPLE_LABELS
from plugin.connect import connect
from plugin.refresh import refresh
from plugin.studio import Studio
from tests.e2e.conftest import LOGIN
from tests.e2e.harness import (
    BASIC_AUTH,
    PHOTOS,
    Backend,
    annotations_of,
    eventually,
    prelabel_all,
    screenshot,
    submit,
    ticked,
)

SIMILAR = PHOTOS["coins.png"]
"""Cut into several pictures that are alike, as the frames of one camera are."""


def pieces(folder: Path, count: int) -> list[Path]:
    """Pictures that show most of the same, each with other bytes."""
    with Image.open(SIMILAR) as photo:
        image = photo.convert("RGB")
    files = []
    for i in range(count):
        edge = 6 * i
        file = folder / f"piece-{i}.png"
        image.crop((edge, edge // 2, image.width - edge // 3, image.height - edge // 2)).save(file)
        files.append(file)
    return files


def picture(page: webdriver.Chrome) -> str:
    """The address of the picture on the screen; empty until it is there."""
    return str(
        page.execute_script(
            "const i = document.querySelector('.lsf-image img'); return i && i.naturalWidth ? i.src : ''"
        )
    )


def answer(prediction: dict[str, object]) -> str:
    (region,) = prediction["result"]  # type: ignore[misc]
    (label,) = region["value"]["choices"]
    return str(label)


def test_a_correction_is_known_to_the_next_task(
    studio: Studio, backend: Backend, browser: webdriver.Chrome, tmp_path: Path
) -> None:
    connection = connect(studio, backend.url, create="Corrected once", labels=SAMPLE_LABELS, basic_auth=BASIC_AUTH)
    project_id = connection.project_id
    first, second, third, fourth = studio.import_photos(project_id, pieces(tmp_path, 4))
    before = prelabel_all(studio, project_id)
    wrong = answer(before[first])
    assert {answer(prediction) for prediction in before.values()} == {wrong}
    right = "coins"
    assert wrong != right

    browser.get(f"{studio.url}/projects/{project_id}/data?labeling=1")
    assert WebDriverWait(browser, 120).until(ticked) == [wrong]
    shown = picture(browser)
    browser.find_element(By.CSS_SELECTOR, f'.lsf-choice__checkbox input[name="{right}"]').click()
    assert eventually(lambda: ticked(browser) == [right])
    submit(browser)

    # The stream goes on to the next task by itself, and its suggestion is the corrected one.
    WebDriverWait(browser, 120).until(lambda page: picture(page) not in ("", shown) and ticked(page) == [right])
    assert len(annotations_of(studio, first)) == 1 and not annotations_of(studio, second)
    screenshot(browser, tmp_path, "reranked-task.png")

    # What nobody has opened gets it by `refresh`, in the place of what it had.
    (*_, done) = refresh(studio, project_id)
    after = {task: p for p in studio.predictions(project_id) if (task := p["task"]) in (third, fourth)}
    assert done.replaced >= 2
    assert {answer(prediction) for prediction in after.values()} == {right}
    assert {p["id"] for p in after.values()} == {before[third]["id"], before[fourth]["id"]}
    project = studio.call("find the project", lambda sdk: sdk.projects.get(project_id))
    assert project.model_version == after[third]["model_version"] != connection.model_version

    # Who had a task open can submit it. Uncertainty sampling takes what was refreshed for current, and begins with the
    # least sure.
    studio.call("sample", lambda sdk: sdk.projects.update(project_id, sampling="Uncertainty sampling"))
    submit(browser)
    eventually(lambda: annotations_of(studio, second))
    following = studio._request("ask for the next task", "GET", f"api/projects/{project_id}/next")
    assert following["id"] == min((third, fourth), key=lambda task: after[task]["score"])


def test_sync_finds_what_the_memory_has_missed(studio: Studio, backend: Backend, tmp_path: Path) -> None:
    connection = connect(studio, backend.url, create="Synchronised", labels=SAMPLE_LABELS, basic_auth=BASIC_AUTH)
    project_id = connection.project_id
    first, _ = studio.import_photos(project_id, pieces(tmp_path, 2))
    label = SAMPLE_LABELS[0]
    region = {"from_name": "choice", "to_name": "image", "type": "choices", "value": {"choices": [label]}}
    made = studio.call("annotate", lambda sdk: sdk.annotations.create(first, result=[region], lead_time=1.0))

    def sync(memory: Path) -> dict[str, int]:
        arguments = ["sync", "--project", str(project_id), "--studio-url", studio.url, "--token", LOGIN.token]
        result = CliRunner().invoke(app, [*arguments, "--memory", f"sqlite:///{memory}"], catch_exceptions=False)
        found: dict[str, int] = json.loads(result.stdout)
        return found

    lost = tmp_path / "lost.db"
    counts = {"project": project_id, "annotations": 1, "added": 1, "changed": 0, "removed": 0}
    assert sync(lost) == counts
    assert sync(lost) == counts | {"added": 0}
    studio.call("delete", lambda sdk: sdk.annotations.delete(made.id))
    assert sync(lost) == counts | {"annotations": 0, "added": 0, "removed": 1}
