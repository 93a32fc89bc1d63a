"""What all ranks of a run must have in common, and how they are told when they have not."""

from __future__ import annotations

import hashlib
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path

from tinyexp.config import SLOTS, Config
from tinyexp.keys import flatten

_PACKAGES = ("torch", "torchvision", "numpy", "pillow")
_SHARED = "log.tensorboard.each_epoch"  # all wait while rank 0 draws
_OWN = (  # what each machine may have of its own: a key, or with a dot all that begin so
    "run.",
    "sweep.",
    "resume",
    "init_from",
    "model.weights",  # rank 0 reads it
    "config_file",
    "trust",
    "log.level",
    "log.tensorboard.",
    "hw.device",  # what it leads to is compared
    "hw.threads",
    "hw.procs",
    "hw.node",
    "hw.master",
    "hw.max_restarts",
    "hw.join_timeout",
    "dataset.root",
    "dataset.archive",
    "dataset.cache_dir",
    "dataset.max_gb",
    "dataset.workers",
    "dataset.start_method",
    "dataset.preview",
)


def describe(config: Config, data: str, device: str) -> dict[str, str]:
    """What must be equal, by name: each key of the config, the program, the libraries, the data's fingerprint."""
    keys = {key: str(value) for key, value in flatten(config.plain).items() if not _is_own(key)}
    versions = {name: metadata.version(name) for name in _PACKAGES}
    return {
        **keys,
        "the device": device,
        "the version of Python": ".".join(platform.python_version_tuple()[:2]),
        **{f"the version of {name}": version for name, version in versions.items()},
        "tinyexp's code": _digest(sorted(Path(__file__).parent.rglob("*.py"))),
        **_own_code(config),
        "the data": data,
    }


def difference(ranks: Sequence[str], described: Sequence[Mapping[str, str]]) -> str | None:
    """The first thing that is not the same on all ranks, in words that name two of them and the cure."""
    first = described[0]
    for rank, theirs in zip(ranks, described, strict=True):
        names = [name for name in {**first, **theirs} if first.get(name) != theirs.get(name)]
        if names:
            name, more = names[0], f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            mine, other = (str(values.get(name, "not there")) for values in (first, theirs))
            cure = "give each machine the same words" if "." in name else "make them the same on each machine"
            return f"{name} is {mine} on {ranks[0]} and {other} on {rank}{more}: {cure}"
    return None


def _is_own(key: str) -> bool:
    return key != _SHARED and any(key.startswith(own) if own.endswith(".") else key == own for own in _OWN)


def _own_code(config: Config) -> dict[str, str]:
    """The files of the user's own classes."""
    targets = {slot: getattr(config, slot).target for slot in SLOTS}
    found = {}
    for slot, target in targets.items():
        file = getattr(sys.modules.get(target.rpartition(".")[0]), "__file__", None)
        if file and not target.startswith(("tinyexp.", "torch.", "torchvision.")):
            found[f"the code of {slot}"] = _digest([Path(file)])
    return found


def _digest(files: Iterable[Path]) -> str:
    content = hashlib.blake2b(digest_size=8)
    for path in files:
        content.update(f"{path.name}\0".encode() + path.read_bytes())
    return content.hexdigest()
