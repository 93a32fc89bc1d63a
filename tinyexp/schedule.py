"""The learning rate over a run: pure functions of (step, total steps), or any class of torch.optim.lr_scheduler.

A function's value multiplies the optimizer's own learning rate; step 0 is the first optimizer step. Spans (`warmup`,
`step_size`) are steps, or a share of the run where they are below 1; a YAML may also say epochs, as 2ep.
"""

from __future__ import annotations

import inspect
import math
import re
from dataclasses import replace
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from tinyexp.config import Component
from tinyexp.errors import ConfigError
from tinyexp.targets import build, check_arguments, resolve

_OF_TOTAL = ("total_steps", "_schedule_phases")  # in OneCycleLR's state
_EPOCHS = re.compile(r"(\d+(?:\.\d+)?)ep")


def constant(step: int, total: int, *, warmup: float) -> float:
    """1 after a linear warmup."""
    return _rise(step, _span(warmup, total))


def step(step: int, total: int, *, step_size: float, gamma: float, warmup: float) -> float:
    """gamma to the number of whole `step_size`s that are over."""
    size = _span(step_size, total)
    if size < 1:
        raise ValueError(f"step_size must be at least 1 step, got {step_size}")
    return _rise(step, _span(warmup, total)) * math.pow(gamma, step // size)


def cosine(step: int, total: int, *, cycles: float, warmup: float) -> float:
    """A cosine from 1 after the warmup: 0.5 cycles end at 0, whole ones on a peak.

    Source: Loshchilov and Hutter, SGDR: Stochastic Gradient Descent with Warm Restarts, 2017.
    """
    warm = _span(warmup, total)
    progress = max(0.0, (step - warm) / max(1, total - warm))
    return _rise(step, warm) * 0.5 * (1 + math.cos(2 * math.pi * cycles * progress))


def onecycle(step: int, total: int, *, warmup: float, start: float, end: float) -> float:
    """From `start` up to 1 and down to `end`, each along half a cosine.

    Source: Smith and Topin, Super-Convergence, 2018.
    """
    peak = max(1.0, _span(warmup, total))
    if step <= peak:
        return start + (1 - start) * 0.5 * (1 - math.cos(math.pi * step / peak))
    progress = min(1.0, (step - peak) / max(1.0, total - 1 - peak))
    return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * progress))


def _span(value: float, total: int) -> float:
    """Steps from steps or, below 1, from a share of the run."""
    if isinstance(value, (str, bool)) or value < 0:
        raise ValueError(f"a span must be steps, a share of the run below 1, or epochs as 2ep, got {value!r}")
    return value * total if value < 1 else value


def _rise(step: int, warmup: float) -> float:
    return min(1.0, step / warmup) if warmup else 1.0


class Schedule:
    """A scheduler of torch with the moments at which it steps: after each optimizer step, or after each epoch."""

    def __init__(self, scheduler: LRScheduler, interval: str) -> None:
        self._scheduler = scheduler
        self._interval = interval

    def after_step(self) -> None:
        if self._interval == "step":
            self._scheduler.step()

    def after_epoch(self, loss: float, top1: float) -> None:
        """val's scores, for ReduceLROnPlateau: it waits for a lower loss, or under `mode: max` for a higher top1."""
        if isinstance(self._scheduler, ReduceLROnPlateau):
            self._scheduler.step(top1 if self._scheduler.mode == "max" else loss)
        elif self._interval == "epoch":
            self._scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        return dict(self._scheduler.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on at the saved step. What follows from the total is computed anew, since it may have grown."""
        self._scheduler.load_state_dict({key: value for key, value in state.items() if key not in _OF_TOTAL})
        if isinstance(self._scheduler, LambdaLR):
            scheduler = self._scheduler
            for group, base, factor in zip(
                scheduler.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True
            ):
                group["lr"] = base * factor(scheduler.last_epoch)


def build_schedule(
    component: Component, optimizer: Optimizer, *, total: int, steps_per_epoch: int, trust: tuple[str, ...]
) -> Schedule:
    """The schedule that the config names, for a run of `total` optimizer steps.

    Raises:
        ConfigError: no such scheduler, wrong arguments, or an `interval` that is neither step nor epoch.
    """
    target = resolve(component, trust)
    arguments = dict(component.arguments)
    interval = arguments.pop("interval", "epoch") if inspect.isclass(target) else "step"
    if interval not in ("step", "epoch"):
        raise ConfigError(f"scheduler.interval must be step or epoch, got {interval!r}")
    if interval == "step" and target is ReduceLROnPlateau:
        raise ConfigError("scheduler.interval must be epoch for ReduceLROnPlateau, which watches val's scores")
    if interval == "epoch":  # what it counts are epochs
        total, steps_per_epoch = total // steps_per_epoch, 1
    arguments = {key: _in_steps(value, steps_per_epoch) for key, value in arguments.items()}
    spelled = replace(component, arguments=arguments)
    if inspect.isclass(target):
        return Schedule(build(spelled, trust, optimizer, total_steps=total), interval)
    arguments = check_arguments(spelled, target, 2, {})

    def factor(step: int) -> float:
        return float(target(step, total, **arguments))

    try:
        return Schedule(LambdaLR(optimizer, factor), interval)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"scheduler: {component.target} does not take these arguments: {error}") from error


def _in_steps(value: Any, steps_per_epoch: int) -> Any:
    if isinstance(value, list):
        return [_in_steps(item, steps_per_epoch) for item in value]
    match = _EPOCHS.fullmatch(value) if isinstance(value, str) else None
    return round(float(match.group(1)) * steps_per_epoch) if match else value
