"""What several test files share: runs in this process, data made by hand, and ranks that are threads."""

from __future__ import annotations

import gzip
import json
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tinyexp.__main__ import main
from tinyexp.compose import compose
from tinyexp.config import Component, Config
from tinyexp.data.loader import Data, load_data
from tinyexp.data.source import ArraySplit, Source
from tinyexp.dist import Dist
from tinyexp.engine import TrainState, train_epoch

T = TypeVar("T")
CPU = torch.device("cpu")
ALONE = Dist(CPU)
NO_BOARD = tuple(
    f"log.tensorboard.{key}=false" for key in ("scalars", "groups", "hparams", "text", "inputs", "filters")
)
LEAN = ("hw=cpu", "hw.threads=1", "log.level=warning", *NO_BOARD)
PLAIN = compose(["hw=cpu"])  # the config of no overrides

torch.set_num_threads(1)  # pytest runs as many processes as there are cores


# runs


def train(directory: Path, *overrides: str) -> Path:
    """One whole run in this process; its directory."""
    assert main([*LEAN, f"run.dir={directory}", *overrides]) == 0
    return directory


def rows(directory: Path, phase: str) -> list[dict[str, Any]]:
    """A run's lines of metrics.jsonl of one phase."""
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["phase"] == phase]


def begin(*overrides: str) -> tuple[Config, Data, TrainState]:
    """What a run has before its first step, without a directory."""
    config = compose(["hw=cpu", *overrides])
    data = load_data(config, ALONE)
    return config, data, TrainState.build(config, data, ALONE)


def steps(config: Config, data: Data, state: TrainState) -> Iterator[None]:
    """Optimizer steps, epoch after epoch, without end."""
    while True:
        yield from train_epoch(state, data.train(state.epoch, start=state.step_in_epoch), config.train, ALONE)
        state.end_epoch()


def component(slot: str, target: str, *, trusted: bool = True, **arguments: object) -> Component:
    return Component(slot=slot, target=target, arguments=arguments, trusted=trusted)


# data


def make_source(num_train: int = 40, num_val: int = 20, *, classes: int = 3, size: int = 4) -> Source:
    """Noise with labels 0, 1, 2, 0, ...; sample i of a split is the same whatever the split's size."""

    def split(count: int) -> ArraySplit:
        images = np.random.default_rng(0).integers(0, 256, (count, size, size, 1), dtype=np.uint8)
        return ArraySplit(images, np.arange(count, dtype=np.int64) % classes)

    names = tuple(f"class {i}" for i in range(classes))
    return Source(classes=names, channels=1, train=split(num_train), val=split(num_val), fingerprint="")


def make_data(source: Source, dist: Dist = ALONE, *, workers: int = 0, **train: Any) -> Data:
    """The source's batches, its images as they are; `train` are keys of train."""
    size = source.train.fetch(np.array([0]))[0].shape[0]
    loader = replace(PLAIN.loader, workers=workers, image_size=size)
    return Data(source, replace(PLAIN, loader=loader, train=replace(PLAIN.train, **train)), dist)


def write_idx(path: Path, array: NDArray[np.uint8]) -> None:
    content = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_mnist(folder: Path, suffix: str = "") -> Path:
    """Four small IDX files, 30 train and 20 val images of 28x28; their content is the same each time."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for phase, count in (("train", 30), ("t10k", 20)):
        write_idx(
            folder / f"{phase}-images-idx3-ubyte{suffix}", random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        )
        write_idx(folder / f"{phase}-labels-idx1-ubyte{suffix}", np.arange(count, dtype=np.uint8) % 10)
    return folder


def write_image(path: Path, colour: tuple[int, int, int] = (10, 200, 90), size: tuple[int, int] = (30, 20)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


# ranks


@dataclass
class _Meeting:
    """Where ranks bring what is to be summed; one that is left alone is an error after a while, not a hang."""

    world: int
    brought: dict[int, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.barrier = threading.Barrier(self.world, timeout=20)


@dataclass(frozen=True, kw_only=True)
class Rank(Dist):
    """A rank that is a thread of this process."""

    meeting: _Meeting

    def sum(self, values: Tensor) -> Tensor:
        meeting = self.meeting
        meeting.brought[self.rank] = values.clone()
        meeting.barrier.wait()
        total = torch.stack([meeting.brought[rank] for rank in range(self.world)]).sum(0)
        meeting.barrier.wait()
        return total

    def copy_from_first(self, tensors: Sequence[Tensor]) -> None:
        for tensor in tensors:
            tensor.copy_(self.sum(tensor if self.rank == 0 else torch.zeros_like(tensor)))


def on_ranks(world: int, job: Callable[[Dist], T]) -> list[T]:
    """What `job` returns on each of `world` ranks, in their order."""
    meeting = _Meeting(world)
    ranks = [Rank(CPU, rank, world, meeting=meeting) for rank in range(world)]
    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(job, ranks))
