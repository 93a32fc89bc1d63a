"""doctor: each line follows from what the machine has, and nothing is written. What it measures is what a run takes."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ALONE, PLAIN, on_ranks, write_image

from tinyexp import machine, trial
from tinyexp.__main__ import main
from tinyexp.compose import compose
from tinyexp.data.loader import load_data
from tinyexp.dist import Dist
from tinyexp.errors import ConfigError, DataError
from tinyexp.facts import Facts
from tinyexp.launch import parse_address
from tinyexp.machine import Report, by_machine, free_memory, knock
from tinyexp.trial import Pace
from tinyexp.verbs import doctor
from tinyexp.verbs.doctor import Screen

pytestmark = pytest.mark.usefixtures("kept_hydra")

GB = 10**9
HOST = socket.gethostname()
SHORT = ("hw=cpu", "train.epochs=1", "train.limit_batches=2")
REPORT = Report(
    host="alpha",
    machine=0,
    rank=0,
    hardware="a processor",
    cores=4,
    threads=2,
    resident=GB,
    free=10 * GB,
    bound="this machine",
    devices=0,
    on_device=None,
    shared=GB,
    fingerprint="aa",
)
FACTS = Facts(
    device="cpu",
    precision="fp32",
    network="Net",
    parameters=0,
    weights=1 * GB,
    gradients=1 * GB,
    optimizer=2 * GB,
    averaged=0,
    activations=3 * GB,
    left_out=(),
)  # 7 GB to train, and 3 GB of a checkpoint
USER_CODE = """
import os, time
from dataclasses import replace
from torch import nn
from tinyexp.data.digits import digits

class Slow(nn.Module):
    def __init__(self, *, num_classes, seconds=0.0):
        super().__init__()
        self.layers, self.seconds = nn.Sequential(nn.Flatten(), nn.Linear(784, num_classes)), seconds
        self.calls = []

    def forward(self, images):
        if images.device.type != "meta":
            self.calls.append(self.training)
            time.sleep(self.seconds)
        return self.layers(images)

def differing(*, image_size):
    return replace(digits(image_size=image_size), fingerprint="mark" + os.environ.get("RANK", "0"))

