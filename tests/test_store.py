"""Image files decoded once: the pixels are decode's, found again while nothing changed, and whole or not there."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import multiprocessing
import os
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL
import pytest
from helpers import PLAIN
from PIL import Image

from tinyexp.config import LoaderConfig
from tinyexp.data import decoding, store
from tinyexp.data.decode import decode
from tinyexp.data.filesplit import FileSplit
from tinyexp.data.folder import imagefolder
from tinyexp.data.source import ArraySplit, Source
from tinyexp.data.store import StoredSplit, decoded
from tinyexp.errors import DataError, ResourceError

SIZES = [(30, 20), (20, 30), (9, 9), (64, 40), (40, 64), (24, 24), (33, 17)]  # (W, H)
WHOLE = ["pixels", "places.npy", "store.json"]

CHILD = """
import hashlib, logging, pickle, sys
from pathlib import Path
import numpy as np
from tinyexp.data.folder import imagefolder
from tinyexp.data.store import decoded

logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
root, loader = pickle.load(sys.stdin.buffer)
source = decoded(imagefolder(root=root, cache_dir=Path(loader.cache_dir)), loader)
sha = hashlib.sha256()
for split in (source.train, source.val):
    for image in split.fetch(np.arange(len(split.labels))):
        sha.update(image.tobytes())
print(sha.hexdigest())
"""


def write_noise(path: Path, size: tuple[int, int], seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    os.utime(path, (1e9, 1e9))


class Place(NamedTuple):
    """A folder of images and what a config says of it."""

    root: Path
    loader: LoaderConfig

    def open(self, **changes: Any) -> Source:
        loader = replace(self.loader, **changes)
        return decoded(imagefolder(root=str(self.root), cache_dir=Path(loader.cache_dir)), loader)

    @property
    def stores(self) -> list[Path]:
        """All that stands in the cache's folder of stores."""
        folder = Path(self.loader.cache_dir) / "store"
        return sorted(folder.iterdir()) if folder.exists() else []

    def spoil(self, name: str) -> Path:
        path = self.root / name
        path.write_bytes(path.read_bytes()[:100])
        return path


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """7 train images, of which 4 are ants, and 4 of val; none has the size of another."""
    root = tmp_path / "images"
    for number, size in enumerate(SIZES):
        write_noise(root / "train" / ("ant" if number < 4 else "bee") / f"{number}.png", size, seed=number)
    for number, size in enumerate(SIZES[:4]):
        write_noise(root / "val" / ("ant", "bee")[number % 2] / f"{number}.png", size, seed=10 + number)
    loader = replace(PLAIN.loader, image_size=8, cache_dir=str(tmp_path / "cache"), decode_size=None, max_skipped=0.5)
    return Place(root, loader)


def fetch_all(split: Any) -> list[np.ndarray]:
    return list(split.fetch(np.arange(len(split.labels))))


def never(*given: object, **named: object) -> None:
    raise AssertionError("nothing was to be decoded")


# what is in it


@pytest.mark.parametrize("decode_size", ["auto", None, 12])
@pytest.mark.parametrize("chunk", [2, 128])
def test_pixels_are_those_of_each_file(
    place: Place, chunk: int, decode_size: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "_CHUNK", chunk)
    side = 16 if decode_size == "auto" else decode_size
    listed = imagefolder(root=str(place.root), cache_dir=place.root)
    made = place.open(decode_size=decode_size)
    for files, split in ((listed.train, made.train), (listed.val, made.val)):
        assert isinstance(files, FileSplit)
        assert isinstance(split, StoredSplit)
        assert np.array_equal(split.labels, files.labels)
        images = fetch_all(split)
        for path, image in zip(files.paths, images, strict=True):
            assert np.array_equal(image, decode(path, side))
            with Image.open(path) as opened:
                assert min(image.shape[:2]) == min(*opened.size, side or 1000)
            assert not image.flags.writeable
        chosen = np.array([2, 0, 2])
        assert all(map(np.array_equal, split.fetch(chosen), [images[i] for i in chosen]))
        assert len(split.fetch(chosen[:0])) == 0
    assert (made.classes, made.fingerprint, made.skipped) == (listed.classes, listed.fingerprint, 0)


def test_images_of_one_size_come_as_one_array(tmp_path: Path) -> None:
    for number in range(6):
        write_noise(
            tmp_path / f"images/{('train', 'val')[number % 2]}/{'ab'[number // 3]}/{number}.png", (12, 10), number
        )
    loader = replace(PLAIN.loader, image_size=8, cache_dir=str(tmp_path))
    split = Place(tmp_path / "images", loader).open().train
    images = split.fetch(np.array([2, 0]))
    assert isinstance(images, np.ndarray)
    assert (images.shape, images.dtype) == ((2, 10, 12, 3), np.uint8)
    before = images.copy()
    images[:] = 0  # a copy: what a batch is changed into does not reach the file
    assert np.array_equal(split.fetch(np.array([2, 0])), before)


