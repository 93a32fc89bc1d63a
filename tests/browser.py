"""A page in the machine's own chromium, by playwright; a test skips and says so where one of them is not there."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def opened(file: Path, **options: Any) -> Iterator[tuple[Any, list[str]]]:
    """The page of a file on the disk, and what its console had to complain of or it asked the network for.

    `options` are those of playwright's Browser.new_page, as color_scheme or viewport.
    """
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("chromium is not installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page(**options)
        wrong: list[str] = []
        page.on("console", lambda line: wrong.append(line.text) if line.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda asked: None if asked.url.startswith("file:") else wrong.append(asked.url))
        page.goto(file.resolve().as_uri())
        yield page, wrong
        browser.close()
