"""Folders of images: which files of them are listed, what is held out, archives of them, and what is refused."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import tarfile
import unicodedata
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import write_image
from odd_images import noise, save

from tinyexp.data import decode
from tinyexp.data.filesplit import FileSplit
from tinyexp.data.folder import imagefolder
from tinyexp.data.listing import ListingError
from tinyexp.data.source import Source
from tinyexp.errors import DataError, NotFetchedError


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
def flat(tmp_path: Path) -> Path:
    """root/{ant,bee,cow}: 20, 7 and 2 images, and no train/ or val/."""
    for name, count in (("ant", 20), ("bee", 7), ("cow", 2)):
        for number in range(count):
            (tmp_path / "flat" / name).mkdir(parents=True, exist_ok=True)
            (tmp_path / "flat" / name / f"{number}.png").write_bytes(bytes(number))  # listing opens no file
    return tmp_path / "flat"


def read(root: Path | None, **given: Any) -> Source:
    given.setdefault("cache_dir", Path("/nowhere"))
    return imagefolder(root=None if root is None else str(root), **given)


def names(source: Source, phase: str) -> list[str]:
    """CLASS/FILE of each sample."""
    split = getattr(source, phase)
    assert isinstance(split, FileSplit)
    return [f"{source.classes[label]}/{Path(path).name}" for path, label in zip(split.paths, split.labels, strict=True)]


def same(one: Source, other: Source) -> bool:
    """The same data set, wherever it stands."""
    return (one.fingerprint, one.classes, names(one, "train"), names(one, "val")) == (
        other.fingerprint,
        other.classes,
        names(other, "train"),
        names(other, "val"),
    )


# what is listed


def test_classes_and_files_are_sorted(tree: Path) -> None:
    source = read(tree)
    assert source.classes == ("ant", "bee")
    assert source.names == ()
    assert source.train.labels.tolist() == [0, 0, 0, 1, 1]
    assert source.val.labels.tolist() == [0, 1]
    assert names(source, "train") == ["ant/10.gif", "ant/2.bmp", "ant/x.Jpeg", "bee/a.jpg", "bee/b.PNG"]


def test_images_are_rgb_of_their_own_size(tree: Path) -> None:
    pixels = noise(8, 11)
    save(tree / "train/ant/0.png", pixels)
    save(tree / "train/ant/1.png", pixels[:5, :, 0])
    source = read(tree)
    first, second = source.train.fetch(np.array([0, 1]))
    assert np.array_equal(first, pixels)
    assert np.array_equal(second, pixels[:5, :, :1].repeat(3, 2))


def test_an_image_that_cannot_be_decoded_is_named_when_it_is_fetched(tree: Path) -> None:
    (tree / "train/ant/0.png").write_text("no image")
    split = read(tree).train
    assert split.fetch(np.array([1]))[0].shape == (20, 30, 3)
    with pytest.raises(DataError, match=r"train/ant/0\.png cannot be decoded"):
        split.fetch(np.array([1, 0]))


@pytest.mark.parametrize("extension", decode.EXTENSIONS)
def test_extension_in_any_case_is_an_image(tree: Path, extension: str) -> None:
    for name in (f"1{extension}", f"2{extension.upper()}", f"3{extension.title()}"):
        (tree / "val/bee" / name).touch()
    assert len(read(tree).val.labels) == 2 + 3


def test_what_is_hidden_or_no_image_is_left_out(tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = read(tree)
    for name in (
        "train/.cache/a.png",
        "train/.ipynb_checkpoints/a.png",
        "train/ant/.ipynb_checkpoints/2-checkpoint.bmp",
        "train/__MACOSX/a.png",
        "__MACOSX/train/ant/a.png",
        "train/ant/._2.png",
        "train/ant/.x/a.png",
        ".git/a.png",
    ):
        write_image(tree / name)
    (tree / "train/ant/notes.txt").write_text("not an image")
    (tree / "train/ant/Thumbs.db").write_text("neither")
    after = read(tree)
    assert same(before, after)
    assert not caplog.records
    assert sorted(Path(path).name for path in after.listing.others) == ["Thumbs.db", "notes.txt"]


def test_images_outside_of_classes_are_warned_of(tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = read(tree)
    for name in ("train/loose.png", "val/loose.png"):
        write_image(tree / name)
    with caplog.at_level(logging.WARNING):
        after = read(tree)
    assert same(before, after)
    assert f"2 images stand in no class's folder and are left out, as {tree}/train/loose.png" in caplog.text


NAMES = (
    "with some spaces",
    "[brackets] ,=+'\"$ %s {x}",
    "Größe",
    "ネコ",
    "🐱",
    "new\nline",
    "a\\b",
    "-rf",
    "x" * 200,
    unicodedata.normalize("NFD", "é"),
)


def test_any_name_will_do(tmp_path: Path) -> None:
    for phase in ("train", "val"):
        for name in NAMES:
            write_image(tmp_path / phase / name / f"{name}.png")
    source = read(tmp_path)
    assert source.classes == tuple(sorted(NAMES))
    assert names(source, "train") == [f"{name}/{name}.png" for name in sorted(NAMES)]
    assert len(source.train.fetch(np.arange(len(NAMES)))) == len(NAMES)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere each name is text")
def test_a_name_of_bytes_that_are_no_text_will_do(flat: Path) -> None:
    stray = os.fsencode(flat / "ant") + b"/\xff\xfe.png"
    Path(os.fsdecode(stray)).write_bytes(b"12345")
    source = read(flat, val_fraction=0.2)
    assert os.fsdecode(stray) in source.train.paths + source.val.paths


# the fingerprint


def test_fingerprint_moves_with_the_folder(tree: Path) -> None:
    before = read(tree)
    moved = tree.rename(tree.with_name("moved"))
    for path in moved.rglob("*"):
        os.utime(path, (1, 1))
    assert same(read(moved), before)
    write_image(moved / "train/ant/2.bmp", size=(31, 20))
    assert read(moved).fingerprint != before.fingerprint


def test_fingerprint_tells_trees_apart(tree: Path) -> None:
    found = [read(tree).fingerprint]
    for one, other in (
        ("train/ant/2.bmp", "train/ant/3.bmp"),  # another name
        ("train/ant/3.bmp", "train/bee/3.bmp"),  # another class
        ("train/bee/3.bmp", "val/bee/3.bmp"),  # another phase
        ("train/ant/deep/er/x.Jpeg", "train/ant/deep/x.Jpeg"),  # another folder
        ("train/ant/deep/x.Jpeg", "train/ant/0.jpg"),
        ("train/bee/a.jpg", "train/ant/a.jpg"),  # another class, at the same place in order
    ):
        (tree / one).rename(tree / other)
        found.append(read(tree).fingerprint)
    assert len(set(found)) == len(found)


def test_identity_follows_time_too(tree: Path) -> None:
    before = read(tree)
    os.utime(tree / "train/ant/2.bmp", (1, 1))
    after = read(tree)
    assert after.fingerprint == before.fingerprint
    assert after.train.identity != before.train.identity
    assert after.val.identity == before.val.identity
    assert len({before.train.identity, before.val.identity}) == 2


# links


def test_a_loop_is_not_followed(tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = read(tree)
    (tree / "train/ant/loop").symlink_to(tree / "train", target_is_directory=True)
    (tree / "train/loop").symlink_to(tree / "train", target_is_directory=True)
    (tree / "train/ant/same.bmp").symlink_to(tree / "train/ant/2.bmp")
    after = read(tree)
    assert after.classes == before.classes
    assert len(after.train.labels) == len(before.train.labels) + 1
    assert "ant/loop is a link to a folder and is not followed" in caplog.text


@pytest.mark.parametrize("name", ["train/ant/out.png", "train/ant/out", "train/out", "val/out.png"])
def test_a_link_that_leaves_is_refused(tree: Path, name: str) -> None:
    outside = write_image(tree.with_name("outside") / "x.png")
    (tree / name).symlink_to(outside if name.endswith(".png") else outside.parent)
    with pytest.raises(DataError, match=f"{name} is a link that leaves dataset.root=.*put the file itself there"):
        read(tree)


def test_the_root_itself_may_be_a_link(tree: Path) -> None:
    link = tree.with_name("link")
    link.symlink_to(tree, target_is_directory=True)
    (tree / "train/ant/same.bmp").symlink_to("2.bmp")
    assert same(read(link), read(tree))


def test_a_link_to_nothing_or_itself_is_named(tree: Path) -> None:
    link = tree / "train/ant/broken.png"
    link.symlink_to("broken.png")
    with pytest.raises(DataError, match=r"broken\.png cannot be read \(Too many levels"):
        read(tree)
    link.unlink()
    link.symlink_to("gone.png")
    with pytest.raises(DataError, match=r"broken\.png cannot be read \(No such file"):
        read(tree)


# a layout that is not there, classes that differ


def test_errors_name_the_cure(tree: Path) -> None:
    with pytest.raises(DataError, match=r"dataset\.root is not given: dataset\.root=FOLDER must .*dataset\.archive="):
        read(None)
    with pytest.raises(DataError, match=r"dataset\.root=\S*nowhere is no folder: dataset\.root=FOLDER must have"):
        read(tree / "nowhere")
    with pytest.raises(DataError, match=r"2\.bmp is no folder"):
        read(tree / "train/ant/2.bmp")
    with pytest.raises(DataError, match=r"train/train is not there, but ant, bee: .*dataset\.val_fraction=0\.1"):
        read(tree / "train")
    (tree.with_name("empty")).mkdir()
    with pytest.raises(DataError, match=r"empty/train is not there, but no folder: "):
        read(tree.with_name("empty"))


def test_train_alone_is_an_error_that_names_the_share(tree: Path) -> None:
    shutil.rmtree(tree / "val")
    with pytest.raises(DataError, match=r"tree/val is not there, but train: .*dataset\.val_fraction=0\.1"):
        read(tree)


def test_a_phase_without_classes_is_refused(tree: Path) -> None:
    shutil.rmtree(tree / "train")
    write_image(tree / "train/a.png")
    with pytest.raises(DataError, match=r"tree/train has no folder of a class: dataset\.root=FOLDER"):
        read(tree)


@pytest.mark.parametrize("phase", ["train", "val"])
def test_a_class_without_images_is_refused(tree: Path, phase: str) -> None:
    for each in ("train", "val"):
        write_image(tree / each / "cat/x.png")
    (tree / phase / "cat/x.png").rename(tree / phase / "cat/x.txt")
    with pytest.raises(ListingError, match=rf"{phase}/cat has no image \(\.jpg .*\): remove it") as error:
        read(tree)
    assert error.value.listing.phases[phase]["cat"] == []


@pytest.mark.parametrize(("phase", "other"), [("train", "val"), ("val", "train")])
def test_classes_of_one_phase_alone_are_refused(tree: Path, phase: str, other: str) -> None:
    write_image(tree / phase / "cat/x.png")
    with pytest.raises(
        ListingError, match=rf"tree/train and \S*tree/val must have.*got 'cat' in {phase} alone \(1 such"
    ) as error:
        read(tree)
    assert set(error.value.listing.phases[phase]) - set(error.value.listing.phases[other]) == {"cat"}


def test_one_class_is_none(tmp_path: Path) -> None:
    for phase in ("train", "val"):
        write_image(tmp_path / phase / "ant/x.png")
    with pytest.raises(DataError, match=r"at least 2 classes, got \['ant'\]"):
        read(tmp_path)


# one nested folder


def test_one_folder_around_it_is_gone_into(tree: Path, tmp_path: Path) -> None:
    alone = read(tree)
    outer = tmp_path / "outer"
    (outer / "__MACOSX/tree").mkdir(parents=True)
    (outer / ".DS_Store").touch()
    (outer / "pets/v2").mkdir(parents=True)
    tree.rename(outer / "pets/v2/tree")
    source = read(outer)
    assert same(source, alone)
    assert source.origin == str(outer / "pets/v2/tree")
    (outer / "README").touch()
    with pytest.raises(DataError, match=r"outer/train is not there, but .*pets"):
        read(outer)


def test_one_folder_around_classes_is_gone_into(flat: Path, tmp_path: Path) -> None:
    alone = read(flat, val_fraction=0.2)
    (tmp_path / "outer").mkdir()
    flat.rename(tmp_path / "outer/flat")
    assert same(read(tmp_path / "outer", val_fraction=0.2), alone)


# a share that is held out


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.25, 0.5, 0.99])
def test_each_class_gives_its_share(flat: Path, fraction: float) -> None:
    whole = sorted(f"{path.parent.name}/{path.name}" for path in flat.rglob("*.png"))
    source = read(flat, val_fraction=fraction)
    train, val = names(source, "train"), names(source, "val")
    assert sorted(train + val) == whole  # disjoint, and nothing is lost
    for label, count in enumerate((20, 7, 2)):
        held_out = int((source.val.labels == label).sum())
        assert 1 <= held_out <= count - 1
        assert abs(held_out - fraction * count) < 1 or held_out in (1, count - 1)


def test_the_share_follows_the_seed_alone(flat: Path, tmp_path: Path) -> None:
    first = read(flat, val_fraction=0.25, split_seed=3)
    copied = Path(shutil.copytree(flat, tmp_path / "elsewhere"))
    assert same(read(copied, val_fraction=0.25, split_seed=3), first)
    other = read(flat, val_fraction=0.25, split_seed=4)
    assert names(other, "val") != names(first, "val")
    assert other.fingerprint != first.fingerprint


def test_the_share_is_the_same_on_every_machine(flat: Path) -> None:
    held_out = [
        "ant/1.png",
        "ant/10.png",
        "ant/19.png",
        "ant/2.png",
        "ant/5.png",
        "bee/4.png",
        "bee/5.png",
        "cow/1.png",
    ]
    assert names(read(flat, val_fraction=0.25), "val") == held_out


@pytest.mark.parametrize("seed", range(5))
def test_more_images_later_leave_the_others_where_they_are(flat: Path, seed: int) -> None:
    """But for a few at the border, and those all to one side."""
    before = read(flat, val_fraction=0.25, split_seed=seed)
    for number in range(20, 40):
        (flat / "ant" / f"{number}.png").touch()
    (flat / "dog").mkdir()
    for number in range(4):
        (flat / "dog" / f"{number}.png").touch()
    after = read(flat, val_fraction=0.25, split_seed=seed)
    known = set(names(before, "train") + names(before, "val"))
    left, joined = set(names(before, "val")), set(names(after, "val")) & known
    assert left <= joined or joined <= left
    moved = left ^ joined
    assert all(name.startswith("ant/") for name in moved)
    assert len(moved) <= 4  # drawn anew it would be 8 of these 20


def test_train_without_val_gives_a_share(flat: Path, tmp_path: Path) -> None:
    alone = read(flat, val_fraction=0.25)
    (tmp_path / "outer").mkdir()
    flat.rename(tmp_path / "outer/train")
    (tmp_path / "outer/test").mkdir()
    assert same(read(tmp_path / "outer", val_fraction=0.25), alone)


def test_a_val_of_its_own_forbids_a_share(tree: Path) -> None:
    with pytest.raises(DataError, match=r"tree has a val/ of its own: leave dataset\.val_fraction=0\.1 out"):
        read(tree, val_fraction=0.1)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, 2, float("nan")])
def test_a_share_is_between_0_and_1(flat: Path, fraction: float) -> None:
    with pytest.raises(DataError, match=r"dataset\.val_fraction must be between 0 and 1, got "):
        read(flat, val_fraction=fraction)


def test_an_image_alone_in_its_class_cannot_be_shared(flat: Path) -> None:
    (flat / "cow/0.png").unlink()
    with pytest.raises(DataError, match=r"cow/1\.png is alone in its class: .* at least 2 images of each"):
        read(flat, val_fraction=0.1)
    (flat / "cow/1.png").unlink()
    with pytest.raises(ListingError, match="cow has no image"):
        read(flat, val_fraction=0.1)


# archives


def pack(tree: Path, path: Path) -> Path:
    """A .zip or .tar.gz of the tree, with the folder itself as people have it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files = sorted(file for file in tree.rglob("*") if file.is_file())
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for file in files:
                archive.write(file, file.relative_to(tree.parent))
    else:
        with tarfile.open(path, "w:gz") as archive:
            archive.add(tree, tree.name)
    return path


