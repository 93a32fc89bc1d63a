"""report DIR... [--by KEYS] [--metric NAME] [--epochs LIST] [--out DIR] [trust=NAMES]: runs by what differs.

A NAME is one of val/top1, val/top5, val/loss, train/top1, ...; a LIST as 1,5,10 makes a column of each of these epochs.
Two runs are put side by side; a sweep's directory is told by what the sweep varied. --out gets index.html, a page of
all that follows; report.md, report.csv and curves.png: loss and top1 of train and val by epoch and step; the metric
alone where it is given, or rows are many.
"""

from __future__ import annotations

import csv
import io
import shlex
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tinyexp.comparison import Group, Metric
from tinyexp.console import visible
from tinyexp.errors import ConfigError
from tinyexp.files import write_text
from tinyexp.ledger import PastJob, read_jobs
from tinyexp.page import Page, html
from tinyexp.saved import SavedRun, find_runs, is_run
from tinyexp.sheet import markdown, show
from tinyexp.verbs._many import Report, Row, Wish, many, result_of
from tinyexp.verbs._many import refusal as refusal  # which a sweep asks, too
from tinyexp.verbs._two import beside

_FIGURES = ("metric", "n", "best_mean", "best_std", "last_mean", "last_std", "seconds", "images_per_second")


def main(paths: list[str], overrides: list[str], options: dict[str, str]) -> None:
    """Print the report, and write it to --out: index.html, report.md, report.csv, curves.png.

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
        a, b = (result_of(SavedRun(Path(path)), metric, overrides) for path in paths)
        names = [f"{letter}  {each.run.path.name}" for letter, each in (("A", a), ("B", b))]
        report = Report(
            parts=beside(a, b, metric),
            names=names,
            groups=[[a], [b]],
            columns=["", *names],
            matrices=list(zip(names, (a.run, b.run), strict=True)),
        )
    else:
        report = many(runs, _jobs(paths, runs), wish)
    try:
        if "out" in options:
            given = [f"--{name}={value}" for name, value in options.items()]
            command = visible(shlex.join(["tinyexp", "report", *paths, *given, *overrides]), "\n")
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
    """Where it is a sweep that is reported, with no run from elsewhere: its jobs, as far as they can be made out."""
    jobs: list[PastJob] = []
    with suppress(ConfigError):
        jobs = read_jobs(Path(paths[0])) if len(paths) == 1 else []
    return jobs if {run.path for run in runs} <= {job.directory for job in jobs} else []


def _write(folder: Path, report: Report, wish: Wish, command: str, *, panels: bool) -> None:
    """Raises ConfigError where `folder` can be none, else as files.written_aside."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {folder} cannot be a folder: {error.strerror}") from error
    key, *columns = report.columns
    shown = [i for i, results in enumerate(report.groups) if all(each.series for each in results)]
    head = [f"# Report\n\n    {command}\n"]
    if shown:
        from tinyexp.figure import draw  # matplotlib takes half a second, which a table need not wait for

        curves = [(columns[i], report.groups[i]) for i in shown]
        told = draw(folder / "curves.png", key, curves, wish.metric, panels=panels)
        head.append(f"![{told}](curves.png)\n")
    if report.rows is not None:
        write_text(folder / "report.csv", _csv(report.rows, wish))
    write_text(folder / "report.md", "\n".join([*head, *map(markdown, report.parts)]))
    page = Page(
        command=command,
        lead=report.parts[: report.lead],
        curves=[(report.names[i], report.groups[i]) for i in shown],
        matrices=report.matrices,
        rest=report.parts[report.lead :],
    )
    write_text(folder / "index.html", html(page))


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
    return text.getvalue().encode(errors="backslashreplace").decode()  # a path may hold half a letter


def _numbers(group: Group | None, wish: Wish) -> list[object]:
    if group is None:
        return [0, *[""] * (2 * len(wish.epochs) + 7)]
    spreads = [*(group.at(epoch) for epoch in wish.epochs), group.best, group.last]
    pairs = [number for each in spreads for number in ((each.mean, each.std) if each else ("", ""))]
    return [group.best.n, *pairs, group.seconds, group.images_per_second, " ".join(map(str, group.parameters))]
