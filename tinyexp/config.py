"""The keys of a run that are ours, with types and bounds. Their values stand in conf/, never here.

Standard library only: a wrong value is told before torch is imported.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal, TypeVar

from tinyexp.errors import ConfigError, did_you_mean

T = TypeVar("T")


def _require(holds: bool, key: str, rule: str, got: object) -> None:
    if not holds:
        raise ConfigError(f"{key} must be {rule}, got {got!r}")


@dataclass(frozen=True, kw_only=True)
class EarlyStop:
    patience: int | None
    min_delta: float

    def __post_init__(self) -> None:
        _require(self.patience is None or self.patience >= 1, "train.early_stop.patience", "at least 1", self.patience)
        _require(self.min_delta >= 0, "train.early_stop.min_delta", "at least 0", self.min_delta)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    epochs: int
    batch_size: int
    eval_batch_size: int
    accumulate: int
    seed: int
    precision: Literal["auto", "fp32", "bf16", "fp16"]
    label_smoothing: float
    clip_norm: float | None
    ema: float | None
    limit_batches: int | None
    max_time: float | None
    early_stop: EarlyStop
    compile: bool
    deterministic: bool

    def __post_init__(self) -> None:
        for key in ("epochs", "batch_size", "eval_batch_size", "accumulate"):
            _require(getattr(self, key) >= 1, f"train.{key}", "at least 1", getattr(self, key))
        for key in ("clip_norm", "limit_batches", "max_time"):
            value = getattr(self, key)
            _require(value is None or value > 0, f"train.{key}", "above 0, or null", value)
        _require(self.accumulate <= self.batch_size, "train.accumulate", "at most train.batch_size", self.accumulate)
        _require(0 <= self.seed < 2**63, "train.seed", "at least 0 and below 2**63", self.seed)
        _require(0 <= self.label_smoothing < 1, "train.label_smoothing", "in [0, 1)", self.label_smoothing)
        _require(self.ema is None or 0 < self.ema < 1, "train.ema", "between 0 and 1, or null", self.ema)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    dir: str | None
    name: str | None
    root: str

    def __post_init__(self) -> None:
        name = self.name
        plain = name is None or (
            0 < len(name) <= 100 and name[0] != "." and all(c.isalnum() or c in "._-+" for c in name)
        )
        _require(plain, "run.name", "1 to 100 letters, digits or ._-+ and not begin with a dot", name)
        for key, path in (("run.dir", self.dir), ("run.root", self.root)):
            good = path is None or (path != "" and all(c.isprintable() for c in path))
            _require(good, key, "a path of printable characters", path)


@dataclass(frozen=True, kw_only=True)
class TensorBoardConfig:
    scalars: bool
    hparams: bool


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    level: Literal["debug", "info", "warning", "error"]
    every: int
    tensorboard: TensorBoardConfig

    def __post_init__(self) -> None:
        _require(self.every >= 1, "log.every", "at least 1 step", self.every)


@dataclass(frozen=True, kw_only=True)
class CkptConfig:
    every_minutes: float | None
    monitor: Literal["val/top1", "val/loss"]
    keep: int

    def __post_init__(self) -> None:
        _require(
            self.every_minutes is None or self.every_minutes >= 0,
            "ckpt.every_minutes",
            "at least 0, or null",
            self.every_minutes,
        )
        _require(self.keep >= 0, "ckpt.keep", "at least 0", self.keep)


@dataclass(frozen=True, kw_only=True)
class HwConfig:
    device: Literal["auto", "cpu", "cuda", "mps"]
    threads: int | None
    timeout: float

    def __post_init__(self) -> None:
        _require(self.threads is None or self.threads >= 1, "hw.threads", "at least 1, or null", self.threads)
        _require(self.timeout > 0, "hw.timeout", "above 0 seconds", self.timeout)


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """The keys that each data set has: how its batches are read, whatever they come from."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    workers: int
    start_method: Literal["fork", "spawn", "forkserver"] | None
    crop_padding: int
    flip: bool

    def __post_init__(self) -> None:
        _require(self.workers >= 0, "dataset.workers", "at least 0", self.workers)
        _require(self.crop_padding >= 0, "dataset.crop_padding", "at least 0 px", self.crop_padding)
        _require(all(s > 0 for s in self.std), "dataset.std", "above 0 for each channel", self.std)
        _require(
            len(self.mean) == len(self.std) >= 1, "dataset.mean and dataset.std", "of one length", (self.mean, self.std)
        )


