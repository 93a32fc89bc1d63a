"""Two processes under torchrun are one that accumulates two micro-batches, to the bit, through a cut as well."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from helpers import LEAN, NO_BOARD, rows, train

from tinyexp.checkpoint import load

pytestmark = pytest.mark.slow

WORDS = (
    *LEAN[:2],  # what is said is part of what is tested
    "model.dropout=0.3",
    "dataset.augment.crop=pad",
    "train.ema=0.9",
    "train.clip_norm=1",
    "train.epochs=2",
    "train.batch_size=300",  # 300, 300, 300, 300 and 237 samples, cut into 119 and 118
    "log.every=2",
)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def torchrun(*words: str) -> subprocess.CompletedProcess[str]:
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}", "-m", "tinyexp"]
    return subprocess.run([sys.executable, *launcher, *words], capture_output=True, text=True, timeout=100, check=False)


def test_two_ranks_are_one_process(tmp_path: Path) -> None:
    alone = train(tmp_path / "alone", *WORDS, "train.accumulate=2")

    root = tmp_path / "together"
    cut = torchrun(*WORDS, f"run.root={root}", "run.name=pair", "train.max_time=0.001")
    (run,) = root.iterdir()  # one directory, not one a rank
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["status"], summary["exit_code"], summary["steps"]) == ("interrupted", 75, 1)
    assert cut.stderr.count("interrupted by train.max_time=0.001 s at step 1, saved") == 1

    resumed = torchrun(f"resume={run}", "train.max_time=null")
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout.count("best val top1") == 1  # rank 0 alone speaks
    assert resumed.stdout.splitlines()[-1].endswith(f"in {run}")
    assert "2 ranks of 1 threads" in resumed.stdout

    states = [load(each / "checkpoints" / "last.pt")["state"] for each in (alone, run)]
    for weights in ("model", "ema"):
        assert states[0][weights].keys() == states[1][weights].keys()
        assert all(torch.equal(tensor, states[1][weights][name]) for name, tensor in states[0][weights].items())
    for phase in ("train", "train_epoch"):
        logs = [
            [(row["step"], row["loss"], row["top1"], row["top5"]) for row in rows(each, phase)] for each in (alone, run)
        ]
        assert logs[0] == logs[1]
        assert logs[0]
    for mine, theirs in zip(rows(alone, "val"), rows(run, "val"), strict=True):
        assert (mine["epoch"], mine["top1"], mine["top5"]) == (theirs["epoch"], theirs["top1"], theirs["top5"])
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-6)  # ranks cut val into other batches


# Our own launcher, and batches that do not divide


FEW = (
    "hw=cpu",
    "train.epochs=2",
    "train.limit_batches=6",
    "train.precision=fp32",
    "log.every=1",
    *NO_BOARD,
)


@dataclass(frozen=True)
class Curves:
    """What a run's log says that any number of ranks must say."""

    losses: list[float]
    val: list[tuple[int, float, float]]
    val_losses: list[float]

    @staticmethod
    def of(directory: Path) -> Curves:
        val = rows(directory, "val")
        return Curves(
            [row["loss"] for row in rows(directory, "train")],
            [(row["epoch"], row["top1"], row["top5"]) for row in val],
            [row["loss"] for row in val],
        )

    def assert_like(self, other: Curves) -> None:
        assert self.losses == pytest.approx(other.losses, rel=1e-5)
        assert self.val == other.val
        assert self.val_losses == pytest.approx(other.val_losses, rel=1e-6)


