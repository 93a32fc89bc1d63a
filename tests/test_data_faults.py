"""What goes wrong beside the images themselves: workers that die, caches that are gone, sources made wrong."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import ALONE, LEAN, PLAIN, train, write_image

from tinyexp.__main__ import main
from tinyexp.compose import compose, compose_run
from tinyexp.cores import available_cores
from tinyexp.data import decoding, statistics
from tinyexp.data.decode import decode
from tinyexp.data.folder import imagefolder
from tinyexp.data.loader import Data
from tinyexp.data.source import ArraySplit, Source, list_source
from tinyexp.data.statistics import normalisation
from tinyexp.data.store import decoded
from tinyexp.errors import DataError, ResourceError
from tinyexp.stored import recompose

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


def make_folder(root: Path, images: int = 4, brightness: int = 0) -> Path:
    for phase in ("train", "val"):
        for name in ("ant", "bee"):
            for number in range(images):
                write_image(root / phase / name / f"{number}.bmp", (brightness, number, 9), (12, 12))
    return root


def children() -> list[int]:
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="children are found in /proc")
def test_a_killed_decoding_worker_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many chunks are left; nothing waits for ever, and nothing is left."""
    source = imagefolder(root=str(make_folder(tmp_path / "images", 300)), cache_dir=tmp_path)
    monkeypatch.setattr(decoding, "_CHUNK", 1)
    before = set(children())

    def kill() -> None:
        while not (workers := set(children()) - before):
            time.sleep(0.001)
        os.kill(min(workers), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(DataError, match=r"a process that decoded images near .* was killed"):
        decoded(source, replace(PLAIN.loader, image_size=8, cache_dir=str(tmp_path / "cache")))
    killer.join()
    assert set(children()) <= before
    assert not any((tmp_path / "cache/store").iterdir())


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="children are found in /proc")
def test_an_interrupt_ends_the_workers_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = imagefolder(root=str(make_folder(tmp_path / "images", 40)), cache_dir=tmp_path)
    monkeypatch.setattr(decoding, "_CHUNK", 1)
    monkeypatch.setattr(decoding, "decode", lambda path, side: time.sleep(60))  # in the workers, which are forked
    before = set(children())
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        decoded(source, replace(PLAIN.loader, image_size=8, cache_dir=str(tmp_path / "cache")))
    assert set(children()) <= before
    assert not any((tmp_path / "cache/store").iterdir())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of the pipes that torch leaves then
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="children are found in /proc")
@pytest.mark.parametrize("start_method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_a_killed_loader_process_is_one_message(tmp_path: Path, start_method: str) -> None:
    root, before = make_folder(tmp_path / "images", 50), set(children())
    words = [
        "dataset=imagefolder",
        f"dataset.root={root}",
        "dataset.max_gb=0",
        "dataset.workers=1",
        "train.batch_size=2",
    ]
    config = compose([*words, f"dataset.start_method={start_method}", "dataset.image_size=8"])
    source = decoded(list_source(config, fetch=False), config.loader)

    def lose_one() -> None:
        with Data(source, config, ALONE) as data:
            batches = data.train(0)
            next(batches)
            own = [pid for pid in children() if pid not in before]
            os.kill(max(own), signal.SIGKILL)  # the last that was started: spawn has a tracker too
            list(batches)

    with pytest.raises(ResourceError, match=r"a loader process was killed.*fewer dataset\.workers"):
        lose_one()


def test_what_the_system_forbids_is_not_kept_as_the_images_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_folder(tmp_path / "images")
    loader = replace(PLAIN.loader, image_size=8, cache_dir=str(tmp_path / "cache"), on_error="skip", max_skipped=0.9)
    hidden = root / "train/ant/2.bmp"
    source = imagefolder(root=str(root), cache_dir=tmp_path)
    hidden.rename(tmp_path / "away")
    for max_gb in (0.0, 1.0):
        with pytest.raises(DataError, match=rf"{hidden} cannot be decoded: No such file"):
            decoded(source, replace(loader, max_gb=max_gb))
    (tmp_path / "away").rename(hidden)
    assert decoded(imagefolder(root=str(root), cache_dir=tmp_path), loader).skipped == 0


def test_another_content_under_old_times_is_another_store(tmp_path: Path) -> None:
    """As of archives packed with one time for all, or of a file that was edited and given its time back."""
    loader = replace(PLAIN.loader, image_size=8, cache_dir=str(tmp_path / "cache"))
    root = make_folder(tmp_path / "images", brightness=50)
    for brightness in (50, 200):
        path = write_image(root / "train/ant/0.bmp", (brightness, 0, 9), (12, 12))
        os.utime(path, ns=(10**18, 10**18))
        source = decoded(imagefolder(root=str(root), cache_dir=tmp_path), loader)
        assert source.train.fetch(np.array([0]))[0][0, 0, 0] == brightness


def test_statistics_are_of_these_pixels(tmp_path: Path) -> None:
    """Not of a folder with the same names and sizes, nor of what a function of that fingerprint gave before."""
    loader = replace(PLAIN.loader, image_size=8, cache_dir=str(tmp_path / "cache"), normalize="auto")
    for max_gb in (1.0, 0.0):
        for brightness in (50, 200):
            root = make_folder(tmp_path / str(brightness), brightness=brightness)
            source = decoded(imagefolder(root=str(root), cache_dir=tmp_path), replace(loader, max_gb=max_gb))
            assert normalisation(source, loader)[0][0] == pytest.approx(brightness / 255)
    for brightness in (50, 200):
        split = ArraySplit(np.full((4, 8, 8, 1), brightness, np.uint8), np.arange(4) % 2)
        made = Source(classes=("a", "b"), channels=1, train=split, val=split, fingerprint="1")
        assert normalisation(made, loader)[0] == (pytest.approx(brightness / 255),)


def test_a_store_that_is_open_may_be_removed(tmp_path: Path) -> None:
    loader = replace(PLAIN.loader, image_size=8, cache_dir=str(tmp_path / "cache"))
    root = make_folder(tmp_path / "images")
    source = decoded(imagefolder(root=str(root), cache_dir=tmp_path), loader)
    for path in sorted((tmp_path / "cache").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    images = source.val.fetch(np.arange(8))
    assert np.array_equal(images[5], decode(str(root / "val/bee/1.bmp")))


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((4, 8, 8, 1), np.float32), np.zeros(4, int), r"uint8 of \(N, H, W, C\), got float32"),
        (np.zeros((4, 8, 8), np.uint8), np.zeros(4, int), r"got uint8 of \(4, 8, 8\)"),
        (np.zeros((4, 8, 8, 1), np.uint8), np.zeros(3, int), r"one for each of 4 images, got int64 of \(3,\)"),
        (np.zeros((4, 8, 8, 1), np.uint8), np.zeros((4, 1), int), r"got int64 of \(4, 1\)"),
        (np.zeros((4, 8, 8, 1), np.uint8), np.zeros(4), "got float64"),
    ],
)
def test_a_split_that_is_made_wrong_is_told(images: np.ndarray, labels: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        ArraySplit(images, labels)


def test_labels_of_any_whole_numbers_are_taken_and_channels_are_checked() -> None:
    split = ArraySplit(np.zeros((4, 1, 8, 8), np.uint8), [0, 1, 0, 1])  # type: ignore[arg-type]
    assert split.labels.dtype == np.int64
    with pytest.raises(DataError, match=r"train images must have channels=1, got \(N, H, W, C\) \(4, 1, 8, 8\)"):
        Source(classes=("a", "b"), channels=1, train=split, val=split, fingerprint="1")


def test_torchvisions_changes_take_one_or_three_channels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "four.py").write_text(
        "import numpy as np\nfrom tinyexp.data.source import ArraySplit, Source\n"
        "def make():\n    split = ArraySplit(np.zeros((4, 8, 8, 4), np.uint8), np.arange(4) % 2)\n"
        "    return Source(classes=('a', 'b'), channels=4, train=split, val=split, fingerprint='1')\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        words = ["dataset._target_=four.make", "dataset.mean=[0,0,0,0]", "dataset.std=[1,1,1,1]"]
        assert main([*LEAN, *words, "dataset.augment.policy=randaugment", f"run.dir={tmp_path}/run"]) == 2
    assert "dataset.augment.policy and dataset.augment.jitter take images of 1 or 3 channels, got 4" in (
        capsys.readouterr().err
    )


# configs that are read back


def test_a_stored_config_puts_nothing_where_it_says(tmp_path: Path) -> None:
    """Unless the command line says the place too, or it is the cache of whoever reads it."""
    plain = compose(["dataset=tiny_imagenet", f"dataset.cache_dir={tmp_path}"]).plain
    assert not recompose(plain, []).may_fetch
    assert recompose(plain, [f"dataset.cache_dir={tmp_path}"]).may_fetch
    assert recompose(plain, ["dataset.archive=a.zip"]).may_fetch
    ours = compose(["dataset=tiny_imagenet"])
    assert ours.may_fetch
    assert recompose(ours.plain, []).may_fetch
    assert not recompose(compose(["dataset=tiny_imagenet", f"dataset.root={tmp_path}"]).plain, []).may_fetch


def test_a_cache_that_is_not_here_is_told_and_replaced(tmp_path: Path) -> None:
    gone = str(tmp_path / "gone")
    plain = compose([f"dataset.cache_dir={gone}"]).plain
    config = recompose(plain, [])
    assert config.loader.cache_dir == PLAIN.loader.cache_dir
    assert f"dataset.cache_dir={gone} of the stored config is not here" in " ".join(config.notes)
    config = recompose(plain, [f"dataset.cache_dir={tmp_path}/new"])
    assert (config.loader.cache_dir, config.notes) == (f"{tmp_path}/new", ())


def test_a_run_goes_on_where_its_archive_and_cache_are_gone(tmp_path: Path) -> None:
    """The archive alone: what was unpacked is taken. The cache: the command line brings it back."""
    import shutil

    packed = Path(shutil.make_archive(str(tmp_path / "pets"), "zip", make_folder(tmp_path / "images")))
    words = ["dataset=imagefolder", "dataset.image_size=28", "train.batch_size=4", "dataset.augment.crop=null"]
    run = train(tmp_path / "run", *words, f"dataset.archive={packed}", f"dataset.cache_dir={tmp_path}/cache")
    packed.rename(tmp_path / "kept.zip")
    assert main([*LEAN, f"resume={run}", "train.epochs=21"]) == 0
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "kept.zip").rename(packed)
    assert main([*LEAN, f"resume={run}", "train.epochs=22", f"dataset.cache_dir={tmp_path}/cache"]) == 0
    assert compose_run([f"resume={run}", "train.epochs=22"]).loader.cache_dir == f"{tmp_path}/cache"


