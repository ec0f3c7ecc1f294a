"""A project without a label set, as its annotators see it: a real Label Studio, driven over its API and in Chromium."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.common.exceptions import TimeoutException
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from plugin.connect import connect
from plugin.studio import Studio
from tests.e2e.harness import BASIC_AUTH, ROOT, Backend
from tests.e2e.test_prelabel import CAT, FLOWER, MOTORCYCLE, eventually, prelabel_all


def make_project(studio: Studio, backend: Backend, template: str) -> int:
    return connect(studio, backend.url, create=template, template=template, basic_auth=BASIC_AUTH).project_id


def values(prediction: dict[str, Any]) -> dict[str, Any]:
    return {region["from_name"]: next(iter(region["value"].values())) for region in prediction["result"]}


def open_task(
    browser: webdriver.Chrome, studio: Studio, project_id: int, task_id: int, selector: str, folder: Path
) -> None:
    """Open a task and wait for `selector`; what was there when nothing came is kept in `folder`."""
    browser.get(f"{studio.url}/projects/{project_id}/data?task={task_id}")
    try:
        WebDriverWait(browser, 120).until(lambda page: page.find_elements(By.CSS_SELECTOR, selector))
    except TimeoutException:
        browser.save_screenshot(str(folder / "timed-out.png"))
        raise


def chips(browser: webdriver.Chrome) -> list[str]:
    return [str(chip.text).strip() for chip in browser.find_elements(By.CSS_SELECTOR, f"{CHIP} > span")]


CHIP = ".htx-taxonomy-selected > div"
"""A name, and beside it a button that removes it."""


def test_names_are_chips(studio: Studio, backend: Backend, browser: webdriver.Chrome, tmp_path: Path) -> None:
    project_id = make_project(studio, backend, "image-naming")
    (cat,) = studio.import_photos(project_id, [CAT])
    suggested = [path[0] for path in values(prelabel_all(studio, project_id)[cat])["names"]]
    assert suggested
    open_task(browser, studio, project_id, cat, CHIP, tmp_path)
    screenshot(browser, tmp_path, "named-task.png")
    assert chips(browser) == suggested


def screenshot(browser: webdriver.Chrome, folder: Path, name: str) -> None:
    browser.save_screenshot(str(folder / name))
    if os.environ.get("FORELABEL_SCREENSHOTS"):
        browser.save_screenshot(str(ROOT / "docs" / "images" / name))


def test_lines_and_both_kinds_at_once(studio: Studio, backend: Backend) -> None:
    for template, expected in (
        ("image-naming-text", {"names"}),
        ("image-classification-and-naming", {"choice", "names"}),
    ):
        project_id = make_project(studio, backend, template)
        studio.import_photos(project_id, [FLOWER, MOTORCYCLE])
        for prediction in prelabel_all(studio, project_id).values():
            assert values(prediction).keys() == expected
            assert all(values(prediction).values())


def test_options_are_written_into_the_tasks(
    studio: Studio, backend: Backend, browser: webdriver.Chrome, tmp_path: Path
) -> None:
    project_id = make_project(studio, backend, "image-naming-options")
    (uploaded,) = studio.import_photos(make_project(studio, backend, "image-naming"), [FLOWER])
    image = studio.call("task", lambda sdk: sdk.tasks.get(str(uploaded))).data["image"]
    (flower,) = studio.import_tasks(project_id, [{"image": image, "options": []}])
    (best,) = values(prelabel_all(studio, project_id)[flower])["name"]

    def options() -> list[dict[str, str]]:
        found: list[dict[str, str]] = studio.call("task", lambda sdk: sdk.tasks.get(str(flower))).data["options"]
        return found

    written = eventually(options)
    assert written[0]["value"] == best and "%</b>" in written[0]["html"]
    open_task(browser, studio, project_id, flower, ".lsf-choice__checkbox input", tmp_path)
    boxes = browser.find_elements(By.CSS_SELECTOR, ".lsf-choice__checkbox input")
    assert [str(box.get_attribute("name")) for box in boxes if box.is_selected()] == [best]
