"""Every classification network of timm, by name, fitted to the data; without weights. Timm comes with tinyexp[timm]."""

from __future__ import annotations

import re
from types import ModuleType

from torch import nn

from tinyexp.errors import ConfigError, did_you_mean

# arguments of create_model that would fetch or read weights, or make another thing than a plain network
_NOT_TAKEN = (
    "cache_dir",
    "checkpoint_path",
    "exportable",
    "features_only",
    "no_jit",
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "scriptable",
)


def timm_model(
    *, name: str, num_classes: int, in_channels: int = 3, image_size: int = 224, **arguments: object
) -> nn.Module:
    """timm.create_model(NAME, **arguments): (N, in_channels, image_size, image_size) -> logits (N, num_classes).

    A name may have the tag of weights, as resnet18.a1_in1k, and the network is the same; none are loaded.
    A family whose networks are made for one size of images (vit_, swin_, mixer_, ...) is made for image_size.

    Raises:
        ConfigError: timm is not installed.
        ValueError: an unknown name, or an argument that would bring weights or that the network does not take.
    """
    timm = _import()
    check_name(name)
    if wrong := sorted(arguments.keys() & set(_NOT_TAKEN)):
        raise ValueError(
            f"model.{wrong[0]} is not taken: a network is made without weights, which model.weights brings"
        )
    about = timm.get_pretrained_cfg(name)
    fitting = {"img_size": image_size} if about is not None and about.fixed_input_size else {}
    try:
        model: nn.Module = timm.create_model(
            name, pretrained=False, num_classes=num_classes, in_chans=in_channels, **fitting | arguments
        )
    except TypeError as error:
        raise _explain(error, name) from error
    return model


def check_name(name: str) -> None:
    """Raises ValueError for what timm does not list: a hub's address too, which it would fetch."""
    timm = _import()
    names = timm.list_models()
    if name not in names and name not in timm.list_models(pretrained=True):
        raise ValueError(f"model.name={name} is no classification network of timm{_nearest(name, names)}")


def _import() -> ModuleType:
    """Here and not above, since it takes seconds, and conf/ names this module whether or not timm is there."""
    try:
        import timm
    except ImportError as error:
        raise ConfigError(f"model=timm needs timm ({error}): pip install 'tinyexp[timm]'") from error
    return timm


def _nearest(name: str, names: list[str]) -> str:
    """Of more than a thousand names, the nearest, or those that begin alike; never all."""
    near = did_you_mean(name, names)
    if near.startswith("; did you mean"):
        return near
    alike = [each for each in names if each.startswith(name[:3])][:10]
    return f"; some: {', '.join(alike or names[:10])}; `python -c 'import timm; print(timm.list_models())'` has all"


def _explain(error: TypeError, name: str) -> Exception:
    """A keyword that the network's class does not take, in our words."""
    told = re.search(r"unexpected keyword argument(?:\(s\): \[)? ?'(\w+)'", str(error))
    return error if told is None else ValueError(f"model.{told.group(1)} is no argument of {name}")
