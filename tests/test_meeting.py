"""Ranks agree at the same steps whatever their clocks say, about once a second of steps."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from helpers import ALONE, on_ranks

from tinyexp.dist import Dist
from tinyexp.meeting import Meeting


@dataclass
class Clock(threading.local):
    """time.monotonic, of each rank its own."""

    now: float = field(default=0.0)

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("tinyexp.meeting.time", made)
    return made


def walk(clock: Clock, steps: int, seconds: Callable[[int, int], float], start: int = 0) -> list[list[int]]:
    """The steps at which each of two ranks meets, where a step takes them `seconds(rank, step)`."""

    def rank(dist: Dist) -> list[int]:
        meeting, met = Meeting(start), []
        for step in range(start + 1, start + steps + 1):
            clock.now += seconds(dist.rank, step)
            if meeting.is_at(step):
                meeting.agree(dist)
                met.append(step)
        return met

    return on_ranks(2, rank)


def test_all_meet_at_the_same_steps_whatever_their_clocks_say(clock: Clock) -> None:
    first, second = walk(clock, 300, lambda rank, step: (0.05, 7.0)[rank] * (1 + step % 5))
    assert first == second
    assert len(first) > 5


@pytest.mark.parametrize("seconds", [0.001, 0.05, 0.3])
def test_the_distance_comes_to_a_second_of_steps_and_at_most_doubles(clock: Clock, seconds: float) -> None:
    met, _ = walk(clock, round(20 / seconds), lambda *_: seconds)
    distances = [after - before for before, after in pairwise([0, *met])]
    assert met[0] == 1
    assert distances[-1] == pytest.approx(1 / seconds, rel=0.02, abs=0.5)
    assert all(after <= 2 * before for before, after in pairwise(distances))


def test_steps_that_become_slow_are_met_at_sooner(clock: Clock) -> None:
    met, _ = walk(clock, 400, lambda _, step: 0.01 if step <= 200 else 2.0)
    assert [each for each in met if each > 320] == list(range(321, 401))  # each of them takes longer than a second


def test_a_slow_first_step_does_not_hold(clock: Clock) -> None:
    met, _ = walk(clock, 700, lambda _, step: 30.0 if step == 1 else 0.01)
    assert met[:4] == [1, 2, 4, 8]
    assert met[-1] - met[-2] == 100


def test_it_goes_on_from_a_resumed_step(clock: Clock) -> None:
    first, second = walk(clock, 10, lambda *_: 0.5, start=1000)
    assert first == second == [1001, 1003, 1005, 1007, 1009]


@pytest.mark.parametrize("wisher", [0, 1, 2])
def test_a_wish_of_any_rank_is_seen_by_all_at_the_same_step(clock: Clock, wisher: int) -> None:
    def rank(dist: Dist) -> list[tuple[int, list[bool]]]:
        meeting, seen = Meeting(0), []
        for step in range(1, 60):
            clock.now += 0.1 * (dist.rank + 1)
            if meeting.is_at(step):
                wishes = meeting.agree(dist, False, dist.rank == wisher and step >= 23, dist.rank == 0)
                seen.append((step, wishes))
        return seen

    ranks = on_ranks(3, rank)
    assert ranks[0] == ranks[1] == ranks[2]
    for step, wishes in ranks[0]:
        assert wishes == [False, step >= 23, True]
    assert {wishes[1] for _, wishes in ranks[0]} == {True, False}


def test_several_wishes_for_one_thing_are_one(clock: Clock) -> None:
    assert on_ranks(3, lambda dist: Meeting(0).agree(dist, True, False)) == [[True, False]] * 3


def test_a_process_that_is_alone_is_asked_at_each_step() -> None:
    meeting = Meeting(7)
    assert not meeting.is_at(7)
    for step in range(8, 50):
        assert meeting.is_at(step)
        assert meeting.agree(ALONE, step == 9, False) == [step == 9, False]


def test_epochs_shorter_than_a_second_do_not_put_the_next_meeting_off(clock: Clock) -> None:
    """At an epoch's end ranks agree too, before the step they had said."""

    def rank(dist: Dist) -> bool:
        meeting = Meeting(0)
        for step in range(1, 201):
            clock.now += 0.05
            if meeting.is_at(step) or step % 5 == 0:
                meeting.agree(dist)
        return any(meeting.is_at(step) for step in range(201, 241))

    assert on_ranks(2, rank) == [True, True]


def test_to_meet_twice_at_a_step_leaves_the_distance(clock: Clock) -> None:
    """At the epoch's last step, and after its val."""

    def rank(dist: Dist) -> list[int]:
        meeting, met = Meeting(0), []
        for step in range(1, 100):
            clock.now += 0.1
            if meeting.is_at(step):
                meeting.agree(dist)
                met.append(step)
                if step == 45:
                    clock.now += 30
                    meeting.agree(dist)
        return met

    assert on_ranks(2, rank) == [[1, 3, 7, 15, 25, 35, 45, 55, 65, 75, 85, 95]] * 2
