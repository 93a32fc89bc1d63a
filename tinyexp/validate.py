"""From plain values to a typed Config: every key known, of its type and within its bounds. Nothing here asks a class.

What a class takes beyond the keys that its YAML lists only its signature tells: see parts.py.
"""

from __future__ import annotations

import functools
import json
import operator
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import GenericAlias
from typing import Annotated, Any

from omegaconf import OmegaConf

from tinyexp.config import (
    PATH,
    SLOTS,
    CkptConfig,
    Component,
    Config,
    HwConfig,
    LoaderConfig,
    LogConfig,
    RunConfig,
    SweepConfig,
    TrainConfig,
    TransferConfig,
)
from tinyexp.errors import ConfigError, did_you_mean
from tinyexp.plainfile import read
from tinyexp.typed import Rule, parse, require, typed

OWN = {
    "train": TrainConfig,
    "run": RunConfig,
    "log": LogConfig,
    "ckpt": CkptConfig,
    "sweep": SweepConfig,
    "transfer": TransferConfig,
    "hw": HwConfig,
}
TEXTS = ("resume", "init_from", "config_file")
TOP = (*SLOTS, *OWN, *TEXTS, "trust")
_LOADER_KEYS = tuple(LoaderConfig.__dataclass_fields__)
_SPAN = Rule("a number of steps, or of epochs as 2ep", lambda text: bool(re.fullmatch(r"\d+(\.\d+)?ep", text)))


def validate(
    plain: dict[str, Any],
    *,
    folders: tuple[Path, ...],
    trusted: frozenset[str],
    inherited: Mapping[str, frozenset[str]],
    sources: Mapping[str, str],
) -> Config:
    """The Config of plain values.

    Args:
        folders: where conf/'s groups are; a key that a class's YAML lists there has the type of its value.
        trusted: the slots whose class is the user's own word, not read back from a file.
        inherited: arguments by slot that come from another class's YAML, to be left out where this one lacks them.
        sources: keys that a file gave, with its name, for errors.

    Raises:
        ConfigError: a key that is unknown or missing, or a value of a wrong type or out of bounds.
    """
    for key in plain:
        if key not in TOP:
            raise ConfigError(_unknown(key))
    if missing := [key for key in TOP if key not in plain]:
        raise ConfigError(f"{missing[0]} is missing")
    if not isinstance(plain["trust"], list) or not all(isinstance(name, str) for name in plain["trust"]):
        raise ConfigError(f"trust must be a list of names such as [mypkg.*], got {plain['trust']!r}")
    plain = {**plain, "dataset": _filled(mapping(plain["dataset"], "dataset"), folders)}
    model = mapping(plain["model"], "model")
    plain["model"] = {**model, "weights": model.get("weights")}
    components: dict[str, Any] = {
        slot: _component(slot, plain[slot], trusted=slot in trusted, inherited=inherited.get(slot, frozenset()))
        for slot in SLOTS
    }
    arguments = components["dataset"].arguments
    loader = {key: arguments.pop(key) for key in _LOADER_KEYS if key in arguments}
    weights = components["model"].arguments.pop("weights")
    for component in components.values():
        _check_types(component, folders)
    own: dict[str, Any] = {group: parse(kind, mapping(plain[group], group), group) for group, kind in OWN.items()}
    begin, epochs = own["transfer"].unfreeze_at, own["train"].epochs
    require(begin is None or begin < epochs, "transfer.unfreeze_at", f"below train.epochs={epochs}", begin)
    return Config(
        **components,
        **own,
        **{key: typed(str | None, plain[key], key) for key in TEXTS},
        loader=parse(LoaderConfig, loader, "dataset"),
        weights=typed(Annotated[str, PATH] | None, weights, "model.weights"),
        trust=tuple(plain["trust"]),
        sources=sources,
        plain=plain,
        text=to_text(plain),
    )


