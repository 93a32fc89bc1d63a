"""Tiny ImageNet as it is distributed, packed or not, and sorted by hand: one data set; and what damages it."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import LEAN, PLAIN
from PIL import Image

from tinyexp.__main__ import main
from tinyexp.data import tiny_imagenet as module
from tinyexp.data.filesplit import FileSplit
from tinyexp.data.source import Source
from tinyexp.data.store import decoded
from tinyexp.data.tiny_imagenet import tiny_imagenet
from tinyexp.errors import DataError, NotFetchedError

NAME = "tiny-imagenet-200"
WNIDS = ("n02124075", "n01443537", "n04067472")  # wnids.txt is in no order
TRAIN, VAL, TEST = 3, 2, 2  # images a class, a class, in all

needs_real = pytest.mark.skipif(
    not Path(os.environ.get("TINYEXP_DATA", "/nowhere"), f"{NAME}.zip").is_file(),
    reason=f"TINYEXP_DATA names no folder with {NAME}.zip",
)


def save(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8).repeat(16, 0).repeat(16, 1)
    Image.fromarray(pixels).save(path, quality=90)


@pytest.fixture
def official(tmp_path: Path) -> Path:
    """The layout of CS231n's archive."""
    base = tmp_path / "official" / NAME
    base.mkdir(parents=True)
    (base / "wnids.txt").write_text("".join(f"{wnid}\n" for wnid in WNIDS))
    (base / "words.txt").write_text(
        "n00001740\tentity\nn01443537\tgoldfish, Carassius auratus\nn02124075\tEgyptian cat\n"
        "n04067472\treel\nn04067473\treel, other\n"
    )
    lines = []
    for number, wnid in enumerate(WNIDS):
        boxes = ""
        for image in range(TRAIN):
            save(base / "train" / wnid / "images" / f"{wnid}_{image}.JPEG", 10 * number + image)
            boxes += f"{wnid}_{image}.JPEG\t0\t10\t63\t58\n"
        (base / "train" / wnid / f"{wnid}_boxes.txt").write_text(boxes)
        for image in range(VAL):
            name = f"val_{image * len(WNIDS) + number}.JPEG"
            save(base / "val/images" / name, 100 + 10 * number + image)
            lines.append(f"{name}\t{wnid}\t0\t32\t44\t62\n")
    (base / "val/val_annotations.txt").write_text("".join(sorted(lines)))
    for image in range(TEST):
        save(base / f"test/images/test_{image}.JPEG", 200 + image)
    return base