def test_an_unwritable_cache_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    words = ["dataset=imagefolder", f"dataset.root={make_folder(tmp_path / 'images')}", "dataset.image_size=28"]
    assert main([*LEAN, *words, f"dataset.cache_dir={tmp_path}/file", f"run.dir={tmp_path}/run"]) in (1, 2)
    told = capsys.readouterr().err
    assert "Traceback" not in told
    assert "dataset.cache_dir=ANOTHER FOLDER" in told


def test_two_do_not_count_each_others_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second looks when the first is done, and its store is there then."""
    root, loader = make_folder(tmp_path / "images"), replace(PLAIN.loader, image_size=8, cache_dir=str(tmp_path / "c"))
    decoded(imagefolder(root=str(root), cache_dir=tmp_path), loader)
    monkeypatch.setattr(decoding.shutil, "disk_usage", lambda path: pytest.fail("nothing is to be made"))
    decoded(imagefolder(root=str(root), cache_dir=tmp_path), loader)
    assert available_cores() >= 1


def test_eval_normalises_as_the_network_learned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where mean and deviation were computed: not anew, of the data that it is given now."""
    words = ["dataset=imagefolder", "dataset.image_size=28", "dataset.normalize=auto", "train.batch_size=4"]
    dark, bright = (make_folder(tmp_path / str(value), brightness=value) for value in (20, 200))
    cache = f"dataset.cache_dir={tmp_path}/cache"
    run = train(tmp_path / "run", *words, f"dataset.root={dark}", cache, "train.epochs=1")
    monkeypatch.setattr(statistics, "_mean_and_std", None)
    assert main(["eval", str(run), f"dataset.root={bright}"]) == 0
    assert main(["eval", str(run), "dataset.normalize=given"]) == 2
    assert "dataset.normalize changes nothing in eval" in capsys.readouterr().err
