"""Sweeps: which jobs there are, that each is a run of its own, and what becomes of those that fail."""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import LEAN, rows
from PIL import Image

from tinyexp.__main__ import main
from tinyexp.compose import compose
from tinyexp.errors import ConfigError
from tinyexp.overrides import parse, word
from tinyexp.sweep import Sweep
from tinyexp.sweepjobs import plan_sweep

SHORT = [*LEAN, "train.epochs=2", "train.limit_batches=4"]
GRID = """# @package _global_
sweep:
  grid:
    optim.lr: [1e-3, 0.01]
    train.seed: range(2)
train: {epochs: 3}
"""


@pytest.fixture
def own_conf(tmp_path: Path) -> list[str]:
    """A --config-dir with experiment=small and experiment=grid."""
    folder = tmp_path / "own conf" / "experiment"
    folder.mkdir(parents=True)
    (folder / "small.yaml").write_text("# @package _global_\ntrain: {epochs: 1}\n")
    (folder / "grid.yaml").write_text(GRID)
    (folder / "plus.yaml").write_text(GRID.replace("optim.lr: [1e-3, 0.01]", "+optim.amsgrad: [true, false]"))
    return ["hydra.searchpath=['file://" + str(folder.parent) + "']"]


def labels(*words: str) -> list[dict[str, str]]:
    return [dict(job.label) for job in plan_sweep(words).jobs]


# which jobs


def test_every_combination_once_the_last_varying_fastest() -> None:
    jobs = plan_sweep(["optim.lr=1e-3,1e-2", "train.epochs=2", "train.seed=range(3)"]).jobs
    made = [(job.config.optim.arguments["lr"], job.config.train.seed) for job in jobs]
    assert made == list(itertools.product([1e-3, 1e-2], range(3)))
    assert {job.config.train.epochs for job in jobs} == {2}
    assert all(set(job.label) == {"optim.lr", "train.seed"} for job in jobs)


@pytest.mark.parametrize(
    ("words", "values"),
    [
        ("optim=sgd,adam", ["sgd", "adam"]),
        ("model=glob(res*)", ["resnet18", "resnet50"]),
        ("experiment=glob(fashion*)", ["fashion_lenet5"]),
        ("transfer=scratch,finetune", ["scratch", "finetune"]),
        ("train.seed=range(1,7,2)", ["1", "3", "5"]),
        ("train.label_smoothing=range(0.0,0.3,0.1)", ["0.0", "0.1", "0.2"]),
        ("train.seed=choice(4,5)", ["4", "5"]),
        ("optim.betas=[0.8,0.9],[0.9,0.99]", ["[0.8,0.9]", "[0.9,0.99]"]),
        ("+optim.amsgrad=true,false", ["True", "False"]),
    ],
)
def test_hydras_ways_to_give_several_values(words: str, values: list[str]) -> None:
    jobs = plan_sweep([words]).jobs
    assert len(jobs) == len(values)
    assert [job.words[0].partition("=")[2] for job in jobs] == values
    for job in jobs:
        assert compose(job.words).plain == job.config.plain  # the words of a job make it again
        key, _, value = job.words[0].partition("=")
        assert not job.label or job.label == {key.lstrip("+"): value}


def test_a_job_of_one_value_is_a_sweep_too() -> None:
    (job,) = plan_sweep(["train.epochs=2"]).jobs
    assert (job.label, job.words) == ({}, ("train.epochs=2",))


def test_an_experiments_own_grid(own_conf: list[str]) -> None:
    assert labels(*own_conf, "experiment=grid") == [
        {"optim.lr": lr, "train.seed": seed} for lr in ("0.001", "0.01") for seed in ("0", "1")
    ]
    assert labels(*own_conf, "experiment=grid", "optim.lr=0.5") == [{"train.seed": "0"}, {"train.seed": "1"}]
    both = labels(*own_conf, "experiment=small,grid", "train.seed=7,8")
    assert both[:2] == [{"experiment": "small", "train.seed": seed} for seed in ("7", "8")]
    assert len(both) == 2 + 4  # seeds are the command line's, rates the grid's
    assert compose([*own_conf, "experiment=grid"]).train.epochs == 3  # without -m it is one run


