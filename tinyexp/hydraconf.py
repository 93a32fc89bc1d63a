"""What Hydra makes of a command line's words over conf/, with its errors told in our words: key, rule, nearest name."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from typing import Any

import hydra
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from yaml import YAMLError

from tinyexp.config import SLOTS
from tinyexp.errors import ConfigError, did_you_mean
from tinyexp.keys import flatten
from tinyexp.overrides import CONF, GROUPS, Overrides, no_choice, parse

# 1.3 warns without version_base, 1.4 warns with it
_VERSION: dict[str, Any] = {"version_base": "1.3"} if hydra.__version__.startswith("1.3.") else {}


def by_hydra(words: Sequence[str]) -> tuple[DictConfig, dict[str, str | None]]:
    """The composed config, still with its interpolations, and the choice of each group.

    Raises:
        ConfigError: an unknown group, choice or key, or a file that Hydra cannot read.
    """
    _check_choices(parse(words))
    try:
        with hydra.initialize_config_dir(config_dir=str(CONF), **_VERSION):
            # experiment=null is what conf/ says, and Hydra takes no null for a group
            config = hydra.compose(
                "config", overrides=[word for word in words if word != "experiment=null"], return_hydra_config=True
            )
    except (HydraException, OmegaConfBaseException, YAMLError, ValueError) as error:  # ValueError: of model=null
        raise ConfigError(_explain(error, words)) from error
    chosen = dict(config.hydra.runtime.choices)
    OmegaConf.set_struct(config, False)
    del config["hydra"]
    run = config.get("run")
    if isinstance(run, DictConfig) and OmegaConf.to_container(run, resolve=False).get("name") is None:  # type: ignore
        run.name = (chosen.get("experiment") or f"{chosen.get('dataset')}-{chosen.get('model')}").replace("/", "-")
    return config, chosen


def apply(config: DictConfig, override: Override) -> None:
    """One value on top of a config that is there, or a deletion. Raises ConfigError for a key that is not there."""
    key, value = override.key_or_group, override.value()
    parent, _, leaf = key.rpartition(".")
    holder = OmegaConf.select(config, parent) if parent else config
    known = isinstance(holder, DictConfig) and leaf in list(holder.keys())  # `in` alone leaves out what is to be given
    if not known and not override.is_force_add():
        raise ConfigError(unknown(key, config))
    try:
        if override.is_delete():
            del holder[leaf]
        else:
            OmegaConf.update(config, key, value, merge=isinstance(value, dict), force_add=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{override.input_line}: {_first_line(error)}") from error


def to_plain(config: DictConfig) -> dict[str, Any]:
    """JSON types, all interpolations resolved. Raises ConfigError for a value that is still to be given."""
    try:
        plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "a value"
        missing = isinstance(error, MissingMandatoryValue)
        rule = "must be given" if missing else f"cannot be resolved: {_first_line(error)}"
        raise ConfigError(f"{key} {rule}" + (f", as {key}=..." if missing else "")) from error
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def unknown(key: str, config: DictConfig) -> str:
    """What is said of a key that is not there: the nearest, and how to give a class more than its YAML lists."""
    group, _, leaf = key.partition(".")
    keys = flatten(OmegaConf.to_container(config, resolve=False))  # type: ignore[arg-type]
    if leaf and group in config:
        own = [name.removeprefix(f"{group}.") for name in keys if name.startswith(f"{group}.")]
        more = f" (what only the class takes is given as +{key}=...)" if group in SLOTS else ""
        return f"{key} is no key{did_you_mean(leaf, own, prefix=f'{group}.')}{more}"
    same_end = [name for name in keys if name.rpartition(".")[2] == key]
    return f"{key} is no key{did_you_mean(key, same_end[:1] or [*keys, *GROUPS], cutoff=0.0 if same_end else 0.6)}"


def hydra_main(words: Sequence[str]) -> None:
    """Hydra's own command line over conf/: --cfg, --info, --hydra-help and --shell-completion. It may exit."""
    sys.argv = ["tinyexp", *words]
    hydra.main(config_path=str(CONF), config_name="config", **_VERSION)(lambda _: None)()


def _check_choices(overrides: Overrides) -> None:
    """A group's choice is one of its files: neither a path out of the folder nor a list."""
    choices = overrides.choices()
    for one in overrides.each:
        group, value = one.key_or_group, one.value()
        if group not in choices or one.is_delete() or isinstance(value, dict):
            continue
        if isinstance(value, list):
            raise ConfigError(f"{group} must be one choice, got {value}; `tinyexp -m {group}=a,b` makes a run of each")
        if value is None and group != "experiment":
            raise ConfigError(f"{one.input_line}: {group} cannot be left out{did_you_mean('', choices[group])}")
        if value is not None and str(value).removesuffix(".yaml") not in choices[group]:
            raise ConfigError(no_choice(group, value, choices[group]))


def _explain(error: Exception, words: Sequence[str]) -> str:
    """Hydra's message in one line, with the nearest valid name where a key or a choice is unknown."""
    text = str(error)
    if match := re.match(r"Could not (?:override|delete from config\.) '([^']+)'", text):
        key = match.group(1)
        if "delete" in match.group() and key in flatten(to_plain(by_hydra([])[0])):
            return f"{key} cannot be taken out, it is a key of every run: give it a value, or null"
        others = [one for one in words if one.lstrip("~").split("=", 1)[0] != key]
        return unknown(key, by_hydra(others)[0] if len(others) < len(words) else OmegaConf.create())
    if match := re.search(r"Could not find '([^']+)'", text):
        group, _, choice = match.group(1).partition("/")
        valid = parse([one for one in words if one.startswith("hydra.")]).choices().get(group, [])
        return no_choice(group, choice, valid)
    if match := re.match(r"Error merging override (\S+?)=(.*)", text):
        key, value = match.group(1).lstrip("+"), match.group(2)
        there = OmegaConf.select(by_hydra([])[0], key)
        kind = "a list" if OmegaConf.is_list(there) else "a mapping" if OmegaConf.is_dict(there) else "one value"
        return f"{key} must be {kind}, got {value}"
    if isinstance(error, YAMLError):
        return f"a file of conf/ or --config-dir is no YAML: {' '.join(text.split())}"
    return _first_line(error)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
