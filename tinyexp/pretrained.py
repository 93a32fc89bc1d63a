"""The weights that model.weights names: a file, a run, or those that torchvision or timm offer for the network."""

from __future__ import annotations

import logging
import re
import sys
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor

from tinyexp.config import Component, Config
from tinyexp.data.imagenet import imagenet_ids
from tinyexp.errors import ConfigError, TinyexpError, did_you_mean
from tinyexp.saved import is_place
from tinyexp.transfer import Weights
from tinyexp.weights import read_weights

_ZOO = "tinyexp.models.zoo.torchvision_model"
_TIMM = "tinyexp.models.timm_zoo.timm_model"
_DENSE = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")  # its layers' old names have one dot more
_log = logging.getLogger(__name__)


def find_weights(config: Config) -> Weights | None:
    """What a new run takes over; None where it begins from random weights.

    A named one is looked for in torch.hub's folder, and fetched into it once.

    Raises:
        ConfigError: no such file or name, or it cannot be fetched.
        IntegrityError: it is damaged.
    """
    if config.weights is None or config.transfer.scratch:
        return None
    if is_place(config.weights):
        return read_weights(config.weights)
    target = config.model.target
    if target == _TIMM:
        return _of_timm(config.model, config.weights)
    if target == _ZOO or target.startswith("torchvision.models."):
        name = str(config.model.arguments["name"]) if target == _ZOO else target.rpartition(".")[2]
        return _of_torchvision(name, config.weights)
    raise ConfigError(
        f"model.weights={config.weights}: there are no named weights of {target}; give a file or a run's directory"
    )


def _of_torchvision(model: str, name: str) -> Weights:
    import torchvision

    try:
        offered = {each.name: each for each in torchvision.models.get_model_weights(model)}
    except ValueError:  # a class, which is no network by itself
        offered = {}
    if not offered:
        raise ConfigError(f"model.weights={name}: torchvision has no weights of {model}; give a file")
    chosen = next(iter(offered.values())).__class__.DEFAULT if name == "DEFAULT" else offered.get(name)
    if chosen is None:
        near = did_you_mean(name, [*offered, "DEFAULT"])
        raise ConfigError(f"model.weights={name} is none of {model}'s: {', '.join(offered)}, DEFAULT{near}")
    path = _fetched(chosen.url)
    names = tuple(chosen.meta["categories"])
    classes = imagenet_ids() if len(names) == len(imagenet_ids()) else names
    aside = chosen.transforms()
    ported = model in ("googlenet", "inception_v3")  # from another program; torchvision's own puts a layer before them
    mean, std = ((0.5,) * 3, (0.5,) * 3) if ported else (tuple(aside.mean), tuple(aside.std))
    tensors = _as_now(model, len(names), read_weights(path).tensors)
    return Weights(tensors=tensors, origin=str(path), classes=classes, names=names, mean=mean, std=std)


def _as_now(model: str, num_classes: int, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Under today's names: some files have those of older versions of torchvision, whose networks know them."""
    import torchvision

    more = {"init_weights": False} if model in ("googlenet", "inception_v3") else {}
    made = torchvision.models.get_model(model, weights=None, num_classes=num_classes, **more)
    missing, _ = made.load_state_dict({_DENSE.sub(r"\1\2", name): each for name, each in tensors.items()}, strict=False)
    return {name: tensor for name, tensor in made.state_dict().items() if name not in missing}


def _fetched(url: str) -> Path:
    """A URL's file in torch.hub's folder; where it is not there, downloaded, and checked by the hash in its name."""
    file = url.rpartition("/")[2]
    path = Path(torch.hub.get_dir()) / "checkpoints" / file
    if not path.exists():
        digits = re.search(r"-([0-9a-f]{8,})\.", file)
        _log.info("fetching %s into %s", url, path.parent)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(
                url, str(path), digits.group(1) if digits else None, progress=sys.stderr.isatty()
            )
        except (URLError, OSError) as error:
            raise ConfigError(
                f"{url} cannot be fetched ({getattr(error, 'reason', None) or error}): "
                f"put {file} into {path.parent}, or give model.weights=FILE"
            ) from error
        except RuntimeError as error:  # torch.hub's word for a wrong hash
            raise TinyexpError(f"{url}: {error}; try again") from error
    _log.info("weights: %s", path)
    return path


def _of_timm(model: Component, name: str) -> Weights:
    """timm's own, through its hub's cache."""
    import timm

    from tinyexp.models.timm_zoo import check_name

    if name != "DEFAULT":
        raise ConfigError(f"model.weights={name}: of timm's give DEFAULT, and the tag as model.name=resnet18.a1_in1k")
    full = str(model.arguments["name"])
    try:
        check_name(full)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    try:
        made: Any = timm.create_model(full, pretrained=True)
    except Exception as error:  # of the hub's client, which has many kinds
        reason = str(error).strip().split("\n")[0]
        raise ConfigError(
            f"timm's weights of {full} cannot be fetched into its cache (HF_HOME): {reason}; give model.weights=FILE"
        ) from error
    return Weights(tensors=made.state_dict(), origin=f"timm's {full}")
