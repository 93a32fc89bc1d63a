"""Which command line starts processes, what torchrun is told, and what is said to who left a word out."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import PLAIN

from tinyexp import launch as module
from tinyexp.compose import compose, compose_run
from tinyexp.config import HwConfig
from tinyexp.cores import MACHINES_HERE, cores_of_rank, ranks_here
from tinyexp.errors import ConfigError
from tinyexp.launch import is_wanted, launch
from tinyexp.overrides import parse

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", MACHINES_HERE)


class Recorded:
    """In the place of a Supervisor: what it was made of."""

    made: Recorded

    def __init__(self, launcher: Callable[[], list[str]], words: Sequence[str], **limits: float) -> None:
        self.launcher, self.words, self.limits = launcher, words, limits
        Recorded.made = self

    def run(self) -> int:
        return 42


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(module, "Supervisor", Recorded)


def hw(*words: str) -> HwConfig:
    return compose(["hw=cpu", *words]).hw


def told(*words: str, **keys: Any) -> dict[str, str]:
    """torchrun's words, by name."""
    assert launch(replace(PLAIN.hw, **keys), words) == 42
    return dict(word.removeprefix("--").split("=", 1) for word in Recorded.made.launcher())


# is it wanted


@pytest.mark.parametrize(("procs", "nodes", "restarts"), list(itertools.product([1, 2, "auto"], [1, 2], [0, 3])))
def test_who_starts_others(monkeypatch: pytest.MonkeyPatch, procs: Any, nodes: int, restarts: int) -> None:
    asked = replace(PLAIN.hw, procs=procs, nodes=nodes, max_restarts=restarts)
    assert is_wanted(asked) == ((procs, nodes, restarts) != (1, 1, 0))
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert is_wanted(asked) == ((procs, nodes, restarts) != (1, 1, 0))  # a stray one of some other program
    monkeypatch.setenv("RANK", "0")
    assert not is_wanted(asked)


# what torchrun is told


def test_one_machine_takes_any_free_port() -> None:
    words = told(procs=3, join_timeout=7.4)
    port = int(words.pop("master-port"))
    assert words == {
        "nnodes": "1",
        "nproc-per-node": "3",
        "node-rank": "0",
        "master-addr": "127.0.0.1",
        "max-restarts": "0",
        "rdzv-conf": "timeout=7",
    }
    assert 1024 < port < 65536
    again = [word for word in Recorded.made.launcher() if word.startswith("--master-port")]
    assert again != [f"--master-port={port}"]  # another attempt, another port


def test_the_programs_words_and_limits_go_on_as_they_are() -> None:
    told("hw.procs=2", "run.name='a name'", timeout=33, max_restarts=4)
    assert Recorded.made.words == ("hw.procs=2", "run.name='a name'")
    assert Recorded.made.limits == {"timeout": 33, "max_restarts": 4}


@pytest.mark.parametrize(
    ("master", "host", "port"),
    [
        ("node0", "node0", "29500"),
        ("node0:1234", "node0", "1234"),
        ("10.0.0.1", "10.0.0.1", "29500"),
        ("10.0.0.1:80", "10.0.0.1", "80"),
        ("a-b_c.example:65535", "a-b_c.example", "65535"),
    ],
)
def test_the_address_of_the_first_machine(monkeypatch: pytest.MonkeyPatch, master: str, host: str, port: str) -> None:
    asked: list[str] = []
    monkeypatch.setattr(module.socket, "getaddrinfo", lambda name, _: asked.append(name))
    words = told(nodes=3, node=2, master=master, procs=4)
    assert (words["master-addr"], words["master-port"]) == (host, port)
    assert (words["nnodes"], words["node-rank"], words["nproc-per-node"]) == ("3", "2", "4")
    assert asked == [host]


