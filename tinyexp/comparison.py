"""From saved runs to what is compared: groups that differ in their config, and their scores.

Pure functions of what the runs say; nothing is printed or written here.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tinyexp.config import SLOTS
from tinyexp.errors import ConfigError, did_you_mean
from tinyexp.keys import BESIDE, flatten
from tinyexp.saved import SavedRun

_PHASES = {"val": "val", "train": "train_epoch"}  # as a metric says it -> as metrics.jsonl does
_NAMES = ("top1", "top5", "loss")
METRICS = tuple(f"{phase}/{name}" for phase in _PHASES for name in _NAMES)
_APART = (*BESIDE, "train.seed")  # runs that differ in these alone are one group
_MOST = sys.float_info.max
_MOST_COLUMNS = 4  # of keys, where there is a choice


@dataclass(frozen=True)
class Metric:
    """`val/top1` and its like: a column of metrics.jsonl at epochs' ends."""

    text: str

    def __post_init__(self) -> None:
        if self.text not in METRICS:
            raise ConfigError(f"--metric {self.text} is none of {', '.join(METRICS)}")

    @property
    def sign(self) -> int:
        """1 where more is better, else -1."""
        return -1 if self.text.endswith("/loss") else 1

    def best(self, values: Iterable[float]) -> float:
        return max(values, key=lambda value: self.sign * value)

    def series(self, run: SavedRun) -> dict[int, float]:
        phase, name = self.text.split("/")
        return series(run, _PHASES[phase], name)


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one run says of itself."""

    run: SavedRun
    keys: dict[str, str]  # its config, flat, each value as text that tells it from others
    status: str
    series: dict[int, float]  # epoch -> the metric
    best: float | None
    last: float | None
    seconds: float | None
    images_per_second: float | None
    parameters: int | None

    @property
    def counts(self) -> bool:
        """Only the end of a whole run is its result."""
        return self.status == "finished" and bool(self.series)

    @property
    def epochs(self) -> int | None:
        return _integer(self.run.summary.get("epochs"))

    @property
    def reason(self) -> str:
        """Why it does not count, where something is known: the first line of its error."""
        if self.status == "finished":
            return "its metrics.jsonl does not have the metric"
        if self.status == "killed":
            return "its process is gone without a word"
        return (str(self.run.summary.get("error") or "").strip().splitlines() or [""])[0]


def result(run: SavedRun, metric: Metric) -> Result:
    """Raises ConfigError for a config or metrics that cannot be read."""
    values = metric.series(run)
    speeds = series(run, "train_epoch", "images_per_second")
    return Result(
        run=run,
        keys={key: spelled(value) for key, value in flatten(run.config).items()},
        status=run.status,
        series=values,
        best=metric.best(values.values()) if values else None,
        last=values[max(values)] if values else None,
        seconds=_number(run.summary.get("seconds")),
        images_per_second=statistics.fmean(speeds.values()) if speeds else None,
        parameters=_integer(run.summary.get("parameters")),
    )


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (n - 1) of n values; one value has no deviation."""

    mean: float
    std: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


@dataclass(frozen=True, kw_only=True)
class Group:
    """Finished runs that differ in nothing that is compared: seeds of one experiment."""

    keys: dict[str, str]  # the compared keys that it has
    results: list[Result]
    best: Spread
    last: Spread
    seconds: float | None
    images_per_second: float | None
    parameters: list[int]  # one, but where --by leaves out what changes it

    def at(self, epoch: int) -> Spread | None:
        """The metric after an epoch; None where not all of the runs came that far."""
        values = [each.series[epoch] for each in self.results if epoch in each.series]
        return Spread.of(values) if len(values) == len(self.results) else None


def grouped(results: Iterable[Result], metric: Metric, by: Sequence[str] | None = None) -> list[Group]:
    """The runs that count, by the keys that differ among them or by those given; the best group first.

    Raises:
        ConfigError: `by` has a key that no run has.
    """
    counted = [result for result in results if result.counts]
    every = dict.fromkeys(key for result in counted for key in result.keys)
    for key in by or ():
        if counted and key not in every:
            raise ConfigError(f"--by {key}: no run has that key{did_you_mean(key, every)}")
    keys = differing([result.keys for result in counted]) if by is None else by
    groups: dict[tuple[str, ...], list[Result]] = {}
    for each in counted:
        groups.setdefault(tuple(each.keys.get(key, "") for key in keys), []).append(each)
    made = [_group(dict(zip(keys, values, strict=True)), members) for values, members in groups.items()]
    return sorted(made, key=lambda group: -metric.sign * group.best.mean)


