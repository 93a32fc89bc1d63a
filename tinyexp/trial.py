"""What a run would take of time: a few of its real steps, and what its ranks' network gives. Nothing is written."""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, islice

import torch

from tinyexp.config import Config
from tinyexp.console import duration
from tinyexp.data.decoding import estimate_size
from tinyexp.data.loader import Data
from tinyexp.data.plan import Batch
from tinyexp.data.source import Source
from tinyexp.data.store import files_to_decode, store_folder
from tinyexp.dist import Dist
from tinyexp.engine import TrainState, evaluate, train_epoch

_BLOCK = 0.25  # seconds that a block of steps takes at least, so that a hiccup is a small part of it
_STEPS, _VAL = 5.0, 1.0  # seconds of each kind of trial
_LARGEST_BUFFER = 64 * 10**6  # bytes
_LATENCIES, _BANDWIDTHS = 20, 5  # all-reduces that are timed


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Seconds of each thing that a run does again and again, and how often it does it."""

    start: float  # once
    step: float
    val_image: float
    save: float  # of one epoch's checkpoints
    timed: int  # steps that `step` is the median of
    epochs: int
    steps: int  # of an epoch
    val_images: int  # of one rank

    @property
    def epoch(self) -> float:
        return self.steps * self.step + self.val_images * self.val_image + self.save

    @property
    def total(self) -> float:
        return self.start + self.epochs * self.epoch

    def __str__(self) -> str:
        val, save, start = map(duration, (self.val_images * self.val_image, self.save, self.start))
        return (
            f"about {duration(self.total)}: {self.epochs} epochs of {duration(self.epoch)} ({self.steps:,} steps of "
            f"{1e3 * self.step:.1f} ms, val {val}, checkpoints {save}) and {start} to start; {self.timed:,} steps timed"
        )


def time_exchange(dist: Dist, gradients: int) -> tuple[float, int, float]:
    """All-reduces: seconds for a single number; the bytes of a larger buffer, and how many a second pass.

    Medians. The bandwidth is the algorithm's, 2 (n - 1) / n of the buffer each time. Every rank takes part.

    Args:
        gradients: bytes of all that a step averages.
    """
    size = max(4, min(gradients, _LARGEST_BUFFER) // 4 * 4)
    one, many = torch.zeros(1), torch.zeros(size // 4)
    dist.sum(many)  # the first one connects
    latency = statistics.median(_seconds(lambda: dist.sum(one)) for _ in range(_LATENCIES))
    whole = statistics.median(_seconds(lambda: dist.sum(many)) for _ in range(_BANDWIDTHS))
    share = 2 * (dist.world - 1) / dist.world
    return latency, size, share * size / whole


def time_training(config: Config, data: Data, dist: Dist, began: float) -> Pace:
    """Train for some seconds, at most the whole run's steps, score some of val, and copy a checkpoint into memory.

    Args:
        began: time.perf_counter() before `data` was made, which is a part of a run's start.

    Raises:
        TinyexpError: what would end the run's first steps as well.
    """
    state = TrainState.build(config, data, dist)
    ready = time.perf_counter() - began
    first, step, timed = _time_steps(config, data, state, dist)
    return Pace(
        start=ready + max(0.0, first - step),  # the first step waits for loader processes and the device's libraries
        step=step,
        val_image=_time_val(state, data, dist),
        save=_seconds(lambda: _serialise(state)),
        timed=timed,
        epochs=config.train.epochs,
        steps=data.steps_per_epoch,
        val_images=-(-data.num_scored // dist.world),
    )


def devices(dist: Dist) -> tuple[list[str], int | None]:
    """The machine's GPUs in words, and the memory that is free on the one in use."""
    count = torch.cuda.device_count()
    sizes = [f"{torch.cuda.get_device_properties(i).total_memory / 1e9:.0f} GB" for i in range(count)]
    return sizes, torch.cuda.mem_get_info(dist.device)[0] if dist.device.type == "cuda" else None


def unmade_store(source: Source, config: Config) -> int:
    """About how many bytes of decoded images a run would first make; 0 where they are there, or nothing is stored."""
    loader = config.loader
    splits = list(files_to_decode(source, loader).values())
    missing = [split for split in splits if not store_folder(split, loader).exists()]
    if not missing or sum(map(estimate_size, splits)) > loader.max_gb * 1e9:
        return 0
    return sum(map(estimate_size, missing))


def _time_steps(config: Config, data: Data, state: TrainState, dist: Dist) -> tuple[float, float, int]:
    """Seconds of the first step, those of a later one, and how many later ones that is of.

    The median of blocks of steps, each of which ends when the device is done: a GPU runs behind, and loader processes
    bring batches in gusts. Blocks are doubled until one is long enough, which warms up as well. All ranks do the same
    number of steps.
    """
    steps = chain.from_iterable(_epochs(config, data, state, dist))
    began = time.perf_counter()
    first, _ = _block(steps, 1, state, dist)
    blocks, size = [(1, first)], 1
    while True:
        seconds, done = _block(steps, size, state, dist)
        blocks += [(done, seconds)] * (done > 0)
        wishes = torch.tensor([time.perf_counter() - began > _STEPS, seconds < _BLOCK])
        over, short = (bool(count) for count in dist.sum(wishes.int()))
        if over or done < size:  # or the whole run is done
            break
        size *= 2 if short else 1
    largest = max(done for done, _ in blocks)
    timed = [seconds / largest for done, seconds in blocks[len(blocks) > 1 :] if done == largest]
    return first, statistics.median(timed), largest * len(timed)


def _block(steps: Iterator[None], size: int, state: TrainState, dist: Dist) -> tuple[float, int]:
    """Seconds of so many steps, and how many there were."""
    began = time.perf_counter()
    done = sum(1 for _ in islice(steps, size))
    state.scores.flush(dist, state.step)  # waits for the device, as a run does for each line that it logs
    return time.perf_counter() - began, done


def _epochs(config: Config, data: Data, state: TrainState, dist: Dist) -> Iterator[Iterator[None]]:
    for _ in range(config.train.epochs):
        yield train_epoch(state, data.train(state.epoch), config.train, dist)
        state.end_epoch()


def _time_val(state: TrainState, data: Data, dist: Dist) -> float:
    """Seconds for one image of val: a batch to warm up, and as many as take some time."""

    def score(batches: int) -> float:
        seen = 0

        def counted() -> Iterator[Batch]:
            nonlocal seen
            for batch in islice(data.val(), batches):
                seen += len(batch.labels)
                yield batch

        seconds = _seconds(lambda: evaluate(state.eval_network, counted(), len(data.classes), dist))
        return seconds / max(1, seen)

    first = score(1)
    batch = data.num_scored / max(1, data.val_batches * dist.world)
    return score(max(1, min(data.val_batches, int(_VAL / max(1e-6, first * batch)))))


def _serialise(state: TrainState) -> None:
    """last.pt, and best.pt as if each epoch were better: what the loop waits for; a thread writes them."""
    torch.save(state.weights(), io.BytesIO())
    torch.save(state.state_dict(), io.BytesIO())


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
