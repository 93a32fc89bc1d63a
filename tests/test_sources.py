"""Data sets as sources: what every one promises, then each one's files, good and damaged."""

from __future__ import annotations

import logging
import pickle
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers import write_idx, write_image, write_mnist
from omegaconf import OmegaConf
from PIL import Image

from tinyexp.data import idx, resize
from tinyexp.data.digits import digits
from tinyexp.data.folder import decode, imagefolder
from tinyexp.data.idx import fashion_mnist, mnist, read_idx
from tinyexp.data.source import ArraySplit, Source, Split, fingerprint, split_stratified
from tinyexp.errors import DataError

CONF = Path(__file__).parent.parent / "conf"

needs_fashion = pytest.mark.skipif(
    not idx._find(idx._DEBIAN), reason="no Fashion-MNIST here: apt install dataset-fashion-mnist"
)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """root/{train,val}/{ant,bee}: 3 ants and 2 bees to train, one of each to val."""
    for name in (
        "train/bee/b.PNG",
        "train/bee/a.jpg",
        "train/ant/deep/er/x.Jpeg",
        "train/ant/2.bmp",
        "train/ant/10.gif",
    ):
        write_image(tmp_path / "tree" / name)
    for name in ("val/ant/v.webp", "val/bee/v.tiff"):
        write_image(tmp_path / "tree" / name)
    return tmp_path / "tree"


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without Debian's files, without a cache and without a network."""

    def fail(name: str, home: Path) -> None:
        raise OSError("no\n  network")

    monkeypatch.setattr(idx, "_DEBIAN", tmp_path / "debian")
    monkeypatch.setattr(idx, "_CACHE", tmp_path / "cache")
    monkeypatch.setattr(idx, "_download", fail)


# every source


@pytest.fixture(params=["digits", "mnist", "imagefolder"])
def make_source(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[int], Source]:
    """A source by its image size."""
    if request.param == "digits":
        return lambda size: digits(image_size=size)
    if request.param == "mnist":
        root = str(write_mnist(tmp_path))
        return lambda size: mnist(root=root, image_size=size)
    root = str(request.getfixturevalue("tree"))
    return lambda size: imagefolder(root=root, image_size=size)


@pytest.mark.parametrize("size", [8, 28, 33])
def test_source_keeps_its_promises(make_source: Callable[[int], Source], size: int) -> None:
    source = make_source(size)
    assert source.image_shape[1:] == (size, size)
    for split in (source.train, source.val):
        count = len(split.labels)
        index = np.array([count - 1, 0, count - 1])
        images = split.fetch(index)
        assert images.shape == (3, *source.image_shape)
        assert images.dtype == np.uint8
        assert images.flags.c_contiguous
        assert split.labels.dtype == np.int64
        assert np.array_equal(images[0], images[2])
        assert np.array_equal(images[1:2], split.fetch(np.array([0])))
        assert split.fetch(index[:0]).shape == (0, *source.image_shape)
        unpickled: Split = pickle.loads(pickle.dumps(split))
        assert np.array_equal(unpickled.fetch(index), images)
        assert np.array_equal(unpickled.labels, split.labels)


def test_source_is_the_same_each_time(make_source: Callable[[int], Source]) -> None:
    first, second = make_source(28), make_source(28)
    assert first.fingerprint == second.fingerprint
    assert np.array_equal(first.train.labels, second.train.labels)
    index = np.arange(len(first.val.labels))
    assert np.array_equal(first.val.fetch(index), second.val.fetch(index))


@pytest.mark.parametrize(
    ("classes", "train", "val", "message"),
    [
        (("a",), [0], [0], "at least 2 classes, got \\['a'\\]"),
        (("a", "b"), [], [0], "train split needs at least one sample"),
        (("a", "b"), [0], [], "val split needs at least one sample"),
        (("a", "b"), [0, 1], [0, 2], "val labels must lie in 0..1.*got 0..2"),
        (("a", "b"), [-1, 1], [0], "train labels must lie in 0..1.*got -1..1"),
    ],
)
def test_source_checks_at_the_border(classes: tuple[str, ...], train: list[int], val: list[int], message: str) -> None:
    def split(labels: list[int]) -> ArraySplit:
        return ArraySplit(np.zeros((len(labels), 1, 2, 2), np.uint8), np.array(labels, np.int64))

    with pytest.raises(DataError, match=message):
        Source(classes, (1, 2, 2), split(train), split(val), "0")


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
    images = np.full((3, 2, 28, 28), 255, np.uint8)
    resized = resize.resize(images, size)
    assert resized.shape == (3, 2, size, size)
    assert np.all(resized == 255)


