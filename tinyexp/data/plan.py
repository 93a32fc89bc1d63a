"""Which samples belong to which step, rank and micro-batch, and in which order: numbers alone, no images.

Everything is a function of (seed, epoch, step), so that the loader has no state to save.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tinyexp import seeds
from tinyexp.config import TrainConfig

if TYPE_CHECKING:  # how many steps there are can be asked without torch
    from torch import Tensor

    from tinyexp.dist import Dist


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Some samples of a phase: one micro-batch of an optimizer step, or a batch of val."""

    images: Tensor  # (N, C, H, W) uint8, on the CPU; in memory (N, H, W, C)
    labels: Tensor  # (N,) int64, or (N, classes) float where they are soft
    index: Tensor  # (N,) int64: the samples' numbers in their split
    slot: int  # the place of this micro-batch in its optimizer step, over all ranks
    total: int  # samples of the whole optimizer step, over all ranks


def count_steps(train: TrainConfig, num_train: int) -> int:
    """Optimizer steps of a whole epoch, whatever train.limit_batches says."""
    size = train.batch_size
    # A last step of a single sample, which batch-norm cannot take, joins the one before.
    alone = num_train % size == 1 and num_train > size
    return max(1, math.ceil(num_train / size) - alone)


class Plan:
    """The samples of each optimizer step and of val, and this rank's share of them."""

    def __init__(self, train: TrainConfig, dist: Dist, num_train: int, num_val: int) -> None:
        self._train = train
        self._num_train = num_train
        self._slots = [dist.slot(micro, train.accumulate) for micro in range(train.accumulate)]
        self._num_slots = dist.world * train.accumulate
        self._steps = count_steps(train, num_train)
        limit = train.limit_batches
        self.steps_per_epoch = min(self._steps, limit or self._steps)
        self.num_scored = min(num_val, limit * train.eval_batch_size) if limit else num_val
        # Under a limit, evenly spaced ones: a folder's first ones are all of one class.
        self._mine = np.arange(dist.rank, self.num_scored, dist.world, dtype=np.int64) * num_val // self.num_scored
        self.val_batches = math.ceil(len(self._mine) / train.eval_batch_size)
        self.common_val_batches = (
            self.num_scored // dist.world // train.eval_batch_size
        )  # whole ones that all ranks have
        self._order: tuple[int, NDArray[np.int64]] = (-1, self._mine)

    def val_index(self, batch: int) -> NDArray[np.int64]:
        size = self._train.eval_batch_size
        return self._mine[batch * size : (batch + 1) * size]

    def step_index(self, epoch: int, step: int) -> NDArray[np.int64]:
        """All samples of an optimizer step, over all ranks."""
        if self._order[0] != epoch:
            self._order = (epoch, seeds.permutation(self._train.seed, epoch, size=self._num_train))
        begin, end = self._span(step)
        return self._order[1][begin:end]

    def my_span(self, epoch: int, step: int) -> tuple[int, int]:
        """Where this rank's samples begin and end in an optimizer step's, its micro-batches one after the other."""
        bounds = self._bounds(len(self.step_index(epoch, step)))
        return bounds[0], bounds[-1]

    def micro_batches(self, step: int, images: Tensor, labels: Tensor, index: Tensor) -> list[Batch]:
        """Cut this rank's share of a step into its micro-batches.

        Empty ones are left out, but for one where there is nothing else: its rank takes part in the step all the same.
        """
        begin, end = self._span(step)
        bounds = self._bounds(end - begin)
        cuts = [slice(bounds[i] - bounds[0], bounds[i + 1] - bounds[0]) for i in range(len(self._slots))]
        kept = [micro for micro, cut in enumerate(cuts) if cut.stop > cut.start] or [0]
        return [
            Batch(
                images=images[cuts[micro]],
                labels=labels[cuts[micro]],
                index=index[cuts[micro]],
                slot=self._slots[micro],
                total=end - begin,
            )
            for micro in kept
        ]

    def _span(self, step: int) -> tuple[int, int]:
        """Where an optimizer step begins and ends in its epoch's order."""
        size = self._train.batch_size
        return step * size, self._num_train if step == self._steps - 1 else (step + 1) * size

    def _bounds(self, total: int) -> list[int]:
        """Where each of this rank's slots begins, and the last one ends, when all slots share `total` samples.

        In contiguous shares as even as can be, of at least two samples, since batch-norm cannot take one alone.
        """
        used = max(1, min(self._num_slots, total // 2))
        return [-(-total * min(slot, used) // used) for slot in (*self._slots, self._slots[-1] + 1)]
