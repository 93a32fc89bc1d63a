"""What is read back is checked, whole, and never runs: checkpoints, and the config of a run."""

from __future__ import annotations

import itertools
import os
import pickle
import random
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from faults import SMALL, digest

import tinyexp
from tinyexp.__main__ import main
from tinyexp.checkpoint import decode, load, read_checked
from tinyexp.config import SLOTS
from tinyexp.errors import IntegrityError

BLOCK = 4096  # bytes


@pytest.fixture
def finished(uncut: Path, tmp_path: Path) -> Path:
    """A copy of a finished run, to damage."""
    return Path(shutil.copytree(uncut, tmp_path / "run"))


def flip(path: Path, position: int | None = None, bit: int = 3) -> None:
    """One bit of a file; in its middle by default, where the weights are."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if position is None else position] ^= 1 << bit
    path.write_bytes(content)


# one checkpoint


def test_one_bit_in_each_block(uncut: Path, tmp_path: Path) -> None:
    path, chance = tmp_path / "last.pt", random.Random(0)
    whole = (uncut / "checkpoints/last.pt").read_bytes()
    told = pickle.dumps(plain(decode(whole, "whole")))
    ends = [*range(0, len(whole), BLOCK), *range(len(whole) - 3 * BLOCK, len(whole), 32)]  # the tail is the zip's index
    refused = 0
    for start in ends:
        damaged = bytearray(whole)
        damaged[min(start + chance.randrange(BLOCK if start % BLOCK == 0 else 32), len(whole) - 1)] ^= (
            1 << chance.randrange(8)
        )
        path.write_bytes(damaged)
        try:
            assert pickle.dumps(plain(load(path))) == told, f"taken for good at {start}"
        except IntegrityError:
            refused += 1
    assert refused > 0.8 * len(ends)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99, None], ids=["0 %", "1 %", "50 %", "99 %", "a byte less"])
def test_truncated(finished: Path, share: float | None) -> None:
    path = finished / "checkpoints/best.pt"
    size = path.stat().st_size
    os.truncate(path, size - 1 if share is None else int(share * size))
    with pytest.raises(IntegrityError, match=r"best\.pt is damaged"):
        read_checked(path)
    assert main(["eval", str(finished)]) == 3


@pytest.mark.parametrize("verb", ["eval", "show"])
def test_flipped_bit_is_told(finished: Path, verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = finished / "checkpoints/best.pt"
    assert main([verb, str(path)]) == 0
    flip(path)
    assert main([verb, str(path)]) == 3
    assert f"{path} is damaged: the checksum of" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.clear(),
        lambda content: content.pop("state"),
        lambda content: content.pop("config"),
        lambda content: content.pop("data"),
        lambda content: content.update(format=99),
        lambda content: content.update(state=[1, 2]),
        lambda content: content["state"].pop("model"),
        lambda content: content["data"].pop("classes"),
    ],
    ids=["empty", "no state", "no config", "no data", "format", "state of a list", "no model", "no classes"],
)
def test_whole_file_of_another_content(finished: Path, change: Callable[[dict[str, Any]], None]) -> None:
    for name in ("best", "last", "prev"):
        path = finished / f"checkpoints/{name}.pt"
        content = load(path)
        change(content)
        torch.save(content, path)
    assert main(["eval", str(finished)]) == 3
    assert main(["show", str(finished)]) == 3
    assert main([f"resume={finished}"]) == 3


# what a run falls back to


@pytest.mark.parametrize("words", [["resume={run}"], [*SMALL, "resume=auto", "run.dir={run}"]], ids=["RUN", "auto"])
def test_falls_back_to_the_one_before(
    finished: Path, uncut: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    last, prev = (finished / f"checkpoints/{name}.pt" for name in ("last", "prev"))
    flip(last)
    assert main([word.format(run=finished) for word in words]) == 0
    output = capsys.readouterr().out
    assert re.search(f"warning: {last} is damaged.*; going on from {prev}, the one before", output)
    assert digest(finished) == digest(uncut)


def test_what_was_named_is_not_replaced(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    last = finished / "checkpoints/last.pt"
    flip(last)
    damaged = last.read_bytes()
    assert main([f"resume={last}"]) == 3
    assert f"{last} is damaged" in capsys.readouterr().err
    assert last.read_bytes() == damaged
    assert main([f"resume={finished / 'checkpoints/prev.pt'}"]) == 0


def test_all_damaged(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("last", "prev"):
        flip(finished / f"checkpoints/{name}.pt")
    assert main([f"resume={finished}"]) == 3
    assert "prev.pt is damaged" in capsys.readouterr().err


# nothing that is read back runs


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("forced", [False, True], ids=["", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"])
@pytest.mark.parametrize("kind", ["pickle", "torch", "torch of old"])
def test_evil_pickle(finished: Path, kind: str, forced: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if forced:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    marker, path = finished.parent / "marker", finished / "checkpoints/best.pt"
    content = load(path) | {"evil": Evil(marker)}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "torch")
    for name in ("last", "prev"):
        shutil.copy(path, finished / f"checkpoints/{name}.pt")
    for words in (["eval", path], ["show", path], [f"resume={finished}"], [f"resume={path}"], [f"init_from={path}"]):
        at_home = ["run.dir=" + str(finished.parent / "new")] if "init_from" in str(words[0]) else []
        assert main([*map(str, words), *at_home]) == 3
        assert not marker.exists()
    if kind == "torch":
        torch.load(path, weights_only=False)
        assert marker.exists(), "the test's own file does nothing"


def test_source_has_no_way_to_run_what_it_reads() -> None:
    forbidden = re.compile(
        r"weights_only=False|\bpickle\.|import (c?pickle|dill|shelve|marshal)|_object_list|allow_pickle=True"
        r"|yaml\.(load|unsafe|full)|(?<![.\w])(eval|exec|compile)\(|shell=True|os\.system\(|np\.load\((?!_FILE\)|.*allow_pickle=False)"
    )
    texts = [path.read_text() for path in Path(tinyexp.__file__).parent.rglob("*.py")]
    assert not [line for text in texts for line in text.splitlines() if forbidden.search(line)]
    loads = [line for text in texts for line in text.splitlines() if "torch.load(" in line]
    assert loads
    assert all("weights_only=True" in line for line in loads)


EVIL_TARGETS: dict[str, dict[str, Any]] = {
    "os.system": {"command": "touch {marker}"},
    "builtins.open": {"file": "{marker}", "mode": "w"},
    "pathlib.Path.write_text": {"self": "{marker}", "data": ""},
    "evilpkg.Net": {},
    "torch.load": {"f": "{evil}", "weights_only": False},
    "torch.save": {"obj": 1, "f": "{marker}"},
    "torch.hub.load": {"repo_or_dir": "{folder}", "model": "net", "source": "local"},
    "torchvision.datasets.utils.os.system": {"command": "touch {marker}"},
    "torch.nn.functional.importlib.import_module": {"name": "evilpkg"},
    "tinyexp.files.write_text": {"path": "{marker}", "text": ""},
    "tinyexp.data.idx.Path.touch": {"self": "{marker}"},
}


@pytest.fixture
def evil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A marker that must not appear, and what would make it: a pickle, a hub's folder, and a module on the path."""
    marker = tmp_path / "marker"
    for name in ("hubconf.py", "evilpkg.py"):
        (tmp_path / name).write_text(f"open({str(marker)!r}, 'w')\nnet = Net = dict\n")
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Evil(marker)))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "evilpkg", raising=False)
    return {"marker": str(marker), "evil": str(tmp_path / "evil.pt"), "folder": str(tmp_path)}


