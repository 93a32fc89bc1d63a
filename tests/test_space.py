"""sweep.space: what may be tried, and what random search draws of it."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tinyexp.errors import ConfigError
from tinyexp.space import Choice, Range, draw, read_space

SHARES = [i / 1000 for i in range(1000)]


@pytest.mark.parametrize(
    "given",
    [{"low": 1e-5, "high": 1.0, "log": True}, {"low": -2.5, "high": 3}, {"low": 0.0, "high": 0.1, "log": False}],
)
def test_a_range_gives_numbers_within_it_in_the_order_of_the_shares(given: dict[str, Any]) -> None:
    part = read_space({"optim.lr": given})["optim.lr"]
    assert isinstance(part, Range)
    values = [part.at(share) for share in SHARES]
    assert values == sorted(values)
    assert given["low"] == values[0]
    assert values[-1] <= given["high"]
    middle = part.at(0.5)
    low, high = given["low"], given["high"]
    wanted = math.sqrt(low * high) if given.get("log") else (low + high) / 2
    assert middle == pytest.approx(wanted, rel=1e-3)
    assert all(len(f"{abs(value):.10g}".replace(".", "").strip("0").partition("e")[0]) <= 4 for value in values)


@pytest.mark.parametrize("log", [False, True])
def test_a_range_between_whole_numbers_gives_each_of_them(log: bool) -> None:
    part = read_space({"k": {"low": 2, "high": 6, "log": log}})["k"]
    values = [part.at(share) for share in SHARES]
    assert {type(value) for value in values} == {int}
    counts = [values.count(value) for value in (2, 3, 4, 5, 6)]
    assert min(counts) > 100
    if not log:
        assert max(counts) - min(counts) <= 2, "each as likely"


def test_a_list_gives_each_of_its_values_as_often() -> None:
    part = read_space({"model": ["lenet5", "lenet6", None, [1, 2]]})["model"]
    assert isinstance(part, Choice)
    values = [part.at(share) for share in SHARES]
    assert [values.count(value) for value in part.samples] == [250] * 4


def test_a_trials_values_follow_from_the_seed_and_its_number_alone() -> None:
    space = read_space({"a": {"low": 0.0, "high": 1.0}, "b": ["x", "y", "z"]})
    assert draw(space, 3, 5) == draw(space, 3, 20)[:5]
    assert draw(space, 3, 20) != draw(space, 4, 20)
    values = draw(space, 0, 300)
    assert 0.4 < sum(each["a"] for each in values) / 300 < 0.6
    assert all(80 < sum(each["b"] == name for each in values) < 120 for name in "xyz")


def test_no_trial_comes_twice_and_a_small_space_has_no_more_than_it_has() -> None:
    space = read_space({"a": [1, 2], "b": {"low": 1, "high": 3}})
    values = draw(space, 0, 100)
    assert len(values) == 6
    assert all(values.count(each) == 1 for each in values)


@pytest.mark.parametrize(
    "wrong",
    [
        0.1,
        "lenet5",
        [],
        {},
        {"low": 1},
        {"low": 1, "high": 2, "step": 1},
        {"low": 2, "high": 1},
        {"low": 1, "high": 1},
        {"low": "1", "high": 2},
        {"low": 0, "high": 1, "log": True},
        {"low": 1, "high": 2, "log": "yes"},
        {"low": 1, "high": float("inf")},
        {"low": False, "high": True},
    ],
)
def test_what_is_neither_a_range_nor_a_list_is_told(wrong: object) -> None:
    with pytest.raises(ConfigError, match=r"^sweep\.space\.optim\.lr must be a list of values, or \{low: 1e-4"):
        read_space({"optim.lr": wrong})
