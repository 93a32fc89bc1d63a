"""From a dotted name in a config to an object: found, checked for what it is, and called with checked arguments.

Not hydra's instantiate, whose block-list is no boundary: here the object that a name leads to is what is checked.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import operator
import re
import traceback
import types
import typing
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

from tinyexp.config import Component, LoaderConfig
from tinyexp.errors import ConfigError, did_you_mean
from tinyexp.typed import typed

# Where a function may come from that a file read back names; classes may come from all of these packages.
_FUNCTIONS = {
    "model": ("tinyexp.models.", "torchvision.models."),
    "optim": (),
    "scheduler": ("tinyexp.schedule.",),
    "dataset": ("tinyexp.data.",),
}
_WANTED = {
    "model": "a Module class or a function that makes one",
    "optim": "an Optimizer class",
    "scheduler": "an LRScheduler class or a function of (step, total)",
    "dataset": "a function that makes a tinyexp.data.source.Source",
}
_MORE = {"dataset": [*LoaderConfig.__dataclass_fields__], "model": ["weights"]}  # keys that are not the class's
_SIMPLE = (int, float, bool, str, type(None))
_PACKAGES = ("torch.", "torchvision.", "tinyexp.")


def resolve(component: Component, trust: tuple[str, ...]) -> Callable[..., Any]:
    """The class or function that `component.target` names.

    A name that was read back from a file is imported only from torch, torchvision, tinyexp and what `trust` adds, and
    what it leads to must be of its slot's kind and at home there: `torchvision.datasets.utils.os.system` is not.

    Raises:
        ConfigError: no such name, a thing of another kind, or one that is not trusted.
    """
    name, slot = component.target, component.slot
    trusted = component.trusted or any(fnmatchcase(name, pattern) for pattern in trust)
    if not trusted and (not name.startswith(_PACKAGES) or any(part[:1] == "_" for part in name.split("."))):
        raise ConfigError(_distrust(slot, name))
    found = _find(slot, name)
    kind = _kind(slot)
    is_class = inspect.isclass(found)
    if (
        (is_class and not (kind and issubclass(found, kind)))
        or not callable(found)
        or (slot == "optim" and not is_class)
    ):
        raise ConfigError(f"{slot}._target_={name} must be {_WANTED[slot]}")
    home = f"{getattr(found, '__module__', '')}."
    made = getattr(found, "__annotations__", {}).get("return")
    foreign = slot == "dataset" and getattr(made, "__name__", made) != "Source"
    if not trusted and (foreign or not home.startswith(_PACKAGES if is_class else _FUNCTIONS[slot])):
        raise ConfigError(_distrust(slot, name))
    return found  # type: ignore[no-any-return]


def build(component: Component, trust: tuple[str, ...], *positional: object, **offered: object) -> Any:
    """Call what the component names with its arguments, and with those of `offered` that the signature has.

    Raises:
        ConfigError: as resolve; an argument that it does not take or lacks; or its own ValueError or TypeError.
    """
    target = resolve(component, trust)
    arguments = check_arguments(component, target, len(positional), offered)
    try:
        return target(*positional, **arguments)
    except (ValueError, TypeError, AssertionError, LookupError, AttributeError, RuntimeError) as error:
        unexpected = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if unexpected:
            told = f"{component.slot}.{unexpected.group(1)} is no argument of {component.target}"
        else:
            told = f"{component.slot}: {component.target} does not take these arguments"
        raise ConfigError(f"{told}: {error}") from error


def check_arguments(
    component: Component, target: Callable[..., Any], num_positional: int, offered: dict[str, object]
) -> dict[str, Any]:
    """The component's arguments with the offered ones that fit, checked by the target's signature.

    Raises:
        ConfigError: a keyword that the target does not take, with the nearest that it does; or one that it lacks.
    """
    parameters = list(inspect.signature(target).parameters.values())[num_positional:]
    named = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters)
    left_out = leftovers(component, target)
    given = {key: value for key, value in component.arguments.items() if key not in left_out}
    for key in given:
        if key not in named and not anything:
            near = did_you_mean(
                key,
                [*named, *_MORE.get(component.slot, ()), *(["_target_"] * (key[0] == "_"))],
                prefix=f"{component.slot}.",
            )
            raise ConfigError(f"{component.slot}.{key} is no argument of {component.target}{near}")
    arguments = {**{key: value for key, value in offered.items() if key in named}, **given}
    for key, parameter in named.items():
        if parameter.default is parameter.empty and key not in arguments:
            raise ConfigError(f"{component.slot}.{key} must be given: {component.target} needs it")
    for key, hint in _annotations(target).items():
        if key in given:
            _check_type(hint, given[key], f"{component.slot}.{key}")
    return arguments


def leftovers(component: Component, target: Callable[..., Any]) -> list[str]:
    """Those arguments of another class's YAML that this one does not take, or not of that type."""
    parameters, hints = inspect.signature(target).parameters, _annotations(target)
    found = []
    for key in component.inherited & component.arguments.keys():
        try:
            if key in hints:
                _check_type(hints[key], component.arguments[key], key)
            elif key not in parameters:
                found.append(key)
        except ConfigError:
            found.append(key)
    return sorted(found)