def test_words_with_spaces_and_signs_come_back_as_they_were(tmp_path: Path) -> None:
    for value in ("a b", "a,b", "a=b", "it's", 'say "x"', "back\\", "{a}", "[1]", "", "null", "1e-3", "7", "ü", "a:b"):
        assert parse([word("run.dir", value)]).value("run.dir") == value


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("optim.lrr=1,2", "optim.lrr is no key; did you mean optim.lr?"),
        ("optim.lr=1,fast", "optim.lr must be a number, got 'fast'"),
        ("train.seed=0,-1", "train.seed must be at least 0 and below 2**63, got -1"),
        ("model=lenet5,lenet7", "model=lenet7 is no choice; did you mean lenet6?"),
        ("train.seed=range(3,3)", "train.seed=range(3,3) gives no value"),
        ("optim.lr=1e-3,0.001", "two jobs would be the same run: optim.lr=0.001"),
        ("model.dropout=0.1,2", "dropout probability has to be between 0 and 1"),
        ("sweep.on_error=stop,continue", "sweep.on_error is one for the whole sweep, and cannot be swept"),
        (
            "model=torchvision model.name=resnet18,resnet99",
            "model.name=resnet99 is no classification network of torchvision",
        ),
        ("optim.lr=interval(0,1)", "optim.lr=interval(0,1) has no end of values: give some, as optim.lr=0.1,0.2"),
        ("model=glob(z*)", "model=glob(z*) matches no choice; valid: lenet5,"),
        ("run.dir=x optim.lr=1,2", "run.dir is for one run, and -m makes several: use sweep.dir"),
        ("resume=auto optim.lr=1,2", "resume is for one run"),
        ("+optim.lrr=1,2", "optim.lrr is no argument of torch.optim.AdamW; did you mean optim.lr? (job optim.lrr=1;"),
        ("optim.lr=0.1,-1", "Invalid learning rate: -1 (job optim.lr=-1; none was begun)"),
        ("transfer=scratch,frozen model.weights=/nowhere.pth", "/nowhere.pth is not there"),
        ("+sweep.grid={train.seed:[]}", "sweep.grid.train.seed must be a list of values or a text"),
        ("+sweep.grid={train.sed:[1,2]}", "train.sed is no key; did you mean train.seed?"),
    ],
)
def test_a_wrong_job_is_told_before_the_first_begins(
    words: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["-m", *words.split(), f"run.root={tmp_path}/out"])
    err = capsys.readouterr().err
    assert (code, "Traceback" in err) == (2, False)
    assert message in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "grid",
    [
        {"model._target_": ["evil.Net"]},
        {"++model._target_": ["evil.Net"]},
        {"model": [{"_target_": "evil.Net"}]},
        {"scheduler": "choice({_target_:evil.Net},{_target_:evil.Net})"},
        {"trust": [["evil.*"]], "train.seed": [0, 1]},
        {"hydra.searchpath": [["file:///tmp"]]},
    ],
)
def test_a_files_grid_has_no_word_on_what_code_to_run(
    grid: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "evil.py").write_text("import pathlib\npathlib.Path(__file__).with_name('marker').touch()\n")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "params.json").write_text(json.dumps({"sweep": {"grid": grid}}))
    assert main(["-m", f"config_file={tmp_path}/params.json", f"run.root={tmp_path}/out"]) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evil.py", "params.json"]


def test_a_grid_gives_way_to_the_command_line_and_can_be_switched_off(own_conf: list[str]) -> None:
    assert labels(*own_conf, "experiment=grid", "+optim.lr=0.5") == [{"train.seed": "0"}, {"train.seed": "1"}]
    assert labels(*own_conf, "experiment=grid", "sweep.grid={}") == [{}]
    assert len(labels(*own_conf, "experiment=plus")) == 4
    assert len(labels(*own_conf, "experiment=plus", "+optim.amsgrad=true")) == 2
    assert labels("experiment=fashion_lenet5,null") == [{"experiment": "fashion_lenet5"}, {"experiment": "null"}]


@contextlib.contextmanager
def made(*words: str) -> Iterator[Sweep]:
    """A sweep whose jobs are planned and not run."""
    jobs = plan_sweep(words).jobs
    sweep = Sweep(jobs[0].config, "made", len(jobs))
    for job in jobs:
        sweep.add(job)
    yield sweep
    sweep.close()


def test_directories_say_what_they_are_and_need_no_quotes(tmp_path: Path) -> None:
    with made(f"run.root={tmp_path}", "optim.lr=1e-3,1e-2", "optim.betas=[0.8,0.9],[0.9,0.99]") as sweep:
        names = [job.directory.name for job in sweep.jobs]
        assert names[:2] == ["1-lr-0.001-betas-_0.8_0.9", "2-lr-0.001-betas-_0.9_0.99"]
        for job in sweep.jobs:
            assert not job.directory.exists()
            relative = str(job.directory.relative_to(tmp_path))
            assert parse([f"resume={relative}"]).value("resume") == relative


def test_a_sweep_is_of_one_machine(tmp_path: Path) -> None:
    words = [f"run.root={tmp_path}", "train.seed=0,1", "hw.nodes=2", "hw.master=node0", "hw.node=0"]
    with (
        pytest.raises(ConfigError, match=r"-m is for one machine.*start each run on all machines by itself"),
        made(*words),
    ):
        pass
    assert not list(tmp_path.iterdir())


