"""Whether a run's parts can be made, asked before it has a directory: each class is there and takes its arguments."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from tinyexp.config import SLOTS, Config
from tinyexp.data.source import OFFERED as DATA_OFFERED
from tinyexp.errors import ConfigError
from tinyexp.keys import blaming
from tinyexp.network import OFFERED
from tinyexp.optim import build_optimizer
from tinyexp.schedule import build_schedule
from tinyexp.targets import build, check_arguments, leftovers, resolve
from tinyexp.validate import to_text

_OURS = ("tinyexp.", "torch.", "torchvision.")  # whose models can be made for any number of classes
_MANY_STEPS = 10**6  # an epoch's, which only the data tells: a share of them is then no less than one


def check_parts(config: Config) -> Config:
    """The config without what another class's YAML left over, each dropped key told in its notes.

    The optimizer and the schedule are tried on one small layer. What only data or the whole model can tell, they tell
    when they are built.

    Raises:
        ConfigError: a class that is not there, or an argument that it does not take or lacks.
    """
    with blaming(config.sources):
        config = _without_leftovers(config)
        check_arguments(config.dataset, resolve(config.dataset, config.trust), 0, dict.fromkeys(DATA_OFFERED))
        check_arguments(config.model, resolve(config.model, config.trust), 0, dict.fromkeys(OFFERED))
        if config.model.target.startswith(_OURS):
            _try_model(config)
        _try_steps(config)
        return config


def _try_steps(config: Config) -> None:
    """Three steps, each the end of an epoch, of the optimizer and the schedule on one small layer."""
    layer = nn.Linear(2, 2, bias=False)
    optimizer = build_optimizer(config.optim, layer, config.trust)
    epochs, steps = config.train.epochs, _MANY_STEPS
    total = epochs * steps
    schedule = build_schedule(config.scheduler, optimizer, total=total, steps_per_epoch=steps, trust=config.trust)
    part = config.optim
    try:
        for _ in range(3):
            layer.weight.grad = torch.ones_like(layer.weight)
            part = config.optim
            optimizer.step()
            part = config.scheduler
            schedule.after_step()
            schedule.after_epoch(1.0, 0.5)
    except Exception as error:  # whatever a class of any kind says to arguments that it cannot work with
        told = f"{type(error).__name__}: {error}"
        raise ConfigError(f"{part.slot}: {part.target} fails with these arguments: {told}") from error


def _try_model(config: Config) -> None:
    """Make the model where tensors have no content; really, where it cannot be made there.

    How many classes the data has is not known yet, and is no matter to these.
    """
    size, channels = config.loader.image_size, len(config.loader.mean)
    offered = dict(zip(OFFERED, (10, channels, size), strict=True))
    try:
        with torch.device("meta"):
            build(config.model, config.trust, **offered)
    except (ConfigError, NotImplementedError):
        build(config.model, config.trust, **offered)


def _without_leftovers(config: Config) -> Config:
    for slot in SLOTS:
        component = getattr(config, slot)
        if not component.inherited:
            continue
        dropped = leftovers(component, resolve(component, config.trust))
        arguments = {key: value for key, value in component.arguments.items() if key not in dropped}
        plain = {key: value for key, value in config.plain[slot].items() if key not in dropped}
        config = replace(
            config,
            **{slot: replace(component, arguments=arguments)},
            plain=config.plain | {slot: plain},
            notes=(
                *config.notes,
                *(f"{slot}.{key} is left out: {component.target} does not take it" for key in dropped),
            ),
        )
    left = [key for key in config.must_go if key.partition(".")[2] in config.plain[key.partition(".")[0]]]
    if left:
        raise ConfigError(config.must_go[left[0]])
    return replace(config, text=to_text(config.plain))
