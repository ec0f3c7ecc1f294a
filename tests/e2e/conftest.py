"""A real Label Studio, a real backend and a real browser, each started once for all end-to-end tests."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from backend.child_process import ChildProcess, ask
from backend.studio_process import StudioLogin, StudioProcess
from plugin.studio import Studio
from tests.conftest import free_port
from tests.e2e.harness import BASIC_AUTH, Backend

LOGIN = StudioLogin("annotator@example.com", "a-password-for-tests", "0123456789abcdef0123456789abcdef01234567")
START_TIMEOUT_S = 600.0
"""Generous, since a machine that also trains a model is three times slower."""


@pytest.fixture(scope="session")
def studio_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StudioProcess]:
    folder = tmp_path_factory.mktemp("studio")
    process = StudioProcess(folder / "data", free_port(), LOGIN, folder / "studio.log")
    try:
        process.wait(START_TIMEOUT_S)
        yield process
    finally:
        process.stop()


@pytest.fixture(scope="session")
def backend(tmp_path_factory: pytest.TempPathFactory, studio_process: StudioProcess) -> Iterator[Backend]:
    """`forelabel serve` as a user starts it, with basic auth."""
    folder = tmp_path_factory.mktemp("backend")
    port = free_port()
    environment = {
        "FORELABEL_PORT": str(port),
        "FORELABEL_DATA_DIR": str(folder),
        "FORELABEL_STUDIO_URL": studio_process.url,
        "FORELABEL_BASIC_AUTH": BASIC_AUTH,
        "FORELABEL_NAME_THRESHOLD": "0",  # several names, to remove one of
    }
    process = ChildProcess(
        "The backend", [sys.executable, "-m", "backend.cli", "serve"], folder / "backend.log", environment
    )
    url = f"http://127.0.0.1:{port}"

    def ready() -> bool:
        health = ask(f"{url}/health")
        return bool(health and health["ready"])

    try:
        process.wait_until(ready, START_TIMEOUT_S)
        yield Backend(url, process, folder)
    finally:
        process.stop()


@pytest.fixture(scope="session")
def studio(studio_process: StudioProcess) -> Iterator[Studio]:
    client = Studio(studio_process.url, LOGIN.token)
    yield client
    client.close()


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory, studio_process: StudioProcess) -> Iterator[webdriver.Chrome]:
    """Headless Chromium, logged in to Label Studio."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.fail("chromium and chromedriver are not on PATH; `make system-packages` installs them")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for switch in (
        "headless=new",
        "no-sandbox",  # it cannot be had as root; the only pages are those of our own Label Studio
        "disable-gpu",
        "disable-dev-shm-usage",
        "disable-quic",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
        "window-size=1280,860",
        f"user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):
        options.add_argument(f"--{switch}")
    os.environ["SE_OFFLINE"] = "true"  # selenium is told both paths; it must not go and look for others
    chrome = webdriver.Chrome(options=options, service=Service(driver))
    try:
        log_in(chrome, studio_process.url)
        yield chrome
    finally:
        chrome.quit()


def log_in(chrome: webdriver.Chrome, url: str) -> None:
    chrome.get(f"{url}/user/login/")
    chrome.find_element(By.NAME, "email").send_keys(LOGIN.email)
    chrome.find_element(By.NAME, "password").send_keys(LOGIN.password)
    chrome.find_element(By.CSS_SELECTOR, "button[type=submit]").click()
    WebDriverWait(chrome, 60).until(lambda page: "/user/login" not in page.current_url)
