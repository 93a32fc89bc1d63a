"""index.html in a browser, from the disk: a click on a head sorts, and nothing is complained of."""

from __future__ import annotations

from pathlib import Path

import pytest
from browser import opened
from test_report import report, write_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rates as words that sort otherwise than as numbers, seeds, times over a minute, a group that lacks an epoch."""
    folder = tmp_path_factory.mktemp("page")
    for i, (lr, seconds, size) in enumerate([(0.003, 151.0, 61_706), (1e-05, 9.0, 11_181_642), (2, 4000.0, 999)]):
        for seed in range(5):
            values = (0.1, 0.5 - i / 10 + seed / 100, *([0.2] if i else []))
            write_run(folder / f"{i}-{seed}", values, optim__lr=lr, train__seed=seed, seconds=seconds, parameters=size)
    write_run(folder / "text", (0.3, 0.3), optim__lr="<b>auto</b>")
    assert report(folder, "--epochs", "3", "--out", folder / "out") == 0
    return folder / "out" / "index.html"


def test_a_click_sorts_and_a_second_one_the_other_way_round(page: Path) -> None:
    with opened(page) as (tab, wrong):
        table = tab.locator("table").first

        def column(name: str) -> list[str]:
            heads = [text.strip() for text in table.locator("thead th").all_inner_texts()]
            place = heads.index(name) + 1
            return [text.strip() for text in table.locator(f"tbody td:nth-child({place})").all_inner_texts()]

        def state(name: str) -> str | None:
            button = table.get_by_role("button", name=name, exact=True)
            return str(button.evaluate("button => button.parentElement.getAttribute('aria-sort')"))

        for name, rising in (
            ("lr", ["1e-05", "0.003", "2", "<b>auto</b>"]),  # what is no number after the numbers
            ("n", ["1", "5", "5", "5"]),
            ("time", ["9.0 s", "10 s", "2:31", "1:06:40"]),
            ("params", ["999", "1.0k", "61.7k", "11.2M"]),
        ):
            button = table.get_by_role("button", name=name, exact=True)
            assert state(name) == "none"
            button.click()
            assert (column(name), state(name)) == (rising, "ascending")
            button.press("Enter")  # the keyboard does, too
            assert (column(name), state(name)) == (rising[::-1], "descending")
        assert state("lr") == "none", "one column is said to be sorted"
        for name in ("top1@3", "p"):
            for _ in range(2):
                table.get_by_role("button", name=name, exact=True).click()
                cells = column(name)
                assert cells[-2:] == ["", ""], "what is empty stays last"
                assert all(cells[:2])
        best = table.get_by_role("button", name="best", exact=True)
        best.click()
        assert column("best")[-1] == "0.5200 ± 0.0158"
        assert table.locator("tr.best td").first.inner_text() == "★", "the mark goes with its row"
        assert wrong == []


@pytest.mark.parametrize(("scheme", "ground"), [("light", "rgb(255, 255, 255)"), ("dark", "rgb(22, 24, 27)")])
def test_light_dark_and_narrow(page: Path, scheme: str, ground: str) -> None:
    with opened(page, color_scheme=scheme, viewport={"width": 390, "height": 800}) as (tab, wrong):
        told = "getComputedStyle(document.body).backgroundColor"
        assert tab.evaluate(told) == ground, "the style is taken: its digest is in the policy"
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390, "the page itself does not scroll sideways"
        assert tab.locator(".panels svg").first.bounding_box()["width"] > 300
        assert wrong == []
