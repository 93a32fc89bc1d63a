"""A sweep that was cut, or of which a job failed: the same command does what is left. And searches, which ask."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from helpers import LEAN

from tinyexp.compose import compose
from tinyexp.config import HwConfig
from tinyexp.cores import available_cores
from tinyexp.errors import ConfigError
from tinyexp.ledger import key_of, read_jobs
from tinyexp.slots import divide
from tinyexp.sweep import Sweep
from tinyexp.sweepjobs import plan_sweep

TIMES = ("seconds", "images_per_second")
SPACE = "sweep.space={optim.lr:{low:1e-4,high:1e-2,log:true},model:[lenet5,lenet6]}"


# which jobs are one


def test_a_job_is_named_by_what_a_resumed_run_keeps() -> None:
    def key(*words: str) -> str:
        return key_of(compose(words).plain, {})

    same = [
        "run.name=x",
        "hw.threads=1",
        "log.every=7",
        "ckpt.keep=2",
        "sweep.jobs=3",
        "dataset.workers=1",
        "trust=[a.*]",
    ]
    assert {key(), *(key(word) for word in same)} == {key()}
    others = ["optim.lr=0.5", "train.seed=1", "train.epochs=3", "model=lenet6", "ckpt.monitor=val/loss"]
    keys = {key(), *(key(word) for word in others[:-1])}
    assert len(keys) == len(others)
    plain = compose([]).plain
    labels = [{}, {"hw.threads": "1"}, {"hw.threads": "2"}, {"hw": "cpu"}, {"log.every": "3"}]
    assert len({key_of(plain, label) for label in labels}) == 5, "what is varied makes another job"
    for label in ({"optim.lr": "1"}, {"optim": "sgd"}, {"train.epochs": "20"}, {"transfer": "scratch"}):
        assert key_of(plain, label) == key_of(plain, {}), "the config says it by itself"


def ledger(directory: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((directory / "sweep.json").read_text())["jobs"]
    return found


def add_all(sweep: Sweep, words: Iterable[str]) -> None:
    for job in plan_sweep(list(words)).jobs:
        sweep.add(job)


def test_the_same_jobs_have_the_same_directories_and_new_ones_new_ones(tmp_path: Path) -> None:
    config = plan_sweep([f"sweep.dir={tmp_path}/s"]).jobs[0].config

    def directories(*words: str) -> list[str]:
        sweep = Sweep(config, "", 3)
        add_all(sweep, words)
        sweep.close()
        return [job.directory.name for job in sweep.jobs]

    first = directories("train.seed=0,1")
    assert first == ["1-seed-0", "2-seed-1"]
    assert directories("train.seed=0,1") == first
    assert directories("train.seed=1,5") == ["2-seed-1", "3-seed-5"]
    assert directories("train.seed=0,1", "train.epochs=3") == ["4-seed-0", "5-seed-1"], "other runs than those"
    assert [job["directory"] for job in ledger(tmp_path / "s")] == [
        "1-seed-0", "2-seed-1", "3-seed-5", "4-seed-0", "5-seed-1"
    ]  # fmt: skip
    assert len({past.key for past in read_jobs(tmp_path / "s")}) == 5


# slots


def hw(**values: object) -> HwConfig:
    return compose([f"hw.{key}={value}" for key, value in values.items()]).hw


def test_cores_are_divided_among_jobs() -> None:
    cores = available_cores()
    assert [slot.threads for slot in divide(hw(device="cpu"), 1)] == [None]
    assert {slot.threads for slot in divide(hw(device="cpu"), cores)} == {1}
    assert len(divide(hw(device="cpu"), 3 * cores)) == 3 * cores
    assert {slot.threads for slot in divide(hw(device="cpu"), 2 * cores)} == {1}, "at least one"
    assert {slot.threads for slot in divide(hw(device="cpu", threads=7), 2)} == {None}, "the user's word"


def test_gpus_are_dealt_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, 6")
    assert [slot.environment.get("CUDA_VISIBLE_DEVICES") for slot in divide(hw(device="cuda"), 3)] == ["4", "6", "4"]
    for other in (hw(device="cpu"), hw(device="cuda", procs=2), hw(device="cuda", procs="auto")):
        assert {slot.device for slot in divide(other, 2)} == {None}
    assert divide(hw(device="cuda"), 1)[0].device is None


# what a search is given


def test_random_search_plans_trials_of_its_space() -> None:
    plan = plan_sweep(["sweep=random", "sweep.trials=6", SPACE, "train.epochs=2"])
    assert len(plan.jobs) == 6
    assert {job.config.train.epochs for job in plan.jobs} == {2}
    for job in plan.jobs:
        assert job.label == {
            "optim.lr": str(job.config.optim.arguments["lr"]),
            "model": job.config.model.target.rpartition(".")[2].lower(),
        }
        assert 1e-4 <= job.config.optim.arguments["lr"] <= 1e-2
    again = plan_sweep(["sweep=random", "sweep.trials=9", SPACE, "train.epochs=2"])
    assert [job.label for job in again.jobs[:6]] == [job.label for job in plan.jobs]
    assert {(job.label["optim.lr"], job.label["model"]) for job in plan.samples} == {
        ("0.0001", "lenet5"), ("0.01", "lenet5"), ("0.0001", "lenet6")
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sweep=tpe"], r"sweep\.space must be a mapping such as \{optim\.lr: \{low"),
        (["sweep=tpe", SPACE, "train.seed=0,1"], r"several values, which is for sweep=grid: with sweep=tpe give sweep"),
        (["sweep=tpe", SPACE, "optim.lr=0.1"], r"optim\.lr is given, and sweep\.space has it too"),
        (["sweep=tpe", "sweep.space={optim.lrr:[1,2]}"], r"optim\.lrr is no key; did you mean optim\.lr\?"),
        (["sweep=random", "sweep.space={model:[lenet7]}"], r"model=lenet7 is no choice"),
        (["sweep=random", SPACE, "sweep.trials=0"], r"sweep\.trials must be at least 1"),
        (["sweep=random", SPACE, "sweep.trials=null"], r"sweep\.trials must be a number of runs"),
        (["sweep=random", SPACE, "+sweep.grid={train.seed:[0,1]}"], r"sweep\.grid is for sweep=grid, and this is"),
        ([SPACE], r"sweep\.space must be left out with sweep=grid: give sweep=random or sweep=tpe"),
        (["sweep=tpe", "sweep.space={train.epochs:{low:0,high:3}}"], r"train\.epochs must be at least 1, got 0"),
        (["sweep=bayes", SPACE], r"sweep=bayes is no choice; .*grid.*random.*tpe"),
        (["sweep.jobs=0"], r"sweep\.jobs must be at least 1"),
    ],
)
def test_a_wrong_search_is_told_before_anything_is_made(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_sweep(words)


def test_a_files_space_has_no_word_on_what_code_to_run(tmp_path: Path) -> None:
    path = tmp_path / "params.json"
    for key in ("model._target_", "trust", "++optim._target_"):
        path.write_text(json.dumps({"sweep": {"search": "random", "trials": 2, "space": {key: ["evil.Net", "x.Y"]}}}))
        with pytest.raises(ConfigError, match="only the command line may give it"):
            plan_sweep([f"config_file={path}"])
    path.write_text(json.dumps({"sweep": {"search": "random", "trials": 2, "space": {"train.seed": [5, 6]}}}))
    assert {job.config.train.seed for job in plan_sweep([f"config_file={path}"]).jobs} == {5, 6}


# that they go on


def begin(tmp_path: Path, *words: str, name: str = "sweep") -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tinyexp", "-m", *LEAN, *words, f"sweep.dir={tmp_path / name}", "log.level=info"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def ended(process: subprocess.Popen[str], limit: float = 240) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=limit)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, out, err


def when(condition: Callable[[], object], limit: float = 120) -> None:
    end = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def statuses(directory: Path) -> list[str]:
    try:
        return [job["status"] for job in ledger(directory)]
    except (OSError, ValueError):
        return []


def table(directory: Path) -> list[dict[str, str]]:
    """report.csv without times and places."""
    rows = csv.DictReader((directory / "report.csv").read_text().splitlines())
    return [{key: value for key, value in row.items() if key not in (*TIMES, "runs")} for row in rows]


def processes(directory: Path) -> list[str]:
    """Command lines that name this directory."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_bytes().decode(errors="replace").replace("\0", " "))
        except OSError:
            continue
    return [line for line in lines if str(directory) in line and "run.dir=" in line]


