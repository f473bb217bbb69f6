"""Chromium, driven by its own driver, for the tests that look at the page as a person does."""

import shutil
from collections.abc import Iterator

import pytest
from selenium import webdriver

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--no-proxy-server", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars",
)  # fmt: skip


@pytest.fixture(scope="module")
def browser(lacking, tmp_path_factory) -> Iterator[webdriver.Chrome]:
    """A browser with a profile of its own, that may use the clipboard and logs what it minds."""
    found = filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome")))
    binary, driver = next(found, None), shutil.which("chromedriver")
    if binary is None or driver is None:
        lacking("chromium", f"{'chromedriver' if binary else 'chromium'} is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(executable_path=driver)
    browser = webdriver.Chrome(options, service)
    try:
        yield browser
    finally:
        browser.quit()
