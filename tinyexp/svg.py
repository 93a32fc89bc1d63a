"""Curves as SVG text: a panel of lines over the epochs. Colours are classes of page.css."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from tinyexp.console import visible

_WIDTH, _HEIGHT = 460, 250  # of a panel, in its own units
_LEFT, _TOP, _RIGHT, _BOTTOM = 46, 8, 8, 24  # of the plot in it
_ACROSS, _DOWN = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
_FAR = 3  # plot heights beyond which a point is not drawn where it is
_TICKS = 5
_POINTS = 500  # of a line with a colour


@dataclass(frozen=True, kw_only=True)
class Line:
    """A group's mean by epoch, its lowest and highest run, and its place among the colours; None of those is pale."""

    name: str
    colour: int | None
    epochs: Sequence[int]
    means: Sequence[float]
    lows: Sequence[float]
    highs: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class Scale:
    """What a panel spans."""

    last: int  # epoch; the first is 1
    low: float
    high: float

    def x(self, epoch: int) -> float:
        return _ACROSS * (epoch - 1) / (self.last - 1) if self.last > 1 else _ACROSS / 2

    def y(self, value: float) -> float:
        part = (self.high - value) / (self.high - self.low)
        return _DOWN * (part if -_FAR <= part <= _FAR else math.copysign(_FAR, part))


def escaped(text: str) -> str:
    """As HTML and SVG have it, in text and between quotes; what steers, or is half a letter, is spelled out."""
    return escape(visible(text))


def scale_of(lines: Sequence[Line]) -> Scale | None:
    """From the lines with a colour, after the first fifth of many epochs: the way from chance would leave no room."""
    last = max((line.epochs[-1] for line in lines if line.epochs), default=0)
    first = last / 5 if last >= 10 else 0
    shown = [line for line in lines if line.colour is not None and line.epochs]
    named = [
        value
        for line in shown
        for epoch, *values in zip(line.epochs, line.lows, line.highs, strict=True)
        if epoch > first
        for value in values
    ] or [value for line in shown for value in (*line.lows, *line.highs)]
    if not named:
        return None
    low, high = min(named), max(named)
    margin = 0.04 * (high - low) or 0.05 * abs(high) or 0.01
    scale = Scale(last=last, low=low - margin, high=high + margin)
    return scale if math.isfinite(scale.high - scale.low) and scale.high > scale.low else None


def panel(title: str, lines: Sequence[Line], scale: Scale, most: int) -> str:
    """One panel, its lines drawn from the last to the first, the best on top; of a pale one at most `most` points."""
    drawn = "".join(_drawn(line, scale, most) for line in reversed(lines) if line.epochs)
    return (
        f'<figure><figcaption>{escaped(title)}</figcaption><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{escaped(title)} by epoch">{_axes(scale)}'
        f'<svg x="{_LEFT}" y="{_TOP}" width="{_ACROSS}" height="{_DOWN}">{drawn}</svg></svg></figure>'
    )


def swatch(colour: int | None) -> str:
    """A stroke of a line's colour, for the list of names."""
    return f'<svg class="swatch" viewBox="0 0 24 8"><path class="{_class(colour)}" d="M1 4H23"/></svg>'


def _class(colour: int | None) -> str:
    return "line pale" if colour is None else f"line c{colour}"


def _drawn(line: Line, scale: Scale, most: int) -> str:
    step = math.ceil(len(line.epochs) / (most if line.colour is None else _POINTS))
    kept = sorted({*range(0, len(line.epochs), step), len(line.epochs) - 1})
    across = [f"{scale.x(line.epochs[i]):.1f}" for i in kept]

    def points(values: Sequence[float]) -> list[str]:
        return [f"{x},{scale.y(values[i]):.1f}" for x, i in zip(across, kept, strict=True)]

    middle = points(line.means)
    told = f"<g><title>{escaped(line.name)}</title>"
    if len(middle) == 1:
        return f'{told}<polyline class="{_class(line.colour)} dot" points="{middle[0]} {middle[0]}"/></g>'
    stroke = f'<polyline class="{_class(line.colour)}" points="{" ".join(middle)}"/>'
    if line.colour is None:
        return f"{told}{stroke}</g>"
    band = ""
    if line.lows != line.highs:
        around = [*points(line.lows), *reversed(points(line.highs))]
        band = f'<polygon class="band c{line.colour}" points="{" ".join(around)}"/>'
    return f'{told}{band}<polyline class="near" points="{" ".join(middle)}"/>{stroke}</g>'


def _axes(scale: Scale) -> str:
    places = [(scale.y(value), text) for value, text in _ticks(scale.low, scale.high)]
    rows = "".join(
        f'<path class="grid" d="M{_LEFT} {_TOP + y:.1f}h{_ACROSS}"/>'
        f'<text x="{_LEFT - 6}" y="{_TOP + y + 4:.1f}" text-anchor="end">{text}</text>'
        for y, text in places
    )
    step = max(1, round(_step(scale.last - 1))) if scale.last > 1 else 1
    epochs = [1, *(epoch for epoch in range(step, scale.last + 1, step) if epoch > 1 + step / 2)]
    columns = "".join(
        f'<text x="{_LEFT + scale.x(epoch):.1f}" y="{_HEIGHT - 6}" text-anchor="middle">{epoch}</text>'
        for epoch in (epochs if scale.last > 1 else [1])
    )
    return f'{rows}<path class="axis" d="M{_LEFT} {_TOP}v{_DOWN}h{_ACROSS}"/>{columns}'


def _ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Round values in a span, and their words."""
    step = _step(high - low)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    values = [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
    large = max(map(abs, values), default=0) >= 1e5
    return [(value, f"{value:.2g}" if large else f"{value:.{digits}f}") for value in values]


def _step(span: float) -> float:
    """1, 2 or 5 of a power of ten: about _TICKS of it make the span."""
    power = 10.0 ** math.floor(math.log10(span / _TICKS))
    return next(power * each for each in (1, 2, 5, 10) if power * each * _TICKS >= span * 0.999)