def times(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize("end", [".zip", ".tar.gz", ".tgz"])
@pytest.mark.parametrize("own", [False, True])
def test_an_archive_is_the_folder_that_it_was_made_of(tree: Path, tmp_path: Path, end: str, own: bool) -> None:
    packed = pack(tree, tmp_path / "packed" / f"pets.v1{end}")
    status, content = packed.stat(), packed.read_bytes()
    root = tmp_path / "mine" if own else None
    source = read(root, archive=str(packed), cache_dir=tmp_path / "cache")
    assert same(source, read(tree))
    home = tmp_path / ("mine" if own else "cache/unpacked")
    assert source.origin == str(home / "pets.v1/tree")
    assert [path.name for path in home.iterdir()] == ["pets.v1"]  # nothing else is left
    assert len({path.name for path in tmp_path.iterdir()}) == 3
    assert (packed.stat().st_mtime_ns, packed.read_bytes()) == (status.st_mtime_ns, content)


def test_an_archive_of_classes_gives_a_share(flat: Path, tmp_path: Path) -> None:
    packed = pack(flat, tmp_path / "pets.zip")
    source = read(None, archive=str(packed), cache_dir=tmp_path / "cache", val_fraction=0.25)
    assert same(source, read(flat, val_fraction=0.25))


def test_an_archive_without_an_extension_is_not_its_own_folder(tree: Path, tmp_path: Path) -> None:
    packed = pack(tree, tmp_path / "pets.zip").rename(tmp_path / "pets")
    source = read(tmp_path, archive=str(packed))
    assert source.origin == str(tmp_path / "pets-unpacked/tree")


def test_an_archive_is_unpacked_once(tree: Path, tmp_path: Path) -> None:
    packed = pack(tree, tmp_path / "pets.zip")
    first = read(None, archive=str(packed), cache_dir=tmp_path / "cache")
    before = times(tmp_path / "cache")
    second = read(None, archive=str(packed), cache_dir=tmp_path / "cache", fetch=False)
    os.utime(packed, (1, 1))  # as a copy has another time: told by its content
    third = read(None, archive=str(packed), cache_dir=tmp_path / "cache", fetch=False)
    assert same(first, second)
    assert same(first, third)
    assert times(tmp_path / "cache") == before
    packed.unlink()
    assert same(read(tmp_path / "cache/unpacked/pets"), first)  # the folder stands by itself


def test_an_archive_is_not_unpacked_unless_it_may(tree: Path, tmp_path: Path) -> None:
    packed = pack(tree, tmp_path / "pets.zip")
    with pytest.raises(
        NotFetchedError, match=rf"pets\.zip is not unpacked yet; .*prepare.*to {tmp_path}/cache/unpacked/pets"
    ):
        read(None, archive=str(packed), cache_dir=tmp_path / "cache", fetch=False)
    assert not (tmp_path / "cache").exists()


def test_another_archive_for_the_same_folder_is_refused(tree: Path, tmp_path: Path) -> None:
    packed = pack(tree, tmp_path / "pets.zip")
    first = read(None, archive=str(packed), cache_dir=tmp_path / "cache")
    write_image(tree / "train/ant/more.png")
    other = pack(tree, tmp_path / "other/pets.zip")
    told = rf"{tmp_path}/cache/unpacked/pets was unpacked from another archive than {other}: remove it, or give another"
    with pytest.raises(DataError, match=told):
        read(None, archive=str(other), cache_dir=tmp_path / "cache")
    assert same(read(tmp_path / "cache/unpacked/pets"), first)


def test_an_archive_beside_a_folder_of_that_name_is_refused(tree: Path, tmp_path: Path) -> None:
    packed = pack(tree, tmp_path / "tree.zip")
    before = times(tree)
    told = rf"{tree} is there already and was not unpacked from dataset\.archive={packed}: leave dataset\.archive out"
    with pytest.raises(DataError, match=told):
        read(tmp_path, archive=str(packed))
    (tree / ".archive.json").write_text("[]")
    with pytest.raises(DataError, match="is there already"):
        read(tmp_path, archive=str(packed))
    (tree / ".archive.json").unlink()
    assert times(tree).keys() == before.keys()


def test_a_missing_archive_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "pets.zip", tmp_path):
        with pytest.raises(DataError, match=rf"dataset\.archive={path} is not a file: give the path of a \.zip"):
            read(None, archive=str(path), cache_dir=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_damaged_archive_leaves_nothing(tree: Path, tmp_path: Path) -> None:
    packed = pack(tree, tmp_path / "pets.zip")
    content = bytearray(packed.read_bytes())
    content[60] ^= 1  # among the first file's bytes
    packed.write_bytes(content)
    with pytest.raises(DataError, match=r"pets\.zip"):
        read(None, archive=str(packed), cache_dir=tmp_path / "cache")
    assert not any((tmp_path / "cache/unpacked").iterdir())
    pack(tree, packed)
    assert same(read(None, archive=str(packed), cache_dir=tmp_path / "cache"), read(tree))
