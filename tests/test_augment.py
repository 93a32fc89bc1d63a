"""Random changes of train images: distributed as torchvision's, functions of (seed, epoch, number); and mixing."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from distributions import kolmogorov_smirnov, ks_limit
from helpers import ALONE, PLAIN, begin
from numpy.typing import NDArray
from torchvision.transforms import RandomErasing, v2

from tinyexp import seeds
from tinyexp.config import AugmentConfig
from tinyexp.data import augment, geometry
from tinyexp.data.augment import Policy, erase, flip, pad_and_crop
from tinyexp.data.mix import mix, wanted, with_partners
from tinyexp.data.transform import Transform
from tinyexp.engine import train_epoch

Array = NDArray[Any]
MEAN = (0.2, 0.5, 0.9)
EVERYTHING = {"crop": "random_resized", "flip": 0.5, "policy": "randaugment", "erase": 0.5}


def configure(**changes: Any) -> AugmentConfig:
    return replace(PLAIN.loader.augment, **changes)


def make_transform(*, size: int = 12, seed: int = 7, **changes: Any) -> Transform:
    loader = replace(PLAIN.loader, image_size=size, mean=MEAN, std=MEAN, augment=configure(**changes))
    return Transform(loader, MEAN, seed)


def make_images(count: int, height: int = 12, width: int = 12, channels: int = 3) -> NDArray[np.uint8]:
    """No pixel is black, and no image or row is like another."""
    return np.random.default_rng(0).integers(1, 256, (count, height, width, channels), dtype=np.uint8)


def make_ragged(count: int) -> list[NDArray[np.uint8]]:
    sizes = np.random.default_rng(1).integers(8, 40, (count, 2))
    return [make_images(1, height, width)[0] for height, width in sizes]


def draw(count: int, draws: int, *parts: int) -> NDArray[np.float64]:
    return seeds.uniform(*parts, index=np.arange(count), draws=draws)


# each change


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_flip_mirrors_the_share_that_is_asked_for_and_leaves_the_others(probability: float) -> None:
    images = make_images(4000, 9, 20)
    changed = flip(images.copy(), draw(4000, 1)[:, 0], probability)
    same, mirrored = ((changed == expected).all((1, 2, 3)) for expected in (images, images[:, :, ::-1]))
    assert (same ^ mirrored).all()
    assert abs(mirrored.mean() - probability) <= 5 * math.sqrt(probability * (1 - probability) / 4000)


@pytest.mark.parametrize("channels", [1, 3])
def test_pad_and_crop_takes_each_offset_alike_and_brings_in_black(channels: int) -> None:
    count, height, width = 9000, 4, 5
    image = make_images(1, height, width, channels)
    changed = pad_and_crop(np.repeat(image, count, 0), draw(count, 2), 1)
    assert (changed.shape, changed.dtype) == ((count, height, width, channels), np.uint8)
    frame = np.pad(image[0], ((1, 1), (1, 1), (0, 0)))
    shares = {
        (top, left): (changed == frame[top : top + height, left : left + width]).all((1, 2, 3)).mean()
        for top in range(3)
        for left in range(3)
    }
    assert sum(shares.values()) == pytest.approx(1)
    assert all(abs(share - 1 / 9) < 5 * math.sqrt(1 / 9 * 8 / 9 / count) for share in shares.values())


def test_pad_and_crop_by_nothing_is_the_image() -> None:
    images = make_images(5)
    assert np.array_equal(pad_and_crop(images, draw(5, 2), 0), images)


def test_pad_and_crop_remembers_no_batch() -> None:
    """Of another size, padding or number of channels, though one row of bytes may be as long as before."""
    for count, height, width, channels, padding in (
        (6, 4, 16, 1, 1),
        (6, 4, 4, 3, 1),
        (2, 4, 4, 3, 1),
        (9, 4, 4, 3, 1),
        (3, 2, 2, 3, 2),
        (3, 5, 4, 3, 1),
        (0, 5, 4, 3, 1),
        (3, 5, 4, 3, 1),
    ):
        images, draws = make_images(count, height, width, channels), draw(count, 2, count)
        changed = pad_and_crop(images, draws, padding)
        framed = np.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
        for made, frame, (top, left) in zip(changed, framed, (draws * (2 * padding + 1)).astype(int), strict=True):
            assert np.array_equal(made, frame[top : top + height, left : left + width])


def erased(height: int, width: int, count: int, probability: float) -> tuple[Array, Array]:
    """Which images have a rectangle (count,), and its top, left, height and width for those (n, 4)."""
    images = erase(
        np.zeros((count, height, width, 1), np.uint8),
        draw(count, augment.ERASE_DRAWS),
        probability,
        np.array([9], np.uint8),
    )
    filled = images[..., 0] == 9
    there = filled.any((1, 2))
    down, across = filled[there].any(2), filled[there].any(1)
    top, left = down.argmax(1), across.argmax(1)
    tall, wide = down.sum(1), across.sum(1)
    assert (filled[there].sum((1, 2)) == tall * wide).all(), "one whole rectangle"
    return there, np.stack([top, left, tall, wide], 1)


@pytest.mark.parametrize("size", [(32, 32), (20, 60), (24, 10)], ids=str)
def test_erased_rectangles_are_distributed_as_torchvisions(size: tuple[int, int]) -> None:
    count = 10_000
    _, mine = erased(*size, count, 1.0)
    torch.manual_seed(0)
    picture = torch.empty(1, *size)
    given = [RandomErasing.get_params(picture, (0.02, 0.33), (0.3, 3.3), [0.0])[:4] for _ in range(count)]
    theirs = np.array([box for box in given if box[2:] != size])
    assert abs(len(mine) - len(theirs)) < 5 * math.sqrt(count)

    def look(boxes: Array) -> dict[str, Array]:
        top, left, height, width = boxes.T
        return {
            "area": height * width,
            "aspect": width / height,
            "top": top / (size[0] - height),
            "left": left / (size[1] - width),
        }

    for name, values in look(mine).items():
        distance = kolmogorov_smirnov(values, look(theirs)[name])
        assert distance < ks_limit(min(len(mine), len(theirs))), name


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_erase_takes_the_share_that_is_asked_for(probability: float) -> None:
    there, _ = erased(16, 16, 4000, probability)
    assert abs(there.mean() - probability) <= 5 * math.sqrt(probability * (1 - probability) / 4000)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 2), (3, 40)], ids=str)
def test_erase_leaves_what_is_too_small(size: tuple[int, int]) -> None:
    images = erase(make_images(50, *size), draw(50, augment.ERASE_DRAWS), 1.0, np.array([0, 0, 0], np.uint8))
    assert (images > 0).any((1, 2, 3)).all()


def test_erase_fills_with_what_is_zero_when_normalised() -> None:
    images = make_images(40)
    changed = make_transform(erase=1.0).train(images, np.arange(40), 0)
    other = (changed != images).any(3)
    assert other.any((1, 2)).all()
    assert (changed[other] == [51, 128, 230]).all()
    assert other.mean() < 0.34


@pytest.mark.parametrize(
    ("changes", "theirs"),
    [
        ({"policy": "randaugment", "num_ops": 3, "magnitude": 14}, [v2.RandAugment(3, 14)]),
        ({"policy": "trivialaugment"}, [v2.TrivialAugmentWide()]),
        ({"jitter": (0.4, 0.3, 0.2, 0.1)}, [v2.ColorJitter(0.4, 0.3, 0.2, 0.1)]),
        (
            {"policy": "randaugment", "jitter": (0.4, 0.4, 0.4, 0.0)},
            [v2.RandAugment(2, 9), v2.ColorJitter(0.4, 0.4, 0.4, 0.0)],
        ),
    ],
    ids=["randaugment", "trivialaugment", "jitter", "both"],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_policies_are_torchvisions_under_each_images_own_seed(
    changes: dict[str, Any], theirs: list[torch.nn.Module], channels: int
) -> None:
    images, keys = make_images(30, channels=channels), seeds.keys(3, index=np.arange(30))
    mine = Policy(configure(**changes))(images.copy(), keys)
    assert (mine != images).any()
    for image, key, changed in zip(images, keys.tolist(), mine, strict=True):
        torch.manual_seed(key)
        expected = torch.from_numpy(image).permute(2, 0, 1).contiguous()
        for change in theirs:
            expected = change(expected)
        assert np.array_equal(changed, expected.permute(1, 2, 0).numpy())


def test_no_policy_is_wanted_by_itself() -> None:
    assert not Policy(configure()).wanted
    assert Policy(configure(policy="randaugment")).wanted
    assert Policy(configure(jitter=(0.1, 0.0, 0.0, 0.0))).wanted


# all together

CHANGES = {
    "none": {},
    "random_resized": {"crop": "random_resized", "flip": 0.5},
    "pad": {"crop": "pad", "flip": 0.5, "erase": 0.5},
    "policy": {"policy": "randaugment"},
    "everything": EVERYTHING,
}


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("name", list(CHANGES))
def test_a_sample_is_changed_alike_in_any_batch(name: str, ragged: bool) -> None:
    images: Any = make_ragged(40) if ragged else make_images(40)
    index = np.arange(100, 140)

    def change(chosen: Array, epoch: int = 5, seed: int = 7) -> NDArray[np.uint8]:
        given = [images[i] for i in chosen] if ragged else images[chosen]
        return make_transform(seed=seed, **CHANGES[name]).train(given, index[chosen], epoch)

    whole = change(np.arange(40))
    assert (whole.shape, whole.dtype) == ((40, 12, 12, 3), np.uint8)
    for chosen in (np.arange(40)[::-1], np.array([7, 8]), np.array([3]), np.array([9, 9]), np.arange(0)):
        assert np.array_equal(change(chosen), whole[chosen])
    for other in (change(np.arange(40), epoch=6), change(np.arange(40), seed=8)):
        assert np.array_equal(other, whole) == (name == "none")


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("name", list(CHANGES))
def test_what_was_fetched_is_not_written_to_and_not_handed_on(name: str, ragged: bool) -> None:
    """A split may give its own arrays, or views of a mapped file."""
    images: Any = make_ragged(10) if ragged else make_images(10)
    before = [image.copy() for image in images]
    transform = make_transform(**CHANGES[name])
    for frozen in (False, True):
        for image in images if ragged else [images]:
            image.flags.writeable = not frozen
        for made in (transform.train(images, np.arange(10), 0), transform.val(images)):
            assert made.flags.c_contiguous
            made[:] = 0  # raises where it is frozen
        assert all(map(np.array_equal, images, before))


def test_one_change_more_leaves_the_others_as_they_were() -> None:
    images, index = make_ragged(60), np.arange(60)
    cropped = make_transform(crop="random_resized").train(images, index, 2)
    flipped = make_transform(crop="random_resized", flip=0.5).train(images, index, 2)
    straight, mirrored = ((flipped == way).all((1, 2, 3)) for way in (cropped, cropped[:, :, ::-1]))
    assert (straight | mirrored).all()
    assert 10 < mirrored.sum() < 50
    changed = make_transform(crop="random_resized", flip=0.5, policy="trivialaugment").train(images, index, 2)
    holed = make_transform(crop="random_resized", flip=0.5, policy="trivialaugment", erase=0.9).train(images, index, 2)
    other = (holed != changed).any(3)
    assert (holed[other] == [51, 128, 230]).all()
    assert 0.05 < other.mean() < 0.34


@pytest.mark.parametrize("crop", ["random_resized", "pad"])
def test_no_two_changes_draw_the_same(crop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a mirrored image would be one of which little is seen."""
    drawn: list[Array] = []

    def watch(home: ModuleType, name: str) -> None:
        change = getattr(home, name)

        def watched(images: Array, draws: Array, *rest: object) -> Array:
            drawn.append(draws.reshape(len(draws), -1))
            return change(images, draws, *rest)

        monkeypatch.setattr(home, name, watched)

    for home, name in ((geometry, "random_boxes"), (augment, "pad_and_crop"), (augment, "flip"), (augment, "erase")):
        watch(home, name)
    make_transform(size=4, crop=crop, flip=0.5, erase=0.5).train(make_images(5000, 4, 4), np.arange(5000), 0)
    assert len(drawn) == 3
    columns = np.concatenate(drawn, 1)
    assert np.abs(np.corrcoef(columns.T) - np.eye(columns.shape[1])).max() < 5.5 / math.sqrt(5000)


