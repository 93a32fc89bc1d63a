"""What scores leave out: how sure top1 is, whether probabilities can be believed, each class, the worst mistakes.

Numbers alone, over all ranks; of the images nothing is kept but sums, and the worst by number.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tinyexp.data.plan import Batch
from tinyexp.dist import Dist
from tinyexp.metrics import Scores, top_hits

BINS = 15  # of ECE, as in Guo et al. 2017 (arXiv:1706.04599)
WORST = 25  # mistakes that are kept
LEVEL = 0.95  # of the interval
DRAWS = 10_000
_SEED = 0


@dataclass(frozen=True, kw_only=True, order=True)
class Mistake:
    """A val image that is taken for what it is not; in order of how sure the network is."""

    probability: float  # of the prediction
    index: int  # the image's number in val
    label: int
    prediction: int


@dataclass(frozen=True, kw_only=True)
class Bin:
    """The images whose prediction's probability lies in (low, high]; the means are None where there are none."""

    low: float
    high: float
    count: int
    probability: float | None  # mean
    top1: float | None


@dataclass(frozen=True, kw_only=True)
class ClassScores:
    """One class; 0 where there is nothing to divide by."""

    count: int  # val images
    precision: float
    recall: float
    f1: float
    predicted: int  # images that are taken for it


@dataclass(frozen=True, kw_only=True)
class Assessment:
    scores: Scores
    interval: tuple[float, float]  # of top1
    bins: list[Bin]
    ece: float
    classes: list[ClassScores]
    macro_f1: float
    mistakes: list[Mistake]  # the worst first

    def lines(self) -> list[str]:
        """What a person is told beside the scores."""
        low, high = self.interval
        return [
            f"top1 {self.scores.top1:.4f}, {LEVEL:.0%} interval {low:.4f} to {high:.4f} (bootstrap over the images)",
            f"ECE {self.ece:.4f} ({BINS} bins), macro F1 {self.macro_f1:.4f}",
        ]

    def to_json(self) -> dict[str, Any]:
        return {
            **self.scores.row(),
            "count": self.scores.count,
            "top1_interval": {"level": LEVEL, "low": self.interval[0], "high": self.interval[1], "draws": DRAWS},
            "ece": self.ece,
            "macro_f1": self.macro_f1,
            "bins": [asdict(each) for each in self.bins],
        }


class Assessor:
    """Looks on while val is scored; `assess` then says what it saw, on all ranks together."""

    def __init__(self) -> None:
        self._sums = torch.zeros(3, BINS, dtype=torch.float64)  # images, their probabilities, those that are right
        self._worst: list[Mistake] = []  # a heap, the least bad first

    def watch(self, scored: Iterable[tuple[Batch, Tensor]]) -> Iterator[tuple[Batch, Tensor]]:
        """The same batches and logits (N, classes). Waits for the device with each."""
        for batch, logits in scored:
            self.add(logits, batch.labels, batch.index)
            yield batch, logits

    def add(self, logits: Tensor, labels: Tensor, index: Tensor) -> None:
        """A batch: logits (N, classes); labels and sample numbers (N,) on the CPU."""
        logits = logits.cpu()  # MPS has no float64
        predictions, _, _ = top_hits(logits, labels)
        probabilities = logits.double().softmax(1).gather(1, predictions[:, None])[:, 0]
        right = predictions == labels
        bins = ((probabilities * BINS).ceil().long() - 1).clamp(0, BINS - 1)
        for row, values in zip(
            self._sums, (torch.ones_like(probabilities), probabilities, right.double()), strict=True
        ):
            row.index_add_(0, bins, values)
        wrong = (~right).nonzero()[:, 0]
        surest = wrong[probabilities[wrong].topk(min(WORST, len(wrong))).indices]
        columns = (values[surest].tolist() for values in (probabilities, index, labels, predictions))
        for probability, number, label, prediction in zip(*columns, strict=True):
            mistake = Mistake(probability=probability, index=number, label=label, prediction=prediction)
            if len(self._worst) < WORST:
                heapq.heappush(self._worst, mistake)
            else:
                heapq.heappushpop(self._worst, mistake)

    def assess(self, scores: Scores, dist: Dist) -> Assessment:
        """What all ranks saw, whose scores these are."""
        assert scores.confusion is not None
        counts, probabilities, right = dist.sum(self._sums.flatten()).view(3, BINS).numpy()
        gathered = dist.gather(json.dumps([asdict(mistake) for mistake in self._worst]))
        mistakes = [Mistake(**mistake) for text in gathered for mistake in json.loads(text)]
        classes = class_scores(scores.confusion.numpy())
        return Assessment(
            scores=scores,
            interval=interval(int(scores.confusion.trace()), scores.count),
            bins=_bins(counts, probabilities, right),
            ece=float(np.abs(right - probabilities).sum() / max(1, scores.count)),
            classes=classes,
            macro_f1=macro_f1(classes),
            mistakes=heapq.nlargest(WORST, mistakes),
        )


def interval(hits: int, count: int) -> tuple[float, float]:
    """The percentile bootstrap's interval of a share: images are drawn anew, with replacement, `DRAWS` times.

    How many hits are among so many drawn is binomial, so that no image need be drawn.
    """
    if not count:
        return 0.0, 0.0
    shares = np.random.default_rng(_SEED).binomial(count, hits / count, DRAWS) / count
    low, high = np.quantile(shares, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def class_scores(confusion: NDArray[np.int64]) -> list[ClassScores]:
    """Of a confusion matrix (classes, classes): row = label, column = prediction."""
    return [
        ClassScores(
            count=int(count),
            precision=float(right / max(1, predicted)),
            recall=float(right / max(1, count)),
            f1=float(2 * right / max(1, count + predicted)),
            predicted=int(predicted),
        )
        for right, count, predicted in zip(confusion.diagonal(), confusion.sum(1), confusion.sum(0), strict=True)
    ]


def macro_f1(classes: list[ClassScores]) -> float:
    """The mean over the classes that val has or the network says, as scikit-learn's."""
    there = [each.f1 for each in classes if each.count or each.predicted]
    return sum(there) / max(1, len(there))


def _bins(counts: NDArray[Any], probabilities: NDArray[Any], right: NDArray[Any]) -> list[Bin]:
    return [
        Bin(
            low=number / BINS,
            high=(number + 1) / BINS,
            count=int(count),
            probability=float(probability / count) if count else None,
            top1=float(hits / count) if count else None,
        )
        for number, (count, probability, hits) in enumerate(zip(counts, probabilities, right, strict=True))
    ]
