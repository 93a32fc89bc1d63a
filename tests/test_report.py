"""report: the table equals what the runs logged, nothing is dropped in silence, and nothing is evaluated."""

from __future__ import annotations

import csv
import json
import math
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from helpers import PLAIN, rows, train
from PIL import Image

from tinyexp.__main__ import main
from tinyexp.comparison import METRICS, Metric, columns, grouped, result, spelled
from tinyexp.errors import ConfigError
from tinyexp.figure import four_panels
from tinyexp.saved import SavedRun, find_runs
from tinyexp.sheet import Listing, markdown

RESNET = {"_target_": "tinyexp.models.zoo.torchvision_model", "name": "resnet18"}
PANELS, ALONE = (1430, 910), (1350, 720)  # px, of the picture of all and of that of one metric
SGD = {"_target_": "torch.optim.SGD", "lr": 0.05, "momentum": 0.9, "weight_decay": 0.0005}


def write_run(path: Path, values: Sequence[float] = (0.5, 0.7, 0.6), **changes: Any) -> Path:
    """A run's directory by hand: `values` are val/top1 by epoch; `changes` are summary's fields or config's keys."""
    config = json.loads(json.dumps(PLAIN.plain))
    summary = {"status": "finished", "exit_code": 0, "error": None, "epochs": len(values)}
    summary |= {"seconds": 10.0, "parameters": 1000}
    for key, value in changes.items():
        if key in summary:
            summary[key] = value
        elif "__" in key:
            group, name = key.split("__")
            config[group][name] = value
        else:
            config[key] = value
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    (path / "summary.json").write_text(json.dumps(summary))
    lines: list[dict[str, Any]] = []
    for epoch, value in enumerate(values, 1):
        scores = {"epoch": epoch, "step": 9 * epoch, "loss": 2 - value, "top1": value, "top5": (1 + value) / 2}
        lines.append({"phase": "train", "epoch": epoch, "step": 5, "loss": 9.0, "top1": 0.0, "images_per_second": 1.0})
        lines.append({"phase": "train_epoch", **scores, "top1": value / 2, "images_per_second": 1000.0 * epoch})
        lines.append({"phase": "val", **scores})
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def report(*words: object) -> int:
    return main(["report", *map(str, words)])


