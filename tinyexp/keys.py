"""A config by the full names of its keys: which a resumed run may change, which change no score, who gave them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tinyexp.errors import ConfigError

CHANGEABLE = (
    "train.epochs",
    "train.max_time",
    "hw.",
    "log.",
    "ckpt.",
    "dataset.root",
    "dataset.archive",
    "dataset.cache_dir",
    "dataset.max_gb",
    "dataset.preview",
    "dataset.workers",
    "dataset.start_method",
)

# What names a run or says how it was watched and fed, and changes none of its scores.
BESIDE = (
    "run.", "log.", "sweep.", "train.max_time", "ckpt.every_minutes", "ckpt.keep", "hw.timeout", "hw.join_timeout",
    "hw.max_restarts", "hw.master", "dataset.workers", "dataset.start_method", "dataset.cache_dir", "dataset.max_gb",
    "dataset.preview", "resume", "trust", "config_file",
)  # fmt: skip


@contextmanager
def blaming(sources: Mapping[str, str]) -> Iterator[None]:
    """Add to an error that begins with one of these keys where that key was given."""
    try:
        yield
    except ConfigError as error:
        key = re.match(r"[\w./]*", str(error))
        name = key.group() if key else ""
        of_slot = (place for one, place in sources.items() if one.startswith(f"{name}."))
        place = sources.get(name) or next(of_slot, None)
        raise ConfigError(f"{error} (in {place})") if place else error from error.__cause__


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{'optim': {'lr': 1}} -> {'optim.lr': 1}; a list is a value."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def kept(plain: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a config that a resumed run may not change, by full name."""
    own = ("run.", "sweep.", "resume", "config_file", "trust")
    return {key: value for key, value in flatten(plain).items() if not key.startswith(own) and not may_change(key)}


def may_change(key: str) -> bool:
    """May a resumed run change it?"""
    return any(key == each or (each[-1] == "." and key.startswith(each)) for each in CHANGEABLE)


def changed_keys(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The full names of keys whose values differ and that a resumed run may not change."""
    old, new = kept(before), kept(now)
    return [key for key in {**old, **new} if key not in old or key not in new or old[key] != new[key]]
