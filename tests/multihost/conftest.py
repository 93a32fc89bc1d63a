"""Fixtures of the tests that need more machines than one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hosts import Hosts, reason_not_here


@pytest.fixture(scope="session")
def _namespaces() -> None:
    """Skips where there can be none."""
    reason = reason_not_here()
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture
def hosts(_namespaces: None, tmp_path: Path) -> Iterator[Hosts]:
    """Two machines."""
    with Hosts(tmp_path) as made:
        yield made
