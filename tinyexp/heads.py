"""Which layer of a network gives its logits, found by watching it run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


def find_head(model: nn.Module, num_classes: int, call: Callable[[], Tensor]) -> tuple[Tensor, str]:
    """The logits of `call`, which runs the model, and the name of the layer with weights that ran last.

    The name is "" where that layer has not one output a class, or is the whole network.
    """
    last = [""]

    def watch(name: str) -> Callable[..., None]:
        def seen(module: nn.Module, _: Any, output: Any) -> None:
            width = getattr(module, "out_features", getattr(module, "out_channels", None))
            last[0] = name if width == num_classes else ""

        return seen

    layers = [(name, module) for name, module in model.named_modules() if name]
    hooks = [
        module.register_forward_hook(watch(name)) for name, module in layers if list(module.parameters(recurse=False))
    ]
    try:
        logits = call()
    finally:
        for hook in hooks:
            hook.remove()
    return logits, last[0]
