"""What one image costs a network, found from its layers' shapes: nothing is computed where they can be had without."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tinyexp.config import Component
from tinyexp.errors import ConfigError
from tinyexp.network import OFFERED
from tinyexp.targets import build


def find_cost(
    component: Component, trust: tuple[str, ...], num_classes: int, image_shape: tuple[int, int, int]
) -> tuple[frozenset[str], int]:
    """The names of the network's parameters, and the floating-point operations of one image's logits.

    Those of convolutions, matrix products and attention, two for each multiply-add; torch counts no others.

    Raises:
        ConfigError: the network may not be built, or cannot be, or does not take such images.
    """
    offered = dict(zip(OFFERED, (num_classes, *image_shape[:2]), strict=True))
    try:
        with torch.device("meta"):  # shapes alone
            return _count(build(component, trust, **offered), torch.zeros(1, *image_shape))
    except Exception:  # a network that reads values of tensors cannot be made or called there
        model = build(component, trust, **offered)
    try:
        return _count(model, torch.zeros(1, *image_shape))
    except Exception as error:  # whatever a network of any kind says to images that it cannot take
        shape, reason = "x".join(map(str, image_shape)), str(error).strip().split("\n")[0]
        raise ConfigError(f"{component.target} does not take an image of {shape}: {reason}") from error


def _count(model: nn.Module, images: Tensor) -> tuple[frozenset[str], int]:
    model.eval()
    counter = FlopCounterMode(display=False)
    # with gradients, as without them torch's attention is one call of unknown cost
    with torch.enable_grad(), counter:
        model(images)
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return frozenset(names), int(counter.get_total_flops())