def test_resize_in_chunks_equals_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.random.default_rng(0).integers(0, 256, (7, 1, 8, 8), dtype=np.uint8)
    whole = resize.resize(images, 11)
    monkeypatch.setattr(resize, "_CHUNK", 3)
    assert np.array_equal(resize.resize(images, 11), whole)


def test_resize_antialiases() -> None:
    stripes = np.zeros((1, 1, 32, 32), np.uint8)
    stripes[..., ::4] = 255  # where plain bilinear looks only between the stripes and sees 0
    assert np.all(np.abs(resize.resize(stripes, 8)[..., 1:-1].astype(int) - 64) <= 16)


def test_resize_refuses_nothing() -> None:
    with pytest.raises(DataError, match=r"dataset\.image_size must be at least 1 px, got 0"):
        digits(image_size=0)


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
def test_fashion_mnist_from_debian() -> None:
    source = fashion_mnist(root=None, image_size=28)
    assert source.classes[9] == "Ankle boot"
    assert np.bincount(source.train.labels).tolist() == [6000] * 10
    assert np.bincount(source.val.labels).tolist() == [1000] * 10


@pytest.mark.parametrize(
    ("name", "load"),
    [("digits", digits), pytest.param("fashion_mnist", lambda **k: fashion_mnist(root=None, **k), marks=needs_fashion)],
)
def test_conf_has_the_mean_and_std_of_the_train_split(name: str, load: Callable[..., Source]) -> None:
    conf = OmegaConf.load(CONF / "dataset" / f"{name}.yaml")
    split = load(image_size=conf.image_size).train
    images = split.fetch(np.arange(len(split.labels))) / 255.0
    assert list(conf.mean) == [pytest.approx(images.mean(), abs=5e-5)]
    assert list(conf.std) == [pytest.approx(images.std(), abs=5e-5)]


# IDX files


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("below", [".", "MNIST/raw"])
def test_idx_layouts_are_one_data_set(tmp_path: Path, suffix: str, below: str) -> None:
    write_mnist(tmp_path / "root" / below, suffix)
    source = mnist(root=str(tmp_path / "root"), image_size=28)
    reference = mnist(root=str(write_mnist(tmp_path / "reference")), image_size=28)
    assert source.fingerprint == reference.fingerprint
    assert np.array_equal(source.train.fetch(np.arange(30)), reference.train.fetch(np.arange(30)))
    assert source.val.labels.tolist() == [*range(10), *range(10)]


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
        mnist(root=str(tmp_path), image_size=28)


def test_idx_of_other_dimensions_is_refused(tmp_path: Path) -> None:
    write_idx(tmp_path / "labels", np.zeros(5, np.uint8))
    with pytest.raises(DataError, match="must start as an IDX file, 00000803, got 00000801"):
        read_idx(tmp_path / "labels", dimensions=3)


@pytest.mark.usefixtures("nowhere")
def test_root_without_files_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (write_mnist(tmp_path / "debian") / "unrelated").touch()
    (write_mnist(tmp_path / "half") / idx._FILES[3]).unlink()
    with caplog.at_level(logging.WARNING):
        source = fashion_mnist(root=str(tmp_path / "half"), image_size=28)
    assert len(source.train.labels) == 30
    assert f"dataset.root={tmp_path / 'half'} lacks files of FashionMNIST" in caplog.text
    with pytest.raises(DataError, match="MNIST was found nowhere"):  # those are clothes
        mnist(root=None, image_size=28)


@pytest.mark.usefixtures("nowhere")
def test_nowhere_is_one_message_with_every_way(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="FashionMNIST was found nowhere") as error:
        fashion_mnist(root=None, image_size=28)
    for way in (*idx._FILES, "dataset.root=FOLDER", "apt install", f"into {tmp_path / 'cache'}", "now: no network"):
        assert way in str(error.value)
    with pytest.raises(DataError, match="MNIST was found nowhere") as error:
        mnist(root=None, image_size=28)
    assert "apt install" not in str(error.value)


