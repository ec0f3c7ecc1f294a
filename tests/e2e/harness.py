"""What the end-to-end tests share besides their fixtures."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
from prometheus_client.parser import text_string_to_metric_families
from selenium import webdriver
from selenium.common.exceptions import TimeoutException
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from backend.child_process import ChildProcess
from backend.demo_photos import SAMPLE_PHOTOS
from plugin.prelabel import prelabel
from plugin.studio import Studio

T = TypeVar("T")

ROOT = Path(__file__).parents[2]
BASIC_AUTH = "studio:a-secret-for-tests"
PHOTOS = {photo.file: photo.path for photo in SAMPLE_PHOTOS}
CAT, FLOWER, MOTORCYCLE = PHOTOS["chelsea.png"], PHOTOS["flower.jpg"], PHOTOS["motorcycle_left.png"]


@dataclass(frozen=True)
class Backend:
    url: str
    process: ChildProcess
    data_dir: Path

    def metric(self, name: str, **labels: str) -> float:
        """The value of a counter now; 0 for one that has not counted yet."""
        text = httpx.get(f"{self.url}/metrics").raise_for_status().text
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )


def prelabel_all(studio: Studio, project_id: int) -> dict[int, dict[str, Any]]:
    """Task id -> its prediction, of which there is one."""
    for _ in prelabel(studio, project_id):
        pass
    found = studio.predictions(project_id)
    by_task = {prediction["task"]: prediction for prediction in found}
    assert len(by_task) == len(found), "a task has several predictions"
    return by_task


def annotations_of(studio: Studio, task_id: int) -> list[Any]:
    return list(studio.call("list annotations", lambda sdk: sdk.annotations.list(id=task_id)))


def eventually(ask: Callable[[], T], timeout_s: float = 30) -> T:
    """The first truthy answer."""
    give_up = time.monotonic() + timeout_s
    while not (answer := ask()):
        assert time.monotonic() < give_up, "it did not come about in time"
        time.sleep(0.2)
    return answer


def open_task(
    browser: webdriver.Chrome,
    studio: Studio,
    project_id: int,
    task_id: int,
    folder: Path,
    answers: Callable[[webdriver.Chrome], list[str]],
) -> list[str]:
    """Open a task from the data manager, as by a click on its row, and wait for its picture and its first answers.

    What was on the screen when nothing came is kept in `folder`.
    """
    browser.get(f"{studio.url}/projects/{project_id}/data?task={task_id}")
    picture = "const image = document.querySelector('.lsf-image img'); return Boolean(image && image.naturalWidth)"

    def shown(page: webdriver.Chrome) -> list[str]:
        return answers(page) if page.execute_script(picture) else []

    try:
        return WebDriverWait(browser, 120).until(shown)
    except TimeoutException:
        browser.save_screenshot(str(folder / "timed-out.png"))
        raise


def ticked(browser: webdriver.Chrome) -> list[str]:
    boxes = browser.find_elements(By.CSS_SELECTOR, ".lsf-choice__checkbox input")
    return [str(box.get_attribute("name")) for box in boxes if box.is_selected()]


def submit(browser: webdriver.Chrome) -> None:
    browser.find_element(By.XPATH, "//button[normalize-space()='Submit']").click()


def screenshot(browser: webdriver.Chrome, folder: Path, name: str) -> None:
    """Kept with pytest's temporary files; the documentation's picture, too, when FORELABEL_SCREENSHOTS is set."""
    browser.save_screenshot(str(folder / name))
    if os.environ.get("FORELABEL_SCREENSHOTS"):
        browser.save_screenshot(str(ROOT / "docs" / "images" / name))
