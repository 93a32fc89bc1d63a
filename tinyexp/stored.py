"""Configs that are read back, a run's or a config_file: values alone, and no word on what code to run.

A class that only such a file names is not trusted: targets.py asks what its name leads to.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from tinyexp.config import SLOTS, Component, Config
from tinyexp.errors import ConfigError
from tinyexp.hydraconf import apply, by_hydra, to_plain
from tinyexp.keys import blaming, flatten
from tinyexp.overrides import CONF, GROUPS, Overrides, parse, word
from tinyexp.plainfile import read
from tinyexp.typed import typed
from tinyexp.validate import mapping, named_by_conf, validate

# of a command and not of a run
_PLACE = ("hw.procs", "hw.nodes", "hw.node", "hw.master", "hw.max_restarts", "hw.join_timeout")

# What a config_file does not say: whom to trust, and where the runs of whoever reads it go
_NOT_FROM_FILES = ("resume", "config_file", "trust", "run.dir", "sweep.dir")


def recompose(stored: dict[str, Any], words: Sequence[str]) -> Config:
    """The Config of a whole config read back, with a command line's overrides on top.

    A class that only the stored config names is marked as not trusted, whatever the stored config's own `trust` says.
    Keys of ours that the stored config has not (it may come from an older version) take conf/'s values.

    Raises:
        ConfigError: as compose, or an interpolation in the stored config: what is read back is values alone.
    """
    overrides = parse(words)
    if missing := [key for key in (*SLOTS, "train") if key not in stored]:
        raise ConfigError(f"{missing[0]} is missing in a config that is read back: it is not whole")
    if "experiment" in overrides.given:
        raise ConfigError("experiment= makes a whole config, and this one is read back: give single keys instead")
    _refuse_interpolations(stored)
    dataset = mapping(stored["dataset"], "dataset")
    ours = read(CONF / "dataset" / "_loader.yaml")["cache_dir"]
    theirs = dataset.get("cache_dir", ours)
    if isinstance(theirs, str) and not Path(theirs).expanduser().is_dir():  # another machine's, and none is made there
        dataset = {**dataset, "cache_dir": ours}
    hw = {key: value for key, value in mapping(stored.get("hw", {}), "hw").items() if f"hw.{key}" not in _PLACE}
    config = _over({**stored, "dataset": dataset, "hw": hw, "trust": []}, {}, overrides, whole=True)
    told = overrides.given & {"dataset", "dataset.root", "dataset.archive", "dataset.cache_dir"}
    at_home = config.dataset.arguments.get("root") is None and config.loader.cache_dir == ours
    config = replace(config, may_fetch=bool(told) or at_home)
    if theirs == config.loader.cache_dir or "dataset.cache_dir" in told:
        return config
    note = f"dataset.cache_dir={theirs} of the stored config is not here: {config.loader.cache_dir} is taken"
    return replace(config, notes=(*config.notes, note))


def compose_file(path: Path, overrides: Overrides) -> Config:
    """The values of a config_file in place of conf/'s, then the command line's.

    A group in it is a choice's name, some keys of that choice, or with a `_target_` the whole group.

    Raises:
        ConfigError: as recompose, with the file's name where it gave the key.
    """
    if "experiment" in overrides.given:
        raise ConfigError("experiment= and config_file= are both the base of a config: take one of them")
    named, stored = read_config_file(path)
    sources = {key: str(path) for key in (*flatten(stored), *named) if key not in overrides.given}
    with blaming({**sources, "run": str(path)}):
        run = mapping(stored.pop("run", {}), "run")
        root = run.pop("root", None)  # where runs go is for the command line to say
        if overrides.given & {"dataset", "model"}:
            run.pop("name", None)  # it is named by what it is
        stored["run"] = run
        config = _over(stored, named, overrides, sources=sources)
    if root is None or root == config.run.root or "run.root" in overrides.given:
        return config
    return replace(config, notes=(f"run.root={root} of {path} is not taken: give it on the command line",))


def read_config_file(path: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """The groups that a file chooses by name, and its other values, nested: 'optim.lr' is optim's lr.

    Raises:
        ConfigError: it cannot be read, or holds an interpolation.
    """
    values = read(path)
    named = {key: value for key, value in values.items() if key in GROUPS and isinstance(value, str)}
    if "experiment" in named:
        raise ConfigError(f"experiment={named['experiment']} is the base of a config itself (in {path})")
    nested = OmegaConf.create()
    with blaming(dict.fromkeys(flatten(values), str(path))):
        _refuse_interpolations(values)
        for key, value in values.items():
            if key not in named and not (value is None and key in GROUPS):
                OmegaConf.update(nested, key, value, merge=True, force_add=True)
    for key in _NOT_FROM_FILES:
        group, _, leaf = key.rpartition(".")
        holder = OmegaConf.select(nested, group) if group else nested
        if OmegaConf.is_dict(holder):
            holder.pop(leaf, None)
    plain = OmegaConf.to_container(nested, resolve=False)
    assert isinstance(plain, dict)
    return named, {str(key): value for key, value in plain.items()}


def check_stored(stored: dict[str, Any], words: Sequence[str]) -> None:
    """The trust rule alone, for those who show a config that is read back or take only a part of it.

    Args:
        words: a command line; `trust=[...]` counts, and a class that it gives itself replaces the stored one.

    Raises:
        ConfigError: a class that a file may not name.
    """
    overrides = parse(words)
    trust = typed(tuple[str, ...], overrides.value("trust") or [], "trust")
    for slot in SLOTS:
        chosen = any(one.key_or_group == slot and not isinstance(one.value(), dict) for one in overrides.each)
        if chosen or f"{slot}._target_" in overrides.given:
            continue
        values = stored.get(slot)
        name = values.get("_target_") if isinstance(values, dict) else None
        if isinstance(name, str) and name not in named_by_conf(slot, (CONF,)):
            from tinyexp.targets import resolve  # asks the thing itself, which takes torch

            resolve(Component(slot=slot, target=name, arguments={}, trusted=False), trust)


def check_run(path: str, words: Sequence[str]) -> None:
    """check_stored for a run's directory, whose config.yaml says what its checkpoint does; a checkpoint has its own."""
    if (config := Path(path) / "config.yaml").is_file():
        check_stored(read(config), words)


