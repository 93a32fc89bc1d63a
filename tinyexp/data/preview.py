"""What a network is shown, as a picture: augmented train images in a grid, with their labels."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from tinyexp.data.plan import Batch
from tinyexp.files import written_aside

_MOST = 48  # images
_COLUMNS = 8
_CELL = 112  # px at least; smaller images are enlarged by whole times
_TEXT = 14  # px of a line below each


def write_preview(path: Path, batches: list[Batch], names: tuple[str, ...]) -> None:
    """A PNG of the first images; a mixed one's label names both classes and their shares.

    Raises as written_aside.
    """
    images = torch.cat([batch.images for batch in batches])[:_MOST]
    labels = torch.cat([batch.labels for batch in batches])[:_MOST]
    size = images.shape[-1]
    side = size * -(-_CELL // size)
    columns = min(_COLUMNS, len(images))
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (side + 4) + 4, rows * (side + 2 * _TEXT + 4) + 4), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (pixels, label) in enumerate(zip(images, labels, strict=True)):
        left, top = 4 + number % columns * (side + 4), 4 + number // columns * (side + 2 * _TEXT + 4)
        sheet.paste(_picture(pixels).resize((side, side), Image.Resampling.NEAREST), (left, top))
        for line, text in enumerate(_spell(label, names)):
            draw.text((left, top + side + line * _TEXT), _fitted(text, side, draw), fill="black")
    with written_aside(path) as file:
        sheet.save(file, "PNG")


def _picture(pixels: Tensor) -> Image.Image:
    """(C, H, W) uint8; one channel is grey, more than three show their first three."""
    array = pixels.permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(array[:, :, 0] if array.shape[2] < 3 else array[:, :, :3])


def _fitted(text: str, width: float, draw: ImageDraw.ImageDraw) -> str:
    """As much of the text, in one line, as has room."""
    text = " ".join(text.split())[: int(width)]  # no letter is narrower than 1 px; measuring takes time
    while text and draw.textlength(text) > width:
        text = text[:-1]
    return text


def _spell(label: Tensor, names: tuple[str, ...]) -> list[str]:
    if label.ndim == 0:
        return [names[int(label)]]
    shares, classes = label.topk(min(2, len(label)))
    if shares[0] == 1:
        return [names[int(classes[0])]]
    return [f"{share:.0%} {names[number]}" for share, number in zip(shares, classes.tolist(), strict=True) if share > 0]
