"""From a command line, or a config read back, to a typed Config; for a sweep, to one for each of its jobs.

Nothing here imports torch, so that a typo costs half a second and no more.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tinyexp.config import SLOTS, Component, Config, blaming, changed_keys, flatten, typed
from tinyexp.errors import ConfigError, did_you_mean
from tinyexp.overrides import CONF, Overrides, jobs, parse, word
from tinyexp.validate import group_files, mapping, named_by_conf, read, validate

GROUPS = (*SLOTS, "hw", "experiment")
# 1.3 warns without version_base, 1.4 warns with it
_VERSION: dict[str, Any] = {"version_base": "1.3"} if hydra.__version__.startswith("1.3.") else {}
# What a config_file does not say: where its own run went, and whom to trust
_NOT_FROM_FILES = ("resume", "config_file", "trust", "sweep")


def compose(words: Sequence[str]) -> Config:
    """The Config of a command line's overrides over conf/.

    Raises:
        ConfigError: an unknown group, choice or key, a wrong type or value, or a malformed override.
    """
    return _compose(parse(words))


@dataclass(frozen=True)
class SweepJob:
    """One run of a sweep: its words, the values that differ from job to job, and what they make."""

    words: tuple[str, ...]
    label: dict[str, str]
    config: Config


def compose_sweep(words: Sequence[str]) -> list[SweepJob]:
    """All jobs of a sweep, every one of them composed and so checked: those of the words and of `sweep.grid`.

    Raises:
        ConfigError: as compose, for any of the jobs; or a key that is for single runs.
    """
    overrides = parse(words)
    for key, instead in (("run.dir", "sweep.dir"), ("resume", "one run at a time")):
        if key in overrides.given:
            raise ConfigError(f"{key} is for one run, and -m makes several: use {instead}")
    found = []
    for outer in jobs(overrides, {}):
        config = _compose(parse(outer.words))
        inner = jobs(parse(outer.words), config.sweep.grid) if config.sweep.grid else [outer]
        for job in inner:
            each = config if job is outer else _compose(parse(job.words))
            found.append(SweepJob(job.words, {**outer.label, **job.label}, each))
    return found


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
    mapping(stored["dataset"], "dataset")
    _refuse_interpolations(stored)
    return _over({**stored, "trust": []}, overrides, whole=True)


def compose_run(words: Sequence[str]) -> Config:
    """The Config of a training run: `resume=RUN` reads that run's own, all else is composed from conf/.

    Raises:
        ConfigError: as compose; resume names nothing, or would change a key that a resumed run may not.
    """
    overrides = parse(words)
    resume = overrides.value("resume")
    if resume is None or resume == "auto":
        config = _compose(overrides)
        directory = Path(config.run.dir) if config.run.dir else None
        if resume is None or directory is None or not (directory / "config.yaml").is_file():
            return config
    else:
        directory = _run_directory(str(resume))
        if "config_file" in overrides.given:
            raise ConfigError(f"resume={resume} goes on under that run's own config: leave config_file out")
        given = overrides.value("run.dir")
        if given is not None and Path(str(given)).resolve() != directory.resolve():
            raise ConfigError(f"resume={resume} goes on in that run's own directory: leave run.dir out")
        stored = read(directory / "config.yaml")
        stored["run"] = {**mapping(stored.get("run", {}), "run"), "dir": str(directory)}
        config = recompose(stored, words)
    before = recompose(read(directory / "config.yaml"), []).plain
    left_out = {f"{slot}.{key}" for slot in SLOTS for key in getattr(config, slot).inherited}
    if changed := [key for key in changed_keys(before, config.plain) if key not in left_out - flatten(before).keys()]:
        raise ConfigError(
            f"a resumed run keeps its config, but {', '.join(changed)} would change from {directory}/config.yaml: "
            "to begin a new run from its weights, use init_from"
        )
    return config


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
        if overrides.given & {slot, f"{slot}._target_"}:
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


def choices(words: Sequence[str] = ()) -> dict[str, list[str]]:
    """What each group of conf/, and of --config-dir, offers."""
    return parse(words).choices()


def hydra_main(words: Sequence[str]) -> None:
    """Hydra's own command line over conf/: --cfg, --info, --hydra-help and --shell-completion. It may exit."""
    sys.argv = ["tinyexp", *words]
    hydra.main(config_path=str(CONF), config_name="config", **_VERSION)(lambda _: None)()


