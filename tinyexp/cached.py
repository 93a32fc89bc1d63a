"""`@cached`: a function's result, kept on the disk under its code and its named arguments; plain data alone.

numpy and torch are imported where they are used, since `import tinyexp` must stay quick.
"""

from __future__ import annotations

import functools
import inspect
import json
import logging
import os
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, ParamSpec, TypeVar

from tinyexp.cache import build_once
from tinyexp.cachekey import call_key, class_name, is_array, is_tensor, read_source, tensor_bytes
from tinyexp.errors import ConfigError, TinyexpError, did_you_mean

if TYPE_CHECKING:
    import numpy as np

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")

_FORMAT = "1"  # of the files; part of the key
_FOLDER = "~/.cache/tinyexp/cached"
_TREE = "tree"  # the array that holds the JSON; the others are named by number
_MISSING = object()
_RESULTS = "None, bool, int, float, str, bytes, list, tuple, dict with str keys, numpy array or number and torch tensor"

_log = logging.getLogger(__name__)


def cached(
    *, key: Sequence[str], ignore: Sequence[str] = (), folder: str | Path | None = None
) -> Callable[[Callable[_Parameters, _Result]], Callable[_Parameters, _Result]]:
    """Keep a function's results in files, and take them from there when it is called so again, in any process.

    The file's key is made of the function's name and source code and of the values named here. What the function
    calls or reads elsewhere is no part of it: of a file, give its `Path`, which counts with its size and time.

    Args:
        key: parameters, and of a method also attributes of `self`, whose class counts too.
        ignore: parameters that change nothing in the result.
        folder: where the files are; ~/.cache/tinyexp/cached if not given. What is in it may be deleted at any time.

    Returns:
        A decorator. A result comes back as plain data: tensors on the CPU and detached, numpy's numbers as Python's.

    Raises:
        ConfigError: a parameter that is neither in key nor in ignore, or a name that is none; at a call, a value of
            a type that can be no part of a key or of a result, or an attribute that is missing.
        TinyexpError: at a call, as build_once.
    """

    def decorate(function: Callable[_Parameters, _Result]) -> Callable[_Parameters, _Result]:
        signature = inspect.signature(function)
        name = f"{function.__module__}.{function.__qualname__}"
        _check_names(signature, name, key, ignore)
        code = read_source(function)
        short = re.sub(r"[^\w.-]+", "_", function.__qualname__, flags=re.ASCII).lstrip("._")[-80:]

        @functools.wraps(function)
        def wrapper(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Result:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            digest = call_key(_FORMAT, name, code, bound.arguments, key)
            path = Path(folder or _FOLDER).expanduser() / f"{short}-{digest}.npz"
            result: _Result = _fetch(path, functools.partial(function, *args, **kwargs), f"{short} {digest}")
            return result

        return wrapper

    return decorate


def _check_names(signature: inspect.Signature, name: str, key: Sequence[str], ignore: Sequence[str]) -> None:
    if isinstance(key, str) or isinstance(ignore, str):
        raise ConfigError(f"@cached of {name}: key and ignore are lists of names: write ['size'] and not 'size'")
    parameters = {item: parameter for item, parameter in signature.parameters.items() if item != "self"}
    for item, parameter in parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise ConfigError(f"@cached of {name}: {parameter} has no names for a key: write each parameter out")
        if (item in key) == (item in ignore):
            found = "both" if item in key else "neither"
            raise ConfigError(
                f"@cached of {name}: the parameter {item} must stand in key or in ignore, and stands in {found}: "
                "put it in key if the result depends on it, else in ignore"
            )
    for item in [*ignore, *([] if "self" in signature.parameters else key)]:
        if item not in parameters:
            raise ConfigError(f"@cached of {name}: {item} is no parameter{did_you_mean(item, parameters)}")


# the file


def _fetch(path: Path, compute: Callable[[], Any], label: str) -> Any:
    begin = time.perf_counter()
    while (result := _read(path)) is _MISSING:
        call = _Call(compute)
        try:
            made = build_once(path, call.write, label, setting="another folder to @cached")
        except _FunctionError:
            made = False
        if call.failure is not None:
            raise call.failure  # here, so that what the function raised is told as its own
        if made:
            _log.info("cached: miss %s, computed in %.1f s", label, call.seconds)
            return call.result
    _log.info("cached: hit %s (%.3f s)", label, time.perf_counter() - begin)
    return result


class _FunctionError(Exception):
    """Carries what the function raised past build_once, which would take its full disk for the cache's."""


class _Call:
    """One computation, and what came of it."""

    def __init__(self, compute: Callable[[], Any]) -> None:
        self._compute = compute
        self.failure: OSError | None = None
        self.result: Any = None
        self.seconds = 0.0

    def write(self, aside: Path) -> None:
        import numpy as np

        begin = time.perf_counter()
        try:
            value = self._compute()
        except OSError as error:
            self.failure = error
            raise _FunctionError from error
        self.seconds = time.perf_counter() - begin
        arrays: dict[str, Any] = {}
        tree = _encode(value, arrays)
        self.result = _decode(tree, arrays)  # as it will come back from the file
        arrays[_TREE] = np.frombuffer(json.dumps(tree).encode(), np.uint8)
        with aside.open("xb") as file:
            np.savez(file, **arrays)


def _read(path: Path) -> Any:
    """The result, or _MISSING where there is none; a damaged file is told and removed.

    Raises:
        TinyexpError: there is a file, and the system refuses to open it.
    """
    import numpy as np

    try:
        file = path.open("rb")
    except FileNotFoundError:
        return _MISSING
    except OSError as error:
        raise TinyexpError(f"{path} cannot be read: {error.strerror}") from error
    with file:
        try:
            with np.load(file, allow_pickle=False) as arrays:
                return _decode(json.loads(arrays[_TREE].tobytes()), arrays)
        except MemoryError:
            raise
        except Exception as error:  # what a damaged file makes zipfile, numpy and json raise is of a dozen kinds
            _log.warning("cached: %s is damaged and is computed again: %s", path, error)
            _remove_damaged(path, file)
            return _MISSING


def _remove_damaged(path: Path, file: BinaryIO) -> None:
    """Not the whole one that another process may have put there meanwhile."""
    try:
        if os.path.samestat(path.stat(), os.fstat(file.fileno())):
            path.unlink()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise TinyexpError(f"{path} is damaged and cannot be removed: {error.strerror}") from error


def _encode(value: Any, arrays: dict[str, Any]) -> Any:
    """A value as JSON; what JSON has no word for is [its kind, ...], and arrays are put aside.

    Raises:
        ConfigError: a type that could not come back as it was.
    """
    kind = type(value).__name__
    if type(value) in (type(None), bool, int, float, str):
        return value
    if type(value) in (list, tuple):
        return [kind, [_encode(item, arrays) for item in value]]
    if type(value) is dict and all(type(name) is str for name in value):
        return [kind, {name: _encode(item, arrays) for name, item in value.items()}]
    if is_tensor(value):
        return ["tensor", _put(tensor_bytes(value), arrays), str(value.dtype).removeprefix("torch."), [*value.shape]]
    return _encode_numpy(value, arrays)


def _encode_numpy(value: Any, arrays: dict[str, Any]) -> Any:
    import numpy as np

    if type(value) is bytes:
        return ["bytes", _put(np.frombuffer(value, np.uint8), arrays)]
    if is_array(value):
        if isinstance(value, np.ndarray):
            return ["array", _put(np.asarray(value), arrays)]
        plain = value.item() if value.dtype.kind in "biufU" else None  # a datetime64 would become an int
        if type(plain) in (bool, int, float, str):  # not a longdouble
            return plain
    raise ConfigError(
        f"@cached: the result has a {class_name(value)}, which could not come back as it was; "
        f"it can be of {_RESULTS}: return one of these"
    )


def _put(array: np.ndarray[Any, Any], arrays: dict[str, Any]) -> str:
    name = str(len(arrays))
    arrays[name] = array
    return name


def _decode(tree: Any, arrays: Any) -> Any:
    """The value; any error where the file is not one of ours."""
    if not isinstance(tree, list):
        return tree
    kind, content, *more = tree
    if kind in ("list", "tuple"):
        items = [_decode(item, arrays) for item in content]
        return items if kind == "list" else tuple(items)
    if kind == "dict":
        return {name: _decode(item, arrays) for name, item in content.items()}
    if kind == "bytes":
        return arrays[content].tobytes()
    if kind == "array":
        return arrays[content]
    if kind == "tensor":
        return _decode_tensor(arrays[content], *more)
    raise ValueError(f"it has a {kind}")


def _decode_tensor(flat: np.ndarray[Any, Any], name: str, shape: list[int]) -> Any:
    import torch

    dtype = getattr(torch, name)  # only torch's own kinds of number are taken below, and nothing is called
    # an empty one of numpy's may have strides that forbid the view
    return (torch.from_numpy(flat).view(dtype) if flat.size else torch.empty(0, dtype=dtype)).reshape(shape)
