"""index.html: one file that asks for nothing else, its figures those of report.csv, no name in it more than a name."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from test_report import read_csv, report, write_run

from tinyexp.colours import COLOURS
from tinyexp.heatmap import heatmap, mistakes
from tinyexp.saved import Confusion, SavedRun
from tinyexp.svg import Line, panel, scale_of

POISON = "<script>alert(1)</script>&amp;\"'\n\udcff\x1b[2J</title><img src=http://x/y onerror=alert(2)>"
VOID = ("meta", "br", "img", "link")
MAY = {"title", "viewBox", "viewbox", "role", "class", "points", "d", "x", "y", "dy", "width", "height", "transform"}
MAY |= {"fill-opacity", "text-anchor", "tabindex", "scope", "type", "lang", "charset", "name", "content", "http-equiv"}
MAY |= {"aria-label", "aria-sort"}


class Read(HTMLParser):
    """Every element with its attributes and text; that each tag is closed in its order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.into: list[list[str]] = []  # of each that is open, its text
        self.found: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.rows: list[list[list[str]]] = []  # table -> row -> cell
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs), []))
        if tag not in VOID:
            self.open.append(tag)
            self.into.append(self.found[-1][2])
        if tag == "table":
            self.rows.append([])
        elif tag == "tr":
            self.rows[-1].append([])
        elif tag in ("td", "th"):
            self.rows[-1][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs), []))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self.into.pop()

    def handle_data(self, data: str) -> None:
        if self.into:
            self.into[-1].append(data)
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1][-1] += data

    def all(self, *tags: str) -> list[tuple[dict[str, str | None], str]]:
        return [(attributes, "".join(text)) for tag, attributes, text in self.found if tag in tags]

    @property
    def text(self) -> str:
        return " ".join("".join(text) for tag, _, text in self.found if tag not in ("style", "script"))


def read(folder: Path) -> Read:
    return Read((folder / "index.html").read_bytes().decode())


def write_confusion(run: Path, content: Any = None, **changes: Any) -> None:
    plain = {"epoch": 2, "classes": ["cat", "dog", "owl"], "counts": [[0, 0, 9], [0, 1, 3], [1, 1, 8], [2, 0, 1]]}
    (run / "confusion.json").write_text(json.dumps(plain | changes if content is None else content))


def pages(tmp_path: Path) -> list[Path]:
    """Of many runs, with all that such a page may hold; of few; of two; of none that counts."""
    for i in range(9):
        for seed in range(2 if i < 3 else 1):
            run = write_run(
                tmp_path / "runs" / f"{i}-{seed}", (0.1, 0.9 - i / 20, 0.2), optim__lr=i + 1, train__seed=seed
            )
            write_confusion(run)
    write_run(tmp_path / "runs" / "bad", status="failed", exit_code=4, error="loss is nan")
    (write_run(tmp_path / "runs" / "torn") / "config.yaml").write_text("- 1")
    few = [tmp_path / "runs" / f"{i}-0" for i in range(3)]
    write_run(tmp_path / "lost", status="failed")
    outs = [tmp_path / name for name in ("many", "few", "two", "none")]
    assert report(tmp_path / "runs", "--epochs", "2", "--out", outs[0]) == 2
    assert report(*few, "--out", outs[1]) == 0
    assert report(*few[:2], "--out", outs[2]) == 0
    assert report(tmp_path / "lost", "--out", outs[3]) == 0
    return outs


def test_it_asks_for_nothing(tmp_path: Path) -> None:
    """No address, no element that fetches, and a policy that would refuse both; each script and style is in it."""
    for out in pages(tmp_path):
        page = read(out)
        names = {name for _, attributes, _ in page.found for name in attributes}
        assert names <= MAY, "no src, href, style, on..., xlink:"
        assert not {tag for tag, _, _ in page.found} & {"img", "link", "iframe", "object", "embed", "use", "image", "a"}
        (policy,) = (each["content"] for each, _ in page.all("meta") if "http-equiv" in each)
        assert policy is not None
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        for kind in ("style", "script"):
            ((_, text),) = page.all(kind)
            digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
            assert f"{kind}-src 'sha256-{digest}'" in policy
            assert not re.search(r"url\(|@import|http", text)
        style = page.all("style")[0][1]
        assert all(colour in style for colour in COLOURS)
        assert ": C" not in style


def test_figures_are_those_of_the_csv(tmp_path: Path) -> None:
    out = pages(tmp_path)[0]
    head, *rows = read(out).rows[0]
    assert head == ["", "lr", "n", "top1@2", "best", "last", "time", "img/s", "params"]
    table = read_csv(out)
    assert len(rows) == len(table) == 9
    for row, numbers in zip(rows, table, strict=True):
        cells = dict(zip(head, row, strict=True))
        assert (cells["lr"], cells["n"]) == (numbers["optim.lr"], numbers["n"])
        for cell, name in (("best", "best"), ("last", "last"), ("top1@2", "top1@2")):
            mean, std = numbers[f"{name}_mean"], numbers[f"{name}_std"]
            assert cells[cell] == f"{float(mean):.4f}" + (f" ± {float(std):.4f}" if std else "")
        assert cells["img/s"] == f"{float(numbers['images_per_second']):,.0f}"


