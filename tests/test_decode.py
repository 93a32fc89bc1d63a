"""One file to RGB pixels: what is odd comes out right, what is damaged is one DataError."""

from __future__ import annotations

import gc
import os
import re
import struct
import sys
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from odd_images import Odd, exif, noise, picture, save, turn, write_odd_images
from PIL import Image, ImageOps

from tinyexp.data.decode import EXTENSIONS, decode, describe
from tinyexp.errors import DataError


def save_flat(path: Path, colour: tuple[int, int, int] = (10, 200, 90), size: tuple[int, int] = (30, 20)) -> Path:
    return save(path, Image.new("RGB", size, colour))


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Odd]:
    return write_odd_images(tmp_path_factory.mktemp("odd"))


def test_every_odd_image_has_its_pixels(odd: dict[str, Odd]) -> None:
    wrong = {}
    for name, one in odd.items():
        if one.rgb is None:
            continue
        image = decode(str(one.path))
        if image.dtype != np.uint8 or image.shape != one.rgb.shape:
            wrong[name] = f"{image.dtype} {image.shape}"
        elif (off := int(np.abs(image.astype(int) - one.rgb).max())) > one.tolerance:
            wrong[name] = f"off by {off}"
    assert not wrong


def test_every_bad_file_is_told_with_its_path(odd: dict[str, Odd]) -> None:
    wrong = {}
    for name, one in odd.items():
        if one.rgb is None:
            with pytest.raises(DataError) as error:
                decode(str(one.path))
            message = str(error.value)
            start = f"{one.path} cannot be decoded: "
            if not message.startswith(start) or len(message) < len(start) + 5 or message.count(str(one.path)) != 1:
                wrong[name] = message
    assert not wrong


@pytest.mark.skipif(sys.platform != "linux", reason="open files are counted in /proc")
def test_an_error_that_is_kept_holds_no_file_open(odd: dict[str, Odd]) -> None:
    before, errors = len(os.listdir("/proc/self/fd")), []  # noqa: PTH208
    for one in odd.values():
        try:
            decode(str(one.path))
            describe(str(one.path))
        except DataError as error:
            errors.append(error)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    assert len(errors) > 15
    del errors
    gc.collect()  # a file that was closed by its end alone is a ResourceWarning now


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nowhere.jpg", "No such file or directory"),
        ("empty.jpg", "it is empty"),
        ("text.jpg", "it is not an image that Pillow knows"),
        ("cut.jpg", r"image file is truncated \(\d+ bytes not processed\)"),
        ("float.tiff", "floating-point pixels .*store them in 8 or 16 bits"),
    ],
)
def test_reasons(odd: dict[str, Odd], name: str, reason: str) -> None:
    with pytest.raises(DataError, match=f"{name} cannot be decoded: {reason}$"):
        decode(str(odd[name].path))


def test_extensions_have_an_odd_image_each(odd: dict[str, Odd]) -> None:
    assert {".jpeg", ".tif"} | {Path(name).suffix for name in odd} == set(EXTENSIONS)


def test_a_plain_image_is_what_pillow_reads(tmp_path: Path) -> None:
    path = save(tmp_path / "x.jpg", noise(40, 60), quality=50)
    image = decode(str(path))
    with Image.open(path) as reference:
        assert np.array_equal(image, np.asarray(reference))
    assert not image.flags.writeable


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_that_of_pillow(tmp_path: Path, orientation: int) -> None:
    path = save(tmp_path / "x.jpg", turn(picture(), orientation), exif=exif(orientation))
    with Image.open(path) as image:
        assert np.array_equal(decode(str(path)), np.asarray(ImageOps.exif_transpose(image)))


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_an_orientation_that_is_none_is_upright(tmp_path: Path, orientation: int) -> None:
    path = save(tmp_path / "x.png", picture(), exif=exif(orientation))
    assert np.array_equal(decode(str(path)), picture())
    assert describe(str(path)).orientation == 1


# short_side


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tiff"])
@pytest.mark.parametrize(
    ("size", "short_side", "expected"),
    [
        ((300, 200), 100, (150, 100)),
        ((200, 301), 64, (64, 96)),
        ((333, 777), 41, (41, 96)),
        ((777, 333), 41, (96, 41)),
        ((1600, 1601), 100, (100, 100)),
        ((500, 500), 499, (499, 499)),
        ((90, 30), 30, (90, 30)),
        ((90, 30), 31, (90, 30)),
        ((1, 300), 8, (1, 300)),
        ((1000, 2), 1, (500, 1)),
    ],
)
def test_short_side_makes_smaller_and_never_larger(
    tmp_path: Path, suffix: str, size: tuple[int, int], short_side: int, expected: tuple[int, int]
) -> None:
    image = decode(str(save_flat(tmp_path / f"x{suffix}", size=size)), short_side)
    assert image.shape == (expected[1], expected[0], 3)
    assert np.all(np.abs(image.astype(int) - (10, 200, 90)) <= 2)


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tiff"])
@pytest.mark.parametrize("size", [(803, 601), (960, 640)])
def test_short_side_shows_the_same_image(tmp_path: Path, suffix: str, size: tuple[int, int], orientation: int) -> None:
    whole = np.asarray(Image.fromarray(picture()).resize(size, Image.Resampling.BICUBIC))
    path = save(tmp_path / f"x{suffix}", turn(whole, orientation), exif=exif(orientation))
    image = decode(str(path), 32)
    expected = Image.fromarray(whole).resize((image.shape[1], 32), Image.Resampling.BILINEAR)
    assert np.abs(image - np.asarray(expected, int)).max() <= 5


