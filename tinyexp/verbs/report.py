"""report DIR... [--by KEYS] [--metric NAME] [--out DIR] [trust=NAMES]: runs by what differs; or two side by side.

A NAME is one of val/top1, val/top5, val/loss, train/top1, ...; DIR gets report.md, report.csv and curves.png.
"""

from __future__ import annotations

import csv
import functools
import io
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tinyexp.comparison import (
    Group,
    Metric,
    Result,
    Spread,
    columns,
    commit,
    differences,
    grouped,
    patch_difference,
    result,
    surroundings,
)
from tinyexp.config import SLOTS
from tinyexp.console import duration
from tinyexp.errors import ConfigError
from tinyexp.files import write_text
from tinyexp.saved import SavedRun, find_runs, is_run
from tinyexp.sheet import Listing, Sheet, markdown, short_names, show
from tinyexp.stored import check_stored

_FIGURES = ("metric", "n", "best_mean", "best_std", "last_mean", "last_std", "seconds", "images_per_second")


@dataclass(frozen=True, kw_only=True)
class Report:
    parts: list[Sheet | Listing]
    curves: list[tuple[str, list[Result]]]
    key: str = ""  # what the curves' names are
    groups: list[Group] | None = None  # of report.csv; None where two runs are compared
    refused: int = 0


def main(paths: list[str], overrides: list[str], options: dict[str, str]) -> None:
    """Print the report, and write it to --out: report.md, report.csv, curves.png.

    Raises:
        ConfigError: no runs; an unknown metric or key; or, after the others were reported, runs that were refused.
    """
    metric, by = Metric(options.get("metric", "val/top1")), options.get("by")
    if others := [word for word in overrides if not word.startswith("trust=")]:
        raise ConfigError(f"report takes no overrides but trust=[...], got {others[0]}")
    runs = find_runs(paths)
    if len(paths) == len(runs) == 2 and all(is_run(Path(path)) for path in paths) and by is None:
        a, b = (_result(SavedRun(Path(path)), metric, overrides) for path in paths)
        report = _two(a, b, metric)
    else:
        report = _many(runs, metric, overrides, None if by is None else by.split(","))
    try:
        if "out" in options:
            given = [f"--{name}={value}" for name, value in options.items()]
            _write(Path(options["out"]), report, metric, shlex.join(["tinyexp", "report", *paths, *given, *overrides]))
    finally:
        show(report.parts)  # last, since a reader such as `head` may end the process here
    if report.refused:
        raise ConfigError(f"{report.refused} of {len(runs)} runs were refused and do not count: the report says why")


def _result(run: SavedRun, metric: Metric, overrides: list[str]) -> Result:
    """Raises ConfigError for a run that cannot be read, or whose config names what it may not."""
    groups = ((slot, run.config.get(slot)) for slot in SLOTS)
    named = ((slot, values.get("_target_")) for slot, values in groups if isinstance(values, dict))
    targets = tuple((slot, target) for slot, target in named if isinstance(target, str))
    if refusal := _refusal(targets, tuple(overrides)):
        raise ConfigError(f"{run.path}: {refusal}")
    return result(run, metric)


@functools.cache
def _refusal(targets: tuple[tuple[str, str], ...], overrides: tuple[str, ...]) -> str | None:
    """Why a config with these classes by slot is not read, if so: asked once of the hundreds of runs that name them."""
    try:
        check_stored({slot: {"_target_": target} for slot, target in targets}, overrides)
    except ConfigError as error:
        return str(error)
    return None


# many runs


def _many(runs: list[SavedRun], metric: Metric, overrides: list[str], by: list[str] | None) -> Report:
    results: list[Result] = []
    refused: dict[str, list[str]] = {}
    for run in runs:
        try:
            results.append(_result(run, metric, overrides))
        except ConfigError as error:
            refused.setdefault(str(error).removeprefix(f"{run.path}: "), []).append(str(run.path))
    num_refused = sum(map(len, refused.values()))
    groups = grouped(results, metric, by)
    keys = [group.keys for group in groups]
    table, left_out = columns(keys) if by is None else ({key: [each[key] for each in keys] for key in by}, {})
    rest = [each for each in results if not each.counts]
    parts: list[Sheet | Listing] = [_ranking(f"{len(results) - len(rest)} of {len(runs)} runs", metric, table, groups)]
    if left_out:
        told = {teller: [key for key in left_out if left_out[key] == teller] for teller in left_out.values()}
        lines = [f"{teller} tells {', '.join(reversed(keys))}" for teller, keys in told.items()]
        parts.append(Listing(title="left out", lines=lines))
    if rest:
        parts.append(_not_counted(rest))
    if refused:
        rows = [(_several(paths), why) for why, paths in refused.items()]
        parts.append(Sheet(title=f"refused: {num_refused}", heads=("directory", "why"), rows=rows))
    bests = ["best", *(f"{group.best.mean:.4f}" for group in groups)]
    key, *names = _aligned([bests, *([label, *table[key]] for key, label in short_names(list(table)).items())])
    curves = [(name, group.results) for name, group in zip(names, groups, strict=True)]
    return Report(parts=parts, key=key, curves=curves, groups=groups, refused=num_refused)


