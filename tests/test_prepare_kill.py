"""SIGKILL at any moment of `prepare` costs time alone: the next one makes the same, and nothing is left over."""

from __future__ import annotations

import io
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from faults import until
from helpers import PLAIN
from PIL import Image

from tinyexp.data.decode import decode
from tinyexp.data.store import StoredSplit, decoded
from tinyexp.data.tiny_imagenet import tiny_imagenet

NAME = "tiny-imagenet-200"
WNIDS = ("n01443537", "n02124075", "n04067472", "n07734744")
TRAIN, VAL, TEST = 125, 25, 1500  # images a class, a class, in all
SIDE = 128  # px, so that decoding takes as long as the start of the processes that decode
TRIES = 20


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny ImageNet's official layout, of noise; test/, which is unpacked and not decoded, makes unpacking longer."""
    path, rng, annotations = tmp_path_factory.mktemp("archive") / f"{NAME}.zip", np.random.default_rng(0), ""
    with zipfile.ZipFile(path, "w") as file:

        def add_image(name: str) -> None:
            content = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(content, "JPEG")
            file.writestr(f"{NAME}/{name}", content.getvalue())

        for number, wnid in enumerate(WNIDS):
            for image in range(TRAIN):
                add_image(f"train/{wnid}/images/{wnid}_{image}.JPEG")
            for image in range(number, len(WNIDS) * VAL, len(WNIDS)):
                add_image(f"val/images/val_{image}.JPEG")
                annotations += f"val_{image}.JPEG\t{wnid}\t0\t0\t9\t9\n"
        for image in range(TEST):
            file.writestr(f"{NAME}/test/images/test_{image}.JPEG", rng.bytes(5000))
        file.writestr(f"{NAME}/val/val_annotations.txt", annotations)
        file.writestr(f"{NAME}/wnids.txt", "".join(f"{wnid}\n" for wnid in WNIDS))
    return path


class Prepare:
    """The verb in a process group of its own, on `cache`."""

    def __init__(self, archive: Path, cache: Path) -> None:
        words = ["dataset=tiny_imagenet", f"dataset.archive={archive}", f"dataset.cache_dir={cache}"]
        self._output = cache.with_name("output.txt")
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tinyexp", "prepare", *words],
                cwd=cache.parent,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    @property
    def has_ended(self) -> bool:
        """Without a wait, so that its number stays its own."""
        return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def kill(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)

    def wait(self) -> tuple[int, str]:
        """Exit code and output, when no process of the group is left. Raises AssertionError where one stays."""
        try:
            code = self._process.wait(60)
            until(lambda: not group_alive(self._process.pid), seconds=10)
        finally:
            if group_alive(self._process.pid):
                self.kill()
        return code, self._output.read_text()


def group_alive(group: int) -> bool:
    """A zombie does not count, since who its parent is now may not look after it."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = path.read_text().rpartition(")")[2].split()[:3]
        except OSError:  # it has ended
            continue
        if int(its_group) == group and state not in "ZX":
            return True
    return False


def entries(cache: Path) -> set[str]:
    """What stands in the cache and in its store, but not in their folders."""
    return {path.relative_to(cache).as_posix() for part in (cache, cache / "store") for path in part.glob("*")}


def kill_at_work(archive: Path, cache: Path, delay: float) -> str:
    """Kill so long after the first change of the cache; which work was cut."""
    before = entries(cache)
    prepare = Prepare(archive, cache)
    try:
        until(lambda: entries(cache) != before or prepare.has_ended)
        time.sleep(delay)
    finally:
        prepare.kill()
        code, output = prepare.wait()
    assert code in (-signal.SIGKILL, 0), output  # what others left has stood in nobody's way
    cut = [name for name in entries(cache) - before if ".tmp-" in name]
    assert len(cut) <= 1
    if not cut:
        return "nothing"
    return "decoding" if cut[0].startswith("store/") else "unpacking"


def finished_stores(cache: Path) -> list[Path]:
    return [path for path in (cache / "store").glob("*") if not path.name.startswith(".")]


def remove(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)


def files(cache: Path) -> list[str]:
    """Relative names; a store's own, which follows from the times of the files that it is of, as KEY."""
    names = (path.relative_to(cache).as_posix() for path in cache.rglob("*") if not path.is_dir())
    return sorted(re.sub(r"^store/[0-9a-f]+/", "store/KEY/", name) for name in names)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_killed_twenty_times(archive: Path, tmp_path: Path) -> None:
    whole, cache = tmp_path / "whole", tmp_path / "cache"
    assert Prepare(archive, whole).wait()[0] == 0
    assert not [name for name in files(whole) if ".tmp-" in name or name.endswith(".lock")]
    moments, hits = random.Random(0), Counter[str]()
    for number in range(TRIES):
        if number <= TRIES // 2 and (cache / NAME).exists():
            remove(cache / NAME)
            remove(cache / "store")  # another unpacking's files have other times, and so stores of other names
        if number == TRIES // 2:  # from here on it is decoding that is cut
            assert Prepare(archive, cache).wait()[0] == 0
        if number >= TRIES // 2 and (number % 3 == 0 or len(finished_stores(cache)) == 2):
            for store in finished_stores(cache):
                remove(store)
        hits[kill_at_work(archive, cache, 0.6 * moments.random() ** 2)] += 1  # early ones more often: work is short
    assert min(hits["unpacking"], hits["decoding"]) >= 2, hits
    for store in finished_stores(cache):
        if store.with_name(f".{store.name}.lock").exists():  # killed after the store had its name: nobody looks again
            remove(store)

    code, output = Prepare(archive, cache).wait()
    assert code == 0
    told = output.splitlines()[-1]
    assert told == f"{4 * TRAIN} train and {4 * VAL} val images in 4 classes from {cache / NAME} are ready"
    assert files(cache) == files(whole)
    check_pixels(archive, cache)


def check_pixels(archive: Path, cache: Path) -> None:
    """What was made holds each image of the archive, decoded, under its label."""
    before = files(cache)
    source = tiny_imagenet(root=None, cache_dir=cache, archive=str(archive), fetch=False)
    stored = decoded(source, replace(PLAIN.loader, cache_dir=str(cache), image_size=64))
    assert files(cache) == before, "another store was made than this test reads"
    assert source.classes == WNIDS
    for phase, split, count in (("train", stored.train, TRAIN), ("val", stored.val, VAL)):
        listed = getattr(source, phase)
        assert isinstance(split, StoredSplit)
        assert split.labels.tolist() == listed.labels.tolist() == [label for label in range(4) for _ in range(count)]
        for number, path in enumerate(listed.paths):
            assert np.array_equal(split.fetch(np.array([number]))[0], decode(path, SIDE))
    with zipfile.ZipFile(archive) as file:
        packed = {Path(name).name: file.read(name) for name in file.namelist()}
    for path in (cache / NAME).rglob("*.JPEG"):
        assert path.read_bytes() == packed.pop(path.name)
    assert not [name for name in packed if name.endswith(".JPEG")]