def test_two_sweeps_do_not_collide(tmp_path: Path) -> None:
    words = [f"run.root={tmp_path}", "train.seed=0,1"]
    with contextlib.ExitStack() as stack:
        assert len({stack.enter_context(made(*words)).directory for _ in range(5)}) == 5
    named = [f"sweep.dir={tmp_path}/mine", "train.seed=0,1"]
    with made(*named) as sweep:
        assert sweep.directory == tmp_path / "mine"
        asked = [sys.executable, "-m", "tinyexp", "-m", *LEAN, *named]
        second = subprocess.run(asked, capture_output=True, text=True)
        assert second.returncode == 2
        assert f"mine is being written by process {os.getpid()}" in second.stderr
    (tmp_path / "other").mkdir()
    with pytest.raises(ConfigError, match=r"other is there already, and is no sweep's: it has no sweep\.json"):
        made(f"sweep.dir={tmp_path}/other").__enter__()


# that they run


def begin_sweep(tmp_path: Path, *words: str) -> subprocess.Popen[str]:
    """`python -m tinyexp -m ...` with sweep.dir=tmp_path/sweep."""
    command = [sys.executable, "-m", "tinyexp", "-m", *SHORT, *words, f"sweep.dir={tmp_path}/sweep", "log.level=info"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def ended(process: subprocess.Popen[str], limit: float = 240) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=limit)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, out, err