def program(*words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """`python -m tinyexp WORDS...`; nothing of it is left when it comes back."""
    command = [sys.executable, "-m", "tinyexp", *words]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert ended.returncode == code, ended.stdout + ended.stderr
    assert not left_of(*words)
    return ended


def left_of(*wanted: str) -> list[str]:
    """Command lines of living processes that have these words."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode().split("\0")
        except OSError:
            continue
        found += [" ".join(words)] if set(wanted) <= set(words) else []
    return found


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return dict(load(directory / "checkpoints" / "last.pt")["state"]["model"])


def furthest(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """The largest difference of two networks' weights."""
    assert ours.keys() == theirs.keys()
    return max(float((tensor - theirs[name]).abs().max()) for name, tensor in ours.items())


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """One process's run of these words, made once."""
    made: dict[tuple[str, ...], Path] = {}

    def run(*words: str) -> Path:
        if words not in made:
            made[words] = train(tmp_path_factory.mktemp("alone") / "run", *FEW, *words)
        return made[words]

    return run


@pytest.mark.parametrize(
    ("procs", "optim", "size", "eval_size"),
    [(1, "adamw", 50, 37), (2, "adamw", 50, 37), (2, "sgd", 37, 256), (3, "sgd", 50, 37)],
)
def test_any_number_of_ranks_has_the_same_curves(
    tmp_path: Path, alone: Callable[..., Path], procs: int, optim: str, size: int, eval_size: int
) -> None:
    """AdamW makes 5e-4 of other roundings in 29 steps, so its one process cuts each step as the ranks do."""
    words = [f"train.batch_size={size}", f"train.eval_batch_size={eval_size}", "train.limit_batches=null"]
    words += ["train.epochs=1", f"optim={optim}"]
    more = ("hw.max_restarts=1", f"hw.procs={procs}")  # by the first, one rank is started too
    ended = program(*FEW, *words, *more, f"run.dir={tmp_path / 'run'}")
    assert f"{procs} rank{'s' if procs > 1 else ''} of " in ended.stdout
    assert "1,437 train and 360 val images" in ended.stdout
    reference = alone(*words, *([f"train.accumulate={procs}"] if optim == "adamw" else []))
    Curves.of(tmp_path / "run").assert_like(Curves.of(reference))


@pytest.mark.parametrize("more", [(), ("train.accumulate=2", "train.clip_norm=0.5", "train.batch_size=37")])
def test_staged_gradients_are_those_of_ddp(tmp_path: Path, more: tuple[str, ...]) -> None:
    for sync in ("ddp", "staged"):
        program(*FEW, *more, "hw.procs=2", f"hw.grad_sync={sync}", f"run.dir={tmp_path / sync}")
    assert furthest(weights(tmp_path / "ddp"), weights(tmp_path / "staged")) <= 1e-6
    Curves.of(tmp_path / "staged").assert_like(Curves.of(tmp_path / "ddp"))


def test_two_staged_ranks_are_one_process_that_accumulates(tmp_path: Path, alone: Callable[..., Path]) -> None:
    words = ("train.batch_size=64", "train.clip_norm=1", "model.dropout=0.3")
    program(*FEW, *words, "hw.procs=2", "hw.grad_sync=staged", f"run.dir={tmp_path / 'run'}")
    reference = alone(*words, "train.accumulate=2")
    assert furthest(weights(tmp_path / "run"), weights(reference)) <= 1e-6
    Curves.of(tmp_path / "run").assert_like(Curves.of(reference))


def test_eval_by_two_ranks_equals_the_log(alone: Callable[..., Path]) -> None:
    directory = alone("train.batch_size=64", "train.limit_batches=null", "train.eval_batch_size=50")
    best = json.loads((directory / "summary.json").read_text())["best"]
    line = f"val loss {best['loss']:.4f} top1 {best['top1']:.4f} top5 {best['top5']:.4f} (360 images)"
    one, two = (program("eval", str(directory), *words).stdout.splitlines() for words in ([], ["hw.procs=2"]))
    assert one[0] == two[0] == line


def test_each_job_of_a_sweep_may_have_ranks(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    program("-m", *FEW, "optim.lr=1e-3", "hw.procs=2", f"sweep.dir={sweep}")
    runs = sorted(path for path in sweep.iterdir() if path.is_dir())
    assert [run.name for run in runs] == ["1"]
    for run in runs:
        summary = json.loads((run / "summary.json").read_text())
        assert (summary["status"], summary["steps"]) == ("finished", 12)
        assert "2 ranks of" in (run / "run.log").read_text()
        assert not left_of(f"run.dir={run}")


def test_machines_rehearsed_on_this_one_are_one_run(tmp_path: Path) -> None:
    words = (*FEW, "train.batch_size=50")
    program(*words, "hw.procs=2", f"run.dir={tmp_path / 'together'}")
    ended = program(*words, "hw.nodes=2", f"run.root={tmp_path / 'runs'}")
    (run,) = (tmp_path / "runs").iterdir()
    assert ended.stdout.count("best val top1") == 1
    assert furthest(weights(tmp_path / "together"), weights(run)) == 0
    best = [json.loads((each / "summary.json").read_text())["best"] for each in (tmp_path / "together", run)]
    assert best[0] == best[1]


def test_a_run_of_many_short_epochs(tmp_path: Path) -> None:
    """Their ends are met at before the step that ranks had said, time after time."""
    words = ("train.limit_batches=1", "train.batch_size=2", "train.eval_batch_size=2", "ckpt.every_minutes=null")
    program(*FEW, *words, "train.epochs=90", "hw.procs=2", f"run.dir={tmp_path / 'run'}")


NET = """
from torch import nn

class Net(nn.Module):
    def __init__(self, *, num_classes):
        super().__init__()
        self.used, self.other = nn.Linear(784, num_classes), nn.Linear(3, 3)

    def forward(self, images):
        return self.used(images.flatten(1))
"""


def test_parameters_that_forward_does_not_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "partly.py").write_text(NET)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    words = (*FEW, "hw.procs=2", "model._target_=partly.Net")
    told = program(*words, f"run.dir={tmp_path / 'ddp'}", code=2).stderr
    assert told.count("the network has parameters that its forward does not use: give hw.grad_sync=staged") == 1
    assert "Traceback" not in told
    program(*words, "hw.grad_sync=staged", f"run.dir={tmp_path / 'staged'}")