def takes(target: Callable[..., Any], name: str) -> bool:
    """Does the signature have a parameter of this name?"""
    return name in inspect.signature(target).parameters


def _annotations(target: Callable[..., Any]) -> dict[str, Any]:
    """The types of those parameters that take numbers, texts, true and false, or so many of them; no tensors."""
    try:
        hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except Exception:  # a user's annotation may name what only a type checker imports
        return {}
    defaults = {name: each.default for name, each in inspect.signature(target).parameters.items()}
    found = {}
    for key, hint in hints.items():
        if key in defaults and (plain := _of_yaml(hint)) is not None:
            found[key] = plain | None if defaults[key] is None else plain
    return found


def _of_yaml(hint: Any) -> Any:
    """The annotation without what no YAML can give; None where more than plain values are left."""
    if typing.get_origin(hint) is tuple:
        inner = [_of_yaml(each) for each in typing.get_args(hint)]
        return types.GenericAlias(tuple, tuple(inner)) if inner and None not in inner else None
    union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    options = typing.get_args(hint) if union else (hint,)
    options = tuple(option for option in options if getattr(option, "__name__", "") != "Tensor")
    plain = all(one in _SIMPLE or typing.get_origin(one) is typing.Literal for one in options)
    return functools.reduce(operator.or_, options) if options and plain else None


def _check_type(hint: Any, value: Any, key: str) -> None:
    """Raises ConfigError; a tuple's annotation also says how many there are."""
    options = typing.get_args(hint) if typing.get_origin(hint) is types.UnionType else (hint,)
    fixed = next((option for option in options if typing.get_origin(option) is tuple), None)
    if fixed is None or value is None:
        typed(hint, value, key)
        return
    inner = typing.get_args(fixed)
    if not isinstance(value, list) or len(value) != len(inner):
        raise ConfigError(f"{key} must be a list of {len(inner)}, got {value!r}")
    for i, (each, item) in enumerate(zip(inner, value, strict=True)):
        _check_type(each, item, f"{key}[{i}]")


def _kind(slot: str) -> type | None:
    """What a slot's class must be; a data set is made by a function. Torch is imported only where it is asked."""
    if slot == "dataset":
        return None
    from torch import nn, optim

    return {"model": nn.Module, "optim": optim.Optimizer, "scheduler": optim.lr_scheduler.LRScheduler}[slot]


def _find(slot: str, name: str) -> Any:
    """Import the longest part of the name that is a module, then follow the rest by attribute."""
    parts = name.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        module_name = ".".join(parts[:cut])
        try:
            found: Any = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
                raise ConfigError(
                    f"{slot}._target_={name}: importing {module_name} needs {error.name}, which is missing"
                ) from error
            continue
        except (Exception, SystemExit) as error:  # whatever a user's module does when it is imported
            place = traceback.extract_tb(error.__traceback__)[-1]
            raise ConfigError(
                f"{slot}._target_={name}: importing {module_name} failed: {type(error).__name__}: {error} "
                f"({place.filename}:{place.lineno})"
            ) from error
        for part in parts[cut:]:
            if not hasattr(found, part):
                near = did_you_mean(part, [one for one in dir(found) if one[0] != "_"])
                raise ConfigError(f"{slot}._target_={name}: {part} is not in {found.__name__}{near}")
            found = getattr(found, part)
        return found
    raise ConfigError(
        f"{slot}._target_={name}: there is no module {parts[0]} (a dotted name is needed, such as mypkg.net.Net)"
    )


def _distrust(slot: str, name: str) -> str:
    return (
        f"{slot}._target_={name} comes from a file that was read back, which may name only what is a {slot} of torch, "
        f"torchvision or tinyexp. If you trust it: 'trust=[{name}]'"
    )