@pytest.mark.usefixtures("nowhere")
def test_download_is_read_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idx, "_download", lambda name, home: write_mnist(home / name / "raw"))
    downloaded = mnist(root=None, image_size=28)
    monkeypatch.setattr(idx, "_download", None)
    assert mnist(root=None, image_size=28).fingerprint == downloaded.fingerprint


def test_download_prints_nothing_and_does_not_wait_for_ever(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    datasets = pytest.importorskip("torchvision.datasets")

    def fetch(home: Path, download: bool) -> None:
        sys.stdout.write(f"fetching into {home}, {socket.getdefaulttimeout()}\n")
        raise RuntimeError("refused")

    monkeypatch.setattr(datasets, "MNIST", fetch)
    with pytest.raises(RuntimeError, match="refused"):
        idx._download("MNIST", Path("here"))
    assert capsys.readouterr() == ("", "fetching into here, 20.0\n")
    assert socket.getdefaulttimeout() is None


# folders of images


def test_folder_lists_sorted_classes_and_files(tree: Path) -> None:
    source = imagefolder(root=str(tree), image_size=8)
    assert source.classes == ("ant", "bee")
    assert source.train.labels.tolist() == [0, 0, 0, 1, 1]
    assert source.val.labels.tolist() == [0, 1]
    assert [Path(path).name for path in source.train.paths] == ["10.gif", "2.bmp", "x.Jpeg", "a.jpg", "b.PNG"]


def test_folder_fetches_channels_first(tree: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tree / "train/ant/0.png")
    images = imagefolder(root=str(tree), image_size=8).train.fetch(np.array([0]))
    assert np.array_equal(images[0], noise.transpose(2, 0, 1))


def test_folder_skips_what_is_hidden(tree: Path) -> None:
    before = imagefolder(root=str(tree), image_size=8)
    for name in (
        "train/.cache/a.png",
        "train/__MACOSX/a.png",
        "train/ant/._2.png",
        "train/ant/.x/a.png",
        "train/loose.png",
    ):
        write_image(tree / name)
    (tree / "train/ant/notes.txt").write_text("not an image")
    after = imagefolder(root=str(tree), image_size=8)
    assert after.classes == before.classes
    assert after.train.paths == before.train.paths
    assert after.fingerprint == before.fingerprint


def test_folder_fingerprint_moves_with_the_folder(tree: Path) -> None:
    before = imagefolder(root=str(tree), image_size=8)
    tree.rename(tree.with_name("moved"))
    assert imagefolder(root=str(tree.with_name("moved")), image_size=8).fingerprint == before.fingerprint
    write_image(tree.with_name("moved") / "train/ant/2.bmp", size=(31, 20))
    assert imagefolder(root=str(tree.with_name("moved")), image_size=8).fingerprint != before.fingerprint


def test_folder_does_not_follow_a_loop(tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = imagefolder(root=str(tree), image_size=8)
    (tree / "train/ant/loop").symlink_to(tree / "train", target_is_directory=True)
    (tree / "train/ant/same.bmp").symlink_to(tree / "train/ant/2.bmp")
    assert len(imagefolder(root=str(tree), image_size=8).train.labels) == len(before.train.labels) + 1
    assert "ant/loop is a link to a folder and is not followed" in caplog.text


@pytest.mark.parametrize("name", ["train/ant/out.png", "train/out"])
def test_folder_refuses_a_link_that_leaves_it(tree: Path, name: str) -> None:
    outside = write_image(tree.with_name("outside") / "x.png")
    (tree / name).symlink_to(outside if name.endswith(".png") else outside.parent)
    with pytest.raises(DataError, match=f"{name} is a link that leaves dataset.root="):
        imagefolder(root=str(tree), image_size=8)


def test_folder_errors_name_the_cure(tree: Path) -> None:
    with pytest.raises(DataError, match=r"dataset.root is not given: dataset.root=FOLDER must"):
        imagefolder(root=None, image_size=8)
    with pytest.raises(DataError, match=r"ant/train cannot be read \(No such file.*dataset.root=FOLDER"):
        imagefolder(root=str(tree / "train/ant"), image_size=8)
    with pytest.raises(DataError, match=r"at least 1 px.*image_shape=\(3, 0, 0\)"):
        imagefolder(root=str(tree), image_size=0)


def test_folder_refuses_what_lacks_images(tree: Path) -> None:
    (tree / "train/cat").mkdir()
    with pytest.raises(DataError, match=r"train/cat has no image \(.jpg "):
        imagefolder(root=str(tree), image_size=8)
    (tree / "train/cat/broken.png").symlink_to("broken.png")
    with pytest.raises(DataError, match=r"broken.png cannot be read \(Too many levels"):
        imagefolder(root=str(tree), image_size=8)
    (tree / "train").rename(tree / "other")
    (tree / "train").mkdir()
    with pytest.raises(DataError, match="train/CLASS has no image"):
        imagefolder(root=str(tree), image_size=8)


@pytest.mark.parametrize("phase", ["train", "val"])
def test_folder_refuses_other_classes(tree: Path, phase: str) -> None:
    write_image(tree / phase / "cat/x.png")
    with pytest.raises(DataError, match=rf"tree/train and \S*tree/val must have.*got 'cat' in {phase} alone \(1 such"):
        imagefolder(root=str(tree), image_size=8)


# decoding


@pytest.mark.parametrize("size", [(30, 20), (20, 30), (8, 8), (1, 300), (5, 4)])
def test_decode_keeps_a_constant(tmp_path: Path, size: tuple[int, int]) -> None:
    image = decode(str(write_image(tmp_path / "x.png", size=size)), 8)
    assert image.shape == (8, 8, 3)
    assert np.all(image == (10, 200, 90))


def test_decode_takes_the_centre(tmp_path: Path) -> None:
    columns = np.zeros((10, 30), np.uint8)
    columns[:, 10:20] = 255  # the centre square
    Image.fromarray(columns).save(tmp_path / "x.png")
    assert np.all(decode(str(tmp_path / "x.png"), 10) == 255)
    Image.fromarray(columns.T).save(tmp_path / "x.png")
    assert np.all(decode(str(tmp_path / "x.png"), 10) == 255)


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("L", 77, (77, 77, 77)),
        ("1", 1, (255, 255, 255)),
        ("LA", (77, 255), (77, 77, 77)),
        ("LA", (77, 0), (255, 255, 255)),
        ("RGBA", (10, 20, 30, 255), (10, 20, 30)),
        ("RGBA", (10, 20, 30, 0), (255, 255, 255)),
        ("RGBA", (0, 0, 0, 51), (204, 204, 204)),
        ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
        ("I;16", 257 * 77, (77, 77, 77)),
        ("I;16", 65535, (255, 255, 255)),
        ("I", 257 * 77, (77, 77, 77)),
    ],
)
def test_decode_takes_any_mode(
    tmp_path: Path, mode: str, colour: int | tuple[int, ...], expected: tuple[int, int, int]
) -> None:
    path = tmp_path / "x.tiff"
    Image.new(mode, (9, 9), colour).save(path)
    assert np.all(decode(str(path), 8) == expected)


