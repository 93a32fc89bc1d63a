"""A run, or one checkpoint, for a notebook: what it left on the disk, and its network with the best weights."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import torch
from torch import nn

from tinyexp.dist import Dist
from tinyexp.errors import ConfigError, DataError
from tinyexp.network import Network
from tinyexp.overrides import word
from tinyexp.predictor import TOPK, Failure, Prediction, Predictor
from tinyexp.saved import SavedRun
from tinyexp.stored import check_stored
from tinyexp.trained import config_of, read_trained


class LoadedRun(SavedRun):
    """A run's config, summary, history, and its network on the CPU; each is read when it is first asked for.

    A checkpoint's file has config, classes and network, and nothing of what its run logged.

    Args:
        path: the run's directory, or a checkpoint.
        trust: patterns of class names outside torch, torchvision and tinyexp that its files may name, as mypkg.*.

    Raises:
        ConfigError: neither of them, or one that names a class that it may not name.
        IntegrityError: the checkpoint is damaged.
    """

    def __init__(self, path: str | Path, trust: Sequence[str] = ()) -> None:
        super().__init__(Path(path))
        self._words = [word("trust", list(trust))]
        self._is_run = (self.path / "config.yaml").is_file()
        if not self._is_run and self.path.is_dir() and not (self.path / "checkpoints" / "best.pt").is_file():
            raise ConfigError(
                f"{path} has no config.yaml: tinyexp.load takes a run's directory, as outputs/RUN, or a checkpoint"
            )
        check_stored(self.config, self._words)

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.yaml, nested as it stands there; what the checkpoint has of it where that is all there is.

        Raises:
            ConfigError: it is no mapping of plain values.
        """
        if self._is_run:
            return super().config
        config: dict[str, Any] = self._checkpoint["config"]
        return config

    @cached_property
    def summary(self) -> dict[str, Any]:
        self._need_run("summary")
        return super().summary

    @cached_property
    def history(self) -> list[dict[str, Any]]:
        """The whole lines of metrics.jsonl, without one that is being written.

        Raises:
            ConfigError: a line is no JSON object of finite numbers, by its number; or this is a checkpoint alone.
        """
        self._need_run("history")
        return super().history

    @cached_property
    def environment(self) -> dict[str, Any]:
        """env.json of the newest process: each resume has its own."""
        self._need_run("environment")
        return super().environment

    @cached_property
    def patch(self) -> str:
        """What the newest process's code differed by from its commit; "" where it did not, or too much to be kept."""
        self._need_run("patch")
        return super().patch

    @property
    def classes(self) -> list[str]:
        """The names behind the logits, in their order."""
        return list(self._checkpoint["data"]["classes"])

    @property
    def model(self) -> nn.Module:
        """The bare model with the weights of best.pt, in eval mode: normalised float images in, logits out."""
        return self.network.model

    @property
    def network(self) -> Network:
        """The model with its normalisation: uint8 images (N, C, H, W) in, logits (N, classes) out, in fp32.

        Raises:
            ConfigError: there is no best.pt yet.
            IntegrityError: it is damaged.
        """
        return self._predictor.network

    @overload
    def predict(self, images: str | Path, topk: int = TOPK) -> Prediction: ...

    @overload
    def predict(self, images: list[str] | list[Path], topk: int = TOPK) -> list[Prediction]: ...

    def predict(self, images: str | Path | list[str] | list[Path], topk: int = TOPK) -> Prediction | list[Prediction]:
        """What the network takes an image file for, or each of several; `topk` labels at most.

        Raises:
            ConfigError: as `network`; `topk` is below 1.
            DataError: a file that is not there or cannot be decoded.
        """
        if topk < 1:
            raise ConfigError(f"topk must be at least 1, got {topk}")
        alone = isinstance(images, (str, Path))
        paths = [images] if isinstance(images, (str, Path)) else images
        found: list[Prediction] = []
        for each in self._predictor.files([str(path) for path in paths], topk):
            if isinstance(each, Failure):
                raise DataError(each.reason)
            found.append(each)
        return found[0] if alone else found

    @cached_property
    def _predictor(self) -> Predictor:
        config = config_of(self._checkpoint, [*self._words, "train.precision=fp32"], "load")
        return Predictor(self._checkpoint, config, Dist(torch.device("cpu")), str(self.path))

    @cached_property
    def _checkpoint(self) -> dict[str, Any]:
        return read_trained(self.path)[0]

    def _need_run(self, what: str) -> None:
        if self.path.is_file():
            raise ConfigError(f"{what} is of a run, and {self.path} is a checkpoint alone: load its run's directory")
