"""report DIR... [--by KEYS] [--metric NAME] [--epochs LIST] [--out DIR] [trust=NAMES]: runs by what differs.

A NAME is one of val/top1, val/top5, val/loss, train/top1, ...; a LIST as 1,5,10 makes a column of each of these epochs.
Two runs are put side by side; a sweep's directory is told by what the sweep varied. --out gets report.md, report.csv
and curves.png: loss and top1 of train and val by epoch and step; the metric alone where it is given, or rows are many.
"""

from __future__ import annotations

import csv
import functools
import io
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tinyexp.comparison import Group, Metric, Result, columns, differing, grouped, result
from tinyexp.config import SLOTS
from tinyexp.console import duration
from tinyexp.errors import ConfigError
from tinyexp.files import write_text
from tinyexp.ledger import PastJob, read_jobs
from tinyexp.saved import SavedRun, find_runs, is_run
from tinyexp.sheet import Listing, Sheet, aligned, folded, markdown, plain, rounded, short_names, show, spread
from tinyexp.stored import check_stored
from tinyexp.verbs._two import beside

_FIGURES = ("metric", "n", "best_mean", "best_std", "last_mean", "last_std", "seconds", "images_per_second")


@dataclass(frozen=True, kw_only=True)
class Report:
    parts: list[Sheet | Listing]
    curves: list[tuple[str, list[Result]]]
    key: str = ""  # what the curves' names are
    rows: list[Row] | None = None  # of report.csv; None where two runs are compared
    refused: int = 0


@dataclass(frozen=True, kw_only=True)
class Row:
    """Of the table: a group, or jobs of a sweep of which none has a result."""

    keys: dict[str, str]
    paths: list[Path]
    group: Group | None


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What is asked for."""

    metric: Metric
    by: list[str] | None
    epochs: list[int]
    trust: list[str]

    @property
    def heads(self) -> list[str]:
        """Of the epochs' columns: top1@5."""
        return [f"{self.metric.text.removeprefix('val/')}@{epoch}" for epoch in self.epochs]


def main(paths: list[str], overrides: list[str], options: dict[str, str]) -> None:
    """Print the report, and write it to --out: report.md, report.csv, curves.png.

    Raises:
        ConfigError: no runs; an unknown metric or key; or, after the others were reported, runs that were refused.
    """
    metric, by = Metric(options.get("metric", "val/top1")), options.get("by")
    if others := [word for word in overrides if not word.startswith("trust=")]:
        raise ConfigError(f"report takes no overrides but trust=[...], got {others[0]}")
    epochs = _epochs(options.get("epochs"))
    wish = Wish(metric=metric, by=None if by is None else by.split(","), epochs=epochs, trust=overrides)
    runs = find_runs(paths)
    if len(paths) == len(runs) == 2 and all(is_run(Path(path)) for path in paths) and by is None:
        a, b = (_result(SavedRun(Path(path)), metric, overrides) for path in paths)
        curves = [(f"{name}  {each.run.path.name}", [each]) for name, each in (("A", a), ("B", b))]
        report = Report(parts=beside(a, b, metric), curves=curves)
    else:
        report = _many(runs, _jobs(paths, runs), wish)
    try:
        if "out" in options:
            given = [f"--{name}={value}" for name, value in options.items()]
            command = shlex.join(["tinyexp", "report", *paths, *given, *overrides])
            _write(Path(options["out"]), report, wish, command, panels="metric" not in options)
    finally:
        show(report.parts)  # last, since a reader such as `head` may end the process here
    if report.refused:
        raise ConfigError(f"{report.refused} of {len(runs)} runs were refused and do not count: the report says why")


def _epochs(words: str | None) -> list[int]:
    """Raises ConfigError for what is no list of epochs."""
    if words is None:
        return []
    epochs = words.split(",")
    if not all(epoch.isdecimal() and int(epoch) >= 1 for epoch in epochs) or len(set(epochs)) < len(epochs):
        raise ConfigError(f"--epochs must be different epochs of at least 1, as 1,5,10, got {words}")
    return [int(epoch) for epoch in epochs]


