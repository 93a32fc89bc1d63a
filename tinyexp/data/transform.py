"""From fetched images of any size to batches of one: what val sees, and what train sees at random."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tinyexp import seeds
from tinyexp.config import LoaderConfig
from tinyexp.data import augment, geometry
from tinyexp.data.source import Images

# each change draws under its own number: one more leaves the others as they are
_CROP, _FLIP, _POLICY, _ERASE = range(4)


class Transform:
    """Images -> (n, image_size, image_size, C) uint8, a fresh array. It pickles, for loader processes."""

    def __init__(self, loader: LoaderConfig, mean: tuple[float, ...], seed: int) -> None:
        self._loader, self._seed = loader, seed
        self._policy = augment.Policy(loader.augment)
        self._fill = np.rint(np.array(mean) * 255).astype(np.uint8)  # what is 0 after normalisation

    @property
    def image_by_image(self) -> bool:
        """Does it call torchvision for each image, which is slow and draws from torch's generator?"""
        return self._policy.wanted

    def val(self, images: Images) -> NDArray[np.uint8]:
        size = self._loader.image_size
        resized = geometry.resize_and_centre(images, self._loader.resize or size, size, len(self._fill))
        if isinstance(images, np.ndarray) and np.may_share_memory(resized, images):  # had the size already
            return resized.copy()
        return np.ascontiguousarray(resized)

    def train(self, images: Images, index: NDArray[np.int64], epoch: int) -> NDArray[np.uint8]:
        """The images with these numbers (n,), changed as (seed, epoch, number) say."""
        changes = self._loader.augment
        out = self._crop(images, index, epoch)
        if changes.flip:
            out = augment.flip(out, self._draws(epoch, _FLIP, index, 1)[:, 0], changes.flip)
        if self._policy.wanted:
            out = self._policy(out, seeds.keys(self._seed, epoch, _POLICY, index=index))
        if changes.erase:
            draws = self._draws(epoch, _ERASE, index, augment.ERASE_DRAWS)
            out = augment.erase(out, draws, changes.erase, self._fill)
        return out

    def _crop(self, images: Images, index: NDArray[np.int64], epoch: int) -> NDArray[np.uint8]:
        changes, size = self._loader.augment, self._loader.image_size
        if changes.crop == "random_resized":
            draws = self._draws(epoch, _CROP, index, geometry.DRAWS)
            boxes = geometry.random_boxes(geometry.sizes_of(images), draws, changes.scale, changes.ratio)
            return geometry.crop_and_resize(images, boxes, size, len(self._fill))
        out = self.val(images)
        if changes.crop == "pad":
            out = augment.pad_and_crop(out, self._draws(epoch, _CROP, index, 2), changes.padding)
        return out

    def _draws(self, epoch: int, change: int, index: NDArray[np.int64], count: int) -> NDArray[np.float64]:
        return seeds.uniform(self._seed, epoch, change, index=index, draws=count)
