"""The thousand classes of ImageNet (ILSVRC 2012), in the order of pretrained heads, which is that of their ids."""

from __future__ import annotations

import functools
from pathlib import Path


@functools.cache
def imagenet_ids() -> tuple[str, ...]:
    """WordNet ids."""
    return tuple(Path(__file__).with_name("imagenet_ids.txt").read_text(encoding="utf-8").split())


@functools.cache
def imagenet_names() -> tuple[str, ...]:
    """What torchvision calls them."""
    from torchvision.models import ResNet18_Weights

    return tuple(ResNet18_Weights.DEFAULT.meta["categories"])
