"""The optimizer: any of torch.optim's classes, or a user's own, over the groups of a model's parameters."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tinyexp.config import Component
from tinyexp.errors import ConfigError
from tinyexp.targets import build, resolve, takes


@dataclass(frozen=True)
class Grouping:
    """How a model's parameters are divided: those of the head, and all others with a share of its learning rate."""

    head: str = ""  # the name of the layer
    backbone_lr_scale: float = 1.0
    late: bool = False  # do some parameters begin to train later?
    left_out: Set[str] | None = None  # parameters that training never changes; None: those without requires_grad


def param_groups(model: nn.Module, grouping: Grouping, lr: float | None) -> list[dict[str, Any]]:
    """The parameters that training changes, as torch.optim takes them; the head's first, where there are two groups.

    Raises:
        ConfigError: the groups' learning rates are to differ, and there is no head or no learning rate.
    """
    left_out = grouping.left_out
    if left_out is None:
        left_out = {name for name, each in model.named_parameters() if not each.requires_grad}
    named = [(name, each) for name, each in model.named_parameters() if name not in left_out]
    if grouping.backbone_lr_scale == 1:
        return [{"params": [parameter for _, parameter in named]}]
    if lr is None or not grouping.head:
        lacking = (
            "optim.lr to be given" if lr is None else "to know which layer gives the logits, and it is not to be told"
        )
        raise ConfigError(f"transfer.backbone_lr_scale={grouping.backbone_lr_scale:g} needs {lacking}")
    of_head = f"{grouping.head}."
    groups: list[dict[str, Any]] = [
        {"params": [each for name, each in named if name.startswith(of_head)]},
        {
            "params": [each for name, each in named if not name.startswith(of_head)],
            "lr": lr * grouping.backbone_lr_scale,
        },
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(
    component: Component, model: nn.Module, trust: tuple[str, ...], grouping: Grouping | None = None
) -> torch.optim.Optimizer:
    """The optimizer that the config names, fused (one kernel for all tensors) where its class knows how.

    Raises:
        ConfigError: no optimizer of that name or wrong arguments; or LBFGS, which calls the model many times a step.
    """
    target = resolve(component, trust)
    if isinstance(target, type) and issubclass(target, torch.optim.LBFGS):
        raise ConfigError(
            "torch.optim.LBFGS runs the model several times a step, which this loop does not: take another optim"
        )
    lr = component.arguments.get("lr")
    groups = param_groups(model, grouping or Grouping(), lr if isinstance(lr, (int, float)) else None)
    other_way = any(component.arguments.get(key) is not None for key in ("foreach", "differentiable"))
    late = grouping is not None and grouping.late  # torch's fused SGD has no room for momentum that begins later
    fused = {"fused": True} if takes(target, "fused") and not other_way and not late else {}
    optimizer = build(component, trust, groups, **fused)
    assert isinstance(optimizer, torch.optim.Optimizer)
    return optimizer


def check_rates(optimizer: torch.optim.Optimizer, grouping: Grouping, scheduler: str) -> None:
    """Raises ConfigError where a schedule has given the backbone the head's learning rate."""
    rates = {group.get("initial_lr", group["lr"]) for group in optimizer.param_groups}
    if grouping.backbone_lr_scale != 1 and len(optimizer.param_groups) == 2 and len(rates) == 1:
        raise ConfigError(
            f"transfer.backbone_lr_scale={grouping.backbone_lr_scale:g}: {scheduler} sets learning rates of its own; "
            "take another scheduler"
        )
