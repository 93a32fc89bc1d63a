"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009): 50,000 train and 10,000 val colour images of 32x32, by torchvision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tinyexp.cached import cached
from tinyexp.data.download import from_torchvision
from tinyexp.data.source import ArraySplit, Source, fingerprint
from tinyexp.errors import DataError


def cifar10(*, root: str | None, cache_dir: Path, fetch: bool = True) -> Source:
    """10 classes, (32, 32, 3). Read from `root` as torchvision lays it out, else downloaded into it or `cache_dir`.

    Raises DataError where neither works, and for a damaged file; NotFetchedError where it would have to be downloaded
    and `fetch` is false.
    """
    return _read("CIFAR10", "cifar-10-batches-py", root, cache_dir, fetch)


def cifar100(*, root: str | None, cache_dir: Path, fetch: bool = True) -> Source:
    """100 classes; shapes and errors as of `cifar10`."""
    return _read("CIFAR100", "cifar-100-python", root, cache_dir, fetch)


def _read(name: str, inside: str, root: str | None, cache_dir: Path, fetch: bool) -> Source:
    folder = (cache_dir if root is None else Path(root).expanduser()) / inside
    cure = f"dataset.root=FOLDER with torchvision's {inside}/"
    from_torchvision(name, folder, inside, fetch=fetch, cure=cure)
    content = cached(key=["name", "folder"], folder=cache_dir / "cifar")(_load)(name, folder)
    return Source(
        classes=tuple(content["classes"]),
        channels=3,
        train=ArraySplit(content["train"], content["train_labels"]),
        val=ArraySplit(content["val"], content["val_labels"]),
        fingerprint=content["fingerprint"],
        origin=str(folder),
    )


def _load(name: str, folder: Path) -> dict[str, Any]:
    """The files' content as arrays; torchvision checks each file's MD5 before it unpickles it."""
    from torchvision import datasets

    found: dict[str, Any] = {}
    for phase in ("train", "val"):
        try:
            part = getattr(datasets, name)(folder.parent, train=phase == "train")
        except (RuntimeError, OSError, EOFError) as error:
            raise DataError(
                f"{folder} is not what torchvision downloads: {error} Remove it, and it is fetched"
            ) from error
        images = np.ascontiguousarray(part.data)  # torchvision's is a transposed view
        found |= {phase: images, f"{phase}_labels": np.array(part.targets, np.int64), "classes": part.classes}
    parts = [found[key] for key in ("train", "val")] + [
        str(found[f"{phase}_labels"].tolist()) for phase in ("train", "val")
    ]
    return found | {"fingerprint": fingerprint(*parts)}