@pytest.mark.slow
def test_a_sweep_killed_with_its_group_goes_on_and_comes_to_the_same_table(tmp_path: Path) -> None:
    """Finished jobs are not run again, the cut ones resume, those that were not begun begin."""
    words = ["optim.lr=1e-3,1e-2", "train.seed=range(2)", "train.epochs=40", "sweep.jobs=2", "ckpt.every_minutes=null"]
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    process = begin(tmp_path, *words, name="cut")

    def half_way() -> bool:
        checkpoints = [cut / job["directory"] / "checkpoints" / "last.pt" for job in ledger(cut)[2:]]
        return statuses(cut)[:2] == ["finished"] * 2 and any(path.exists() for path in checkpoints)

    when(lambda: (cut / "sweep.json").exists() and half_way())
    os.killpg(process.pid, signal.SIGKILL)
    ended(process)
    if sys.platform == "linux":
        when(lambda: not processes(cut), 30)
    finished = [cut / job["directory"] for job in ledger(cut)[:2]]
    before = {path: path.stat().st_mtime_ns for folder in finished for path in folder.iterdir()}
    code, out, err = ended(begin(tmp_path, *words, name="cut"))
    assert (code, err) == (0, "")
    assert statuses(cut) == ["finished"] * 4
    assert out.count("finished before") == 2 * 2, "in its line and in the table"
    assert {path: path.stat().st_mtime_ns for folder in finished for path in folder.iterdir()} == before
    logs = [(cut / job["directory"] / "run.log").read_text() for job in ledger(cut)]
    assert sum("resumed at step" in log for log in logs) >= 1
    assert len([path for path in cut.iterdir() if path.is_dir()]) == 4
    assert ended(begin(tmp_path, *words, name="whole"))[0] == 0
    assert table(cut) == table(whole)


