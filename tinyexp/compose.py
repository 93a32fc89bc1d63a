"""From a command line, or a config read back, to a typed Config. The only file that imports hydra or omegaconf.

Nothing here imports torch, so that a typo costs a second and no more.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from tinyexp.config import (
    SLOTS,
    CkptConfig,
    Component,
    Config,
    HwConfig,
    LoaderConfig,
    LogConfig,
    RunConfig,
    TrainConfig,
    changed_keys,
    flatten,
    parse,
)
from tinyexp.errors import ConfigError, did_you_mean

_PACKAGE = Path(__file__).resolve().parent
# In a checkout conf/ stands beside the package, in a wheel within it.
CONF = next(
    (path for path in (_PACKAGE.parent / "conf", _PACKAGE / "conf") if (path / "config.yaml").is_file()),
    _PACKAGE / "conf",
)
GROUPS = (*SLOTS, "hw", "experiment")
_OWN = {"train": TrainConfig, "run": RunConfig, "log": LogConfig, "ckpt": CkptConfig, "hw": HwConfig}
_TOP = (*SLOTS, "train", "hw", "run", "log", "ckpt", "resume", "init_from", "trust")
_LOADER_KEYS = tuple(LoaderConfig.__dataclass_fields__)


def compose(overrides: Sequence[str]) -> Config:
    """The Config of a command line's Hydra overrides over conf/.

    Raises:
        ConfigError: an unknown group, choice or key, a wrong type or value, or a malformed override.
    """
    given = {override.key_or_group for override in _parse(overrides)}
    plain = _compose_plain(overrides)
    retargeted = [slot for slot in SLOTS if f"{slot}._target_" in given]
    return _typed(plain, trusted=frozenset(SLOTS), inherited=_inherited(plain, retargeted, given))


def recompose(stored: dict[str, Any], overrides: Sequence[str]) -> Config:
    """The Config of a config read back, with a command line's overrides on top.

    A class that only the stored config names is marked as not trusted, whatever the stored config's own `trust` says.
    Keys of ours that the stored config has not (it may come from an older version) take conf/'s values.

    Raises:
        ConfigError: as compose, or an interpolation in the stored config: what is read back is values alone.
    """
    for key, value in flatten(stored).items():
        if "${" in str(value):  # a list is a value here, with the texts in it
            raise ConfigError(
                f"{key}={value!r} in a config that is read back: it may hold values only, no interpolation"
            )
    if missing := [key for key in (*SLOTS, "train") if key not in stored]:
        raise ConfigError(f"{missing[0]} is missing in a config that is read back: it is not whole")
    defaults = _compose_plain([])
    own = {group: OmegaConf.merge(defaults[group], _mapping(stored.get(group, {}), group)) for group in _OWN}
    loader = read(CONF / "dataset" / "_loader.yaml")
    dataset = {**loader, **_mapping(stored["dataset"], "dataset")}
    filled = {**{key: defaults[key] for key in _TOP}, **stored, **own, "dataset": dataset}
    config = OmegaConf.create({**filled, "trust": []})
    parsed = _parse(overrides)
    given = {override.key_or_group for override in parsed}
    for override in parsed:
        try:
            _apply(config, override)
        except OmegaConfBaseException as error:
            raise ConfigError(f"{override.input_line}: {_first_line(error)}") from error
    plain = _plain(config)
    trusted = frozenset(slot for slot in SLOTS if given & {slot, f"{slot}._target_"})
    return _typed(plain, trusted=trusted, inherited=_inherited(plain, SLOTS, given))


def compose_run(overrides: Sequence[str]) -> Config:
    """The Config of a training run: `resume=RUN` reads that run's own, all else is composed from conf/.

    Raises:
        ConfigError: as compose; resume names nothing, or would change a key that a resumed run may not.
    """
    wanted = [override for override in _parse(overrides) if override.key_or_group == "resume"]
    resume = wanted[-1].value() if wanted else None
    if resume is None or resume == "auto":
        config = compose(overrides)
        directory = Path(config.run.dir) if config.run.dir else None
        if resume is None or directory is None or not (directory / "config.yaml").is_file():
            return config
    else:
        directory = _run_directory(str(resume))
        for override in _parse(overrides):
            if override.key_or_group == "run.dir" and Path(str(override.value())).resolve() != directory.resolve():
                raise ConfigError(f"resume={resume} goes on in that run's own directory: leave run.dir out")
        stored = read(directory / "config.yaml")
        stored["run"] = {**_mapping(stored.get("run", {}), "run"), "dir": str(directory)}
        config = recompose(stored, overrides)
    if changed := changed_keys(recompose(read(directory / "config.yaml"), []).plain, config.plain):
        raise ConfigError(
            f"a resumed run keeps its config, but {', '.join(changed)} would change from {directory}/config.yaml: "
            "to begin a new run from its weights, use init_from"
        )
    return config


def choices() -> dict[str, list[str]]:
    """What each group of conf/ offers: a folder's listing is the registry."""
    return {
        group: sorted(path.stem for path in (CONF / group).glob("*.yaml") if path.stem[0] != "_") for group in GROUPS
    }


def read(path: Path) -> dict[str, Any]:
    """A run's config.yaml as plain values, nothing in it evaluated.

    Raises:
        ConfigError: the file is missing, or holds no YAML mapping.
    """
    try:
        values = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror}. A run's directory holds its config.yaml"
        ) from error
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no YAML: {_first_line(error)}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold a mapping of keys to values, got {type(values).__name__}")
    return {str(key): value for key, value in values.items()}


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


