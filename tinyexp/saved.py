"""Runs as they lie on the disk, for whoever compares them: read as data, without torch or hydra, nothing evaluated."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn, TypeGuard

from tinyexp.errors import ConfigError
from tinyexp.lock import is_held
from tinyexp.plainfile import read

WEIGHTS = (".pt", ".pth", ".th", ".safetensors")  # what files of weights end in
_NOT_SEARCHED = ("tb", "checkpoints")  # and what is hidden
_STATUSES = ("running", "finished", "interrupted", "failed", "pruned")


@dataclass(frozen=True)
class Confusion:
    """What val's images were taken for, by the best epoch: (label, prediction, how many), none twice."""

    epoch: int
    classes: list[str]
    counts: list[tuple[int, int, int]]


class SavedRun:
    """What a run left in its directory. A file is read when it is first asked for, and once.

    A summary or environment that is missing or torn is empty, such a confusion matrix None; a config or metrics that
    cannot be read are an error.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.yaml, nested as it stands there.

        Raises:
            ConfigError: it is missing or no mapping of plain values.
        """
        return read(self.path / "config.yaml")

    @cached_property
    def summary(self) -> dict[str, Any]:
        return _json_or_empty(self.path / "summary.json")

    @cached_property
    def history(self) -> list[dict[str, Any]]:
        """The whole lines of metrics.jsonl; a last one without its end was being written, and is left out.

        Raises:
            ConfigError: a line is no JSON object of finite numbers, by its number.
        """
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return []
        rows: list[dict[str, Any]] = []
        try:
            lines = _read(path).split("\n")[:-1]
            if (all_at_once := _decode_lines(lines)) is not None:
                return all_at_once
            for line in lines:
                row = _decode(line)
                rows.append(row | {})  # an object, or TypeError
        except (ValueError, TypeError, RecursionError) as error:
            raise _broken(path, f"a JSON object in line {len(rows) + 1}", str(error)) from error
        return rows

    @cached_property
    def environment(self) -> dict[str, Any]:
        """env.json of the newest process: each resume has its own."""
        return _json_or_empty(self.path / f"env{self._stamp}.json")

    @cached_property
    def patch(self) -> str:
        """What the newest process's code differed by from its commit; "" where it did not, or too much to be kept."""
        path = self.path / f"code{self._stamp}.patch"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    @cached_property
    def confusion(self) -> Confusion | None:
        """Of the epoch that best.pt is of; None where confusion.json is missing, of another, or not as a run has it."""
        found = _json_or_empty(self.path / "confusion.json")
        epoch, classes, counts = found.get("epoch"), found.get("classes"), found.get("counts")
        if not (_whole(epoch, 1) and isinstance(classes, list) and classes and isinstance(counts, list)):
            return None
        lists = all(isinstance(each, list) and len(each) == 3 for each in counts)
        if not lists or not all(isinstance(name, str) for name in classes):
            return None
        last = len(classes) - 1
        if not all(_whole(a, 0, last) and _whole(b, 0, last) and _whole(count, 1) for a, b, count in counts):
            return None
        best = self.summary.get("best")
        if isinstance(best, dict) and best.get("epoch") != epoch:
            return None
        if len({(label, prediction) for label, prediction, _ in counts}) < len(counts):
            return None
        return Confusion(epoch, classes, [(label, prediction, count) for label, prediction, count in counts])

    @property
    def status(self) -> str:
        """running, finished, interrupted, failed or pruned, as the run said; killed: it could not say; or unknown."""
        said = self.summary.get("status", "unknown")
        if said == "running" and not is_held(self.path):
            return "killed"
        return said if said in _STATUSES else "unknown"

    def rows(self, phase: str) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl of one phase."""
        return self._phases.get(phase, [])

    @cached_property
    def _phases(self) -> dict[str, list[dict[str, Any]]]:
        """All lines are looked at once, of hundreds of runs and for several phases each."""
        phases: dict[str, list[dict[str, Any]]] = {}
        for row in self.history:
            phases.setdefault(str(row.get("phase")), []).append(row)
        return phases

    @cached_property
    def _stamp(self) -> str:
        """'' of the first process's files, '-TIME' of a resume's; they sort by time."""
        stamps = sorted(path.name[len("env") : -len(".json")] for path in self.path.glob("env-*.json"))
        return stamps[-1] if stamps else ""


def is_run(path: Path) -> bool:
    return (path / "config.yaml").is_file() and any(
        (path / name).is_file() for name in ("summary.json", "metrics.jsonl")
    )


def is_place(weights: str) -> bool:
    """Is this value of model.weights a file or a run, and no name?"""
    return "/" in weights or weights.endswith(WEIGHTS) or Path(weights).exists()


def find_checkpoint(path: str, name: str) -> Path:
    """The checkpoint that a user means: a file is itself, a run's directory its `name`.pt.

    Raises:
        ConfigError: neither is there.
    """
    given = Path(path)
    if given.is_dir():
        given = given / "checkpoints" / f"{name}.pt"
    if not given.is_file():
        raise ConfigError(
            f"{given} is not there: a run's directory (with checkpoints/{name}.pt) or a checkpoint is needed"
        )
    return given


def find_runs(paths: Iterable[str]) -> list[SavedRun]:
    """The runs at or anywhere below these paths, each once, sorted by path.

    Raises:
        ConfigError: a path is not there, or has no runs.
    """
    found: dict[Path, Path] = {}  # where it is in truth -> as it was reached
    for path in map(Path, paths):
        if not path.exists():
            raise ConfigError(f"{path} is not there: give a run's directory, or a folder with runs")
        runs = list(_search(path)) if path.is_dir() else []
        if not runs:
            raise ConfigError(
                f"{path} has no runs: a run is a directory with config.yaml and summary.json or metrics.jsonl"
            )
        for run in runs:
            found.setdefault(run.resolve(), run)
    return [SavedRun(path) for path in sorted(found.values())]


def _search(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        if "config.yaml" in files and ("summary.json" in files or "metrics.jsonl" in files):
            folders.clear()
            yield Path(parent)
        else:
            folders[:] = [name for name in folders if name[0] != "." and name not in _NOT_SEARCHED]


def _read(path: Path) -> str:
    """Raises ConfigError where the system refuses, and ValueError where it is no UTF-8."""
    try:
        return path.read_bytes().decode()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error


def _decode_lines(lines: Sequence[str]) -> list[dict[str, Any]] | None:
    """In a third of the time of one after the other; None where a line is no object by itself."""
    try:
        rows = _decode(f"[{','.join(lines)}]")
    except (ValueError, RecursionError):
        return None
    whole = len(rows) == len(lines) and all(line[:1] + line[-1:] == "{}" for line in lines)
    return rows if whole and all(isinstance(row, dict) for row in rows) else None


def _json_or_empty(path: Path) -> dict[str, Any]:
    try:
        value = _decode(path.read_bytes().decode())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _whole(value: object, least: int, most: int = 2**63 - 1) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number")


_decode = json.JSONDecoder(parse_constant=_refuse).decode


def _broken(path: Path, rule: str, got: str) -> ConfigError:
    return ConfigError(f"{path} must be {rule}, got {got}: restore the file, or leave this run out")