def test_a_first_machine_that_is_not_known() -> None:
    with pytest.raises(ConfigError, match=r"^hw\.master=-.-:80: this machine knows no host -\.- \("):
        launch(replace(PLAIN.hw, nodes=2, node=1, master="-.-:80"), [])


def test_auto_is_one_process_a_cuda_device(monkeypatch: pytest.MonkeyPatch) -> None:
    for devices, procs in ((0, "1"), (1, "1"), (4, "4")):
        monkeypatch.setattr(torch.cuda, "device_count", lambda devices=devices: devices)
        assert told(procs="auto")["nproc-per-node"] == procs


# what is wrong


def test_a_machine_without_the_first_ones_address() -> None:
    with pytest.raises(ConfigError, match=r"^hw\.node=1 needs hw\.master=HOST\[:PORT\], where node 0 is reached$"):
        launch(replace(PLAIN.hw, nodes=2, node=1), [])


def test_each_machine_is_told_its_own_word() -> None:
    with pytest.raises(ConfigError) as error:
        launch(replace(PLAIN.hw, nodes=3, master="node0"), [])
    assert str(error.value) == (
        "hw.node must say which machine this is: hw.node=0 on node0, hw.node=1 or hw.node=2 elsewhere, "
        "all other words the same"
    )


@pytest.mark.parametrize("node", [2, 3])
def test_a_machine_beyond_the_last(node: int) -> None:
    with pytest.raises(ConfigError, match=rf"hw\.node must be below hw\.nodes=2, got {node}"):
        hw("hw.nodes=2", f"hw.node={node}")
    hw("hw.nodes=4", f"hw.node={node}")


@pytest.mark.parametrize("master", ["''", "'a b'", "'node0:'", "'node0:port'", "'node0:123456'", "'tcp://node0'"])
def test_an_address_that_is_none(master: str) -> None:
    with pytest.raises(ConfigError, match=r"hw\.master must be HOST or HOST:PORT"):
        hw("hw.nodes=2", "hw.node=0", f"hw.master={master}")


@pytest.mark.parametrize("master", ["'node0:0'", "'node0:65536'", "'node0:99999'"])
def test_a_port_that_there_cannot_be(master: str) -> None:
    with pytest.raises(ConfigError, match=r"hw\.master must be"):
        hw("hw.nodes=2", "hw.node=0", f"hw.master={master}")


@pytest.mark.parametrize("word", ["hw.procs=0", "hw.procs=two", "hw.nodes=0", "hw.node=-1", "hw.max_restarts=-1"])
def test_numbers_out_of_bounds(word: str) -> None:
    with pytest.raises(ConfigError, match=word.partition("=")[0]):
        hw(word)


# rehearsed


class Machine:
    """In the place of a process."""

    started: list[tuple[list[str], dict[str, str]]]
    codes: list[int]

    def __init__(self, command: list[str], *, env: dict[str, str], start_new_session: bool) -> None:
        assert start_new_session
        self.code = self.codes[len(self.started)]
        self.started.append((command, env))

    def wait(self, timeout: float | None = None) -> int:
        return self.code

    def kill(self) -> None: ...


@pytest.mark.parametrize(("codes", "code"), [([0, 0, 0], 0), ([0, 2, 2], 2), ([75, 75, 75], 75)])
def test_without_an_address_all_machines_are_rehearsed_here(
    monkeypatch: pytest.MonkeyPatch, codes: list[int], code: int
) -> None:
    Machine.started, Machine.codes = [], codes
    monkeypatch.setattr(module.subprocess, "Popen", Machine)
    assert launch(replace(PLAIN.hw, nodes=3), ["hw.nodes=3", "train.seed=4"]) == code
    assert len(Machine.started) == 3
    masters = set()
    for node, (command, env) in enumerate(Machine.started):
        assert command[1:5] == ["-m", "tinyexp", "hw.nodes=3", "train.seed=4"]
        assert command[-1] == f"hw.node={node}"
        masters.add(parse(command[3:]).value("hw.master"))
        assert env[MACHINES_HERE] == "3"
        assert env["PATH"] == os.environ["PATH"]
    (master,) = masters
    assert str(master).startswith("127.0.0.1:")


