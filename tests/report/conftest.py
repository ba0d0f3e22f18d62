"""A real browser, shared by all tests of pages."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium")
Opened = Callable[[Path], AbstractContextManager[Any]]


@pytest.fixture(scope="session")
def opened() -> Iterator[Opened]:
    """Open a page in a browser; in the end, assert that it made no request and logged no error."""
    if CHROMIUM is None:
        pytest.skip("needs Debian's chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])

        @contextmanager
        def opened(path: Path) -> Iterator[Any]:
            page = browser.new_page(viewport={"width": 1200, "height": 900})
            asked: list[str] = []
            said: list[str] = []
            page.on("request", lambda request: asked.append(request.url))
            page.on("console", lambda message: said.append(message.text))
            page.on("pageerror", lambda error: said.append(str(error)))
            page.goto(path.as_uri())
            page.wait_for_function("document.body.dataset.ready === 'true' || !document.getElementById('payload')")
            yield page
            page.close()
            assert asked == [path.as_uri()] and said == []

        yield opened
        browser.close()