def _compose(overrides: Overrides) -> Config:
    if overrides.swept:
        raise ConfigError(f"{overrides.swept} gives several values: `tinyexp -m ...` makes a run of each")
    if (file := typed(str | None, overrides.value("config_file"), "config_file")) is not None:
        return _compose_file(Path(file), overrides)
    config, experiment = _by_hydra(overrides.words)
    path = group_files("experiment", overrides.folders).get(experiment or "")
    keys = flatten(read(path)).keys() - overrides.given if path else set()
    sources = dict.fromkeys(keys, f"experiment={experiment}")
    explicit = overrides.given | keys
    with blaming(sources):
        plain = _plain(config)
        retargeted = [slot for slot in SLOTS if f"{slot}._target_" in explicit]
        return validate(
            plain,
            folders=overrides.folders,
            trusted=frozenset(SLOTS),
            inherited=_inherited(plain, retargeted, explicit),
            sources=sources,
        )


def _compose_file(path: Path, overrides: Overrides) -> Config:
    """The values of a file in place of conf/'s, then the command line's."""
    if "experiment" in overrides.given:
        raise ConfigError("experiment= and config_file= are both the base of a config: take one of them")
    values = _nested(read(path))
    _refuse_interpolations(values)
    run = {key: value for key, value in mapping(values.pop("run", {}), "run").items() if key != "dir"}
    if overrides.given & {"dataset", "model"}:
        run.pop("name", None)  # it is named by what it is
    stored = {key: value for key, value in values.items() if key not in _NOT_FROM_FILES}
    sources = {key: str(path) for key in flatten(stored) if key not in overrides.given}
    with blaming(sources):
        return _over({**stored, "run": run}, overrides, sources=sources)


def _over(
    stored: dict[str, Any], overrides: Overrides, *, whole: bool = False, sources: dict[str, str] | None = None
) -> Config:
    """A Config of stored values over conf/'s, with the overrides on top.

    A group in `stored` is a choice's name, or a mapping: with a `_target_` (or in a `whole` config) it is all of the
    group, else some keys of conf/'s choice. A group that the overrides choose is theirs.
    """
    if overrides.swept:
        raise ConfigError(f"{overrides.swept} gives several values, and one is needed")
    theirs, rest = overrides.split(GROUPS)
    given = {key: value for key, value in stored.items() if key not in theirs.given}
    named = {} if whole else {key: value for key, value in given.items() if key in GROUPS and isinstance(value, str)}
    replaced = {slot for slot in SLOTS if slot in given and (whole or "_target_" in (given[slot] or ()))} - named.keys()
    config, _ = _by_hydra([*(word(key, value) for key, value in named.items()), *theirs.words])
    for key in given.keys() - named.keys():
        merging = key not in replaced and isinstance(given[key], dict)
        config[key] = OmegaConf.merge(config.get(key) or {}, given[key]) if merging else given[key]
    if "dataset" in replaced:
        config.dataset = {**read(CONF / "dataset" / "_loader.yaml"), **given["dataset"]}
    for override in rest.each:
        try:
            _apply(config, override)
        except OmegaConfBaseException as error:
            raise ConfigError(f"{override.input_line}: {_first_line(error)}") from error
    plain = _plain(config)
    retargeted = frozenset(slot for slot in SLOTS if f"{slot}._target_" in overrides.given)
    return validate(
        plain,
        folders=overrides.folders,
        trusted=frozenset(SLOTS) - replaced | retargeted,
        inherited=_inherited(plain, retargeted, overrides.given),
        sources=sources or {},
    )


def _refuse_interpolations(stored: dict[str, Any]) -> None:
    for key, value in flatten(stored).items():
        if "${" in str(value):  # a list is a value here, with the texts in it
            raise ConfigError(
                f"{key}={value!r} in a config that is read back: it may hold values only, no interpolation"
            )


