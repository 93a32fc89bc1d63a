"""From a source to batches: which samples, in which order, in whose share, from which position on.

Everything is a function of (seed, epoch, step), so that the loader has no state to save.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from tinyexp import seeds
from tinyexp.config import Config, LoaderConfig, TrainConfig
from tinyexp.data.augment import augment
from tinyexp.data.source import Source
from tinyexp.dist import Dist
from tinyexp.errors import ConfigError
from tinyexp.targets import build

Key = tuple[int, int]  # (epoch, step) in train; (-1, batch) in val


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Some samples of a phase: one micro-batch of an optimizer step, or a batch of val."""

    images: Tensor  # (N, C, H, W) uint8, on the CPU
    labels: Tensor  # (N,) int64, or (N, classes) float where they are soft
    index: Tensor  # (N,) int64: the samples' numbers in their split
    slot: int  # the place of this micro-batch in its optimizer step, over all ranks
    total: int  # samples of the whole optimizer step, over all ranks


class Data:
    """A data set as a run sees it: what it is, and its batches. A context: at its end the loader processes are gone."""

    def __init__(self, source: Source, loader: LoaderConfig, train: TrainConfig, dist: Dist) -> None:
        channels = source.image_shape[0]
        if len(loader.mean) != channels:
            raise ConfigError(f"dataset.mean and dataset.std need {channels} numbers, one a channel, got {loader.mean}")
        self.classes = source.classes
        self.image_shape = source.image_shape  # (C, H, W)
        self.mean, self.std = loader.mean, loader.std
        self.fingerprint = source.fingerprint
        self.num_train, self.num_val = len(source.train.labels), len(source.val.labels)
        self._plan = _Plan(train, dist, self.num_train, self.num_val)
        self.steps_per_epoch = self._plan.steps_per_epoch
        self.num_scored = self._plan.num_scored
        self.val_batches = self._plan.val_batches
        self._fetcher = _Fetcher(source, self._plan, train.seed, loader)
        self._keys = _Keys()
        self._loader = _worker_loader(self._fetcher, self._keys, loader, pin=dist.device.type == "cuda")

    def __enter__(self) -> Data:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # DataLoader has no public end; left to the interpreter's, it comes after waiting five seconds for each process.
        iterator = getattr(self._loader, "_iterator", None)
        if iterator is not None:
            iterator._shutdown_workers()

    def train(self, epoch: int, start: int = 0) -> Iterator[list[Batch]]:
        """This rank's micro-batches of each optimizer step of an epoch, from step `start` on."""
        for step, (images, labels, index) in self._fetch(
            [(epoch, step) for step in range(start, self.steps_per_epoch)]
        ):
            yield self._plan.micro_batches(step, images, labels, index)

    def val(self) -> Iterator[Batch]:
        """This rank's share of val; over all ranks, each sample comes exactly once."""
        for _, (images, labels, index) in self._fetch([(-1, batch) for batch in range(self._plan.val_batches)]):
            yield Batch(images=images, labels=labels, index=index, slot=0, total=len(labels))

    def sample_ids(self, epoch: int, step: int) -> list[int]:
        """The numbers of all samples of one optimizer step, on all ranks."""
        return [int(number) for number in self._plan.step_index(epoch, step)]

    def describe(self) -> dict[str, Any]:
        """What a checkpoint keeps of the data: all that using its network needs."""
        return {
            "classes": list(self.classes),
            "image_shape": list(self.image_shape),
            "mean": list(self.mean),
            "std": list(self.std),
            "fingerprint": self.fingerprint,
        }

    def check_same(self, described: dict[str, Any]) -> None:
        """Raises ConfigError when a checkpoint's data is not this data."""
        mine = self.describe()
        if differ := [key for key, value in mine.items() if described.get(key) != value]:
            was, now = (str(values.get(differ[0]))[:200] for values in (described, mine))
            raise ConfigError(
                f"the data is not what this run was trained on: {differ[0]} was {was}, is {now}. "
                "Bring the old data back, or begin a new run with init_from"
            )

    def summary(self) -> str:
        shape = "x".join(map(str, self.image_shape))
        return (
            f"{self.num_train:,} train and {self.num_scored:,} val images of {shape} in {len(self.classes)} classes, "
            f"{self.steps_per_epoch:,} steps an epoch"
        )

    def _fetch(self, keys: list[Key]) -> Iterator[tuple[int, tuple[Tensor, Tensor, Tensor]]]:
        self._keys.keys = keys
        arrays = map(self._fetcher.__getitem__, keys) if self._loader is None else self._loader
        yield from zip((step for _, step in keys), arrays, strict=True)


def load_data(config: Config, dist: Dist) -> Data:
    """The data set that the config names.

    Raises:
        ConfigError, DataError: wrong arguments, or a data set that is missing or not what it should be.
    """
    source = build(config.dataset, config.trust)
    if not isinstance(source, Source):
        raise ConfigError(f"dataset._target_={config.dataset.target} must return a Source, got {type(source).__name__}")
    return Data(source, config.loader, config.train, dist)


