"""YAML and JSON files as plain values, nothing in them evaluated: conf/'s, a run's, and a user's."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from tinyexp.errors import ConfigError

_BASE: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's is ten times as fast


class _Loader(_BASE):  # type: ignore[misc]
    """YAML 1.1 as Hydra reads it: 1e-3, without a dot, is a number too."""


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d[\d_]*[eE][-+]?\d+"), list("-+0123456789"))


def read(path: Path, *, aliases: bool = False) -> dict[str, Any]:
    """A file's mapping; JSON by its suffix, else YAML.

    Args:
        aliases: whether a YAML's *names are followed; in a file of somebody else ten lines unfold to gigabytes.

    Raises:
        ConfigError: it is missing, or holds no mapping of plain values.
    """
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is no YAML or JSON in UTF-8: {error}") from error
    kind = "JSON" if path.suffix == ".json" else "YAML"
    try:
        values = json.loads(text) if kind == "JSON" else _read_yaml(text, aliases)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is no {kind}: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        found = "nothing" if values is None else type(values).__name__
        raise ConfigError(f"{path} must hold a mapping of keys to values, got {found}")
    return {str(key): value for key, value in values.items()}


def _read_yaml(text: str, aliases: bool) -> Any:
    if not aliases and "*" in text and any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, _Loader)):
        raise ValueError("it has an alias (*name): write its value")
    return _Loader(text).get_single_data()
