"""What an annotator sees of re-ranking: a real Label Studio, its label stream in Chromium, a real backend."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from backend.demo_photos import SAMPLE_LABELS
from plugin.connect import connect
from plugin.refresh import refresh
from plugin.studio import Studio
from tests.e2e.conftest import LOGIN
from tests.e2e.harness import (
    BASIC_AUTH,
    PHOTOS,
    ROOT,
    Backend,
    annotations_of,
    eventually,
    prelabel_all,
    screenshot,
    submit,
    ticked,
)


def pieces(folder: Path, count: int, name: str = "coins.png") -> list[Path]:
    """Pictures that show most of the same, as the frames of one camera do, each with other bytes."""
    with Image.open(PHOTOS[name]) as photo:
        image = photo.convert("RGB")
    files = []
    for i in range(count):
        edge = 6 * i
        file = folder / f"{i}-{name}.png"
        image.crop((edge, edge // 2, image.width - edge // 3, image.height - edge // 2)).save(file)
        files.append(file)
    return files


def choice(label: str) -> dict[str, object]:
    return {"from_name": "choice", "to_name": "image", "type": "choices", "value": {"choices": [label]}}


def forelabel(command: str, studio: Studio, project_id: int, memory: Path, *more: str) -> dict[str, int]:
    """What a command that asks Label Studio prints."""
    login = ["--project", str(project_id), "--studio-url", studio.url, "--token", LOGIN.token]
    arguments = [command, *login, "--memory", f"sqlite:///{memory}", *more]
    done = subprocess.run([sys.executable, "-m", "backend.cli", *arguments], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    found: dict[str, int] = json.loads(done.stdout)
    return found


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

    # Who had a task open meanwhile can submit it.
    submit(browser)
    (annotation,) = eventually(lambda: annotations_of(studio, second))
    assert annotation.result[0]["value"]["choices"] == [right]


def test_uncertainty_sampling_begins_with_the_least_sure(studio: Studio, backend: Backend, tmp_path: Path) -> None:
    connection = connect(studio, backend.url, create="Least sure first", labels=SAMPLE_LABELS, basic_auth=BASIC_AUTH)
    project_id = connection.project_id
    photos = [pieces(tmp_path, 1, name)[0] for name in ("coins.png", "flower.jpg", "chelsea.png", "coffee.png")]
    first, *others = studio.import_photos(project_id, photos)
    prelabel_all(studio, project_id)
    studio.call("annotate", lambda sdk: sdk.annotations.create(first, result=[choice("coins")], lead_time=1.0))
    for _ in refresh(studio, project_id):
        pass
    scores = {found["task"]: found["score"] for found in studio.predictions(project_id) if found["task"] in others}
    least = min(scores, key=lambda task: scores[task])
    assert len(set(scores.values())) == len(others) and least != min(others, default=0)
    studio.call("sample", lambda sdk: sdk.projects.update(project_id, sampling="Uncertainty sampling"))
    following = studio._request("ask for the next task", "GET", f"api/projects/{project_id}/next")
    assert following["id"] == least


def test_sync_finds_what_the_memory_has_missed(studio: Studio, backend: Backend, tmp_path: Path) -> None:
    connection = connect(studio, backend.url, create="Synchronised", labels=SAMPLE_LABELS, basic_auth=BASIC_AUTH)
    project_id = connection.project_id
    first, _ = studio.import_photos(project_id, pieces(tmp_path, 2))
    label = SAMPLE_LABELS[0]
    made = studio.call("annotate", lambda sdk: sdk.annotations.create(first, result=[choice(label)], lead_time=1.0))

    lost = tmp_path / "lost.db"
    counts = {"project": project_id, "annotations": 1, "added": 1, "changed": 0, "removed": 0}
    assert forelabel("sync", studio, project_id, lost) == counts
    assert forelabel("sync", studio, project_id, lost) == counts | {"added": 0}
    studio.call("delete", lambda sdk: sdk.annotations.delete(made.id))
    assert forelabel("sync", studio, project_id, lost) == counts | {"annotations": 0, "added": 0, "removed": 1}


def test_the_report_finds_a_label_that_does_not_fit(
    studio: Studio, backend: Backend, browser: webdriver.Chrome, tmp_path: Path
) -> None:
    connection = connect(studio, backend.url, create="Street and desk", labels=SAMPLE_LABELS, basic_auth=BASIC_AUTH)
    project_id = connection.project_id
    kinds = {"coins.png": "coins", "chelsea.png": "cat", "coffee.png": "coffee", "motorcycle_left.png": "motorcycle"}
    truth: dict[int, str] = {}
    for photo, label in kinds.items():
        truth |= dict.fromkeys(studio.import_photos(project_id, pieces(tmp_path, 5, photo)), label)
    prelabel_all(studio, project_id)
    mistaken = next(task for task, label in truth.items() if label == "cat")
    for task, label in truth.items():
        region = choice("temple" if task == mistaken else label)
        studio.call("annotate", lambda sdk: sdk.annotations.create(task, result=[region], lead_time=1.0))  # noqa: B023
    page = tmp_path / "report.html"
    found = forelabel("report", studio, project_id, backend.data_dir / "confirmations.db", "--out", str(page))
    assert (found["annotations"], found["not_embedded"], found["suspects"]) == (20, 0, 1)
    browser.get(page.as_uri())
    text = browser.find_element(By.TAG_NAME, "body").text
    assert "Street and desk" in text and "temple" in text
    links = [link.get_attribute("href") for link in browser.find_elements(By.CSS_SELECTOR, "figure a")]
    assert f"{studio.url}/projects/{project_id}/data?task={mistaken}" in links
    screenshot(browser, tmp_path, "report.png")
