"""Data sets as sources: what every one promises, IDX files good and damaged, downloads, digits and resizing.

Folders of images, Tiny ImageNet and CIFAR have a file each.
"""

from __future__ import annotations

import logging
import pickle
import socket
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import LEAN, PLAIN, component, write_idx, write_image, write_mnist
from omegaconf import OmegaConf

from tinyexp.compose import compose
from tinyexp.data import idx, resize
from tinyexp.data.digits import digits
from tinyexp.data.folder import imagefolder
from tinyexp.data.idx import fashion_mnist, mnist, read_idx
from tinyexp.data.source import ArraySplit, Source, Split, fingerprint, list_source, split_stratified
from tinyexp.data.store import decoded
from tinyexp.errors import ConfigError, DataError, NotFetchedError

CONF = Path(__file__).parent.parent / "conf"

needs_fashion = pytest.mark.skipif(
    not idx._find(idx._DEBIAN), reason="no Fashion-MNIST here: apt install dataset-fashion-mnist"
)


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of a machine without Debian's files and without a network."""

    def fail(folder: Path, download: bool) -> None:
        raise OSError("no\n  network")

    datasets = pytest.importorskip("torchvision.datasets")
    monkeypatch.setattr(idx, "_DEBIAN", tmp_path / "debian")
    monkeypatch.setattr(datasets, "MNIST", fail)
    monkeypatch.setattr(datasets, "FashionMNIST", fail)
    return tmp_path / "cache"


# every source


@pytest.fixture(params=["digits of 8", "digits of 33", "mnist", "imagefolder", "imagefolder of one size", "decoded"])
def make_source(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Source]:
    kind, root = request.param, tmp_path / "root"
    if kind.startswith("digits"):
        return lambda: digits(image_size=int(kind.split()[-1]))
    if kind == "mnist":
        write_mnist(root)
        return lambda: mnist(root=str(root), cache_dir=tmp_path / "cache")
    for number, name in enumerate(("train/ant/0", "train/ant/1", "train/bee/0", "val/ant/0", "val/bee/0")):
        size = (9, 9) if kind.endswith("size") else (9 + number, 12)
        write_image(root / f"{name}.png", (number * 40, 1, 2), size)
    loader = replace(PLAIN.loader, cache_dir=str(tmp_path / "cache"))

    def from_folder() -> Source:
        source = imagefolder(root=str(root), cache_dir=tmp_path / "cache")
        return decoded(source, loader) if kind == "decoded" else source

    return from_folder


def test_source_keeps_its_promises(make_source: Callable[[], Source]) -> None:
    source = make_source()
    assert len(source.fingerprint) == 32
    assert source.origin
    for split in (source.train, source.val):
        count = len(split.labels)
        assert split.labels.shape == (count,)
        assert split.labels.dtype == np.int64
        assert set(split.labels.tolist()) == set(range(len(source.classes)))
        index = np.array([count - 1, 0, count - 1])
        images = split.fetch(index)
        assert len(images) == 3
        for image in images:
            assert image.dtype == np.uint8
            assert image.ndim == 3
            assert image.shape[2] == source.channels
            assert image.flags.c_contiguous
        assert np.array_equal(images[0], images[2])
        assert np.array_equal(images[1], split.fetch(np.array([0]))[0])
        assert not np.array_equal(images[0], images[1])
        assert len(split.fetch(index[:0])) == 0
        unpickled: Split = pickle.loads(pickle.dumps(split))
        assert all(map(np.array_equal, unpickled.fetch(index), images))
        assert np.array_equal(unpickled.labels, split.labels)


def test_source_is_the_same_each_time(make_source: Callable[[], Source]) -> None:
    first, second = make_source(), make_source()
    assert first.fingerprint == second.fingerprint
    assert first.classes == second.classes
    assert np.array_equal(first.train.labels, second.train.labels)
    index = np.arange(len(first.val.labels))
    assert all(map(np.array_equal, first.val.fetch(index), second.val.fetch(index)))


def small_split(labels: list[int], channels: int = 1) -> ArraySplit:
    return ArraySplit(np.zeros((len(labels), 2, 2, channels), np.uint8), np.array(labels, np.int64))