def _over(
    stored: dict[str, Any],
    named: Mapping[str, str],
    overrides: Overrides,
    *,
    whole: bool = False,
    sources: dict[str, str] | None = None,
) -> Config:
    """A Config of stored values over conf/'s, with the overrides on top; a group that they choose is theirs.

    Args:
        named: groups of which `stored` chooses conf/'s by name.
        whole: a class's group in `stored` is all of it, else only where it has a `_target_`.
    """
    if overrides.swept:
        raise ConfigError(f"{overrides.swept} gives several values, and one is needed")
    theirs, rest = overrides.split()
    given = {key: value for key, value in stored.items() if key not in theirs.given}
    replaced = {slot for slot in SLOTS if slot in given and (whole or "_target_" in _keys(given[slot]))}
    choices = [word(key, value) for key, value in named.items() if key not in theirs.given]
    config, _ = by_hydra([*choices, *theirs.words])
    for key, value in given.items():
        before = OmegaConf.to_container(config[key]) if key in config and OmegaConf.is_dict(config[key]) else None
        config[key] = value if key in replaced else _merged(before, value)
    for override in rest.each:
        apply(config, override)
    retargeted = frozenset(slot for slot in SLOTS if f"{slot}._target_" in overrides.given)
    plain = to_plain(config)
    return validate(
        plain,
        folders=overrides.folders,
        trusted=frozenset(SLOTS) - replaced | retargeted,
        inherited={
            slot: frozenset(key for key in mapping(plain[slot], slot) if f"{slot}.{key}" not in overrides.given)
            for slot in retargeted
        },
        sources=sources or {},
    )


def _keys(value: Any) -> Iterable[str]:
    return value if isinstance(value, dict) else ()


def _merged(before: Any, value: Any) -> Any:
    """A mapping's values over another's; all else replaces what was there."""
    if not isinstance(before, dict) or not isinstance(value, dict):
        return value
    return {**before, **{key: _merged(before.get(key), item) for key, item in value.items()}}


def _refuse_interpolations(stored: dict[str, Any]) -> None:
    for key, value in flatten(stored).items():
        if value == "???":
            raise ConfigError(f"{key} must be given: a config that is read back has a value for each of its keys")
        if "${" in str(value):  # a list is a value here, with the texts in it
            raise ConfigError(
                f"{key}={value!r} in a config that is read back: it may hold values only, no interpolation"
            )
