"""Random boxes against torchvision's by their distributions, resized pixels against torchvision's one by one."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from distributions import kolmogorov_smirnov, ks_limit
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import CenterCrop, InterpolationMode, RandomResizedCrop, Resize
from torchvision.transforms import functional as F

from tinyexp import seeds
from tinyexp.data import geometry
from tinyexp.data.geometry import crop_and_resize, random_boxes, resize_and_centre, sizes_of

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
DRAWN = 20_000


def draw(sizes: NDArray[np.int64], seed: int = 0) -> NDArray[np.float64]:
    return seeds.uniform(seed, index=np.arange(len(sizes)), draws=geometry.DRAWS)


def make_images(*sizes: tuple[int, int], channels: int = 3, seed: int = 0) -> list[NDArray[np.uint8]]:
    """Noise and slopes, whose resized pixels differ from each other."""
    random = np.random.default_rng(seed)
    made = []
    for height, width in sizes:
        slope = np.linspace(0, 120, height)[:, None, None] + np.linspace(0, 80, width)[None, :, None]
        made.append((slope + random.integers(0, 56, (height, width, channels))).astype(np.uint8))
    return made


# boxes


@pytest.mark.parametrize(
    ("size", "scale", "ratio"),
    [
        ((64, 64), SCALE, RATIO),
        ((500, 375), SCALE, RATIO),
        ((7, 3), SCALE, RATIO),
        ((64, 64), (0.3, 0.6), (0.5, 3.0)),
        pytest.param((20, 400), SCALE, RATIO, marks=pytest.mark.slow),
        pytest.param((400, 20), SCALE, RATIO, marks=pytest.mark.slow),
        pytest.param((1, 50), SCALE, RATIO, marks=pytest.mark.slow),
        pytest.param((50, 1), (0.01, 0.2), (0.1, 0.9), marks=pytest.mark.slow),
        pytest.param((500, 375), (0.9, 1.0), (1.0, 1.0), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_boxes_are_distributed_as_torchvisions(
    size: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float]
) -> None:
    sizes = np.tile(np.array(size), (DRAWN, 1))
    mine = random_boxes(sizes, draw(sizes), scale, ratio)
    torch.manual_seed(0)
    picture = torch.empty(1, *size, dtype=torch.uint8)
    theirs = np.array([RandomResizedCrop.get_params(picture, list(scale), list(ratio)) for _ in range(DRAWN)])
    top, left, height, width = mine.T
    assert min(top.min(), left.min()) >= 0
    assert min(height.min(), width.min()) >= 1
    assert (top + height).max() <= size[0]
    assert (left + width).max() <= size[1]

    def look(boxes: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        top, left, height, width = boxes.astype(np.float64).T
        centred = (top == (size[0] - height) // 2) & (left == (size[1] - width) // 2)
        return {
            "area": height * width,
            "aspect": width / height,
            "top": top / np.maximum(1, size[0] - height),
            "left": left / np.maximum(1, size[1] - width),
            "top beside height": top / np.maximum(1, size[0] - height) + height / size[0],
            "in the middle": centred.astype(np.float64),
            "longest in the middle": (centred & ((height == size[0]) | (width == size[1]))).astype(np.float64),
        }

    for name, values in look(mine).items():
        distance = kolmogorov_smirnov(values, look(theirs)[name])
        assert distance < ks_limit(DRAWN), name


@pytest.mark.parametrize(
    ("size", "ratio"),
    [
        ((20, 400), RATIO),
        ((400, 20), RATIO),
        ((1, 50), RATIO),
        ((50, 1), RATIO),
        ((7, 3), RATIO),
        ((64, 64), (2.0, 3.0)),
        ((64, 64), (0.2, 0.3)),
        ((65, 64), (2.1, 2.1)),
        ((500, 375), (0.9, 1.1)),
        ((375, 500), (0.5, 0.7)),
        ((33, 100), (2.9, 2.9)),
    ],
    ids=str,
)
def test_where_nothing_fits_the_box_is_torchvisions(size: tuple[int, int], ratio: tuple[float, float]) -> None:
    sizes = np.tile(np.array(size), (50, 1))
    mine = random_boxes(sizes, draw(sizes), (1.0, 1.0), ratio)
    picture = torch.empty(1, *size, dtype=torch.uint8)
    theirs = RandomResizedCrop.get_params(picture, [1.0, 1.0], list(ratio))
    assert {tuple(box) for box in mine.tolist()} == {theirs}


def test_the_whole_image_where_nothing_fits_but_its_own_aspect() -> None:
    sizes = np.array([[500, 375], [7, 3], [50, 60]])
    boxes = random_boxes(sizes, np.zeros((3, geometry.DRAWS)), (1.0, 1.0), (0.1, 2.0))  # ten tries of aspect 0.1
    assert boxes.tolist() == [[0, 0, *size] for size in sizes.tolist()]


def test_a_box_has_at_least_one_pixel() -> None:
    sizes = np.array([[1, 1], [1, 300], [300, 1], [2, 2]])
    for ratio in ((50.0, 60.0), (0.01, 0.02), RATIO):
        boxes = random_boxes(sizes, draw(sizes), (1e-6, 1e-6), ratio)
        assert boxes[:, 2:].min() == 1
        assert (boxes[:, :2] + boxes[:, 2:] <= sizes).all()


def test_a_box_does_not_depend_on_the_others() -> None:
    sizes = np.random.default_rng(0).integers(1, 400, (200, 2))
    draws = draw(sizes)
    whole = random_boxes(sizes, draws, SCALE, RATIO)
    for chosen in (np.arange(200)[::-1], np.array([7]), np.array([3, 3, 199]), np.arange(0)):
        assert np.array_equal(random_boxes(sizes[chosen], draws[chosen], SCALE, RATIO), whole[chosen])


def test_the_extremes_of_the_draws_stay_inside() -> None:
    sizes = np.array([[64, 64], [1, 1], [20, 400], [3, 7]])
    for value in (0.0, 1.0 - 2**-53):
        boxes = random_boxes(sizes, np.full((4, geometry.DRAWS), value), SCALE, RATIO)
        assert boxes.min() >= 0
        assert (boxes[:, :2] + boxes[:, 2:] <= sizes).all()


def test_sizes_are_height_and_width() -> None:
    assert sizes_of(make_images((3, 5), (1, 9))).tolist() == [[3, 5], [1, 9]]
    assert sizes_of(np.zeros((2, 3, 5, 1), np.uint8)).tolist() == [[3, 5], [3, 5]]
    assert sizes_of([]).shape == sizes_of(np.zeros((0, 3, 5, 1), np.uint8)).shape == (0, 2)


# pixels

SIZES = [(1, 1), (1, 50), (50, 1), (2, 3), (7, 3), (31, 33), (64, 64), (90, 20), (20, 90), (375, 500), (500, 333)]


def as_pillow(image: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)


def as_tensor(image: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(image).permute(2, 0, 1).contiguous()


def assert_near(mine: NDArray[np.uint8], theirs: Image.Image | torch.Tensor) -> None:
    """Within one grey level, (H, W, C); Pillow rounds twice, so that one pixel in a thousand may differ by two."""
    pillow = isinstance(theirs, Image.Image)
    other = np.asarray(theirs) if pillow else theirs.permute(1, 2, 0).numpy()
    other = other.reshape(*other.shape[:2], -1)
    assert mine.shape == other.shape
    apart = np.abs(mine.astype(int) - other.astype(int))
    assert apart.max() <= (2 if pillow else 1)
    assert (apart > 1).mean() < 1e-3


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [1, 5, 28, 64, 224])
def test_a_resized_crop_is_torchvisions(size: int, channels: int) -> None:
    images = make_images(*SIZES, channels=channels)
    sizes = sizes_of(images)
    random = random_boxes(sizes, draw(sizes, seed=size), SCALE, RATIO)
    whole = np.concatenate([np.zeros_like(sizes), sizes], 1)
    for boxes in (random, whole):
        cut = crop_and_resize(images, boxes, size, channels)
        assert (cut.shape, cut.dtype) == ((len(images), size, size, channels), np.uint8)
        for image, box, mine in zip(images, boxes.tolist(), cut, strict=True):
            for picture in (as_pillow(image), as_tensor(image)):
                theirs = F.resized_crop(picture, *box, [size, size], InterpolationMode.BILINEAR, antialias=True)
                assert_near(mine, theirs)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("resize", "size"), [(1, 1), (5, 4), (32, 32), (33, 28), (36, 33), (256, 224)])
def test_resize_and_centre_is_torchvisions(resize: int, size: int, channels: int) -> None:
    images = make_images(*SIZES, (resize, resize), (resize, resize + 3), (size + 1, resize), channels=channels)
    images = [image for image in images if max(image.shape) * resize / min(image.shape[:2]) < 4000]
    cut = resize_and_centre(images, resize, size, channels)
    assert (cut.shape, cut.dtype) == ((len(images), size, size, channels), np.uint8)
    for image, mine in zip(images, cut, strict=True):
        # torch resizes a float tensor wrongly to a width of 1 px, and torchvision goes by way of float
        for picture in (as_pillow(image), as_tensor(image))[: 2 if resize > 1 else 1]:
            assert_near(mine, CenterCrop(size)(Resize(resize, antialias=True)(picture)))


def test_what_has_the_size_already_is_as_it_was() -> None:
    images = np.stack(make_images((9, 9), (9, 9)))
    assert np.array_equal(resize_and_centre(images, 9, 9, 3), images)
    assert np.array_equal(crop_and_resize(images, np.tile([0, 0, 9, 9], (2, 1)), 9, 3), images)
    assert np.array_equal(crop_and_resize(images, np.tile([2, 1, 5, 5], (2, 1)), 5, 3), images[:, 2:7, 1:6])


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize(("height", "width"), [(9, 9), (40, 31), (6, 50), (1, 1)])
@pytest.mark.parametrize("size", [4, 9, 30])
def test_an_array_and_a_list_give_the_same(height: int, width: int, size: int, channels: int) -> None:
    images = make_images(*[(height, width)] * 5, channels=channels)
    sizes = sizes_of(images)
    boxes = random_boxes(sizes, draw(sizes), SCALE, RATIO)
    for change in (
        lambda given: crop_and_resize(given, boxes, size, channels),
        lambda given: resize_and_centre(given, size + 2, size, channels),
    ):
        assert np.array_equal(change(images), change(np.stack(images)))


def test_no_images_give_none() -> None:
    for none in ([], np.zeros((0, 9, 9, 3), np.uint8)):
        assert crop_and_resize(none, np.zeros((0, 4), np.int64), 5, 3).shape == (0, 5, 5, 3)
        assert resize_and_centre(none, 6, 5, 3).shape == (0, 5, 5, 3)


def test_what_must_not_be_written_is_read() -> None:
    """A mapped file's pixels: not changed, and torch does not warn of them."""
    images = make_images((9, 9), (9, 9))
    before = np.stack(images)
    stacked = before.copy()
    for image in (*images, stacked):
        image.flags.writeable = False
    boxes = np.array([[0, 0, 9, 9], [2, 0, 7, 9]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for given in (images, stacked):
            for size in (4, 9, 12):
                crop_and_resize(given, boxes, size, 3)
                resize_and_centre(given, size, size, 3)
    assert np.array_equal(np.stack(images), before)
    assert np.array_equal(stacked, before)
