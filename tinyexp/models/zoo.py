"""Every classification network of torchvision, by name, fitted to the data; without weights."""

from __future__ import annotations

import inspect
import re
import sys

import torchvision
from torch import nn

from tinyexp.errors import did_you_mean


def torchvision_model(
    *, name: str, num_classes: int, in_channels: int = 3, image_size: int = 224, **arguments: object
) -> nn.Module:
    """torchvision.models.NAME(**arguments): (N, in_channels, image_size, image_size) -> logits (N, num_classes).

    Raises ValueError for an unknown name; segmentation, detection, video and quantized networks are not offered.
    """
    names = torchvision.models.list_models(module=torchvision.models)
    if name not in names:
        raise ValueError(f"model.name={name} is no classification network of torchvision{did_you_mean(name, names)}")
    fitting = _fit_family(name, image_size) | arguments
    try:
        model: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **fitting)
    except TypeError as error:
        raise _explain(error, name) from error
    _fit_channels(model, in_channels)
    return model


def _explain(error: TypeError, name: str) -> Exception:
    """A keyword that the network's class does not take, with the nearest that it does."""
    told = re.match(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
    home = sys.modules[torchvision.models.get_model_builder(name).__module__]
    if told is None or not hasattr(home, told.group(1)):
        return error
    valid = list(inspect.signature(getattr(home, told.group(1))).parameters)
    return ValueError(f"model.{told.group(2)} is no argument of {name}{did_you_mean(told.group(2), valid, 'model.')}")


def _fit_family(name: str, image_size: int) -> dict[str, object]:
    """What a family needs beside the number of classes."""
    if name.startswith("vit_"):
        return {"image_size": image_size}
    if name.startswith("maxvit_"):
        return {"input_size": (image_size, image_size)}
    if name in ("googlenet", "inception_v3"):
        # auxiliary heads would return several logits; unless init_weights is given, torchvision warns
        return {"aux_logits": False, "init_weights": True}
    return {}


def _fit_channels(model: nn.Module, in_channels: int) -> None:
    """Give the first convolution another number of channels, freshly drawn; kernel, stride and padding stay."""
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    if first.in_channels != in_channels:
        first.in_channels = in_channels
        first.weight = nn.Parameter(first.weight.new_empty(first.out_channels, in_channels, *first.kernel_size))
        first.reset_parameters()
