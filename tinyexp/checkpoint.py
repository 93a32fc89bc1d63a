"""Checkpoints: what is written, how it is checked before it is used, and what to fall back to.

A file is {"format", "state", "config", "data"}: tensors and JSON types, read with weights_only=True and no other way.
"""

from __future__ import annotations

import io
import logging
import re
import zipfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from tinyexp.errors import ConfigError, IntegrityError, NonFiniteError, TinyexpError
from tinyexp.files import sweep, written_aside

FORMAT = 1
_PARTS = {  # and what each must have, whatever the checkpoint is for
    "state": ("model", "epoch", "step", "best"),
    "config": (),
    "data": ("classes", "image_shape", "mean", "std", "fingerprint"),
}
_log = logging.getLogger(__name__)


class Checkpointer:
    """Writes a run's checkpoints, one after the other, in a thread of its own: the loop waits for the copy alone."""

    def __init__(self, folder: Path, keep: int) -> None:
        folder.mkdir(exist_ok=True)
        sweep(folder)
        self._folder = folder
        self._keep = keep
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: list[Future[None]] = []
        self._proven = False
        self._failed = False
        self.constants: frozenset[str] = frozenset()  # tensors that may hold inf, since they did before the first step

    def save(self, content: dict[str, Any], *names: str) -> None:
        """Write `content` as each of `names` (best, epoch-0001, last), in this order; last becomes prev first.

        What is written is what `content` holds now, whatever training does next. Errors of the writing itself are
        raised by the next `save` or by `wait`.

        Raises:
            NonFiniteError: a tensor holds inf or nan; nothing was written.
            ConfigError: the state holds what could not be read back; found at the first save.
            ResourceError: the disk is full. What stood there before is as it was.
        """
        if broken := non_finite(content["state"]) - self.constants:
            raise NonFiniteError(
                f"{min(broken)} holds inf or nan and is not saved; the one before stands. Try a lower optim.lr"
            )
        self.wait(leave=1)  # copies of two are held at most
        buffer = io.BytesIO()
        torch.save(content, buffer)
        if not self._proven:
            _prove(buffer)
            self._proven = True
        self._pending.append(self._writer.submit(self._write, buffer, names))

    def wait(self, leave: int = 0) -> None:
        """Until all that was saved, but for the `leave` latest, is on the disk; raises what went wrong with it."""
        while len(self._pending) > leave:
            self._pending.pop(0).result()

    def poll(self) -> None:
        """Raise what went wrong with a save that has ended, without waiting for one that has not."""
        while self._pending and self._pending[0].done():
            self._pending.pop(0).result()

    def close(self) -> None:
        """Wait; an error is only logged, since another is on its way."""
        try:
            self.wait()
        except TinyexpError as error:
            _log.error("%s", error)
        self._writer.shutdown()

    def _write(self, buffer: io.BytesIO, names: tuple[str, ...]) -> None:
        if self._failed:  # a last.pt that came after would say of best.pt what is not so
            return
        self._failed = True
        for name in names:
            previous = self._folder / "prev.pt" if name == "last" else None
            with written_aside(self._folder / f"{name}.pt", previous) as file:
                file.write(buffer.getbuffer())
            if name.startswith("epoch-"):
                for old in sorted(self._folder.glob("epoch-*.pt"))[: -self._keep]:
                    old.unlink(missing_ok=True)
        self._failed = False


def non_finite(state: dict[str, Any]) -> frozenset[str]:
    """The names of the tensors that hold inf or nan; waits for the device.

    A finite sum shows it for all its terms, and is taken faster than a look at each.
    """
    floating = ((name, tensor) for name, tensor in _tensors(state, "") if tensor.is_floating_point())
    return frozenset(name for name, tensor in floating if not (tensor.sum().isfinite() or tensor.isfinite().all()))


def _prove(buffer: io.BytesIO) -> None:
    """Raises ConfigError for what torch.save takes and a safe load does not: an object in a user's scheduler, say."""
    try:
        decode(buffer.getvalue(), "the first checkpoint")
    except IntegrityError as error:
        raise ConfigError(f"{error}: keep a model's, an optimizer's and a scheduler's state to these") from error


