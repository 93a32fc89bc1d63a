"""Which samples, in which order and whose share; what is done to them; in line and in loader processes alike."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import ALONE, CPU, PLAIN, make_data, make_source

from tinyexp import seeds
from tinyexp.data.augment import augment
from tinyexp.data.loader import Data
from tinyexp.data.plan import Batch
from tinyexp.data.source import Source
from tinyexp.dist import Dist
from tinyexp.errors import ConfigError

SOURCE = make_source(num_train=37, num_val=11)
# Python 3.12 and later warn of a fork beside threads, which torch has; a loader process uses none of them.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


def indices(data: Data, epoch: int, start: int = 0) -> list[list[int]]:
    """The samples of each optimizer step."""
    return [[int(i) for batch in batches for i in batch.index] for batches in data.train(epoch, start)]


def equal(mine: Batch, theirs: Batch) -> bool:
    tensors = all(torch.equal(getattr(mine, name), getattr(theirs, name)) for name in ("images", "labels", "index"))
    return tensors and (mine.slot, mine.total) == (theirs.slot, theirs.total)


# order


@pytest.mark.parametrize("batch_size", [1, 5, 8, 36, 37, 100])
def test_an_epoch_is_a_permutation(batch_size: int) -> None:
    data = make_data(SOURCE, batch_size=batch_size)
    order = [index for step in indices(data, 0) for index in step]
    assert sorted(order) == list(range(37))
    assert order != sorted(order)


def test_the_order_follows_from_seed_and_epoch() -> None:
    data, again, other = make_data(SOURCE), make_data(SOURCE), make_data(SOURCE, seed=1)
    orders = [indices(data, epoch) for epoch in (0, 1, 2)] + [indices(other, 0)]
    assert all(a != b for n, a in enumerate(orders) for b in orders[:n])
    assert [indices(again, epoch) for epoch in (2, 0, 1)] == [orders[2], orders[0], orders[1]]


def test_the_order_does_not_depend_on_the_batch_size() -> None:
    flat = [[i for step in indices(make_data(SOURCE, batch_size=size), 3) for i in step] for size in (4, 7, 37)]
    assert flat[0] == flat[1] == flat[2]


def test_start_is_the_tail_of_the_whole() -> None:
    data = make_data(SOURCE, batch_size=4, accumulate=2)
    whole = list(data.train(1))
    for start in range(len(whole) + 1):
        tail = list(make_data(SOURCE, batch_size=4, accumulate=2).train(1, start))
        assert len(tail) == len(whole) - start
        for mine, theirs in zip(tail, whole[start:], strict=True):
            assert all(map(equal, mine, theirs))


def test_batches_hold_the_samples_that_their_index_says() -> None:
    data = make_data(SOURCE, batch_size=5, eval_batch_size=4)
    for split, batches in ((SOURCE.train, [b for step in data.train(2) for b in step]), (SOURCE.val, list(data.val()))):
        for batch in batches:
            assert np.array_equal(batch.images, split.fetch(batch.index.numpy()))
            assert np.array_equal(batch.labels, split.labels[batch.index])
            assert (batch.images.dtype, batch.labels.dtype) == (torch.uint8, torch.int64)
    assert [len(batch.index) for batch in data.val()] == [4, 4, 3]


def test_sample_ids_name_a_whole_step() -> None:
    data = make_data(SOURCE, Dist(CPU, 1, 3), batch_size=6)
    assert data.sample_ids(4, 2) == indices(make_data(SOURCE, batch_size=6), 4)[2]


# micro-batches


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("accumulate", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [3, 6, 8, 36, 40])
def test_micro_batches_are_the_step_cut_evenly(world: int, accumulate: int, batch_size: int) -> None:
    ranks = [
        list(make_data(SOURCE, Dist(CPU, r, world), batch_size=batch_size, accumulate=accumulate).train(0))
        for r in range(world)
    ]
    alone = indices(make_data(SOURCE, batch_size=batch_size), 0)
    for number, shares in enumerate(zip(*ranks, strict=True)):
        batches = [batch for share in shares for batch in share]
        assert [int(i) for batch in batches for i in batch.index] == alone[number]  # contiguous, in the slots' order
        assert {batch.total for batch in batches} == {len(alone[number])}
        assert len({batch.slot for batch in batches}) == len(batches)
        assert all(batch.slot // accumulate == rank for rank, share in enumerate(shares) for batch in share)
        sizes = [0] * world * accumulate
        for batch in batches:
            sizes[batch.slot] = len(batch.index)
        used = [size for size in sizes if size]
        assert max(used) - min(used) <= 1
        assert min(used) > 1 or batches[0].total == 1  # batch-norm cannot take a single sample
        assert len(used) == min(len(sizes), max(1, batches[0].total // 2))
        assert sizes[0] == max(sizes)  # rank 0, whose batch-norm buffers count, is never without samples
        assert all(share for share in shares), "each rank takes part in each step"


def test_a_rank_without_samples_has_one_empty_batch() -> None:
    steps = list(make_data(SOURCE, Dist(CPU, 3, 4), batch_size=36, accumulate=2).train(0))
    assert [len(batch.index) for batch in steps[0]] == [5, 4]  # of 37: a last one alone joins
    source = make_source(num_train=3)  # too few for more than one slot
    ((only,),) = make_data(source, Dist(CPU, 3, 4), batch_size=36, accumulate=2).train(0)
    assert (only.images.shape, only.labels.shape, only.total) == ((0, 1, 4, 4), (0,), 3)


@pytest.mark.parametrize(
    ("count", "batch_size", "sizes"),
    [
        (10, 4, [4, 4, 2]),
        (9, 4, [4, 5]),  # batch-norm cannot take a single sample
        (8, 4, [4, 4]),
        (5, 4, [5]),
        (3, 4, [3]),
        (1, 4, [1]),
        (3, 1, [1, 1, 1]),
    ],
)
def test_the_last_step(count: int, batch_size: int, sizes: list[int]) -> None:
    data = make_data(make_source(num_train=count), batch_size=batch_size)
    assert [len(step) for step in indices(data, 0)] == sizes
    assert data.steps_per_epoch == len(sizes)


def test_limit_batches_keeps_the_first_steps_and_a_sample_of_val() -> None:
    whole, limited = (
        make_data(SOURCE, batch_size=5),
        make_data(SOURCE, batch_size=5, eval_batch_size=4, limit_batches=2),
    )
    assert indices(limited, 0) == indices(whole, 0)[:2]
    assert (limited.steps_per_epoch, limited.val_batches, limited.num_scored) == (2, 2, 8)
    scored = [int(i) for batch in limited.val() for i in batch.index]
    assert scored == [0, 1, 2, 4, 5, 6, 8, 9]  # of 11, evenly spaced: a folder's first ones are all of one class
    more = make_data(SOURCE, batch_size=5, limit_batches=100)
    assert (more.steps_per_epoch, more.num_scored) == (8, 11)


def test_mean_and_std_are_one_a_channel() -> None:
    loader = replace(PLAIN.loader, mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 1.0))
    with pytest.raises(ConfigError, match="need 1 numbers, one a channel, got"):
        Data(SOURCE, loader, PLAIN.train, ALONE)


@pytest.mark.parametrize(("key", "value"), [("classes", ["a", "b"]), ("fingerprint", "00"), ("mean", [0.5])])
def test_another_data_set_is_told_from_this_one(key: str, value: object) -> None:
    data = make_data(SOURCE)
    data.check_same(data.describe())
    with pytest.raises(ConfigError, match=rf"the data is not what this run was trained on: {key} was"):
        data.check_same(data.describe() | {key: value})


# augmentation


def images(count: int, size: int = 9) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 256, (count, 2, size, size), dtype=np.uint8)


@pytest.mark.parametrize(("padding", "flip"), [(0, True), (2, False), (3, True)])
def test_a_sample_is_changed_alike_in_any_batch(padding: int, flip: bool) -> None:
    index, pictures = np.arange(50), images(50)

    def change(chosen: np.ndarray, epoch: int = 5, seed: int = 7) -> np.ndarray:
        return augment(pictures[chosen], index[chosen], seed=seed, epoch=epoch, crop_padding=padding, flip=flip)

    whole = change(index)
    assert (whole.shape, whole.dtype) == (pictures.shape, np.uint8)
    for chosen in (index[::-1], index[7:9], index[[3]], index[:0]):
        assert np.array_equal(change(chosen), whole[chosen])
    for other in (change(index, epoch=6), change(index, seed=8)):
        assert not np.array_equal(other, whole)


def test_flip_mirrors_half_of_the_images_and_leaves_the_others() -> None:
    pictures = images(4000, size=3)
    changed = augment(pictures, np.arange(4000), seed=0, epoch=0, crop_padding=0, flip=True)
    same, mirrored = ((changed == expected).all((1, 2, 3)) for expected in (pictures, pictures[..., ::-1]))
    assert (same | mirrored).all()
    assert abs(mirrored.mean() - 0.5) < 0.03  # four deviations


def test_crop_shifts_by_each_offset_alike_and_brings_in_black() -> None:
    padding, size, count = 1, 5, 9000
    picture = images(1, size)
    changed = augment(np.repeat(picture, count, 0), np.arange(count), seed=0, epoch=0, crop_padding=padding, flip=False)
    frame = np.zeros((2, size + 2, size + 2), np.uint8)
    frame[:, 1:-1, 1:-1] = picture[0]
    shares = {
        (top, left): (changed == frame[:, top : top + size, left : left + size]).all((1, 2, 3)).mean()
        for top in range(3)
        for left in range(3)
    }
    assert sum(shares.values()) == pytest.approx(1)
    assert all(abs(share - 1 / 9) < 0.015 for share in shares.values())
    assert np.array_equal(frame[:, 1 : 1 + size, 1 : 1 + size], picture[0])  # no offset is the image itself


def test_draws_are_uniform_and_independent() -> None:
    draws = seeds.uniform(3, 1, index=np.arange(20_000), draws=3)
    assert draws.min() >= 0
    assert draws.max() < 1
    for column in draws.T:
        counts, _ = np.histogram(column, bins=20, range=(0, 1))
        assert ((counts - 1000) ** 2 / 1000).sum() < 45  # chi-squared of 19: one in a thousand is above 43.8
    correlations = np.corrcoef(np.vstack([draws.T, np.roll(draws[:, 0], 1)])) - np.eye(4)
    assert np.abs(correlations).max() < 0.03


def test_keys_in_numpy_are_the_keys_in_plain_integers() -> None:
    index = np.array([0, 1, 5, 2**40])
    assert seeds.keys(7, 3, index=index).tolist() == [seeds.key(7, 3, int(i)) for i in index]
    assert len({seeds.key(*parts) for parts in ((), (0,), (0, 0), (1,), (0, 1), (1, 0))}) == 6


def test_permutations_are_even() -> None:
    """Each element comes to each place about as often: 4,000 orders of 5."""
    orders = np.array([seeds.permutation(0, epoch, size=5) for epoch in range(4000)])
    places = np.array([np.bincount(orders[:, place], minlength=5) for place in range(5)])
    assert np.abs(places - 800).max() < 110  # four deviations


# loader processes


@contextmanager
def make_augmented(source: Source, **loader: object) -> Iterator[Data]:
    settings = replace(PLAIN.loader, crop_padding=1, flip=True, **loader)
    with Data(source, settings, replace(PLAIN.train, batch_size=5, accumulate=2, eval_batch_size=4), ALONE) as data:
        yield data


@pytest.mark.parametrize("start_method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_loader_processes_give_what_is_read_in_line(start_method: str) -> None:
    """Over several phases, one begun in its middle, and one left before its end."""
    with make_augmented(SOURCE) as line, make_augmented(SOURCE, workers=2, start_method=start_method) as workers:
        next(workers.train(0))
        for epoch, start in ((0, 0), (0, 3), (1, 0)):
            for mine, theirs in zip(workers.train(epoch, start), line.train(epoch, start), strict=True):
                assert all(map(equal, mine, theirs))
            for batch, other in zip(workers.val(), line.val(), strict=True):
                assert equal(batch, other)


def test_val_is_not_augmented() -> None:
    with make_augmented(SOURCE) as data:
        for batch in data.val():
            assert np.array_equal(batch.images, SOURCE.val.fetch(batch.index.numpy()))


def test_reading_leaves_torchs_generator_alone() -> None:
    """Or dropout would depend on where a run was cut."""
    with make_augmented(SOURCE, workers=1, start_method="fork") as data:
        before = torch.random.get_rng_state()
        list(data.train(0))
        list(data.val())
        assert torch.equal(torch.random.get_rng_state(), before)