def _by_hydra(words: Sequence[str]) -> tuple[DictConfig, str | None]:
    """What Hydra composes, still with its interpolations; and the experiment's name."""
    try:
        with hydra.initialize_config_dir(config_dir=str(CONF), **_VERSION):
            config = hydra.compose("config", overrides=list(words), return_hydra_config=True)
    except (HydraException, OmegaConfBaseException, ValueError) as error:  # ValueError: of a group's choice null
        raise ConfigError(_explain(error, words)) from error
    chosen = config.hydra.runtime.choices
    OmegaConf.set_struct(config, False)
    del config["hydra"]
    if isinstance(run := config.get("run"), DictConfig) and run.get("name") is None:
        run.name = chosen.get("experiment") or f"{chosen.get('dataset')}-{chosen.get('model')}"
    return config, chosen.get("experiment")


def _apply(config: DictConfig, override: Override) -> None:
    """One value on top of a config that is there, or a deletion."""
    key = override.key_or_group
    known = OmegaConf.select(config, key, default="???") != "???" or OmegaConf.is_missing(config, key)
    if not known and not override.is_force_add():
        raise ConfigError(_unknown(key, config))
    if override.is_delete():
        parent, _, leaf = key.rpartition(".")
        del (OmegaConf.select(config, parent) if parent else config)[leaf]
    else:
        OmegaConf.update(config, key, override.value(), merge=False, force_add=True)


def _plain(config: DictConfig) -> dict[str, Any]:
    """JSON types, all interpolations resolved."""
    try:
        plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None)
        raise ConfigError(f"{key} must be given: {_first_line(error)}" if key else _first_line(error)) from error
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _inherited(plain: dict[str, Any], slots: Iterable[str], given: Set[str]) -> dict[str, frozenset[str]]:
    """The arguments of these slots that nobody gave for the class that is now there."""
    return {
        slot: frozenset(key for key in mapping(plain.get(slot, {}), slot) if f"{slot}.{key}" not in given)
        for slot in slots
    }


def _nested(values: dict[str, Any]) -> dict[str, Any]:
    """{'optim.lr': 1} -> {'optim': {'lr': 1}}."""
    config = OmegaConf.create()
    for key, value in values.items():
        OmegaConf.update(config, key, value, merge=True, force_add=True)
    nested = OmegaConf.to_container(config, resolve=False)
    assert isinstance(nested, dict)
    return {str(key): value for key, value in nested.items()}


def _run_directory(resume: str) -> Path:
    """The run of `resume=`: a run's directory, or a checkpoint in one's checkpoints/."""
    path = Path(resume)
    if path.suffix == ".pt":
        if not path.is_file():
            raise ConfigError(f"resume={resume}: there is no such checkpoint")
        path = path.resolve().parent.parent
    if not (path / "config.yaml").is_file():
        raise ConfigError(
            f"resume={resume} must be auto, a run's directory (with a config.yaml) or a checkpoint in one"
        )
    return path


def _explain(error: Exception, words: Sequence[str]) -> str:
    """Hydra's message in one line, with the nearest valid name where a key or a choice is unknown."""
    text = str(error)
    if match := re.match(r"Could not (?:override|delete from config\.) '([^']+)'", text):
        key = match.group(1)
        others = [one for one in words if one.lstrip("~").split("=", 1)[0] != key]
        return _unknown(key, _by_hydra(others)[0] if len(others) < len(words) else OmegaConf.create())
    if match := re.search(r"Could not find '([^']+)'", text):
        group, _, choice = match.group(1).rpartition("/")
        valid = choices([one for one in words if one.startswith("hydra.")]).get(group, [])
        return f"{group}={choice} is no choice{did_you_mean(choice, valid)} (all: {', '.join(valid)})"
    if type(error) is ValueError:  # Hydra's, for model=null
        return f"{' '.join(words)}: {_first_line(error)}"
    return _first_line(error)


def _unknown(key: str, config: DictConfig) -> str:
    """What is said of a key that is not there: the nearest, and how to give a class more than its YAML lists."""
    group, _, leaf = key.partition(".")
    keys = flatten(OmegaConf.to_container(config, resolve=False))  # type: ignore[arg-type]
    if leaf and group in config:
        own = [name.removeprefix(f"{group}.") for name in keys if name.startswith(f"{group}.")]
        more = f" (what only the class takes is given as +{key}=...)" if group in SLOTS else ""
        return f"{key} is no key{did_you_mean(leaf, own, prefix=f'{group}.')}{more}"
    return f"{key} is no key{did_you_mean(key, [*keys, *GROUPS])}"


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