class _Plan:
    """Which samples belong to which step, rank and micro-batch: numbers alone."""

    def __init__(self, train: TrainConfig, dist: Dist, num_train: int, num_val: int) -> None:
        self._train, self._rank, self._world = train, dist.rank, dist.world
        self._num_train = num_train
        self._slots = [dist.slot(micro, train.accumulate) for micro in range(train.accumulate)]
        self._num_slots = dist.world * train.accumulate
        size = train.batch_size
        # A last step of a single sample, which batch-norm cannot take, joins the one before.
        alone = num_train % size == 1 and num_train > size
        self._steps = max(1, math.ceil(num_train / size) - alone)
        limit = train.limit_batches
        self.steps_per_epoch = min(self._steps, limit or self._steps)
        self.num_scored = min(num_val, limit * train.eval_batch_size) if limit else num_val
        self._mine = np.arange(dist.rank, self.num_scored, dist.world, dtype=np.int64)
        self.val_batches = math.ceil(len(self._mine) / train.eval_batch_size)
        self._order: tuple[int, NDArray[np.int64]] = (-1, self._mine)

    def val_index(self, batch: int) -> NDArray[np.int64]:
        size = self._train.eval_batch_size
        return self._mine[batch * size : (batch + 1) * size]

    def step_index(self, epoch: int, step: int) -> NDArray[np.int64]:
        """All samples of an optimizer step, over all ranks."""
        if self._order[0] != epoch:
            self._order = (epoch, seeds.permutation(self._train.seed, epoch, size=self._num_train))
        size = self._train.batch_size
        end = self._num_train if step == self._steps - 1 else (step + 1) * size
        return self._order[1][step * size : end]

    def my_index(self, epoch: int, step: int) -> NDArray[np.int64]:
        """This rank's samples of an optimizer step, its micro-batches one after the other."""
        index = self.step_index(epoch, step)
        bounds = self._bounds(len(index))
        return index[bounds[self._slots[0]] : bounds[self._slots[-1] + 1]]

    def micro_batches(self, step: int, images: Tensor, labels: Tensor, index: Tensor) -> list[Batch]:
        """Cut this rank's share of a step into its micro-batches.

        Empty ones are left out, but for one where there is nothing else: its rank takes part in the step all the same.
        """
        last = step == self._steps - 1
        total = self._num_train - step * self._train.batch_size if last else self._train.batch_size
        bounds = [bound - self._bounds(total)[self._slots[0]] for bound in self._bounds(total)]
        cuts = {slot: slice(bounds[slot], bounds[slot + 1]) for slot in self._slots}
        kept = {slot: cut for slot, cut in cuts.items() if cut.stop > cut.start} or {self._slots[0]: slice(0, 0)}
        return [
            Batch(images=images[cut], labels=labels[cut], index=index[cut], slot=slot, total=total)
            for slot, cut in kept.items()
        ]

    def _bounds(self, total: int) -> list[int]:
        """Where each slot begins, in contiguous shares as even as can be, larger ones first."""
        return [-(-total * slot // self._num_slots) for slot in range(self._num_slots + 1)]


class _Fetcher(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """(epoch, step) -> this rank's images, labels and sample numbers; the same in line and in a loader process."""

    def __init__(self, source: Source, plan: _Plan, seed: int, loader: LoaderConfig) -> None:
        self._source, self._plan, self._seed, self._loader = source, plan, seed, loader

    def __getitem__(self, key: Key) -> tuple[Tensor, Tensor, Tensor]:
        epoch, step = key
        split = self._source.val if epoch < 0 else self._source.train
        index = self._plan.val_index(step) if epoch < 0 else self._plan.my_index(epoch, step)
        images = split.fetch(index)
        if epoch >= 0 and (self._loader.crop_padding or self._loader.flip):
            padding, flip = self._loader.crop_padding, self._loader.flip
            images = augment(images, index, seed=self._seed, epoch=epoch, crop_padding=padding, flip=flip)
        return (
            torch.from_numpy(np.ascontiguousarray(images)),
            torch.from_numpy(split.labels[index]),
            torch.from_numpy(index),
        )


class _Keys(Sampler[Key]):
    """The keys to fetch next; set before each phase, so that loader processes live on between phases."""

    def __init__(self) -> None:
        self.keys: Sequence[Key] = ()

    def __iter__(self) -> Iterator[Key]:
        return iter(self.keys)

    def __len__(self) -> int:
        return len(self.keys)


def _worker_loader(fetcher: _Fetcher, keys: _Keys, loader: LoaderConfig, pin: bool) -> DataLoader[Any] | None:
    """Loader processes, or None where the data is read in line (a DataLoader would only cost time there)."""
    if not loader.workers:
        return None
    return DataLoader(
        fetcher,
        sampler=keys,
        batch_size=None,
        num_workers=loader.workers,
        multiprocessing_context=loader.start_method,
        worker_init_fn=_begin_worker,
        persistent_workers=True,
        pin_memory=pin,
        generator=torch.Generator(),  # its own: each iter() draws from it, and would else from the global one
    )


def _begin_worker(worker: int) -> None:
    """A signal to the whole group is for the parent to answer, who still needs batches; a second SIGTERM counts."""
    signal.set_wakeup_fd(-1)  # inherited by fork: the parent would count the signal once more
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))
