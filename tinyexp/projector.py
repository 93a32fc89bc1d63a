"""The files of TensorBoard's projector: vectors, what each is, and its thumbnail."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tinyexp.files import write_text, written_aside

SPRITE = 64  # px of a thumbnail's side at most
_SHEET = 8192  # px of a sprite sheet's side at most
_CONFIG = "projector_config.pbtxt"


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """Points: a vector, a row of text and a picture each."""

    vectors: NDArray[np.float32]  # (n, d)
    heads: Sequence[str]  # of the columns of text, at least two
    rows: Sequence[Sequence[str]]  # (n, columns)
    thumbnails: NDArray[np.uint8]  # (n, side, side, 3)


def sprite_side(count: int, image_size: int) -> int:
    """px of a thumbnail's side, where so many of them are to have room on one sheet."""
    return max(1, min(SPRITE, image_size, _SHEET // max(1, math.ceil(math.sqrt(count)))))


def write_embedding(folder: Path, step: int, name: str, embedding: Embedding) -> None:
    """One more embedding of a run; TensorBoard offers it with those of the steps before.

    Raises:
        TinyexpError: as files.written_aside.
    """
    place = folder / "projector" / f"{name}-{step:08}"
    place.mkdir(parents=True, exist_ok=True)
    vectors = io.BytesIO()
    np.savetxt(vectors, embedding.vectors, fmt="%.6g", delimiter="\t")
    lines = ["\t".join(map(_one_line, row)) for row in (embedding.heads, *embedding.rows)]
    with written_aside(place / "sprite.png") as file:
        _sheet(embedding.thumbnails).save(file, "PNG")
    write_text(place / "metadata.tsv", "\n".join(lines) + "\n")
    write_text(place / "tensors.tsv", vectors.getvalue().decode())
    write_text(folder / _CONFIG, _config(folder, step, embedding.thumbnails.shape[1]))


def _config(folder: Path, newest: int, side: int) -> str:
    """Made of the files that are there, so that a resumed run keeps what it had; the newest first, which is shown.

    Of steps after `newest` are those of a run that has gone back since.
    """
    lines = []
    for tensors in sorted(folder.glob("projector/*/tensors.tsv"), key=_step, reverse=True):
        place = tensors.parent.relative_to(folder)
        name, step = place.name.rpartition("-")[0], _step(tensors)
        if step > newest:
            continue
        sprite = f'image_path: "{place}/sprite.png" single_image_dim: {side} single_image_dim: {side}'
        paths = f'tensor_path: "{place}/tensors.tsv" metadata_path: "{place}/metadata.tsv" sprite {{ {sprite} }}'
        lines.append(f'embeddings {{ tensor_name: "{name}, step {step}" {paths} }}\n')
    return "".join(lines)


def _step(tensors: Path) -> int:
    return int(tensors.parent.name.rpartition("-")[2])


def _sheet(thumbnails: NDArray[np.uint8]) -> Image.Image:
    """(n, side, side, 3) -> a square of squares, row by row, as the projector cuts it."""
    count, side = thumbnails.shape[:2]
    columns = math.ceil(math.sqrt(count))
    cells = np.zeros((columns * columns, side, side, 3), np.uint8)
    cells[:count] = thumbnails
    sheet = cells.reshape(columns, columns, side, side, 3).swapaxes(1, 2).reshape(columns * side, columns * side, 3)
    return Image.fromarray(sheet)


def _one_line(text: str) -> str:
    """Without what would end a cell or a row; a folder's name may be no UTF-8."""
    return " ".join(text.split()).encode("utf-8", "replace").decode() or "?"
