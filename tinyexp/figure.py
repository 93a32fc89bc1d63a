"""curves.png: a metric over the epochs, a line a group. The only file that imports matplotlib."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from tinyexp.files import written_aside

# Okabe and Ito's (jfly.uni-koeln.de/color), told apart by colour-blind eyes; without its yellow, too pale on white
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_DASHES = ("-", (0, (4, 1.5)))  # the second time round
_NAMED = 10  # groups with a colour and a name, where there are more than _ALL
_ALL = 12
_QUIET, _PALE = "#8a8a8a", "#d5d5d5"
_LONGEST = 48  # letters of a name


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A group's runs: each a metric by epoch."""

    label: str
    series: Sequence[dict[int, float]]


def draw_curves(path: Path, metric: str, key: str, curves: Sequence[Curve]) -> None:
    """The curves, best first, as a picture, and their labels under the head `key`.

    A band spans a group's runs from the lowest to the highest; of many groups the best alone have colour and name.

    Raises:
        TinyexpError: as files.written_aside.
    """
    named = curves if len(curves) <= _ALL else curves[:_NAMED]
    banded = named is curves and any(len(curve.series) > 1 for curve in curves)  # over a crowd they are mud
    figure = Figure(figsize=(9, 4.8), dpi=150, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    lines = [_line(axes, curve, _PALE, width=1.0) for curve in curves[len(named) :]][:1]
    for line in lines:
        line.set_label(f"{len(curves) - len(named)} more")
    for i, curve in reversed(list(enumerate(named))):  # the best comes last, on top of the others
        colour = _COLOURS[i % len(_COLOURS)]
        if banded:
            _band(axes, curve, colour, alpha=min(0.2, 0.7 / len(named)))
        lines.append(_line(axes, curve, colour, width=1.8))
        lines[-1].set(label=_label(curve.label), linestyle=_DASHES[i // len(_COLOURS)])
    _furnish(axes, f"{metric}: mean of the runs, band from the lowest to the highest" if banded else metric)
    _zoom(axes, curves)
    head = [Line2D([], [], linestyle="none", label=_label(key))] if key else []
    columns = {"family": "monospace", "size": 8}  # the labels come in columns
    figure.legend(handles=[*head, *lines[::-1]], loc="outside right upper", frameon=False, prop=columns)
    with written_aside(path) as file:
        canvas.print_png(file)  # type: ignore[no-untyped-call]


def _line(axes: Axes, curve: Curve, colour: str, *, width: float) -> Line2D:
    """The mean over the runs."""
    epochs, values = _points(curve)
    marker = "o" if len(epochs) == 1 else None
    means = [statistics.fmean(each) for each in values]
    (line,) = axes.plot(epochs, means, color=colour, linewidth=width, marker=marker, solid_capstyle="round")
    return line


def _band(axes: Axes, curve: Curve, colour: str, alpha: float) -> None:
    if len(curve.series) > 1:
        epochs, values = _points(curve)
        low, high = [min(each) for each in values], [max(each) for each in values]
        axes.fill_between(epochs, low, high, color=colour, alpha=alpha, linewidth=0)


def _points(curve: Curve) -> tuple[list[int], list[list[float]]]:
    """The epochs that all runs have, so that a mean is of the same runs everywhere; and their values."""
    epochs = sorted(set.intersection(*map(set, curve.series)))
    return epochs, [[one[epoch] for one in curve.series] for epoch in epochs]


def _zoom(axes: Axes, curves: Sequence[Curve]) -> None:
    """On what comes after the first fifth of the epochs: the way from chance would leave no room for what differs."""
    last = max(epoch for curve in curves for one in curve.series for epoch in one)
    shown = [value for curve in curves for one in curve.series for epoch, value in one.items() if epoch > last / 5]
    low, high = min(shown), max(shown)
    margin = 0.05 * (high - low) or 0.01
    axes.set_ylim(low - margin, high + margin)


def _label(text: str) -> str:
    """Not too long; and matplotlib would typeset what stands between dollars."""
    short = text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
    return short.replace("$", r"\$")


def _furnish(axes: Axes, title: str) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_QUIET)
    axes.tick_params(colors="#444444", labelsize=9, length=3)
    axes.grid(axis="y", color="#ececec", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.set_xlabel("epoch", color="#444444")
    axes.set_title(title, loc="left", fontsize=10, pad=10, color="#222222")
    axes.margins(x=0.01)
