"""What a person sees: on a terminal, in a file, in run.log; and where the time went."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import LEAN, rows, train
from rich.console import Console

from tinyexp import clock, console
from tinyexp.__main__ import main
from tinyexp.clock import Clock, Span
from tinyexp.console import Display, Progress, closing_box, config_tree, duration, epoch_header, epoch_row
from tinyexp.log import FILE_ONLY, TerminalHandler, drawn, plain_text, start_terminal, stop_logging

ROW = {"loss": 0.51234, "top1": 0.98765, "lr": 0.003, "images_per_second": 12345.6, "data_wait": 0.04}
PROGRESS = Progress(phase="train", epoch=2, epochs=20, done=7, total=23, left=185.0, row=ROW)
FEW = ("train.epochs=2", "train.limit_batches=2")


class Time:
    """A clock that moves when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    fake = Time()
    monkeypatch.setattr(console.time, "monotonic", fake)
    monkeypatch.setattr(clock.time, "perf_counter", fake)
    return fake


# a whole run


def test_without_a_terminal_all_is_plain(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No colours, nothing wrapped though the window is narrow, and the line that scripts rely on comes last."""
    monkeypatch.setenv("COLUMNS", "40")
    run = train(tmp_path / "run", *FEW, "log.level=info")
    out, err = capsys.readouterr()
    assert err == ""
    assert "\x1b" not in out
    lines = out.splitlines()
    best = max(rows(run, "val"), key=lambda row: row["top1"])
    assert lines[-1] == f"best val top1 {best['top1']:.4f} (epoch {best['epoch']}) in {run}"
    assert re.fullmatch(r"best val top1 \d\.\d{4} \(epoch \d+\) in .+", lines[-1])
    table = [line for line in lines if re.match(r" +(epoch|\d/2) │", line)]
    assert len(table) == 3
    assert any(line.startswith("1,437 train and 360 val images of 1x28x28 in 10 classes, 2 steps") for line in lines)


def test_a_level_silences_all_below_it_but_the_last_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(tmp_path / "run", *FEW, "log.level=warning")
    out, err = capsys.readouterr()
    assert re.fullmatch(rf"best val top1 \d\.\d{{4}} \(epoch \d\) in {run}\n", out)
    assert err == ""
    assert (run / "run.log").read_text().count("\n") == 1


def test_run_log_has_time_level_module_and_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(tmp_path / "run", *FEW, "log.level=info")
    text = (run / "run.log").read_text()
    assert "\x1b" not in text
    head = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (?:INFO   |RESULT ) (\w+):\d+ "
    modules = [match.group(1) for line in text.splitlines() if (match := re.match(head, line))]
    assert set(modules) == {"run", "rundir"}
    messages = re.sub(rf"^{head}\n?", "", text, flags=re.MULTILINE)
    assert messages == capsys.readouterr().out  # all that the console said
    assert logging.getLogger("tinyexp").handlers == []


def test_an_error_is_told_once_on_each_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("model=torchvision", "model.name=alexnet")  # which fails at its first image alone
    assert main([*LEAN, f"run.dir={tmp_path}/run", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("model AlexNet does not take images of 1x28x28") == 1
    assert re.search(r" ERROR   run:\d+ model AlexNet does not take", (tmp_path / "run/run.log").read_text())


def test_what_is_wrong_with_the_data_leaves_no_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*LEAN, f"run.dir={tmp_path}/run", "dataset.mean=[0.1,0.2]", "dataset.std=[1,1]"]) == 2
    assert capsys.readouterr().err.count("dataset.mean and dataset.std need 1 numbers") == 1
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("finished") / "run", *FEW, "train.ema=0.5")


def test_eval_prints_the_scores(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (finished, finished / "checkpoints" / "best.pt"):
        assert main(["eval", str(path), "hw=cpu", "train.limit_batches=null"]) == 0
        out, err = capsys.readouterr()
        first = out.splitlines()[0]
        assert re.fullmatch(r"val loss \d\.\d{4} top1 [01]\.\d{4} top5 [01]\.\d{4} \(360 images\)", first)
        assert err == ""


def test_eval_says_what_the_run_logged(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(finished), "hw.threads=1"]) == 0
    best = max(rows(finished, "val"), key=lambda row: (row["top1"], -row["loss"]))
    scores = f"val loss {best['loss']:.4f} top1 {best['top1']:.4f} top5 {best['top5']:.4f}"
    assert capsys.readouterr().out.splitlines()[0] == f"{scores} (360 images)"


def test_show_lists_what_a_checkpoint_holds(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(finished)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{finished}/checkpoints/last.pt\n")
    for line in (
        r"├── scores +epoch=2 step=4 best=\{epoch=\d",
        r"├── data +classes=10: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 image_shape=\[1, 28, 28\]",
        r"├── group 0 +lr=",
        r"├── model +tinyexp\.models\.lenet\.LeNet5  dropout=0\.0",
        r"conv1\.weight +6x1x5x5 +float32 +150",
        r"10 tensors +61,706",
        r"with averaged weights of the same names \(ema\)",
    ):
        assert re.search(line, out), line
    assert main(["show", str(finished), "train.epochs=3"]) == 2
    assert "show takes no overrides but trust=[...], got train.epochs=3" in capsys.readouterr().err


# the live line

FIGURES = "loss 0.5123  top1 0.9877  lr 3.00e-03  12,346 images/s  data 4%"


@pytest.fixture(params=["info"])
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The logger shows its messages on a narrow stdout from this level on."""
    monkeypatch.setenv("COLUMNS", "40")
    start_terminal(request.param)
    yield request.param
    stop_logging()


def make_live() -> tuple[Display, io.StringIO]:
    file = io.StringIO()
    display = Display(Console(file=file, force_terminal=True, width=150, color_system=None))
    return display, file


def test_the_live_line_is_redrawn_four_times_a_second_and_leaves_nothing(time: Time, level: str) -> None:
    display, file = make_live()
    assert not display.due()
    time.now += 0.26
    assert display.due()
    display.show(PROGRESS)
    assert not display.due()
    assert re.search(rf"2/20 train ━+ 7/23  ETA 3:05  {FIGURES}", file.getvalue())
    drawn_so_far = len(file.getvalue())
    display.close()
    assert re.search(r"\x1b\[2K$", file.getvalue()[drawn_so_far:])  # the line is erased
    assert "\x1b[?25h" in file.getvalue()[drawn_so_far:]  # and the cursor is back


def test_without_a_terminal_a_plain_line_comes_each_half_minute(
    time: Time, level: str, capsys: pytest.CaptureFixture[str]
) -> None:
    display = Display(Console(force_terminal=False))
    time.now += 29
    assert not display.due()
    time.now += 2
    assert display.due()
    display.show(PROGRESS)
    assert not display.due()
    display.show(replace(PROGRESS, row={}, left=None, phase="val"))
    display.close()
    assert capsys.readouterr().out == f"epoch 2/20 train 7/23  {FIGURES}  ETA 3:05\nepoch 2/20 val 7/23\n"


@pytest.mark.parametrize("level", ["warning"], indirect=True)
def test_a_level_above_info_has_no_line_of_progress(time: Time, level: str, capsys: pytest.CaptureFixture[str]) -> None:
    display, file = make_live()
    display.show(PROGRESS)
    display.close()
    assert (file.getvalue(), capsys.readouterr().out) == ("", "")


# tables and boxes


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (0.42, "0.4 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (60, "1:00"),
        (185, "3:05"),
        (3599.4, "59:59"),
        (3599.6, "1:00:00"),
        (3725, "1:02:05"),
        (360_000, "100:00:00"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def bars(line: str) -> list[int]:
    return [place for place, letter in enumerate(line) if letter in "│┼"]


@pytest.mark.parametrize(
    ("epoch", "loss", "val"),
    [
        (1, 0.5, {"top5": 1.0}),
        (100, 99.5, {"top5": 0.5}),
        (7, 1e-9, {}),
    ],
)
def test_an_epochs_row_stands_under_its_header(epoch: int, loss: float, val: dict[str, float]) -> None:
    train_row = {**ROW, "epoch": epoch, "loss": loss, "seconds": 100.0}
    val_row = {"loss": loss, "top1": 0.5, "seconds": 25.0, **val}
    header, rule = epoch_header().plain.splitlines()
    for best in (True, False):
        row = epoch_row(train_row, val_row, 100, best).plain
        assert bars(row) == bars(header) == bars(rule)
        assert len(row.removesuffix(" ★ best")) == len(header) == len(rule)
        assert row.endswith("★ best") == best
        assert len(row) <= 80
        cells = row.split()
        assert cells[0] == f"{epoch}/100"
        assert "2:05" in cells
        assert ("top5" in val) == (f"{val.get('top5', 0):.4f}" in row.split("│")[2].split()[2:])


def test_config_tree_has_a_branch_a_group() -> None:
    config = {
        "model": {"_target_": "mypkg.Net", "width": 8, "bias": None},
        "train": {"epochs": 3, "compile": False, "early_stop": {"patience": None}},
        "init_from": "runs/a",
    }
    assert plain_text(config_tree("runs/b", config)).splitlines() == [
        "runs/b",
        "├── model      mypkg.Net  width=8 bias=null",
        "├── train      epochs=3 compile=false early_stop={patience=null}",
        "└── init_from  runs/a",
    ]


def test_closing_box_has_the_largest_part_first_and_all_of_the_time() -> None:
    text = plain_text(closing_box("9 epochs", {"start": 5.0, "train": 30.0, "val": 15.0, "save": 0.0}))
    found = re.findall(r"│ (\w+) +([\d.]+) s +(\d+)%", text)
    assert [name for name, _, _ in found] == ["train", "val", "start", "save"]
    assert sum(float(seconds) for _, seconds, _ in found) == 50
    assert sum(int(share) for _, _, share in found) == 100
    assert "9 epochs" in text.splitlines()[0]
    assert "start" in plain_text(closing_box("nothing", {"start": 0.0}))


# the logger's terminal


@pytest.fixture
def logged() -> Iterator[tuple[logging.Logger, io.StringIO]]:
    file = io.StringIO()
    handler = TerminalHandler(Console(file=file, width=20, force_terminal=False))
    logger = logging.getLogger("test_console")
    logger.addHandler(handler)
    logger.propagate = False
    yield logger, file
    logger.removeHandler(handler)


def test_warnings_are_marked_and_no_line_is_wrapped(logged: tuple[logging.Logger, io.StringIO]) -> None:
    logger, file = logged
    logger.warning("the disk %s/[red]x[/red] is full, and this line is long", "/a")
    logger.error("no", extra=FILE_ONLY)
    logger.error("two\nlines", extra=drawn("something drawn"))
    assert file.getvalue().splitlines() == [
        "warning: the disk /a/[red]x[/red] is full, and this line is long",
        "error: two",
        "lines",
    ]


# where the time goes


def test_each_moment_belongs_to_one_section(time: Time) -> None:
    watch = Clock("start")
    time.now += 1
    for item in watch.waiting(iter([1, 2]), "train"):
        time.now += 2
        with watch.within("save"):
            time.now += item
        time.now += 3
    time.now += 4
    watch.switch("end")
    assert watch.seconds == {"start": 5, "train": 10, "save": 3, "data": 0}
    assert sum(watch.seconds.values()) == watch.total() == 18


def test_waiting_for_data_is_told_from_using_it(time: Time) -> None:
    def slow() -> Iterator[int]:
        for number in range(3):
            time.now += 1
            yield number

    watch = Clock("start")
    span = Span(watch, images=10)
    for _ in watch.waiting(slow(), "train"):
        time.now += 3
    assert span.fields(130) == {"images_per_second": 10.0, "data_wait": 0.25, "seconds": 12.0}


def test_a_loop_that_is_left_gives_the_section_back(time: Time) -> None:
    watch = Clock("start")
    for _ in watch.waiting([1, 2], "train"):
        break
    time.now += 1
    watch.switch("end")
    assert watch.seconds["start"] == 1
