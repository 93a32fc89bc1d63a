"""The optimizer: any of torch.optim's classes, or a user's own, over the groups of a model's parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tinyexp.config import Component
from tinyexp.errors import ConfigError
from tinyexp.targets import build, resolve, takes


def param_groups(model: nn.Module) -> list[dict[str, Any]]:
    """The parameters that training changes, as torch.optim takes them; freezing will have its home here."""
    return [{"params": [parameter for parameter in model.parameters() if parameter.requires_grad]}]


def build_optimizer(component: Component, model: nn.Module, trust: tuple[str, ...]) -> torch.optim.Optimizer:
    """The optimizer that the config names, fused (one kernel for all tensors) where its class knows how.

    Raises:
        ConfigError: no optimizer of that name or wrong arguments; or LBFGS, which calls the model many times a step.
    """
    target = resolve(component, trust)
    if isinstance(target, type) and issubclass(target, torch.optim.LBFGS):
        raise ConfigError(
            "torch.optim.LBFGS runs the model several times a step, which this loop does not: take another optim"
        )
    groups = param_groups(model)
    other_way = any(component.arguments.get(key) is not None for key in ("foreach", "differentiable"))
    fused = {"fused": True} if takes(target, "fused") and not other_way else {}
    optimizer = build(component, trust, groups, **fused)
    assert isinstance(optimizer, torch.optim.Optimizer)
    return optimizer