def read_csv(folder: Path) -> list[dict[str, str]]:
    with (folder / "report.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def picture_size(folder: Path) -> tuple[int, int]:
    with Image.open(folder / "curves.png") as picture:
        picture.load()
        return picture.size


def groups_of(folder: Path, metric: str = "val/top1", by: list[str] | None = None) -> Any:
    return grouped([result(run, Metric(metric)) for run in find_runs([str(folder)])], Metric(metric), by)


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """A run whose process is gone: its summary says running, and nobody holds its lock."""
    path = write_run(tmp_path / "runs" / "killed", status="running", exit_code=None)
    (path / ".lock").write_text(json.dumps({"host": "here", "pid": 1, "start": "then"}))
    return path


# what the runs say


def test_the_table_is_what_the_runs_logged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Real runs, two learning rates by two seeds; every figure computed again from their files by numpy."""
    small = ("train.epochs=2", "train.limit_batches=2", "train.eval_batch_size=64")
    runs = {
        (lr, seed): train(tmp_path / "runs" / f"{lr}-{seed}", *small, f"optim.lr={lr}", f"train.seed={seed}")
        for lr in ("0.01", "0.0001")
        for seed in range(2)
    }
    capsys.readouterr()
    assert report(tmp_path / "runs", "--out", tmp_path / "out") == 0
    told = capsys.readouterr().out
    table = {row["optim.lr"]: row for row in read_csv(tmp_path / "out")}
    assert list(table) == ["0.01", "0.0001"], "the best comes first"
    for lr, row in table.items():
        members = [runs[lr, seed] for seed in range(2)]
        top1 = [[line["top1"] for line in rows(run, "val")] for run in members]
        best, last = [max(one) for one in top1], [one[-1] for one in top1]
        speed = [np.mean([line["images_per_second"] for line in rows(run, "train_epoch")]) for run in members]
        summaries = [json.loads((run / "summary.json").read_text()) for run in members]
        assert row["n"] == "2"
        assert float(row["best_mean"]) == pytest.approx(np.mean(best), abs=1e-12)
        assert float(row["best_std"]) == pytest.approx(np.std(best, ddof=1), abs=1e-12)
        assert float(row["last_mean"]) == pytest.approx(np.mean(last), abs=1e-12)
        assert float(row["last_std"]) == pytest.approx(np.std(last, ddof=1), abs=1e-12)
        assert float(row["images_per_second"]) == pytest.approx(np.mean(speed))
        assert float(row["seconds"]) == pytest.approx(np.mean([summary["seconds"] for summary in summaries]))
        assert row["parameters"] == str(summaries[0]["parameters"]) == "61706"
        assert row["runs"].split() == [str(run) for run in members]
        assert best == [summary["best"]["top1"] for summary in summaries]
        assert re.search(
            rf"{lr} +2 +{np.mean(best):.4f} ± {np.std(best, ddof=1):.4f} +{np.mean(last):.4f} ± .* 61\.7k", told
        )


@pytest.mark.parametrize(
    ("metric", "best", "last"),
    [
        ("val/top1", 0.7, 0.6),
        ("val/top5", 0.85, 0.8),
        ("val/loss", 1.3, 1.4),
        ("train/top1", 0.35, 0.3),
        ("train/loss", 1.3, 1.4),
    ],
)
def test_best_is_the_largest_score_and_the_smallest_loss(tmp_path: Path, metric: str, best: float, last: float) -> None:
    """And train/... are the epochs' rows, not those each log.every steps."""
    assert metric in METRICS
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", (0.1, 0.2, 0.3), optim__lr=1)
    first, second = groups_of(tmp_path, metric)
    assert (first.best.mean, first.last.mean, first.best.std) == (pytest.approx(best), pytest.approx(last), None)
    assert second.keys == {"optim.lr": "1"}


def test_only_finished_runs_count_and_the_others_are_told(
    tmp_path: Path, killed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = killed.parent
    write_run(runs / "good", (0.5,))
    write_run(
        runs / "nan", (0.99,), status="failed", exit_code=4, error="loss is nan at step 3\nsecond line", train__seed=1
    )
    write_run(runs / "cut", (0.98,), status="interrupted", exit_code=75, error="by SIGTERM", optim__lr=7)
    write_run(runs / "pruned", (0.97,), status="pruned")
    write_run(runs / "empty", ())
    (write_run(runs / "torn", (0.96,)) / "summary.json").write_text('{"status": "fin')
    assert report(runs, "--out", tmp_path / "out") == 0
    told = capsys.readouterr().out
    (row,) = read_csv(tmp_path / "out")
    assert (row["n"], row["best_mean"], row["best_std"]) == ("1", "0.5", "")
    assert "optim.lr" not in row, "a run that does not count makes no column"
    assert told.startswith("1 of 7 runs, by val/top1")
    for line in (
        r"killed +3 +its process is gone",
        r"nan +failed +4 +1 +loss is nan at step 3 *$",
        r"cut +interrupted +75 +1 +by SIGTERM",
        r"pruned +pruned",
        r"empty +finished +0 +0 +its metrics.jsonl does not have",
        r"torn +unknown",
    ):
        assert re.search(line, told, re.M), line
    assert "second line" not in told
    markdown = (tmp_path / "out" / "report.md").read_text()
    assert all(name in markdown for name in ("killed", "nan", "cut", "pruned", "empty", "torn"))


def test_running_is_a_run_whose_lock_is_held(killed: Path) -> None:
    assert SavedRun(killed).status == "killed"
    holder = (
        "from pathlib import Path; from tinyexp.lock import DirectoryLock; "
        f"lock = DirectoryLock(Path({str(killed)!r})); lock.take(); print('held', flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", holder], stdin=-1, stdout=-1, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert SavedRun(killed).status == "running"
        assert SavedRun(killed).status == "running", "to ask does not take the lock away"
        process.communicate("\n")
    assert SavedRun(killed).status == "killed"
    (killed / ".lock").unlink()
    assert SavedRun(killed).status == "killed"


@pytest.mark.parametrize("left", [1, 40, -1])
def test_a_torn_last_line_is_left_out(tmp_path: Path, left: int) -> None:
    run = write_run(tmp_path / "run")
    path = run / "metrics.jsonl"
    whole = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(whole[:-1]) + whole[-1][:left])
    assert SavedRun(run).history == [json.loads(line) for line in whole[:-1]]
    assert groups_of(tmp_path)[0].last.mean == 0.7


BROKEN = [
    ("metrics.jsonl", '{"phase": "val"\n', "metrics.jsonl must be a JSON object in line 1"),
    ("metrics.jsonl", '{"phase": "train"}\n[1]\n', "metrics.jsonl must be a JSON object in line 2"),
    ("metrics.jsonl", '{"phase": "val", "epoch": 1, "top1": NaN}\n', "NaN is no number"),
    ("metrics.jsonl", '{"phase": "val", "epoch": 1, "top1": 1e999}\n', "top1 must be a finite number .*, got inf of 1"),
    ("metrics.jsonl", '{"phase": "val", "epoch": 1, "top1": "good"}\n', "must be a finite number .*, got 'good'"),
    ("metrics.jsonl", '{"phase": "val", "top1": 0.5}\n', "must be a finite number of an epoch, got 0.5 of None"),
    ("metrics.jsonl", "[" * 100_000 + "\n", "metrics.jsonl must be a JSON object in line 1"),
    ("config.yaml", "a: [1", "config.yaml is no YAML"),
    ("config.yaml", "", "config.yaml must hold a mapping of keys to values, got nothing"),
    ("config.yaml", "- 1", "config.yaml must hold a mapping of keys to values, got list"),
    (
        "config.yaml",
        "model: !!python/object/apply:os.system [ls]",
        "config.yaml is no YAML of plain values: could",
    ),
    ("config.yaml", "a: &a [1, 1]\nb: [*a, *a]", "config.yaml is no YAML of plain values: it has an alias"),
]


@pytest.mark.parametrize(("name", "content", "why"), BROKEN)
def test_a_broken_run_is_refused_and_the_others_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: str, why: str
) -> None:
    write_run(tmp_path / "good", (0.25,))
    bad = write_run(tmp_path / "bad", (0.99,))
    (bad / name).write_text(content)
    assert report(tmp_path) == 2
    out, err = capsys.readouterr()
    assert re.search(r"★ +1 +0\.2500 +0\.2500", out)
    assert "refused: 1" in out
    assert re.search(why, out)
    assert str(bad / name) in out
    assert err == "tinyexp: 1 of 2 runs were refused and do not count: the report says why\n"