@dataclass(frozen=True, kw_only=True)
class Component:
    """A class or function by its dotted name, and the keyword arguments that a YAML gives it."""

    slot: str
    target: str
    arguments: dict[str, Any]
    trusted: bool  # the user's own word (command line, conf/), not read back from a file
    inherited: frozenset[str] = frozenset()  # arguments of the YAML's target, left out where another does not take them


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole run: typed for the program, plain (JSON types) for the checkpoint, text (YAML) for config.yaml."""

    dataset: Component
    loader: LoaderConfig
    model: Component
    optim: Component
    scheduler: Component
    train: TrainConfig
    run: RunConfig
    log: LogConfig
    ckpt: CkptConfig
    hw: HwConfig
    resume: str | None
    init_from: str | None
    trust: tuple[str, ...]
    plain: dict[str, Any]
    text: str


SLOTS = ("dataset", "model", "optim", "scheduler")
CHANGEABLE = (
    "train.epochs",
    "train.max_time",
    "hw.",
    "log.",
    "ckpt.",
    "dataset.root",
    "dataset.cache_dir",
    "dataset.workers",
    "dataset.start_method",
)


def parse(kind: type[T], values: Mapping[str, Any], prefix: str) -> T:
    """A dataclass of ours from plain values, each checked against its type; `prefix` is the group's key.

    Raises:
        ConfigError: an unknown or missing key, a wrong type, or a value out of bounds, by its full name.
    """
    hints = typing.get_type_hints(kind)
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    for key in values:
        if key not in names:
            raise ConfigError(f"{prefix}.{key} is no key{did_you_mean(str(key), names)}")
    if missing := [name for name in names if name not in values]:
        raise ConfigError(f"{prefix}.{missing[0]} is missing")
    return kind(**{name: _typed(hints[name], values[name], f"{prefix}.{name}") for name in names})


def _typed(hint: Any, value: Any, key: str) -> Any:
    """The value in its annotation's type: an int is taken for a float, a list for a tuple; no other conversion."""
    if is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{key} must be a mapping, got {value!r}")
        return parse(typing.cast(type, hint), value, key)
    options = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
    for option in options:
        origin = typing.get_origin(option)
        if origin is Literal and value in typing.get_args(option) and not isinstance(value, bool):
            return value
        if origin is tuple and isinstance(value, (list, tuple)):
            inner = typing.get_args(option)[0]
            return tuple(_typed(inner, item, f"{key}[{i}]") for i, item in enumerate(value))
        if option is float and isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        if isinstance(option, type) and origin is None and type(value) is option:
            return value
    raise ConfigError(f"{key} must be {' or '.join(_spelled(option) for option in options)}, got {value!r}")


def _spelled(hint: Any) -> str:
    if hint is type(None):
        return "null"
    if typing.get_origin(hint) is Literal:
        return " | ".join(map(str, typing.get_args(hint)))
    if typing.get_origin(hint) is tuple:
        return f"a list of {_spelled(typing.get_args(hint)[0])}"
    return {int: "an integer", float: "a number", str: "text", bool: "true or false"}.get(hint, str(hint))


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{'optim': {'lr': 1}} -> {'optim.lr': 1}; a list is a value."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def changed_keys(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The full names of keys whose values differ and that a resumed run may not change."""
    old, new = flatten(before), flatten(now)
    differ = [key for key in {**old, **new} if key not in old or key not in new or old[key] != new[key]]
    own = ("run.", "resume", "trust")
    return [
        key
        for key in differ
        if not key.startswith(own) and not any(key == c or (c[-1] == "." and key.startswith(c)) for c in CHANGEABLE)
    ]