def test_what_the_pages_show(tmp_path: Path) -> None:
    many, few, two, none = map(read, pages(tmp_path))
    for text in (
        "9 of 13 runs",
        "2 more: a pointer",
        "not counted: 1",
        "loss is nan",
        "refused: 1",
        "must hold a mapping",
    ):
        assert text.replace("9 of", "12 of").replace("of 13", "of 14") in many.text, text
    assert len([each for each, _ in many.all("svg") if "matrix" in str(each.get("class"))]) == 1
    assert "the best run of lr=1" in many.text
    for page, drawn in ((many, 9), (few, 3), (two, 2)):
        lines = [each for each, _ in page.all("polyline") if each["class"] != "near"]
        assert len(lines) == 4 * drawn, "loss and top1 of train and val"
        names = {str(each["class"]).split(" dot")[0] for each in lines}
        assert len(names) == min(drawn, 8), "a colour each, and the others pale"
    assert len([each for each, _ in two.all("svg") if "matrix" in str(each.get("class"))]) == 2
    assert "scores by val/top1" in two.text
    assert "config" in two.text
    assert "0 of 1 runs" in none.text
    assert not none.all("svg")


def test_all_that_is_drawn_is_finite(tmp_path: Path) -> None:
    for i, values in enumerate(([0.5], [0.5, 0.5], [0.1] * 30, [1e300, -1e300, 5, 1e9], [0.1, 0.2, 0.9, 1e-12])):
        write_run(tmp_path / "runs" / f"{i}", values, optim__lr=i + 1)
        assert report(tmp_path / "runs" / f"{i}", "--out", tmp_path / f"{i}") == 0
    assert report(tmp_path / "runs", "--out", tmp_path / "all") == 0
    for name in ("all", *map(str, range(5))):
        page = read(tmp_path / name)
        drawn = page.all("polyline", "polygon")
        assert drawn or name == "3", name
        for each, _ in drawn:
            points = str(each["points"]).replace(",", " ").split()
            assert len(points) >= 4
            assert all(math.isfinite(float(value)) and abs(float(value)) < 2000 for value in points)
        assert not re.search(r"\b(nan|inf)\b", page.text)


def test_a_line_is_where_its_values_are() -> None:
    """From the first epoch at the left to the last at the right; thinned, it keeps both ends."""

    def points(values: Sequence[float], most: int = 1000) -> list[tuple[float, float]]:
        line = Line(name="a", colour=0, epochs=range(1, len(values) + 1), means=values, lows=values, highs=values)
        scale = scale_of([line])
        assert scale is not None
        pale = replace(line, colour=None)
        (found,) = re.findall(r'class="line pale" points="([^"]+)"', panel("t", [pale], scale, most))
        return [(float(x), float(y)) for x, y in (pair.split(",") for pair in found.split())]

    three = points([0.0, 1.0, 0.5])
    assert [x for x, _ in three] == [0.0, three[2][0] / 2, three[2][0]]
    low, high, middle = (y for _, y in three)
    assert high < middle < low
    assert middle == pytest.approx((low + high) / 2, abs=0.1)
    long = [math.sin(i / 50) for i in range(1000)]
    thin = points(long, most=90)
    assert 80 < len(thin) <= 91
    assert (thin[0], thin[-1]) == (points(long)[0], points(long)[-1])


# names


def test_a_name_is_only_a_name(tmp_path: Path) -> None:
    """Of runs, paths, classes, values, errors: markup, quotes, line ends, half letters, signs for a terminal."""
    folder = tmp_path / os.fsdecode(b"a<b>&\"'\xff\n")
    names = ("x<i>\n", os.fsdecode(b"y\"'\xff"))
    for name, lr in zip(names, (POISON.replace("\udcff", ""), 1), strict=True):
        run = write_run(folder / name, optim__lr=lr)
        write_confusion(run, classes=[POISON, "<b>", "'\""])
        (run / "env.json").write_text(json.dumps({"host": POISON + name, "git": {"commit": POISON, "dirty": True}}))
        (run / "code.patch").write_bytes(os.fsencode(f"+{name}</pre><script>\n"))
    write_run(folder / "z", status="failed", error=POISON.replace("\n", ""))
    for words in ([folder], [folder / name for name in names]):
        out = tmp_path / f"out {len(words)}"
        assert report(*words, "--out", out) == 0
        page = read(out)
        known = {
            "html",
            "head",
            "meta",
            "title",
            "style",
            "script",
            "body",
            "main",
            "h1",
            "h2",
            "h3",
            "pre",
            "p",
            "div",
        }
        known |= {"table", "thead", "tbody", "tr", "th", "td", "button", "span", "ul", "li", "section", "figure"}
        known |= {"figcaption", "svg", "g", "path", "text", "polyline", "polygon", "rect"}
        assert {tag for tag, _, _ in page.found} <= known
        assert {name for _, attributes, _ in page.found for name in attributes} <= MAY
        assert len(page.all("script")) == 1
        assert "<script>alert(1)</script>&amp;\"'" in page.text
        assert r"\udcff" in page.text
        assert "\x1b" not in page.text
        assert (out / "report.md").exists()