def test_a_config_may_not_name_any_class(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "strangers.py").write_text("from torch import nn\nclass Net(nn.Module): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    write_run(tmp_path / "runs" / "good", (0.25,))
    write_run(tmp_path / "runs" / "foreign", (0.75,), model={"_target_": "strangers.Net"})
    write_run(tmp_path / "runs" / "evil", (0.99,), model={"_target_": "torchvision.datasets.utils.os.system"})
    assert report(tmp_path / "runs") == 2
    out = capsys.readouterr().out
    assert "1 of 3 runs" in out
    assert re.search(r"runs/foreign .*model\._target_=strangers\.Net .*trust=\[strangers\.Net\]", out)
    assert re.search(r"runs/evil .*model\._target_=torchvision\.datasets\.utils\.os\.system", out)
    assert report(tmp_path / "runs", "trust=[strangers.*]") == 2
    out = capsys.readouterr().out
    assert "2 of 3 runs" in out
    assert re.search(r"★ +Net +1 +0\.7500", out)


# groups and columns


def test_groups_are_the_keys_that_say_something(tmp_path: Path) -> None:
    """Where and how a run was watched, and its seed, make no group; 1 and 1.0 are one value."""
    write_run(tmp_path / "a", (0.5,), optim__lr=1)
    write_run(tmp_path / "b", (0.6,), optim__lr=1.0, train__seed=1, run={"dir": "x"}, log__every=7, hw__timeout=9)
    write_run(tmp_path / "c", (0.4,), optim__lr=2, ckpt__keep=3, dataset__workers=2, trust=["a"], resume="auto")
    first, second = groups_of(tmp_path)
    assert (first.keys, first.best.n, first.best.mean) == ({"optim.lr": "1"}, 2, pytest.approx(0.55))
    assert (second.keys, second.best.n) == ({"optim.lr": "2"}, 1)


def test_by_groups_by_those_keys_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i, (lr, size) in enumerate([(0.1, 32), (0.2, 64), (0.3, 32)]):
        write_run(tmp_path / f"{i}", (i % 2 / 2,), optim__lr=lr, train__batch_size=size, parameters=1000 + i)
    assert [group.keys for group in groups_of(tmp_path, by=["train.batch_size"])] == [
        {"train.batch_size": "64"},
        {"train.batch_size": "32"},
    ]
    write_run(tmp_path / "resnet", (0.4,), model=RESNET, train__batch_size=32)
    assert report(tmp_path, "--by", "train.batch_size,model.name", "--out", tmp_path / "out") == 0
    assert [
        [row[key] for key in ("train.batch_size", "model.name", "n", "parameters")]
        for row in read_csv(tmp_path / "out")
    ] == [
        ["64", "", "1", "1001"],
        ["32", "resnet18", "1", "1000"],
        ["32", "", "2", "1000 1002"],
    ]
    capsys.readouterr()
    assert report(tmp_path, "--by", "train.batchsize") == 2
    assert "--by train.batchsize: no run has that key; did you mean train.batch_size?" in capsys.readouterr().err


def test_a_choice_is_one_column(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What only some classes take is left out of the columns, told below them, and whole in report.csv."""
    for i, (model, optim) in enumerate([({}, {}), ({}, SGD), (RESNET, {}), (RESNET, SGD)]):
        changes = {"model": model, "optim": optim}
        write_run(tmp_path / f"{i}", (i / 10,), **{key: value for key, value in changes.items() if value})
    assert report(tmp_path, "--out", tmp_path / "out") == 0
    head, out = capsys.readouterr().out.split("\n", 1)
    assert head.startswith("4 of 4 runs")
    assert re.search(r"^ +model +optim +lr +decay +n +best +last +time +img/s +params", out, re.M)
    assert re.search(r"^★ +resnet18 +SGD +0\.05 +0\.0005 +1 +0\.3000 +0\.3000 +10 s +1,000 +1\.0k", out, re.M)
    assert re.search(r"^ +LeNet5 +AdamW +0\.003 +0\.01 +1 +0\.0000", out, re.M)
    assert re.search(r"  model tells (model\.weights, )?model\.dropout", out)
    assert "  optim tells optim.momentum, optim.eps, optim.betas" in out
    assert read_csv(tmp_path / "out")[0]["model._target_"] == RESNET["_target_"]


def test_few_columns() -> None:
    def told(*configs: dict[str, str]) -> tuple[list[str], dict[str, str]]:
        table, left_out = columns(configs)
        return list(table), left_out

    five = [{key: str(i) for key in ("a.a", "a.b", "a.c", "a.d", "a.e")} for i in range(2)]
    assert told(*five) == (["a.a", "a.b", "a.c", "a.d"], {"a.e": "a.a"})
    crossed = [dict(zip("abcdef", f"{i:06b}", strict=True)) for i in range(64)]
    assert told(*crossed) == (list("abcdef"), {}), "nothing is left out that no other column tells"
    same = [{"model._target_": "a.Net"}, {"model._target_": "b.Net"}]
    assert columns(same)[0] == {"model._target_": ["a.Net", "b.Net"]}
    assert columns([{}]) == ({}, {})


def test_spelling_tells_values_apart() -> None:
    values = [None, "null", True, "true", 1, "1", 0.1, "0.1", "", "nan", math.nan, "[1]", [1], ["1"], {}, "{}", 1e-8]
    assert len({spelled(value) for value in values}) == len(values)
    assert "" not in {spelled(value) for value in values}
    assert spelled(1) == spelled(1.0)
    assert spelled(0.1 + 0.2) != spelled(0.3)


# two runs


def test_two_runs_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = write_run(tmp_path / "b", (0.5, 0.25))
    b = write_run(tmp_path / "a", (0.5, 0.75), model=RESNET, train__seed=3, status="failed", exit_code=1, error="x")
    hardware = {"cores": 2, "cuda": []}
    for run, commit, torch, patch in ((a, "c0ffee", "2.15.0", "-x\n+y\n"), (b, "decade", "2.16.0", "-x\n+z\n")):
        environment = {"host": "vm", "versions": {"torch": torch, "numpy": "2"}, "hardware": hardware}
        git = {"commit": commit, "dirty": True}
        (run / "env.json").write_text(json.dumps(environment | {"git": git}))
        (run / "code.patch").write_text(patch)
    assert report(a, b, "--out", tmp_path / "out") == 0
    out = capsys.readouterr().out
    page = (tmp_path / "out" / "report.md").read_text()
    for key, left, right in (
        ("directory", str(a), str(b)),
        ("status", "finished", "failed"),
        ("best", "0.5000 (epoch 1)", "0.7500 (epoch 2)"),
        ("last", "0.2500", "0.7500"),
        ("model._target_", "tinyexp.models.lenet.LeNet5", RESNET["_target_"]),
        ("model.dropout", "0", ""),
        ("model.name", "", "resnet18"),
        ("train.seed", "0", "3"),
        ("versions.torch", "2.15.0", "2.16.0"),
        ("commit", "c0ffee with changes", "decade with changes"),
    ):
        assert re.search(rf"^{re.escape(key)} +{re.escape(left)} *{re.escape(right)} *$", out, re.M), key
        assert f"| {key} | {left} | {right} |" in page
    assert "numpy" not in out
    assert "host" not in out
    assert "-+y\n  ++z" in out.replace("  -+y", "-+y")
    assert "```diff\n--- A" in page
    assert picture_size(tmp_path / "out") == PANELS
    assert not (tmp_path / "out" / "report.csv").exists()


def test_of_equal_epochs_the_runs_own_best_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, best in (("a", {"epoch": 3, "top1": 0.7}), ("b", None)):
        run = write_run(tmp_path / name, (0.5, 0.7, 0.7))
        summary = json.loads((run / "summary.json").read_text()) | {"best": best}
        (run / "summary.json").write_text(json.dumps(summary))
    assert report(tmp_path / "a", tmp_path / "b") == 0
    assert re.search(r"^best +0\.7000 \(epoch 3\) +0\.7000 \(epoch 2\)", capsys.readouterr().out, re.M)


def test_two_equal_runs_and_the_newest_of_their_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A resume writes its own env and, where its code was changed, its own patch: these tell how the run ended."""
    for name in ("a", "b"):
        run = write_run(tmp_path / name)
        (run / "env.json").write_text(json.dumps({"host": name, "git": {"commit": name, "dirty": True}}))
        (run / "code.patch").write_text(name)
        (run / "env-20260101-000000.json").write_text(json.dumps({"host": name}))
        (run / "env-20260102-000000.json").write_text(json.dumps({"host": "vm", "git": {"commit": "c"}}))
    assert SavedRun(tmp_path / "a").patch == ""
    assert report(tmp_path / "a", tmp_path / "b") == 0
    assert capsys.readouterr().out.count("  same\n") == 4


def test_a_long_difference_is_cut_on_the_console_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        run = write_run(tmp_path / name)
        (run / "env.json").write_text(json.dumps({"git": {"commit": "c", "dirty": True}}))
        (run / "code.patch").write_text("".join(f"+line {i} of {name} ```\n" for i in range(100)))
    assert report(tmp_path / "a", tmp_path / "b", "--out", tmp_path / "out") == 0
    out = capsys.readouterr().out
    assert "line 50 of a" in out
    assert "line 99" not in out
    assert re.search(r"\.\.\. 143 lines more: --out DIR", out)
    page = (tmp_path / "out" / "report.md").read_text()
    assert "line 99 of b" in page
    assert "````diff\n" in page, "a fence that its content does not end"


# epochs, and sweeps


def write_sweep(folder: Path, *jobs: tuple[str, dict[str, str], str]) -> None:
    """A sweep.json by hand: (directory, label, status) of each job."""
    told = [
        {"directory": name, "label": label, "status": status, "exit_code": 0 if status == "finished" else 2}
        | {"last_words": "" if status == "finished" else "it was not to be"}
        for name, label, status in jobs
    ]
    (folder / "sweep.json").write_text(json.dumps({"argv": [], "jobs": told}))


def test_a_column_of_each_epoch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of all runs of a row: where one of them did not come that far the cell is empty, in the order that was given."""
    write_run(tmp_path / "a", (0.1, 0.2, 0.3))
    write_run(tmp_path / "b", (0.3, 0.4), train__seed=1)
    write_run(tmp_path / "c", (0.1, 0.15, 0.2), optim__lr=1)
    assert report(tmp_path, "--epochs", "3,1,50", "--out", tmp_path / "out") == 0
    out = capsys.readouterr().out
    assert re.search(r"lr +n +top1@3 +top1@1 +top1@50 +best", out)
    assert re.search(r"★ +0\.003 +2 +0\.2000 ± 0\.1414 +0\.3500 ± 0\.0707", out)
    assert re.search(r" +1 +1 +0\.2000 +0\.1000 +0\.2000 +0\.2000", out)
    first, second = read_csv(tmp_path / "out")
    assert [first[f"top1@{epoch}_{what}"] for epoch in (3, 50) for what in ("mean", "std")] == [""] * 4
    assert float(first["top1@1_mean"]) == pytest.approx(0.2)
    assert float(first["top1@1_std"]) == pytest.approx(np.std([0.1, 0.3], ddof=1))
    assert [second[f"top1@{epoch}_mean"] for epoch in (1, 3, 50)] == ["0.1", "0.2", ""]
    assert report(tmp_path, "--epochs", "2", "--metric", "train/loss") == 0
    assert "train/loss@2" in capsys.readouterr().out


def test_a_sweep_is_told_by_what_it_varied(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A group's choice is one column; what has no result has a row, a job without a directory its reason."""
    frozen = {**PLAIN.plain["transfer"], "freeze": "backbone"}
    for seed in range(2):
        write_run(tmp_path / f"{seed}", (0.5 + seed / 10,), train__seed=seed)
        write_run(tmp_path / f"{2 + seed}", (0.8,), train__seed=seed, transfer=frozen)
    write_run(tmp_path / "4", (0.9,), status="failed", exit_code=4, error="loss is nan", optim__lr=9)
    names = ("finetune", "finetune", "frozen", "frozen", "wild", "early")
    label = [{"transfer": name, "train.seed": str(i % 2)} for i, name in enumerate(names)]
    status = ["finished"] * 4 + ["failed"] * 2
    write_sweep(tmp_path, *((str(i), label[i], status[i]) for i in range(6)))
    assert report(tmp_path, "--out", tmp_path / "out") == 0
    out = capsys.readouterr().out
    assert out.startswith("4 of 6 runs, by val/top1")
    assert re.search(r"transfer +n +best", out)
    table = [line.strip("★ ").split() for line in out.splitlines()[3:7]]
    assert [(row[0], row[1]) for row in table] == [("frozen", "2"), ("finetune", "2"), ("wild", "0"), ("early", "0")]
    assert re.search(r"/4 +failed +4 +1 +loss is nan", out)
    assert re.search(r"/5 +failed +2 +it was not to be", out)
    made = read_csv(tmp_path / "out")
    assert [(row["transfer"], row["n"], row["best_mean"]) for row in made] == [
        ("frozen", "2", "0.8"),
        ("finetune", "2", "0.55"),
        ("wild", "0", ""),
        ("early", "0", ""),
    ]
    assert [row["runs"] for row in made[2:]] == [str(tmp_path / "4"), str(tmp_path / "5")]
    assert report(tmp_path, "--by", "transfer.freeze") == 0, "another division of the same runs"
    assert re.search(r"★ +backbone +2 +0\.8000", capsys.readouterr().out)


@pytest.mark.parametrize("content", ["", "[]", '{"jobs": 3}', '{"jobs": [{"directory": "a"}]}', "[" * 100_000, "\0"])
def test_a_sweep_json_that_is_none_is_no_sweep(tmp_path: Path, content: str) -> None:
    write_run(tmp_path / "a")
    (tmp_path / "sweep.json").write_text(content)
    assert report(tmp_path, "--out", tmp_path / "out") == 0
    assert [row["n"] for row in read_csv(tmp_path / "out")] == ["1"]


def test_runs_from_elsewhere_make_it_no_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "mine"):
        write_run(tmp_path / name, optim__lr=len(name))
    write_sweep(tmp_path, ("a", {"train.epochs": "1"}, "finished"))
    assert report(tmp_path) == 0
    assert re.search(r"^ +lr +n", capsys.readouterr().out, re.M)


def test_a_job_that_came_to_no_directory_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "a", optim__lr=0.5)
    jobs = [("a", {"optim.lr": "0.5"}, "finished"), ("b", {"optim.lr": "1e-5"}, "not started")]
    write_sweep(tmp_path, *jobs)
    assert report(tmp_path) == 0
    out = capsys.readouterr().out
    assert out.startswith("1 of 2 runs")
    assert re.search(r"not counted: 1 *\n.*\n.*\n\S+/b +not started +2 +it was not to be", out)


