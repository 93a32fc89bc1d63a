"""A checkpoint whose network is used again as it was trained: under which config, and for what data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tinyexp.config import Config
from tinyexp.errors import ConfigError
from tinyexp.network import Described
from tinyexp.overrides import parse
from tinyexp.stored import check_stored, recompose
from tinyexp.weights import read_weights

OF_TRAINING = frozenset(("run.dir", "resume", "init_from"))
_LEARNED = OF_TRAINING | {"dataset.mean", "dataset.std", "dataset.normalize", "config_file"}


def read_trained(path: str | Path) -> tuple[dict[str, Any], str]:
    """A checkpoint of ours, or that of a run's best.pt; and its file's name.

    Raises:
        ConfigError: there is no such file, or it has weights alone.
        IntegrityError: it is damaged, or holds more than tensors and plain values.
    """
    weights = read_weights(path)
    if weights.checkpoint is None:
        raise ConfigError(
            f"{weights.origin} has weights alone, without the class names, the image size, the normalisation and the "
            "network's config: a checkpoint that tinyexp wrote has them. "
            f"`tinyexp eval {weights.origin} model=... dataset=...` scores such a file"
        )
    return weights.checkpoint, weights.origin


def config_of(checkpoint: dict[str, Any], words: Sequence[str], verb: str) -> Config:
    """A checkpoint's own config with a command line's overrides; images are normalised as its network learned them.

    Args:
        verb: for messages.

    Raises:
        ConfigError: overrides that do not fit or change nothing, or a class that a file may not name.
    """
    if wrong := parse(words).given & _LEARNED:
        raise ConfigError(
            f"{min(wrong)} changes nothing in {verb}, which takes the network as it was trained: leave it out"
        )
    check_stored(checkpoint["config"], words)
    config = recompose(checkpoint["config"], words)
    known = checkpoint["data"]
    loader = replace(config.loader, normalize="given", mean=tuple(known["mean"]), std=tuple(known["std"]))
    return replace(config, loader=loader)


def described(checkpoint: dict[str, Any], config: Config) -> Described:
    """The data that the network takes: the checkpoint's, at the config's size, which may be another."""
    data, size = checkpoint["data"], config.loader.image_size
    return Described(
        classes=tuple(data["classes"]),
        image_shape=(data["image_shape"][0], size, size),
        mean=config.loader.mean,
        std=config.loader.std,
    )
