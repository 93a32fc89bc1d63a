"""Figures: the confusion matrix, the worst mistakes as the network saw them, accuracy by class, learning rates."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from tinyexp.assessment import Mistake
from tinyexp.files import written_aside

_COUNTED = 32  # classes up to which each cell has its number
_NAMED = 500  # and up to which each row has its name
_LONGEST = 24  # letters of a line
_COLUMNS = 5  # of mistakes
_DOTTED = 20  # points up to which each is marked
_RIGHT, _WRONG, _BAR = "#00674b", "#b03a00", "#2f6fa8"


def draw_confusion(path: Path, confusion: NDArray[np.int64], names: Sequence[str]) -> None:
    """A PNG of confusion_figure.

    Raises:
        TinyexpError: as files.written_aside.
    """
    _save(path, confusion_figure(confusion, names))


def confusion_figure(confusion: NDArray[np.int64], names: Sequence[str]) -> FigureCanvasAgg:
    """A matrix (classes, classes), row = label, column = prediction; many classes make a large figure."""
    count = len(names)
    cell = 0.42 if count <= _COUNTED else 0.085  # inches
    side = max(4.0, cell * min(count, _NAMED))
    figure = Figure(figsize=(side + 2.6, side + 2.2), dpi=150, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    shares = confusion / confusion.sum(1, keepdims=True).clip(1)
    # the root of a share, so that a mistake in a hundred is seen beside what is right
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1), interpolation="nearest", aspect="equal")
    bar = figure.colorbar(image, ax=axes, shrink=0.5, aspect=30, ticks=[0, 0.01, 0.1, 0.25, 0.5, 1])
    bar.ax.set_yticklabels(["0", "1 %", "10 %", "25 %", "50 %", "100 %"], fontsize=8)
    bar.outline.set_visible(False)
    _name(axes, names)
    if count <= _COUNTED:
        _write_counts(axes, confusion, shares)
    return canvas


def _name(axes: Axes, names: Sequence[str]) -> None:
    count = len(names)
    ticks = range(count) if count <= _NAMED else []
    labels = [_shorten(names[number]) for number in ticks]
    size = 9 if count <= _COUNTED else 4.6
    axes.set_xticks(ticks, labels, rotation=90, fontsize=size, parse_math=False)
    axes.set_yticks(ticks, labels, fontsize=size, parse_math=False)
    axes.tick_params(length=0, pad=3)
    axes.set_xlabel("prediction", color="#444444")
    axes.set_ylabel("label", color="#444444")
    axes.set_title("share of each label's images, by prediction", loc="left", fontsize=10, color="#222222")
    axes.set_xticks(np.arange(count - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(count - 1) + 0.5, minor=True)
    axes.tick_params(which="minor", length=0)
    axes.grid(which="minor", color="#e4e4e4", linewidth=0.6 if count <= _COUNTED else 0.2)
    axes.spines[:].set_color("#8a8a8a")


def _write_counts(axes: Axes, confusion: NDArray[np.int64], shares: NDArray[np.float64]) -> None:
    for row, column in zip(*confusion.nonzero(), strict=True):
        number = int(confusion[row, column])
        colour = "white" if shares[row, column] > 0.35 else "#222222"
        size = 8 if number < 1000 else 6
        axes.text(column, row, str(number), ha="center", va="center", fontsize=size, color=colour)


def draw_mistakes(path: Path, mistakes: Sequence[Mistake], images: NDArray[np.uint8], names: Sequence[str]) -> None:
    """A PNG of mistakes and their images (n, H, W, C), in their order, the first in the upper left.

    Raises:
        TinyexpError: as files.written_aside.
    """
    rows = max(1, math.ceil(len(mistakes) / _COLUMNS))
    figure = Figure(figsize=(_COLUMNS * 2.0, rows * 2.5 + 0.4), dpi=130, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    title = f"the {len(mistakes)} surest mistakes: what it is, and what it was taken for" if mistakes else "no mistakes"
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, color="#222222")
    for place, (mistake, image) in enumerate(zip(mistakes, images, strict=True), start=1):
        axes = figure.add_subplot(rows, _COLUMNS, place)
        axes.set_axis_off()
        axes.imshow(_picture(image), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        is_that, taken_for = names[mistake.label], f"{mistake.probability:.1%}: {names[mistake.prediction]}"
        for line, (text, colour) in enumerate(((taken_for, _WRONG), (f"is {is_that}", _RIGHT))):
            axes.text(
                0,
                1.03 + 0.1 * line,
                _shorten(text),
                transform=axes.transAxes,
                fontsize=7.5,
                color=colour,
                parse_math=False,
            )
    _save(path, canvas)


def classes_figure(confusion: NDArray[np.int64], names: Sequence[str]) -> FigureCanvasAgg:
    """Each class's accuracy as a bar, the best first; classes without images are left out."""
    counts = confusion.sum(1)
    shares = confusion.diagonal() / counts.clip(1)
    order = [int(number) for number in np.argsort(-shares, kind="stable") if counts[number]]
    figure = Figure(figsize=(6.0, 1.0 + 0.17 * len(order)), dpi=110, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    bars = axes.barh(range(len(order)), shares[order], color=_BAR, height=0.75)
    texts = [f"{shares[number]:.1%} of {counts[number]}" for number in order]
    axes.bar_label(bars, texts, fontsize=6, padding=2, bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5})
    axes.set_yticks(range(len(order)), [_shorten(names[number]) for number in order], fontsize=6.5, parse_math=False)
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.set_xlim(0, 1.18)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"], fontsize=7)
    overall = confusion.trace() / max(1, confusion.sum())
    axes.axvline(overall, color="#444444", linewidth=0.8, linestyle=":", zorder=0)
    title = f"share of each class's val images that are right; all {overall:.1%}"
    axes.set_title(title, loc="left", fontsize=9, color="#222222")
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right"]].set_visible(False)
    return canvas


def rates_figure(rates: Sequence[tuple[int, float]]) -> FigureCanvasAgg:
    """The learning rate over the steps so far."""
    figure = Figure(figsize=(6.0, 3.2), dpi=110, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(*zip(*rates, strict=True), color=_BAR, linewidth=1.5, marker="." if len(rates) < _DOTTED else "")
    axes.set_title("learning rate", loc="left", fontsize=9, color="#222222")
    axes.set_xlabel("step", color="#444444")
    axes.grid(color="#e4e4e4", linewidth=0.6)
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    return canvas


def pixels(canvas: FigureCanvasAgg) -> NDArray[np.uint8]:
    """(H, W, 3)."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        canvas.draw()  # type: ignore[no-untyped-call]
        drawn = canvas.buffer_rgba()  # type: ignore[no-untyped-call]
    return np.asarray(drawn)[:, :, :3]


def _save(path: Path, canvas: FigureCanvasAgg) -> None:
    with written_aside(path) as file, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a letter that no font has is drawn as a box
        canvas.print_png(file)  # type: ignore[no-untyped-call]


def _picture(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W, C): under three channels the first is shown as grey, of more the first three."""
    return image[:, :, 0] if image.shape[2] < 3 else image[:, :, :3]


def _shorten(text: str) -> str:
    """One line, not too long; a folder's name may be no UTF-8, which no font has."""
    text = " ".join(text.split()).encode("utf-8", "replace").decode()
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
