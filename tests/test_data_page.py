"""docs/data.md: its Python is run as it stands there."""

from __future__ import annotations

import logging
import re
import sys
import textwrap
from pathlib import Path

import pytest
from helpers import LEAN, rows

from tinyexp.__main__ import main

PAGE = Path(__file__).parent.parent / "docs" / "data.md"


def block(begins_with: str) -> str:
    """The page's indented block that begins so."""
    found = re.search(rf"^    {re.escape(begins_with)}.*?(?=^\S)", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert found, begins_with
    return textwrap.dedent(found.group())


def test_a_data_set_in_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, command = block("import numpy as np").partition("python -m tinyexp ")
    (tmp_path / "mine.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    words = command.replace("'", "").split()
    assert main([*LEAN, *words, f"run.dir={tmp_path}/run", "train.epochs=2"]) == 0
    assert rows(tmp_path / "run", "val")[-1]["top1"] == 1
    sys.modules.pop("mine")


def test_a_cache_for_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    code = block("from tinyexp import cached").replace("...  ", "return [self.size, self.mode]  ")
    (tmp_path / "faces.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    from faces import Faces

    with caplog.at_level(logging.INFO, "tinyexp"):
        assert [Faces(size, "RGB").images() for size in (8, 8, 9)] == [[8, "RGB"], [8, "RGB"], [9, "RGB"]]
    assert [word for word in caplog.text.split() if word in ("hit", "miss")] == ["miss", "hit", "miss"]
    sys.modules.pop("faces")
