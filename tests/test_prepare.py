"""The verb prepare, through the door: what it makes ready, and --verify; and damaged images in a training."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import LEAN, rows, write_image
from odd_images import noise, save, write_odd_images

from tinyexp.__main__ import main
from tinyexp.data import store, unpacked

pytestmark = pytest.mark.usefixtures("kept_hydra")

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory and a home of the test's own: the report goes to the one, and the other must stay empty."""
    for name in ("work", "home"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def prepare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """The verb on a folder of images: exit code, stdout and stderr."""

    def run(*words: str) -> tuple[int, str, str]:
        given = ["dataset=imagefolder", f"dataset.cache_dir={tmp_path / 'cache'}", "hw=cpu", *words]
        code = main(["prepare", *given])
        return (code, *capsys.readouterr())

    yield run
    assert not any((tmp_path / "home").iterdir())


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """6 ants and bees to train, 2 to val, no two alike."""
    for number, (phase, name, count) in enumerate(
        (("train", "ant", 3), ("train", "bee", 3), ("val", "ant", 1), ("val", "bee", 1))
    ):
        for image in range(count):
            path = tmp_path / "tree" / phase / name / f"{image}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            save(path, noise(32, 32) // 2 + 10 * number + image)
    return tmp_path / "tree"


@pytest.fixture
def spoilt(tree: Path) -> Path:
    """The same with a third class, which has every odd and every bad file."""
    write_odd_images(tree / "train/odd")
    write_image(tree / "val/odd/plain.png")
    return tree


def bad_files(tree: Path) -> dict[str, str]:
    """Path -> kind of the bad files that are there."""
    odd = write_odd_images(tree.with_name("as written"))
    return {
        str(tree / "train/odd" / name): one.kind for name, one in odd.items() if one.kind and os.path.lexists(one.path)
    }


def content(path: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(path.read_text())
    return read


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


# made ready


def test_a_folder_is_made_ready_once(prepare: Run, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = times(tree)
    ready = f"6 train and 2 val images in 2 classes from {tree} are ready\n"
    code, out, _ = prepare(f"dataset.root={tree}")
    assert (code, out.splitlines(keepends=True)[-1]) == (0, ready)
    assert "decoded 6 images" in out
    kept = times(tmp_path / "cache")
    assert len(list((tmp_path / "cache/store").glob("*/pixels"))) == 2
    monkeypatch.setattr(store, "decode_files", None)
    assert prepare(f"dataset.root={tree}") == (0, ready, "")
    assert times(tmp_path / "cache") == kept
    assert times(tree) == before
    assert not any(Path.cwd().iterdir())


def test_what_is_ready_is_what_a_run_takes(
    prepare: Run, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert prepare(f"dataset.root={tree}", "dataset.image_size=28")[0] == 0
    monkeypatch.setattr(store, "decode_files", None)
    code, _ = train(tree, tmp_path)
    assert code == 0
    assert [row["epoch"] for row in rows(tmp_path / "run", "val")] == [1]


def test_an_archive_is_made_ready_once(
    prepare: Run, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = Path(shutil.make_archive(str(tmp_path / "pets"), "zip", tree))
    before = packed.stat().st_mtime_ns
    ready = f"6 train and 2 val images in 2 classes from {tmp_path / 'cache/unpacked/pets'} are ready\n"
    code, out, _ = prepare(f"dataset.archive={packed}")
    assert (code, out.splitlines(keepends=True)[-1]) == (0, ready)
    assert f"unpacked {packed} to {tmp_path / 'cache/unpacked/pets'}" in out
    kept = times(tmp_path / "cache")
    monkeypatch.setattr(store, "decode_files", None)
    monkeypatch.setattr(unpacked, "unpack", None)
    assert prepare(f"dataset.archive={packed}") == (0, ready, "")
    assert times(tmp_path / "cache") == kept
    assert packed.stat().st_mtime_ns == before


def test_a_name_with_brackets_is_told_as_it_is(prepare: Run, tree: Path, tmp_path: Path) -> None:
    odd = tree.rename(tmp_path / "[red]tree :cat:")
    code, out, _ = prepare("--verify", "--out", "[b]x.json", f"dataset.root='{odd}'")
    assert code == 0
    assert f"classes from {odd} are ready" in out
    assert "written to [b]x.json\n" in out


def test_digits_are_always_ready(prepare: Run) -> None:
    code, out, _ = prepare("dataset=digits")
    assert code == 0
    assert "1,437 train and 360 val images in 10 classes from" in out


@pytest.mark.parametrize("words", [(), ("--verify",)])
def test_a_folder_that_is_not_there(prepare: Run, tmp_path: Path, words: tuple[str, ...]) -> None:
    code, out, err = prepare(*words, f"dataset.root={tmp_path}/nowhere")
    assert (code, out) == (2, "")
    assert err.startswith(f"tinyexp: dataset.root={tmp_path}/nowhere is no folder: ")
    assert err.count("\n") == 1
    assert not (tmp_path / "cache").exists()


# --verify


def test_verify_lists_each_bad_file(prepare: Run, spoilt: Path, tmp_path: Path) -> None:
    bad = bad_files(spoilt)
    assert len(bad) > 15
    code, out, err = prepare("--verify", "--out", "reports/mine.json", f"dataset.root={spoilt}")
    assert code == 2
    assert err == (
        f"tinyexp: {len(bad)} findings in {spoilt} would stop a training: mend them, or give dataset.on_error=skip\n"
    )
    report = content(Path("reports/mine.json"))
    fatal = {finding["path"]: finding for finding in report["findings"] if finding["fatal"]}
    assert {path: finding["kind"] for path, finding in fatal.items()} == bad
    assert report["fatal"] == len(bad)
    lines = out.splitlines()
    for path, finding in fatal.items():
        line = next(line for line in lines if f"{path} " in line)
        assert line.split("  ")[1].strip() == finding["kind"]
        assert finding["reason"] in line
    assert "written to reports/mine.json" in lines
    sound = len(list((spoilt / "train/odd").iterdir())) - len(bad)
    assert report["counts"] == {
        "train": {"ant": 3, "bee": 3, "odd": sound},
        "val": {"ant": 1, "bee": 1, "odd": 1},
    }
    assert report["images"] == 6 + sound + len(bad) + 3
    assert not (tmp_path / "cache").exists()  # nothing is decoded for what cannot be trained on


def test_verify_goes_on_where_bad_images_may_be_left_out(prepare: Run, spoilt: Path) -> None:
    bad = len(bad_files(spoilt))
    count = len(list((spoilt / "train").glob("*/*")))
    skip = (f"dataset.root={spoilt}", "dataset.on_error=skip", "dataset.max_skipped=0.9")
    code, out, _ = prepare("--verify", *skip)
    assert code == 0
    assert content(Path("verify.json"))["fatal"] == bad
    assert f"{count - bad} train and 3 val images in 3 classes from {spoilt} are ready, {bad} left out that" in out
    code, out, _ = prepare(*skip)
    assert code == 0
    assert f"ready, {bad} left out that cannot be decoded" in out
    code, _, err = prepare(*skip[:2])
    assert code == 2
    assert f"{bad} of {count} train images cannot be decoded, more than dataset.max_skipped=0.1" in err


def test_verify_of_a_sound_folder_makes_it_ready(prepare: Run, tree: Path) -> None:
    code, out, _ = prepare("--verify", f"dataset.root={tree}")
    assert code == 0
    assert "are ready" in out
    assert content(Path("verify.json")) == {
        "images": 8,
        "fatal": 0,
        "counts": {"train": {"ant": 3, "bee": 3}, "val": {"ant": 1, "bee": 1}},
        "findings": [],
    }


@pytest.mark.parametrize("skip", [(), ("dataset.on_error=skip",)])
def test_verify_shows_what_is_wrong_with_classes(prepare: Run, tree: Path, skip: tuple[str, ...]) -> None:
    write_image(tree / "val/cat/x.png")
    for phase in ("train", "val"):
        (tree / phase / "dog").mkdir()
    (tree / "train/ant/0.png").write_bytes(b"")
    code, out, err = prepare("--verify", f"dataset.root={tree}", *skip)
    assert code == 2
    assert err.startswith("tinyexp: ")
    assert "must have the same classes, got 'cat' in val alone" in err
    assert "on_error" not in err  # it would not help
    found = {(finding["path"], finding["kind"]) for finding in content(Path("verify.json"))["findings"]}
    assert found == {
        ("val/cat", "class in one split alone"),
        ("train/dog", "empty class"),
        ("val/dog", "empty class"),
        (str(tree / "train/ant/0.png"), "empty file"),
    }
    for path, kind in found:
        assert any(kind in line and f"{path} " in line for line in out.splitlines())


def test_classes_that_differ_stop_without_verify_too(prepare: Run, tree: Path) -> None:
    write_image(tree / "val/cat/x.png")
    code, out, err = prepare(f"dataset.root={tree}")
    assert (code, out) == (2, "")
    assert "must have the same classes, got 'cat' in val alone" in err
    assert not any(Path.cwd().iterdir())


def test_verify_is_for_image_files(prepare: Run) -> None:
    code, _, err = prepare("--verify", "dataset=digits")
    assert code == 2
    assert err == "tinyexp: --verify is for image files, and tinyexp.data.digits.digits reads none\n"
    assert not any(Path.cwd().iterdir())


def test_out_is_for_verify(prepare: Run, tree: Path, tmp_path: Path) -> None:
    code, _, err = prepare("--out", "x.json", f"dataset.root={tree}")
    assert (code, err) == (2, "tinyexp: --out FILE is for --verify's report: give --verify too\n")
    assert not (tmp_path / "cache").exists()


def test_a_report_that_cannot_be_written_is_one_line(prepare: Run, tree: Path) -> None:
    Path("file").touch()
    for place, why in (("file/x.json", "File exists"), ("file/y/x.json", "Not a directory")):
        code, _, err = prepare("--verify", "--out", place, f"dataset.root={tree}")
        assert (code, err) == (1, f"tinyexp: --out {place} could not be written: {why}\n")


# a training on damaged images


def train(root: Path, tmp_path: Path, *words: str) -> tuple[int, Path]:
    """One epoch of a small network; the exit code and the run's directory."""
    directory = tmp_path / "run"
    given = ["dataset=imagefolder", f"dataset.root={root}", f"dataset.cache_dir={tmp_path / 'cache'}"]
    small = ["model=lenet5", "dataset.image_size=28", "train.epochs=1", "train.batch_size=4"]
    return main([*LEAN, *given, *small, f"run.dir={directory}", *words]), directory


def test_a_training_stops_before_it_has_a_directory(
    spoilt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, directory = train(spoilt, tmp_path)
    assert code == 2
    first = min(bad_files(spoilt))
    _, err = capsys.readouterr()
    assert err.startswith(f"tinyexp: {first} cannot be decoded: ")
    assert err.count("\n") == 1
    assert not directory.exists()
    assert not any(Path.cwd().iterdir())
    assert not list((tmp_path / "cache").rglob("*pixels*"))


def test_a_training_leaves_out_what_it_may(spoilt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = bad_files(spoilt)
    code, directory = train(spoilt, tmp_path, "dataset.on_error=skip", "dataset.max_skipped=0.9", "log.level=info")
    assert code == 0
    out, _ = capsys.readouterr()
    assert f"{len(bad)} train images cannot be decoded and are left out; the first: {min(bad)} cannot be" in out
    assert f"{len(bad)} left out that cannot be decoded" in out
    assert content(directory / "summary.json")["skipped"] == len(bad)
    assert f"{len(bad)} left out that cannot be decoded" in (directory / "run.log").read_text()


def test_a_sound_training_says_nothing_of_it(tree: Path, tmp_path: Path) -> None:
    code, directory = train(tree, tmp_path)
    assert code == 0
    assert "skipped" not in content(directory / "summary.json")
