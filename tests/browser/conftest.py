"""A real browser: Debian's chromium and chromedriver, driven by selenium."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

_WHERE = "on Debian: apt-get install chromium chromium-driver; and pip install 'graphopt[test]'"
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1400,1000",
)


def missing(what: str) -> None:
    """Skip; or fail where a browser is required (GRAPHOPT_BROWSER=required, as .ci/run sets)."""
    if os.environ.get("GRAPHOPT_BROWSER") == "required":
        pytest.fail(f"{what} is missing; {_WHERE}")
    pytest.skip(f"{what} is missing; {_WHERE}")


class Browser:
    """One window. `open` checks that the page loads nothing and complains about nothing."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def js(self, script: str, *args: Any) -> Any:
        """The value of a function body that is run in the page."""
        return self.driver.execute_script(script, *args)

    def open(self, page: Path) -> None:
        """Open a file and wait for its graph, if it has one."""
        self.log("browser")
        self.log("performance")
        self.driver.get(page.as_uri())
        self.wait(
            "const s = document.querySelector('section.graph'); return !s || s.dataset.ready !== undefined"
        )

    def wait(self, script: str, seconds: float = 30) -> Any:
        """Wait until a function body returns something true."""
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.driver, seconds, poll_frequency=0.05).until(
            lambda d: d.execute_script(script)
        )

    def settle(self) -> None:
        """Wait for what the page does in the next frames."""
        self.driver.execute_async_script(
            "const done = arguments[0]; setTimeout(() => requestAnimationFrame(() => requestAnimationFrame(done)), 350)"
        )

    def log(self, kind: str) -> list[dict[str, Any]]:
        """What has been logged since the last call."""
        found: list[dict[str, Any]] = self.driver.get_log(kind)
        return found

    def complaints(self) -> list[str]:
        """Messages on the console: errors, warnings, violations of the page's policy."""
        return [entry["message"] for entry in self.log("browser")]

    def requests(self) -> list[str]:
        """What was asked for besides the page itself."""
        events = [json.loads(entry["message"])["message"] for entry in self.log("performance")]
        urls = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
        assert urls  # the page itself: otherwise nothing was recorded
        return [url for url in urls if not url.startswith(("data:", "blob:"))][1:]

    def text(self, selector: str) -> str:
        """The text of an element, also where it is out of sight."""
        found: str = self.js("return document.querySelector(arguments[0]).textContent.trim()", selector)
        return found

    def table(self, selector: str) -> list[list[str]]:
        """The visible rows of a table."""
        found: list[list[str]] = self.js(
            "return [...document.querySelector(arguments[0]).tBodies[0].rows].filter((r) => !r.hidden)"
            ".map((r) => [...r.cells].map((c) => c.textContent.trim().replace(/\\s+/g, ' ')))",
            selector,
        )
        return found

    def emulate(self, **features: str) -> None:
        """Media features, as in prefers_color_scheme="dark"; `media` is the medium."""
        media = features.pop("media", "")
        pairs = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": pairs})


@pytest.fixture(scope="session")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """The browser, started once."""
    try:
        from selenium import webdriver
    except ImportError:
        missing("selenium")
    binary = next((path for name in _BROWSERS if (path := shutil.which(name))), None)
    helper = shutil.which("chromedriver")
    if binary is None or helper is None:
        missing("chromium" if binary is None else "chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = str(binary)
    for flag in (*_FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(helper)))
    try:
        yield Browser(driver)
    finally:
        driver.quit()


@pytest.fixture
def browser(window: Browser) -> Iterator[Browser]:
    """The browser as it was at the start."""
    window.emulate(prefers_color_scheme="light", prefers_reduced_motion="reduce")
    yield window
    window.emulate()
    window.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


@pytest.fixture
def shown(browser: Browser, tmp_path: Path) -> Callable[[str], Browser]:
    """Opens a page, given as text."""

    def show(page: str) -> Browser:
        file = tmp_path / "page.html"
        file.write_text(page, encoding="utf-8")
        browser.open(file)
        return browser

    return show
