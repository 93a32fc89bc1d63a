"""Fixtures that several test files share."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra
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


@pytest.fixture
def kept_hydra(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Hydra makes of the same words is composed once, since it takes a twentieth of a second."""
    original = hydra.compose

    def composed(*given: Any, overrides: list[str], **named: Any) -> Any:
        if any(word.startswith("hydra.searchpath") for word in overrides):
            return original(*given, overrides=overrides, **named)  # its files change
        if tuple(overrides) not in _KEPT:
            _KEPT[tuple(overrides)] = original(*given, overrides=overrides, **named)
        return copy.deepcopy(_KEPT[tuple(overrides)])

    monkeypatch.setattr(hydra, "compose", composed)


_KEPT: dict[tuple[str, ...], Any] = {}
