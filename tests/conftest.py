"""Fixtures that several test files share."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults import SMALL, run


@pytest.fixture(scope="session")
def uncut(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a SMALL run that nothing disturbed: read it, or copy it, but do not write to it."""
    folder = tmp_path_factory.mktemp("uncut")
    ended = run(folder, *SMALL)
    assert ended.code == 0, ended.output
    return folder / "run"
