"""From images to labels: a checkpoint's network, shown each image as val shows it. In a stream: few are in memory."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from tinyexp.checkpoint import weights_to_use
from tinyexp.config import Config
from tinyexp.cores import available_cores
from tinyexp.data.decode import EXTENSIONS, decode
from tinyexp.data.source import Split
from tinyexp.data.transform import Transform
from tinyexp.dist import Dist
from tinyexp.errors import ConfigError, DataError
from tinyexp.network import Network
from tinyexp.trained import described

TOPK = 5
_TIES = 5  # what val's scores take the best of; another number might order equal logits otherwise
_AHEAD = 2  # batches that are decoded before they are asked for

Shown = tuple[str, NDArray[np.uint8] | str]  # an image's path, and (size, size, C) or why there is none


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What the network takes an image for."""

    path: str
    name: str  # what people call the label
    topk: list[tuple[str, float]]  # labels and their probabilities, the most probable first

    @property
    def label(self) -> str:
        return self.topk[0][0]

    @property
    def probability(self) -> float:
        return self.topk[0][1]


@dataclass(frozen=True, kw_only=True)
class Failure:
    """An image that cannot be decoded."""

    path: str
    reason: str  # with the path


class Predictor:
    """A checkpoint's network, with all that it needs from a file to a label.

    Raises:
        ConfigError: the checkpoint's config makes another network than its weights are of.
    """

    def __init__(self, checkpoint: dict[str, Any], config: Config, dist: Dist, origin: str) -> None:
        data, loader = described(checkpoint, config), config.loader
        self.classes = data.classes
        self.names: tuple[str, ...] = tuple(checkpoint["data"].get("names", data.classes))
        self.network = Network.build(config, data, dist)
        self.network.load(weights_to_use(checkpoint), origin)
        self.network.model.eval()
        self._channels = data.image_shape[0]
        self._transform = Transform(loader, loader.mean, config.train.seed)
        self._short_side = 2 * loader.image_size if loader.decode_size == "auto" else loader.decode_size
        self._batch_size = config.train.eval_batch_size

    def files(self, paths: Sequence[str], topk: int = TOPK) -> Iterator[Prediction | Failure]:
        """One for each image file, in their order; decoded by threads, ahead of the network.

        Raises:
            ConfigError: the network takes images that no file has.
        """
        if self._channels not in (1, 3):
            raise ConfigError(f"files have 3 channels or 1, and the network takes images of {self._channels}")
        return self._label(self._decoded(paths), topk)

    def split(self, split: Split, count: int, topk: int = TOPK) -> Iterator[Prediction | Failure]:
        """The first `count` samples of a split that is no files; the path of number i is val/i."""
        return self._label(self._fetched(split, count), topk)

    def _label(self, shown: Iterator[Shown], topk: int) -> Iterator[Prediction | Failure]:
        while batch := list(islice(shown, self._batch_size)):
            images = [image for _, image in batch if not isinstance(image, str)]
            found = iter(self._top(np.stack(images), topk) if images else ())
            for path, image in batch:
                if isinstance(image, str):
                    yield Failure(path=path, reason=image)
                else:
                    best = next(found)
                    top = [(self.classes[number], probability) for number, probability in best]
                    yield Prediction(path=path, name=self.names[best[0][0]], topk=top)

    @torch.no_grad()
    def _top(self, images: NDArray[np.uint8], topk: int) -> list[list[tuple[int, float]]]:
        """(n, H, W, C) -> for each the classes' numbers and probabilities."""
        logits = self.network(torch.from_numpy(images).permute(0, 3, 1, 2)).cpu()  # MPS has no float64
        best = logits.topk(min(max(topk, _TIES), len(self.classes)), dim=1).indices[:, :topk]
        probabilities = logits.double().softmax(1).gather(1, best)
        return [list(zip(*row, strict=True)) for row in zip(best.tolist(), probabilities.tolist(), strict=True)]

    def _decoded(self, paths: Iterable[str]) -> Iterator[Shown]:
        waiting: deque[tuple[str, Future[NDArray[np.uint8] | str]]] = deque()
        pool = ThreadPoolExecutor(available_cores(), thread_name_prefix="decode")
        try:
            for path in paths:
                waiting.append((path, pool.submit(self._decode, path)))
                if len(waiting) > _AHEAD * self._batch_size:
                    name, image = waiting.popleft()
                    yield name, image.result()
            for name, image in waiting:
                yield name, image.result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _decode(self, path: str) -> NDArray[np.uint8] | str:
        try:
            image = decode(path, self._short_side)
        except DataError as error:
            return str(error)
        if self._channels == 1:
            image = np.asarray(Image.fromarray(image).convert("L"))[:, :, None]
        shown: NDArray[np.uint8] = self._transform.val([image])[0]
        return shown

    def _fetched(self, split: Split, count: int) -> Iterator[Shown]:
        for first in range(0, count, self._batch_size):
            index = np.arange(first, min(first + self._batch_size, count))
            for number, image in zip(index, self._transform.val(split.fetch(index)), strict=True):
                yield f"val/{number}", image


def list_images(path: str) -> list[str]:
    """A file, or a folder's images at any depth in order of name, without what is hidden and links to folders.

    Raises:
        ConfigError: there is no such path, a folder that cannot be read, or one without images.
    """
    if not Path(path).is_dir():
        if not Path(path).is_file():
            raise ConfigError(f"{path} is not there, or no file: predict takes a folder of images, an image, or val")
        return [path]

    def refuse(error: OSError) -> None:
        raise ConfigError(f"{error.filename} cannot be read: {error.strerror}") from error

    found: list[str] = []
    for folder, folders, files in os.walk(path, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith((".", "__MACOSX"))]
        found += [
            place
            for name in files
            if name[0] != "."
            and name.lower().endswith(EXTENSIONS)
            and Path(place := f"{folder.rstrip('/')}/{name}").is_file()
        ]
    if not found:
        raise ConfigError(f"{path} has no image ({' '.join(EXTENSIONS)}): give the folder that has them")
    return sorted(found)
