"""Images in a grid with text below each, as a picture; and of what training is shown, with its labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from tinyexp.data.plan import Batch
from tinyexp.files import written_aside

MOST = 48  # images
_COLUMNS = 8
_CELL = 112  # px at least; smaller images are enlarged by whole times
_TEXT = 14  # px of a line below each


def write_preview(path: Path, batches: list[Batch], names: tuple[str, ...]) -> None:
    """A PNG of the first images. Raises as written_aside."""
    sheet = draw_first(batches, names)
    with written_aside(path) as file:
        sheet.save(file, "PNG")


def draw_first(batches: list[Batch], names: tuple[str, ...]) -> Image.Image:
    """The first images with their labels; a mixed one's names both classes and their shares."""
    images = torch.cat([batch.images for batch in batches])[:MOST]
    labels = torch.cat([batch.labels for batch in batches])[:MOST]
    return draw_sheet(images, [_spell(label, names) for label in labels], ["black"] * len(images))


def draw_sheet(images: Tensor, lines: Sequence[Sequence[str]], colours: Sequence[str]) -> Image.Image:
    """Images (n, C, H, W) uint8, n at least 1, each with up to two lines of text below it in its colour."""
    size = images.shape[-1]
    side = size * -(-_CELL // size)
    columns = min(_COLUMNS, len(images))
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (side + 4) + 4, rows * (side + 2 * _TEXT + 4) + 4), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (pixels, texts, colour) in enumerate(zip(images, lines, colours, strict=True)):
        left, top = 4 + number % columns * (side + 4), 4 + number // columns * (side + 2 * _TEXT + 4)
        sheet.paste(picture(pixels).resize((side, side), Image.Resampling.NEAREST), (left, top))
        for line, text in enumerate(texts):
            draw.text((left, top + side + line * _TEXT), _fitted(text, side, draw), fill=colour)
    return sheet


def picture(pixels: Tensor) -> Image.Image:
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