def _ranking(title: str, metric: Metric, table: dict[str, list[str]], groups: list[Group]) -> Sheet:
    figures = ("n", "best", "last", "time", "img/s", "params")
    rows = [
        (
            "★" if i == 0 else "",
            *(cells[i] for cells in table.values()),
            str(group.best.n),
            _spread(group.best),
            _spread(group.last),
            "" if group.seconds is None else duration(group.seconds),
            "" if group.images_per_second is None else f"{group.images_per_second:,.0f}",
            " to ".join(dict.fromkeys(_rounded(number) for number in (*group.parameters[:1], *group.parameters[-1:]))),
        )
        for i, group in enumerate(groups)
    ]
    labels = [_folded(label, table[key]) for key, label in short_names(list(table)).items()]
    return Sheet(
        title=f"{title}, by {metric.text}",
        heads=("", *table, *figures),
        labels=("", *labels, *figures),
        rows=rows,
        right=frozenset(figures).union(key for key, cells in table.items() if all(map(str.isdigit, cells))),
        spare=("params", "img/s", "time", "last"),
        mark_first=True,
    )


def _not_counted(results: list[Result]) -> Sheet:
    heads = ("directory", "status", "exit code", "epochs", "error")
    rows = [
        (str(each.run.path), each.status, _plain(each.run.summary.get("exit_code")), _plain(each.epochs), each.reason)
        for each in results
    ]
    right = frozenset(("exit code", "epochs"))
    return Sheet(title=f"not counted: {len(rows)}", heads=heads, rows=rows, right=right)


# two runs


def _two(a: Result, b: Result, metric: Metric) -> Report:
    heads = ("", "A", "B")
    rows = list(zip(("directory", *_LINES), *((str(run.run.path), *_lines(run)) for run in (a, b)), strict=True))
    parts: list[Sheet | Listing] = [Sheet(title=f"scores by {metric.text}", heads=heads, rows=rows)]
    commits = commit(a.run), commit(b.run)
    for title, what in (
        ("config", differences(a.keys, b.keys)),
        ("environment", differences(surroundings(a.run), surroundings(b.run))),
        ("code", [("commit", *commits)] if commits[0] != commits[1] or commits[0] == "unknown" else []),
    ):
        parts.append(Sheet(title=title, heads=heads, rows=what) if what else Listing(title=title, lines=["same"]))
    changes = patch_difference(a.run, b.run) if "unknown" not in commits else ["unknown: not run in a git repository"]
    parts.append(Listing(title="changes since the commit", lines=changes or ["same"], diff=bool(changes)))
    return Report(parts=parts, curves=[(f"{name}  {run.run.path.name}", [run]) for name, run in (("A", a), ("B", b))])


_LINES = ("status", "epochs", "best", "last", "time", "img/s", "parameters")


def _lines(result: Result) -> tuple[str, ...]:
    best = [epoch for epoch, value in result.series.items() if value == result.best]
    told = (result.run.summary.get("best") or {}).get("epoch")  # of several that are equal, the run's own choice
    best = [told] if told in best else best
    return (
        result.status,
        _plain(result.epochs),
        f"{result.best:.4f} (epoch {best[0]})" if result.best is not None else "",
        f"{result.last:.4f}" if result.last is not None else "",
        duration(result.seconds) if result.seconds is not None else "",
        f"{result.images_per_second:,.0f}" if result.images_per_second is not None else "",
        f"{result.parameters:,}" if result.parameters is not None else "",
    )


# words


def _several(paths: Sequence[str]) -> str:
    return paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"


def _spread(spread: Spread) -> str:
    return f"{spread.mean:.4f}" if spread.std is None else f"{spread.mean:.4f} ± {spread.std:.4f}"


def _rounded(number: int) -> str:
    """61,706 -> 61.7k; 11,181,642 -> 11.2M."""
    unit, name = (1e6, "M") if number >= 1e6 else (1e3, "k")
    return f"{number / unit:.1f}{name}" if number >= 1e3 else str(number)


def _plain(value: object) -> str:
    return "" if value is None else str(value)


def _aligned(columns: Sequence[Sequence[str]]) -> list[str]:
    """The lines of columns, each as wide as its widest cell."""
    padded = [[cell.ljust(max(map(len, cells))) for cell in cells] for cells in columns]
    return ["  ".join(cells) for cells in zip(*padded, strict=True)]


def _folded(label: str, cells: Sequence[str]) -> str:
    """In two lines where a column is narrower than its head."""
    return label.replace("_", "_\n") if len(label) > max(map(len, cells), default=0) else label


# to files


def _write(folder: Path, report: Report, metric: Metric, command: str) -> None:
    """Raises ConfigError where `folder` can be none, else as files.written_aside."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {folder} cannot be a folder: {error.strerror}") from error
    curves = [(name, [each.series for each in results]) for name, results in report.curves]
    curves = [(name, series) for name, series in curves if all(series)]
    head = [f"# Report\n\n    {command}\n"]
    if curves:
        from tinyexp.figure import Curve, draw_curves  # matplotlib takes half a second, which a table need not wait for

        drawn = [Curve(label=name, series=series) for name, series in curves]
        draw_curves(folder / "curves.png", metric.text, report.key, drawn)
        head.append(f"![{metric.text} over the epochs](curves.png)\n")
    if report.groups is not None:
        write_text(folder / "report.csv", _csv(report.groups, metric))
    write_text(folder / "report.md", "\n".join([*head, *map(markdown, report.parts)]))


def _csv(groups: Sequence[Group], metric: Metric) -> str:
    """A row a group: every key that differs, and raw numbers; an empty cell is a value that is not there."""
    keys = list(groups[0].keys) if groups else []
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((*keys, *_FIGURES, "parameters", "runs"))
    for group in groups:
        best, last = group.best, group.last
        figures = (best.n, best.mean, best.std, last.mean, last.std, group.seconds, group.images_per_second)
        lists = (" ".join(map(str, group.parameters)), " ".join(str(each.run.path) for each in group.results))
        writer.writerow((*(group.keys[key] for key in keys), metric.text, *figures, *lists))
    return text.getvalue()