@pytest.mark.parametrize(
    ("classes", "channels", "train", "val", "message"),
    [
        (("a",), 1, [0], [0], "at least 2 classes, got \\['a'\\]"),
        (("a", "b"), 0, [0], [0], "at least 1 channel, got 0"),
        (("a", "b"), 1, [], [0], "train split needs at least one sample"),
        (("a", "b"), 1, [0], [], "val split needs at least one sample"),
        (("a", "b"), 1, [0, 1], [0, 2], "val labels must lie in 0..1.*got 0..2"),
        (("a", "b"), 1, [-1, 1], [0], "train labels must lie in 0..1.*got -1..1"),
    ],
)
def test_source_checks_at_the_border(
    classes: tuple[str, ...], channels: int, train: list[int], val: list[int], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        Source(classes, channels, small_split(train), small_split(val), "0")


def three_channels() -> Source:
    return Source(("a", "b"), 3, small_split([0, 1], 3), small_split([0, 1], 3), "0")


def no_source() -> str:
    return "digits"


def test_listed_source_fits_its_normalisation() -> None:
    config = compose([*LEAN, "dataset=digits"])
    assert list_source(config, fetch=False).fingerprint == digits(image_size=28).fingerprint
    config = replace(config, dataset=component("dataset", f"{__name__}.three_channels"))
    with pytest.raises(ConfigError, match=r"dataset\.mean and dataset\.std need 3 numbers.*got \(0\.3056,\)"):
        list_source(config, fetch=False)
    computed = replace(config, loader=replace(config.loader, normalize="auto"))
    assert list_source(computed, fetch=False).channels == 3
    with pytest.raises(ConfigError, match=r"dataset\._target_=\S*no_source must return a Source, got str"):
        list_source(replace(config, dataset=component("dataset", f"{__name__}.no_source")), fetch=False)


def test_fingerprint_tells_contents_apart() -> None:
    array = np.arange(6, dtype=np.uint8)
    parts = [(array,), (array[::-1],), (array.reshape(2, 3),), (array, 1), (array, "1"), (array[:3], array[3:])]
    assert len({fingerprint(*part) for part in parts}) == len(parts)
    assert fingerprint(array[::2]) == fingerprint(array[::2].copy())


@pytest.mark.parametrize("every", [2, 5, 10])
def test_split_is_stratified(every: int) -> None:
    labels = np.random.default_rng(0).integers(0, 4, 203)
    train, val = split_stratified(labels, every=every, seed=0)
    assert np.array_equal(np.sort(np.concatenate([train, val])), np.arange(203))
    share = np.bincount(labels) / every
    assert np.all(np.abs(np.bincount(labels[val]) - share) < 1)
    assert not np.array_equal(val, split_stratified(labels, every=every, seed=1)[1])


def test_split_is_the_same_on_every_machine() -> None:
    assert split_stratified(np.arange(40) % 2, every=5, seed=0)[1].tolist() == [1, 2, 4, 14, 27, 31, 38, 39]


# resizing


@pytest.mark.parametrize("size", [1, 5, 28, 40])
def test_resize_keeps_a_constant(size: int) -> None:
    images = np.full((3, 28, 28, 2), (255, 7), np.uint8)
    resized = resize.resize(images, size)
    assert resized.shape == (3, size, size, 2)
    assert resized.dtype == np.uint8
    assert resized.flags.c_contiguous
    assert np.all(resized == (255, 7))


def test_resize_antialiases() -> None:
    stripes = np.zeros((1, 32, 32, 1), np.uint8)
    stripes[:, :, ::4] = 255  # where plain bilinear looks only between the stripes and sees 0
    assert np.all(np.abs(resize.resize(stripes, 8)[:, :, 1:-1].astype(int) - 64) <= 16)


def test_resize_knows_rows_from_columns() -> None:
    corner = np.zeros((1, 4, 4, 1), np.uint8)
    corner[0, 0, 3] = 255
    resized = resize.resize(corner, 8)[0, :, :, 0]
    assert resized[0, 7] == 255
    assert resized[7, 0] == 0


def test_resized_once_and_only_when_an_image_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = resize.resize
    monkeypatch.setattr(resize, "resize", lambda *given: calls.append(given) or original(*given))
    source = digits(image_size=12)
    assert len(source.train.labels) == 1437
    assert not calls
    for index in (0, 7):
        assert source.train.fetch(np.array([index])).shape == (1, 12, 12, 1)
    assert len(calls) == 1


# the data sets


def test_digits_are_those_of_uci() -> None:
    source = digits(image_size=8)
    assert (len(source.train.labels), len(source.val.labels)) == (1437, 360)
    counts = np.bincount(source.train.labels) + np.bincount(source.val.labels)
    assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    ink = sum(int(split.fetch(np.arange(len(split.labels))).sum()) for split in (source.train, source.val))
    assert ink / 255 * 16 == pytest.approx(561718, rel=1e-3)  # the sum of scikit-learn's load_digits().images
    assert source.fingerprint != digits(image_size=28).fingerprint


@needs_fashion
def test_fashion_mnist_from_debian(tmp_path: Path) -> None:
    source = fashion_mnist(root=None, cache_dir=tmp_path, fetch=False)
    assert source.classes[9] == "Ankle boot"
    assert source.origin == str(idx._DEBIAN)
    assert np.bincount(source.train.labels).tolist() == [6000] * 10
    assert np.bincount(source.val.labels).tolist() == [1000] * 10
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["digits", pytest.param("fashion_mnist", marks=needs_fashion)])
def test_conf_has_the_mean_and_std_of_the_train_split(name: str, tmp_path: Path) -> None:
    conf = OmegaConf.load(CONF / "dataset" / f"{name}.yaml")
    split = {
        "digits": lambda: digits(image_size=conf.image_size),
        "fashion_mnist": lambda: fashion_mnist(root=None, cache_dir=tmp_path),
    }[name]().train
    images = split.fetch(np.arange(len(split.labels)))
    assert images.shape[1:] == (conf.image_size, conf.image_size, 1)
    share = np.bincount(images.ravel(), minlength=256) / images.size
    mean = share @ np.arange(256) / 255
    std = np.sqrt(share @ (np.arange(256) / 255 - mean) ** 2)
    assert list(conf.mean) == [pytest.approx(mean, abs=5e-5)]
    assert list(conf.std) == [pytest.approx(std, abs=5e-5)]


