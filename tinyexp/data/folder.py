"""A folder of images: root/train/CLASS/* and root/val/CLASS/*, or root/CLASS/* of which a share becomes val."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path

from tinyexp.data.listing import Classes, Listing, list_classes, make_source
from tinyexp.data.source import Source
from tinyexp.data.unpacked import unpack_once
from tinyexp.errors import DataError

_CURE = "dataset.root=FOLDER must have train/CLASS/* and val/CLASS/*, or CLASS/* with dataset.val_fraction=0.1"
_PACKED = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")

log = logging.getLogger(__name__)


def imagefolder(
    *,
    root: str | None,
    cache_dir: Path,
    archive: str | None = None,
    val_fraction: float | None = None,
    split_seed: int = 0,
    fetch: bool = True,
) -> Source:
    """RGB images of any size; the classes are the folders' names, sorted.

    Args:
        root: the folder; with `archive`, the one into which it is unpacked, as root/ARCHIVE; None: cache_dir/unpacked.
        archive: a .zip or .tar of such a folder, unpacked once.
        val_fraction: share of each class that becomes val, where there is no val/; the same for the same `split_seed`.
        fetch: whether the archive may be unpacked now.

    Raises:
        DataError: a folder that is missing or empty, train/ and val/ of different classes, a link that leaves `root`,
            an archive that is refused.
        NotFetchedError: the archive would have to be unpacked.
    """
    base = cache_dir if root is None else Path(root).expanduser()
    if archive is not None:
        packed = Path(archive).expanduser()
        stem = next((packed.name.removesuffix(end) for end in _PACKED if packed.name.endswith(end)), packed.name)
        base = base / "unpacked" if root is None else base
        base = base / (stem if stem != packed.name else f"{stem}-unpacked")
        unpack_once(packed, base, fetch=fetch)
    elif root is None:
        raise DataError(f"dataset.root is not given: {_CURE}; or give dataset.archive=FILE.zip")
    if not base.is_dir():
        raise DataError(f"dataset.root={base} is no folder: {_CURE}")
    base = _descend(base.resolve())
    listing = Listing(base=base, phases={})
    if val_fraction is None:
        listing.phases = {phase: _list(base / phase, listing) for phase in ("train", "val")}
    else:
        if (base / "val").is_dir():
            raise DataError(f"{base} has a val/ of its own: leave dataset.val_fraction={val_fraction} out")
        tree = base / "train" if (base / "train").is_dir() else base
        listing.phases = _hold_out(_list(tree, listing), val_fraction, split_seed)
    return make_source(listing)


def _descend(base: Path) -> Path:
    """Into the one folder that holds all, as archives often have it."""
    while not (base / "train").is_dir():
        inside = [path for path in base.iterdir() if not path.name.startswith((".", "__MACOSX"))]
        if len(inside) != 1 or not inside[0].is_dir() or not any(path.is_dir() for path in inside[0].iterdir()):
            break
        base = inside[0]
    return base


def _list(folder: Path, listing: Listing) -> Classes:
    if not folder.is_dir():
        there = sorted(path.name for path in listing.base.iterdir() if path.is_dir())
        raise DataError(f"{folder} is not there, but {', '.join(there[:5]) or 'no folder'}: {_CURE}")
    if not folder.resolve().is_relative_to(listing.base):
        raise DataError(f"{folder} is a link that leaves dataset.root={listing.base}: give the folder itself")
    classes = list_classes(folder, listing)
    if not classes:
        raise DataError(f"{folder} has no folder of a class: {_CURE}")
    return classes


def _hold_out(classes: Classes, fraction: float, seed: int) -> dict[str, Classes]:
    """Each class's share, the first by a hash of the names: with more images later, few of the others move."""
    if not 0 < fraction < 1:
        raise DataError(f"dataset.val_fraction must be between 0 and 1, got {fraction}")
    train, val = Classes(), Classes()
    for name, files in classes.items():
        if len(files) == 1:
            raise DataError(
                f"{files[0].path} is alone in its class: dataset.val_fraction needs at least 2 images of each"
            )
        order = sorted(files, key=lambda file: hashlib.blake2b(os.fsencode(f"{seed} {name}/{file.name}")).digest())
        held_out = set(order[: min(max(round(len(files) * fraction), 1), len(files) - 1)])
        val[name] = [file for file in files if file in held_out]
        train[name] = [file for file in files if file not in held_out]
    return {"train": train, "val": val}
