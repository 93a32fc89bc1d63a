"""curves.png: loss and top1, or a metric alone, a colour a group."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from tinyexp.colours import COLOURS
from tinyexp.comparison import Metric, Result, common, series
from tinyexp.console import visible
from tinyexp.files import written_aside

_DASHES = ("-", (0, (4, 1.5)))  # the second time round
_PANELS = len(COLOURS)  # groups at most of which all is drawn
_TRAIN: Any = (0, (2.5, 1.2))  # dashes of train's lines
_NAMED = 10  # groups with a colour and a name, where there are more than _ALL
_ALL = 12
_QUIET, _PALE = "#8a8a8a", "#d5d5d5"
_LONGEST = 48  # letters of a name


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A group's runs: each a metric by epoch."""

    label: str
    series: Sequence[dict[int, float]]


def draw(path: Path, key: str, groups: Sequence[tuple[str, list[Result]]], metric: Metric, *, panels: bool) -> str:
    """Groups of runs by name, best first, as a picture, their names under the head `key`; what it shows, in words.

    Args:
        panels: loss and top1 of train and val, over steps and epochs, where the groups are few; else the metric alone.

    Raises:
        ConfigError: a run's metrics.jsonl has no number where one must be.
        TinyexpError: as files.written_aside.
    """
    if panels and len(groups) <= _PANELS:
        figure = four_panels(key, groups)
        told = "top1 and loss of train and val, over the epochs and the steps"
    else:
        curves = [Curve(label=name, series=[each.series for each in results]) for name, results in groups]
        figure = _alone(metric.text, key, curves)
        told = f"{metric.text} over the epochs"
    canvas = FigureCanvasAgg(figure)
    with written_aside(path) as file:
        canvas.print_png(file)  # type: ignore[no-untyped-call]
    return told


def four_panels(key: str, groups: Sequence[tuple[str, list[Result]]]) -> Figure:
    """Two rows, top1 and loss, by two columns, over epochs and steps; val's lines are whole, train's dashed and thin.

    A line is the mean of a group's runs. Over the epochs both are of whole phases; over the steps, train's are of
    log.every steps each.
    """
    figure = Figure(figsize=(11, 7), dpi=130, layout="constrained")
    grid = figure.subplots(2, 2, sharex="col", sharey="row", squeeze=False)
    banded = any(len(results) > 1 for _, results in groups)
    spread = ": mean of the runs, band of val from the lowest to the highest" if banded else ""
    for row, name in enumerate(("top1", "loss")):
        for column, (over, train) in enumerate((("epoch", "train_epoch"), ("step", "train"))):
            axes = grid[row, column]
            _furnish(axes, "" if column else f"{name}{spread}", over if row else "")
            for i, (_, results) in reversed(list(enumerate(groups))):  # the best comes last, on top of the others
                runs = [each.run for each in results]
                _draw_phase(axes, [series(run, train, name, over) for run in runs], COLOURS[i], train=True)
                _draw_phase(axes, [series(run, "val", name, over) for run in runs], COLOURS[i], train=False)
    _fit_loss(grid[1, 0], groups)
    named = [Line2D([], [], color=COLOURS[i], label=_label(name)) for i, (name, _) in enumerate(groups)]
    phases = [Line2D([], [], color=_QUIET, label="val"), Line2D([], [], color=_QUIET, label="train")]
    phases[1].set(linestyle=_TRAIN, linewidth=1.0)
    _legend(figure, key, [*named, *phases])
    return figure


def _draw_phase(axes: Axes, runs: Sequence[dict[int, float]], colour: str, *, train: bool) -> None:
    curve = Curve(label="", series=runs)
    if not all(runs) or not common(curve.series)[0]:
        return  # an epoch of fewer steps than log.every has no line of train
    line = _line(axes, curve, colour, width=0.9 if train else 1.8)
    line.set(linestyle=_TRAIN if train else "-", alpha=0.75 if train else 1.0)
    if not train:
        _band(axes, curve, colour, alpha=0.15)


