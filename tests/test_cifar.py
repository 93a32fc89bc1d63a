"""CIFAR from torchvision's files: what they hold, read once, damaged, missing and downloaded."""

from __future__ import annotations

import hashlib
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tinyexp.data.cifar import cifar10, cifar100
from tinyexp.data.source import Source
from tinyexp.errors import DataError, NotFetchedError

datasets = pytest.importorskip("torchvision.datasets")


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One of the two data sets: how torchvision names and lays it out, and how many images the test's copy has."""

    name: str
    load: Callable[..., Source]
    folder: str
    train: tuple[str, ...]
    test: str
    meta: str
    label_key: str
    names_key: str
    classes: int
    images: int  # a file


TEN = Kind(
    name="CIFAR10",
    load=cifar10,
    folder="cifar-10-batches-py",
    train=tuple(f"data_batch_{number}" for number in range(1, 6)),
    test="test_batch",
    meta="batches.meta",
    label_key="labels",
    names_key="label_names",
    classes=10,
    images=4,
)
HUNDRED = Kind(
    name="CIFAR100",
    load=cifar100,
    folder="cifar-100-python",
    train=("train",),
    test="test",
    meta="meta",
    label_key="fine_labels",
    names_key="fine_label_names",
    classes=100,
    images=20,
)


@pytest.fixture(params=[TEN, HUNDRED], ids=["10", "100"])
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param


def write(kind: Kind, root: Path, monkeypatch: pytest.MonkeyPatch, seed: int = 0) -> tuple[Any, list[int]]:
    """Files as of Krizhevsky in root/FOLDER, whose sums torchvision then expects.

    Returns images (N, 3, 32, 32) and labels of train and test, in that order.
    """
    folder = root / kind.folder
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    images, labels = [], []
    for name in (*kind.train, kind.test):
        images.append(random.integers(0, 256, (kind.images, 3, 32, 32), dtype=np.uint8))
        labels.append([int(label) for label in random.integers(0, kind.classes, kind.images)])
        content = {"data": images[-1].reshape(-1, 3072), kind.label_key: labels[-1], "coarse_labels": [0]}
        (folder / name).write_bytes(pickle.dumps(content))
    names = [f"class {number}" for number in range(kind.classes)]
    (folder / kind.meta).write_bytes(pickle.dumps({kind.names_key: names, "coarse_label_names": []}))
    expect(kind, folder, monkeypatch)
    return np.concatenate(images), [label for part in labels for label in part]


