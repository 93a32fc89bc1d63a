"""What a run would take, found without training: the network's size and about how much memory a step needs."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tinyexp.config import Config
from tinyexp.device import available_devices, fast_bf16, pick_device, traits
from tinyexp.errors import ConfigError
from tinyexp.facts import Facts
from tinyexp.network import OFFERED
from tinyexp.optim import build_optimizer
from tinyexp.parts import check_parts
from tinyexp.targets import build


def find_facts(config: Config, num_classes: int, image_shape: tuple[int, int, int]) -> Facts:
    """Raises ConfigError for parts that cannot be made, or do not fit the data or this machine."""
    config = check_parts(config)
    channels, height, width = image_shape
    device = pick_device(config.hw.device, available_devices())
    plan = traits(device, config.train.precision, height * width, fast_bf16(device))
    model = _build_model(config, dict(zip(OFFERED, (num_classes, channels, height), strict=True)))
    weights = _bytes(list(model.state_dict().values()))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    micro_batch = math.ceil(config.train.batch_size / config.train.accumulate)
    activations = _activations(model, (micro_batch, *image_shape), num_classes)
    return Facts(
        device=str(device),
        precision="fp32" if plan.autocast is None else str(plan.autocast).removeprefix("torch."),
        network=type(model).__name__,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        weights=weights,
        gradients=_bytes(trained),
        optimizer=round(_bytes(trained) * _optimizer_share(config)),
        averaged=weights if config.train.ema is not None else 0,
        activations=activations if plan.autocast is None else activations // 2,
        left_out=tuple(note.split(" ", 1)[0] for note in config.notes if " is left out: " in note),
    )


def _build_model(config: Config, offered: dict[str, int]) -> nn.Module:
    """On the meta device, where tensors have shapes and no content; really, where a network cannot be made there."""
    try:
        with torch.device("meta"):
            model = build(config.model, config.trust, **offered)
    except (ConfigError, RuntimeError, NotImplementedError):
        model = build(config.model, config.trust, **offered)
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model._target_={config.model.target} must return a Module, got {type(model).__name__}")
    return model


def _activations(model: nn.Module, shape: tuple[int, int, int, int], num_classes: int) -> int:
    """The bytes that a training step keeps for its way back, each storage once.

    Raises:
        ConfigError: the model does not take these images, or gives other than (N, num_classes).
    """
    parameter = next(model.parameters(), None)
    device = "cpu" if parameter is None else parameter.device
    kept: dict[int, int] = {}
    own = {_storage(tensor) for tensor in model.state_dict(keep_vars=True).values()}
    model.train()
    with _seen(kept, own):
        try:
            logits = model(torch.zeros(shape, device=device))
        except Exception as error:  # whatever a network of any kind says to images that it cannot take
            size, reason = "x".join(map(str, shape[1:])), str(error).strip().split("\n")[0]
            raise ConfigError(
                f"model {type(model).__name__} does not take images of {size}: {reason}. Try another dataset.image_size"
            ) from error
    if tuple(logits.shape) != (shape[0], num_classes):
        raise ConfigError(
            f"model {type(model).__name__} must give ({shape[0]}, {num_classes}) logits, got {tuple(logits.shape)}"
        )
    return sum(kept.values())


@contextlib.contextmanager
def _seen(kept: dict[int, int], own: set[int]) -> Iterator[None]:
    alive: list[Tensor] = []  # else another tensor might take a freed one's place

    def pack(tensor: Tensor) -> Tensor:
        if (storage := _storage(tensor)) not in own:
            alive.append(tensor)
            kept[storage] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _optimizer_share(config: Config) -> float:
    """Bytes of the optimizer's state for one of the weights', found by a step on one small layer."""
    layer = nn.Linear(64, 64, bias=False)
    optimizer = build_optimizer(config.optim, layer, config.trust)
    layer(torch.ones(1, 64)).sum().backward()
    optimizer.step()
    state: list[Any] = [value for values in optimizer.state.values() for value in values.values()]
    tensors = [value for value in state if isinstance(value, Tensor) and value.numel() > 1]
    return _bytes(tensors) / _bytes([layer.weight])


def _bytes(tensors: list[Any]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