def read_checked(path: Path) -> bytes:
    """A checkpoint's bytes, every one of them checked: torch.load would take a flipped bit for a weight.

    Raises:
        ConfigError: there is no such file.
        IntegrityError: it is not whole, or not what was written.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            damaged = archive.testzip()
    except Exception as error:  # zipfile raises a dozen kinds for damaged headers
        raise IntegrityError(f"{path} is damaged or no checkpoint: {error}") from error
    if damaged is not None:
        raise IntegrityError(f"{path} is damaged: the checksum of {damaged} is wrong")
    return content


def decode(content: bytes, origin: str) -> dict[str, Any]:
    """A checkpoint from its checked bytes, tensors on the CPU; `origin` names it in errors.

    Raises:
        IntegrityError: it holds more than tensors and plain values, or is no checkpoint of ours.
    """
    return check_ours(plain(content, origin), origin)


def plain(content: bytes, origin: str) -> Any:
    """What torch.save wrote, tensors on the CPU. Raises IntegrityError for more than tensors and plain values."""
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises as many kinds as pickle does
        named = re.search(r"GLOBAL (\S+)|Unsupported (?:class|global) (\S+)", str(error))
        told = (
            f"it names {next(filter(None, named.groups()))}: save a state_dict() alone" if named else "it is not whole"
        )
        raise IntegrityError(f"{origin} cannot be loaded as tensors and plain values: {told}") from error


def check_ours(checkpoint: Any, origin: str) -> dict[str, Any]:
    """Raises IntegrityError for what is no checkpoint of ours."""
    if not isinstance(checkpoint, dict) or checkpoint.get("format") != FORMAT:
        found = checkpoint.get("format") if isinstance(checkpoint, dict) else type(checkpoint).__name__
        raise IntegrityError(f"{origin} must be a tinyexp checkpoint of format {FORMAT}, found {found}")
    for part, keys in _PARTS.items():
        held = checkpoint.get(part)
        lacking = [f"{part}.{key}" for key in keys if key not in held] if isinstance(held, dict) else [part]
        if lacking:
            raise IntegrityError(f"{origin} is no checkpoint that tinyexp wrote: it lacks {lacking[0]}")
    if wrong := _wrong(checkpoint):
        raise IntegrityError(f"{origin} is no checkpoint that tinyexp wrote: {wrong} is not what it should be")
    return checkpoint


def _wrong(checkpoint: dict[str, Any]) -> str | None:
    """The first part that is of another kind than we write."""
    data, state = checkpoint["data"], checkpoint["state"]
    texts = {name: data[name] for name in ("classes", "names") if name in data}
    numbers = {name: data[name] for name in ("image_shape", "mean", "std")}
    rules = {
        **{f"data.{name}": _all(values, str) for name, values in texts.items()},
        **{f"data.{name}": _all(values, (int, float)) for name, values in numbers.items()},
        "state.model": _is_state_dict(state["model"]),
        "state.ema": state.get("ema") is None or _is_state_dict(state["ema"]),
    }
    if all(rules.values()):
        rules["data.names"] = len(data.get("names", data["classes"])) == len(data["classes"])
        rules["data.image_shape"] = len(data["image_shape"]) == 3
        rules["data.mean"] = len(data["mean"]) == len(data["std"])
    return next((name for name, holds in rules.items() if not holds), None)


def _all(values: Any, kind: Any) -> bool:
    return isinstance(values, (list, tuple)) and bool(values) and all(isinstance(value, kind) for value in values)


def _is_state_dict(value: Any) -> bool:
    """A module may keep more than tensors in its state: any value under a name."""
    return isinstance(value, dict) and all(isinstance(name, str) for name in value)


def load(path: Path) -> dict[str, Any]:
    """Raises as read_checked and decode."""
    return decode(read_checked(path), str(path))


def weights_to_use(checkpoint: dict[str, Any]) -> dict[str, torch.Tensor]:
    """A checkpoint's state dict of the network: the averaged one where there is one."""
    state = checkpoint["state"]
    weights: dict[str, torch.Tensor] = state.get("ema") or state["model"]
    return weights


def read_latest(folder: Path) -> bytes | None:
    """The newest checkpoint of a run that passes its check: last.pt, else prev.pt; None where there is neither.

    Raises:
        IntegrityError: all that is there is damaged.
    """
    there = [path for path in (folder / "last.pt", folder / "prev.pt") if path.is_file()]
    for position, path in enumerate(there, start=1):
        try:
            return read_checked(path)
        except IntegrityError as error:
            if position == len(there):
                raise
            aside = path.replace(path.with_name(f"{path.stem}.damaged.pt"))  # else it would become prev.pt
            _log.warning("%s; kept as %s; going on from %s, the one before", error, aside.name, there[position])
    return None


def _tensors(value: Any, name: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Each tensor in nested dicts and lists, with its dotted name."""
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _tensors(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (list, tuple)):
        for position, item in enumerate(value):
            yield from _tensors(item, f"{name}.{position}")