# IDX files


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("below", [".", "MNIST/raw"])
def test_idx_layouts_are_one_data_set(tmp_path: Path, suffix: str, below: str) -> None:
    write_mnist(tmp_path / "root" / below, suffix)
    source = mnist(root=str(tmp_path / "root"), cache_dir=tmp_path / "cache", fetch=False)
    reference = mnist(root=str(write_mnist(tmp_path / "reference")), cache_dir=tmp_path / "cache")
    assert source.fingerprint == reference.fingerprint
    assert np.array_equal(source.train.fetch(np.arange(30)), reference.train.fetch(np.arange(30)))
    assert source.val.labels.tolist() == [*range(10), *range(10)]
    assert not (tmp_path / "cache").exists()


def test_idx_files_are_read_row_by_row(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (30, 5, 7), dtype=np.uint8)
    write_idx(tmp_path / "train-images-idx3-ubyte", images)
    source = mnist(root=str(tmp_path), cache_dir=tmp_path)
    assert np.array_equal(source.train.fetch(np.arange(30)), images[..., None])


def cut(content: bytes) -> bytes:
    return content[:-100]


@pytest.mark.parametrize(
    ("name", "suffix", "damage", "message"),
    [
        ("train-images-idx3-ubyte", "", cut, "says, 30 x 28 x 28, got 23420"),
        ("train-images-idx3-ubyte", "", lambda content: content + b"x", "says, 30 x 28 x 28, got 23521"),
        ("t10k-images-idx3-ubyte", ".gz", cut, "cannot be read .*delete it"),
        ("t10k-images-idx3-ubyte", ".gz", lambda content: content[:900] + b"oops" + content[904:], "cannot be read"),
        ("t10k-labels-idx1-ubyte", "", lambda content: b"", "must start as an IDX file, 00000801, got an empty file"),
        (
            "t10k-labels-idx1-ubyte",
            "",
            lambda content: b"<html>404",
            "must start as an IDX file, 00000801, got 3c68746d",
        ),
        ("t10k-labels-idx1-ubyte", "", lambda content: content[:6], "must start as an IDX file"),
        ("t10k-labels-idx1-ubyte", "", lambda content: content[:7] + b"\0", "says, 0, got 0"),
        ("train-labels-idx1-ubyte", "", lambda content: content[:-1] + b"\x0a", "must have labels in 0..9, got 10"),
        ("train-labels-idx1-ubyte", "", lambda content: content[:7] + b"\x02ab", "a label an image, got 2 for 30"),
    ],
)
def test_damaged_idx_is_named(
    tmp_path: Path, name: str, suffix: str, damage: Callable[[bytes], bytes], message: str
) -> None:
    path = write_mnist(tmp_path, suffix) / f"{name}{suffix}"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=f"{name}{suffix} .*{message}"):
        mnist(root=str(tmp_path), cache_dir=tmp_path)


def test_idx_of_other_dimensions_is_refused(tmp_path: Path) -> None:
    write_idx(tmp_path / "labels", np.zeros(5, np.uint8))
    with pytest.raises(DataError, match="must start as an IDX file, 00000803, got 00000801"):
        read_idx(tmp_path / "labels", dimensions=3)