@pytest.mark.slow
def test_a_failed_job_begins_anew_in_a_directory_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mynet.py").write_text(
        "import pathlib, torch\nfrom tinyexp.models import LeNet5\nclass Net(LeNet5):\n"
        "    def forward(self, images):\n"
        "        if torch.is_grad_enabled() and torch.initial_seed() and pathlib.Path('broken').exists():\n"
        "            raise ValueError('it broke')\n"
        "        return super().forward(images)\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.chdir(tmp_path)
    words = ["model._target_=mynet.Net", "train.seed=0,1", "train.epochs=1", "train.limit_batches=2", "sweep.jobs=2"]
    Path("broken").touch()
    code, _, err = ended(begin(tmp_path, *words))
    assert code == 1
    assert "2 of 2 jobs did not finish" in err
    assert f"; the same command with sweep.dir={tmp_path / 'sweep'} does what is left" in err
    Path("broken").unlink()
    code, out, err = ended(begin(tmp_path, *words))
    assert (code, err) == (0, "")
    assert [(job["directory"], job["status"]) for job in ledger(tmp_path / "sweep")] == [
        ("1-seed-0-try-2", "finished"), ("2-seed-1-try-2", "finished")
    ]  # fmt: skip
    assert "2 of 4 runs, by val/top1" in out, "the attempts that failed are told"
    assert "it broke" in (tmp_path / "sweep" / "1-seed-0" / "run.log").read_text(), "and stay"
    code, out, _ = ended(begin(tmp_path, *words))
    assert (code, out.count("finished before")) == (0, 4)


@pytest.mark.slow
def test_tpe_finds_prunes_and_goes_on_with_the_same_study(tmp_path: Path) -> None:
    """Cut by a signal after a trial or two, it ends with as many trials as were asked for, none of them twice."""
    optuna = pytest.importorskip("optuna", reason="the extra [optuna] is not installed")
    words = ["sweep=tpe", "sweep.trials=7", "sweep.startup=3", "sweep.prune_after=1", "sweep.jobs=2", "train.epochs=4"]
    words += ["sweep.space={optim.lr:{low:1e-6,high:1e-2,log:true}}"]
    folder = tmp_path / "sweep"
    process = begin(tmp_path, *words)
    when(lambda: "finished" in statuses(folder))
    process.send_signal(signal.SIGTERM)
    code, _, err = ended(process)
    assert code in (1, 75)
    assert "the sweep was interrupted by SIGTERM" in err
    first = {job["directory"]: job["words"] for job in ledger(folder)}
    code, out, err = ended(begin(tmp_path, *words))
    assert (code, err) == (0, "")
    jobs = ledger(folder)
    assert {job["directory"]: job["words"] for job in jobs if job["directory"] in first} == first
    assert len(jobs) == 7 == len({job["key"] for job in jobs})
    assert {job["status"] for job in jobs} <= {"finished", "pruned"}
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(folder / "study.journal")))
    study = optuna.load_study(study_name="sweep", storage=storage)
    states = {"finished": optuna.trial.TrialState.COMPLETE, "pruned": optuna.trial.TrialState.PRUNED}
    assert sorted(str(trial.state) for trial in study.trials) == sorted(str(states[job["status"]]) for job in jobs)
    best = max(float(row["best_mean"]) for row in table(folder) if row["n"] == "1")
    assert study.best_value == best
    for job in jobs:
        summary = json.loads((folder / job["directory"] / "summary.json").read_text())
        assert summary["status"] == job["status"]
        assert job["status"] in out


@pytest.mark.slow
def test_submitit_runs_jobs_as_a_cluster_would(tmp_path: Path) -> None:
    """By its local executor: one job finishes, one is asked to end and saves."""
    pytest.importorskip("submitit", reason="the extra [submitit] is not installed")
    words = ["sweep.launcher=submitit", "sweep.submitit={cluster:local,timeout_min:10}", "sweep.jobs=2"]
    words += ["train.epochs=1,100000", "ckpt.every_minutes=null"]
    folder = tmp_path / "sweep"
    process = begin(tmp_path, *words)
    when(lambda: "finished" in statuses(folder))
    when((folder / "2-epochs-100000" / "checkpoints" / "last.pt").exists)
    process.send_signal(signal.SIGTERM)
    code, _, err = ended(process)
    assert (code, statuses(folder)) == (75, ["finished", "interrupted"])
    assert "the sweep was interrupted by SIGTERM" in err
    summary = json.loads((folder / "2-epochs-100000" / "summary.json").read_text())
    assert summary["status"] == "interrupted"
    assert list((folder / "submitit" / "1-epochs-1").glob("*_log.out"))