def test_decode_takes_a_palette_with_transparency(tmp_path: Path) -> None:
    image = Image.new("P", (9, 9), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.save(tmp_path / "opaque.png")
    image.save(tmp_path / "clear.png", transparency=bytes((255, 0)))
    assert np.all(decode(str(tmp_path / "opaque.png"), 8) == (10, 20, 30))
    assert np.all(decode(str(tmp_path / "clear.png"), 8) == 255)


@pytest.mark.parametrize(
    ("mode", "colour", "message"),
    [("F", 0.5, "floating-point pixels"), ("I", 65536, "in 0..65535 .*got 65536"), ("I", -1, "in 0..65535 .*got -1")],
)
def test_decode_refuses_an_unknown_range(tmp_path: Path, mode: str, colour: float, message: str) -> None:
    Image.new(mode, (9, 9), colour).save(tmp_path / "x.tiff")
    with pytest.raises(DataError, match=f"x.tiff cannot be decoded: .*{message}"):
        decode(str(tmp_path / "x.tiff"), 8)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".gif", ".webp", ".bmp"])
def test_fetch_names_a_damaged_file(tree: Path, suffix: str) -> None:
    path = tree / f"train/ant/1{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    split = imagefolder(root=str(tree), image_size=8).train
    split.fetch(np.array([0]))
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(DataError, match=f"ant/1{suffix} cannot be decoded"):
        split.fetch(np.array([0]))
