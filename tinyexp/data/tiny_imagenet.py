"""Tiny ImageNet (Stanford CS231n): 200 classes of ImageNet at 64 px, 100,000 train and 10,000 val images."""

from __future__ import annotations

import logging
from collections.abc import Set
from pathlib import Path

from tinyexp.data.download import from_url
from tinyexp.data.listing import Classes, Listing, list_classes, make_source
from tinyexp.data.source import Source
from tinyexp.data.unpacked import unpack_once
from tinyexp.errors import DataError

_NAME = "tiny-imagenet-200"
_URL = f"http://cs231n.stanford.edu/{_NAME}.zip"
_MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
_ANNOTATIONS = "val_annotations.txt"

log = logging.getLogger(__name__)


def tiny_imagenet(*, root: str | None, cache_dir: Path, archive: str | None = None, fetch: bool = True) -> Source:
    """RGB images of 64x64; the classes are WordNet ids, their names those of words.txt.

    Args:
        root: a folder with tiny-imagenet-200/, or that folder itself, as it is distributed or sorted into
            train/CLASS/* and val/CLASS/*; None: cache_dir.
        archive: tiny-imagenet-200.zip; unpacked once into root/tiny-imagenet-200, its images sorted by class.
        fetch: whether it may be downloaded and unpacked now.

    Raises:
        DataError: it is not there and cannot be downloaded, or is not what it should be.
        NotFetchedError: it would have to be fetched.
    """
    home = cache_dir if root is None else Path(root).expanduser()
    base = home if archive is None and (home / "train").is_dir() else home / _NAME
    if archive is None and not base.exists():
        packed = cache_dir / f"{_NAME}.zip"
        cure = f"dataset.archive=PATH/{_NAME}.zip, dataset.root=FOLDER with {_NAME}/,"
        from_url(_URL, _MD5, packed, fetch=fetch, cure=cure)
        archive = str(packed)
    if archive is not None:
        unpack_once(Path(archive).expanduser(), base, fetch=fetch, place=_place, arrange=_arrange)
    base = base.resolve()
    listing = Listing(base=base, phases={})
    for phase in ("train", "val"):
        if not (base / phase).is_dir():
            raise DataError(f"{base / phase} is not there: {base} is no Tiny ImageNet, which has train/ and val/")
    official = (base / "val" / "images").is_dir()
    train = list_classes(base / "train", listing, inside="images")
    val = _official_val(base, listing, train) if official else list_classes(base / "val", listing, inside="images")
    own = (".txt",)  # its annotations and boxes, which are no strays
    listing.others = [path for path in listing.others if not path.endswith(own)]
    listing.phases = {"train": train, "val": val}
    return make_source(listing, _read_names(base))


def _place(name: str) -> str | None:
    """Where a file goes: its folders flattened; boxes, which no classifier needs, and hidden files stay out."""
    parts = name.split("/")
    if parts[0] == _NAME:
        parts = parts[1:]
    boxes = len(parts) == 3 and parts[0] == "train" and parts[2].endswith("_boxes.txt")
    if boxes or not parts or parts[-1].startswith("."):
        return None
    if len(parts) > 2 and parts[-2] == "images" and parts[0] in ("train", "test"):
        del parts[-2]
    return "/".join(parts)


def _arrange(folder: Path) -> None:
    """Sort val/images/* into val/CLASS/*, as val_annotations.txt says."""
    images = folder / "val" / "images"
    if not images.is_dir():
        return  # sorted by hand before it was packed
    known = {path.name for path in (folder / "train").glob("*")}
    classes = _read_annotations(folder / "val" / _ANNOTATIONS, known)
    present = {path.name for path in images.iterdir()}
    _check_annotated(folder / "val", classes, present)
    for name in sorted(set(classes.values())):
        if (folder / "val" / name).exists():
            raise DataError(f"{folder / 'val'} has both images/ and {name}/: which of them counts is not to be told")
        (folder / "val" / name).mkdir()
    for image, name in classes.items():
        (images / image).rename(folder / "val" / name / image)
    images.rmdir()
    log.info(
        "sorted %s val images into %d classes by %s", f"{len(classes):,}", len(set(classes.values())), _ANNOTATIONS
    )


def _official_val(base: Path, listing: Listing, train: Classes) -> Classes:
    """The images of val/images by class, as val_annotations.txt says."""
    classes = _read_annotations(base / "val" / _ANNOTATIONS, train.keys())
    files = {file.name: file for file in list_classes(base / "val", listing)["images"]}
    _check_annotated(base / "val", classes, set(files))
    val = Classes({name: [] for name in sorted(set(classes.values()))})
    for image in sorted(classes):
        val[classes[image]].append(files[image])
    return val


def _read_annotations(path: Path, known: Set[str]) -> dict[str, str]:
    """Image -> WordNet id.

    Raises DataError, naming the line, for one that is not `IMAGE<tab>ID...`, has another ID than `known`, or an image
    for the second time.
    """
    classes: dict[str, str] = {}
    for number, line in enumerate(_read_lines(path), start=1):
        parts = line.split("\t")
        plain = len(parts) >= 2 and parts[0] and "/" not in parts[0] and parts[1].isalnum()
        if not plain:
            raise DataError(f"{path} line {number} must be IMAGE, a tab and a WordNet id, got {line[:80]!r}")
        if parts[0] in classes:
            raise DataError(f"{path} line {number} has {parts[0]} for the second time")
        if parts[1] not in known:
            raise DataError(f"{path} line {number} has {parts[1]}, which is no class of train/")
        classes[parts[0]] = parts[1]
    return classes


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _check_annotated(val: Path, classes: dict[str, str], present: set[str]) -> None:
    if missing := sorted(classes.keys() - present):
        raise DataError(
            f"{val / _ANNOTATIONS} names {missing[0]}, which is not in images/ ({len(missing)} such in all)"
        )
    if unknown := sorted(present - classes.keys()):
        raise DataError(f"{val / 'images' / unknown[0]} has no line in {_ANNOTATIONS} ({len(unknown)} such in all)")


def _read_names(base: Path) -> dict[str, str]:
    """WordNet id -> the first of its names; none where words.txt is missing."""
    path = base / "words.txt"
    if not path.is_file():
        return {}
    rows = (line.split("\t") for line in _read_lines(path))
    return {row[0]: row[1].split(",")[0].strip() for row in rows if len(row) == 2}
