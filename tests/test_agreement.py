"""Whatever must be the same on all ranks is compared, by its own name, and what differs is told with its cure."""

from __future__ import annotations

import importlib
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
from helpers import component

from tinyexp import agreement
from tinyexp.agreement import describe, difference
from tinyexp.compose import compose
from tinyexp.config import Config, SweepConfig
from tinyexp.keys import flatten

WORDS = ("hw=cpu", "dataset=imagefolder", "dataset.root=here")  # all keys of a machine's own are there
CONFIG = compose(list(WORDS))
OF_EACH_MACHINE = {  # every key that may differ, by its whole name
    "config_file",
    "dataset.archive",
    "dataset.cache_dir",
    "dataset.max_gb",
    "dataset.preview",
    "dataset.root",
    "dataset.start_method",
    "dataset.workers",
    "hw.device",
    "hw.join_timeout",
    "hw.master",
    "hw.max_restarts",
    "hw.node",
    "hw.procs",
    "hw.threads",
    "init_from",
    "log.level",
    "log.tensorboard.confusion",
    "log.tensorboard.feature_maps",
    "log.tensorboard.filters",
    "log.tensorboard.graph",
    "log.tensorboard.groups",
    "log.tensorboard.histograms",
    "log.tensorboard.hparams",
    "log.tensorboard.inputs",
    "log.tensorboard.lr",
    "log.tensorboard.mistakes",
    "log.tensorboard.per_class",
    "log.tensorboard.predictions",
    "log.tensorboard.projector",
    "log.tensorboard.scalars",
    "log.tensorboard.text",
    "model.weights",
    "resume",
    "run.dir",
    "run.name",
    "run.root",
    *(f"sweep.{field.name}" for field in fields(SweepConfig)),
    "trust",
}
RANKS = ["rank 0 on here", "rank 1 on there"]


def described(config: Config = CONFIG, data: str = "data", device: str = "cpu") -> dict[str, str]:
    return describe(config, data, device)


def with_value(key: str, value: object) -> Config:
    """CONFIG, where this key of its plain values is another."""

    def changed(values: dict[str, object], rest: str) -> dict[str, object]:
        head, _, tail = rest.partition(".")
        inner = values[head]
        return {**values, head: changed(inner, tail) if tail and isinstance(inner, dict) else value}

    return replace(CONFIG, plain=changed(CONFIG.plain, key))


def test_two_equal_configs_are_described_alike() -> None:
    assert described(compose(list(WORDS))) == described()
    assert difference(RANKS, [described(), described()]) is None


@pytest.mark.parametrize("key", sorted(flatten(CONFIG.plain)))
def test_each_key_is_compared_or_is_a_machines_own(key: str) -> None:
    assert flatten(with_value(key, "another").plain)[key] == "another"
    told = difference(RANKS, [described(), described(with_value(key, "another"))])
    if key in OF_EACH_MACHINE:
        assert told is None
    else:
        assert told == (
            f"{key} is {flatten(CONFIG.plain)[key]} on rank 0 on here and another on rank 1 on there: "
            "give each machine the same words"
        )


def test_each_machines_own_key_is_there() -> None:
    assert flatten(CONFIG.plain).keys() >= OF_EACH_MACHINE


def test_a_key_that_one_of_them_lacks() -> None:
    more = described(compose([*WORDS, "+optim.amsgrad=true"]))
    there = "optim.amsgrad is not there on rank 0 on here and True on rank 1 on there: give each machine the same words"
    assert difference(RANKS, [described(), more]) == there
    assert "is True on rank 0 on here and not there on rank 1" in str(difference(RANKS, [more, described()]))


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("the data", {"data": "other"}),
        ("the device", {"device": "cuda"}),
    ],
)
def test_data_and_device(name: str, other: dict[str, str]) -> None:
    told = difference(RANKS, [described(), described(**other)])
    assert told is not None
    assert told.startswith(f"{name} is ")
    assert told.endswith(": make them the same on each machine")


@pytest.mark.parametrize("package", ["torch", "torchvision", "numpy", "pillow"])
def test_versions_of_libraries(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    here, original = described(), agreement.metadata.version
    monkeypatch.setattr(agreement.metadata, "version", lambda name: "0.1" if name == package else original(name))
    told = difference(RANKS, [here, described()])
    assert told == (
        f"the version of {package} is {original(package)} on rank 0 on here and 0.1 on rank 1 on there: "
        "make them the same on each machine"
    )


def test_version_of_python_without_its_patch_level(monkeypatch: pytest.MonkeyPatch) -> None:
    here = described()
    major, minor, _ = agreement.platform.python_version_tuple()
    monkeypatch.setattr(agreement.platform, "python_version_tuple", lambda: (major, minor, "99"))
    assert described() == here
    monkeypatch.setattr(agreement.platform, "python_version_tuple", lambda: (major, "99", "0"))
    assert str(difference(RANKS, [here, described()])).startswith("the version of Python is ")


def test_the_first_rank_that_differs_is_named_and_how_many_more_there_are() -> None:
    other = described(with_value("train.seed", 8)) | {"the device": "cuda"}
    told = difference(["a", "b", "c", "d"], [described(), described(), other, described(data="x")])
    assert told == "train.seed is 0 on a and 8 on c (and 1 more): give each machine the same words"


def test_the_programs_own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    for name in ("agreement.py", "data/more.py"):
        (tmp_path / name).write_text("one")
    monkeypatch.setattr(agreement, "__file__", str(tmp_path / "agreement.py"))
    before = described()
    assert described() == before
    (tmp_path / "data/more.py").write_text("two")
    assert str(difference(RANKS, [before, described()])).startswith("tinyexp's code is ")
    (tmp_path / "data/more.py").write_text("one")
    assert described() == before
    (tmp_path / "data/more.py").rename(tmp_path / "data/other.py")
    assert described() != before


def test_the_users_own_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "own_models_of_agreement.py"
    file.write_text("class Net: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("own_models_of_agreement")
    config = replace(CONFIG, model=component("model", "own_models_of_agreement.Net"))
    try:
        before = described(config)
        assert "the code of model" not in described()
        assert set(before) - set(described()) == {"the code of model"}
        file.write_text("class Net: ... # another\n")
        told = difference(RANKS, [before, described(config)])
        assert told is not None
        assert told.startswith("the code of model is ")
    finally:
        del sys.modules["own_models_of_agreement"]
