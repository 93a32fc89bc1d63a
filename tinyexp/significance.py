"""Could the best group's lead be chance? A permutation test over the runs, in words; the standard library alone.

Tested is the difference of two means: how many of all ways to divide the two groups' runs into groups of these sizes
have one at least as large. No distribution is assumed, but that the runs are independent.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from tinyexp.comparison import Group
from tinyexp.sheet import spread

LEVEL = 0.05  # under it, a difference is called unlikely to be chance
_EXACT = 30  # runs of two groups together up to which all splits are counted: 155 million
_DRAWN = 20_000  # splits, where there are more
_EQUAL = 1e-9  # of the largest value: sums that differ by less are one, since they were added in another order
_SEED = 0


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What there is to say: a sentence or some, and each group's p, None for the best and where nothing is said."""

    lines: list[str]
    values: list[float | None]


def permutation_test(a: Sequence[float], b: Sequence[float]) -> float:
    """The two-sided p of a difference between the means of `a` and `b`, neither empty: from 0, exclusive, to 1.

    Exact for up to _EXACT values in all; else of _DRAWN splits, the same each time, and the one that was found.
    """
    mean = math.fsum([*a, *b]) / (len(a) + len(b))
    values = [value - mean for value in (*a, *b)]  # their sum is 0, so that one part's tells the difference of means
    least = abs(math.fsum(values[: len(a)])) - _EQUAL * max(map(abs, (*a, *b)))
    if least <= 0:
        return 1.0
    if len(values) > _EXACT:
        draw = random.Random(_SEED).sample
        found = sum(abs(math.fsum(draw(values, len(a)))) >= least for _ in range(_DRAWN))
        return (found + 1) / (_DRAWN + 1)
    half = len(values) // 2
    lefts, rights = _sums(values[:half]), _sums(values[half:])
    found = 0
    for size in range(max(0, len(a) - len(rights) + 1), min(half, len(a)) + 1):
        others = rights[len(a) - size]
        for left in lefts[size]:
            found += len(others) - max(0, bisect_left(others, least - left) - bisect_right(others, -least - left))
    return found / math.comb(len(values), len(a))


def _sums(values: Sequence[float]) -> list[list[float]]:
    """By size, the sums of all subsets of that size, sorted."""
    sums: list[list[float]] = [[0.0], *([] for _ in values)]
    for value in values:
        for size in range(len(values), 0, -1):
            sums[size] += [each + value for each in sums[size - 1]]
    return [sorted(each) for each in sums]


def holm(values: Sequence[float]) -> list[float]:
    """p values of several comparisons, adjusted (Holm 1979): chance brings any under LEVEL as rarely as one alone."""
    adjusted, largest = [0.0] * len(values), 0.0
    for rank, i in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        largest = max(largest, min(1.0, (len(values) - rank) * values[i]))
        adjusted[i] = largest
    return adjusted


def smallest(a: int, b: int) -> float:
    """The smallest p that groups of so many runs allow: that of the most extreme split, and of its mirror image."""
    return (2 if a == b else 1) / math.comb(a + b, a)


def finding(groups: Sequence[Group], names: Sequence[str]) -> Finding:
    """The best group, which is the first, against each other that has seeds; no lines where no group has."""
    nothing: list[float | None] = [None] * len(groups)
    if len(groups) < 2 or all(group.best.n < 2 for group in groups):
        return Finding(lines=[], values=nothing)
    best = groups[0]
    if best.best.n < 2:
        return Finding(
            lines=[f"{names[0]} is one run (n = 1): nothing can be said of chance without seeds of it"], values=nothing
        )
    compared = [i for i, group in enumerate(groups) if i > 0 and group.best.n > 1]
    alone = len(groups) - 1 - len(compared)
    rest = [f"of {_count(alone, 'group')} of one run (n = 1) nothing is said"] if alone else []
    if not compared:
        return Finding(lines=rest, values=nothing)
    floor = min(smallest(best.best.n, groups[i].best.n) for i in compared)
    if floor * len(compared) > LEVEL:
        return Finding(lines=[_too_few(best, [groups[i] for i in compared], floor), *rest], values=nothing)
    adjusted = holm([permutation_test(_values(best), _values(groups[i])) for i in compared])
    values = [dict(zip(compared, adjusted, strict=True)).get(i) for i in range(len(groups))]
    lines = [_sentence(best, groups[compared[0]], (names[0], names[compared[0]]), adjusted[0])]
    if len(compared) > 1:
        told = sum(p < LEVEL for p in adjusted)
        verb = "is" if told == 1 else "are"
        lines.append(f"p is adjusted for {len(compared)} comparisons (Holm): {told} of them {verb} under {LEVEL:g}")
    if any(best.best.n + groups[i].best.n > _EXACT for i in compared[1:]):
        lines.append(f"p of more than {_EXACT} runs of two groups is of {_DRAWN:,} splits drawn")
    tested = [best, *(groups[i] for i in compared)]
    if any(len(_seeds(group)) < group.best.n for group in tested):
        lines.append("some runs of a group share a seed: as far as they repeat each other, p is too small")
    return Finding(lines=[*lines, *rest], values=values)


def probability(p: float) -> str:
    """Two digits: 0.31, 0.0079, 1.3e-05."""
    return f"{p:.2g}"


def _sentence(best: Group, other: Group, names: tuple[str, str], p: float) -> str:
    sides = [
        f"{name} ({spread(group.best)}, n = {group.best.n})" for name, group in zip(names, (best, other), strict=True)
    ]
    drawn = best.best.n + other.best.n > _EXACT
    test = f"permutation test of {_DRAWN:,} splits drawn" if drawn else "exact permutation test"
    verdict = "is unlikely to be chance" if p < LEVEL else "may well be chance"
    return f"{sides[0]} against {sides[1]}: two-sided {test}, p = {probability(p)}: the difference {verdict}"


def _too_few(best: Group, others: Sequence[Group], floor: float) -> str:
    """Which p is in reach, and how many runs of each would do."""
    sizes = min((group.best.n for group in others), key=lambda n: smallest(best.best.n, n))
    needed = next(n for n in range(2, 99) if smallest(n, n) * len(others) <= LEVEL)
    several = f", or {probability(min(1, floor * len(others)))} of {len(others)} comparisons" if len(others) > 1 else ""
    return f"n = {best.best.n} and {sizes} allow no p below {probability(floor)}{several}: n = {needed} each would do"


def _values(group: Group) -> list[float]:
    return [each.best for each in group.results if each.best is not None]


def _seeds(group: Group) -> set[str | None]:
    return {each.keys.get("train.seed") for each in group.results}


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