# the confusion matrix


@pytest.mark.parametrize(
    "change",
    [
        {"epoch": 0},
        {"epoch": "2"},
        {"epoch": True},
        {"classes": "abc"},
        {"classes": []},
        {"classes": ["a", 1, "c"]},
        {"counts": None},
        {"counts": [[0, 0]]},
        {"counts": [[0, 0, 1, 1]]},
        {"counts": ["abc"]},
        {"counts": [[0, 3, 1]]},
        {"counts": [[-1, 0, 1]]},
        {"counts": [[0, 0, 0]]},
        {"counts": [[0, 0, 1.5]]},
        {"counts": [[0, 0, True]]},
        {"counts": [[0, 0, 10**30]]},
        {"counts": [[0, 0, 1], [0, 0, 2]]},
    ],
)
def test_a_matrix_that_is_none_is_left_out_and_told(tmp_path: Path, change: dict[str, Any]) -> None:
    run = write_run(tmp_path / "runs" / "a")
    write_confusion(run)
    assert SavedRun(run).confusion == Confusion(2, ["cat", "dog", "owl"], [(0, 0, 9), (0, 1, 3), (1, 1, 8), (2, 0, 1)])
    write_confusion(run, **change)
    assert SavedRun(run).confusion is None
    assert report(tmp_path / "runs", "--out", tmp_path / "out") == 0
    assert "has no confusion.json that can be read" in read(tmp_path / "out").text


@pytest.mark.parametrize("content", ["", "[]", '{"epoch": 1', "[" * 100_000, '{"epoch": NaN}'])
def test_a_torn_matrix_is_none(tmp_path: Path, content: str) -> None:
    run = write_run(tmp_path / "a")
    assert SavedRun(run).confusion is None
    (run / "confusion.json").write_text(content)
    assert SavedRun(run).confusion is None


def test_cells_stand_where_they_belong() -> None:
    confusion = Confusion(1, ["cat", "dog", "owl"], [(0, 0, 9), (0, 1, 3), (1, 1, 8), (2, 0, 1)])
    page = Read(heatmap(confusion))
    cells = {(float(each["x"] or 0), float(each["y"] or 0)): each for each, _ in page.all("rect")}
    side = float(page.all("rect")[0][0]["width"] or 0)
    assert {(round(y / side), round(x / side)) for x, y in cells} == {(0, 0), (0, 1), (1, 1), (2, 0)}
    assert {(round(y / side), round(x / side)) for (x, y), each in cells.items() if each["class"] == "wrong"} == {
        (0, 1),
        (2, 0),
    }
    assert cells[side, 0]["fill-opacity"] == "0.50", "the root of 3 of 12"
    assert "cat, taken for dog: 3 of 12" in page.text
    sheet = mistakes(confusion)
    assert sheet is not None
    assert list(sheet.rows) == [("cat", "dog", "3", "12", "0.250"), ("owl", "cat", "1", "1", "1.000")]
    assert mistakes(Confusion(1, ["a"], [(0, 0, 5)])) is None


@pytest.mark.parametrize(("classes", "numbers", "names"), [(10, 20, 20), (30, 0, 60), (200, 0, 0), (1000, 0, 0)])
def test_many_classes_stay_a_small_picture(classes: int, numbers: int, names: int) -> None:
    """Numbers where they can be read, names where they can; of a thousand classes a path a shade."""
    counts = [(i, (i * j) % classes, j + 1) for i in range(classes) for j in range(20)]
    confusion = Confusion(
        1, [f"class {i}" for i in range(classes)], sorted({(a, b): (a, b, c) for a, b, c in counts}.values())
    )
    text = heatmap(confusion)
    page = Read(text)
    drawn = len(page.all("rect")) or text.count("h1v1h-1z")
    assert drawn == len(confusion.counts)
    axes = [each for each, _ in page.all("text") if "class" not in each]
    assert len(axes) == names
    assert (len(page.all("text")) > len(axes)) == bool(numbers)
    assert len(text) < 450_000
