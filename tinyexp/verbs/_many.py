"""The report of many runs: a table of groups, what could be chance in it, and what does not count."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tinyexp.comparison import Group, Metric, Result, columns, differing, grouped, result
from tinyexp.config import SLOTS
from tinyexp.console import duration
from tinyexp.errors import ConfigError
from tinyexp.keys import may_change
from tinyexp.ledger import PastJob
from tinyexp.saved import SavedRun
from tinyexp.sheet import Listing, Sheet, aligned, folded, plain, rounded, short_names, spread
from tinyexp.significance import Finding, finding, probability
from tinyexp.stored import check_stored


@dataclass(frozen=True, kw_only=True)
class Report:
    parts: list[Sheet | Listing]
    lead: int = 1  # so many of the parts stand before the page's figures
    names: list[str]  # of the groups, the best first
    groups: list[list[Result]]
    columns: list[str]  # the groups' names as the picture has them, aligned, after their head
    matrices: list[tuple[str, SavedRun]]
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


def result_of(run: SavedRun, metric: Metric, overrides: list[str]) -> Result:
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


def many(runs: list[SavedRun], jobs: list[PastJob], wish: Wish) -> Report:
    results: list[Result] = []
    refused: dict[str, list[str]] = {}
    varied = differing([job.label for job in jobs])
    labels = {job.directory: dict.fromkeys(varied, "") | job.label for job in jobs}
    for run in runs:
        try:
            found = result_of(run, wish.metric, wish.trust)
        except ConfigError as error:
            refused.setdefault(str(error).removeprefix(f"{run.path}: "), []).append(str(run.path))
        else:
            results.append(replace(found, keys={**labels.get(run.path, {}), **found.keys}))
    by = _told_apart(results, wish.metric, varied) if jobs and wish.by is None else wish.by
    rows = [
        Row(keys=group.keys, paths=[each.run.path for each in group.results], group=group)
        for group in grouped(results, wish.metric, by)
    ]
    if jobs:
        keys = {job.directory: job.label for job in jobs} | {each.run.path: each.keys for each in results}
        rows += _without_result(keys, [row.keys for row in rows], by or [])
    told = [row.keys for row in rows]
    few = by is not None and (wish.by is not None or by == varied)  # columns that were asked for
    table, left_out = ({key: [each[key] for each in told] for key in by or ()}, {}) if few else columns(told)
    rest = [each for each in results if not each.counts]
    missing = [job for job in jobs if job.directory not in {run.path for run in runs}]
    counted = f"{len(results) - len(rest)} of {len(runs) + len(missing)} runs, by {wish.metric.text}"
    groups = [row.group for row in rows if row.group]
    names = _names(table, len(groups))
    chance = finding(groups, names)
    parts: list[Sheet | Listing] = [_ranking(counted, table, rows, wish, chance)]
    if chance.lines:
        parts.append(Listing(title="chance", lines=chance.lines, words=True))
    lead = len(parts)
    if left_out:
        tellers = {teller: [key for key in left_out if left_out[key] == teller] for teller in left_out.values()}
        lines = [f"{teller} tells {', '.join(reversed(keys))}" for teller, keys in tellers.items()]
        parts.append(Listing(title="left out", lines=lines))
    if rest or missing:
        parts.append(_not_counted(rest, missing))
    if refused:
        whys = [(_several(paths), why) for why, paths in refused.items()]
        parts.append(Sheet(title=f"refused: {sum(map(len, refused.values()))}", heads=("directory", "why"), rows=whys))
    return Report(
        parts=parts,
        lead=lead,
        names=names,
        groups=[group.results for group in groups],
        columns=_aligned(table, groups),
        matrices=[(f"the best run of {names[0]}", best_run(groups[0].results, wish.metric))] if groups else [],
        rows=rows,
        refused=sum(map(len, refused.values())),
    )


def _told_apart(results: list[Result], metric: Metric, varied: list[str]) -> list[str]:
    """What a sweep varied, and what else differs of its runs: another command may have added some of them."""
    inner = (differing([each.keys for each in group.results]) for group in grouped(results, metric, varied))
    extra = dict.fromkeys(key for keys in inner for key in keys if not may_change(key) or key == "train.epochs")
    return [*varied, *(key for key in extra if key not in varied)]


def best_run(results: list[Result], metric: Metric) -> SavedRun:
    return max(results, key=lambda each: metric.sign * (each.best or 0)).run


def _names(table: dict[str, list[str]], count: int) -> list[str]:
    """The first groups in words, as the table tells them: LeNet5 lr=0.01."""
    labels = short_names(list(table))
    told = [
        " ".join(f"{labels[key]}={table[key][i]}" if "." in key else table[key][i] for key in table if table[key][i])
        for i in range(count)
    ]
    return [name or "all runs" for name in told] if count == 1 else [name or "the rest" for name in told]


def _aligned(table: dict[str, list[str]], groups: list[Group]) -> list[str]:
    """Their names by what the table says of each, in columns, after the head of these."""
    bests = ["best", *(f"{group.best.mean:.4f}" for group in groups)]
    cells = [[label, *table[key][: len(groups)]] for key, label in short_names(list(table)).items()]
    return aligned([bests, *cells])


def _without_result(keys: dict[Path, dict[str, str]], told: list[dict[str, str]], by: list[str]) -> list[Row]:
    """What a sweep varied and none of its jobs has a result of."""
    lost: dict[tuple[str, ...], list[Path]] = {}
    for path, own in keys.items():
        lost.setdefault(tuple(own.get(key, "") for key in by), []).append(path)
    made = [(dict(zip(by, values, strict=True)), paths) for values, paths in lost.items()]
    return [Row(keys=own, paths=paths, group=None) for own, paths in made if own not in told]


def _ranking(title: str, table: dict[str, list[str]], rows: list[Row], wish: Wish, found: Finding) -> Sheet:
    said = any(p is not None for p in found.values)
    figures = ("n", *wish.heads, "best", *(["p"] if said else []), "last", "time", "img/s", "params")
    chances = [*("" if p is None else probability(p) for p in found.values), *[""] * len(rows)]  # groups come first
    filled = [
        (
            "★" * (i == 0 and row.group is not None),
            *(cells[i] for cells in table.values()),
            *_figures(row.group, wish, [chances[i]] if said else []),
        )
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


def _figures(group: Group | None, wish: Wish, chance: list[str]) -> list[str]:
    if group is None:
        return ["0", *[""] * (len(wish.epochs) + len(chance) + 5)]
    return [
        str(group.best.n),
        *(spread(group.at(epoch)) for epoch in wish.epochs),
        spread(group.best),
        *chance,
        spread(group.last),
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


def _several(paths: Sequence[str]) -> str:
    return paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