def test_ranks_share_the_cores_of_all_machines_that_are_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinyexp.cores.available_cores", lambda: 12)
    assert (ranks_here(), cores_of_rank()) == (1, 12)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert (ranks_here(), cores_of_rank()) == (2, 6)
    monkeypatch.setenv(MACHINES_HERE, "3")
    assert (ranks_here(), cores_of_rank()) == (6, 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "99")
    assert cores_of_rank() == 1


# a run goes on, on other machines and in other places


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A run's directory of which there is no more than its config, as machine 1 of 3."""
    run = tmp_path / "run"
    run.mkdir()
    plain = compose(["hw=cpu", "train.seed=5", "hw.procs=2", "hw.nodes=3", "hw.node=1", "hw.master=old"]).plain
    (run / "config.yaml").write_text(json.dumps(plain))
    return run


def test_where_a_run_was_is_not_taken_when_it_goes_on(stored: Path) -> None:
    config = compose_run([f"resume={stored}"])
    assert (config.hw.nodes, config.hw.node, config.hw.master) == (1, None, None)
    assert (config.hw.procs, config.train.seed) == (1, 5)
    config = compose_run([f"resume={stored}", "hw.nodes=2", "hw.node=0", "hw.master=new"])
    assert (config.hw.nodes, config.hw.node, config.hw.master) == (2, 0, "new")
    config = compose_run(["hw=cpu", "train.seed=5", "resume=auto", f"run.dir={stored}", "hw.procs=4"])
    assert (config.hw.nodes, config.hw.node, config.hw.master, config.hw.procs) == (1, None, None, 4)


def test_a_machine_without_the_runs_directory_starts_its_ranks_all_the_same(tmp_path: Path) -> None:
    words = [f"resume={tmp_path / 'nowhere'}", "hw.nodes=2", "hw.master=first", "hw.procs=2"]
    config = compose_run([*words, "hw.node=1"])
    assert (config.hw.nodes, config.hw.node, config.hw.procs) == (2, 1, 2)
    for there in ("hw.node=0", "hw.nodes=1"):
        with pytest.raises(ConfigError, match=r"resume=.*nowhere must be auto, a run's directory"):
            compose_run([f"resume={tmp_path / 'nowhere'}", "hw.nodes=2", there])


def test_a_rank_without_the_runs_directory_is_handed_the_first_ones_config(
    stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[str | None] = []

    def hand_on(text: str | None) -> str:
        given.append(text)
        return str(given[0])

    monkeypatch.setattr("tinyexp.rendezvous.hand_on", hand_on)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    first = compose_run([f"resume={stored}", "hw.node=0", "hw.nodes=2"])
    stored.rename(tmp_path / "of the other machine")
    monkeypatch.setenv("RANK", "1")
    second = compose_run([f"resume={stored}", "hw.node=1", "hw.nodes=2"])
    assert given[0] is not None
    assert given[1] is None
    assert second.train.seed == first.train.seed == 5 != PLAIN.train.seed
    assert second.run.dir == first.run.dir == str(stored)
    with pytest.raises(ConfigError, match=r"a resumed run keeps its config, but train\.seed would change"):
        compose_run([f"resume={stored}", "train.seed=6", "hw.node=1", "hw.nodes=2"])


def test_a_rank_elsewhere_begins_where_the_first_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """resume=auto on a machine that happens to have a directory of that name, and from weights that it has not."""
    words: Any = ["resume=auto", f"run.dir={tmp_path / 'new'}", f"init_from={tmp_path / 'nowhere'}"]
    with pytest.raises(ConfigError, match="nowhere"):
        compose_run(words)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert compose_run(words).init_from == str(tmp_path / "nowhere")