def test_short_side_has_the_jpeg_decoder_make_it_smaller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_flat(tmp_path / "x.jpg", size=(1000, 810))
    seen, resize = [], Image.Image.resize

    def spy(image: Image.Image, size: Any, resample: Any, box: Any) -> Image.Image:
        seen.append((image.size, box))
        return resize(image, size, resample, box)

    monkeypatch.setattr(Image.Image, "resize", spy)
    assert decode(str(path), 100).shape == (100, 123, 3)
    assert seen == [((125, 102), (0, 0, 125, 101.25))]  # of the last row a quarter is image


def test_short_side_antialiases(tmp_path: Path) -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::4] = 255  # where plain bilinear looks only between the stripes and sees 0
    image = decode(str(save(tmp_path / "x.png", stripes)), 16)
    assert np.all(np.abs(image[:, 1:-1].astype(int) - 64) <= 16)


def test_short_side_leaves_what_is_clear_white(tmp_path: Path) -> None:
    clear = np.zeros((64, 64, 4), np.uint8)
    assert np.all(decode(str(save(tmp_path / "x.png", clear)), 16) == 255)


# what Pillow does at its worst


@pytest.mark.parametrize(
    "error",
    [
        struct.error("unpack requires"),
        KeyError("P"),
        IndexError("index"),
        ValueError(""),
        SyntaxError("not a TIFF"),
        EOFError(),
        OverflowError("too large"),
        zlib.error("Error -3"),
        TypeError("None"),
        RecursionError("depth"),
        OSError("no strerror"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whatever_pillow_raises_is_a_data_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    path = save_flat(tmp_path / "x.png")

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(Image.Image, "load", fail)
    with pytest.raises(DataError, match=r"x.png cannot be decoded: \S") as raised:
        decode(str(path))
    assert raised.value.__cause__ is error


@pytest.mark.parametrize("error", [MemoryError(), KeyboardInterrupt()], ids=["memory", "interrupt"])
def test_what_says_nothing_of_the_file_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    path = save_flat(tmp_path / "x.png")

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(Image.Image, "load", fail)
    with pytest.raises(type(error)):
        decode(str(path))


def test_a_folder_or_an_impossible_name_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be decoded: Is a directory"):
        decode(str(tmp_path))
    with pytest.raises(DataError, match="null byte"):
        decode("a\0b.png")


def test_a_large_image_is_no_warning_and_a_huge_one_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(save(tmp_path / "x.png", picture()))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", picture().size // 3 - 1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert np.array_equal(decode(path), picture())
        assert describe(path).format == "PNG"
    assert not caught
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match="exceeds limit of 200 pixels"):
        decode(path)


@pytest.mark.parametrize("seed", range(4))
def test_random_damage_is_a_data_error_or_an_image(
    odd: dict[str, Odd], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)  # where the damage is in the size
    random = np.random.default_rng(seed)
    failed = 0
    for name, one in odd.items():
        if one.rgb is None:
            continue
        content = bytearray(one.path.read_bytes())
        for place in random.integers(0, len(content), 3):
            content[place] = random.integers(256)
        path = tmp_path / name
        path.write_bytes(content if random.integers(2) else content[: random.integers(len(content))])
        describe(str(path))
        try:
            image = decode(str(path))
        except DataError:
            failed += 1
        else:
            assert image.dtype == np.uint8
            assert image.shape[2:] == (3,)
    assert failed > 10


# describe


def test_describe_tells_what_the_file_is(odd: dict[str, Odd]) -> None:
    described = describe(str(odd["turned_6.jpg"].path))
    assert (described.format, described.size, described.mode) == ("JPEG", (16, 24), "RGB")
    assert (described.orientation, described.frames, described.transparent) == (6, 1, False)
    assert describe(str(odd["a_png.jpg"].path)).format == "PNG"
    assert describe(str(odd["frames.gif"].path)).frames == 2
    assert describe(str(odd["key.png"].path)).transparent
    assert describe(str(odd["rgb16.png"].path)).mode == "RGB;16B"
    assert describe(str(odd["text.jpg"].path)).format is None


def test_digest_is_of_the_bytes_alone(tmp_path: Path) -> None:
    first, second = save_flat(tmp_path / "a.png"), save_flat(tmp_path / "b.png")
    other = save_flat(tmp_path / "c.png", colour=(10, 200, 91))
    digests = [describe(str(path)).digest for path in (first, second, other)]
    assert digests[0] == digests[1] != digests[2]
    assert all(re.fullmatch("[0-9a-f]{16}", digest) for digest in digests)


def test_describe_needs_a_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"x.png cannot be read: No such file"):
        describe(str(tmp_path / "x.png"))
