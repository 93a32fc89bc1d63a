"""From a source to batches of tensors: read in line, ahead by a thread, or by loader processes.

Which samples those are is plan.py's, and what is done to them transform.py's.
"""

from __future__ import annotations

import copy
import signal
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from tinyexp.config import Config, LoaderConfig
from tinyexp.cores import cores_of_rank
from tinyexp.data.fetch import Arrays, FeatureFetcher, Features, Fetcher, Key
from tinyexp.data.filesplit import FileSplit
from tinyexp.data.plan import Batch, Plan
from tinyexp.data.source import Source, check_channels
from tinyexp.data.statistics import normalisation
from tinyexp.data.store import load_source
from tinyexp.data.transform import Transform
from tinyexp.dist import Dist
from tinyexp.errors import ConfigError, DataError, ResourceError

T = TypeVar("T")


class Data:
    """A data set as a run sees it: what it is, and its batches.

    A context: at its end the loader processes are gone. It raises ResourceError where one of them was killed.
    """

    def __init__(self, source: Source, config: Config, dist: Dist) -> None:
        loader, train = config.loader, config.train
        check_channels(source, loader)
        self.classes, self.names = source.classes, source.names or source.classes
        self.image_shape = (source.channels, loader.image_size, loader.image_size)
        self.mean, self.std = normalisation(source, loader)
        self.skipped = source.skipped
        self.fingerprint = source.fingerprint
        self.num_train, self.num_val = len(source.train.labels), len(source.val.labels)
        self._val_labels = source.val.labels
        self._eval_batch_size = train.eval_batch_size
        self._plan = Plan(train, dist, self.num_train, self.num_val)
        self.steps_per_epoch = self._plan.steps_per_epoch
        self.num_scored = self._plan.num_scored
        self.val_batches = self._plan.val_batches
        self.common_val_batches = self._plan.common_val_batches
        transform = Transform(loader, self.mean, train.seed)
        self._images = Fetcher(source, self._plan, transform, loader, train.seed)
        self._fetcher: Fetcher | FeatureFetcher = self._images
        self._keys = _Keys()
        self.workers = workers = _workers(loader, source, transform)
        pin = dist.device.type == "cuda"
        self._loader = _worker_loader(self._images, self._keys, workers, loader.start_method, pin) if workers else None
        # a thread that draws from torch's generator would disturb the step's dropout
        self._ahead = dist.device.type != "cpu" and not transform.image_by_image

    def __enter__(self) -> Data:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # DataLoader has no public end; left to the interpreter's, it comes after waiting five seconds for each process.
        iterator = getattr(self._loader, "_iterator", None)
        if iterator is None:
            return
        try:
            iterator._shutdown_workers()
        except RuntimeError as another:  # torch's signal handler speaks wherever the program is, here too
            if "DataLoader worker" not in str(another):
                raise
            error = another
        if isinstance(error, (ConnectionError, EOFError)) or "DataLoader worker" in str(error):
            told = " ".join(str(error).split())[:200]
            raise ResourceError(
                "a loader process was killed, most often for want of memory: try fewer dataset.workers or a smaller "
                f"train.batch_size ({told})"
            ) from error

    def train(self, epoch: int, start: int = 0) -> Iterator[list[Batch]]:
        """This rank's micro-batches of each optimizer step of an epoch, from step `start` on."""
        keys = [(epoch, step) for step in range(start, self.steps_per_epoch)]
        for (_, step), arrays in zip(keys, self._fetch(keys), strict=True):
            yield self._plan.micro_batches(step, *arrays)

    def val(self) -> Iterator[Batch]:
        """This rank's share of val; over all ranks, each sample comes exactly once."""
        for images, labels, index in self._fetch([(-1, batch) for batch in range(self.val_batches)]):
            yield Batch(images=images, labels=labels, index=index, slot=0, total=len(labels))

    def first_step(self) -> list[Batch]:
        """This rank's micro-batches of the first step, as images whatever training is fed."""
        return self._plan.micro_batches(0, *self._images[0, 0])

    def images(self, phase: str, epoch: int | None = None, size: int | None = None) -> Iterator[Tensor]:
        """All uint8 images of train or val in their order, in batches of `size` or train.eval_batch_size.

        As val would see them, or of train as they are augmented in `epoch`.
        """
        count, size = (self.num_train if phase == "train" else self.num_val), size or self._eval_batch_size
        for begin in range(0, count, size):
            yield self._images.images(phase, np.arange(begin, min(begin + size, count)), epoch)

    def val_at(self, index: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """The val images with these numbers (n, C, H, W), as uint8 whatever training is fed, and their labels (n,)."""
        return self._images.images("val", index, None), torch.from_numpy(self._val_labels[index])

    def identity(self, phase: str) -> str:
        """Names the content of a phase's images, as they are before any change."""
        return f"{self.fingerprint} {self._images.identity(phase)}"

    def fed_by(self, train: Sequence[Features], val: Features) -> Data:
        """The same samples in the same batches, with these features of the images in the place of their pixels.

        Args:
            train: one or more views; epoch after epoch takes the next.
        """
        fed = copy.copy(self)
        fed._fetcher = self._images.fed_by(train, val)
        fed._loader, fed.workers = None, 0
        return fed

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
            "num_train": self.num_train,
            "names": list(self.names),
            "fingerprint": self.fingerprint,
        }

    def check_same(self, described: dict[str, Any]) -> None:
        """Raises ConfigError when a checkpoint's data is not this data."""
        mine = self.describe()
        del mine["names"]  # what people call the classes is no matter
        if differ := [key for key, value in mine.items() if described.get(key) != value]:
            was, now = (str(values.get(differ[0]))[:200] for values in (described, mine))
            raise ConfigError(
                f"the data is not what this run was trained on: {differ[0]} was {was}, is {now}. "
                "Bring the old data back, or begin a new run with init_from"
            )

    def summary(self) -> str:
        shape = "x".join(map(str, self.image_shape))
        skipped = f", {self.skipped:,} left out that cannot be decoded" if self.skipped else ""
        return (
            f"{self.num_train:,} train and {self.num_scored:,} val images of {shape} in {len(self.classes)} classes, "
            f"{self.steps_per_epoch:,} steps an epoch{skipped}"
        )

    def _fetch(self, keys: list[Key]) -> Iterator[Arrays]:
        self._keys.keys = keys
        if self._loader is None:
            arrays = map(self._fetcher.__getitem__, keys)
            yield from ahead(arrays) if self._ahead else arrays
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
    return Data(load_source(config), config, dist)


def ahead(items: Iterator[T], depth: int = 2) -> Iterator[T]:
    """The same items, made by a thread up to `depth` of them before they are asked for."""
    end: Any = object()
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as thread:
        waiting: deque[Future[T]] = deque(thread.submit(next, items, end) for _ in range(depth))
        while (item := waiting.popleft().result()) is not end:
            waiting.append(thread.submit(next, items, end))
            yield item


class _InWorker(Dataset[Arrays | DataError]):
    """The fetcher in a loader process: bad data comes back as a value, since a raised error would be its traceback."""

    def __init__(self, fetcher: Fetcher) -> None:
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


def _workers(loader: LoaderConfig, source: Source, transform: Transform) -> int:
    """The number of loader processes: under auto, none where a batch is a copy of what is decoded already."""
    if loader.workers != "auto":
        return loader.workers
    slow = isinstance(source.train, FileSplit) or transform.image_by_image
    return cores_of_rank() if slow else 0


def _worker_loader(fetcher: Fetcher, keys: _Keys, workers: int, start_method: str | None, pin: bool) -> DataLoader[Any]:
    return DataLoader(
        _InWorker(fetcher),
        sampler=keys,
        batch_size=None,
        num_workers=workers,
        multiprocessing_context=start_method,
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
