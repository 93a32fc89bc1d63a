"""A run that was cut and resumed ends as one that was not, to the bit, wherever it was cut."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from faults import FOREVER, LAST, SMALL, STEPS, Fault, Installable, digest, kill9, metrics, run, skip, state, terminate
from PIL import Image

from tinyexp.__main__ import main

ADAMW = ("optim=adamw", "optim.lr=0.003", "scheduler=onecycle")


def cut_after_save(nth: int) -> Fault:
    """SIGKILL when the run has saved so many times: after each step, and twice between two epochs."""
    return Fault("os.replace", kill9, LAST, nth, after=True)


@pytest.mark.parametrize(
    ("save", "step"),
    [
        pytest.param(1, 1, id="first step"),
        pytest.param(4, 4, id="mid-epoch"),
        pytest.param(STEPS - 1, STEPS - 1, id="one before the edge"),
        pytest.param(STEPS, STEPS, id="the edge, before val"),
        pytest.param(STEPS + 1, STEPS, id="the edge, after val"),
        pytest.param(STEPS + 3, STEPS + 1, id="one after the edge"),
        pytest.param(2 * STEPS + 2, 2 * STEPS, id="last step, before val"),
        pytest.param(2 * STEPS + 3, 2 * STEPS, id="all done"),
    ],
)
def test_cut_and_resumed_is_uncut(tmp_path: Path, uncut: Path, save: int, step: int) -> None:
    assert run(tmp_path, *SMALL, faults=[cut_after_save(save)]).code == -9
    assert state(tmp_path / "run")["step"] == step
    ended = run(tmp_path, "resume=run")
    assert ended.code == 0
    assert f"resumed at step {step} " in ended.output
    assert digest(tmp_path / "run") == digest(uncut)
    assert digest(tmp_path / "run", "best") == digest(uncut, "best")
    assert metrics(tmp_path / "run") == metrics(uncut)


@pytest.mark.parametrize(
    "fault",
    [Fault("tinyexp.engine.EvalSums.add", kill9, nth=3), Fault("tinyexp.engine.EvalSums.add", terminate, nth=2)],
    ids=["SIGKILL", "SIGTERM"],
)
def test_cut_in_val(tmp_path: Path, uncut: Path, fault: Fault) -> None:
    assert run(tmp_path, *SMALL, faults=[fault]).code in (-9, 75)
    assert run(tmp_path, "resume=run").code == 0
    assert digest(tmp_path / "run") == digest(uncut)
    assert metrics(tmp_path / "run") == metrics(uncut)


def test_two_resumes_in_an_epoch(tmp_path: Path, uncut: Path) -> None:
    assert run(tmp_path, *SMALL, faults=[cut_after_save(2)]).code == -9
    assert run(tmp_path, "resume=run", faults=[cut_after_save(3)]).code == -9
    assert state(tmp_path / "run")["step"] == 5
    assert run(tmp_path, "resume=run").code == 0
    assert digest(tmp_path / "run") == digest(uncut)
    assert metrics(tmp_path / "run") == metrics(uncut)


@pytest.mark.parametrize(("before", "after"), [(0, 1), (2, 0)])
def test_other_number_of_loader_processes(tmp_path: Path, uncut: Path, before: int, after: int) -> None:
    words = (*SMALL, f"dataset.workers={before}")
    assert run(tmp_path, *words, faults=[cut_after_save(4)]).code == -9
    assert run(tmp_path, "resume=run", f"dataset.workers={after}").code == 0
    assert digest(tmp_path / "run") == digest(uncut)


def test_adamw_with_onecycle(tmp_path: Path) -> None:
    assert run(tmp_path, *SMALL, *ADAMW, "run.dir=whole").code == 0
    assert run(tmp_path, *SMALL, *ADAMW, faults=[cut_after_save(5)]).code == -9
    assert run(tmp_path, "resume=run").code == 0
    assert digest(tmp_path / "run") == digest(tmp_path / "whole")
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")


def test_another_seed_is_another_result(tmp_path: Path, uncut: Path) -> None:
    assert run(tmp_path, *SMALL, "train.seed=1").code == 0
    assert digest(tmp_path / "run") != digest(uncut)


def test_control_without_seeding_each_step(tmp_path: Path) -> None:
    """If dropout drew from a generator's history, this file's tests would see it."""
    unseeded: list[Installable] = [Fault("tinyexp.engine.seed_all", skip, nth=2, times=FOREVER)]
    assert run(tmp_path, *SMALL, "run.dir=whole", faults=unseeded).code == 0
    assert run(tmp_path, *SMALL, faults=[*unseeded, cut_after_save(4)]).code == -9
    assert run(tmp_path, "resume=run", faults=unseeded).code == 0
    assert digest(tmp_path / "run") != digest(tmp_path / "whole")


def test_longer_training_has_the_schedule_of_the_new_total(tmp_path: Path) -> None:
    assert run(tmp_path, *SMALL, "log.every=1").code == 0
    assert run(tmp_path, *SMALL, "log.every=1", "run.dir=whole", "train.epochs=3").code == 0
    assert run(tmp_path, "resume=run", "train.epochs=3").code == 0
    longer, whole = ([row["lr"] for row in metrics(tmp_path / name) if "lr" in row] for name in ("run", "whole"))
    third = slice(2 * STEPS + 2, None)  # each epoch has its steps' rows, and one of its own
    assert longer[third] == whole[third]
    assert len(longer[third]) == STEPS + 1
    assert longer[:STEPS] != whole[:STEPS]


def test_finished_run_is_resumed_in_peace(tmp_path: Path, uncut: Path) -> None:
    shutil.copytree(uncut, tmp_path / "run")
    assert run(tmp_path, "resume=run").code == 0
    assert digest(tmp_path / "run") == digest(uncut)
    assert metrics(tmp_path / "run") == metrics(uncut)


def test_auto_begins_and_goes_on(tmp_path: Path, uncut: Path) -> None:
    assert run(tmp_path, *SMALL, "resume=auto", faults=[cut_after_save(4)]).code == -9
    assert run(tmp_path, *SMALL, "resume=auto").code == 0
    assert digest(tmp_path / "run") == digest(uncut)


def test_auto_needs_a_directory(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["resume=auto"]) == 2
    assert "run.dir=DIR" in capsys.readouterr().err


@pytest.mark.parametrize("words", [("resume={run}",), (*SMALL, "resume=auto", "run.dir={run}")], ids=["RUN", "auto"])
def test_other_keys_stay(uncut: Path, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*(word.format(run=uncut) for word in words), "optim.lr=0.5"]) == 2
    error = capsys.readouterr().err
    assert "optim.lr" in error
    assert "init_from" in error


def test_data_of_other_classes_is_refused(tmp_path: Path) -> None:
    for root, names in (("cats", ("cat", "dog")), ("birds", ("bird", "dog"))):
        for name in names:
            for phase in ("train", "val"):
                (tmp_path / root / phase / name).mkdir(parents=True)
                Image.fromarray(np.zeros((28, 28, 3), np.uint8)).save(tmp_path / root / phase / name / "1.png")
    words = ("dataset=imagefolder", "dataset.root=cats", "dataset.image_size=28", "train.epochs=1", "run.dir=run")
    assert run(tmp_path, *words).code == 0
    before = digest(tmp_path / "run")
    ended = run(tmp_path, "resume=run", "dataset.root=birds", "train.epochs=2")
    assert ended.code == 2
    assert "classes was ['cat', 'dog'], is ['bird', 'dog']" in ended.output
    assert digest(tmp_path / "run") == before
    assert run(tmp_path, "eval", "run", "dataset.root=birds").code == 2