def pack(base: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{NAME}/", "")
        for file in sorted(base.rglob("*")):
            archive.write(file, f"{NAME}/{file.relative_to(base).as_posix()}")
    return path


def sort_by_hand(base: Path, folder: Path, inside: str = "") -> Path:
    """train/CLASS/* and val/CLASS/*, as people sort it."""
    for wnid in WNIDS:
        (folder / "train" / wnid).mkdir(parents=True)
        shutil.copytree(base / "train" / wnid / "images", folder / "train" / wnid / inside, dirs_exist_ok=True)
    for line in (base / "val/val_annotations.txt").read_text().splitlines():
        image, wnid = line.split("\t")[:2]
        (folder / "val" / wnid / inside).mkdir(parents=True, exist_ok=True)
        shutil.copy(base / "val/images" / image, folder / "val" / wnid / inside / image)
    shutil.copy(base / "words.txt", folder)
    return folder


def below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


def samples(source: Source) -> dict[str, list[tuple[str, int]]]:
    """Each phase's files and labels, in order."""
    return {
        phase: [(Path(path).name, label) for path, label in zip(split.paths, split.labels.tolist(), strict=True)]
        for phase, split in (("train", source.train), ("val", source.val))
        if isinstance(split, FileSplit)
    }


def pixels(source: Source) -> list[Any]:
    return [split.fetch(np.arange(len(split.labels))) for split in (source.train, source.val)]


# one data set, however it comes


@pytest.mark.parametrize("form", ["unpacked", "its folder as root", "by hand", "by hand with images/", "zip by hand"])
def test_each_form_is_the_same_as_the_archive(official: Path, tmp_path: Path, form: str) -> None:
    cache = tmp_path / "cache"
    from_zip = tiny_imagenet(root=None, cache_dir=cache, archive=str(pack(official, tmp_path / "any-name.zip")))
    if form == "zip by hand":
        packed = pack(sort_by_hand(official, tmp_path / "sorted"), tmp_path / "sorted.zip")
        source = tiny_imagenet(root=str(tmp_path / "mine"), cache_dir=cache, archive=str(packed))
    else:
        root = {"unpacked": official.parent, "its folder as root": official}.get(form, tmp_path / "sorted" / NAME)
        if form.startswith("by hand"):
            sort_by_hand(official, root, "images" if form.endswith("images/") else "")
        before = below(root)
        source = tiny_imagenet(root=str(root), cache_dir=cache, fetch=False)
        assert below(root) == before
    assert source.fingerprint == from_zip.fingerprint
    assert source.classes == from_zip.classes == tuple(sorted(WNIDS))
    assert source.names == from_zip.names == ("goldfish", "Egyptian cat", "reel")
    assert samples(source) == samples(from_zip)
    for one, other in zip(pixels(source), pixels(from_zip), strict=True):
        assert all(map(np.array_equal, one, other))


def test_images_have_their_labels(official: Path, tmp_path: Path) -> None:
    source = tiny_imagenet(root=None, cache_dir=tmp_path / "cache", archive=str(pack(official, tmp_path / "t.zip")))
    found = samples(source)
    assert found["train"] == [(f"{wnid}_{i}.JPEG", n) for n, wnid in enumerate(sorted(WNIDS)) for i in range(TRAIN)]
    annotated = dict(line.split("\t")[:2] for line in (official / "val/val_annotations.txt").read_text().splitlines())
    assert {image: source.classes[label] for image, label in found["val"]} == annotated
    assert source.channels == 3
    assert not source.listing.others


def test_nothing_but_the_folder_is_left(official: Path, tmp_path: Path) -> None:
    packed = pack(official, tmp_path / "t.zip")
    os.utime(packed, ns=(1, 123_456_789_000))
    content = packed.read_bytes()
    tiny_imagenet(root=None, cache_dir=tmp_path / "cache", archive=str(packed))
    assert packed.read_bytes() == content
    assert packed.stat().st_mtime_ns == 123_456_789_000
    expected = [".archive.json", "val/val_annotations.txt", "wnids.txt", "words.txt"]
    expected += [f"test/test_{image}.JPEG" for image in range(TEST)]
    expected += [f"train/{wnid}/{wnid}_{image}.JPEG" for wnid in WNIDS for image in range(TRAIN)]
    expected += [f"val/{wnid}/val_{image * 3 + n}.JPEG" for n, wnid in enumerate(WNIDS) for image in range(VAL)]
    assert below(tmp_path / "cache") == sorted(f"{NAME}/{name}" for name in expected)
    assert not (tmp_path / "cache" / NAME / "val/images").exists()
    tiny_imagenet(root=str(tmp_path / "mine"), cache_dir=tmp_path / "empty", archive=str(packed))
    assert below(tmp_path / "mine") == below(tmp_path / "cache")
    assert not (tmp_path / "empty").exists()


def test_what_is_unpacked_stays(official: Path, tmp_path: Path) -> None:
    packed = pack(official, tmp_path / "t.zip")
    first = tiny_imagenet(root=None, cache_dir=tmp_path / "cache", archive=str(packed))
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*")}
    again = tiny_imagenet(root=None, cache_dir=tmp_path / "cache", archive=str(packed), fetch=False)
    without = tiny_imagenet(root=None, cache_dir=tmp_path / "cache", fetch=False)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*")} == times
    assert first.fingerprint == again.fingerprint == without.fingerprint


def test_hidden_files_of_a_mac_do_no_harm(official: Path, tmp_path: Path) -> None:
    plain = tiny_imagenet(root=None, cache_dir=tmp_path / "plain", archive=str(pack(official, tmp_path / "t.zip")))
    for name in ("val/images/.DS_Store", "val/images/._val_0.JPEG", ".DS_Store", "train/.DS_Store"):
        (official / name).write_text("a Mac was here")
    packed = pack(official, tmp_path / "mac.zip")
    with zipfile.ZipFile(packed, "a") as archive:
        archive.writestr(f"__MACOSX/{NAME}/val/images/._val_0.JPEG", "a Mac was here")
    source = tiny_imagenet(root=None, cache_dir=tmp_path / "cache", archive=str(packed))
    assert source.fingerprint == plain.fingerprint
    assert tiny_imagenet(root=str(official), cache_dir=tmp_path / "cache").fingerprint == plain.fingerprint


def test_names_are_ids_without_words(official: Path, tmp_path: Path) -> None:
    named = tiny_imagenet(root=str(official), cache_dir=tmp_path)
    (official / "words.txt").write_text("n01443537\tgoldfish, Carassius auratus\nbroken\n")
    assert tiny_imagenet(root=str(official), cache_dir=tmp_path).names == ("goldfish", "n02124075", "n04067472")
    (official / "words.txt").unlink()
    source = tiny_imagenet(root=str(official), cache_dir=tmp_path)
    assert source.names == ()
    assert source.fingerprint == named.fingerprint
    (official / "words.txt").write_bytes(b"n01443537\t\xff\n")
    with pytest.raises(DataError, match=r"words\.txt cannot be read: .*utf-8"):
        tiny_imagenet(root=str(official), cache_dir=tmp_path)


# what damages it


def edit(change: Callable[[list[str]], list[str]]) -> Callable[[Path], None]:
    def damage(base: Path) -> None:
        path = base / "val/val_annotations.txt"
        path.write_text("".join(change(path.read_text().splitlines(keepends=True))))

    return damage


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a line is missing": (
        edit(lambda lines: lines[:-1]),
        r"val/images/val_5\.JPEG has no line in val_annotations\.txt \(1 such in all\)",
    ),
    "a line comes twice": (
        edit(lambda lines: [*lines, lines[2]]),
        r"val/val_annotations\.txt line 7 has val_2\.JPEG for the second time",
    ),
    "a class that train has not": (
        edit(lambda lines: [*lines[:3], lines[3].replace(WNIDS[0], "n09999999"), *lines[4:]]),
        r"val/val_annotations\.txt line 4 has n09999999, which is no class of train/",
    ),
    "a broken line": (
        edit(lambda lines: [lines[0], "val_1.JPEG n02124075\n", *lines[2:]]),
        r"val/val_annotations\.txt line 2 must be IMAGE, a tab and a WordNet id, got 'val_1\.JPEG n02124075'",
    ),
    "a line that leaves": (
        edit(lambda lines: [*lines, "../../x.JPEG\tn02124075\n"]),
        r"val/val_annotations\.txt line 7 must be IMAGE",
    ),
    "an image is not there": (
        lambda base: (base / "val/images/val_3.JPEG").unlink(),
        r"val/val_annotations\.txt names val_3\.JPEG, which is not in images/ \(1 such in all\)",
    ),
    "no annotations": (
        lambda base: (base / "val/val_annotations.txt").unlink(),
        r"val/val_annotations\.txt cannot be read: .*No such file",
    ),
    "no text": (
        lambda base: (base / "val/val_annotations.txt").write_bytes(b"\xff\xfe"),
        r"val/val_annotations\.txt cannot be read: .*utf-8",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("packed", [True, False])
def test_damage_is_named_and_nothing_is_left(official: Path, tmp_path: Path, damage: str, packed: bool) -> None:
    whole = pack(official, tmp_path / "t.zip")
    spoil, message = DAMAGES[damage]
    spoil(official)
    if packed:
        given = {"root": None, "archive": str(pack(official, tmp_path / "bad.zip"))}
        place = tmp_path / "bad.zip"
    else:
        given, place = {"root": str(official)}, official
    before = below(official)
    with pytest.raises(DataError, match=rf"^{re.escape(str(place))}/{message}"):
        tiny_imagenet(cache_dir=tmp_path / "cache", **given)
    assert below(official) == before
    if packed:
        assert not any((tmp_path / "cache").iterdir())
    tiny_imagenet(root=None, cache_dir=tmp_path / "cache", archive=str(whole))  # nothing stands in its way


def test_damage_ends_a_run_with_2_and_one_line(
    official: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    DAMAGES["a line comes twice"][0](official)
    packed = pack(official, tmp_path / "bad.zip")
    given = ["dataset=tiny_imagenet", f"dataset.archive={packed}", f"dataset.cache_dir={tmp_path / 'cache'}"]
    assert main([*LEAN, *given, "model=lenet5", f"run.dir={tmp_path / 'run'}"]) == 2
    assert capsys.readouterr().err == (
        f"tinyexp: {packed}/val/val_annotations.txt line 7 has val_2.JPEG for the second time\n"
    )
    assert not (tmp_path / "run").exists()


def test_what_is_no_tiny_imagenet_is_refused(official: Path, tmp_path: Path) -> None:
    shutil.rmtree(official / "val")
    with pytest.raises(DataError, match=rf"{NAME}/val is not there: \S*{NAME} is no Tiny ImageNet, which has train/"):
        tiny_imagenet(root=str(official), cache_dir=tmp_path)


def test_a_class_of_train_alone_is_refused(official: Path, tmp_path: Path) -> None:
    save(official / "train/n00000001/images/n00000001_0.JPEG", 1)
    with pytest.raises(DataError, match="must have the same classes, got 'n00000001' in train alone"):
        tiny_imagenet(root=str(official), cache_dir=tmp_path)


# the download


@pytest.fixture
def server(official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The archive where a download finds it, without a network."""
    packed = pack(official, tmp_path / "server.zip")
    utils = pytest.importorskip("torchvision.datasets.utils")
    monkeypatch.setattr(module, "_URL", packed.as_uri())
    monkeypatch.setattr(utils, "_urlretrieve", lambda url, path: shutil.copy(packed, path))
    return packed


def test_download_is_checked_unpacked_and_kept(
    official: Path, server: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MD5", hashlib.md5(server.read_bytes()).hexdigest())
    with pytest.raises(NotFetchedError, match=rf"{NAME}\.zip is not here yet"):
        tiny_imagenet(root=None, cache_dir=tmp_path / "cache", fetch=False)
    assert not (tmp_path / "cache").exists()
    source = tiny_imagenet(root=None, cache_dir=tmp_path / "cache")
    server.unlink()
    assert source.fingerprint == tiny_imagenet(root=str(official), cache_dir=tmp_path).fingerprint
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == [NAME, f"{NAME}.zip"]
    shutil.rmtree(tmp_path / "cache" / NAME)
    assert tiny_imagenet(root=None, cache_dir=tmp_path / "cache").fingerprint == source.fingerprint


@pytest.mark.usefixtures("server")
def test_download_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"{NAME}\.zip is not here; dataset\.archive=PATH.*failed now: ") as error:
        tiny_imagenet(root=None, cache_dir=tmp_path / "cache")
    assert f"dataset.root=FOLDER with {NAME}/" in str(error.value)
    assert not any((tmp_path / "cache").iterdir())


# the real one


@needs_real
@pytest.mark.slow
def test_real_archive(tmp_path: Path) -> None:
    packed = Path(os.environ["TINYEXP_DATA"], f"{NAME}.zip")
    before = packed.stat()
    source = tiny_imagenet(root=None, cache_dir=tmp_path, archive=str(packed))
    assert len(source.classes) == 200
    assert Counter(source.train.labels.tolist()) == dict.fromkeys(range(200), 50)
    assert Counter(source.val.labels.tolist()) == dict.fromkeys(range(200), 10)
    assert source.names[source.classes.index("n01443537")] == "goldfish"
    assert len(list((tmp_path / NAME / "test").iterdir())) == 500
    assert not source.listing.others
    assert (packed.stat().st_size, packed.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert [path.name for path in tmp_path.iterdir()] == [NAME]
    with zipfile.ZipFile(packed) as archive:
        archive.extractall(tmp_path / "official")
    official = tiny_imagenet(root=str(tmp_path / "official"), cache_dir=tmp_path, fetch=False)
    assert official.fingerprint == source.fingerprint
    assert samples(official) == samples(source)
    stored = decoded(source, replace(PLAIN.loader, cache_dir=str(tmp_path), image_size=64))
    assert stored.train.fetch(np.arange(0, 10_000, 100)).shape == (100, 64, 64, 3)
