"""A sweep that was cut, or of which a job failed: the same command does what is left. And searches, which ask."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from helpers import LEAN, train
from test_sweep import ended, when

from tinyexp.__main__ import main
from tinyexp.compose import compose
from tinyexp.config import HwConfig
from tinyexp.cores import available_cores
from tinyexp.errors import ConfigError
from tinyexp.job import Job
from tinyexp.jobprocess import JobProcess
from tinyexp.ledger import key_of, read_jobs
from tinyexp.slots import divide
from tinyexp.sweep import Sweep
from tinyexp.sweepjobs import SweepJob, plan_sweep
from tinyexp.tpe import TpeSearch

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
    assert key_of(plain, {"dataset": "clean"}) != key_of(plain, {"dataset": "noisy"}), (
        "which may differ in its root alone"
    )
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


def test_what_another_command_added_to_a_sweep_is_a_row_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their labels are the same: seeds."""
    folder = tmp_path / "s"
    for model in ("lenet5", "lenet6"):
        plan = plan_sweep([*LEAN, f"sweep.dir={folder}", f"model={model}", "train.seed=0,1", "train.limit_batches=1"])
        sweep = Sweep(plan.jobs[0].config, "", 2)
        for made in plan.jobs:
            train(sweep.add(made).directory, *made.words, "train.epochs=1")
        sweep.close()
    assert main(["report", str(folder)]) == 0
    table = [line.split()[:3] for line in capsys.readouterr().out.splitlines() if " ± " in line]
    assert sorted(line[-2:] if line[0] == "★" else line[:2] for line in table) == [["LeNet5", "2"], ["LeNet6", "2"]]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"jobs": [1]}', '{"jobs": [{"directory": "1"}]}'])
def test_a_ledger_that_cannot_be_made_out_is_told_and_left(tmp_path: Path, content: str) -> None:
    config = plan_sweep([f"sweep.dir={tmp_path}"]).jobs[0].config
    (tmp_path / "sweep.json").write_text(content)
    for _ in range(2):  # and its lock is free again
        with pytest.raises(ConfigError, match=r"sweep\.json cannot be made out .*: restore it, or give another sweep"):
            Sweep(config, "", 1)
    assert (tmp_path / "sweep.json").read_text() == content


def test_a_directory_that_is_there_is_no_new_jobs(tmp_path: Path) -> None:
    plan = plan_sweep([f"sweep.dir={tmp_path}", "train.seed=0,1"])
    (tmp_path / "7-of-somebody").mkdir()
    (tmp_path / "sweep.json").write_text('{"jobs": []}')
    sweep = Sweep(plan.jobs[0].config, "", 2)
    assert [sweep.add(job).directory.name for job in plan.jobs] == ["8-seed-0", "9-seed-1"]
    sweep.close()


def test_the_ledger_keeps_what_was_of_jobs_that_were_not_looked_at(tmp_path: Path) -> None:
    plan = plan_sweep([f"sweep.dir={tmp_path}/s"])
    sweep = Sweep(plan.jobs[0].config, "", 1)
    job = sweep.add(plan.jobs[0])
    job.status, job.code, job.last_words, job.seconds = "failed", 4, "not finite", 3.0
    sweep.write()
    sweep.close()
    before = ledger(tmp_path / "s")
    again = Sweep(plan.jobs[0].config, "", 1)
    assert again.add(plan.jobs[0]) is again.add(plan.jobs[0])
    again.asked = signal.SIGTERM
    assert [each.status for each in again.run(lambda: None)] == ["not started"]
    again.close()
    assert ledger(tmp_path / "s") == before


@pytest.mark.parametrize(
    ("code", "status"), [(0, "finished"), (-signal.SIGTERM, "finished"), (-signal.SIGKILL, "killed")]
)
def test_a_signal_that_comes_after_the_end_changes_nothing(tmp_path: Path, code: int, status: str) -> None:
    plan = plan_sweep([*LEAN, f"sweep.dir={tmp_path}/s", "train.epochs=1", "train.limit_batches=1"])
    sweep = Sweep(plan.jobs[0].config, "", 1)
    job = sweep.add(plan.jobs[0])
    train(job.directory, *plan.jobs[0].words)
    job.end(code, b"")
    assert (job.status, job.is_bad) == (status, status != "finished")
    sweep.close()


