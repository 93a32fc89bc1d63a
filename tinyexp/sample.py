"""Images to try a network on: of the val split where the data set is on this machine, else noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tinyexp.config import Config
from tinyexp.data.source import list_source
from tinyexp.data.store import files_to_decode
from tinyexp.data.transform import Transform
from tinyexp.errors import DataError, TinyexpError
from tinyexp.network import Seen


@dataclass(frozen=True, kw_only=True)
class Sample:
    images: Tensor  # (N, C, H, W) uint8
    told: str  # what they are


def take_sample(config: Config, seen: Seen, count: int) -> Sample:
    """Up to `count` val images, evenly spread, as a network of this data sees them; nothing is fetched or kept."""
    try:
        images = _val_images(config, seen, count)
        return Sample(images=images, told=f"{len(images)} val images")
    except TinyexpError as error:
        reason = str(error).strip().split("\n")[0]
        images = torch.randint(256, (count, *seen.image_shape), generator=torch.Generator().manual_seed(0))
        return Sample(
            images=images.to(torch.uint8), told=f"{count} random images, since val images are not to be had: {reason}"
        )


def _val_images(config: Config, seen: Seen, count: int) -> Tensor:
    """Raises TinyexpError where they cannot be had, or are not what the network takes."""
    source = list_source(config, fetch=False)
    split = files_to_decode(source, config.loader).get("val", source.val)
    index = np.unique(np.linspace(0, len(split.labels) - 1, count).astype(np.int64))
    images = Transform(config.loader, seen.mean, 0).val(split.fetch(index))  # (n, H, W, C)
    shape = (images.shape[3], *images.shape[1:3])
    if shape != seen.image_shape:
        raise DataError(f"the data set's images are of {shape}, and the network's of {seen.image_shape}")
    return torch.from_numpy(images).permute(0, 3, 1, 2)
