"""What stands at a place of an epoch: from (epoch, step) to the images, labels and numbers of this rank's samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from tinyexp.config import LoaderConfig
from tinyexp.data import mix
from tinyexp.data.filesplit import FileSplit
from tinyexp.data.plan import Plan
from tinyexp.data.source import Source, fingerprint
from tinyexp.data.store import StoredSplit, store_key
from tinyexp.data.transform import Transform

Key = tuple[int, int]  # (epoch, step) in train; (-1, batch) in val
Arrays = tuple[Tensor, Tensor, Tensor]  # images (N, C, H, W) uint8, labels (N,), sample numbers (N,)


class Features(Protocol):
    """What stands for the images of a phase, by their numbers."""

    def __getitem__(self, index: NDArray[np.int64]) -> Tensor: ...  # (n, ...)


class Fetcher(Dataset[Arrays]):
    """(epoch, step) -> this rank's images, labels and sample numbers; the same in line and in a loader process."""

    def __init__(self, source: Source, plan: Plan, transform: Transform, loader: LoaderConfig, seed: int) -> None:
        self._train, self._val, self._num_classes = source.train, source.val, len(source.classes)
        self._left_out = source.left_out
        self._plan, self._transform, self._augment, self._seed = plan, transform, loader.augment, seed

    def __getitem__(self, key: Key) -> Arrays:
        epoch, step = key
        if epoch < 0:
            index = self._plan.val_index(step)
            return _tensors(self._transform.val(self._val.fetch(index)), self._val.labels[index], index)
        begin, end = self._plan.my_span(epoch, step)
        order = self._plan.step_index(epoch, step)
        if not mix.wanted(self._augment):
            index = order[begin:end]
            return _tensors(self._fetch(index, epoch), self._train.labels[index], index)
        first, last = mix.with_partners(begin, end, len(order))
        index = order[first:last]
        images, labels = mix.mix(
            self._fetch(index, epoch),
            self._train.labels[index],
            self._num_classes,
            self._augment,
            key=(self._seed, epoch, step),
        )
        mine = slice(begin - first, end - first)
        return _tensors(images[mine], labels[mine], index[mine])

    def images(self, phase: str, index: NDArray[np.int64], epoch: int | None) -> Tensor:
        """The images with these numbers (n, C, H, W); of train as they are augmented in `epoch`."""
        fetched = (self._train if phase == "train" else self._val).fetch(index)
        changed = self._transform.val(fetched) if epoch is None else self._transform.train(fetched, index, epoch)
        return _tensors(changed, index, index)[0]

    def identity(self, phase: str) -> str:
        split = self._train if phase == "train" else self._val
        key = ""
        if isinstance(split, (StoredSplit, FileSplit)):
            key = split.folder.name if isinstance(split, StoredSplit) else store_key(split)
        return fingerprint(key, len(split.labels), self._left_out)

    def _fetch(self, index: NDArray[np.int64], epoch: int) -> NDArray[np.uint8]:
        return self._transform.train(self._train.fetch(index), index, epoch)

    def fed_by(self, train: Sequence[Features], val: Features) -> FeatureFetcher:
        """The same with features for images."""
        return FeatureFetcher(self._plan, (self._train.labels, self._val.labels), train, val)


class FeatureFetcher:
    """As Fetcher, with features for images: of train one or more views, and epoch after epoch takes the next."""

    def __init__(
        self, plan: Plan, labels: tuple[NDArray[np.int64], NDArray[np.int64]], train: Sequence[Features], val: Features
    ) -> None:
        self._plan, self._labels = plan, labels
        self._views, self._of_val = train, val

    def __getitem__(self, key: Key) -> Arrays:
        epoch, step = key
        if epoch < 0:
            index, features, labels = self._plan.val_index(step), self._of_val, self._labels[1]
        else:
            begin, end = self._plan.my_span(epoch, step)
            index = self._plan.step_index(epoch, step)[begin:end]
            features, labels = self._views[epoch % len(self._views)], self._labels[0]
        return features[index], torch.from_numpy(labels[index]), torch.from_numpy(index)


def _tensors(images: NDArray[np.uint8], labels: NDArray[Any], index: NDArray[np.int64]) -> Arrays:
    """Images (n, H, W, C) -> (n, C, H, W), in memory as they were."""
    return torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(labels), torch.from_numpy(index)