def test_what_is_in_memory_stays_there(place: Place) -> None:
    split = ArraySplit(np.zeros((2, 4, 4, 1), np.uint8), np.array([0, 1]))
    source = Source(classes=("a", "b"), channels=1, train=split, val=split, fingerprint="")
    assert decoded(source, place.loader) is source
    assert not place.stores


# found again


def test_the_second_time_nothing_is_decoded(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    first = place.open()
    assert [sorted(file.name for file in folder.iterdir()) for folder in place.stores] == [WHOLE] * 2
    monkeypatch.setattr(store, "decode_files", never)
    second = place.open(workers=3, on_error="skip")
    for phase in ("train", "val"):
        assert all(map(np.array_equal, fetch_all(getattr(first, phase)), fetch_all(getattr(second, phase))))


def name_of(place: Place, **changes: Any) -> str:
    split = place.open(**changes).train
    assert isinstance(split, StoredSplit)
    return split.folder.name


CHANGED = {
    "content": lambda file: write_noise(file, (30, 21)),
    "time": lambda file: os.utime(file, (1e9, 1e9 + 1)),
    "name": lambda file: file.rename(file.with_name("0a.png")),
    "class": lambda file: file.rename(file.parent.with_name("bee") / file.name),
    "one less": Path.unlink,
}


@pytest.mark.parametrize("what", list(CHANGED))
def test_other_files_are_another_store(place: Place, what: str) -> None:
    before = name_of(place)
    CHANGED[what](place.root / "train/ant/0.png")
    assert name_of(place) != before


def test_another_size_library_or_decoder_is_another_store(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [name_of(place), name_of(place, decode_size=9), name_of(place, decode_size="auto")]
    with monkeypatch.context() as patch:
        patch.setattr(PIL, "__version__", "0.0")
        names.append(name_of(place))
    with monkeypatch.context() as patch:
        edited = tmp_path / "edited.py"
        edited.write_text(Path(store.decode.__file__).read_text() + "\n# edited\n")
        spec = importlib.util.spec_from_file_location("edited", edited)
        assert spec
        patch.setattr(store, "decode", importlib.util.module_from_spec(spec))
        names.append(name_of(place))
    assert len(set(names)) == 5
    assert name_of(place) == names[0]


def test_the_same_elsewhere_is_the_same_store(place: Place, tmp_path: Path) -> None:
    before = name_of(place, image_size=7, workers=2, max_gb=1.0)
    loader = replace(place.loader, cache_dir=str(tmp_path / "other cache"))
    assert name_of(Place(place.root.rename(tmp_path / "moved"), loader)) == before


# damage


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


DAMAGE = {
    "pixels cut": lambda folder: cut(folder / "pixels"),
    "pixels gone": lambda folder: (folder / "pixels").unlink(),
    "places cut": lambda folder: cut(folder / "places.npy"),
    "places empty": lambda folder: (folder / "places.npy").write_bytes(b""),
    "places of others": lambda folder: np.save(folder / "places.npy", np.zeros((3, 3), np.int64)),
    "places of noise": lambda folder: (folder / "places.npy").write_bytes(os.urandom(300)),
    "about cut": lambda folder: cut(folder / "store.json"),
    "about gone": lambda folder: (folder / "store.json").unlink(),
    "about a list": lambda folder: (folder / "store.json").write_text("[]"),
    "about noise": lambda folder: (folder / "store.json").write_bytes(b"\xff\x00\x80"),
}


@pytest.mark.parametrize("what", list(DAMAGE))
def test_a_damaged_store_is_told_and_made_again(place: Place, what: str, caplog: pytest.LogCaptureFixture) -> None:
    source = place.open()
    assert isinstance(source.train, StoredSplit)
    folder, before = source.train.folder, [image.copy() for image in fetch_all(source.train)]
    del source
    DAMAGE[what](folder)
    with caplog.at_level(logging.WARNING):
        again = place.open()
    assert re.search(rf"{folder} is damaged: it is made again", caplog.text)
    assert all(map(np.array_equal, fetch_all(again.train), before))
    assert [sorted(file.name for file in each.iterdir()) for each in place.stores] == [WHOLE] * 2


# images that cannot be decoded


@pytest.mark.parametrize("max_gb", [1.0, 0.0])
@pytest.mark.parametrize("chunk", [1, 128])
def test_the_first_bad_file_is_named(place: Place, chunk: int, max_gb: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "_CHUNK", chunk)
    first = place.spoil("train/ant/2.png")
    place.spoil("train/bee/5.png")
    with pytest.raises(DataError, match=re.escape(f"{first} cannot be decoded")) as caught:
        fetch_all(place.open(max_gb=max_gb).train)  # streamed, it is told when it is met
    assert caught.value.exit_code == 2
    assert not place.stores


def test_ranks_can_tell_that_other_images_are_left_out(place: Place) -> None:
    whole = place.open(on_error="skip").content
    bad = place.spoil("train/ant/2.png")
    first = place.open(on_error="skip")
    assert first.content == place.open(on_error="skip", max_gb=0.0).content != whole
    bad.write_bytes(place.root.joinpath("train/ant/1.png").read_bytes())
    place.spoil("train/ant/3.png")
    second = place.open(on_error="skip")
    assert second.skipped == first.skipped == 1
    assert second.left_out != first.left_out
    assert second.left_out[:8] in second.content


@pytest.mark.parametrize("chunk", [2, 128])
def test_bad_files_are_left_out_and_counted(
    place: Place, chunk: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(decoding, "_CHUNK", chunk)
    listed = imagefolder(root=str(place.root), cache_dir=place.root).train
    bad = [place.spoil("train/ant/2.png"), place.spoil("train/bee/5.png"), place.spoil("val/bee/1.png")]
    kept, streamed = place.open(on_error="skip"), place.open(on_error="skip", max_gb=0.0)
    assert f"2 train images cannot be decoded and are left out; the first: {bad[0]}" in caplog.text
    assert isinstance(kept.train, StoredSplit)
    assert isinstance(streamed.train, FileSplit)
    assert kept.skipped == streamed.skipped == 3
    good = [(path, label) for path, label in zip(listed.paths, listed.labels, strict=True) if Path(path) not in bad]
    for made in (kept, streamed):
        assert made.train.labels.tolist() == [label for _, label in good]
        for image, (path, _) in zip(fetch_all(made.train), good, strict=True):
            assert np.array_equal(image, decode(path))
        assert len(fetch_all(made.val)) == len(made.val.labels) == 3
    with monkeypatch.context() as patch:
        patch.setattr(store, "decode_files", never)  # what is bad is known from the first time
        assert place.open(on_error="skip").skipped == 3
        assert place.open(on_error="skip", max_gb=0.0).skipped == 3
        with pytest.raises(DataError, match=rf"{bad[0]}.*dataset\.on_error=skip leaves such images out: 2 in train"):
            place.open()


@pytest.mark.parametrize("max_gb", [1.0, 0.0])
def test_too_many_bad_files_are_an_error(place: Place, max_gb: float) -> None:
    first = place.spoil("train/ant/2.png")
    place.spoil("train/bee/5.png")
    message = rf"2 of 7 train images cannot be decoded, more than dataset\.max_skipped=0\.2 .*the first: {first}"
    with pytest.raises(DataError, match=message):
        place.open(on_error="skip", max_skipped=0.2, max_gb=max_gb)
    assert place.open(on_error="skip", max_skipped=2 / 7, max_gb=max_gb).skipped == 2


@pytest.mark.parametrize("max_gb", [1.0, 0.0])
def test_a_class_left_empty_is_an_error(place: Place, max_gb: float) -> None:
    for number in (1, 3):
        place.spoil(f"val/bee/{number}.png")
    with pytest.raises(DataError, match="class bee has no val image that can be decoded"):
        place.open(on_error="skip", max_gb=max_gb)


@pytest.mark.skipif(sys.platform != "linux", reason="the worker's fault is put into it by fork")
def test_a_worker_that_dies_is_told(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(path: str, short_side: int | None) -> np.ndarray:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    monkeypatch.setattr(decoding, "decode", die)
    near = re.escape(str(place.root / "train/ant/0.png"))
    with pytest.raises(DataError, match=rf"a process that decoded images near {near} was killed: for want of memory"):
        place.open()
    assert not place.stores


# room


def test_max_gb_decides(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    size = 3 * (sum(w * h for w, h in SIZES) + sum(w * h for w, h in SIZES[:4])) / 1e9
    with caplog.at_level(logging.INFO):
        streamed = place.open(max_gb=size * 0.999)
    assert isinstance(streamed.train, FileSplit)
    assert "over dataset.max_gb=" in caplog.text
    assert not place.stores
    made = place.open(max_gb=size)
    assert isinstance(made.train, StoredSplit)
    assert isinstance(place.open(max_gb=size * 0.999).train, FileSplit)  # though it is there
    for phase in ("train", "val"):
        assert all(map(np.array_equal, fetch_all(getattr(streamed, phase)), fetch_all(getattr(made, phase))))
    small = place.open(max_gb=size * 0.5, decode_size=8)
    assert isinstance(small.train, StoredSplit)


def test_a_stream_decodes_to_the_size_that_a_store_has(place: Place) -> None:
    for one, other in zip(
        fetch_all(place.open(decode_size="auto", max_gb=0.0).train),
        fetch_all(place.open(decode_size="auto").train),
        strict=True,
    ):
        assert np.array_equal(one, other)


def test_too_little_room_is_told_before_anything_is_decoded(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(place.root)._replace(free=10_000)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage)
        patch.setattr(store, "decode_files", never)
        cache_dir = re.escape(place.loader.cache_dir)
        with pytest.raises(
            ResourceError, match=rf"{cache_dir}.* has room for .*dataset\.cache_dir .*dataset\.max_gb=0"
        ):
            place.open()
    assert not place.stores
    place.open()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    place.open()  # what is there needs none


# shared


def test_a_split_pickles_small_and_works_in_another_process(place: Place) -> None:
    split = place.open().train
    images = fetch_all(split)  # it has mapped its file
    content = pickle.dumps(split)
    assert len(content) < split.labels.nbytes + 600
    assert all(map(np.array_equal, fetch_all(pickle.loads(content)), images))
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert all(map(np.array_equal, pool.submit(split.fetch, np.arange(7)).result(timeout=60), images))


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="only Linux tells of each mapping")
def test_pixels_are_the_systems_pages_not_ours(place: Place) -> None:
    source = place.open()
    assert isinstance(source.train, StoredSplit)
    for image in fetch_all(source.train):
        assert int(image.sum()) > 0  # each page is read
    maps = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text(), flags=re.MULTILINE)
    (mine,) = (each for each in maps if str(source.train.folder / "pixels") in each)
    told = {name: int(size) for name, size in re.findall(r"^(\w+): +(\d+) kB$", mine, flags=re.MULTILINE)}
    assert told["Rss"] > 0
    assert told["Private_Dirty"] == told["Anonymous"] == 0


def start_child(place: Place) -> subprocess.Popen[bytes]:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert child.stdin
    child.stdin.write(pickle.dumps((str(place.root), place.loader)))
    child.stdin.flush()
    return child


def digest(place: Place) -> str:
    """What the child prints, by decode alone."""
    listed = imagefolder(root=str(place.root), cache_dir=place.root)
    sha = hashlib.sha256()
    for split in (listed.train, listed.val):
        assert isinstance(split, FileSplit)
        for path in split.paths:
            sha.update(decode(path).tobytes())
    return sha.hexdigest()


@pytest.mark.slow
@pytest.mark.parametrize("before", ["nothing", "damage"])
def test_many_at_once_make_one_store(place: Place, before: str) -> None:
    if before == "damage":
        place.open()
        for folder in place.stores:
            cut(folder / "pixels")
    children = [start_child(place) for _ in range(8)]
    told = [child.communicate(timeout=100) for child in children]
    assert [child.returncode for child in children] == [0] * 8, told
    assert {out.decode().strip() for out, _ in told} == {digest(place)}
    assert sum(errors.decode().count("decoded 7 images in") for _, errors in told) == 1
    assert sum(errors.decode().count("decoded 4 images in") for _, errors in told) == 1
    assert [sorted(file.name for file in folder.iterdir()) for folder in place.stores] == [WHOLE] * 2


@pytest.mark.slow
def test_a_builder_that_is_killed_stands_in_nobodys_way(place: Place) -> None:
    for number in range(700):
        write_noise(place.root / f"train/ant/more{number}.png", (40 + number % 7, 40), seed=number)
    started = time.monotonic()
    start_child(place).communicate(timeout=100)
    seconds = time.monotonic() - started
    chance = random.Random(0)
    for _ in range(5):
        shutil.rmtree(place.loader.cache_dir)
        child = start_child(place)
        time.sleep(seconds * chance.uniform(0.3, 1.0))
        child.kill()
        child.communicate(timeout=100)
        good = start_child(place)
        out, errors = good.communicate(timeout=100)
        assert out.decode().strip() == digest(place), errors
        assert [sorted(file.name for file in folder.iterdir()) for folder in place.stores] == [WHOLE] * 2
        for folder in place.stores:
            assert json.loads((folder / "store.json").read_text())["bad"] == {}
