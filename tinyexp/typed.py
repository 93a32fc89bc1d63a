"""Plain values into the types of annotations: a wrong one is told by its key, with the rule and what came.

Standard library only.
"""

from __future__ import annotations

import sys
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Annotated, Any, Literal, TypeVar

from tinyexp.errors import ConfigError, did_you_mean

T = TypeVar("T")


@dataclass(frozen=True)
class Rule:
    """What a key's value must be beyond its type, in words and as a test; it stands in the key's annotation."""

    text: str
    holds: Callable[[Any], bool]


def at_least(bound: float, unit: str = "") -> Rule:
    return Rule(f"at least {bound} {unit}".rstrip(), lambda value: value >= bound)


def above(bound: float, unit: str = "") -> Rule:
    return Rule(f"above {bound} {unit}".rstrip(), lambda value: value > bound)


def require(holds: bool, key: str, rule: str, got: object) -> None:
    """Raises ConfigError where it does not hold."""
    if not holds:
        raise ConfigError(f"{key} must be {rule}, got {got!r}")


def parse(kind: type[T], values: Mapping[str, Any], prefix: str) -> T:
    """A dataclass of ours from plain values, each checked against its type; `prefix` is the group's key.

    Raises:
        ConfigError: an unknown or missing key, a wrong type, or a value out of bounds, by its full name.
    """
    hints = typing.get_type_hints(kind, include_extras=True)
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    for key in values:
        if key not in names:
            raise ConfigError(f"{prefix}.{key} is no key{did_you_mean(str(key), names, prefix=f'{prefix}.')}")
    if missing := [name for name in names if name not in values]:
        raise ConfigError(f"{prefix}.{missing[0]} is missing")
    return kind(**{name: typed(hints[name], values[name], f"{prefix}.{name}") for name in names})


def typed(hint: Any, value: Any, key: str) -> Any:
    """The value in its annotation's type: an int is taken for a float, a list for a tuple; no other conversion."""
    if is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{key} must be a mapping, got {value!r}")
        return parse(typing.cast(type, hint), value, key)
    for option, rule in options(hint):
        if _fits(option, value):
            made = _converted(option, value, key)
            null = ", or null" if (type(None), None) in options(hint) and option is not str else ""
            require(rule is None or rule.holds(made), key, f"{rule.text}{null}" if rule else "", made)
            return made
    raise ConfigError(f"{key} must be {spelled(hint)}, got {value!r}")


def options(hint: Any) -> list[tuple[Any, Rule | None]]:
    """Annotated[int, rule] | None -> [(int, rule), (NoneType, None)]."""
    union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    each = typing.get_args(hint) if union else (hint,)
    return [typing.get_args(one) if typing.get_origin(one) is Annotated else (one, None) for one in each]


def spelled(hint: Any) -> str:
    """The type of an annotation in words."""
    return " or ".join(_spelled(option) for option, _ in options(hint))


def _fits(option: Any, value: Any) -> bool:
    origin = typing.get_origin(option)
    if origin is Literal:
        return isinstance(value, str) and value in typing.get_args(option)
    if origin is tuple:
        return isinstance(value, (list, tuple))
    if origin is dict:
        return isinstance(value, Mapping) and all(isinstance(name, str) for name in value)
    return type(value) is option or (option is float and type(value) is int)


def _converted(option: Any, value: Any, key: str) -> Any:
    if typing.get_origin(option) is tuple:
        inner = typing.get_args(option)[0]
        return tuple(typed(inner, item, f"{key}[{i}]") for i, item in enumerate(value))
    if option is float:
        require(abs(value) <= sys.float_info.max, key, "a finite number", value)  # false for nan too
        return float(value)
    return value


_PLURAL = {"an integer": "integers", "a number": "numbers"}


def _spelled(option: Any) -> str:
    origin, inner = typing.get_origin(option), typing.get_args(option)
    if origin is Literal:
        return " | ".join(map(str, inner))
    if origin is tuple:
        return f"a list of {_PLURAL.get(spelled(inner[0]), spelled(inner[0]))}"
    if origin is dict:
        return "a mapping"
    return {int: "an integer", float: "a number", str: "text", bool: "true or false", type(None): "null"}[option]
