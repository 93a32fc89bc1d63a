"""YAML and JSON files as plain values, nothing in them evaluated: conf/'s, a run's, and a user's."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from tinyexp.errors import ConfigError

_BASE: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's is ten times as fast


_DEEPEST = 30


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
        values = json.loads(text, object_pairs_hook=_unique) if kind == "JSON" else _read_yaml(text, aliases)
        _check_plain(values, "", 0)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is no {kind} of plain values: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        found = "nothing" if values is None else type(values).__name__
        raise ConfigError(f"{path} must hold a mapping of keys to values, got {found}")
    return values


def _read_yaml(text: str, aliases: bool) -> Any:
    if not aliases and "*" in text and any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, _Loader)):
        raise ValueError("it has an alias (*name): write its value")
    loader = _Loader(text)
    node = loader.get_single_node()
    if node is None:
        return None
    _check_unique(node, 0)
    return loader.construct_document(node)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys come once each."""
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError(f"a key comes twice among {', '.join(key for key, _ in pairs)}")
    return values


def _check_unique(node: yaml.Node, depth: int) -> None:
    if depth > _DEEPEST:
        raise ValueError(f"it is nested deeper than {_DEEPEST}")
    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        if len(set(keys)) < len(keys):
            raise ValueError(f"{max(keys, key=keys.count)} comes twice (line {node.start_mark.line + 1})")
        for key, value in node.value:
            _check_unique(key, depth + 1)
            _check_unique(value, depth + 1)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _check_unique(item, depth + 1)


def _check_plain(value: Any, key: str, depth: int) -> None:
    """Numbers, texts, true, false and null, in lists and in mappings of texts."""
    if depth > _DEEPEST:
        raise ValueError(f"it is nested deeper than {_DEEPEST}")
    if isinstance(value, dict):
        for name, item in value.items():
            if not isinstance(name, str) or not all(name.split(".")):
                raise ValueError(f"{name!r} below {key or 'the top'} is no name of a key")
            _check_plain(item, f"{key}.{name}".lstrip("."), depth + 1)
    elif isinstance(value, list):
        for item in value:
            _check_plain(item, key, depth + 1)
    elif not isinstance(value, (str, int, float, bool, type(None))):
        raise ValueError(f"{key}={value} is a {type(value).__name__}: a text is put in quotes")
