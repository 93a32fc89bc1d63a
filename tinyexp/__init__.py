"""tinyexp: Hydra-composed experiments for PyTorch image classification."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tinyexp.cached import cached

if TYPE_CHECKING:
    from tinyexp.loaded import LoadedRun

__all__ = ["cached", "load"]

__version__ = "0.1.0"


def load(path: str | Path, *, trust: Sequence[str] = ()) -> LoadedRun:
    """A run's directory or a checkpoint for a notebook.

    `.predict(IMAGES)`, `.model`, `.network`, `.classes`, `.config`; of a directory also `.summary` and `.history`.

    Raises:
        ConfigError: neither of them, or one that names a class outside torch, torchvision, tinyexp and `trust`.
    """
    from tinyexp.loaded import LoadedRun  # takes torch, which the command line needs only later

    return LoadedRun(path, trust)
