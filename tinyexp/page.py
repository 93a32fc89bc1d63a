"""index.html: a report as one page that needs no network and no other file; page.css is its look, page.js sorts."""

from __future__ import annotations

import base64
import hashlib
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tinyexp.colours import COLOURS
from tinyexp.comparison import Result, common, series
from tinyexp.heatmap import heatmap, mistakes
from tinyexp.saved import SavedRun
from tinyexp.sheet import Listing, Sheet
from tinyexp.svg import Line, escaped, panel, scale_of, swatch

_POINTS = 100_000  # of all pale lines of a page together
_LONG = 25  # rows of a table beyond which it scrolls
_PANELS = [(name, phase) for name in ("top1", "loss") for phase in ("val", "train")]
_LEGEND = (
    "Row: the label; column: what it was taken for. Blue is right, orange is wrong; the strength is the root of a "
    "cell's share of its row."
)
_HTML = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
<h1>{title}</h1>
<pre class="command">{command}</pre>
{body}
</main>
<script>{script}</script>
</body>
</html>
"""


@dataclass(frozen=True, kw_only=True)
class Page:
    """What a page shows, in this order."""

    command: str
    lead: Sequence[Sheet | Listing]  # the first of them is the page's title
    curves: Sequence[tuple[str, list[Result]]]  # groups of runs by name, the best first
    matrices: Sequence[tuple[str, SavedRun]]
    rest: Sequence[Sheet | Listing]


def html(page: Page) -> str:
    """The page's text.

    Raises:
        ConfigError: a run's metrics.jsonl has no number where one must be.
    """
    title, *_ = (part.title for part in page.lead)
    body = [_part(page.lead[0], ""), *map(_part, page.lead[1:])]
    body += [_curves(page.curves), _matrices(page.matrices), *map(_part, page.rest)]
    style, script = (Path(__file__).with_name(f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    for i, colour in enumerate(COLOURS):
        style = style.replace(f"--c{i}: C{i}", f"--c{i}: {colour}")
    policy = (
        f"default-src 'none'; style-src {_digest(style)}; script-src {_digest(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    return _HTML.format(
        policy=policy,
        title=escaped(title),
        style=style,
        command=escaped(page.command),
        body="\n".join(filter(None, body)),
        script=script,
    )


def _digest(text: str) -> str:
    """What a browser holds an inline style or script to: no other is taken."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


# tables and lines


def _part(part: Sheet | Listing, tag: str = "h2") -> str:
    """Its title in this tag; in none where that is empty."""
    head = f"<{tag}>{escaped(part.title)}</{tag}>" if tag else ""
    if isinstance(part, Sheet):
        return head + _table(part)
    if part.diff:
        return f"{head}<pre>{_diff(part.lines)}</pre>"
    return head + "".join(f"<p>{escaped(line)}</p>" for line in part.lines)


def _table(sheet: Sheet) -> str:
    """With figures in it, sorted by a click on a head."""
    heads = "".join(map(_head, sheet.heads, sheet.labels or sheet.heads, [sheet] * len(sheet.heads)))
    classes = [' class="number"' if head in sheet.right else "" for head in sheet.heads]
    rows = [
        "".join(f"<td{kind}>{escaped(cell)}</td>" for kind, cell in zip(classes, row, strict=True))
        for row in sheet.rows
    ]
    marks = [' class="best"' if sheet.mark_first and i == 0 else "" for i in range(len(rows))]
    body = "".join(f"<tr{mark}>{row}</tr>" for mark, row in zip(marks, rows, strict=True))
    kind = "wide long" if len(rows) > _LONG else "wide"
    return (
        f'<div class="{kind}" tabindex="0" role="region" aria-label="{escaped(sheet.title)}"><table>'
        f"<thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _head(head: str, label: str, sheet: Sheet) -> str:
    kind = ' class="number"' if head in sheet.right else ""
    text = escaped(label.replace("_\n", "_"))
    if not head or not sheet.right:
        return f'<th{kind} scope="col">{text}</th>'
    return f'<th{kind} scope="col" aria-sort="none" title="{escaped(head)}"><button type="button">{text}</button></th>'


def _diff(lines: Iterable[str]) -> str:
    kinds = {"+": "plus", "-": "minus", "@": "place"}
    told = ((kinds.get(line[:1]), "    ".join(map(escaped, line.split("\t")))) for line in lines)
    return "\n".join(f'<span class="{kind}">{line}</span>' if kind else line for kind, line in told)


# curves and matrices


def _curves(groups: Sequence[tuple[str, list[Result]]]) -> str:
    """Top1 and loss of val and train; beyond as many groups as there are colours, the others are pale."""
    drawn = {place: _lines(groups, *place) for place in _PANELS}
    most = max(12, _POINTS // (len(_PANELS) * max(1, len(groups))))
    panels = []
    for (name, phase), lines in drawn.items():
        row = [*drawn[name, "val"], *drawn[name, "train"]]  # one scale for both
        if any(line.epochs for line in lines) and (scale := scale_of(row)):
            panels.append(panel(f"{phase} {name}", lines, scale, most))
    if not panels:
        return ""
    named = [f"<li>{swatch(i)}{escaped(name)}</li>" for i, (name, _) in enumerate(groups[: len(COLOURS)])]
    if more := len(groups) - len(named):
        named.append(f'<li class="quiet">{swatch(None)}{more} more: a pointer on a line names it</li>')
    sizes = [len(results) for _, results in groups]
    told = "by epoch" + ("; a line is the mean of a group's runs" if max(sizes) > 1 else "")
    told += ", a band from the lowest to the highest" if max(sizes[: len(COLOURS)]) > 1 else ""
    return (
        f'<h2>curves</h2><p class="quiet">{told}</p><ul class="names">{"".join(named)}</ul>'
        f'<div class="panels">{"".join(panels)}</div>'
    )


def _lines(groups: Sequence[tuple[str, list[Result]]], metric: str, phase: str) -> list[Line]:
    lines = []
    for i, (name, results) in enumerate(groups):
        runs = [series(each.run, "val" if phase == "val" else "train_epoch", metric) for each in results]
        epochs, values = common(runs)
        if len(runs) == 1:
            means = lows = highs = [value for (value,) in values]
        else:
            means, lows, highs = ([pick(each) for each in values] for pick in (statistics.fmean, min, max))
        colour = i if i < len(COLOURS) else None
        lines.append(Line(name=name, colour=colour, epochs=epochs, means=means, lows=lows, highs=highs))
    return lines


def _matrices(runs: Sequence[tuple[str, SavedRun]]) -> str:
    found = "".join(_matrix(name, run) for name, run in runs)
    return (
        f'<h2>confusion on val</h2><p class="quiet">{_LEGEND}</p><div class="matrices">{found}</div>' if found else ""
    )


def _matrix(name: str, run: SavedRun) -> str:
    head = f"<h3>{escaped(name)}</h3>"
    if run.confusion is None:
        told = f"{run.path} has no confusion.json that can be read"
        return f'<section>{head}<p class="quiet">{escaped(told)}</p></section>'
    listed = mistakes(run.confusion)
    place = f'<p class="quiet">{escaped(str(run.path))}, epoch {run.confusion.epoch}</p>'
    pairs = f"<div>{_part(listed, 'h3')}</div>" if listed else ""
    return f'<section>{head}{place}<div class="run"><div>{heatmap(run.confusion)}</div>{pairs}</div></section>'
