"""Whether a run's parts can be made, asked before it has a directory: each class is there and takes its arguments."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import torch
from torch import nn

from tinyexp.config import SLOTS, Config, blaming
from tinyexp.network import OFFERED
from tinyexp.optim import build_optimizer
from tinyexp.schedule import build_schedule
from tinyexp.targets import build, check_arguments, leftovers, resolve, takes_anything
from tinyexp.validate import to_text

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
        check_arguments(config.dataset, resolve(config.dataset, config.trust), 0, {})
        model = resolve(config.model, config.trust)
        check_arguments(config.model, model, 0, dict.fromkeys(OFFERED))
        if takes_anything(model):
            _try_model(config)
        optimizer = build_optimizer(config.optim, nn.Linear(1, 1), config.trust)
        epochs, steps = config.train.epochs, _MANY_STEPS
        build_schedule(config.scheduler, optimizer, total=epochs * steps, steps_per_epoch=steps, trust=config.trust)
        return config


def _try_model(config: Config) -> None:
    """Make a model whose signature says nothing, as torchvision's does, where tensors have no content.

    The data's classes and channels are not known yet; what they alone could make fail is left to the run.
    """
    size = config.dataset.arguments.get("image_size", 224)
    with contextlib.suppress(RuntimeError, NotImplementedError), torch.device("meta"):
        build(config.model, config.trust, **dict(zip(OFFERED, (10, 3, size), strict=True)))


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
    return replace(config, text=to_text(config.plain))
