"""Whether a run's parts can be made, asked before it has a directory: each class is there and takes its arguments."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from tinyexp.config import SLOTS, Config, blaming
from tinyexp.network import OFFERED
from tinyexp.optim import build_optimizer
from tinyexp.schedule import build_schedule
from tinyexp.targets import check_arguments, leftovers, resolve
from tinyexp.validate import to_text


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
        check_arguments(config.model, resolve(config.model, config.trust), 0, dict.fromkeys(OFFERED))
        optimizer = build_optimizer(config.optim, nn.Linear(1, 1), config.trust)
        epochs, steps = config.train.epochs, 100  # how many steps an epoch has only the data tells
        build_schedule(config.scheduler, optimizer, total=epochs * steps, steps_per_epoch=steps, trust=config.trust)
        return config


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