def test_a_signal_while_a_job_is_started_reaches_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_sweep([*LEAN, f"sweep.dir={tmp_path}/s", "train.epochs=100000"])
    sweep = Sweep(plan.jobs[0].config, "", 1)
    job = sweep.add(plan.jobs[0])

    class Interrupted(JobProcess):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            os.kill(os.getpid(), signal.SIGTERM)  # the sweep's own, whose handler runs at once

    monkeypatch.setattr("tinyexp.sweep.JobProcess", Interrupted)
    assert [each.number for each in sweep.run(lambda: None)] == [1]
    assert (job.status, sweep.asked) == ("killed", signal.SIGTERM)
    sweep.close()


HOLDER = """
import sys
from pathlib import Path
from tinyexp.lock import DirectoryLock
lock = DirectoryLock(Path(sys.argv[1]))
lock.take()
print("held", flush=True)
sys.stdin.read()
"""


def test_a_job_that_still_runs_for_a_sweep_that_is_gone_is_waited_for(tmp_path: Path) -> None:
    plan = plan_sweep([*LEAN, f"sweep.dir={tmp_path}/s"])
    sweep = Sweep(plan.jobs[0].config, "", 1)
    job = sweep.add(plan.jobs[0])
    job.directory.mkdir()
    seen: list[str] = []

    def look() -> None:
        seen.append(job.status)
        sweep.asked = signal.SIGTERM if len(seen) == 3 else None  # enough

    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, job.directory], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        ended = list(sweep.run(look))
        holder.communicate()
    sweep.close()
    assert (seen, [each.status for each in ended]) == (["waiting"] * 3, ["not started"])


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


# the study


def tpe(folder: Path, *words: str, trials: int = 20) -> TpeSearch:
    pytest.importorskip("optuna", reason="the extra [optuna] is not installed")
    folder.mkdir(exist_ok=True)
    plan = plan_sweep(["sweep=tpe", f"sweep.trials={trials}", *words])
    return TpeSearch(plan, plan.samples[0].config.ckpt.monitor, folder)


def job_of(made: SweepJob, status: str) -> Job:
    key = key_of(made.config.plain, made.label)
    return Job(number=1, words=(), label=made.label, key=key, directory=Path("none"), epochs=1, status=status)


def test_a_space_of_few_values_is_tried_once_whatever_becomes_of_it(tmp_path: Path) -> None:
    for ending in ("pruned", "failed"):
        search = tpe(tmp_path / ending, "sweep.space={train.seed:[0,1,2]}")
        asked = []
        while made := search.ask():
            asked.append(made.config.train.seed)
            search.tell(job_of(made, ending))
        assert len(asked) == len(set(asked)) <= 3
        again = tpe(tmp_path / ending, "sweep.space={train.seed:[0,1,2]}")
        left = []
        while made := again.ask():
            left.append(made.config.train.seed)
            again.tell(job_of(made, ending))
        assert len(left) == len(set(left))


def test_values_that_cannot_be_together_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    words = ["sweep.space={transfer.freeze:[[conv1.*],none],transfer.unfreeze_at:[null,3]}"]
    asked = []
    for _ in range(2):
        search = tpe(tmp_path, *words, trials=12)
        while made := search.ask():
            asked.append((made.config.transfer.freeze, made.config.transfer.unfreeze_at))
    assert ("none", 3) not in asked
    assert "left out: transfer.unfreeze_at must be null where nothing is frozen" in caplog.text


