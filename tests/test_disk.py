"""A disk that fails: a checkpoint is saved or said not to be, and the log alone never stops the training."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults import (
    LAST,
    PREV,
    SMALL,
    STEPS,
    Ended,
    Fault,
    Torn,
    digest,
    disk_broken,
    disk_full,
    half_written,
    kill9,
    metrics,
    quota_full,
    run,
    skip,
    state,
    summary,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

pytestmark = pytest.mark.slow

ASIDE = r"\.last\.pt\.tmp-"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 3 MB."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = shutil.which("mount")
    if (
        os.geteuid()
        or mount is None
        or subprocess.run([mount, "-t", "tmpfs", "-o", "size=3m", "tmpfs", path], check=False).returncode
    ):
        pytest.skip("mounting a small disk needs root")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


def remount(path: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", path], check=True)


def assert_not_saved(directory: Path, ended: Ended, code: int) -> None:
    """Told in one message, nothing half-written is left, and nothing says that it was saved."""
    assert ended.code == code, ended.output
    assert "could not be written" in ended.output
    assert "Traceback" not in ended.output
    assert "saved" not in (directory / "run.log").read_text()
    assert summary(directory)["exit_code"] == code
    assert not half_written(directory)


# a checkpoint


def test_full_disk(small_disk: Path, uncut: Path) -> None:
    ended = run(small_disk.parent, *SMALL, "run.dir=disk/run", "ckpt.keep=2")
    directory = small_disk / "run"
    assert_not_saved(directory, ended, 5)
    assert "No space left on device" in ended.output
    assert state(directory)["step"] == STEPS
    remount(small_disk, "size=9m")
    assert run(small_disk.parent, f"resume={directory}").code == 0
    assert digest(directory) == digest(uncut)
    assert metrics(directory) == metrics(uncut)


def limit_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))


def test_file_limit(tmp_path: Path, uncut: Path) -> None:
    """As a quota: the file stops half-way."""
    ended = run(tmp_path, *SMALL, faults=[Fault("torch.save", limit_files, nth=5)])
    assert_not_saved(tmp_path / "run", ended, 5)
    assert state(tmp_path / "run")["step"] == 4
    assert run(tmp_path, "resume=run").code == 0
    assert digest(tmp_path / "run") == digest(uncut)


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        pytest.param(Torn(ASIDE, disk_full, nth=5), 5, id="full amid the write"),
        pytest.param(Torn(ASIDE, quota_full, nth=5), 5, id="quota amid the write"),
        pytest.param(Torn(ASIDE, disk_broken, nth=5), 1, id="broken amid the write"),
        pytest.param(Fault("io.open", disk_broken, ASIDE, nth=5), 1, id="no file"),
        pytest.param(Fault("os.fsync", disk_full, ASIDE, nth=5), 5, id="full at fsync"),
        pytest.param(Fault("os.fsync", disk_broken, ASIDE, nth=5), 1, id="broken at fsync"),
        pytest.param(Fault("os.replace", disk_broken, PREV, nth=4), 1, id="no prev"),
        pytest.param(Fault("os.replace", disk_broken, LAST, nth=5), 1, id="no last"),
    ],
)
def test_failed_save(tmp_path: Path, uncut: Path, fault: Fault | Torn, code: int) -> None:
    ended = run(tmp_path, *SMALL, faults=[fault])
    assert_not_saved(tmp_path / "run", ended, code)
    assert state(tmp_path / "run")["step"] == 4
    assert run(tmp_path, "resume=run").code == 0
    assert digest(tmp_path / "run") == digest(uncut)
    assert metrics(tmp_path / "run") == metrics(uncut)


def test_failed_save_on_a_signal(tmp_path: Path) -> None:
    """What was not saved is not said to be, and not ended with the code that says so."""
    words = ("ckpt.every_minutes=null", "train.max_time=0.001")
    ended = run(tmp_path, *SMALL, *words, faults=[Fault("os.fsync", disk_full, ASIDE)])
    assert_not_saved(tmp_path / "run", ended, 5)


def test_best_is_not_promised_where_it_failed(tmp_path: Path, uncut: Path) -> None:
    """last.pt says which epoch best.pt is of."""
    faults = [Fault("os.fsync", disk_broken, r"\.best\.pt\.tmp-", nth=2)]
    ended = run(tmp_path, *SMALL, "ckpt.every_minutes=null", faults=faults)
    assert_not_saved(tmp_path / "run", ended, 1)
    assert run(tmp_path, "resume=run").code == 0
    assert digest(tmp_path / "run", "best") == digest(uncut, "best")


def test_last_save_of_all_fails(tmp_path: Path) -> None:
    words = ("ckpt.every_minutes=null",)
    ended = run(tmp_path, *SMALL, *words, faults=[Fault("os.fsync", disk_full, ASIDE, nth=2)])
    assert_not_saved(tmp_path / "run", ended, 5)
    assert state(tmp_path / "run")["step"] == STEPS


# a folder


def test_read_only(small_disk: Path, uncut: Path) -> None:
    shutil.copytree(uncut, small_disk / "run")
    remount(small_disk, "ro")
    for words in (["resume=disk/run"], ["run.root=disk"], ["run.dir=disk/new"]):
        ended = run(small_disk.parent, *words)
        assert ended.code == 2, ended.output
        assert "disk" in ended.output
        assert "Read-only file system" in ended.output
        assert "Traceback" not in ended.output


# the log


@pytest.mark.parametrize(
    ("faults", "what"),
    [
        pytest.param([Torn(r"/metrics\.jsonl$", disk_full, nth=3)], "metrics.jsonl in run", id="metrics"),
        pytest.param([Torn(r"/metrics\.jsonl$", skip, nth=3)], "metrics.jsonl in run", id="half of a line"),
        pytest.param([Fault("os.fsync", disk_broken, r"/metrics\.jsonl$", nth=3)], "metrics.jsonl in run", id="fsync"),
        pytest.param([Torn(r"/events\.out", disk_full, nth=3)], "tb/ in run", id="events"),
        pytest.param([Torn(r"/run\.log$", disk_full, nth=3)], "run.log", id="run.log"),
        pytest.param([Fault("os.replace", disk_full, r"/summary\.json$", 2, 2)], "summary.json in run", id="summary"),
    ],
)
def test_log_alone(tmp_path: Path, uncut: Path, faults: list[Fault | Torn], what: str) -> None:
    ended = run(tmp_path, *SMALL, faults=faults)
    assert ended.code == 0, ended.output
    assert digest(tmp_path / "run") == digest(uncut)
    warnings = [line for line in ended.output.splitlines() if "warning" in line]
    assert len(warnings) == 1, warnings
    assert what in warnings[0]
    assert "the training goes on" in warnings[0]
    assert summary(tmp_path / "run")["status"] == "finished"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_run_log_on_a_full_disk(tmp_path: Path, uncut: Path) -> None:
    """To the end: what could not be written is tried once more when the file is closed."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.log").symlink_to("/dev/full")
    ended = run(tmp_path, *SMALL, "resume=auto")
    assert ended.code == 0, ended.output
    assert ended.output.count("can no longer be written") == 1
    assert digest(tmp_path / "run") == digest(uncut)