def when(condition: Callable[[], object], limit: float = 120) -> None:
    """Wait until something is so."""
    end = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def summary(directory: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((directory / "summary.json").read_text())
    return found


@pytest.mark.slow
def test_jobs_that_fail_stop_no_other_and_are_told(tmp_path: Path) -> None:
    """One job of four has a loss of nan, one is killed."""
    process = begin_sweep(tmp_path, "optim.lr=1e-3,1e30,2e-3,3e-3", "train.epochs=40", "ckpt.every_minutes=null")
    killed = tmp_path / "sweep" / "3-lr-0.002"
    when(lambda: (killed / "metrics.jsonl").exists() or process.poll() is not None)
    os.kill(json.loads((killed / ".lock").read_text())["pid"], signal.SIGKILL)
    code, out, err = ended(process)
    assert code == 1
    assert "2 of 4 jobs did not finish: 2-lr-1e+30 failed: not finite (exit 4); 3-lr-0.002 killed: by SIGKILL" in err
    jobs = json.loads((tmp_path / "sweep" / "sweep.json").read_text())["jobs"]
    assert [job["status"] for job in jobs] == ["finished", "failed", "killed", "finished"]
    assert [job["exit_code"] for job in jobs] == [0, 4, -signal.SIGKILL, 0]
    nan = tmp_path / "sweep" / jobs[1]["directory"]
    assert (summary(nan)["status"], summary(nan)["exit_code"]) == ("failed", 4)
    assert "samples of step" in (nan / "run.log").read_text()
    for name in ("1-lr-0.001", "4-lr-0.003"):
        directory = tmp_path / "sweep" / name
        assert summary(directory)["status"] == "finished"
        best = max(row["top1"] for row in rows(directory, "val"))
        assert f"{best:.4f}" in out  # the table says what the run logged
    for line in ("failed: not finite (exit 4)", "killed: by SIGKILL"):
        assert line in out
    assert (tmp_path / "sweep" / "sweep.log").read_text().count(" job ") == 4


@pytest.mark.slow
def test_a_crash_leaves_its_traceback_and_on_error_stop_begins_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user's class that fails in training, which no check can tell before."""
    (tmp_path / "mynet.py").write_text(
        "import torch\nfrom tinyexp.models import LeNet5\nclass Net(LeNet5):\n"
        "    def forward(self, images):\n        assert not torch.is_grad_enabled(), 'it broke'\n"
        "        return super().forward(images)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    code, out, err = ended(
        begin_sweep(tmp_path, "model._target_=mynet.Net", "train.seed=range(3)", "sweep.on_error=stop")
    )
    assert (code, err.count("Traceback")) == (1, 0)
    first = tmp_path / "sweep" / "1-seed-0"
    assert "AssertionError: it broke" in (first / "run.log").read_text()
    assert summary(first)["exit_code"] == 1
    assert sorted(path.name for path in first.parent.iterdir()) == [
        ".lock",
        "1-seed-0",
        "1-seed-0.out",
        "sweep.json",
        "sweep.log",
    ]
    assert out.count("not started") >= 2


@pytest.mark.slow
def test_a_job_that_leaves_before_its_last_epoch_did_not_finish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever its exit code says."""
    (tmp_path / "mynet.py").write_text(
        "import os, torch\nfrom tinyexp.models import LeNet5\nclass Net(LeNet5):\n"
        "    def forward(self, images):\n        if torch.is_grad_enabled():\n            os._exit(0)\n"
        "        return super().forward(images)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    code, out, err = ended(begin_sweep(tmp_path, "model._target_=mynet.Net"))
    assert (code, "1 of 1 jobs did not finish" in err) == (1, True)
    assert "failed: it ended with exit 0 before its last epoch" in out


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_makes_the_running_job_save_and_starts_no_other(tmp_path: Path, number: signal.Signals) -> None:
    process = begin_sweep(tmp_path, "train.seed=range(3)", "train.epochs=100000")
    job = tmp_path / "sweep" / "1-seed-0"
    when(lambda: (job / "checkpoints" / "last.pt").exists() or process.poll() is not None)
    process.send_signal(number)
    code, out, err = ended(process)
    assert code == 75
    told = (
        f"the sweep was interrupted by {number.name}; 2 were not started; the same command with sweep.dir={job.parent}"
    )
    assert told in err
    assert summary(job)["status"] == "interrupted"
    assert not (job.parent / "2-seed-1").exists()
    assert out.count("not started") >= 2


@pytest.mark.slow
def test_a_sweep_of_seeds_ends_in_the_first_table(tmp_path: Path) -> None:
    code, out, _ = ended(begin_sweep(tmp_path, "optim.lr=1e-3,1e-2", "train.seed=range(2)", "sweep.jobs=2"))
    assert code == 0
    directories = sorted(path for path in (tmp_path / "sweep").iterdir() if path.is_dir())
    assert [summary(directory)["status"] for directory in directories] == ["finished"] * 4
    assert "4 of 4 runs, by val/top1" in out
    table = [line.lstrip("★ ").split() for line in out.splitlines() if " ± " in line]
    assert {(line[0], line[1]) for line in table} == {("0.001", "2"), ("0.01", "2")}  # lr and n


@pytest.mark.slow
def test_a_comparison_of_a_group_is_one_table_and_one_figure(tmp_path: Path, own_conf: list[str]) -> None:
    """A recipe's grid of transfer, one of its jobs without a result; each number is that of the runs' metrics."""
    grid = "{transfer: [scratch, finetune], optim.lr: [1e-3, 1e30]}"
    recipe = f"# @package _global_\nsweep: {{at_epochs: [1, 2, 9], grid: {grid}}}\n"
    (tmp_path / "own conf" / "experiment" / "compare.yaml").write_text(recipe)
    code, out, err = ended(begin_sweep(tmp_path, *own_conf, "experiment=compare", "log.every=2"))
    folder = tmp_path / "sweep"
    assert (code, "2 of 4 jobs did not finish" in err) == (1, True)
    with (folder / "report.csv").open(newline="") as file:
        table = {(row["transfer"], row["optim.lr"]): row for row in csv.DictReader(file)}
    assert set(table) == set(itertools.product(("scratch", "finetune"), ("0.001", "1e+30")))
    for (transfer, lr), row in table.items():
        (run,) = row["runs"].split()
        assert f"-transfer-{transfer}-lr-{lr}" in run
        cells = [row[f"top1@{epoch}_mean"] for epoch in (1, 2, 9)]
        if lr == "0.001":
            top1 = [line["top1"] for line in rows(Path(run), "val")]
            assert [float(cell) for cell in cells[:2]] == top1
            assert (row["n"], cells[2]) == ("1", "")
            shown = rf"{transfer} +{lr} +1 +{top1[0]:.4f} +{top1[1]:.4f} +{max(top1):.4f} "
            assert re.search(shown, out)
            cells = [f"{value:.4f}" for value in top1]
            assert f"| {transfer} | {lr} | 1 | {cells[0]} | {cells[1]} |  |" in (folder / "report.md").read_text()
        else:
            assert (row["n"], cells) == ("0", ["", "", ""])
            assert re.search(rf"{transfer} +1e\+30 +0 ", out)
    with Image.open(folder / "curves.png") as picture:
        picture.load()
        assert picture.format == "PNG"
    told = "index.html, report.md, report.csv and curves.png are in"
    assert f"{told} {folder}\n" in out


@pytest.mark.slow
def test_a_job_is_the_run_that_its_words_make(tmp_path: Path) -> None:
    """The same metrics, but for the time fields, as the same words without a sweep."""
    code, _, _ = ended(begin_sweep(tmp_path, "train.seed=5,6"))
    assert code == 0
    assert main([*SHORT, "train.seed=6", f"run.dir={tmp_path}/alone"]) == 0
    times = ("images_per_second", "data_wait", "seconds")
    both = [
        [{key: value for key, value in row.items() if key not in times} for row in rows(directory, "val")]
        for directory in (tmp_path / "sweep" / "2-seed-6", tmp_path / "alone")
    ]
    assert both[0] == both[1]
