"""One phase's image files, decoded each time they are fetched; store.py has them decoded once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tinyexp.data.decode import decode
from tinyexp.errors import DataError

MEND = "mend or remove it (`python -m tinyexp prepare --verify` lists all such), or give dataset.on_error=skip"


@dataclass(frozen=True, eq=False)
class FileSplit:
    """Image files and their labels (N,), fetched as RGB of one (H, W, 3) each.

    `identity` follows from the files' names, sizes and times of change: another one means to decode them anew.
    """

    paths: tuple[str, ...]
    labels: NDArray[np.int64]
    identity: str
    short_side: int | None = None  # px; larger images are decoded to this

    def fetch(self, index: NDArray[np.int64]) -> list[NDArray[np.uint8]]:
        """Raises DataError, naming the file, for one that cannot be decoded in full."""
        try:
            return [decode(self.paths[number], self.short_side) for number in index.tolist()]
        except DataError as error:
            raise DataError(f"{error}: {MEND}") from error