# between the log and a checkpoint


def curves(directory: Path) -> dict[str, list[int]]:
    """TensorBoard's points, as it shows them: the steps of each curve."""
    events = EventAccumulator(str(directory / "tb"), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [point.step for point in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.mark.parametrize(
    ("save", "step"),
    [
        pytest.param(6, 5, id="a line"),
        pytest.param(STEPS + 1, STEPS, id="val's lines"),
        pytest.param(STEPS + 3, STEPS, id="a line after val's"),
        pytest.param(2 * STEPS + 3, 2 * STEPS, id="the last lines"),
    ],
)
def test_killed_between_log_and_checkpoint(tmp_path: Path, uncut: Path, save: int, step: int) -> None:
    assert run(tmp_path, *SMALL, faults=[Fault("os.replace", kill9, PREV, nth=save - 1)]).code == -9
    directory = tmp_path / "run"
    assert state(directory)["step"] == step
    assert len(metrics(directory)) > state(directory)["lines"]
    with (directory / "metrics.jsonl").open("a") as file:
        file.write('{"phase": "train", "epoch": 1, "st')
    assert run(tmp_path, "resume=run").code == 0
    assert metrics(directory) == metrics(uncut)
    assert curves(directory) == curves(uncut)


def test_points_are_those_of_the_rows(uncut: Path) -> None:
    rows = [row for row in metrics(uncut) if row["phase"] == "train"]
    assert curves(uncut)["train/loss"] == [row["step"] for row in rows] == [3, 6, 9, 12, 15]
    assert curves(uncut)["val/top1"] == [STEPS, 2 * STEPS]