def _jobs(paths: list[str], runs: list[SavedRun]) -> list[PastJob]:
    """Where it is a sweep that is reported, with no run from elsewhere: its jobs."""
    jobs = read_jobs(Path(paths[0])) if len(paths) == 1 else []
    return jobs if {run.path for run in runs} <= {job.directory for job in jobs} else []


def _result(run: SavedRun, metric: Metric, overrides: list[str]) -> Result:
    """Raises ConfigError for a run that cannot be read, or whose config names what it may not."""
    groups = ((slot, run.config.get(slot)) for slot in SLOTS)
    named = ((slot, values.get("_target_")) for slot, values in groups if isinstance(values, dict))
    targets = tuple((slot, target) for slot, target in named if isinstance(target, str))
    if why := refusal(targets, tuple(overrides)):
        raise ConfigError(f"{run.path}: {why}")
    return result(run, metric)


@functools.cache
def refusal(targets: tuple[tuple[str, str], ...], overrides: tuple[str, ...]) -> str | None:
    """Why a config with these classes by slot is not read, if so: asked once of the hundreds of runs that name them."""
    try:
        check_stored({slot: {"_target_": target} for slot, target in targets}, overrides)
    except ConfigError as error:
        return str(error)
    return None


# many runs


def _many(runs: list[SavedRun], jobs: list[PastJob], wish: Wish) -> Report:
    results: list[Result] = []
    refused: dict[str, list[str]] = {}
    varied = differing([job.label for job in jobs])
    labels = {job.directory: dict.fromkeys(varied, "") | job.label for job in jobs}
    for run in runs:
        try:
            found = _result(run, wish.metric, wish.trust)
        except ConfigError as error:
            refused.setdefault(str(error).removeprefix(f"{run.path}: "), []).append(str(run.path))
        else:
            results.append(replace(found, keys={**labels.get(run.path, {}), **found.keys}))
    by = varied if jobs and wish.by is None else wish.by
    rows = [
        Row(keys=group.keys, paths=[each.run.path for each in group.results], group=group)
        for group in grouped(results, wish.metric, by)
    ]
    if jobs:
        keys = {job.directory: job.label for job in jobs} | {each.run.path: each.keys for each in results}
        rows += _without_result(keys, [row.keys for row in rows], by or [])
    told = [row.keys for row in rows]
    table, left_out = columns(told) if by is None else ({key: [each[key] for each in told] for key in by}, {})
    rest = [each for each in results if not each.counts]
    missing = [job for job in jobs if job.directory not in {run.path for run in runs}]
    counted = f"{len(results) - len(rest)} of {len(runs) + len(missing)} runs, by {wish.metric.text}"
    parts: list[Sheet | Listing] = [_ranking(counted, table, rows, wish)]
    if left_out:
        tellers = {teller: [key for key in left_out if left_out[key] == teller] for teller in left_out.values()}
        lines = [f"{teller} tells {', '.join(reversed(keys))}" for teller, keys in tellers.items()]
        parts.append(Listing(title="left out", lines=lines))
    if rest or missing:
        parts.append(_not_counted(rest, missing))
    if refused:
        whys = [(_several(paths), why) for why, paths in refused.items()]
        parts.append(Sheet(title=f"refused: {sum(map(len, refused.values()))}", heads=("directory", "why"), rows=whys))
    return Report(parts=parts, rows=rows, refused=sum(map(len, refused.values())), **_named(table, rows))


def _named(table: dict[str, list[str]], rows: list[Row]) -> dict[str, Any]:
    """The curves by what the table says of each, in columns, and the head of these."""
    groups = [row.group for row in rows if row.group]
    bests = ["best", *(f"{group.best.mean:.4f}" for group in groups)]
    cells = [[label, *table[key][: len(groups)]] for key, label in short_names(list(table)).items()]
    key, *names = aligned([bests, *cells])
    return {"key": key, "curves": [(name, group.results) for name, group in zip(names, groups, strict=True)]}


def _without_result(keys: dict[Path, dict[str, str]], told: list[dict[str, str]], by: list[str]) -> list[Row]:
    """What a sweep varied and none of its jobs has a result of."""
    lost: dict[tuple[str, ...], list[Path]] = {}
    for path, own in keys.items():
        lost.setdefault(tuple(own.get(key, "") for key in by), []).append(path)
    made = [(dict(zip(by, values, strict=True)), paths) for values, paths in lost.items()]
    return [Row(keys=own, paths=paths, group=None) for own, paths in made if own not in told]


