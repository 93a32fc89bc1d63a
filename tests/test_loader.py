"""Which samples, in which order and whose share; the same batches in line, ahead, by processes and over ranks."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import ALONE, CPU, PLAIN, make_data, make_source
from PIL import Image

from tinyexp import cores, seeds
from tinyexp.config import Config
from tinyexp.data import loader
from tinyexp.data.filesplit import FileSplit
from tinyexp.data.folder import imagefolder
from tinyexp.data.geometry import resize_and_centre
from tinyexp.data.loader import Data, ahead
from tinyexp.data.plan import Batch
from tinyexp.data.source import Source
from tinyexp.data.store import StoredSplit, decoded
from tinyexp.dist import Dist
from tinyexp.errors import ConfigError, DataError

SOURCE = make_source(num_train=37, num_val=11)
META = torch.device("meta")  # stands for each that is not the CPU
pytestmark = [
    # Python 3.12 and later warn of a fork beside threads, which torch has; a loader process uses none of them.
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*suggested max number of worker:UserWarning"),
]


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
            assert np.array_equal(batch.images.permute(0, 2, 3, 1), split.fetch(batch.index.numpy()))
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
        Data(SOURCE, replace(PLAIN, loader=loader), ALONE)


@pytest.mark.parametrize(("key", "value"), [("classes", ["a", "b"]), ("fingerprint", "00"), ("mean", [0.5])])
def test_another_data_set_is_told_from_this_one(key: str, value: object) -> None:
    data = make_data(SOURCE)
    data.check_same(data.describe())
    with pytest.raises(ConfigError, match=rf"the data is not what this run was trained on: {key} was"):
        data.check_same(data.describe() | {key: value})


# randomness


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


# the same batches

FLIPS = {"crop": "random_resized", "flip": 0.5, "erase": 0.5}
MIXED = FLIPS | {"mixup": 0.4, "cutmix": 1.0}
POLICY = MIXED | {"policy": "trivialaugment", "jitter": (0.3, 0.3, 0.3, 0.1)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """23 train and 5 val images each: `ragged` of 20 to 40 px, `uniform` of 24 px."""
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for kind in ("ragged", "uniform"):
        for phase, count in (("train", 23), ("val", 5)):
            for number in range(count):
                size = random.integers(20, 41, 2) if kind == "ragged" else (24, 24)
                path = folder / kind / phase / f"class{number % 3}" / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
    return folder


class Maker:
    """Makes data of the images in `folder`, and closes it."""

    def __init__(self, folder: Path, kind: str) -> None:
        self._folder, self._root = folder, folder / kind

    def configure(self, *, augment: dict[str, Any], accumulate: int = 1, **loader: Any) -> Config:
        settings = replace(
            PLAIN.loader,
            **{"image_size": 12, "resize": 14, "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.2, 0.2), "workers": 0} | loader,
            cache_dir=str(self._folder / "cache"),
            augment=replace(PLAIN.loader.augment, **augment),
        )
        train = replace(PLAIN.train, batch_size=5, accumulate=accumulate, eval_batch_size=2)
        return replace(PLAIN, loader=settings, train=train)

    def data(self, dist: Dist = ALONE, **changes: Any) -> Data:
        config = self.configure(**changes)
        source = imagefolder(root=str(self._root), cache_dir=self._folder / "cache")
        source = decoded(source, config.loader)
        assert isinstance(source.train, StoredSplit if config.loader.max_gb else FileSplit)
        return Data(source, config, dist)

    def steps(self, world: int = 1, **changes: Any) -> list[list[torch.Tensor]]:
        """The global batches of some epochs, begun at their start and midway, and of val: images, labels, numbers."""
        ranks = []
        for rank in range(world):
            with self.data(Dist(CPU, rank, world), **changes) as data:
                made = [step for epoch, start in ((0, 0), (3, 0), (3, 2)) for step in data.train(epoch, start)]
                ranks.append((made, list(data.val())))
        joined = [
            join([batch for share in shares for batch in share]) for shares in zip(*(r[0] for r in ranks), strict=True)
        ]
        val = join([batch for _, batches in ranks for batch in batches])
        order = val[2].argsort()
        return [*joined, [each[order] for each in val]]


def join(batches: list[Batch]) -> list[torch.Tensor]:
    return [torch.cat([getattr(batch, name) for batch in batches]) for name in ("images", "labels", "index")]


def assert_same(mine: list[list[torch.Tensor]], theirs: list[list[torch.Tensor]]) -> None:
    assert len(mine) == len(theirs)
    for step, other in zip(mine, theirs, strict=True):
        assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(step, other, strict=True))


@functools.cache
def reference(folder: Path, kind: str, *, policy: bool) -> list[list[torch.Tensor]]:
    """Decoded once, read in line by one process."""
    return Maker(folder, kind).steps(augment=POLICY if policy else MIXED)


@pytest.mark.parametrize("kind", ["ragged", "uniform"])
def test_what_they_are_compared_with(folder: Path, kind: str) -> None:
    """It holds what it should: each epoch another one, its tail, mixed labels, and val as it is."""
    whole = reference(folder, kind, policy=False)
    assert [len(step[0]) for step in whole] == [5, 5, 5, 5, 3] * 2 + [5, 5, 3] + [5]
    assert_same(whole[7:10], whole[10:13])
    assert whole[0][0].shape == (5, 3, 12, 12)
    assert whole[0][1].dtype == torch.float32
    assert all(torch.allclose(step[1].sum(1), torch.ones(())) for step in whole[:-1])
    assert any((step[1] > 0).sum() > len(step[1]) for step in whole[:-1])
    assert not torch.equal(whole[0][0], whole[5][0])
    assert whole[-1][1].tolist() == [0, 0, 1, 1, 2]


@pytest.mark.parametrize("kind", ["ragged", "uniform"])
@pytest.mark.parametrize("max_gb", [1.0, 0.0], ids=["store", "stream"])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_and_accumulation_change_nothing(folder: Path, kind: str, max_gb: float, world: int) -> None:
    for accumulate in (1, 2):
        made = Maker(folder, kind).steps(world, augment=MIXED, max_gb=max_gb, accumulate=accumulate)
        assert_same(made, reference(folder, kind, policy=False))


@pytest.mark.parametrize(
    ("workers", "world", "max_gb"),
    [(1, 1, 1.0), (1, 1, 0.0), (3, 1, 0.0), pytest.param(3, 2, 1.0, marks=pytest.mark.slow), (1, 3, 0.0)],
)
def test_loader_processes_change_nothing(folder: Path, workers: int, world: int, max_gb: float) -> None:
    changes: dict[str, Any] = {"max_gb": max_gb, "workers": workers, "start_method": "fork", "accumulate": world}
    made = Maker(folder, "ragged").steps(world, augment=MIXED, **changes)
    assert_same(made, reference(folder, "ragged", policy=False))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("max_gb", [1.0, 0.0], ids=["store", "stream"])
def test_policies_change_nothing_either(folder: Path, workers: int, max_gb: float) -> None:
    made = Maker(folder, "ragged").steps(2, augment=POLICY, max_gb=max_gb, workers=workers, start_method="fork")
    assert_same(made, reference(folder, "ragged", policy=True))


@pytest.mark.slow
@pytest.mark.parametrize("max_gb", [1.0, 0.0], ids=["store", "stream"])
def test_spawned_processes_change_nothing(folder: Path, max_gb: float) -> None:
    made = Maker(folder, "uniform").steps(augment=POLICY, max_gb=max_gb, workers=1, start_method="spawn")
    assert_same(made, reference(folder, "uniform", policy=True))


@pytest.mark.parametrize("mixup", [0.0, 0.5])
def test_each_epoch_and_seed_changes_a_sample_anew(mixup: float) -> None:
    """One alone, which has no other to be mixed with."""
    source = make_source(num_train=1, size=16)
    augment = replace(PLAIN.loader.augment, crop="random_resized", mixup=mixup)
    settings = replace(PLAIN.loader, workers=0, image_size=16, augment=augment)
    seen = set()
    for seed in (0, 1):
        data = Data(source, replace(PLAIN, loader=settings, train=replace(PLAIN.train, seed=seed)), ALONE)
        seen |= {
            batch.images.numpy().tobytes() for epoch in (0, 1, 2, 0) for step in data.train(epoch) for batch in step
        }
    assert len(seen) == 6


def test_val_is_resized_and_no_more(folder: Path) -> None:
    with Maker(folder, "ragged").data(augment=POLICY) as data:
        files = imagefolder(root=str(folder / "ragged"), cache_dir=folder / "cache").val
        assert isinstance(files, FileSplit)
        files = replace(files, short_side=24)
        for batch in data.val():
            expected = resize_and_centre(files.fetch(batch.index.numpy()), 14, 12, 3)
            assert np.array_equal(batch.images.permute(0, 2, 3, 1), expected)
            assert batch.labels.dtype == torch.int64


# small data sets


@pytest.mark.parametrize(
    ("count", "batch_size", "world"),
    [(3, 8, 4), (1, 8, 3), (2, 100, 3), (9, 4, 2), (10, 4, 3), (5, 1, 2), (7, 3, 1), (13, 6, 4)],
)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_few_samples_are_shared_and_mixed_as_by_one(count: int, batch_size: int, world: int, accumulate: int) -> None:
    source = make_source(num_train=count)
    augment = replace(PLAIN.loader.augment, mixup=0.5, cutmix=0.5, crop="pad", padding=1)
    settings = replace(PLAIN.loader, workers=0, image_size=4, augment=augment)
    accumulate = min(accumulate, batch_size)

    def steps(dist: Dist, accumulate: int) -> list[list[Batch]]:
        train = replace(PLAIN.train, batch_size=batch_size, accumulate=accumulate)
        return list(Data(source, replace(PLAIN, loader=settings, train=train), dist).train(0))

    alone = [join(step) for step in steps(ALONE, 1)]
    ranks = [steps(Dist(CPU, rank, world), accumulate) for rank in range(world)]
    assert sorted(int(number) for step in alone for number in step[2]) == list(range(count))
    for shares, whole in zip(zip(*ranks, strict=True), alone, strict=True):
        batches = [batch for share in shares for batch in share]
        assert all(batch.labels.shape == (len(batch.index), 3) for batch in batches)
        assert all(batch.images.shape == (len(batch.index), 1, 4, 4) for batch in batches)
        assert all(share for share in shares)
        assert_same([join(batches)], [whole])
        assert torch.allclose(whole[1].sum(1), torch.ones(()))


# loader processes


def make_augmented(*, dist: Dist = ALONE, changes: dict[str, Any] | None = None, **settings: Any) -> Data:
    given = {"crop": "pad", "padding": 1, "flip": 0.5} if changes is None else changes
    augment = replace(PLAIN.loader.augment, **given)
    settings = {"workers": 0, "image_size": 4, "augment": augment} | settings
    train = replace(PLAIN.train, batch_size=5, accumulate=2, eval_batch_size=4)
    return Data(SOURCE, replace(PLAIN, loader=replace(PLAIN.loader, **settings), train=train), dist)


@pytest.mark.parametrize("start_method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_loader_processes_give_what_is_read_in_line(start_method: str) -> None:
    """Over several phases, one begun in its middle, and one left before its end."""
    with make_augmented() as line, make_augmented(workers=2, start_method=start_method) as workers:
        next(workers.train(0))
        for epoch, start in ((0, 0), (0, 3), (1, 0)):
            for mine, theirs in zip(workers.train(epoch, start), line.train(epoch, start), strict=True):
                assert all(map(equal, mine, theirs))
            for batch, other in zip(workers.val(), line.val(), strict=True):
                assert equal(batch, other)


def test_val_is_not_augmented() -> None:
    with make_augmented(changes={"crop": "pad", "flip": 1.0, "erase": 1.0, "mixup": 1.0}) as data:
        for batch in data.val():
            assert np.array_equal(batch.images.permute(0, 2, 3, 1), SOURCE.val.fetch(batch.index.numpy()))
            assert np.array_equal(batch.labels, SOURCE.val.labels[batch.index])


def test_reading_leaves_torchs_generator_alone() -> None:
    """Or dropout would depend on where a run was cut."""
    for given in ({"workers": 1, "start_method": "fork"}, {"workers": 0}, {"workers": 0, "dist": Dist(META)}):
        with make_augmented(**given) as data:
            before = torch.random.get_rng_state()
            list(data.train(0))
            list(data.val())
            assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("given", [{"workers": 0}, {"workers": 1, "start_method": "fork"}, {"dist": "meta"}], ids=str)
def test_a_file_that_cannot_be_decoded_is_told_where_it_is_met(folder: Path, tmp_path: Path, given: Any) -> None:
    paths = [str(path) for path in sorted((folder / "uniform/train").rglob("*.png"))]
    paths[4] = str(tmp_path / "gone.png")
    split = FileSplit(tuple(paths), np.arange(23) % 3, "")
    source = Source(classes=("a", "b", "c"), channels=3, train=split, val=split, fingerprint="")
    dist = Dist(META) if given.pop("dist", None) else ALONE
    data = Data(source, Maker(folder, "uniform").configure(augment={}, **given), dist)
    met = next(step for step in range(5) if 4 in data.sample_ids(0, step))
    with data:
        steps = data.train(0)
        for _ in range(met):
            next(steps)
        with pytest.raises(DataError, match=r"gone\.png cannot be decoded: No such file"):
            next(steps)


# the number of processes


def test_auto_starts_processes_where_images_are_made_one_by_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "cores_of_rank", lambda: 3)

    def count(data: Data) -> int:
        with data:
            return 0 if data._loader is None else data._loader.num_workers

    make = Maker(folder, "ragged").data
    assert count(make_augmented(workers="auto")) == 0
    assert count(make(augment=MIXED, workers="auto")) == 0
    assert count(make(augment=MIXED, workers="auto", max_gb=0.0)) == 3
    assert count(make(augment={"policy": "randaugment"}, workers="auto")) == 3
    assert count(make_augmented(changes={"jitter": (0.1, 0.0, 0.0, 0.0)}, workers="auto")) == 3
    assert count(make(augment=POLICY, workers=0, max_gb=0.0)) == 0
    assert count(make(augment={}, workers=2)) == 2


def test_ranks_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr(cores, "available_cores", lambda: 8)
    assert cores.cores_of_rank() == 8
    for ranks, expected in (("1", 8), ("3", 2), ("8", 1), ("20", 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
        assert cores.cores_of_rank() == expected


# ahead


class Items:
    """0, 1, 2, ...; an error in place of `fails`."""

    def __init__(self, count: int, fails: int = -1) -> None:
        self.made, self.threads = 0, set[str]()
        self._count, self._fails = count, fails

    def __iter__(self) -> Iterator[int]:
        for number in range(self._count):
            self.threads.add(threading.current_thread().name)
            self.made += 1
            if number == self._fails:
                raise DataError("this one")
            yield number


def batch_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("batches")]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 50])
def test_ahead_gives_the_same_in_order(count: int) -> None:
    items = Items(count)
    assert list(ahead(iter(items))) == list(range(count))
    assert items.threads <= {"batches_0"}
    assert not batch_threads()


def test_ahead_is_at_most_so_far_ahead() -> None:
    items = Items(50)
    made = ahead(iter(items), depth=2)
    assert items.made == 0
    for number in range(20):
        assert next(made) == number
        assert items.made <= number + 3
    made.close()


@pytest.mark.parametrize("fails", [0, 1, 7])
def test_ahead_passes_an_error_at_its_place(fails: int) -> None:
    made = ahead(iter(Items(9, fails)))
    assert [next(made) for _ in range(fails)] == list(range(fails))
    with pytest.raises(DataError, match="this one"):
        next(made)
    assert not batch_threads()


def test_ahead_stops_with_who_asks() -> None:
    items = Items(50)
    made = ahead(iter(items))
    next(made)
    made.close()
    assert items.made <= 3
    assert not batch_threads()


@pytest.mark.parametrize(
    ("device", "changes", "expected"),
    [(CPU, {}, 0), (META, {}, 1), (META, MIXED, 1), (META, {"policy": "randaugment"}, 0)],
    ids=["cpu", "other", "mixed", "policy"],
)
def test_batches_are_made_ahead_where_the_cpu_is_free(
    device: torch.device, changes: dict[str, Any], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not beside a step that draws from the generator that a policy seeds."""
    used = []

    def watched(items: Iterator[Any]) -> Iterator[Any]:
        used.append(items)
        return ahead(items)

    monkeypatch.setattr(loader, "ahead", watched)
    with make_augmented(dist=Dist(device), changes=changes) as data, make_augmented(changes=changes) as line:
        for mine, theirs in zip(data.train(1, 2), line.train(1, 2), strict=True):
            assert all(map(equal, mine, theirs))
        assert len(used) == expected
        steps = data.train(0)
        next(steps)
        steps.close()  # a run that is cut
        assert not batch_threads()
