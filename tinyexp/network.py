"""What turns uint8 images into logits: a model, its normalisation and precision. Training, val and eval share it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from tinyexp.config import Config
from tinyexp.device import Normalizer, Traits, fast_bf16, seed_all, traits
from tinyexp.dist import Dist
from tinyexp.errors import ConfigError
from tinyexp.heads import find_head
from tinyexp.targets import build

OFFERED = ("num_classes", "in_channels", "image_size")  # what a model's signature may ask of the data


class Seen(Protocol):
    """What a network must know of its data."""

    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def image_shape(self) -> tuple[int, int, int]: ...  # (C, H, W)
    @property
    def mean(self) -> tuple[float, ...]: ...
    @property
    def std(self) -> tuple[float, ...]: ...


@dataclass(frozen=True, kw_only=True)
class Described:
    """The same, of data that is not there: as a checkpoint describes it."""

    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Network:
    """uint8 images in, logits out: a bare model, and how it is called on this device."""

    model: nn.Module
    forward: Callable[[Tensor], Tensor]  # the model itself, or DDP or a compiled function around it
    normalize: Callable[[Tensor], Tensor]
    traits: Traits
    head: str = ""  # the name of the layer that gives the logits, where there is one
    tail: str = ""  # the name of the part that `forward` runs; "": all of it

    def __call__(self, images: Tensor) -> Tensor:
        """(N, C, H, W) uint8 -> (N, classes) float32, on the device."""
        with torch.autocast(self.traits.device.type, self.traits.autocast, enabled=self.traits.autocast is not None):
            logits = self.forward(self.normalize(images))
        return logits.float()

    def to_device(self, labels: Tensor) -> Tensor:
        return labels.to(self.traits.device, non_blocking=self.traits.pin_memory)

    def summary(self) -> str:
        precision = "fp32" if self.traits.autocast is None else str(self.traits.autocast).removeprefix("torch.")
        return f"{type(self.model).__name__} in {precision} on {self.traits.device}"

    def load(self, weights: dict[str, Tensor], origin: str) -> None:
        """Take these weights. Raises ConfigError, which names their origin, when they are another network's."""
        try:
            self.model.load_state_dict(weights)
        except RuntimeError as error:
            raise ConfigError(f"{origin} has the weights of another network: {error}") from error

    def of(self, model: nn.Module) -> Network:
        """Another model of this kind, called bare."""
        return replace(self, model=model, forward=model.get_submodule(self.tail))

    def calling(self, forward: Callable[[Tensor], Tensor]) -> Network:
        """The same model, called through a wrapper."""
        return replace(self, forward=forward)

    def check(self, image_shape: tuple[int, int, int], num_classes: int) -> str:
        """Try it on two black images; returns the name of its head.

        Raises:
            ConfigError: it does not take them, or gives no (2, num_classes).
        """
        self.model.eval()
        name, shape = type(self.model).__name__, "x".join(map(str, image_shape))
        try:
            with torch.no_grad():
                black = torch.zeros(2, *image_shape, dtype=torch.uint8)
                logits, head = find_head(self.model, num_classes, lambda: self(black))
        except Exception as error:  # whatever a network of any kind says to images that it cannot take
            reason = str(error).strip().split("\n")[0]
            raise ConfigError(
                f"model {name} does not take images of {shape}: {reason}. Try another dataset.image_size"
            ) from error
        if logits.shape != (2, num_classes):
            raise ConfigError(
                f"model {name} must give (2, {num_classes}) logits for 2 images, got {tuple(logits.shape)}. "
                f"num_classes is passed where the signature shows it; else try +model.num_classes={num_classes}"
            )
        return head

    @staticmethod
    def build(config: Config, data: Seen, dist: Dist) -> Network:
        """The config's model with weights that follow from the seed, for this data and device.

        Raises:
            ConfigError: no such model, arguments that it does not take, or not a network for this data.
        """
        channels, height, width = data.image_shape
        plan = traits(dist.device, config.train.precision, height * width, fast_bf16(dist.device))
        seed_all(torch.device("cpu"), config.train.seed)  # on the CPU, so that the weights are the same for each device
        offered = dict(zip(OFFERED, (len(data.classes), channels, height), strict=True))
        model: nn.Module = build(config.model, config.trust, **offered)
        if not isinstance(model, nn.Module):
            name = config.model.target
            raise ConfigError(f"model._target_={name} must return a Module, got {type(model).__name__}")
        if config.hw.sync_bn and dist.world > 1:
            if dist.device.type != "cuda":
                raise ConfigError(f"hw.sync_bn is for cuda, and this is {dist.device.type}: leave it out")
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        layout = torch.channels_last if plan.channels_last else torch.contiguous_format
        model = model.to(plan.device, memory_format=layout)  # type: ignore[call-overload]
        network = Network(model=model, forward=model, normalize=Normalizer(data.mean, data.std, plan), traits=plan)
        return replace(network, head=network.check(data.image_shape, len(data.classes)))
