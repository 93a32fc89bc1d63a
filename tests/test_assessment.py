"""The numbers beside the scores, by hand and by definition: an interval, ECE, each class, the worst mistakes."""

from __future__ import annotations

import itertools
import json
from dataclasses import astuple

import numpy as np
import pytest
import torch
from helpers import ALONE, CPU
from torch import Tensor

from tinyexp.assessment import BINS, WORST, Assessment, Assessor, class_scores, interval, macro_f1
from tinyexp.data.plan import Batch
from tinyexp.metrics import EvalSums

CLASSES = 7


def assess(logits: Tensor, labels: Tensor, batch: int = 50) -> Assessment:
    """What an assessor says of these samples, given in batches."""
    assessor, sums = Assessor(), EvalSums(logits.shape[1], CPU, torch.float64)
    index = torch.arange(len(labels))
    parts = zip(logits.split(batch), labels.split(batch), index.split(batch), strict=True)
    images = torch.zeros(0, dtype=torch.uint8)
    batches = [
        (Batch(images=images, labels=label, index=number, slot=0, total=1), logit) for logit, label, number in parts
    ]
    seen = list(assessor.watch(batches))
    assert seen == batches, "who watches changes nothing"
    for each, logit in seen:
        sums.add(logit, each.labels)
    return assessor.assess(sums.scores(ALONE), ALONE)


def noise(count: int = 400) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(count, CLASSES, generator=generator)
    return logits, torch.where(torch.rand(count, generator=generator) < 0.6, logits.argmax(1), 3)


def of_shares(*shares: tuple[float, float]) -> Tensor:
    """Logits whose softmax is this."""
    return torch.tensor(shares).log()


# ECE


def test_ece_by_hand() -> None:
    """Three at 0.9, of which two are right, and one right at 0.6: (3 |2/3 - 0.9| + |1 - 0.6|) / 4."""
    logits = of_shares((0.9, 0.1), (0.9, 0.1), (0.1, 0.9), (0.6, 0.4))
    found = assess(logits, torch.tensor([0, 1, 1, 0]))
    assert found.ece == pytest.approx((0.7 + 0.4) / 4, abs=1e-6)
    filled = [each for each in found.bins if each.count]
    assert [(each.count, each.top1) for each in filled] == [(1, 1.0), (3, pytest.approx(2 / 3))]
    assert [each.probability for each in filled] == [pytest.approx(0.6), pytest.approx(0.9)]
    assert all(each.low < each.probability <= each.high for each in filled)


def test_ece_by_definition() -> None:
    logits, labels = noise()
    top, predictions = (values.numpy() for values in logits.double().softmax(1).max(1))
    right = predictions == labels.numpy()
    edges = np.arange(BINS + 1) / BINS
    inside = [(top > low) & (top <= high) for low, high in itertools.pairwise(edges)]
    expected = sum(each.mean() * abs(right[each].mean() - top[each].mean()) for each in inside if each.any())
    found = assess(logits, labels)
    assert found.ece == pytest.approx(expected, abs=1e-9)
    assert [each.count for each in found.bins] == [int(each.sum()) for each in inside]


@pytest.mark.parametrize("share", [1.0, 1 / 3, 1 / BINS])
def test_each_probability_has_a_bin(share: float) -> None:
    logits = torch.full((5, 2), -torch.inf) if share == 1 else torch.zeros(5, round(1 / share))
    logits[:, 0] = 0
    (found,) = [each for each in assess(logits, torch.zeros(5, dtype=torch.int64)).bins if each.count]
    assert found.count == 5
    assert found.low < share <= found.high, "an edge is of the bin below"


# classes


def test_class_scores_by_hand() -> None:
    confusion = np.array([[8, 2, 0, 0], [4, 6, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]])
    found = class_scores(confusion)
    assert [each.count for each in found] == [10, 10, 2, 0]
    assert [each.precision for each in found] == pytest.approx([8 / 13, 6 / 9, 0, 0])
    assert [each.recall for each in found] == pytest.approx([0.8, 0.6, 0, 0])
    assert [each.f1 for each in found] == pytest.approx([16 / 23, 12 / 19, 0, 0])
    assert macro_f1(found) == pytest.approx((16 / 23 + 12 / 19 + 0) / 3), "a class that nothing is of does not count"


def test_f1_is_the_harmonic_mean() -> None:
    for each in assess(*noise()).classes:
        if each.precision and each.recall:
            assert each.f1 == pytest.approx(2 / (1 / each.precision + 1 / each.recall))


# the interval


@pytest.mark.parametrize(("hits", "count"), [(0, 50), (1, 3), (345, 360), (9_000, 10_000), (50, 50)])
def test_interval_holds_the_point(hits: int, count: int) -> None:
    low, high = interval(hits, count)
    assert 0 <= low <= hits / count <= high <= 1
    assert interval(hits, count) == (low, high), "the same each time"


def test_interval_is_the_bootstrap_over_images() -> None:
    """Against images drawn one by one, and against the normal distribution."""
    hits = np.arange(500) < 400
    drawn = np.random.default_rng(1).integers(0, 500, (4_000, 500))
    assert interval(400, 500) == pytest.approx(np.quantile(hits[drawn].mean(1), [0.025, 0.975]), abs=4e-3)
    assert interval(400, 500) == pytest.approx(0.8 + 1.96 * np.sqrt(0.16 / 500) * np.array([-1, 1]), abs=4e-3)


# mistakes


@pytest.mark.parametrize("batch", [1, 7, 400])
def test_the_worst_mistakes_come_first(batch: int) -> None:
    logits, labels = noise()
    top, predictions = logits.double().softmax(1).max(1)
    wrong = sorted(
        (-float(top[i]), i, int(labels[i]), int(predictions[i])) for i in range(400) if predictions[i] != labels[i]
    )
    assert len(wrong) > WORST
    found = [astuple(each) for each in assess(logits, labels, batch).mistakes]
    assert found == [(-minus, *rest) for minus, *rest in wrong[:WORST]]


def test_without_mistakes() -> None:
    logits, _ = noise()
    found = assess(logits, logits.argmax(1))
    assert (found.mistakes, found.scores.top1, found.macro_f1, found.interval) == ([], 1.0, 1.0, (1.0, 1.0))


def test_what_is_told() -> None:
    logits, labels = noise()
    found = assess(logits, labels)
    first, second = found.lines()
    assert first.startswith(f"top1 {found.scores.top1:.4f}, 95% interval {found.interval[0]:.4f} to ")
    assert second == f"ECE {found.ece:.4f} (15 bins), macro F1 {found.macro_f1:.4f}"
    assert json.loads(json.dumps(found.to_json(), allow_nan=False)) == found.to_json()
