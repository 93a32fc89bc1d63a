"""The report of two runs: side by side, each thing in which they differ."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from tinyexp.comparison import Metric, Result, spelled
from tinyexp.console import duration
from tinyexp.keys import flatten
from tinyexp.saved import SavedRun
from tinyexp.sheet import Listing, Sheet, plain

_SURROUNDINGS = ("host", "versions", "hardware", "dataset")  # of env.json


def beside(a: Result, b: Result, metric: Metric) -> list[Sheet | Listing]:
    """What differs between two runs: scores, config, environment and code."""
    heads = ("", "A", "B")
    rows = list(zip(("directory", *_LINES), *((str(run.run.path), *_lines(run)) for run in (a, b)), strict=True))
    parts: list[Sheet | Listing] = [Sheet(title=f"scores by {metric.text}", heads=heads, rows=rows)]
    commits = _commit(a.run), _commit(b.run)
    for title, what in (
        ("config", _differences(a.keys, b.keys)),
        ("environment", _differences(_surroundings(a.run), _surroundings(b.run))),
        ("code", [("commit", *commits)] if commits[0] != commits[1] or commits[0] == "unknown" else []),
    ):
        parts.append(Sheet(title=title, heads=heads, rows=what) if what else Listing(title=title, lines=["same"]))
    changes = _patch_difference(a.run, b.run) if "unknown" not in commits else ["unknown: not run in a git repository"]
    return [*parts, Listing(title="changes since the commit", lines=changes or ["same"], diff=bool(changes))]


_LINES = ("status", "epochs", "best", "last", "time", "img/s", "parameters")


def _lines(result: Result) -> tuple[str, ...]:
    best = [epoch for epoch, value in result.series.items() if value == result.best]
    told = (result.run.summary.get("best") or {}).get("epoch")  # of several that are equal, the run's own choice
    best = [told] if told in best else best
    return (
        result.status,
        plain(result.epochs),
        f"{result.best:.4f} (epoch {best[0]})" if result.best is not None else "",
        f"{result.last:.4f}" if result.last is not None else "",
        duration(result.seconds) if result.seconds is not None else "",
        f"{result.images_per_second:,.0f}" if result.images_per_second is not None else "",
        f"{result.parameters:,}" if result.parameters is not None else "",
    )


def _differences(a: Mapping[str, str], b: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """(key, A's, B's) for each key that differs; "" where one has it not."""
    return [(key, a.get(key, ""), b.get(key, "")) for key in {**a, **b} if a.get(key) != b.get(key)]


def _surroundings(run: SavedRun) -> dict[str, str]:
    """Host, versions, hardware and the data's fingerprint, flat, as text."""
    environment = run.environment
    kept: dict[str, Any] = {key: environment[key] for key in _SURROUNDINGS if key in environment}
    return {key: spelled(value) for key, value in flatten(kept).items()}


def _commit(run: SavedRun) -> str:
    git = run.environment.get("git")
    if not isinstance(git, dict) or not git.get("commit"):
        return "unknown"
    kept = "" if run.patch else ", and the patch was not kept"
    return str(git["commit"]) + (f" with changes{kept}" if git.get("dirty") else "")


def _patch_difference(a: SavedRun, b: SavedRun) -> list[str]:
    """How B's patch differs from A's, as the lines of a unified diff."""
    lines = difflib.unified_diff(
        a.patch.splitlines(), b.patch.splitlines(), f"A {a.path}", f"B {b.path}", lineterm="", n=1
    )
    return list(lines)
