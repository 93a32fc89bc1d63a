"""Fixtures that several test files share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from faults import SMALL, end_all, run


@pytest.fixture(scope="session")
def uncut(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a SMALL run that nothing disturbed: read it, or copy it, but do not write to it."""
    folder = tmp_path_factory.mktemp("uncut")
    ended = run(folder, *SMALL)
    assert ended.code == 0, ended.output
    return folder / "run"


@pytest.fixture(autouse=True)
def _no_child_left() -> Iterator[None]:
    """A test that fails leaves no process behind, which pytest would wait for."""
    yield
    end_all()