def test_another_space_metric_or_config_has_a_study_of_its_own(tmp_path: Path) -> None:
    import optuna

    space = "sweep.space={model:[lenet5,lenet6]}"
    others = [
        ("sweep.space={model:[lenet6,lenet5]}",),
        (space, "ckpt.monitor=val/loss"),
        (space, "train.epochs=3"),
        (space, "optim.lr=0.5"),
    ]
    for words in ((space,), (space, "hw.threads=1", "sweep.jobs=2"), *others):
        tpe(tmp_path, *words)
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(tmp_path / "study.journal"))
    )
    assert len(optuna.get_all_study_names(storage)) == 1 + len(others)


def test_a_journal_that_was_cut_in_the_middle_is_mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock that Optuna left, which leads nowhere, and half a line."""
    monkeypatch.chdir(tmp_path)
    space = "sweep.space={train.seed:[0,1,2]}"
    first = tpe(Path("s"), space).ask()
    assert first is not None
    journal = tmp_path / "s" / "study.journal"
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code": 5, "wor')
    Path("s/study.journal.lock").symlink_to("s/study.journal")
    again = tpe(Path("s"), space).ask()
    assert again is not None
    assert again.label == first.label, "the trial that was cut"
    assert journal.read_bytes().startswith(whole)
    assert not Path("s/study.journal.lock").is_symlink()


# that they go on


def begin(tmp_path: Path, *words: str, name: str = "sweep") -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tinyexp", "-m", *LEAN, *words, f"sweep.dir={tmp_path / name}", "log.level=info"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


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
    words = ["optim.lr=1e-3,1e-2,3e-3", "train.epochs=15", "sweep.jobs=2", "ckpt.every_minutes=null"]
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
    assert statuses(cut) == ["finished"] * 3
    assert out.count("finished before") == 2 * 2, "in its line and in the table"
    assert {path: path.stat().st_mtime_ns for folder in finished for path in folder.iterdir()} == before
    logs = [(cut / job["directory"] / "run.log").read_text() for job in ledger(cut)]
    assert sum("resumed at step" in log for log in logs) >= 1
    assert len([path for path in cut.iterdir() if path.is_dir()]) == 3
    for made in plan_sweep([*LEAN, *words]).jobs:
        name = "-".join(f"{key.rpartition('.')[2]}-{value}" for key, value in made.label.items())
        train(whole / name, *made.words, f"run.dir={whole / name}")
    assert main(["report", str(whole), f"--out={whole}"]) == 0
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


@pytest.mark.slow
def test_tpe_finds_prunes_and_goes_on_with_the_same_study(tmp_path: Path) -> None:
    """Cut by a signal after a trial or two, it ends with as many trials as were asked for, none of them twice."""
    optuna = pytest.importorskip("optuna", reason="the extra [optuna] is not installed")
    words = ["sweep=tpe", "sweep.trials=5", "sweep.startup=2", "sweep.prune_after=1", "sweep.jobs=2", "train.epochs=3"]
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
    assert len(jobs) == 5 == len({job["key"] for job in jobs})
    assert {job["status"] for job in jobs} <= {"finished", "pruned"}
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(folder / "study.journal")))
    (name,) = optuna.get_all_study_names(storage)
    study = optuna.load_study(study_name=name, storage=storage)
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


@pytest.mark.slow
def test_a_clusters_word_that_time_is_up_makes_a_job_save(tmp_path: Path) -> None:
    """SLURM sends it to all processes of a job, the run among them, some time before the end."""
    words = [*LEAN, "train.epochs=100000", "ckpt.every_minutes=null", f"run.dir={tmp_path}/run"]
    run = f"run({words!r}, {{}}, {str(tmp_path / 'stop')!r}, '.')"
    code = f"import sys; from tinyexp.submitted import run; sys.exit({run})"
    with subprocess.Popen([sys.executable, "-c", code], start_new_session=True) as process:
        when((tmp_path / "run" / "checkpoints" / "last.pt").exists)
        (tmp_path / "run" / "checkpoints" / "last.pt").unlink()
        pid = json.loads((tmp_path / "run" / ".lock").read_text())["pid"]
        os.kill(pid, signal.SIGUSR2)
        process.send_signal(signal.SIGUSR2)
        assert process.wait(60) == 75
    assert (tmp_path / "run" / "checkpoints" / "last.pt").exists()