def _ranking(title: str, table: dict[str, list[str]], rows: list[Row], wish: Wish) -> Sheet:
    figures = ("n", *wish.heads, "best", "last", "time", "img/s", "params")
    filled = [
        ("★" * (i == 0 and row.group is not None), *(cells[i] for cells in table.values()), *_figures(row.group, wish))
        for i, row in enumerate(rows)
    ]
    labels = [folded(label, table[key]) for key, label in short_names(list(table)).items()]
    return Sheet(
        title=title,
        heads=("", *table, *figures),
        labels=("", *labels, *figures),
        rows=filled,
        right=frozenset(figures).union(key for key, cells in table.items() if all(map(str.isdigit, cells))),
        spare=("params", "img/s", "time", "last"),
        mark_first=bool(rows and rows[0].group),
    )


def _figures(group: Group | None, wish: Wish) -> list[str]:
    if group is None:
        return ["0", *[""] * (len(wish.epochs) + 5)]
    at = [group.at(epoch) for epoch in wish.epochs]
    return [
        str(group.best.n),
        *(spread(each) for each in (*at, group.best, group.last)),
        "" if group.seconds is None else duration(group.seconds),
        "" if group.images_per_second is None else f"{group.images_per_second:,.0f}",
        " to ".join(dict.fromkeys(rounded(number) for number in (*group.parameters[:1], *group.parameters[-1:]))),
    ]


def _not_counted(results: list[Result], missing: list[PastJob]) -> Sheet:
    heads = ("directory", "status", "exit code", "epochs", "error")
    rows = [
        (str(each.run.path), each.status, plain(each.run.summary.get("exit_code")), plain(each.epochs), each.reason)
        for each in results
    ]
    rows += [
        (str(job.directory), job.status, plain(job.code), "", job.last_words.removeprefix("tinyexp: "))
        for job in missing
    ]
    right = frozenset(("exit code", "epochs"))
    return Sheet(title=f"not counted: {len(rows)}", heads=heads, rows=rows, right=right)


# words


def _several(paths: Sequence[str]) -> str:
    return paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"


# to files


def _write(folder: Path, report: Report, wish: Wish, command: str, *, panels: bool) -> None:
    """Raises ConfigError where `folder` can be none, else as files.written_aside."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {folder} cannot be a folder: {error.strerror}") from error
    curves = [(name, results) for name, results in report.curves if all(each.series for each in results)]
    head = [f"# Report\n\n    {command}\n"]
    if curves:
        from tinyexp.figure import draw  # matplotlib takes half a second, which a table need not wait for

        shown = draw(folder / "curves.png", report.key, curves, wish.metric, panels=panels)
        head.append(f"![{shown}](curves.png)\n")
    if report.rows is not None:
        write_text(folder / "report.csv", _csv(report.rows, wish))
    write_text(folder / "report.md", "\n".join([*head, *map(markdown, report.parts)]))


def _csv(rows: Sequence[Row], wish: Wish) -> str:
    """A row a row: every key that differs, and raw numbers; an empty cell is a value that is not there."""
    keys = list(rows[0].keys) if rows else []
    names = [f"{head}_{part}" for head in wish.heads for part in ("mean", "std")]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((*keys, *_FIGURES[:2], *names, *_FIGURES[2:], "parameters", "runs"))
    for row in rows:
        told = [*(row.keys[key] for key in keys), wish.metric.text, *_numbers(row.group, wish)]
        writer.writerow((*told, " ".join(map(str, row.paths))))
    return text.getvalue()


def _numbers(group: Group | None, wish: Wish) -> list[object]:
    if group is None:
        return [0, *[""] * (2 * len(wish.epochs) + 7)]
    spreads = [*(group.at(epoch) for epoch in wish.epochs), group.best, group.last]
    pairs = [number for each in spreads for number in ((each.mean, each.std) if each else ("", ""))]
    return [group.best.n, *pairs, group.seconds, group.images_per_second, " ".join(map(str, group.parameters))]
