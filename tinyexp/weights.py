"""Weights from a file of any origin: a checkpoint of ours, or a state dict as other programs save it."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tinyexp.checkpoint import check_ours, plain, read_checked, weights_to_use
from tinyexp.errors import ConfigError, IntegrityError
from tinyexp.saved import WEIGHTS, find_checkpoint
from tinyexp.transfer import Weights

_OURS = {"format", "state", "config", "data"}  # of a checkpoint of ours
_INSIDE = ("state_dict", "model_state_dict", "model")  # where other programs' checkpoints have their state dict
_WRAPPED = ("module.", "_orig_mod.")  # what DDP and torch.compile put before each name


def read_weights(path: str | Path) -> Weights:
    """The weights in a file, or those of a run's best.pt.

    A state dict may stand under state_dict, model_state_dict or model, and its names begin with module. or _orig_mod.
    Whatever it is, it is read as tensors and plain values.

    Raises:
        ConfigError: there is no such file, or it holds no state dict.
        IntegrityError: it is damaged, or holds more than tensors and plain values.
    """
    found = find_checkpoint(str(Path(path).expanduser()), "best")
    if found.suffix not in WEIGHTS:
        raise ConfigError(f"{found} must end in {', '.join(WEIGHTS)}, or be a run's directory")
    if found.suffix == ".safetensors":
        return _read_safetensors(found)
    content = plain(_read(found), str(found))
    if Path(path).is_dir() or (isinstance(content, dict) and len(_OURS & content.keys()) > 1):
        return of_checkpoint(check_ours(content, str(found)), str(found))
    return Weights(tensors=_bare(_state_dict(content, found)), origin=str(found))


def of_checkpoint(checkpoint: dict[str, Any], origin: str) -> Weights:
    """What a checkpoint of ours has to use: the averaged weights where there are any."""
    classes = tuple(checkpoint["data"]["classes"])
    return Weights(
        tensors=weights_to_use(checkpoint),
        origin=origin,
        classes=classes,
        names=tuple(checkpoint["data"].get("names", classes)),
        mean=tuple(checkpoint["data"]["mean"]),
        std=tuple(checkpoint["data"]["std"]),
        checkpoint=checkpoint,
    )


def _read(path: Path) -> bytes:
    """Raises as read_checked. Files of torch before 1.6 are no zips, and have no checksums."""
    if zipfile.is_zipfile(path) or not path.is_file():
        return read_checked(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error


def _read_safetensors(path: Path) -> Weights:
    """With the classes that our own exports name."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            about = file.metadata() or {}
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from error
    except (SafetensorError, ValueError, KeyError) as error:
        raise IntegrityError(f"{path} is damaged or no safetensors file: {error}") from error
    classes, names = (_names(about.get(key)) if "tinyexp" in about else None for key in ("classes", "names"))
    mean, std = (_numbers(about.get(key)) if "tinyexp" in about else None for key in ("mean", "std"))
    found = _bare(_state_dict(tensors, path))
    return Weights(tensors=found, origin=str(path), classes=classes, names=names, mean=mean, std=std)


def _names(text: str | None) -> tuple[str, ...] | None:
    """A list of names as JSON."""
    try:
        names = json.loads(text or "")
    except (ValueError, RecursionError):
        return None
    return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def _numbers(text: str | None) -> tuple[float, ...] | None:
    """A list of numbers as JSON."""
    try:
        numbers = json.loads(text or "")
    except (ValueError, RecursionError):
        return None
    plain_ones = isinstance(numbers, list) and all(isinstance(number, (int, float)) for number in numbers)
    return tuple(numbers) if plain_ones else None


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    """Raises ConfigError where there is none."""
    if isinstance(content, dict):
        for inside in (*(content.get(key) for key in _INSIDE), content):
            tensors = {key: value for key, value in _items(inside) if isinstance(value, Tensor)}
            if tensors:
                _check_tensors(tensors, path)
                return tensors
    raise ConfigError(
        f"{path} has no state dict: it must be one, or have one under {', '.join(_INSIDE)}, "
        f"got {sorted(map(str, content))[:5] if isinstance(content, dict) else type(content).__name__}"
    )


def _check_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Raises ConfigError for what is no plain tensor of real numbers."""
    for name, tensor in tensors.items():
        plain_one = tensor.layout is torch.strided and not tensor.is_quantized and not tensor.is_meta
        if not plain_one or tensor.is_complex():
            kind = f"{tensor.dtype}, {tensor.layout}, on {tensor.device}"
            raise ConfigError(f"{path}: {name} must be a plain tensor of real numbers, got {kind}: save it as one")


def _items(value: Any) -> list[tuple[str, Any]]:
    return [(key, item) for key, item in value.items() if isinstance(key, str)] if isinstance(value, dict) else []


def _bare(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _WRAPPED * 2:  # either may be around the other
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors
