"""A confusion matrix as SVG text: blue is right, orange is wrong. Colours are classes of page.css."""

from __future__ import annotations

import math
from collections import defaultdict

from tinyexp.saved import Confusion
from tinyexp.sheet import Sheet
from tinyexp.svg import escaped

_NAMED = 40  # classes up to which each has its name, and each cell its words
_NUMBERED = 20  # and its number
_SIDE = 420  # of the cells together, in the picture's own units; more where the numbers need it
_LEAST = 30  # of a cell with a number
_LONGEST = 14  # letters of a name
_LETTER = 6.2  # the width of one
_SHADES = 8  # where cells have no words
_FAINTEST = 3  # of them, for cells of a few pixels
_MOST = 10  # pairs that are listed


def heatmap(confusion: Confusion) -> str:
    """Row: the label; column: the prediction. A cell is the darker, the larger its part of the row is."""
    classes = len(confusion.classes)
    cell = max(_SIDE / classes, _LEAST if classes <= _NUMBERED else 0)
    names = [_short(name) for name in confusion.classes] if classes <= _NAMED else []
    margin = 14 + _LETTER * max(map(len, names), default=0)
    body = _named(confusion, cell, names) if names else _shaded(confusion, cell)
    inner = cell * classes
    side = margin + inner + 2
    return (
        f'<svg class="matrix" viewBox="0 0 {side:.0f} {side:.0f}" width="{side:.0f}" role="img" '
        f'aria-label="confusion matrix, {classes} classes"><g transform="translate({margin:.0f} {margin:.0f})">'
        f'<path class="frame" d="M0 0h{inner:.1f}v{inner:.1f}h-{inner:.1f}z"/>{body}</g></svg>'
    )


def mistakes(confusion: Confusion) -> Sheet | None:
    """The pairs that are mistaken most often; None where none is."""
    wrong = [each for each in confusion.counts if each[0] != each[1]]
    totals, names = _totals(confusion), confusion.classes
    rows = [
        (names[label], names[said], str(count), str(totals[label]), f"{count / totals[label]:.3f}")
        for label, said, count in sorted(wrong, key=lambda each: -each[2])[:_MOST]
    ]
    heads = ("label", "prediction", "count", "of", "share")
    title = f"mistaken most often: {len(rows)} of {len(wrong)} pairs"
    return Sheet(title=title, heads=heads, rows=rows, right=frozenset(heads[2:])) if rows else None


def _totals(confusion: Confusion) -> dict[int, int]:
    totals: dict[int, int] = defaultdict(int)
    for label, _, count in confusion.counts:
        totals[label] += count
    return totals


def _strength(count: int, total: int) -> float:
    """Opacity: the root of the share, so that a few mistakes of many are seen."""
    return max(0.08, math.sqrt(count / total))


def _named(confusion: Confusion, cell: float, names: list[str]) -> str:
    totals, drawn = _totals(confusion), []
    for i, name in enumerate(names):
        middle = f"{(i + 0.5) * cell:.1f}"
        told = f"<title>{escaped(confusion.classes[i])}</title>{escaped(name)}"
        drawn.append(f'<text x="-6" y="{middle}" dy="4" text-anchor="end">{told}</text>')
        drawn.append(f'<text transform="translate({middle} -6) rotate(-90)" dy="4">{told}</text>')
    for label, said, count in confusion.counts:
        strength = _strength(count, totals[label])
        words = f"{confusion.classes[label]}, taken for {confusion.classes[said]}: {count} of {totals[label]}"
        box = (
            f'<rect class="{"right" if label == said else "wrong"}" x="{said * cell:.1f}" y="{label * cell:.1f}" '
            f'width="{cell:.1f}" height="{cell:.1f}" fill-opacity="{strength:.2f}"/>'
        )
        number = ""
        if len(names) <= _NUMBERED:
            place = f'x="{(said + 0.5) * cell:.1f}" y="{(label + 0.5) * cell:.1f}" dy="4" text-anchor="middle"'
            number = f'<text class="{"on" if strength > 0.6 else "off"}" {place}>{count}</text>'
        drawn.append(f"<g><title>{escaped(words)}</title>{box}{number}</g>")
    return "".join(drawn)


def _shaded(confusion: Confusion, cell: float) -> str:
    """All cells of a shade are one path, so that a thousand classes are some hundred kilobytes."""
    totals = _totals(confusion)
    paths: dict[tuple[str, int], list[str]] = defaultdict(list)
    for label, said, count in confusion.counts:
        shade = max(_FAINTEST, math.ceil(_SHADES * _strength(count, totals[label])))
        paths["right" if label == said else "wrong", shade].append(f"M{said} {label}h1v1h-1z")
    scale = f'transform="scale({cell:.4f})"'
    return "".join(
        f'<path class="{kind}" {scale} fill-opacity="{shade / _SHADES:.3f}" d="{"".join(cells)}"/>'
        for (kind, shade), cells in sorted(paths.items())
    )


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"
