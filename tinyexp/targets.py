"""From a dotted name in a config to an object: found, checked for what it is, and called with checked arguments.

Not hydra's instantiate, whose block-list is no boundary: here the object that a name leads to is what is checked.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import operator
import types
import typing
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

from tinyexp.config import Component, typed
from tinyexp.errors import ConfigError, did_you_mean

# Where a function may come from that a file read back names; classes may come from all of these packages.
_FUNCTIONS = {
    "model": ("tinyexp.models.", "torchvision.models."),
    "optim": (),
    "scheduler": ("tinyexp.schedule.",),
    "dataset": ("tinyexp.data.",),
}
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
    if not trusted and not name.startswith(_PACKAGES):
        raise ConfigError(_distrust(slot, name))
    found = _find(slot, name)
    kind = _kind(slot)
    is_class = inspect.isclass(found)
    if (
        (is_class and not (kind and issubclass(found, kind)))
        or not callable(found)
        or (slot == "optim" and not is_class)
    ):
        wanted = f"a {kind.__name__} class" if kind else "a function that makes a tinyexp.data.source.Source"
        raise ConfigError(
            f"{slot}._target_={name} must be {wanted}{'' if slot == 'optim' else ' or a function that makes one'}"
        )
    home = f"{getattr(found, '__module__', '')}."
    if not trusted and not home.startswith(_PACKAGES if is_class else _FUNCTIONS[slot]):
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
    except (ValueError, TypeError, AssertionError) as error:
        raise ConfigError(f"{component.slot}: {component.target} does not take these arguments: {error}") from error


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
            raise ConfigError(
                f"{component.slot}.{key} is no argument of {component.target}"
                f"{did_you_mean(key, named, prefix=f'{component.slot}.')}"
            )
    arguments = {**{key: value for key, value in offered.items() if key in named}, **given}
    for key, parameter in named.items():
        if parameter.default is parameter.empty and key not in arguments:
            raise ConfigError(f"{component.slot}.{key} must be given: {component.target} needs it")
    for key, hint in _annotations(target).items():
        if key in given and key in named:
            optional = hint | None if named[key].default is None else hint
            typed(optional, given[key], f"{component.slot}.{key}")
    return arguments


def leftovers(component: Component, target: Callable[..., Any]) -> list[str]:
    """Those arguments of another class's YAML that this one does not take."""
    parameters = inspect.signature(target).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return []
    return [key for key in component.arguments if key in component.inherited and key not in parameters]


def takes(target: Callable[..., Any], name: str) -> bool:
    """Does the signature have a parameter of this name?"""
    return name in inspect.signature(target).parameters


def _annotations(target: Callable[..., Any]) -> dict[str, Any]:
    """The types of those parameters that take numbers, texts, true and false; a tensor comes from no YAML."""
    try:
        hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except Exception:  # a user's annotation may name what only a type checker imports
        return {}
    found = {}
    for key, hint in hints.items():
        union = typing.get_origin(hint) in (types.UnionType, typing.Union)
        options = typing.get_args(hint) if union else (hint,)
        options = tuple(option for option in options if getattr(option, "__name__", "") != "Tensor")
        if options and all(option in _SIMPLE for option in options):
            found[key] = functools.reduce(operator.or_, options)
    return found


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
        for part in parts[cut:]:
            if not hasattr(found, part):
                raise ConfigError(
                    f"{slot}._target_={name}: {part} is not in {found.__name__}{did_you_mean(part, dir(found))}"
                )
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