def expect(kind: Kind, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make torchvision's sums those of these files."""

    def sums(*names: str) -> list[list[str]]:
        return [[name, hashlib.md5((folder / name).read_bytes()).hexdigest()] for name in names]

    described = getattr(datasets, kind.name)
    monkeypatch.setattr(described, "train_list", sums(*kind.train))
    monkeypatch.setattr(described, "test_list", sums(kind.test))
    monkeypatch.setattr(described, "meta", described.meta | {"md5": sums(kind.meta)[0][1]})


def never(*_: object, **__: object) -> None:
    raise AssertionError("the files are read again")


def all_pixels(source: Source) -> list[NDArray[np.uint8]]:
    return [np.asarray(split.fetch(np.arange(len(split.labels)))) for split in (source.train, source.val)]


def test_files_are_read_as_they_are(kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = write(kind, tmp_path / "root", monkeypatch)
    for _ in range(2):  # from torchvision, then from what is kept
        source = kind.load(root=str(tmp_path / "root"), cache_dir=tmp_path / "cache", fetch=False)
        monkeypatch.setattr(datasets, kind.name, never)
        assert source.classes == tuple(f"class {number}" for number in range(kind.classes))
        assert source.channels == 3
        assert source.origin == str(tmp_path / "root" / kind.folder)
        train, val = all_pixels(source)
        assert train.dtype == val.dtype == np.uint8
        assert train.shape == (len(kind.train) * kind.images, 32, 32, 3)
        assert train.flags.c_contiguous
        assert source.train.fetch(np.array([1, 0])).flags.c_contiguous
        assert np.array_equal(np.concatenate([train, val]), images.transpose(0, 2, 3, 1))
        assert source.train.labels.dtype == source.val.labels.dtype == np.int64
        assert source.train.labels.tolist() + source.val.labels.tolist() == labels
        unpickled = pickle.loads(pickle.dumps(source.train))
        assert np.array_equal(unpickled.fetch(np.arange(5)), train[:5])


def test_files_are_read_once(kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(kind, tmp_path / "root", monkeypatch)
    loads = []
    original = pickle.load
    monkeypatch.setattr(pickle, "load", lambda *given, **named: loads.append(given) or original(*given, **named))
    first = kind.load(root=str(tmp_path / "root"), cache_dir=tmp_path / "cache")
    assert len(loads) == len(kind.train) + 1 + 2  # the names with each phase
    monkeypatch.setattr(datasets, kind.name, never)
    second = kind.load(root=str(tmp_path / "root"), cache_dir=tmp_path / "cache")
    assert len(loads) == len(kind.train) + 1 + 2
    assert second.fingerprint == first.fingerprint
    assert all(map(np.array_equal, all_pixels(second), all_pixels(first)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "root"]
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["cifar"]


def test_fingerprint_is_of_the_content(kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(kind, tmp_path / "one", monkeypatch)
    one = kind.load(root=str(tmp_path / "one"), cache_dir=tmp_path / "cache")
    shutil.copytree(tmp_path / "one", tmp_path / "copy")
    assert kind.load(root=str(tmp_path / "copy"), cache_dir=tmp_path / "cache").fingerprint == one.fingerprint
    path = tmp_path / "copy" / kind.folder / kind.test
    content = pickle.loads(path.read_bytes())
    for number, change in enumerate(("data", kind.label_key)):
        path.write_bytes(pickle.dumps(content | {change: content[change][::-1]}))
        expect(kind, path.parent, monkeypatch)
        other = kind.load(root=str(tmp_path / "copy"), cache_dir=tmp_path / f"cache {number}")
        assert other.fingerprint != one.fingerprint


def test_a_changed_file_is_read_anew(kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(kind, tmp_path / "root", monkeypatch)
    first = kind.load(root=str(tmp_path / "root"), cache_dir=tmp_path / "cache")
    shutil.rmtree(tmp_path / "root")
    images, _ = write(kind, tmp_path / "root", monkeypatch, seed=1)
    second = kind.load(root=str(tmp_path / "root"), cache_dir=tmp_path / "cache")
    assert second.fingerprint != first.fingerprint
    assert np.array_equal(np.concatenate(all_pixels(second)), images.transpose(0, 2, 3, 1))


@pytest.mark.parametrize("which", ["train", "test", "meta"])
@pytest.mark.parametrize("damage", ["changed", "cut", "removed"])
def test_a_damaged_file_is_an_error(
    kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str, damage: str
) -> None:
    write(kind, tmp_path / "root", monkeypatch)
    path = tmp_path / "root" / kind.folder / {"train": kind.train[0], "test": kind.test, "meta": kind.meta}[which]
    content = path.read_bytes()
    path.write_bytes(content[:-10] if damage == "cut" else content[:-10] + b"0123456789")
    if damage == "removed":
        path.unlink()
    monkeypatch.setattr(pickle, "load", never if which != "meta" else pickle.load)  # what is damaged is not unpickled
    with pytest.raises(DataError, match=rf"root/{kind.folder} is not what torchvision downloads: .* Remove it, and it"):
        kind.load(root=str(tmp_path / "root"), cache_dir=tmp_path / "cache")
    path.write_bytes(content)
    monkeypatch.undo()
    expect(kind, path.parent, monkeypatch)
    assert kind.load(root=str(tmp_path / "root"), cache_dir=tmp_path / "cache").classes  # nothing wrong was kept


def test_what_is_missing_is_not_fetched_unless_it_may(
    kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, kind.name, never)
    told = rf"{kind.name} is not here yet; .*prepare.* to {tmp_path}/"
    with pytest.raises(NotFetchedError, match=rf"{told}cache/{kind.folder}"):
        kind.load(root=None, cache_dir=tmp_path / "cache", fetch=False)
    with pytest.raises(NotFetchedError, match=rf"{told}mine/{kind.folder}"):
        kind.load(root=str(tmp_path / "mine"), cache_dir=tmp_path / "cache", fetch=False)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("own", [False, True])
def test_download_is_read_and_kept(kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: bool) -> None:
    server = tmp_path / "server"
    write(kind, server, monkeypatch)

    def download(self: Any) -> None:
        shutil.copytree(server / kind.folder, Path(self.root) / kind.folder)
        (Path(self.root) / "python.tar.gz").touch()

    monkeypatch.setattr(getattr(datasets, kind.name), "download", download)
    home, root = (tmp_path / "mine", str(tmp_path / "mine")) if own else (tmp_path / "cache", None)
    downloaded = kind.load(root=root, cache_dir=tmp_path / "cache")
    assert downloaded.origin == str(home / kind.folder)
    expected = kind.load(root=str(server), cache_dir=tmp_path / "other").fingerprint
    assert downloaded.fingerprint == expected
    monkeypatch.setattr(datasets, kind.name, never)
    assert kind.load(root=root, cache_dir=tmp_path / "cache", fetch=False).fingerprint == expected
    assert [path.name for path in home.iterdir() if path.name != "cifar"] == [kind.folder]  # and no archive


def test_a_download_that_fails_tells_every_way(kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(self: Any) -> None:
        (Path(self.root) / kind.folder).mkdir(parents=True)
        (Path(self.root) / kind.folder / kind.test).touch()
        raise OSError("no\n   network")

    monkeypatch.setattr(getattr(datasets, kind.name), "download", download)
    with pytest.raises(DataError, match=rf"^{kind.name} is not here; ") as error:
        kind.load(root=None, cache_dir=tmp_path / "cache")
    for way in (
        f"dataset.root=FOLDER with torchvision's {kind.folder}/",
        f"to {tmp_path}/cache/{kind.folder}",
        "now: no network",
    ):
        assert way in str(error.value)
    assert not isinstance(error.value, NotFetchedError)
    assert not any((tmp_path / "cache").iterdir())


def test_the_two_do_not_share_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for one in (TEN, HUNDRED):
        write(one, tmp_path, monkeypatch)
    assert len(cifar10(root=str(tmp_path), cache_dir=tmp_path).classes) == 10
    assert len(cifar100(root=str(tmp_path), cache_dir=tmp_path).classes) == 100
