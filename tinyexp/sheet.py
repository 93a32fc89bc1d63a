"""Tables and listings of text: on the console, and in Markdown."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tinyexp.comparison import Spread
from tinyexp.console import visible

_WIDE = 2000  # columns where there is no terminal: nothing is cut
_LONGEST = 60  # lines of a listing on the console; Markdown has all
_STYLES = {"+": "green", "-": "red", "@": "cyan"}  # of a diff's lines


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """A table."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    labels: Sequence[str] = ()  # the heads as the console has them, where they are others
    right: frozenset[str] = frozenset()  # the heads of columns of numbers
    spare: Sequence[str] = ()  # the heads of columns that a narrow terminal does without, from the first on
    mark_first: bool = False


@dataclass(frozen=True, kw_only=True)
class Listing:
    """Lines as they are."""

    title: str
    lines: Sequence[str]
    diff: bool = False
    words: bool = False  # sentences, broken between words where a terminal is too narrow


def show(parts: Iterable[Sheet | Listing]) -> None:
    """On the console; where that is no terminal, as wide as the text is."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without the signs of a table
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_WIDE)
    for part in parts:
        if isinstance(part, Sheet):
            _show_sheet(console, part)
        elif part.words:
            console.print(Text(part.title, style="bold"))
            for line in part.lines:
                console.print(Padding(Text(visible(line)), (0, 0, 0, 2), expand=False))
        else:
            console.print(_lines(part), soft_wrap=True)
        console.print()


def markdown(part: Sheet | Listing) -> str:
    """A section of a Markdown page."""
    if isinstance(part, Listing):
        runs = [len(run) for line in part.lines for run in re.findall("`+", line)]
        fence = "`" * max(3, 1 + max(runs, default=0))
        lines = [visible(line, "\t") for line in part.lines]
        return "\n".join([f"## {part.title}", "", fence + ("diff" if part.diff else ""), *lines, fence, ""])
    rule = ["---:" if head in part.right else "---" for head in part.heads]
    rows = [[visible(cell).replace("|", "\\|") for cell in row] for row in (part.heads, *part.rows)]
    lines = [f"| {' | '.join(row)} |" for row in (rows[0], rule, *rows[1:])]
    return "\n".join([f"## {part.title}", "", *lines, ""])


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Key -> its last part, where no other key's is the same."""
    lasts = [key.removesuffix("._target_").rpartition(".")[2] for key in keys]
    return {key: last if lasts.count(last) == 1 else key for key, last in zip(keys, lasts, strict=True)}


def aligned(columns: Sequence[Sequence[str]]) -> list[str]:
    """The lines of columns, each as wide as its widest cell."""
    padded = [[cell.ljust(max(map(len, cells))) for cell in cells] for cells in columns]
    return ["  ".join(cells) for cells in zip(*padded, strict=True)]


def folded(label: str, cells: Sequence[str]) -> str:
    """In two lines where a column is narrower than its head."""
    return label.replace("_", "_\n") if len(label) > max(map(len, cells), default=0) else label


def plain(value: object) -> str:
    return "" if value is None else str(value)


def rounded(number: int) -> str:
    """61,706 -> 61.7k; 11,181,642 -> 11.2M."""
    unit, name = (1e6, "M") if number >= 1e6 else (1e3, "k")
    return f"{number / unit:.1f}{name}" if number >= 1e3 else str(number)


def spread(found: Spread | None) -> str:
    """Mean ± standard deviation, where there is one; nothing for nothing."""
    if found is None:
        return ""
    return f"{found.mean:.4f}" if found.std is None else f"{found.mean:.4f} ± {found.std:.4f}"


def _show_sheet(console: Console, sheet: Sheet) -> None:
    """Without spare columns as far as the terminal is too narrow; that is told."""
    left_out: list[str] = []
    unbounded = console.options.update(max_width=_WIDE)
    while (width := console.measure(_table(sheet, left_out), options=unbounded).maximum) > console.width:
        if len(left_out) == len(sheet.spare):
            break
        left_out.append(sheet.spare[len(left_out)])
    if sheet.spare and width > console.width:
        console = Console(highlight=False, width=width)  # lines as they are, for the terminal to break
    console.print(_table(sheet, left_out))
    if left_out:
        told = f"for {', '.join(reversed(left_out))} the terminal is too narrow"
        console.print(Text(told, style="dim"), soft_wrap=True)


def _table(sheet: Sheet, left_out: Sequence[str] = ()) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.title, table.title_justify = Text(sheet.title, style="bold"), "left"
    shown = [i for i, head in enumerate(sheet.heads) if head not in left_out]
    labels = sheet.labels or sheet.heads
    for i in shown:
        number = sheet.heads[i] in sheet.right
        justify: Literal["left", "right"] = "right" if number else "left"
        fixed = number or bool(sheet.spare)
        table.add_column(
            Text(visible(labels[i], "\n")), justify=justify, no_wrap=fixed, overflow="fold", vertical="bottom"
        )
    for n, row in enumerate(sheet.rows):
        style = "bold green" if sheet.mark_first and n == 0 else ""
        table.add_row(*(Text(visible(row[i])) for i in shown), style=style)
    return table


def _lines(listing: Listing) -> Text:
    text = Text().append(listing.title, style="bold")
    for line in listing.lines[:_LONGEST]:
        text.append("\n  " + visible(line, "\t"), style=_STYLES.get(line[:1], "") if listing.diff else "")
    if len(listing.lines) > _LONGEST:
        text.append(f"\n  ... {len(listing.lines) - _LONGEST} lines more: --out DIR writes all to report.md")
    return text