def _compose_plain(overrides: Sequence[str]) -> dict[str, Any]:
    try:
        with initialize_config_dir(config_dir=str(CONF), version_base=None):
            config = hydra_compose("config", overrides=list(overrides), return_hydra_config=True)
        choices = OmegaConf.to_container(config.hydra.runtime.choices)
        assert isinstance(choices, dict)
        OmegaConf.set_struct(config, False)
        del config["hydra"]
        if isinstance(run := config.get("run"), DictConfig) and run.get("name") is None:
            run.name = choices.get("experiment") or f"{choices.get('dataset')}-{choices.get('model')}"
        return _plain(config)
    except (HydraException, OmegaConfBaseException, ValueError) as error:  # ValueError: of a group's choice null
        raise ConfigError(_explain(error, overrides)) from error


def _parse(overrides: Sequence[str]) -> list[Override]:
    parsed: list[Override] = []
    for word in overrides:
        try:
            parsed += OverridesParser.create().parse_overrides([word])
        except HydraException as error:
            raise ConfigError(f"{word!r} is no override such as train.epochs=3: {_first_line(error)}") from error
    return parsed


def _apply(config: DictConfig, override: Override) -> None:
    """One override on top of a stored config: a group's choice, a value, or a deletion."""
    key = override.key_or_group
    if override.is_sweep_override():
        raise ConfigError(f"{override.input_line} gives several values, and one is needed")
    if key == "experiment":
        raise ConfigError("experiment= makes a whole config, and this one is read back: give single keys instead")
    if key in GROUPS and not override.is_delete():
        config[key] = _compose_plain([override.input_line or ""])[key]
        return
    known = OmegaConf.select(config, key, default="???") != "???" or OmegaConf.is_missing(config, key)
    if not known and not override.is_add():
        raise ConfigError(f"{key} is no key{did_you_mean(key, flatten(_plain(config)))}")
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


def _inherited(plain: dict[str, Any], slots: Sequence[str], given: set[str]) -> dict[str, frozenset[str]]:
    """The arguments of these slots that the command line did not give."""
    return {
        slot: frozenset(key for key in _mapping(plain.get(slot, {}), slot) if f"{slot}.{key}" not in given)
        for slot in slots
    }


def _typed(plain: dict[str, Any], trusted: frozenset[str], inherited: dict[str, frozenset[str]]) -> Config:
    plain.pop("experiment", None)
    for key in plain:
        if key not in _TOP:
            raise ConfigError(f"{key} is no key{did_you_mean(key, _TOP)}")
    if missing := [key for key in _TOP if key not in plain]:
        raise ConfigError(f"{missing[0]} is missing")
    components: dict[str, Any] = {
        slot: _component(slot, plain.get(slot), slot in trusted, inherited.get(slot, frozenset())) for slot in SLOTS
    }
    source = components["dataset"].arguments
    loader = {key: source.pop(key) for key in _LOADER_KEYS if key in source}
    for key in ("resume", "init_from"):
        if not isinstance(plain[key], (str, type(None))):
            raise ConfigError(f"{key} must be text or null, got {plain[key]!r}")
    if not isinstance(plain["trust"], list) or not all(isinstance(name, str) for name in plain["trust"]):
        raise ConfigError(f"trust must be a list of names such as [mypkg.*], got {plain['trust']!r}")
    plain = {key: plain[key] for key in _TOP}
    own: dict[str, Any] = {name: parse(kind, _mapping(plain[name], name), name) for name, kind in _OWN.items()}
    return Config(
        **components,
        **own,
        loader=parse(LoaderConfig, loader, "dataset"),
        resume=plain["resume"],
        init_from=plain["init_from"],
        trust=tuple(plain["trust"]),
        plain=plain,
        text=OmegaConf.to_yaml(OmegaConf.create(plain)),
    )


def _mapping(values: Any, key: str) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise ConfigError(f"{key} must be a mapping, got {values!r}")
    return values


def _component(slot: str, values: Any, trusted: bool, inherited: frozenset[str]) -> Component:
    arguments = {str(key): value for key, value in _mapping(values, slot).items()}
    target = arguments.pop("_target_", None)
    if not isinstance(target, str) or not all(part.isidentifier() for part in target.split(".")):
        raise ConfigError(f"{slot}._target_ must be the dotted name of a class or function, got {target!r}")
    return Component(slot=slot, target=target, arguments=arguments, trusted=trusted, inherited=inherited)


def _explain(error: Exception, overrides: Sequence[str]) -> str:
    """Hydra's message in one line, with the nearest valid name where a key or a choice is unknown."""
    text = str(error)
    if match := re.match(r"Could not override '([^']+)'", text):
        key = match.group(1)
        others = [word for word in overrides if word.split("=", 1)[0] != key]
        keys = flatten(_compose_plain(others)) if len(others) < len(overrides) else {}
        return f"{key} is no key{did_you_mean(key, [*keys, *GROUPS])}"
    if match := re.search(r"(?:Could not find|In '[^']*': Could not find) '([^']+)'", text):
        group, _, choice = match.group(1).rpartition("/")
        valid = choices().get(group, [])
        return f"{group}={choice} is no choice{did_you_mean(choice, valid)} (all: {', '.join(valid)})"
    if type(error) is ValueError:  # Hydra's, for model=null
        return f"{' '.join(overrides)}: {_first_line(error)}"
    return _first_line(error)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
