"""A run's directory has one writer, is where it was asked for, and holds what it should and nothing else."""

from __future__ import annotations

import os
import re
import socket
import stat
from pathlib import Path

import pytest
from faults import LAST, SMALL, Called, Fault, digest, half_written, kill9, pause, run, start, until, wait_for_go

from tinyexp.__main__ import main
from tinyexp.files import make_unique

CHECKPOINTS = {f"checkpoints/{name}.pt" for name in ("last", "prev", "best")}
FILES = {
    "config.yaml",
    "env.json",
    "run.log",
    "metrics.jsonl",
    "summary.json",
    "confusion.json",
    "tb/events",
    ".lock",
} | CHECKPOINTS
SECRET = "hunter2-0451"


def set_secret() -> None:
    os.environ["MY_TOKEN"] = SECRET


def files(directory: Path) -> set[str]:
    """All files of a run; TensorBoard's names have a time and a number."""
    found = {str(path.relative_to(directory)) for path in directory.rglob("*") if not path.is_dir()}
    return {re.sub(r"^tb/events.*", "tb/events", name) for name in found}


@pytest.mark.slow
def test_fifty_at_once(tmp_path: Path) -> None:
    faults = [Fault("tinyexp.rundir._make", wait_for_go), Fault("tinyexp.rundir.describe_environment", kill9)]
    words = ("hw.threads=1", "run.name=same")
    os.mkfifo(tmp_path / "go")
    children = [start(tmp_path, *words, faults=faults) for _ in range(50)]
    with (tmp_path / "go").open("w"):
        assert [child.wait().code for child in children] == [-9] * 50
    runs = list((tmp_path / "outputs").iterdir())
    assert len(runs) == 50
    assert {path.name[-9:-5] for path in runs} == {"same"}
    owners = {re.search(r'"pid": (\d+)', (path / ".lock").read_text()).group(1) for path in runs}
    assert owners == {str(child.pid) for child in children}


def test_one_second_and_one_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number at the end may be drawn twice; the directory is not made twice."""
    numbers = iter(["0007", "0007", "0007", "0008"])
    monkeypatch.setattr("tinyexp.files.secrets.token_hex", lambda _: next(numbers))
    monkeypatch.setattr("tinyexp.files.time.strftime", lambda _: "2026-01-01_00-00-00")
    assert [make_unique(tmp_path, "x").name[-4:] for _ in range(2)] == ["0007", "0008"]


def test_a_live_run_is_left_alone(tmp_path: Path, uncut: Path) -> None:
    owner = start(tmp_path, *SMALL, faults=[Fault("tinyexp.engine.optimizer_step", pause, nth=5)]).until_paused()
    until(lambda: not half_written(tmp_path / "run"))
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    for words in (("resume=run",), (*SMALL, "resume=auto"), ("resume=run/checkpoints/last.pt",)):
        ended = run(tmp_path, *words)
        assert ended.code == 2
        assert f"is being written by process {owner.pid} on {socket.gethostname()} since" in ended.output
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
    assert owner.kill().code == -9
    assert run(tmp_path, "resume=run").code == 0  # the lock of a process that is gone is no lock
    assert digest(tmp_path / "run") == digest(uncut)


def test_a_loader_process_that_lives_on_holds_no_lock(tmp_path: Path, uncut: Path) -> None:
    fault = Fault("os.replace", kill9, LAST, nth=5, after=True)
    assert run(tmp_path, *SMALL, "dataset.workers=1", faults=[fault]).code == -9
    assert run(tmp_path, "resume=run").code == 0
    assert digest(tmp_path / "run") == digest(uncut)


@pytest.mark.parametrize("there", ["folder", "run", "file"])
def test_what_is_there_is_not_written_to(
    tmp_path: Path, uncut: Path, there: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = uncut if there == "run" else tmp_path / "there"
    if there == "folder":
        path.mkdir()
    elif there == "file":
        path.write_text("precious")
    before = files(path)
    assert main([f"run.dir={path}"]) == 2
    assert f"run.dir={path} is there already: give resume={path}" in capsys.readouterr().err
    assert files(path) == before


def test_a_file_is_no_directory_to_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "there"
    path.write_text("precious")
    assert main([f"run.dir={path}", "resume=auto"]) == 2
    assert str(path) in capsys.readouterr().err
    assert path.read_text() == "precious"


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077], ids=oct)
def test_modes_follow_the_umask(tmp_path: Path, umask: int) -> None:
    words = (*SMALL, "train.epochs=1", "ckpt.keep=1", "run.dir=a/b/run")
    assert run(tmp_path, *words, faults=[Called(os.umask, (umask,))]).code == 0
    paths = [tmp_path / "a", *(tmp_path / "a").rglob("*")]
    assert len(paths) > 12
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in paths}
    assert {path: oct(mode) for path, mode in modes.items() if mode & 0o7000 or mode & umask} == {}
    assert modes == {path: (0o777 if path.is_dir() else 0o666) & ~umask for path in paths}


@pytest.mark.parametrize(
    "name", ["../out", "a/b", "/tmp/out", ".hidden", "..", "", "a\nb", "a b", "x" * 300, "a\x00b", "$(touch out)", "~"]
)
def test_a_name_cannot_leave_the_root(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    quoted = name.replace("$", r"\$")
    assert main([f"run.name='{quoted}'", "run.root=outputs"]) == 2
    assert "run.name" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", ["x" * 300, "a\nb", ""])
def test_a_directory_that_cannot_be(tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([f"run.dir='{path}'"]) == 2
    assert main([f"run.root='{path}'"]) == 2
    assert not list(tmp_path.iterdir())


def test_the_contracts_files_and_no_secret(tmp_path: Path) -> None:
    assert run(tmp_path, *SMALL, faults=[Called(set_secret, ())]).code == 0
    assert files(tmp_path / "run") == FILES
    assert {path.name for path in tmp_path.iterdir()} == {"run", "output.txt"}
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or SECRET.encode() not in path.read_bytes(), path


def test_kept_epochs(tmp_path: Path) -> None:
    words = ("train.epochs=4", "train.limit_batches=2", "ckpt.keep=2", "ckpt.every_minutes=null")
    assert run(tmp_path, *SMALL, *words).code == 0
    assert files(tmp_path / "run") == FILES | {"checkpoints/epoch-0003.pt", "checkpoints/epoch-0004.pt"}
