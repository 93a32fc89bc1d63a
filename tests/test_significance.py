"""Could it be chance? p equals the enumeration by hand, its correction the book's, and the words say what was done."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from test_report import groups_of, report, write_run

from tinyexp import significance
from tinyexp.significance import finding, holm, permutation_test, smallest


def by_hand(a: Sequence[float], b: Sequence[float]) -> float:
    """All splits, one after the other."""
    values = [*a, *b]

    def difference(chosen: Sequence[int]) -> float:
        one = [values[i] for i in chosen]
        other = [values[i] for i in range(len(values)) if i not in chosen]
        return abs(sum(one) / len(one) - sum(other) / len(other))

    observed = difference(range(len(a)))
    splits = [difference(chosen) for chosen in itertools.combinations(range(len(values)), len(a))]
    return sum(each >= observed - 1e-12 for each in splits) / len(splits)


def write_groups(folder: Path, *groups: Sequence[float]) -> Path:
    for i, values in enumerate(groups):
        for seed, value in enumerate(values):
            write_run(folder / f"{i}-{seed}", (value,), optim__lr=i + 1, train__seed=seed)
    return folder


def found(folder: Path) -> significance.Finding:
    groups = groups_of(folder)
    return finding(groups, [group.keys.get("optim.lr", "all") for group in groups])


@pytest.mark.parametrize("seed", range(60))
def test_p_is_the_part_of_all_splits(seed: int) -> None:
    """Of any sizes, with ties that rounding would break: multiples of a seventh."""
    draw = random.Random(seed)
    a, b = ([0.5 + draw.randrange(6) / 7 for _ in range(draw.randint(1, 6))] for _ in range(2))
    assert permutation_test(a, b) == pytest.approx(by_hand(a, b), abs=1e-12)
    assert permutation_test(b, a) == pytest.approx(by_hand(a, b), abs=1e-12)


def test_known_cases() -> None:
    assert permutation_test([4, 5, 6], [1, 2, 3]) == pytest.approx(2 / 20)
    assert permutation_test([2] * 9, [1] * 9) == pytest.approx(2 / 48620)
    assert permutation_test([3, 3], [3, 3, 3]) == 1, "no spread at all"
    assert permutation_test([0.0], [0.0]) == 1
    assert permutation_test([9], [1, 2, 3, 4]) == pytest.approx(1 / 5)
    assert (smallest(3, 3), smallest(4, 4), smallest(2, 3)) == (2 / 20, 2 / 70, 1 / 10)


@pytest.mark.parametrize("sizes", [(5, 5), (4, 7), (9, 9)])
def test_p_is_scipys(sizes: tuple[int, int]) -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    draw = random.Random(3)
    a, b = ([draw.gauss(0.2 * i, 1) for _ in range(size)] for i, size in enumerate(sizes))

    def statistic(x: Sequence[float], y: Sequence[float]) -> float:
        return abs(sum(x) / len(x) - sum(y) / len(y))

    theirs = stats.permutation_test((a, b), statistic, alternative="greater", n_resamples=10**6, vectorized=False)
    assert permutation_test(a, b) == pytest.approx(theirs.pvalue, abs=1e-12)


def test_beyond_what_is_counted_splits_are_drawn_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(1)
    a, b = ([draw.gauss(0.8 * i, 1) for _ in range(8)] for i in range(2))
    exact = permutation_test(a, b)
    monkeypatch.setattr(significance, "_EXACT", 15)
    drawn = permutation_test(a, b)
    assert drawn == permutation_test(a, b)
    assert drawn != exact
    assert drawn == pytest.approx(exact, abs=4 * (exact / 20_000) ** 0.5)
    assert permutation_test([1] * 8, [0] * 8) >= 1 / 20_001, "never 0"


def test_holm_is_the_books() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1, 1]
    assert holm([]) == []


# the words


def test_two_groups(tmp_path: Path) -> None:
    said = found(write_groups(tmp_path, (0.90, 0.92, 0.94, 0.96, 0.98), (0.90, 0.91, 0.93, 0.95, 0.97)))
    p = by_hand((0.90, 0.92, 0.94, 0.96, 0.98), (0.90, 0.91, 0.93, 0.95, 0.97))
    assert said.lines == [
        "1 (0.9400 ± 0.0316, n = 5) against 2 (0.9320 ± 0.0286, n = 5): "
        f"two-sided exact permutation test, p = {p:.2g}: the difference may well be chance"
    ]
    assert said.values == [None, pytest.approx(p)]


def test_several_groups_are_adjusted(tmp_path: Path) -> None:
    best, near, far = (0.8, 0.81, 0.82, 0.83, 0.84), (0.79, 0.8, 0.81, 0.82, 0.83), (0.1, 0.11, 0.12, 0.13, 0.14)
    said = found(write_groups(tmp_path, far, best, near, (0.05,)))
    p = by_hand(best, near)
    assert said.values == [None, pytest.approx(p), pytest.approx(2 * 2 / 252), None]
    assert said.lines[1:] == [
        "p is adjusted for 2 comparisons (Holm): 1 of them is under 0.05",
        "of 1 group of one run (n = 1) nothing is said",
    ]


def test_too_few_seeds(tmp_path: Path) -> None:
    said = found(write_groups(tmp_path / "two", (0.9, 0.91, 0.92), (0.1, 0.11, 0.12)))
    assert said.lines == ["n = 3 and 3 allow no p below 0.1: n = 4 each would do"]
    assert said.values == [None, None]
    said = found(write_groups(tmp_path / "many", *((0.9 - i / 10 + seed / 100 for seed in range(4)) for i in range(4))))
    (line,) = said.lines
    assert line == ("n = 4 and 4 allow no p below 0.029, or 0.086 of 3 comparisons: n = 5 each would do")


def test_single_runs_are_not_spoken_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert found(write_groups(tmp_path / "single", (0.9,), (0.8,), (0.7,))).lines == []
    assert found(write_groups(tmp_path / "one", (0.9, 0.8, 0.7, 0.6))).lines == []
    (line,) = found(write_groups(tmp_path / "best", (0.9,), (0.8, 0.81))).lines
    assert line == "1 is one run (n = 1): nothing can be said of chance without seeds of it"
    assert report(tmp_path / "single", "--out", tmp_path / "out") == 0
    assert "chance" not in capsys.readouterr().out
    assert "chance" not in (tmp_path / "out" / "index.html").read_text()


def test_runs_of_one_seed_are_told(tmp_path: Path) -> None:
    folder = write_groups(tmp_path, (0.9, 0.91, 0.92, 0.93), (0.8, 0.81, 0.82, 0.83))
    assert len(found(folder).lines) == 1
    write_run(folder / "again", (0.93,), optim__lr=1, train__seed=3)
    assert found(folder).lines[1].startswith("some runs of a group share a seed")


def test_the_statement_is_everywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = write_groups(tmp_path / "runs", (0.9, 0.91, 0.92, 0.93), (0.8, 0.81, 0.82, 0.83))
    assert report(runs, "--out", tmp_path / "out") == 0
    line = "lr=1 (0.9150 ± 0.0129, n = 4) against lr=2 (0.8150 ± 0.0129, n = 4): two-sided exact permutation test, "
    line += "p = 0.029: the difference is unlikely to be chance"
    out = capsys.readouterr().out
    assert f"chance\n  {line}" in out
    assert " n             best      p " in out
    assert line in (tmp_path / "out" / "report.md").read_text()
    assert f"<p>{line}</p>" in (tmp_path / "out" / "index.html").read_text()