# mixing


def make_constants(count: int, size: int = 16) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Image i is all 10 i, of class i."""
    images = np.repeat(np.arange(count, dtype=np.uint8) * 10, size * size * 3).reshape(count, size, size, 3)
    return images, np.arange(count)


def neighbours(count: int) -> list[int]:
    return [min(i ^ 1, count - 1) if i ^ 1 < count else i for i in range(count)]


@pytest.mark.parametrize("count", [1, 2, 7, 8])
def test_a_cut_label_is_the_share_of_pixels(count: int) -> None:
    images, labels = make_constants(count)
    for step in range(100):
        mixed, soft = mix(images, labels, count, configure(cutmix=1.0), key=(0, 0, step))
        assert soft.dtype == np.float32
        for number, partner in enumerate(neighbours(count)):
            own = (mixed[number] == 10 * number).all(2)
            theirs = (mixed[number] == 10 * partner).all(2)
            assert (own | theirs).all()
            assert soft[number, number] == np.float32(own.mean())
            expected = np.zeros(count)
            expected[number] += own.mean()
            expected[partner] += (~own).mean()
            np.testing.assert_allclose(soft[number], expected, atol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 7, 8])
def test_a_blended_label_is_the_weight_of_pixels(count: int) -> None:
    images, labels = make_constants(count)
    images = images + np.random.default_rng(0).integers(0, 180, images.shape, dtype=np.uint8)
    for step in range(100):
        mixed, soft = mix(images, labels, count, configure(mixup=1.0), key=(0, 0, step))
        for number, partner in enumerate(neighbours(count)):
            share = soft[number, number] if partner != number else 1.0
            blended = images[number] * float(share) + images[partner] * (1 - float(share))
            assert np.abs(mixed[number] - blended).max() <= 0.5
            assert soft[number].sum() == pytest.approx(1, abs=1e-6)
            assert soft[number, partner] == pytest.approx(1 - share if partner != number else 1, abs=1e-6)


def test_two_of_one_class_keep_it_whole() -> None:
    images, _ = make_constants(4)
    for changes in (configure(mixup=1.0), configure(cutmix=1.0)):
        _, soft = mix(images, np.array([2, 2, 0, 1]), 3, changes, key=(0, 0, 0))
        np.testing.assert_allclose(soft[:2], [[0, 0, 1]] * 2, atol=1e-6)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_shares_of_mixup_are_betas(alpha: float) -> None:
    images, labels = make_constants(2, size=2)
    changes = configure(mixup=alpha)
    mine = np.array([mix(images, labels, 2, changes, key=(0, 0, step))[1][0, 0] for step in range(4000)])
    theirs = np.rint(np.random.default_rng(0).beta(alpha, alpha, 4000) * 256) / 256
    assert kolmogorov_smirnov(mine, theirs) < ks_limit(4000)


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_boxes_of_cutmix_are_torchvisions(alpha: float) -> None:
    """Shares, and where the box lies."""
    images = np.stack([np.zeros((16, 24, 1), np.uint8), np.ones((16, 24, 1), np.uint8)])
    changes, count = configure(cutmix=alpha), 3000
    torch.manual_seed(0)
    reference = v2.CutMix(alpha=alpha, num_classes=2)
    mine, theirs = np.zeros((count, 16, 24), bool), np.zeros((count, 16, 24), bool)
    shares = np.zeros((2, count))
    for step in range(count):
        mixed, soft = mix(images, np.array([0, 1]), 2, changes, key=(0, 0, step))
        mine[step], shares[0, step] = mixed[0, :, :, 0], soft[0, 0]
        drawn = reference.make_params([torch.zeros(2, 1, 16, 24)])
        left, top, right, bottom = drawn["box"]
        theirs[step, top:bottom, left:right] = True
        shares[1, step] = drawn["lam_adjusted"]
    assert kolmogorov_smirnov(*shares) < ks_limit(count)
    for axis in (1, 2):
        for edge in (lambda cut: cut.argmax(1), lambda cut: cut[:, ::-1].argmax(1)):
            assert kolmogorov_smirnov(*(edge(cut.any(axis)) for cut in (mine, theirs))) < ks_limit(count)


def test_both_come_about_as_often() -> None:
    images, labels = make_constants(2, size=4)
    images[1] = 255
    changes = configure(mixup=1.0, cutmix=1.0)
    mixed = np.stack([mix(images, labels, 2, changes, key=(0, 0, step))[0] for step in range(2000)])
    blended = ((mixed > 0) & (mixed < 255)).any((1, 2, 3, 4))
    assert abs(blended.mean() - 0.5) < 5 * 0.5 / math.sqrt(2000)


def test_a_tiny_alpha_mixes_nothing() -> None:
    """Its share is 0 or 1: each image is itself, or all are their neighbours."""
    images, labels = make_constants(6)
    for step in range(20):
        mixed, soft = mix(images, labels, 6, configure(mixup=1e-4), key=(0, 0, step))
        now = soft.argmax(1)
        assert now.tolist() in (labels.tolist(), neighbours(6))
        assert np.array_equal(soft, np.eye(6, dtype=np.float32)[now])
        assert np.array_equal(mixed, images[now])


@pytest.mark.parametrize("changes", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}], ids=str)
@pytest.mark.parametrize("total", [0, 1, 2, 5, 8])
def test_a_part_of_a_step_is_mixed_as_the_whole(changes: dict[str, float], total: int) -> None:
    images, labels = make_images(total), np.arange(total) % 3
    for step in range(4):
        whole = mix(images, labels, 3, configure(**changes), key=(1, 2, step))
        for first in range(total + 1):
            for end in range(first, total + 1):
                start, stop = with_partners(first, end, total)
                assert start <= first <= end <= stop <= total
                assert (stop - start) - (end - first) <= 2, "one neighbour on each side"
                part = mix(images[start:stop], labels[start:stop], 3, configure(**changes), key=(1, 2, step))
                for mine, all_of_it in zip(part, whole, strict=True):
                    assert np.array_equal(mine[first - start : end - start], all_of_it[first:end])


def test_mixing_follows_from_its_key_and_leaves_what_it_was_given() -> None:
    images, labels = make_images(6), np.arange(6)
    images.flags.writeable = labels.flags.writeable = False
    changes = configure(mixup=0.5, cutmix=0.5)
    made = [mix(images, labels, 6, changes, key=key)[0] for key in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0))]
    assert all(not np.array_equal(a, b) for number, a in enumerate(made) for b in made[:number])
    random.seed(5)
    assert np.array_equal(mix(images, labels, 6, changes, key=(0, 0, 0))[0], made[0])


def test_mixing_is_wanted_where_an_alpha_is_given() -> None:
    assert [wanted(configure(mixup=a, cutmix=b)) for a, b in ((0, 0), (0.1, 0), (0, 0.1))] == [False, True, True]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_network_trains_on_soft_labels(accumulate: int, tmp_path: Path) -> None:
    words = ("dataset.augment.mixup=0.2", "dataset.augment.cutmix=1.0", f"dataset.cache_dir={tmp_path}")
    config, data, state = begin(
        *words, "train.batch_size=30", f"train.accumulate={accumulate}", "train.label_smoothing=0.1"
    )
    first = next(data.train(0))
    assert [batch.labels.shape for batch in first] == [(30 // accumulate, 10)] * accumulate
    state.network.model.eval()
    with torch.no_grad():
        hits = sum(int((state.network(b.images).argmax(1) == b.labels.argmax(1)).sum()) for b in first)
    state.network.model.train()
    steps = train_epoch(state, data.train(0), config.train, ALONE)
    next(steps)
    state.scores.flush(ALONE, state.step)
    assert (state.scores.epoch.count, state.scores.epoch.top1) == (30, hits)
    for _ in range(3):
        next(steps)
    state.scores.flush(ALONE, state.step)
    assert state.scores.epoch.count == 120
    assert all(math.isfinite(loss) and loss > 0 for loss in state.scores.epoch.losses)
