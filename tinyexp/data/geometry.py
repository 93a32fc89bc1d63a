"""Which part of an image is seen, and at which size: boxes for whole batches, and cutting them out.

Images are (H, W, C) uint8. Resizing is bilinear and antialiased where it shrinks, torch's own on uint8, which is the
same as Pillow's to within one grey level, and in one pixel of a thousand within two.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from tinyexp.data.source import Images

_TRIES = 10  # as torchvision's RandomResizedCrop
DRAWS = 2 * _TRIES + 2  # numbers in [0, 1) that a random box takes


def random_boxes(
    sizes: NDArray[np.int64], draws: NDArray[np.float64], scale: tuple[float, ...], ratio: tuple[float, ...]
) -> NDArray[np.int64]:
    """The boxes of torchvision's RandomResizedCrop: sizes (n, 2) and draws (n, DRAWS) -> (n, 4) top left height width.

    Of ten tries, each an area's share in `scale` and a width / height in `ratio`, the first that fits inside counts;
    where none does, the largest box in the middle whose width / height lies in `ratio`.
    """
    height, width = sizes[:, :1], sizes[:, 1:]  # (n, 1)
    share = scale[0] + draws[:, :_TRIES] * (scale[1] - scale[0])
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = np.exp(low + draws[:, _TRIES : 2 * _TRIES] * (high - low))
    area = height * width * share  # (n, tries)
    box_width, box_height = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    fits = (box_width > 0) & (box_width <= width) & (box_height > 0) & (box_height <= height)
    first = fits.argmax(1)[:, None]
    found = fits.any(1, keepdims=True)
    chosen = np.concatenate([np.take_along_axis(side, first, 1) for side in (box_height, box_width)], 1)
    chosen = np.where(found, chosen, _middle(sizes, ratio)).astype(np.int64)  # (n, 2)
    room = sizes - chosen
    corner = np.where(found, (draws[:, 2 * _TRIES :] * (room + 1)).astype(np.int64), room // 2)
    return np.concatenate([corner, chosen], 1)


def _middle(sizes: NDArray[np.int64], ratio: tuple[float, ...]) -> NDArray[np.float64]:
    """The largest (height, width) whose width / height lies in `ratio`."""
    height, width = sizes.astype(np.float64).T
    have = width / height
    box_width = np.where(have > ratio[1], np.rint(height * ratio[1]), width)
    box_height = np.where(have < ratio[0], np.rint(width / ratio[0]), height)
    sides: NDArray[np.float64] = np.stack([box_height, box_width], 1)
    return np.maximum(sides, 1.0)


def sizes_of(images: Images) -> NDArray[np.int64]:
    """(n, 2): each image's height and width."""
    if isinstance(images, np.ndarray):
        return np.tile(np.array(images.shape[1:3], np.int64), (len(images), 1))
    return np.array([image.shape[:2] for image in images], np.int64).reshape(-1, 2)


def crop_and_resize(images: Images, boxes: NDArray[np.int64], size: int, channels: int) -> NDArray[np.uint8]:
    """Each image's box (n, 4), resized: (n, size, size, C)."""
    out = np.empty((len(images), size, size, channels), np.uint8)
    for row, (image, (top, left, height, width)) in enumerate(zip(images, boxes.tolist(), strict=True)):
        crop = image[top : top + height, left : left + width]
        out[row] = _resize(crop.reshape(1, height, width, channels), size, size)[0]
    return out


def resize_and_centre(images: Images, resize: int, size: int, channels: int) -> NDArray[np.uint8]:
    """The short side to `resize`, then the centre: (n, size, size, C); torchvision's Resize and CenterCrop."""
    if isinstance(images, np.ndarray):
        return _centre(images, resize, size)
    out = np.empty((len(images), size, size, channels), np.uint8)
    for row, image in enumerate(images):
        out[row] = _centre(image.reshape(1, *image.shape), resize, size)[0]
    return out


def _centre(images: NDArray[np.uint8], resize: int, size: int) -> NDArray[np.uint8]:
    height, width = images.shape[1:3]
    short = min(height, width)
    height, width = (resize * height // short, resize * width // short)
    resized = _resize(images, height, width)
    top, left = round((height - size) / 2), round((width - size) / 2)
    return resized[:, top : top + size, left : left + size]


def _resize(images: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """(n, H, W, C) -> (n, height, width, C).

    In memory they stay (n, H, W, C), which torch's fast kernel takes; it does not where the first stride is 0, as that
    of image[None] is.
    """
    if images.shape[1:3] == (height, width):
        return images
    if not (images.flags.writeable and images.flags.c_contiguous):  # torch warns of what must not be written
        images = images.copy(order="C")
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
    resized = F.interpolate(pixels, (height, width), mode="bilinear", antialias=True)
    return resized.permute(0, 2, 3, 1).numpy()