def _filled(dataset: dict[str, Any], folders: tuple[Path, ...]) -> dict[str, Any]:
    """With the keys that each data set has, where a YAML or an older run has not listed them."""
    loader = read(folders[0] / "dataset" / "_loader.yaml")
    augment = dataset.get("augment", {})
    known = {**loader["augment"], **augment} if isinstance(augment, dict) else augment
    return {**loader, **dataset, "augment": known}


def _unknown(key: str) -> str:
    if key == "experiment":
        return "experiment is no key: an experiment's file begins with the line '# @package _global_'"
    group, _, leaf = key.partition(".")
    nested = f": nest it, as {group}: {{{leaf}: ...}}" if leaf and group in TOP else did_you_mean(key, TOP)
    return f"{key} is no key{nested}"


def to_text(plain: Any) -> str:
    """Plain values as config.yaml has them; a single one as it is written there."""
    return OmegaConf.to_yaml(OmegaConf.create(plain)) if isinstance(plain, (dict, list)) else json.dumps(plain)


def group_files(group: str, folders: tuple[Path, ...]) -> dict[str, Path]:
    """The choices of a group, by name; the first folder that has one wins, as in Hydra."""
    found = {}
    for folder in reversed(folders):
        for path in sorted((folder / group).rglob("*.yaml")):
            found[path.relative_to(folder / group).with_suffix("").as_posix()] = path
    return found


def named_by_conf(slot: str, folders: tuple[Path, ...]) -> set[str]:
    """The classes and functions that a group's YAMLs name."""
    return {str(read(path, aliases=True).get("_target_")) for path in group_files(slot, folders).values()}


def mapping(value: Any, key: str) -> dict[str, Any]:
    """Raises ConfigError for what is no mapping."""
    if not isinstance(value, dict):
        raise ConfigError(f"{key} must be a mapping, got {value!r}")
    return value


def _component(slot: str, values: Any, *, trusted: bool, inherited: frozenset[str]) -> Component:
    arguments = dict(mapping(values, slot))
    target = arguments.pop("_target_", None)
    if not isinstance(target, str) or not all(part.isidentifier() for part in target.split(".")):
        raise ConfigError(f"{slot}._target_ must be the dotted name of a class or function, got {target!r}")
    return Component(slot=slot, target=target, arguments=arguments, trusted=trusted, inherited=inherited)


def _check_types(component: Component, folders: tuple[Path, ...]) -> None:
    """Each argument that a YAML of this class lists has the type of a value there; null is the class's to judge."""
    examples: dict[str, list[Any]] = {}
    for values in _listed(component, folders):
        for key, example in values.items():
            examples.setdefault(key, []).append(_hint(component.slot, example))
    for key, hints in examples.items():
        if component.arguments.get(key) is not None and None not in hints:
            both = functools.reduce(operator.or_, hints)
            typed(both, component.arguments[key], f"{component.slot}.{key}")


def _listed(component: Component, folders: tuple[Path, ...]) -> Iterator[dict[str, Any]]:
    """What each YAML of this class says."""
    for path in group_files(component.slot, folders).values():
        if component.target in path.read_text(encoding="utf-8"):
            values = read(path, aliases=True)
            if values.get("_target_") == component.target:
                yield {key: value for key, value in values.items() if key not in ("_target_", "defaults")}


def _hint(slot: str, example: Any) -> Any:
    """The annotation that an example stands for; None where it says nothing of the type.

    An integer stands for any number: whether 0.5 will do where a YAML says 1, the class's own annotation tells.
    """
    if slot == "scheduler" and (type(example) is int or (isinstance(example, str) and _SPAN.holds(example))):
        return float | Annotated[str, _SPAN]
    if isinstance(example, list) and example and (inner := _hint(slot, example[0])) is not None:
        return GenericAlias(tuple, (inner, ...))
    if isinstance(example, bool):
        return bool
    if isinstance(example, (int, float)):
        return float
    return str if isinstance(example, str) and example != "???" and "${" not in example else None