def component(slot: str, name: str, evil: dict[str, str]) -> dict[str, Any]:
    """What a config would have to hold in a slot for this evil to happen."""
    arguments = EVIL_TARGETS[name].items()
    filled = {key: value.format(**evil) if isinstance(value, str) else value for key, value in arguments}
    shown = {"mean": [0.5], "std": [0.5], "image_size": 28}
    return {"_target_": name, **filled, **(shown if slot == "dataset" else {})}


@pytest.mark.parametrize(
    ("name", "slot"), [*zip(EVIL_TARGETS, itertools.cycle(SLOTS))]
)  # each in each: test_targets.py
def test_config_of_a_run_names_no_evil(
    finished: Path, evil: dict[str, str], slot: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = yaml.safe_load((finished / "config.yaml").read_text())
    told = {**config, slot: component(slot, name, evil), "trust": ["*"]}  # whatever it says of itself
    (finished / "config.yaml").write_text(yaml.safe_dump(told))
    assert main([f"resume={finished}", "train.epochs=3"]) == 2
    error = capsys.readouterr().err
    assert f"{slot}._target_={name}" in error
    assert f"trust=[{name}]" in error or "must be" in error
    assert not Path(evil["marker"]).exists()


@pytest.mark.parametrize(("name", "slot"), [*zip(EVIL_TARGETS, itertools.cycle(["model", "dataset"]))])
def test_config_of_a_checkpoint_names_no_evil(
    finished: Path, evil: dict[str, str], slot: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = finished / "checkpoints/best.pt"
    content = load(path)
    told = {**content["config"], slot: component(slot, name, evil), "trust": ["*"]}
    torch.save({**content, "config": told}, path)
    assert main(["eval", str(path)]) == 2
    assert f"{slot}._target_={name}" in capsys.readouterr().err
    assert not Path(evil["marker"]).exists()


def test_the_evil_would_work(evil: dict[str, str]) -> None:
    """Named on the command line it is the user's own word, and runs: the tests above test something."""
    main(
        [
            "model._target_=os.system",
            f"+model.command='touch {evil['marker']}'",
            "~model.dropout",
            "train.epochs=1",
            f"run.dir={evil['folder']}/run",
        ]
    )
    assert Path(evil["marker"]).exists()


@pytest.mark.parametrize(
    ("slot", "values"),
    [
        ("model", {"dropout": "${oc.env:HOME}"}),
        ("optim", {"betas": ["${oc.env:HOME}", 0.9]}),
        ("dataset", {"root": {"a": ["x", {"b": "${oc.env:HOME}"}]}}),
        ("run", {"name": "${now:%Y}"}),
    ],
)
def test_interpolation_is_not_evaluated(
    finished: Path, slot: str, values: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    config = yaml.safe_load((finished / "config.yaml").read_text())
    config[slot] |= values
    (finished / "config.yaml").write_text(yaml.safe_dump(config))
    assert main([f"resume={finished}"]) == 2
    error = capsys.readouterr().err
    assert "no interpolation" in error
    assert os.environ["HOME"] not in error.replace(str(finished), "")


def test_yaml_makes_no_objects(finished: Path, evil: dict[str, str]) -> None:
    with (finished / "config.yaml").open("a") as file:
        file.write(f"evil: !!python/object/apply:os.system ['touch {evil['marker']}']\n")
    assert main([f"resume={finished}"]) == 2
    assert not Path(evil["marker"]).exists()


def plain(value: Any) -> Any:
    """A checkpoint as what pickle gives the same bytes for when it is the same."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value.numpy().tobytes() if isinstance(value, torch.Tensor) else repr(value)