def _fit_loss(axes: Axes, groups: Sequence[tuple[str, list[Result]]]) -> None:
    """From 0 to the largest of an epoch: the first steps' losses may be many times that."""
    runs = [each.run for _, results in groups for each in results]
    values = [
        value for run in runs for phase in ("val", "train_epoch") for value in series(run, phase, "loss").values()
    ]
    if values and max(values) > 0:
        axes.set_ylim(0, 1.05 * max(values))


def _alone(metric: str, key: str, curves: Sequence[Curve]) -> Figure:
    """A band spans a group's runs from the lowest to the highest; of many groups the best have colour and name."""
    named = curves if len(curves) <= _ALL else curves[:_NAMED]
    banded = named is curves and any(len(curve.series) > 1 for curve in curves)  # over a crowd they are mud
    figure = Figure(figsize=(9, 4.8), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    lines = [_line(axes, curve, _PALE, width=1.0) for curve in curves[len(named) :]][:1]
    for line in lines:
        line.set_label(f"{len(curves) - len(named)} more")
    for i, curve in reversed(list(enumerate(named))):  # the best comes last, on top of the others
        colour = COLOURS[i % len(COLOURS)]
        if banded:
            _band(axes, curve, colour, alpha=min(0.2, 0.7 / len(named)))
        lines.append(_line(axes, curve, colour, width=1.8))
        lines[-1].set(label=_label(curve.label), linestyle=_DASHES[i // len(COLOURS)])
    _furnish(axes, f"{metric}: mean of the runs, band from the lowest to the highest" if banded else metric, "epoch")
    _zoom(axes, curves)
    _legend(figure, key, lines[::-1])
    return figure


def _legend(figure: Figure, key: str, lines: Sequence[Line2D]) -> None:
    head = [Line2D([], [], linestyle="none", label=_label(key))] if key else []
    columns = {"family": "monospace", "size": 8}  # the labels come in columns
    figure.legend(handles=[*head, *lines], loc="outside right upper", frameon=False, prop=columns)


def _line(axes: Axes, curve: Curve, colour: str, *, width: float) -> Line2D:
    """The mean over the runs."""
    epochs, values = common(curve.series)
    marker = "o" if len(epochs) == 1 else None
    means = [statistics.fmean(each) for each in values]
    (line,) = axes.plot(epochs, means, color=colour, linewidth=width, marker=marker, solid_capstyle="round")
    return line


def _band(axes: Axes, curve: Curve, colour: str, alpha: float) -> None:
    if len(curve.series) > 1:
        epochs, values = common(curve.series)
        low, high = [min(each) for each in values], [max(each) for each in values]
        axes.fill_between(epochs, low, high, color=colour, alpha=alpha, linewidth=0)


def _zoom(axes: Axes, curves: Sequence[Curve]) -> None:
    """On what comes after the first fifth of the epochs: the way from chance would leave no room for what differs."""
    last = max(epoch for curve in curves for one in curve.series for epoch in one)
    shown = [value for curve in curves for one in curve.series for epoch, value in one.items() if epoch > last / 5]
    low, high = min(shown), max(shown)
    margin = 0.05 * (high - low) or 0.01
    axes.set_ylim(low - margin, high + margin)


def _label(text: str) -> str:
    """Not too long; and matplotlib would typeset what stands between dollars."""
    text = visible(text)
    short = text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
    return short.replace("$", r"\$")


def _furnish(axes: Axes, title: str, over: str) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_QUIET)
    axes.tick_params(colors="#444444", labelsize=9, length=3)
    axes.grid(axis="y", color="#ececec", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.set_xlabel(over, color="#444444")
    axes.set_title(title, loc="left", fontsize=10, pad=10, color="#222222")
    axes.margins(x=0.01)
