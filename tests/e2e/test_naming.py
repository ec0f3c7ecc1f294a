"""A project without a label set, as its annotators see it: a real Label Studio, driven over its API and in Chromium."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from plugin.connect import connect
from plugin.studio import Studio
from tests.e2e.harness import (
    BASIC_AUTH,
    CAT,
    FLOWER,
    MOTORCYCLE,
    Backend,
    annotations_of,
    eventually,
    open_task,
    prelabel_all,
    submit,
    ticked,
)

CHIP = ".htx-taxonomy-selected > div"
"""A name, and beside it a button that removes it."""


def make_project(studio: Studio, backend: Backend, template: str) -> int:
    return connect(studio, backend.url, create=template, template=template, basic_auth=BASIC_AUTH).project_id


def values(prediction: dict[str, Any]) -> dict[str, Any]:
    return {region["from_name"]: next(iter(region["value"].values())) for region in prediction["result"]}


def chips(browser: webdriver.Chrome) -> list[str]:
    return [str(chip.text).strip() for chip in browser.find_elements(By.CSS_SELECTOR, f"{CHIP} > span")]


def add_name(browser: webdriver.Chrome, name: str) -> None:
    """Open the list, press Add, type the name, tick it."""

    def press(selector: str) -> None:
        found = browser.find_element(By.CSS_SELECTOR, selector)
        browser.execute_script("arguments[0].scrollIntoView({block: 'center'}); arguments[0].click()", found)

    press(".htx-taxonomy > span")
    press("button[aria-label='Add new label']")
    browser.find_element(By.NAME, "taxonomy__add").send_keys(name, Keys.ENTER)
    eventually(lambda: browser.find_elements(By.CSS_SELECTOR, f"input[type=checkbox][name^={name}]"))
    press(f"input[type=checkbox][name^={name}]")
    press(".htx-taxonomy > span")


def test_names_are_chips_and_what_the_screen_shows_is_stored(
    studio: Studio, backend: Backend, browser: webdriver.Chrome, tmp_path: Path
) -> None:
    project_id = make_project(studio, backend, "image-naming")
    (cat,) = studio.import_photos(project_id, [CAT])
    suggested = [path[0] for path in values(prelabel_all(studio, project_id)[cat])["names"]]
    assert len(suggested) > 1
    assert open_task(browser, studio, project_id, cat, tmp_path, chips) == suggested
    browser.save_screenshot(str(tmp_path / "named-task.png"))

    browser.find_element(By.CSS_SELECTOR, f"{CHIP} > input[type=button]").click()
    add_name(browser, "whiskers")
    kept = [*suggested[1:], "whiskers"]
    eventually(lambda: chips(browser) == kept)
    browser.save_screenshot(str(tmp_path / "changed-names.png"))
    submit(browser)
    (annotation,) = eventually(lambda: annotations_of(studio, cat))
    (region,) = annotation.result
    assert [path[-1] for path in region["value"]["taxonomy"]] == kept


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
    assert open_task(browser, studio, project_id, flower, tmp_path, ticked) == [best]
