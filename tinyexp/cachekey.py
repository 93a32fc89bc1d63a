"""The key of a call: a digest of a function's name and code and of some of its arguments, the same in any process.

numpy and torch are imported where they are used, since `import tinyexp` must stay quick.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import inspect
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import CodeType
from typing import TYPE_CHECKING, Any

from tinyexp.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np

_KEYS = (
    "None, bool, int, float, str, bytes, list, tuple, dict, numpy array, torch tensor, pathlib.Path, enum and dataclass"
)


def call_key(version: str, name: str, code: str, arguments: dict[str, Any], items: Iterable[str]) -> str:
    """32 hex digits of a call of the function of this name and code.

    Args:
        version: of what is kept under the key.
        arguments: all of the call's, by name.
        items: the arguments that count, or attributes of `self`, whose class counts too.

    Raises:
        ConfigError: a value of a type that can be no part of a key, or an attribute that is missing.
    """
    owner = class_name(arguments["self"]) if "self" in arguments else ""
    parts = [_text(part) for part in (version, name, owner, code)]
    for item in sorted(set(items)):
        parts += [_text(item), _digest(_value(arguments, item, name), f"{item} of {name}")]
    return _hash("call", *parts).hex()


def read_source(function: Callable[..., object]) -> str:
    """Read once, at decoration, since the file may be edited while the process runs on."""
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        return _bytecode(inspect.unwrap(function).__code__)


def _bytecode(code: CodeType) -> str:
    constants = []
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            constants.append(_bytecode(constant))
        elif isinstance(constant, frozenset):  # its order changes with the process
            constants.append(repr(sorted(map(repr, constant))))
        else:
            constants.append(repr(constant))
    return repr((code.co_code.hex(), constants, code.co_names))


def class_name(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def is_tensor(value: object) -> bool:
    """A dense one. Without torch in the process there is none."""
    torch: Any = sys.modules.get("torch")
    return (
        torch is not None
        and isinstance(value, torch.Tensor)
        and value.layout is torch.strided
        and not value.is_quantized
    )


def is_array(value: object) -> bool:
    """One of numpy's arrays or numbers that a file gives back as it was: no objects, mask or foreign type."""
    import numpy as np

    if type(value) not in (np.ndarray, np.memmap) and not isinstance(value, np.generic):
        return False
    dtype = value.dtype  # type: ignore[attr-defined]
    return not dtype.hasobject and np.lib.format.descr_to_dtype(np.lib.format.dtype_to_descr(dtype)) == dtype


def tensor_bytes(tensor: Any) -> np.ndarray[Any, Any]:
    """(bytes,) uint8, of any dtype: numpy has no bfloat16."""
    torch: Any = sys.modules["torch"]
    flat: Any = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy()  # type: ignore[no-any-return]


def _value(arguments: dict[str, Any], item: str, name: str) -> Any:
    if item in arguments:
        return arguments[item]
    owner = arguments["self"]
    try:
        return getattr(owner, item)
    except AttributeError as error:
        raise ConfigError(
            f"@cached of {name}: its key names {item}, which is neither a parameter nor an attribute of "
            f"this {type(owner).__name__}: {error}"
        ) from error


def _hash(kind: str, *parts: bytes) -> bytes:
    """Of a kind, so that 1, True, "1" and 1.0 differ, and of parts with their lengths, so that ab+c and a+bc do."""
    sha = hashlib.blake2b(digest_size=16)
    for part in (kind.encode(), *parts):
        sha.update(len(part).to_bytes(8, "little"))
        sha.update(part)
    return sha.digest()


def _text(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _digest(value: Any, key: str) -> bytes:
    """Of a value in its canonical form.

    Raises:
        ConfigError: a type that has none here, or a file that is not there; it names the key.
    """
    if isinstance(value, enum.Enum):
        return _hash("enum", _text(class_name(value)), _digest(value.name or value.value, key))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [(_text(field.name), _digest(getattr(value, field.name), key)) for field in dataclasses.fields(value)]
        return _hash("dataclass", _text(class_name(value)), *(part for field in fields for part in field))
    if isinstance(value, Path):
        return _hash("path", *_path_parts(value, key))
    kind = type(value).__name__
    if type(value) in (type(None), bool, int, float, str):
        # the hexadecimal of an int is never refused for its length
        return _hash(kind, _text(hex(value) if type(value) is int else str(value)))
    if type(value) is bytes:
        return _hash(kind, value)
    if type(value) in (list, tuple):
        return _hash(kind, *(_digest(item, key) for item in value))
    if type(value) is dict:
        return _hash(kind, *sorted(_digest(name, key) + _digest(item, key) for name, item in value.items()))
    return _digest_array(value, key)


def _digest_array(value: Any, key: str) -> bytes:
    if is_tensor(value):
        return _hash("tensor", _text(f"{value.dtype} {tuple(value.shape)}"), tensor_bytes(value).tobytes())
    if is_array(value):
        return _hash("array", _text(f"{value.dtype} {value.shape}"), value.tobytes())
    raise ConfigError(f"@cached: {key} is of type {class_name(value)}; a key can be of {_KEYS}")


def _path_parts(path: Path, key: str) -> list[bytes]:
    """Its absolute path, and size and time of the file or of each file below the folder."""
    try:
        files = sorted(file for file in path.rglob("*") if not file.is_dir()) if path.is_dir() else [path]
        found = [(os.fsencode(file.absolute()), file.stat()) for file in files]
    except OSError as error:
        raise ConfigError(
            f"@cached: {key} is a Path that cannot be read: {error.filename}: {error.strerror}"
        ) from error
    sizes = [(name, _text(f"{status.st_size} {status.st_mtime_ns}")) for name, status in found]
    return [os.fsencode(path.absolute()), *(part for file in sizes for part in file)]
