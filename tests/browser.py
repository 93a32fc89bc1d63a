"""A page in the machine's own Chromium, by playwright; a test skips and says so where one of them is not there."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

_CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_ARGS = (
    "--no-sandbox",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
)  # WebGL in software


@contextmanager
def page(url: str, wrong: list[str], **options: Any) -> Iterator[Any]:
    """playwright's page at this URL; what its console calls an error comes into `wrong`.

    `options` are those of playwright's Browser.new_page, as color_scheme or viewport.
    """
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if _CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=_CHROMIUM, args=list(_ARGS))
        try:
            opened = browser.new_page(**{"viewport": {"width": 1400, "height": 1000}, **options})
            opened.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
            opened.on("pageerror", lambda error: wrong.append(str(error)))
            opened.goto(url, timeout=60_000)
            yield opened
        finally:
            browser.close()


@contextmanager
def opened(file: Path, **options: Any) -> Iterator[tuple[Any, list[str]]]:
    """The page of a file on the disk, and what its console had to complain of or it asked the network for."""
    wrong: list[str] = []
    with page("about:blank", wrong, **options) as found:
        found.on("console", lambda line: wrong.append(line.text) if line.type == "warning" else None)
        found.on("request", lambda asked: None if asked.url.startswith("file:") else wrong.append(asked.url))
        found.goto(file.resolve().as_uri())
        yield found, wrong