def _group(keys: dict[str, str], members: list[Result]) -> Group:
    return Group(
        keys=keys,
        results=members,
        best=Spread.of([each.best for each in members if each.best is not None]),
        last=Spread.of([each.last for each in members if each.last is not None]),
        seconds=_mean(each.seconds for each in members),
        images_per_second=_mean(each.images_per_second for each in members),
        parameters=sorted({each.parameters for each in members if each.parameters is not None}),
    )


def differing(configs: Sequence[Mapping[str, str]]) -> list[str]:
    """The keys that say something of an experiment and differ among configs, in a config's order."""
    every = dict.fromkeys(key for config in configs for key in config)
    compared = [key for key in every if not key.startswith(_APART)]
    return [key for key in compared if len({config.get(key) for config in configs}) > 1]


def columns(
    groups: Sequence[Mapping[str, str]], most: int = _MOST_COLUMNS
) -> tuple[dict[str, list[str]], dict[str, str]]:
    """What tells groups apart, in few columns: column -> cells; and the keys left out -> the column they follow from.

    A group's `_target_` and `name` become one column: resnet18, LeNet5. Left out is what says nothing beyond another
    column: an argument that only some classes take, or a list; and beyond `most` columns what changes together.
    """
    keys = list(dict.fromkeys(key for group in groups for key in group))
    table = {key: [group.get(key, "") for group in groups] for key in keys}
    for slot in reversed(SLOTS):  # they come to stand in front
        table = _with_choice(table, slot)
    left_out = {}
    for key in [key for key in table if "." in key]:
        choice, cells = key.split(".")[0], table[key]
        if choice in table and _follows(cells, table[choice]) and any(cell[:1] in ("", "[") for cell in cells):
            left_out[key] = choice
            del table[key]
    for key in reversed(list(table)):
        if len(table) > most and (teller := _teller(table, key)):
            left_out[key] = teller
            del table[key]
    return table, left_out


def _teller(table: Mapping[str, list[str]], key: str) -> str | None:
    """The choice that a key's column follows from, or the first column before it that changes together with it."""
    names, cells, choice = list(table), table[key], key.split(".")[0]
    if choice != key and choice in table and _follows(cells, table[choice]):
        return choice
    earlier = names[: names.index(key)]
    return next((name for name in earlier if _follows(cells, table[name]) and _follows(table[name], cells)), None)


def _with_choice(table: dict[str, list[str]], slot: str) -> dict[str, list[str]]:
    """`slot._target_` and `slot.name` as one column `slot`, where that tells the same apart."""
    target, name = f"{slot}._target_", f"{slot}.name"
    if target not in table:
        return table
    pairs = list(zip(table[target], table.get(name, [""] * len(table[target])), strict=True))
    choices = [called or dotted.rpartition(".")[2] for dotted, called in pairs]
    if len(set(choices)) < len(set(pairs)):
        return table
    return {slot: choices} | {key: cells for key, cells in table.items() if key not in (target, name)}


def _follows(cells: Sequence[str], other: Sequence[str]) -> bool:
    """Does one column's cell always say what this one's is?"""
    return len(set(zip(cells, other, strict=True))) == len(set(other))


def spelled(value: Any) -> str:
    """A config's value as text, never empty: 1 and 1.0 are one, null and 'null' are two."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(spelled, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {spelled(item)}' for key, item in value.items())}}}"
    text = str(value)
    if isinstance(value, str) and (text in ("", "null", "true", "false") or text[0] in "['{" or _numeric(text)):
        return repr(text)
    return text


def _numeric(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def series(run: SavedRun, phase: str, name: str, over: str = "epoch") -> dict[int, float]:
    """Epoch, or step, -> value; raises ConfigError for what is no finite number."""
    found = {}
    for row in run.rows(phase):
        if name in row:
            place, value = row.get(over), row[name]
            if type(value) is not float or not abs(value) <= _MOST:  # else as nearly all of a hundred thousand are
                value = _number(value)
            if type(place) is not int or place < 1 or value is None:
                one = "an epoch" if over == "epoch" else f"a {over}"
                raise ConfigError(
                    f"{run.path / 'metrics.jsonl'}: {name} must be a finite number of {one}, "
                    f"got {row[name]!r} of {row.get(over)!r}: restore the file, or leave this run out"
                )
            found[place] = value
    return found


def common(runs: Sequence[Mapping[int, float]]) -> tuple[list[int], list[list[float]]]:
    """The epochs that all runs have, so that a mean is of the same runs everywhere; and their values."""
    epochs = sorted(set.intersection(*map(set, runs)))
    return epochs, [[run[epoch] for run in runs] for epoch in epochs]


def _number(value: object) -> float | None:
    """None for what is none, or not finite."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not abs(value) <= _MOST:
        return None
    return float(value)


def _integer(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None