def test_root_without_files_is_said(nowhere: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (write_mnist(tmp_path / "debian") / "unrelated").touch()
    (write_mnist(tmp_path / "half") / idx._FILES[3]).unlink()
    with caplog.at_level(logging.WARNING):
        source = fashion_mnist(root=str(tmp_path / "half"), cache_dir=nowhere)
    assert len(source.train.labels) == 30
    assert f"dataset.root={tmp_path / 'half'} lacks files of FashionMNIST" in caplog.text
    with pytest.raises(DataError, match=r"^MNIST is not here"):  # those are clothes
        mnist(root=None, cache_dir=nowhere)


def test_half_of_torchvisions_folder_is_an_error(nowhere: Path, tmp_path: Path) -> None:
    (write_mnist(tmp_path / "MNIST/raw") / idx._FILES[2]).unlink()
    with pytest.raises(DataError, match=rf"MNIST/raw lacks files of MNIST \(.*{idx._FILES[2]}.*remove it"):
        mnist(root=str(tmp_path), cache_dir=nowhere)


# downloads


def below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


def downloads(monkeypatch: pytest.MonkeyPatch, name: str = "MNIST", pause: float = 0.0) -> list[Path]:
    """Have torchvision's class write its files; returns where each call did so."""
    calls: list[Path] = []

    def fetch(folder: Path, download: bool) -> None:
        assert download
        calls.append(folder)
        time.sleep(pause)
        (write_mnist(folder / name / "raw") / "more.gz").touch()

    monkeypatch.setattr(pytest.importorskip("torchvision.datasets"), name, fetch)
    return calls


def test_nowhere_is_one_message_with_every_way(nowhere: Path) -> None:
    with pytest.raises(DataError, match=r"^FashionMNIST is not here") as error:
        fashion_mnist(root=None, cache_dir=nowhere)
    for way in (*idx._FILES, "dataset.root=FOLDER", "apt install", f"to {nowhere}/FashionMNIST/raw", "now: no network"):
        assert way in str(error.value)
    assert not isinstance(error.value, NotFetchedError)
    with pytest.raises(DataError, match=r"^MNIST is not here") as error:
        mnist(root=None, cache_dir=nowhere)
    assert "apt install" not in str(error.value)
    assert below(nowhere) == []


def test_nothing_is_fetched_that_must_not_be(
    nowhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls = downloads(monkeypatch)
    with pytest.raises(NotFetchedError, match=f"MNIST is not here yet.*prepare.*to {nowhere}/MNIST/raw"):
        mnist(root=None, cache_dir=nowhere, fetch=False)
    with pytest.raises(NotFetchedError, match=f"to {tmp_path}/mine/MNIST/raw"):
        mnist(root=str(tmp_path / "mine"), cache_dir=nowhere, fetch=False)
    assert not calls
    assert not any(tmp_path.iterdir())
    assert "lacks files" in caplog.text


@pytest.mark.parametrize("own", [False, True])
def test_download_is_read_and_kept(nowhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: bool) -> None:
    calls = downloads(monkeypatch)
    root, home = (str(tmp_path / "mine"), tmp_path / "mine") if own else (None, nowhere)
    downloaded = mnist(root=root, cache_dir=nowhere)
    assert mnist(root=root, cache_dir=nowhere, fetch=False).fingerprint == downloaded.fingerprint
    assert len(calls) == 1
    assert downloaded.origin == str(home / "MNIST/raw")
    assert below(tmp_path) == sorted(f"{home.name}/MNIST/raw/{name}" for name in (*idx._FILES, "more.gz"))


def test_two_threads_make_one_download(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = downloads(monkeypatch, pause=0.3)
    together = threading.Barrier(2, timeout=10)

    def load(_: int) -> Source:
        together.wait()
        return mnist(root=None, cache_dir=nowhere)

    stdout = sys.stdout
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(load, range(2))
    assert sys.stdout is stdout
    assert socket.getdefaulttimeout() is None
    assert len(calls) == 1
    assert one.fingerprint == other.fingerprint


def test_download_that_breaks_off_leaves_nothing(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(folder: Path, download: bool) -> None:
        (write_mnist(folder / "MNIST/raw") / idx._FILES[0]).unlink()
        raise RuntimeError("refused")

    monkeypatch.setattr(pytest.importorskip("torchvision.datasets"), "MNIST", fetch)
    with pytest.raises(DataError, match="failed now: refused"):
        mnist(root=None, cache_dir=nowhere)
    assert below(nowhere) == []
    downloads(monkeypatch)
    assert len(mnist(root=None, cache_dir=nowhere).train.labels) == 30


def test_download_prints_nothing_and_does_not_wait_for_ever(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fetch(folder: Path, **_: Any) -> None:
        sys.stdout.write(f"fetching, {socket.getdefaulttimeout()}\n")
        raise RuntimeError("refused")

    monkeypatch.setattr(pytest.importorskip("torchvision.datasets"), "MNIST", fetch)
    with pytest.raises(DataError, match="refused"):
        mnist(root=None, cache_dir=nowhere)
    out, err = capsys.readouterr()
    assert out == ""
    assert "fetching, 20.0\n" in err
    assert socket.getdefaulttimeout() is None