def test_the_picture_has_loss_and_top1_a_colour_a_row(tmp_path: Path) -> None:
    """Up to seven rows; without a line of train by step too, which a short epoch has none of."""
    for i in range(8):
        write_run(tmp_path / "runs" / f"{i}", (0.1, 0.5 + i / 50), optim__lr=i + 1)
    (tmp_path / "runs" / "0" / "metrics.jsonl").write_text(
        '{"phase": "val", "epoch": 1, "step": 9, "top1": 0.5, "loss": 1}\n'
    )
    few = [tmp_path / "runs" / f"{i}" for i in range(7)]
    assert report(*few, "--out", tmp_path / "few") == 0
    assert report(tmp_path / "runs", "--out", tmp_path / "many") == 0
    assert (picture_size(tmp_path / "few"), picture_size(tmp_path / "many")) == (PANELS, ALONE)
    with Image.open(tmp_path / "few" / "curves.png") as picture:
        counts = {colour: count for count, colour in picture.convert("RGB").getcolors(2**20)}  # type: ignore[misc]
    assert picture.format == "PNG"
    for colour in ((0, 0x72, 0xB2), (0xD5, 0x5E, 0), (0, 0x9E, 0x73), (0xCC, 0x79, 0xA7), (0x56, 0xB4, 0xE9)):
        assert counts[colour] > 300, colour


