"""A picture of what a network is shown: any number, size and name of images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tinyexp.data.plan import Batch
from tinyexp.data.preview import write_preview

NAMES = ("ant", "bee", "cat")


def make_batch(count: int, size: int, *, channels: int = 3, soft: bool = False) -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, size, size, channels), dtype=torch.uint8, generator=generator)
    labels = torch.arange(count) % 3
    if soft:
        labels = 0.7 * torch.eye(3)[labels] + 0.3 * torch.eye(3)[(labels + 1) % 3]
    return Batch(images=images.permute(0, 3, 1, 2), labels=labels, index=torch.arange(count), slot=0, total=count)


def show(path: Path, *batches: Batch, names: tuple[str, ...] = NAMES) -> np.ndarray:
    write_preview(path, list(batches), names)
    with Image.open(path) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        return np.asarray(image)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize(
    ("count", "grid", "size", "side"),
    [
        (1, (1, 1), 8, 112),
        (3, (3, 1), 1, 112),
        (7, (7, 1), 50, 150),
        (8, (8, 1), 112, 112),
        (9, (8, 2), 300, 300),
        (48, (8, 6), 8, 112),
        (60, (8, 6), 8, 112),
    ],
)
def test_size_and_pixels(
    count: int, grid: tuple[int, int], size: int, side: int, channels: int, soft: bool, tmp_path: Path
) -> None:
    columns, rows = grid
    batch = make_batch(count, size, channels=channels, soft=soft)
    sheet = show(tmp_path / "preview.png", batch)
    assert sheet.shape == (rows * (side + 32) + 4, columns * (side + 4) + 4, 3)
    for number in range(min(count, 48)):
        top, left = 4 + number // columns * (side + 32), 4 + number % columns * (side + 4)
        seen = sheet[top : top + side, left : left + side]
        image = np.broadcast_to(batch.images[number].permute(1, 2, 0).numpy()[:, :, :3], (size, size, 3))
        assert np.array_equal(seen, image.repeat(side // size, 0).repeat(side // size, 1))
        below = sheet[top + side : top + side + 28, left : left + side]
        assert (below < 100).any(), "a label is written"
    assert [file.name for file in tmp_path.iterdir()] == ["preview.png"]


def test_a_mixed_image_names_both_classes(tmp_path: Path) -> None:
    hard, soft = (show(tmp_path / "preview.png", make_batch(1, 112, soft=soft)) for soft in (False, True))
    second_line = slice(4 + 112 + 14, 4 + 112 + 28)
    assert (hard[second_line] == 255).all()
    assert (soft[second_line] < 100).any()


def test_several_batches_are_one_picture(tmp_path: Path) -> None:
    batch = make_batch(5, 8)
    assert show(tmp_path / "a.png", batch, batch).shape == show(tmp_path / "b.png", make_batch(10, 8)).shape


@pytest.mark.parametrize(
    "name",
    ["x" * 5000, "żółw 乌龟 черепаха", "🐢" * 30, "two\nlines\t", "\x00", "\udce9 of no encoding", "سلحفاة", " ", ""],
    ids=["long", "letters", "emoji", "lines", "null", "surrogate", "right to left", "blank", "empty"],
)
@pytest.mark.parametrize("soft", [False, True])
def test_any_name_is_written(name: str, soft: bool, tmp_path: Path) -> None:
    sheet = show(tmp_path / "preview.png", make_batch(3, 8, soft=soft), names=(name,) * 3)
    assert sheet.shape == (112 + 36, 3 * 116 + 4, 3)
    assert (sheet[:, 116:120] == 255).all(), "it ends before the next image"