def missing(*, image_size):
    if os.environ.get("RANK", "0") == "1":
        from tinyexp.errors import DataError
        raise DataError("dataset.root=there is no folder")
    return digits(image_size=image_size)
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, and a home and a module of the test's own."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "GLOO_SOCKET_IFNAME"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "here").mkdir()
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "slownet.py").write_text(USER_CODE)
    monkeypatch.syspath_prepend(tmp_path / "code")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'code'}:{Path(__file__).parent.parent}")
    monkeypatch.delitem(sys.modules, "slownet", raising=False)
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def asked(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> dict[str, list[str]]:
    """What doctor says, by the name of the line; `error` is what stands on stderr."""
    assert main(["doctor", *words]) == code
    out, error = capsys.readouterr()
    return lines(out) | {"error": [error.strip()]}


def lines(out: str) -> dict[str, list[str]]:
    said: dict[str, list[str]] = {}
    for name, _, text in (line.partition(" ") for line in out.splitlines()):
        said.setdefault(name, []).append(text.strip())
    return said


def told(capsys: pytest.CaptureFixture[str]) -> dict[str, list[str]]:
    return lines(capsys.readouterr().out)


def write(path: Path, text: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(str(text))
    return path


# memory that is free


@pytest.fixture
def meminfo(home: Path) -> Path:
    return write(home / "meminfo", "MemTotal: 16000000 kB\nMemFree: 1000 kB\nMemAvailable:    8000000 kB\n")


def test_free_memory_is_what_is_available(meminfo: Path, home: Path) -> None:
    assert free_memory(meminfo, home / "none", home) == (8_192_000_000, "this machine")


def test_free_memory_of_this_machine() -> None:
    free, _ = free_memory()
    assert 10**7 < free <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_free_memory_where_there_is_no_proc(home: Path) -> None:
    free, _ = free_memory(home / "none", home / "none", home)
    assert free == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


V2 = ("0::/a/b", "", "memory.max", "memory.current", "inactive_file", "max")
V1 = (
    "9:name=systemd:/\n4:cpu,memory:/a/b",
    "memory",
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    "total_inactive_file",
    "9223372036854771712",
)


@pytest.mark.parametrize("version", [V1, V2], ids=["v1", "v2"])
def test_the_limit_of_a_cgroup(version: tuple[str, ...], meminfo: Path, home: Path) -> None:
    words, root, limit, used, cached, unlimited = version
    own, inner = write(home / "own", words), home / "groups" / root / "a" / "b"
    write(inner / limit, unlimited)
    write(inner / used, 5 * GB)
    assert free_memory(meminfo, own, home / "groups")[1] == "this machine"
    write(inner / limit, 6 * GB)
    assert free_memory(meminfo, own, home / "groups") == (GB, f"the limit of {inner}, 6.0 GB")
    write(inner / "memory.stat", f"{cached} {2 * GB}\nactive_file 7\n")  # what the system can drop is free
    assert free_memory(meminfo, own, home / "groups")[0] == 3 * GB
    write(inner.parent / limit, 4 * GB)  # of the group around it
    write(inner.parent / used, 3_900_000_000)
    assert free_memory(meminfo, own, home / "groups") == (10**8, f"the limit of {inner.parent}, 4.0 GB")


@pytest.mark.parametrize("version", [V1, V2], ids=["v1", "v2"])
def test_a_container_whose_own_group_is_the_root(version: tuple[str, ...], meminfo: Path, home: Path) -> None:
    words, root, limit, used, *_ = version
    write(home / "groups" / root / limit, 2 * GB)
    write(home / "groups" / root / used, GB)
    assert free_memory(meminfo, write(home / "own", words), home / "groups")[0] == GB


def test_a_group_over_its_limit_has_nothing_free(meminfo: Path, home: Path) -> None:
    write(home / "groups" / "memory.max", GB)
    write(home / "groups" / "memory.current", 2 * GB)
    assert free_memory(meminfo, write(home / "own", "0::/"), home / "groups")[0] == 0


def test_resident_memory_grows_with_what_is_held(home: Path) -> None:
    before = machine.resident_memory()
    held = bytearray(b"x") * 100_000_000
    assert 90_000_000 < machine.resident_memory() - before < 120_000_000
    assert machine.resident_memory(home / "none") >= len(held)
    assert machine.resident_memory(write(home / "status", "VmRSS:\t  12 kB\n")) == 12 * 1024


# memory that is wanted


def test_memory_that_fits(capsys: pytest.CaptureFixture[str]) -> None:
    doctor.tell_memory(Screen(), FACTS, [replace(REPORT, free=10 * GB)])
    said = told(capsys)
    assert "warning:" not in said
    assert said["memory"][0].startswith("alpha: about 11.0 GB: 1.0 GB now with Python, torch and data, 10.0 GB to come")


@pytest.mark.parametrize(
    ("reports", "wanted"),
    [
        ([replace(REPORT, free=10 * GB - 1)], "10.0 GB"),
        ([replace(REPORT, free=19 * GB), replace(REPORT, rank=1, free=21 * GB)], "20.0 GB"),
    ],
    ids=["alone", "two ranks"],
)
def test_memory_that_does_not_fit(reports: list[Report], wanted: str, capsys: pytest.CaptureFixture[str]) -> None:
    doctor.tell_memory(Screen(), FACTS, reports)
    (warning,) = told(capsys)["warning:"]
    assert warning.startswith(f"alpha: {wanted} will not fit into this machine, ")
    assert all(key in warning for key in ("train.batch_size", "train.accumulate", "dataset.workers", "`Killed`", "137"))


def test_each_machine_has_memory_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    doctor.tell_memory(Screen(), FACTS, [REPORT, replace(REPORT, rank=1, machine=1, host="beta", free=GB)])
    said = told(capsys)
    assert [text.split(":")[0] for text in said["memory"]] == ["alpha", "beta"]
    assert [text.split(":")[0] for text in said["warning:"]] == ["beta"]


def test_loader_processes_take_memory_and_shared_memory(capsys: pytest.CaptureFixture[str]) -> None:
    doctor.tell_memory(Screen(), FACTS, [replace(REPORT, free=20 * GB)], processes=4, waiting=GB)
    said = told(capsys)
    assert "15.0 GB to come" in said["memory"][0]  # 4 processes of 1 GB, and 1 GB of batches
    assert "warning:" not in said
    doctor.tell_memory(Screen(), FACTS, [replace(REPORT, free=20 * GB, shared=GB - 1)], waiting=GB)
    assert "1.0 GB will not fit into /dev/shm" in told(capsys)["warning:"][0]
    doctor.tell_memory(Screen(), FACTS, [replace(REPORT, free=20 * GB, shared=None)], waiting=GB)
    assert "warning:" not in told(capsys)


def test_on_a_gpu_the_network_takes_the_devices_memory(capsys: pytest.CaptureFixture[str]) -> None:
    facts = replace(FACTS, device="cuda:0")
    doctor.tell_memory(Screen(), facts, [replace(REPORT, free=3 * GB, on_device=7 * GB)])
    assert "warning:" not in told(capsys)
    doctor.tell_memory(Screen(), facts, [replace(REPORT, free=3 * GB, on_device=7 * GB - 1)])
    assert "7.0 GB will not fit into GPU" in told(capsys)["warning:"][0]


# devices and ranks


def test_machines_and_ranks(capsys: pytest.CaptureFixture[str]) -> None:
    reports = [replace(REPORT, rank=rank, machine=rank // 2, host=("alpha", "beta")[rank // 2]) for rank in range(3)]
    assert [[report.rank for report in ranks] for ranks in by_machine(reports)] == [[0, 1], [2]]
    doctor.tell_machines(Screen(), reports)
    said = told(capsys)
    assert said["machine"] == ["alpha: a processor", "beta: a processor"]
    assert said["ranks"] == ["alpha: 2 of 3, of 2 threads", "beta: 1 of 3, of 2 threads"]
    assert "warning:" not in said
    doctor.tell_machines(Screen(), [replace(report, threads=3) for report in reports])
    assert told(capsys)["warning:"] == ["alpha: its ranks have more threads than its 4 cores: lower hw.threads"]


def test_machines_rehearsed_on_one_host_are_several() -> None:
    assert len(by_machine([REPORT, replace(REPORT, rank=1, machine=1)])) == 2


def test_several_gpus(capsys: pytest.CaptureFixture[str]) -> None:
    doctor.tell_machines(Screen(), [replace(REPORT, devices=8)])
    assert told(capsys)["ranks"] == ["alpha: 1 of 1, of 2 threads; hw.procs=auto takes all 8 GPUs"]
    doctor.tell_machines(Screen(), [replace(REPORT, devices=8), replace(REPORT, devices=8, rank=1)])
    assert "hw.procs" not in told(capsys)["ranks"][0]


def test_ranks_but_the_first_say_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    doctor.tell_machines(Screen(rank=1), [REPORT])
    assert capsys.readouterr().out == ""


def test_gpus_are_named_with_their_memory() -> None:
    hardware = {"processor": "P", "cores": 64, "threads": 8, "cuda": ["GPU A", "GPU B"], "mps": False}
    report = machine.look(0, hardware, ["24 GB", "48 GB"], 5, master="")
    assert "P, " in report.hardware
    assert "GPU A of 24 GB, GPU B of 48 GB, torch" in report.hardware
    assert (report.devices, report.on_device, report.threads, report.host) == (2, 5, 8, HOST)


# the network


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        yield made


def test_a_master_that_answers(listener: socket.socket) -> None:
    listener.listen()
    assert knock(*listener.getsockname()) == (True, f"127.0.0.1:{listener.getsockname()[1]} answers")


def test_a_master_that_is_not_there_yet(listener: socket.socket) -> None:
    fine, text = knock(*listener.getsockname())  # bound, and nobody listens
    assert fine
    assert "nobody listens there yet: start node 0 first" in text


def test_a_master_whose_name_is_unknown() -> None:
    fine, text = knock("nowhere.invalid", 29500)
    assert not fine
    assert "the name nowhere.invalid is not known here" in text


@pytest.mark.skipif(sys.platform != "linux", reason="how a full queue answers is the system's")
def test_a_master_that_gives_no_answer(listener: socket.socket) -> None:
    listener.listen(0)
    with socket.create_connection(listener.getsockname()):  # the queue is full: what comes next is dropped
        began = time.monotonic()
        fine, text = knock(*listener.getsockname(), seconds=0.2)
    assert (fine, time.monotonic() - began < 2) == (False, True)
    assert "gave no answer in 0.2 s: a firewall" in text


def test_names_that_lead_to_loopback() -> None:
    assert machine.loopback_of("localhost").startswith("127.")
    assert machine.loopback_of("nowhere.invalid") == ""


BETA = replace(REPORT, rank=1, machine=1, host="beta", interface="eth0 (10.0.127.2)")


@pytest.mark.parametrize(
    ("alpha", "warned"),
    [
        ({"interface": "eth0 (10.0.0.1)", "loopback": "127.0.1.1"}, False),  # gloo takes the interface
        ({"interface": "ib0", "loopback": "127.0.1.1"}, False),  # GLOO_SOCKET_IFNAME
        ({"loopback": "127.0.1.1"}, True),
        ({"interface": "lo (127.0.0.1)"}, True),
        ({}, False),
    ],
)
def test_loopback_is_warned_of_between_machines(
    alpha: dict[str, str], warned: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    first = replace(REPORT, **alpha)
    assert doctor.tell_network(Screen(), PLAIN.hw, [first, BETA]) is None
    said = told(capsys)
    assert said["network"] == [
        f"alpha: gloo uses {alpha.get('interface', 'the interface of the name of the host')}",
        "beta: gloo uses eth0 (10.0.127.2)",
    ]
    assert ("warning:" in said) == warned
    assert not warned or said["warning:"][0].startswith("alpha: other machines do not reach ")
    assert not warned or "GLOO_SOCKET_IFNAME" in said["warning:"][0]
    doctor.tell_network(Screen(), PLAIN.hw, [first, replace(first, rank=1)])  # on one machine it is right
    assert "warning:" not in told(capsys)


def test_the_chosen_interface_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    hardware = {"processor": "P", "cores": 1, "threads": 1, "cuda": [], "mps": False}
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ib0")
    assert machine.look(0, hardware, [], None, master="127.0.0.1").interface == "ib0"
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    assert "127.0.0.1" in machine.look(0, hardware, [], None, master="127.0.0.1").interface


@pytest.mark.parametrize(
    ("word", "master"),
    [("a:5", ("a", 5)), ("10.0.0.1", ("10.0.0.1", 29500))],
)
def test_where_the_master_is(word: str, master: tuple[str, int]) -> None:
    assert parse_address(word) == master


def test_in_front_of_a_run_of_several_machines(capsys: pytest.CaptureFixture[str], listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    said = asked(capsys, *SHORT, "hw.nodes=2", f"hw.master=127.0.0.1:{port}")
    assert "start node 0 first" in said["master"][0]
    assert said["warning:"][0].startswith(f"{HOST}: other machines do not reach ")
    assert "time" in said
    listener.listen()
    assert asked(capsys, *SHORT, f"hw.master=127.0.0.1:{port}")["master"] == [f"127.0.0.1:{port} answers"]


def test_a_master_that_cannot_be_reached_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    said = asked(capsys, *SHORT, "hw.nodes=2", "hw.master=nowhere.invalid", code=2)
    assert said["error"][0].startswith("tinyexp: hw.master=nowhere.invalid cannot be used: nowhere.invalid:29500: the")
    assert "time" in said  # all else has been told


# the data


def test_data_that_a_machine_lacks_names_the_machine(capsys: pytest.CaptureFixture[str]) -> None:
    said = asked(capsys, "hw=cpu", "dataset=imagefolder", "dataset.root=nowhere", code=2)
    told = f"tinyexp: rank 0 on {HOST} cannot read the data set: dataset.root=nowhere is no folder"
    assert said["error"][0].startswith(told)
    assert "machine" in said
    assert "time" not in said
    error = doctor.tell_data(Screen(), [REPORT, replace(BETA, fingerprint="", refusal="gone")])
    assert isinstance(error, DataError)
    assert str(error) == "rank 1 on beta cannot read the data set: gone"


def test_data_that_would_be_fetched_is_told(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    archive = home / "images.zip"
    shutil.make_archive(str(archive.with_suffix("")), "zip", write(home / "folder" / "a" / "b", 1).parent.parent)
    words = ("hw=cpu", "dataset=imagefolder", f"dataset.archive={archive}", f"dataset.cache_dir={home / 'cache'}")
    said = asked(capsys, *words)
    assert said["warning:"][0].startswith(f"rank 0 on {HOST}: a run would first fetch the data set")
    assert "time" not in said
    assert not (home / "cache").exists()


def test_images_that_are_not_decoded_yet(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    for phase in ("train", "val"):
        for number in range(4):
            write_image(home / "images" / phase / "ab"[number % 2] / f"{number}.png")
    words = (f"dataset.root={home / 'images'}", f"dataset.cache_dir={home / 'cache'}", "dataset.image_size=28")
    words = (*SHORT, "dataset=imagefolder", "model=resnet18", *words)
    said = asked(capsys, *words)
    assert f"{HOST} would first decode the images, to about 0.0 MB" in said["warning:"][0]
    assert "memory" in said
    assert "time" not in said
    assert not (home / "cache").exists()
    assert main(["prepare", *words]) == 0
    capsys.readouterr()
    said = asked(capsys, *words)
    assert "warning:" not in said
    assert "time" in said
    fork = ("dataset.max_gb=0", "dataset.workers=1", "dataset.start_method=fork", f"dataset.cache_dir={home / 'other'}")
    over = asked(capsys, *words, *fork)
    assert over["loader"] == ["1 processes a rank, by fork"]  # decoded anew each epoch: there is no store to wait for
    assert "time" in over
    sizes = re.findall(r"([\d.]+) ([MG])B (?:now|to come)", over["memory"][0])
    now, to_come = (float(size) * {"M": 1, "G": 1000}[unit] for size, unit in sizes)
    assert to_come < now  # a forked process shares what this one holds


# the disk


def test_the_disk(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    folder, free = machine.free_disk(Path("not/there/yet"))
    assert folder == Path.cwd()
    assert abs(free - shutil.disk_usage(home).free) < 10**9
    config = compose(["run.root=a/b", "ckpt.keep=1"])
    doctor.tell_disk(Screen(), config, free // 12)
    doctor.tell_disk(Screen(), config, free // 8)  # 3 x (2 + 1) of them are to have room
    said = told(capsys)
    assert all(f" free in {folder}; checkpoints of " in text for text in said["disk"])
    assert [text.startswith(f"{folder} may get full") for text in said["warning:"]] == [True]


# the whole screen


def test_a_machine_where_all_is_well(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    before = set(home.rglob("*"))
    said = asked(capsys, *SHORT)
    assert list(said) == ["machine", "ranks", "data", "disk", "loader", "memory", "time", "error"]
    assert said["error"] == [""]
    assert f"torch {torch.__version__.split('+')[0]}" in said["machine"][0]
    assert said["data"] == ["1,437 train and 360 val images"]
    assert said["loader"] == ["in line, no processes"]
    made = {path for path in set(home.rglob("*")) - before if "__pycache__" not in path.parts}
    assert made == set()


def test_max_time_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    said = asked(capsys, *SHORT, "train.max_time=0.001")
    assert said["time"][0].endswith("; train.max_time ends it after 0.001 s")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("optim.lrr=1", "optim.lrr"),
        ("dataset.image_size=8", "LeNet needs images of at least 12 px"),
        ("hw.device=cuda", "hw.device=cuda is not on this machine"),
        ("model._target_=slownet.Nothing", "slownet"),
    ],
)
def test_a_config_that_cannot_run_is_an_error(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    if words.startswith("hw.device") and torch.cuda.is_available():
        pytest.skip("cuda is there")
    assert message in asked(capsys, words, code=2)["error"][0]


# time


def test_the_times_of_a_run_add_up() -> None:
    pace = Pace(start=10.0, step=0.5, val_image=0.001, save=2.0, timed=7, epochs=3, steps=100, val_images=5000)
    assert pace.epoch == 50 + 5 + 2
    assert pace.total == 10 + 3 * 57
    assert str(pace) == (
        "about 3:01: 3 epochs of 57 s (100 steps of 500.0 ms, val 5.0 s, checkpoints 2.0 s) and 10 s to start; "
        "7 steps timed"
    )


SLOW = ("hw=cpu", "hw.threads=1", "model._target_=slownet.Slow", "+model.seconds=0.03", "train.limit_batches=8")


@pytest.mark.slow
def test_the_time_is_that_of_the_run(
    capsys: pytest.CaptureFixture[str], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a network that sleeps most of the time, so that what else the machine does matters little."""
    monkeypatch.setattr(trial, "_BLOCK", 0.05)
    words = (*SLOW, "train.epochs=3", "train.batch_size=256", "train.eval_batch_size=60")
    said = asked(capsys, *words)["time"][0]
    assert main([*words, f"run.dir={home / 'run'}", "log.level=warning", "log.tensorboard.scalars=false"]) == 0
    real = json.loads((home / "run" / "summary.json").read_text())["seconds"]
    (about,) = re.findall(r"^about ([\d.]+) s: 3 epochs of [\d.]+ s \(6 steps of ", said)
    assert float(about) == pytest.approx(real, rel=0.25)


def timed(*words: str) -> tuple[Pace, list[bool]]:
    """The pace, and of each call of the network whether it was in training."""
    config = compose([*SLOW, *words])
    data = load_data(config, ALONE)
    calls: list[bool] = []
    build = trial.TrainState.build

    def seen(*given: Any) -> Any:
        state = build(*given)
        state.network.model.calls = calls
        return state

    trial.TrainState.build = seen  # type: ignore[method-assign]
    try:
        return trial.time_training(config, data, ALONE, time.perf_counter()), calls
    finally:
        trial.TrainState.build = build  # type: ignore[method-assign]


@pytest.mark.parametrize("epochs", [1, 3])
def test_a_trial_is_never_longer_than_the_run(epochs: int) -> None:
    pace, calls = timed(f"train.epochs={epochs}", "train.batch_size=1", "train.limit_batches=2")
    assert (sum(calls), pace.steps, pace.epochs) == (2 * epochs, 2, epochs)


def test_a_run_of_one_step() -> None:
    pace, calls = timed("train.epochs=1", "train.limit_batches=1")
    assert (sum(calls), pace.timed) == (1, 1)
    assert pace.step > 0.03


def test_a_long_run_is_tried_for_some_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "_STEPS", 0.3)
    pace, calls = timed("train.epochs=1", "train.batch_size=4", "train.limit_batches=200")
    assert sum(calls) < 20
    assert 0.03 < pace.step < 0.06
    assert pace.total > 6


class Clocks(threading.local):
    """In trial.py's place of `time`: a clock that runs faster on some threads."""

    faster = 1.0

    def perf_counter(self) -> float:
        return self.faster * time.perf_counter()


def test_ranks_whose_clocks_differ_do_the_same_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank that stopped by its own clock would leave the other one in an all-reduce."""
    clocks = Clocks()
    monkeypatch.setattr(trial, "time", clocks)
    monkeypatch.setattr(trial, "_STEPS", 0.5)
    monkeypatch.setattr(trial, "_BLOCK", 0.02)
    config = compose([*SLOW[:3], "+model.seconds=0.005", "train.epochs=1000", "train.batch_size=4"])

    def timed_steps(dist: Dist) -> int:
        clocks.faster = 1.0 + 3.0 * dist.rank
        return trial.time_training(config, load_data(config, dist), dist, clocks.perf_counter()).timed

    first, second = on_ranks(2, timed_steps)
    assert first == second > 2


@pytest.mark.parametrize(("gradients", "size"), [(0, 4), (1003, 1000)])
def test_all_reduces_are_of_the_gradients_size(gradients: int, size: int) -> None:
    first, second = on_ranks(2, lambda dist: trial.time_exchange(dist, gradients))
    for latency, buffer, bandwidth in (first, second):
        assert buffer == size
        assert 0 < latency < 1
        assert bandwidth > 0


def test_no_buffer_is_larger_than_64_mb(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    class Counting(Dist):
        def sum(self, values: torch.Tensor) -> torch.Tensor:
            seen.append(values.numel() * values.element_size())
            return values

    trial.time_exchange(Counting(torch.device("cpu"), 0, 2), 10**9)
    assert max(seen) == 64_000_000
    assert len(seen) == 1 + 20 + 5


# several ranks


def on_torchrun(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tinyexp", "doctor", "hw=cpu", "hw.procs=2", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


@pytest.mark.slow
def test_two_ranks() -> None:
    done = on_torchrun("train.epochs=1")
    assert done.returncode == 0, done.stderr
    said = lines(done.stdout)
    assert [len(texts) for texts in said.values()] == [1] * len(said)  # rank 0 alone speaks
    assert said["ranks"][0].startswith(f"{HOST}: 2 of 2, of ")
    assert said["master"][0].endswith(": all 2 ranks have reached it")
    assert said["data"] == ["1,437 train and 360 val images, the same on all ranks"]
    assert re.fullmatch(r"[\d.]+ ms, and [\d.]+ GB/s with 0.2 MB", said["all-reduce"][0])
    assert "warning:" not in said
    assert "time" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            "differing",
            "the data is mark0 of 1437 train and 360 val images on rank 0 on {host} and mark1 of",
        ),
        ("missing", "rank 1 on {host} cannot read the data set: dataset.root=there is no folder"),
    ],
)
def test_ranks_whose_data_are_not_alike(target: str, message: str) -> None:
    done = on_torchrun(f"dataset._target_=slownet.{target}")
    assert done.returncode == 2, done.stderr
    assert done.stderr.count(message.format(host=HOST)) == 1
    assert "time " not in done.stdout


def test_what_stops_a_run_is_of_the_kinds_that_end_with_2() -> None:
    stop = doctor.tell_network(Screen(rank=1), replace(PLAIN.hw, master="nowhere.invalid", nodes=2), [REPORT])
    assert isinstance(stop, ConfigError)
    assert stop.exit_code == 2