def test_the_four_panels_are_what_the_runs_logged(tmp_path: Path) -> None:
    """Over the epochs whole phases, over the steps val and train's lines of log.every steps; means over the seeds."""
    for name, lr, seed, values in (("a", 1, 0, (0.1, 0.3)), ("b", 1, 1, (0.3, 0.9)), ("c", 2, 0, (0.2, 0.4, 0.5))):
        write_run(tmp_path / name, values, optim__lr=lr, train__seed=seed)
    figure = four_panels("key", [(group.keys["optim.lr"], group.results) for group in groups_of(tmp_path)])
    drawn = [[(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines] for axes in figure.axes]
    top1_by_epoch, top1_by_step, loss_by_epoch, _ = [[*map(rounded_pair, panel)] for panel in drawn]
    assert top1_by_epoch == [
        ([1, 2, 3], [0.1, 0.2, 0.25]),  # train of lr=2, then its val; the best on top
        ([1, 2, 3], [0.2, 0.4, 0.5]),
        ([1, 2], [0.1, 0.3]),
        ([1, 2], [0.2, 0.6]),
    ]
    assert ([9, 18], [0.2, 0.6]) in top1_by_step
    assert ([5], [0.0]) in top1_by_step, "train's lines"
    assert ([1, 2], [1.8, 1.4]) in loss_by_epoch
    assert len(top1_by_step) == 4


def rounded_pair(pair: tuple[list[float], list[float]]) -> tuple[list[int], list[float]]:
    return [int(place) for place in pair[0]], [round(value, 9) for value in pair[1]]


# files and the console


def test_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """report.md has the console's rows and the command; the picture is one, of more than a frame."""
    for i in range(14):
        write_run(tmp_path / "runs" / f"{i}", (0.1, 0.2 + i / 100, 0.3 + i / 100), optim__lr=(i + 1) / 10)
    write_run(tmp_path / "runs" / "seed", (0.1, 0.2, 0.9), train__seed=5, optim__lr=1.0)
    out = tmp_path / "new" / "out"
    assert report(tmp_path / "runs", "--metric", "val/top1", "--out", out) == 0
    page = (out / "report.md").read_text()
    assert page.startswith(f"# Report\n\n    tinyexp report {tmp_path}/runs --metric=val/top1 --out={out}\n\n![")
    assert "](curves.png)\n\n## 15 of 15 runs, by val/top1\n\n|" in page
    assert "| ★ | 1 | 2 | 0.6450 ± 0.3606 |" in page
    assert page.count("\n|  | ") == 13 + 1, "13 more groups, and the head"
    with Image.open(out / "curves.png") as picture:
        pixels = {colour: count for count, colour in picture.convert("RGB").getcolors(2**20)}  # type: ignore[misc]
        assert picture.size == ALONE
    assert min(pixels[0, 0x72, 0xB2], pixels[0xD5, 0xD5, 0xD5]) > 500, "the best in colour, the rest pale"
    assert sorted(path.name for path in out.iterdir()) == ["curves.png", "index.html", "report.csv", "report.md"]
    assert report(tmp_path / "runs", "--out", out) == 0, "written again"
    capsys.readouterr()
    (tmp_path / "file").touch()
    assert report(tmp_path / "runs", "--out", tmp_path / "file") == 2
    told, err = capsys.readouterr()
    assert re.search(r"--out .*file cannot be a folder: File exists", err)
    assert "0.6450 ± 0.3606" in told


def test_nothing_finished(killed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report(killed, "--out", tmp_path / "out") == 0
    assert "0 of 1 runs" in capsys.readouterr().out
    assert read_csv(tmp_path / "out") == []
    assert not (tmp_path / "out" / "curves.png").exists()


def test_off_a_terminal_nothing_is_cut(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    error = "no " * 60 + "more"
    write_run(tmp_path / "good")
    write_run(tmp_path / "bad", status="failed", exit_code=1, error=error)
    assert report(tmp_path) == 0
    out = capsys.readouterr().out
    assert f"{tmp_path / 'bad'}  failed          1       3  {error}" in out
    assert "\x1b" not in out


@pytest.mark.parametrize(("width", "left_out"), [(100, ""), (80, "img/s, params"), (30, "last, time, img/s, params")])
def test_a_terminal_has_whole_cells(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int, left_out: str
) -> None:
    """Four keys fit 100 columns; in fewer some figures stay away, which is told, and no cell is cut."""
    for i in range(4):
        model = RESNET if i % 2 else PLAIN.plain["model"]
        write_run(tmp_path / f"{i}", (0.8 if i % 2 else 0.7,), model=model, optim=SGD, train__seed=i)
        write_run(tmp_path / f"adam {i}", model=RESNET, train__seed=i, parameters=11_181_642, seconds=1e4)
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert report(tmp_path) == 0
    title, *lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert title.startswith("8 of 8 runs")
    assert re.search(r"^★ +resnet18 +SGD +0\.05 +0\.0005 +2 +0\.8000 ± 0\.0000", "\n".join(lines), re.M)
    assert max(map(len, lines)) <= max(width, 60)
    told = [line for line in lines if line.endswith("the terminal is too narrow")]
    assert told == ([f"for {left_out} the terminal is too narrow"] if left_out else [])
    assert all((name in lines[1]) != (name in left_out) for name in ("last", "time", "img/s", "params"))


def test_what_others_wrote_is_only_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No sign that steers a terminal, no markup, no row of Markdown's more."""
    write_run(tmp_path / "a", optim__lr="\x1b[2J[bold]")
    write_run(tmp_path / "b", status="failed", error="\x1b]0;title\x07 | [red]x[/red]\rgone")
    assert report(tmp_path, "--out", tmp_path / "out") == 0
    out, page = capsys.readouterr().out, (tmp_path / "out" / "report.md").read_text()
    assert "\x1b" not in out + page
    assert r"\x1b]0;title\x07 | [red]x[/red]" in out
    assert r"\x1b]0;title\x07 \| [red]x[/red]" in page
    assert markdown(Listing(title="t", lines=["a\x1bb\tc"])) == "## t\n\n```\na\\x1bb\tc\n```\n"


def test_labels_are_no_formulas(tmp_path: Path) -> None:
    """matplotlib would typeset $...$; and a long one leaves the curves their room."""
    write_run(tmp_path / "a", optim__lr="$\\frac{$")
    write_run(tmp_path / "b", optim__lr="x" * 200)
    for words, size in (([], PANELS), (["--metric", "val/loss"], ALONE)):
        assert report(tmp_path, *words, "--out", tmp_path / "out") == 0
        assert picture_size(tmp_path / "out") == size


# where runs are, and what costs nothing


def test_runs_are_found_at_any_depth_once(tmp_path: Path) -> None:
    wanted = [write_run(tmp_path / name) for name in ("a", "b/c/d", "b/e")]
    write_run(tmp_path / "a" / "inner")
    write_run(tmp_path / ".hidden" / "x")
    write_run(tmp_path / "b" / "tb" / "x")
    (tmp_path / "only" / "config").mkdir(parents=True)
    (tmp_path / "only" / "config.yaml").touch()
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    assert [run.path for run in find_runs([str(tmp_path)])] == wanted
    assert [run.path for run in find_runs([str(wanted[2]), str(tmp_path), str(wanted[0])])] == wanted
    with pytest.raises(ConfigError, match="nowhere is not there: give a run's directory"):
        find_runs([str(tmp_path), str(tmp_path / "nowhere")])
    with pytest.raises(ConfigError, match=r"only has no runs: a run is a directory with config\.yaml and"):
        find_runs([str(tmp_path), str(tmp_path / "only")])


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--metric", "val/acc"], r"--metric val/acc is none of val/top1, val/top5, val/loss, train/top1"),
        (["--epochs", "1,x"], r"--epochs must be different epochs of at least 1, as 1,5,10, got 1,x"),
        (["--epochs", "0"], r"--epochs must be .* got 0"),
        (["--epochs", "2,2"], r"--epochs must be .* got 2,2"),
        (["optim.lr=1"], r"report takes no overrides but trust=\[...\], got optim.lr=1"),
    ],
)
def test_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], why: str) -> None:
    write_run(tmp_path / "a")
    assert report(tmp_path, *words) == 2
    assert re.search(why, capsys.readouterr().err)


def test_a_table_needs_no_torch(tmp_path: Path) -> None:
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", model=RESNET, optim=SGD)
    program = (
        "import sys; from tinyexp.__main__ import main; code = main(sys.argv[1:]); "
        "print(code, [name for name in ('torch', 'torchvision', 'numpy', 'matplotlib') if name in sys.modules])"
    )
    command = [sys.executable, "-c", program, "report", str(tmp_path)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert answer.stdout.splitlines()[-1] == "0 []"
