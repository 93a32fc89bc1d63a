"""A run for a notebook: what it left on the disk, and its network with the best weights."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tinyexp.checkpoint import load, weights_to_use
from tinyexp.dist import Dist
from tinyexp.errors import ConfigError
from tinyexp.network import Described, Network
from tinyexp.overrides import word
from tinyexp.saved import SavedRun, find_checkpoint
from tinyexp.stored import check_stored, recompose


class LoadedRun(SavedRun):
    """A run's config, summary, history, and its network on the CPU; each is read when it is first asked for.

    Args:
        path: the run's directory.
        trust: patterns of class names outside torch, torchvision and tinyexp that its files may name, as mypkg.*.

    Raises:
        ConfigError: no run's directory, or one that names a class that it may not name.
    """

    def __init__(self, path: str | Path, trust: Sequence[str] = ()) -> None:
        super().__init__(Path(path))
        if not (self.path / "config.yaml").is_file():
            raise ConfigError(f"{path} has no config.yaml: tinyexp.load takes a run's directory, as outputs/RUN")
        self._words = [word("trust", list(trust))]
        check_stored(self.config, self._words)

    @property
    def classes(self) -> list[str]:
        """The names behind the logits, in their order."""
        return list(self._checkpoint["data"]["classes"])

    @property
    def model(self) -> nn.Module:
        """The bare model with the weights of best.pt, in eval mode: normalised float images in, logits out."""
        return self.network.model

    @cached_property
    def network(self) -> Network:
        """The model with its normalisation: uint8 images (N, C, H, W) in, logits (N, classes) out, in fp32.

        Raises:
            ConfigError: there is no best.pt yet.
            IntegrityError: it is damaged.
        """
        checkpoint = self._checkpoint
        check_stored(checkpoint["config"], self._words)
        config = recompose(checkpoint["config"], [*self._words, "train.precision=fp32"])
        data = checkpoint["data"]
        described = Described(
            classes=tuple(data["classes"]),
            image_shape=tuple(data["image_shape"]),
            mean=tuple(data["mean"]),
            std=tuple(data["std"]),
        )
        network = Network.build(config, described, Dist(torch.device("cpu")))
        network.load(weights_to_use(checkpoint), str(self.path))
        return network

    @cached_property
    def _checkpoint(self) -> dict[str, Any]:
        return load(find_checkpoint(str(self.path), "best"))
