"""From fetched images of any size to batches of one: what val sees, and what train sees at random."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tinyexp import seeds
from tinyexp.config import LoaderConfig
from tinyexp.data import augment, geometry
from tinyexp.data.source import Images

# Each change has draws of its own: one more leaves those of the others as they are.
_FLIP = 0
_CROP = slice(1, 1 + geometry.DRAWS)
_ERASE = slice(_CROP.stop, _CROP.stop + augment.ERASE_DRAWS)
_POLICY = 1  # a number beside seed and epoch


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
        fresh = not (isinstance(images, np.ndarray) and np.may_share_memory(resized, images))  # it had the size already
        return np.ascontiguousarray(resized) if fresh else resized.copy()

    def train(self, images: Images, index: NDArray[np.int64], epoch: int) -> NDArray[np.uint8]:
        """The images with these numbers (n,), changed as (seed, epoch, number) say."""
        changes = self._loader.augment
        if not (changes.crop or changes.flip or changes.erase or self._policy.wanted):
            return self.val(images)
        draws = seeds.uniform(self._seed, epoch, index=index, draws=self._num_draws)
        out = self._crop(images, draws[:, _CROP])
        if changes.flip:
            out = augment.flip(out, draws[:, _FLIP], changes.flip)
        if self._policy.wanted:
            out = self._policy(out, seeds.keys(self._seed, epoch, _POLICY, index=index))
        if changes.erase:
            out = augment.erase(out, draws[:, _ERASE], changes.erase, self._fill)
        return out

    @property
    def _num_draws(self) -> int:
        """How many numbers an image takes: each change's own, up to the last that is wanted."""
        changes = self._loader.augment
        crop = {None: 0, "pad": 2, "random_resized": geometry.DRAWS}[changes.crop]
        return _ERASE.stop if changes.erase else _CROP.start + crop

    def _crop(self, images: Images, draws: NDArray[np.float64]) -> NDArray[np.uint8]:
        changes, size = self._loader.augment, self._loader.image_size
        if changes.crop == "random_resized":
            boxes = geometry.random_boxes(geometry.sizes_of(images), draws, changes.scale, changes.ratio)
            return geometry.crop_and_resize(images, boxes, size, len(self._fill))
        if changes.crop == "pad":
            resized = geometry.resize_and_centre(images, self._loader.resize or size, size, len(self._fill))
            return augment.pad_and_crop(resized, draws[:, :2], changes.padding)
        return self.val(images)
