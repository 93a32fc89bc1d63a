"""From a source to batches of tensors, read in line or by loader processes. Which samples those are is plan.py's."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from tinyexp.config import Config, LoaderConfig, TrainConfig
from tinyexp.data.augment import augment
from tinyexp.data.plan import Batch, Plan
from tinyexp.data.source import Source, check_channels, load_source
from tinyexp.dist import Dist
from tinyexp.errors import ConfigError, DataError

Key = tuple[int, int]  # (epoch, step) in train; (-1, batch) in val
Arrays = tuple[Tensor, Tensor, Tensor]  # images (N, C, H, W) uint8, labels (N,), sample numbers (N,)


class Data:
    """A data set as a run sees it: what it is, and its batches. A context: at its end the loader processes are gone."""

    def __init__(self, source: Source, loader: LoaderConfig, train: TrainConfig, dist: Dist) -> None:
        check_channels(source, loader)
        self.classes = source.classes
        self.image_shape = source.image_shape  # (C, H, W)
        self.mean, self.std = loader.mean, loader.std
        self.fingerprint = source.fingerprint
        self.num_train, self.num_val = len(source.train.labels), len(source.val.labels)
        self._plan = Plan(train, dist, self.num_train, self.num_val)
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
        keys = [(epoch, step) for step in range(start, self.steps_per_epoch)]
        for (_, step), arrays in zip(keys, self._fetch(keys), strict=True):
            yield self._plan.micro_batches(step, *arrays)

    def val(self) -> Iterator[Batch]:
        """This rank's share of val; over all ranks, each sample comes exactly once."""
        for images, labels, index in self._fetch([(-1, batch) for batch in range(self.val_batches)]):
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

    def _fetch(self, keys: list[Key]) -> Iterator[Arrays]:
        self._keys.keys = keys
        if self._loader is None:
            yield from map(self._fetcher.__getitem__, keys)
            return
        for arrays in self._loader:
            if isinstance(arrays, DataError):
                raise arrays
            yield arrays


def load_data(config: Config, dist: Dist) -> Data:
    """The data set that the config names.

    Raises:
        ConfigError, DataError: wrong arguments, or a data set that is missing or not what it should be.
    """
    return Data(load_source(config), config.loader, config.train, dist)


class _Fetcher(Dataset[Arrays]):
    """(epoch, step) -> this rank's images, labels and sample numbers; the same in line and in a loader process."""

    def __init__(self, source: Source, plan: Plan, seed: int, loader: LoaderConfig) -> None:
        self._source, self._plan, self._seed, self._loader = source, plan, seed, loader

    def __getitem__(self, key: Key) -> Arrays:
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


class _InWorker(Dataset[Arrays | DataError]):
    """The fetcher in a loader process: bad data comes back as a value, since a raised error would be its traceback."""

    def __init__(self, fetcher: _Fetcher) -> None:
        self._fetcher = fetcher

    def __getitem__(self, key: Key) -> Arrays | DataError:
        try:
            return self._fetcher[key]
        except DataError as error:
            return error


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
        _InWorker(fetcher),
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
