"""From the command line to a typed config: what is wrong is told in one message, before torch is imported."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import typing
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import PLAIN

from tinyexp.__main__ import main
from tinyexp.compose import compose, compose_run
from tinyexp.config import (
    AugmentConfig,
    CkptConfig,
    Config,
    EarlyStop,
    HwConfig,
    LoaderConfig,
    LogConfig,
    RunConfig,
    SweepConfig,
    TensorBoardConfig,
    TrainConfig,
    TransferConfig,
)
from tinyexp.errors import ConfigError
from tinyexp.keys import changed_keys, flatten
from tinyexp.overrides import CONF, choices
from tinyexp.parts import check_parts
from tinyexp.stored import recompose
from tinyexp.typed import parse

OWN: dict[str, tuple[type, dict[str, Any]]] = {  # each dataclass of ours, with values that are right
    "train": (TrainConfig, PLAIN.plain["train"]),
    "train.early_stop": (EarlyStop, PLAIN.plain["train"]["early_stop"]),
    "run": (RunConfig, PLAIN.plain["run"]),
    "log": (LogConfig, PLAIN.plain["log"]),
    "log.tensorboard": (TensorBoardConfig, PLAIN.plain["log"]["tensorboard"]),
    "ckpt": (CkptConfig, PLAIN.plain["ckpt"]),
    "sweep": (SweepConfig, PLAIN.plain["sweep"]),
    "transfer": (TransferConfig, PLAIN.plain["transfer"]),
    "hw": (HwConfig, PLAIN.plain["hw"]),
    "dataset.augment": (AugmentConfig, PLAIN.plain["dataset"]["augment"]),
    "dataset": (LoaderConfig, {f.name: PLAIN.plain["dataset"][f.name] for f in fields(LoaderConfig)}),
}


def stored(**changes: Any) -> dict[str, Any]:
    """A config as it is read back from a file; a change of None leaves the key out."""
    plain = json.loads(json.dumps(PLAIN.plain)) | changes
    return {key: value for key, value in plain.items() if value is not None or key not in changes}


# the command line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        # words that are no override
        (
            "foo",
            "foo is neither a verb nor key=value; valid: check, doctor, eval, export, predict, prepare, report, show, ",
        ),
        ("tarin", "tarin is neither a verb nor key=value; did you mean train?"),
        ("outputs/run", "outputs/run is neither a verb nor key=value"),
        ("train outputs/run", "outputs/run is neither a verb nor key=value"),
        ("train.epochs=2 eval", "the verb comes first: tinyexp eval ..."),
        ("--foo", "--foo is no option; did you mean --info?"),
        ("--hlep", "--hlep is no option; did you mean --help?"),
        ("-x train.epochs=2", "-x is no option"),
        ("eval", "eval takes one path, got 0: tinyexp eval RUN|CHECKPOINT "),
        ("eval a b", "eval takes one path, got 2"),
        ("show train.epochs=2", "show takes one path, got 0: tinyexp show RUN|FILE"),
        ("eval nowhere", "nowhere is not there: a run's directory (with checkpoints/best.pt) or a checkpoint"),
        ("show nowhere", "nowhere is not there"),
        ("train.epochs={", "'train.epochs={' is no override such as train.epochs=3"),
        # unknown keys and groups
        ("optim.lrr=0.1", "optim.lrr is no key; did you mean optim.lr?"),
        ("train.epoch=3", "train.epoch is no key; did you mean train.epochs?"),
        ("+train.epoch=3", "train.epoch is no key; did you mean train.epochs?"),
        ("epochs=3", "epochs is no key; did you mean train.epochs?"),
        ("modle=lenet5", "modle is no key; did you mean model?"),
        ("+foo=3", "foo is no key; valid: ckpt, config_file, dataset,"),
        ("train.epochs.x=3", "train.epochs.x is no key; did you mean train.epochs?"),
        ("train.early_stop.patient=3", "train.early_stop.patient is no key; did you mean train.early_stop.patience?"),
        ("model=torchvision model.name=resnet18 optim.lrr=1", "optim.lrr is no key; did you mean optim.lr?"),
        ("model=resnet18 model.dropout=0.1", "model.dropout is no key"),
        ("model=resnet18 model.nmae=resnet50", "model.nmae is no key; did you mean model.name?"),
        # unknown choices, and those that cannot be left out
        ("model=resnet19", "model=resnet19 is no choice; did you mean resnet18? (all: lenet5, lenet6, resnet18,"),
        ("dataset=cifar", "dataset=cifar is no choice"),
        ("experiment=fashion", "experiment=fashion is no choice; did you mean fashion_lenet5?"),
        ("hw=tpu", "hw=tpu is no choice; did you mean cpu? (all: auto, cpu, cuda, mps)"),
        ("model=null", "model=null"),
        ("~model", "model is missing"),
        ("=3", "'=3' is no override"),
        ("~experiment train.epochs=fast", "train.epochs must be an integer"),
        ("run.name=${nope}", "run.name cannot be resolved: Interpolation key 'nope' not found"),
        ("hw.threads=100000000", "hw.threads must be 1 to 1024, or null, got 100000000"),
        ("+scheduler.step_size=0 scheduler._target_=torch.optim.lr_scheduler.StepLR", "scheduler: torch.optim.lr_sch"),
        ("optim=sgd +optim.differentiable=true", "optim: torch.optim.SGD fails with these arguments: RuntimeError: "),
        ("+model.num_classes=-1", "model: tinyexp.models.lenet.LeNet5 does not take these arguments: "),
        ("~train", "train is missing"),
        ("~trust", "trust is missing"),
        ("~train.seed", "train.seed is missing"),
        ("~optim._target_", "optim._target_ must be the dotted name of a class or function, got None"),
        ("model=torchvision", "model.name must be given"),
        # wrong types and values
        ("train.epochs=fast", "train.epochs must be an integer, got 'fast'"),
        ("train.epochs=1.5", "train.epochs must be an integer, got 1.5"),
        ("train.epochs=", "train.epochs must be an integer, got ''"),
        ("train.epochs=1,2", "train.epochs=1,2 gives several values: `tinyexp -m ...` makes a run of each"),
        ("train=5", "train must be a mapping, got 5"),
        ("run=null", "run must be a mapping, got None"),
        ("train.early_stop=5", "train.early_stop must be a mapping, got 5"),
        ("dataset.mean=[a]", "dataset.mean[0] must be a number, got 'a'"),
        ("train.epochs=${train.nope}", "Interpolation key 'train.nope' not found"),
        ("model._target_=5", "model._target_ must be the dotted name of a class or function, got 5"),
        ("model._target_=.", "model._target_ must be the dotted name"),
        ("model._target_=mypkg..Net", "model._target_ must be the dotted name"),
        ("init_from=[a]", "init_from must be text or null, got ['a']"),
        ("trust=mypkg.*", "trust must be a list of names such as [mypkg.*], got 'mypkg.*'"),
        ("resume=nowhere", "resume=nowhere must be auto, a run's directory (with a config.yaml) or a checkpoint"),
        ("resume=nowhere/last.pt", "resume=nowhere/last.pt: there is no such checkpoint"),
        ("run.name=../../x", "run.name must be 1 to 100 letters, digits or ._-+ and not begin with a dot, got"),
    ],
)
def test_wrong_command_line(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words.split()) == 2
    out, err = capsys.readouterr()
    assert err.startswith("tinyexp: ")
    assert message in err
    assert "Traceback" not in err
    assert out == ""


@pytest.mark.parametrize("word", ["", "a b=c", "train.epochs=1 ]", "=", "~", "+", "train.epochs"])
def test_strange_word(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([word]) == 2
    assert re.match("tinyexp: .", capsys.readouterr().err)


@pytest.mark.parametrize("word", ["--help", "-h"])
def test_help_lists_every_choice(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", word]) == 0
    out = capsys.readouterr().out
    assert re.match(r"tinyexp eval RUN\|CHECKPOINT .*\[overrides\]\n", out)
    for group, names in choices().items():
        assert re.search(rf"^  {group}= +{re.escape(' | '.join(names))}$", out, re.MULTILINE)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*\n", capsys.readouterr().out)


def test_no_torch_before_the_config_is_right() -> None:
    """Composing takes a tenth of a second, and importing torch two."""
    code = """if True:
        import sys
        from tinyexp.__main__ import main
        from tinyexp.compose import compose
        assert main(["--help"]) == 0 and main(["optim.lrr=1"]) == 2
        compose(["model=resnet18"])
        assert not {"torch", "numpy", "torchvision"} & set(sys.modules)
    """
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


# values


def test_each_key_has_its_type() -> None:
    config = compose(["train.clip_norm=1", "dataset.mean=[0]", "train.early_stop.patience=3", "hw.threads=2"])
    for name, kind in (("train", TrainConfig), ("run", RunConfig), ("log", LogConfig), ("ckpt", CkptConfig)):
        assert type(getattr(config, name)) is kind
    assert repr(config.train.clip_norm) == "1.0"
    assert repr(config.loader.mean) == "(0.0,)"
    assert repr(config.train.early_stop) == "EarlyStop(patience=3, min_delta=0.0)"
    assert repr(config.hw.threads) == "2"
    assert config.model.arguments == {"dropout": 0.0}
    assert config.dataset.arguments == {}  # the loader's keys are not the data set's


def test_plain_and_text_are_the_whole_config() -> None:
    config = compose(["optim=sgd", "train.ema=0.9", "run.name=a+b"])
    assert json.loads(json.dumps(config.plain)) == config.plain
    assert yaml.safe_load(config.text) == config.plain
    assert compose([f"{key}={json.dumps(value)}" for key, value in flatten({"train": config.plain["train"]}).items()])
    assert recompose(yaml.safe_load(config.text), []).plain == config.plain


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], "digits-lenet5"),
        (["model=resnet18", "dataset=mnist"], "mnist-resnet18"),
        (["experiment=fashion_lenet5"], "fashion_lenet5"),
        (["run.name=mine"], "mine"),
    ],
)
def test_a_run_is_named_by_what_it_is(overrides: list[str], name: str) -> None:
    assert compose(overrides).run.name == name


def test_an_experiment_changes_groups_and_keys_and_gives_way_to_the_command_line() -> None:
    config = compose(["experiment=fashion_lenet5", "train.epochs=5", "optim=sgd"])
    assert (config.train.epochs, config.train.batch_size) == (5, 64)
    assert config.dataset.target == "tinyexp.data.idx.fashion_mnist"
    assert config.optim.target == "torch.optim.SGD"
    assert config.scheduler.arguments == {"cycles": 2.0, "warmup": 300}


def test_choices_are_the_files_there_are() -> None:
    listed = choices()
    assert set(listed) == {"dataset", "model", "optim", "scheduler", "transfer", "hw", "sweep", "experiment"}
    assert listed["optim"] == ["adam", "adamw", "sgd"]
    assert "_loader" not in listed["dataset"]


def test_each_number_has_one_home() -> None:
    """Every key of ours stands in conf/, and so has one default, in one place."""
    for group, (kind, values) in OWN.items():
        assert {field.name for field in fields(kind)} == set(values), group
        assert all(field.default is field.default_factory for field in fields(kind)), f"{group} has a default in Python"


@pytest.mark.parametrize("group", OWN)
def test_each_key_refuses_another_type(group: str) -> None:
    kind, values = OWN[group]
    hints = typing.get_type_hints(kind)
    for key in values:
        wrong: list[object] = [[[]], object()]
        wrong += [{1: 2}] if hints[key] == dict[str, Any] else [{"a": 1}]
        wrong += [] if hints[key] is bool else [True]
        wrong += [] if type(None) in typing.get_args(hints[key]) else [None]
        wrong += [] if str in (hints[key], *typing.get_args(hints[key])) else ["text"]
        for value in wrong:
            with pytest.raises(ConfigError, match=rf"{group}\.{key}"):
                parse(kind, {**values, key: value}, group)


@pytest.mark.parametrize(
    ("key", "good", "bad"),
    [
        ("train.epochs", [1, 10**6], [0, -1]),
        ("train.batch_size", [1, 4096], [0]),
        ("train.eval_batch_size", [1], [0]),
        ("train.accumulate", [1, 64], [0, 65]),  # of a batch of 64
        ("train.seed", [0, 2**63 - 1], [-1, 2**63]),
        ("train.precision", ["auto", "fp32", "bf16", "fp16"], ["fp8", "FP32", ""]),
        ("train.label_smoothing", [0, 0.99], [-0.1, 1, float("nan")]),
        ("train.clip_norm", [None, 1e-9, 5], [0, -1, float("nan")]),
        ("train.ema", [None, 0.001, 0.9999], [0, 1, 1.5, float("nan")]),
        ("train.limit_batches", [None, 1], [0, -1, 1.5]),
        ("train.max_time", [None, 0.1], [0, -1, float("nan")]),
        ("train.early_stop.patience", [None, 1], [0, -1]),
        ("train.early_stop.min_delta", [0, 0.1], [-0.1, float("nan")]),
        ("run.dir", [None, "a/b", "/a b"], ["", "a\nb", "a\0b"]),
        ("run.root", ["outputs"], ["", "a\nb"]),
        ("run.name", [None, "a", "a-b_c.d+e", "é", "a" * 100], ["", ".a", "..", "a/b", "../a", "/a", "a\\b"]),
        ("run.name", ["1"], ["a\nb", "a b", "a=b", "a,b", "a\0", "a" * 101, "$(id)", "a;b", "~", "*"]),
        ("log.level", ["debug", "error"], ["INFO", "loud"]),
        ("log.every", [1], [0, -5]),
        ("ckpt.every_minutes", [None, 0, 0.5], [-1, float("nan")]),
        ("ckpt.monitor", ["val/top1", "val/loss"], ["val/top5", "top1", "train/loss"]),
        ("ckpt.keep", [0, 3], [-1]),
        ("sweep.dir", [None, "a/b"], ["", "a\nb"]),
        ("sweep.on_error", ["continue", "stop"], ["ignore"]),
        ("sweep.at_epochs", [[], [1, 5, 10], [7]], [[0], [1, 1], 5, ["a"], [1.5], None]),
        ("sweep.grid", [{}, {"optim.lr": [1e-3, 1e-2], "train.seed": "range(3)"}], [[], "optim.lr=1,2", {1: 2}]),
        ("transfer.match", ["name", "order"], ["shape"]),
        ("transfer.rename", [{}, {"fc": "head"}], [{"fc": 1}]),
        ("transfer.head", ["auto", "fresh", "known"], ["old"]),
        ("transfer.freeze", ["none", "loaded", "backbone", ["conv*"]], ["head", "conv*"]),
        ("transfer.unfreeze_at", [None], [0, 1]),  # where nothing is frozen there is none
        ("transfer.backbone_lr_scale", [0.1, 2], [0, -1]),
        ("transfer.features", ["auto", "never"], ["always"]),
        ("transfer.views", [None], [0, 1]),
        ("hw.device", ["auto", "cpu", "cuda", "mps"], ["gpu", "cuda:0"]),
        ("hw.threads", [None, 1], [0, -1]),
        ("hw.timeout", [0.1, 10], [0, -1, float("nan")]),
        ("dataset.workers", [0, 2, "auto"], [-1, "all"]),
        ("dataset.image_size", [1, 500], [0]),
        ("dataset.resize", [None, 28, 32], [27]),
        ("dataset.decode_size", [None, "auto", 28], [27, "half"]),
        ("dataset.cache_dir", ["a/b"], ["", "a\nb"]),
        ("dataset.max_gb", [0, 0.5], [-1]),
        ("dataset.on_error", ["stop", "skip"], ["go"]),
        ("dataset.max_skipped", [0, 0.5], [1, -0.1]),
        ("dataset.normalize", ["given", "auto"], ["none"]),
        ("dataset.start_method", [None, "fork", "spawn", "forkserver"], ["thread"]),
        ("dataset.augment.crop", [None, "random_resized", "pad"], ["random"]),
        ("dataset.augment.scale", [[0.08, 1.0], [1, 1]], [[0, 1], [0.5, 0.4], [0.5, 1.1], [0.5]]),
        ("dataset.augment.ratio", [[0.5, 2]], [[0, 1], [2, 0.5], [1]]),
        ("dataset.augment.padding", [0, 4], [-1]),
        ("dataset.augment.flip", [0, 0.5, 1], [-0.1, 1.1]),
        ("dataset.augment.policy", [None, "randaugment", "trivialaugment"], ["autoaugment"]),
        ("dataset.augment.num_ops", [1], [0]),
        ("dataset.augment.magnitude", [0, 30], [-1, 31]),
        ("dataset.augment.jitter", [None, [0.4, 0.4, 0.4, 0.1]], [[0.4], [0.4, 0.4, 0.4, 0.6], [-1, 0, 0, 0]]),
        ("dataset.augment.erase", [0, 1], [-0.1, 1.1]),
        ("dataset.augment.mixup", [0, 0.2], [-1]),
        ("dataset.augment.cutmix", [0, 1], [-1]),
        ("dataset.mean", [[0.1], [-1]], [[], [0.1, 0.2], 0.1]),  # as many as std has
        ("dataset.std", [[0.1]], [[0], [-1], [float("nan")], [], [0.1, 0.2]]),
    ],
)
def test_bounds(key: str, good: list[object], bad: list[object]) -> None:
    group, _, name = key.rpartition(".")
    kind, values = OWN[group]
    for value in good:
        parse(kind, {**values, name: value}, group)
    for value in bad:
        with pytest.raises(ConfigError, match=rf"{group}\.{name}\b.* (must be|of one length)"):
            parse(kind, {**values, name: value}, group)


def test_each_number_must_be_finite() -> None:
    """Two bounds out of three let inf through; in a list too, whose key then has its index."""
    seen = []
    for group, (kind, values) in OWN.items():
        for name, hint in typing.get_type_hints(kind).items():
            number, several = float in (hint, *typing.get_args(hint)), typing.get_origin(hint) is tuple
            for value in (math.inf, -math.inf, math.nan, 10**400) if number else ():
                key = f"{group}.{name}[0]" if several else f"{group}.{name}"
                with pytest.raises(ConfigError, match=rf"^{re.escape(key)} must be a finite number, got {value}$"):
                    parse(kind, {**values, name: [value] if several else value}, group)
                seen.append(key)
    assert {"hw.timeout", "train.max_time", "dataset.mean[0]", "dataset.std[0]", "ckpt.every_minutes"} < set(seen)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epochs=0", "train.epochs must be at least 1, got 0"),
        ("train.seed=-1", "train.seed must be at least 0 and below 2**63, got -1"),
        ("train.label_smoothing=1", "train.label_smoothing must be in [0, 1), got 1.0"),
        ("train.max_time=0", "train.max_time must be above 0, or null, got 0.0"),
        ("train.ema=1", "train.ema must be between 0 and 1, or null, got 1.0"),
        ("train.accumulate=65", "train.accumulate must be at most train.batch_size, got 65"),
        ("train.limit_batches=a", "train.limit_batches must be an integer or null, got 'a'"),
        ("train.precision=fp8", "train.precision must be auto | fp32 | bf16 | fp16, got 'fp8'"),
        ("run.dir=''", "run.dir must be a path of printable characters, got ''"),
        ("log.every=0", "log.every must be at least 1 step, got 0"),
        ("ckpt.every_minutes=-1", "ckpt.every_minutes must be at least 0, or null, got -1.0"),
        ("hw.timeout=0", "hw.timeout must be above 0 seconds, got 0.0"),
        ("hw.timeout=inf", "hw.timeout must be a finite number, got inf"),
        ("dataset.augment.padding=-1", "dataset.augment.padding must be at least 0 px, got -1"),
        ("dataset.std=[0]", "dataset.std must be above 0 for each channel, got (0.0,)"),
        ("dataset.std=0", "dataset.std must be a list of numbers, got 0"),
        ("dataset.std=[1,1]", "dataset.mean and dataset.std must be of one length, got ((0.3056,), (1.0, 1.0))"),
        ("sweep.grid=5", "sweep.grid must be a mapping, got 5"),
        ("config_file=5", "config_file must be text or null, got 5"),
    ],
)
def test_a_wrong_value_is_told_with_its_rule(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        compose([override])


# a config that is read back


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("train.epochs=7", "train.epochs", 7),
        ("train.early_stop.patience=7", "train.early_stop.patience", 7),
        ("optim.lr=0.5", "optim.lr", 0.5),
        ("+optim.nesterov=true", "optim.nesterov", True),
        ("++optim.lr=0.5", "optim.lr", 0.5),
        ("model=lenet6", "model._target_", "tinyexp.models.lenet.LeNet6"),
        ("hw=cuda", "hw.device", "cuda"),
        ("trust=[mypkg.*]", "trust", ["mypkg.*"]),
    ],
)
def test_recompose_takes_overrides(override: str, key: str, value: object) -> None:
    before, after = flatten(PLAIN.plain), flatten(recompose(stored(), [override]).plain)
    assert after[key] == value
    changed = {name for name in {**before, **after} if before.get(name) != after.get(name)}
    assert changed == {key}


def test_recompose_replaces_a_whole_group_and_takes_keys_away() -> None:
    again, direct = recompose(stored(), ["optim=sgd"]).optim, compose(["optim=sgd"]).optim
    assert (again.target, again.arguments) == (direct.target, direct.arguments)
    assert "eps" not in recompose(stored(), ["~optim.eps"]).optim.arguments


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lrr=1", "optim.lrr is no key; did you mean optim.lr?"),
        ("foo=1", "foo is no key"),
        ("+foo=1", "foo is no key"),
        ("+train.foo=1", "train.foo is no key"),
        ("~optim.foo", "optim.foo is no key"),
        ("~train", "train is missing"),
        ("~train.seed", "train.seed is missing"),
        ("~model", "model is missing"),
        ("model=resnet19", "model=resnet19 is no choice; did you mean resnet18?"),
        ("model=null", "model=null"),
        ("model=torchvision", "model.name must be given"),
        ("experiment=fashion_lenet5", "experiment= makes a whole config, and this one is read back"),
        ("train.seed=1,2", "train.seed=1,2 gives several values, and one is needed"),
        ("train.seed=x", "train.seed must be an integer, got 'x'"),
        ("train.seed.x=1", "train.seed.x is no key"),
        ("trust.x=1", "trust.x"),
        ("train=5", "train must be a mapping, got 5"),
        ("train.seed={", "'train.seed={' is no override"),
    ],
)
def test_recompose_refuses(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        recompose(stored(), [override])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"foo": 1}, "foo is no key"),
        ({"optim": None}, "optim is missing in a config that is read back: it is not whole"),
        ({"train": 5}, "train must be a mapping, got 5"),
        ({"train": []}, "train must be a mapping"),
        ({"train": {"epochz": 1}}, "train.epochz is no key; did you mean train.epochs?"),
        ({"train": {"early_stop": 1}}, "train.early_stop must be a mapping"),
        ({"dataset": "digits"}, "dataset must be a mapping, got 'digits'"),
        ({"model": "lenet5"}, "model must be a mapping, got 'lenet5'"),
        ({"model": {"dropout": 0.0}}, "model._target_ must be the dotted name"),
        ({"model": {"_target_": "???"}}, "model._target_ must be given"),
        ({"trust": "${oc.env:HOME}"}, "trust='${oc.env:HOME}' in a config that is read back"),
        ({"optim": {"lr": "${oc.env:HOME}"}}, "it may hold values only, no interpolation"),
        ({"optim": {"betas": ["${oc.env:HOME}", 0.9]}}, "it may hold values only, no interpolation"),
        ({"optim": {"a": {"b": [{"c": "${oc.env:HOME}"}]}}}, "it may hold values only, no interpolation"),
    ],
)
def test_recompose_refuses_what_is_stored(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        recompose(stored(**changes), [])


def test_what_an_older_version_had_not_is_filled_from_conf() -> None:
    older = stored(ckpt=None, init_from=None)
    del older["train"]["ema"], older["train"]["early_stop"]["min_delta"], older["dataset"]["augment"]["crop"]
    assert recompose(older, []).plain == PLAIN.plain


def test_only_the_command_line_is_trusted() -> None:
    def trusted(config: Config) -> list[str]:
        return [slot for slot in ("dataset", "model", "optim", "scheduler") if getattr(config, slot).trusted]

    assert trusted(PLAIN) == ["dataset", "model", "optim", "scheduler"]
    assert trusted(recompose(stored(), ["model.dropout=0.5", "train.epochs=3"])) == []
    assert trusted(recompose(stored(), ["model._target_=mypkg.Net"])) == ["model"]
    assert trusted(recompose(stored(), ["optim=sgd"])) == ["optim"]
    assert recompose(stored(trust=["*"]), []).trust == ()  # a file does not vouch for itself
    assert recompose(stored(trust=["*"]), ["trust=[mypkg.*]"]).trust == ("mypkg.*",)


# a run that is resumed


@pytest.fixture
def old_run(tmp_path: Path) -> Path:
    """A run's directory as far as its config: no checkpoint yet."""
    config = compose([f"run.dir={tmp_path}/run", "train.epochs=9", "init_from=elsewhere"])
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(config.text)
    return tmp_path / "run"


def test_resume_reads_the_runs_own_config(old_run: Path) -> None:
    config = compose_run([f"resume={old_run}", "train.epochs=12", "hw=cpu"])
    assert (config.train.epochs, config.hw.device) == (12, "cpu")
    assert (config.run.dir, config.init_from) == (str(old_run), "elsewhere")


def test_resume_finds_a_run_that_was_moved(old_run: Path) -> None:
    moved = old_run.rename(old_run.with_name("moved"))
    assert compose_run([f"resume={moved}"]).run.dir == str(moved)


def test_resume_stays_in_the_runs_own_directory(old_run: Path) -> None:
    assert compose_run([f"resume={old_run}", f"run.dir={old_run}"]).run.dir == str(old_run)
    with pytest.raises(ConfigError, match=r"goes on in that run's own directory: leave run\.dir out"):
        compose_run([f"resume={old_run}", f"run.dir={old_run}-2"])


def test_resume_takes_a_checkpoint_of_the_run(old_run: Path) -> None:
    (old_run / "checkpoints").mkdir()
    (old_run / "checkpoints" / "epoch-0003.pt").touch()
    config = compose_run([f"resume={old_run}/checkpoints/epoch-0003.pt"])
    assert config.run.dir == str(old_run)
    assert config.train.epochs == 9


def test_resume_auto_begins_where_there_is_nothing(tmp_path: Path) -> None:
    assert compose_run([f"run.dir={tmp_path}/new", "resume=auto", "train.epochs=3"]).train.epochs == 3


def test_resume_auto_goes_on_under_the_same_config(old_run: Path) -> None:
    words = [f"run.dir={old_run}", "resume=auto", "init_from=elsewhere"]
    assert compose_run([*words, "train.epochs=11"]).train.epochs == 11
    with pytest.raises(ConfigError, match=r"a resumed run keeps its config, but train.seed would change .*init_from"):
        compose_run([*words, "train.seed=1"])


def test_what_a_resumed_run_may_change(old_run: Path) -> None:
    limits = ["train.epochs=20", "train.max_time=5", "hw=cpu", "hw.threads=1", "ckpt.keep=3"]
    outside = ["log.every=1", "log.tensorboard.scalars=false", "dataset.workers=2", "dataset.start_method=spawn"]
    outside += ["sweep.dir=x", "+sweep.grid.a=[1]"]
    compose_run([f"resume={old_run}", *limits, *outside, "+dataset.root=x", "run.name=other", "trust=[mypkg.*]"])


def test_what_a_resumed_run_may_not_change(old_run: Path) -> None:
    components = ["optim.lr=0.5", "+optim.amsgrad=true", "~optim.eps", "model=lenet6"]
    values = [
        "train.seed=1",
        "train.early_stop.patience=3",
        "dataset.mean=[0.5]",
        "dataset.augment.flip=0.5",
        "init_from=null",
    ]
    with pytest.raises(ConfigError, match=rf"would change from {old_run}/config.yaml") as error:
        compose_run([f"resume={old_run}", "train.epochs=20", *components, *values])
    keys = "optim.lr optim.amsgrad optim.eps model._target_ train.seed train.early_stop.patience dataset.mean"
    told = re.findall(r"[a-z_]+(?:\.[a-z_]+)+|init_from", str(error.value).partition("but ")[2].partition(" would")[0])
    assert sorted(told) == sorted([*keys.split(), "dataset.augment.flip", "init_from"])


def test_a_run_of_an_older_version_can_be_resumed(old_run: Path) -> None:
    plain = yaml.safe_load((old_run / "config.yaml").read_text())
    del plain["train"]["label_smoothing"], plain["dataset"]["normalize"]
    (old_run / "config.yaml").write_text(yaml.safe_dump(plain))
    assert compose_run([f"resume={old_run}"]).train.label_smoothing == 0
    with pytest.raises(ConfigError, match=r"but train.label_smoothing would change"):
        compose_run([f"resume={old_run}", "train.label_smoothing=0.1"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"train: [1\n", "config.yaml is no YAML"),
        (b"\xff\xfe\x00", "config.yaml is no YAML"),
        (b"", "config.yaml must hold a mapping of keys to values, got nothing"),
        (b"- 1\n- 2\n", "config.yaml must hold a mapping of keys to values, got list"),
        (b"train: {epochs: !!python/object/apply:os.getcwd []}\n", "config.yaml is no YAML"),
    ],
)
def test_a_damaged_config_is_told(old_run: Path, content: bytes, message: str) -> None:
    (old_run / "config.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        compose_run([f"resume={old_run}"])


def test_a_key_that_the_run_had_not_does_not_come_back_with_another_class(tmp_path: Path) -> None:
    """What AdamW's YAML leaves over for SGD is dropped, and what SGD takes of it was not in the run."""
    words = ["optim._target_=torch.optim.SGD", f"run.dir={tmp_path}/run"]
    config = check_parts(compose([*words, "~optim.weight_decay"]))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(config.text)
    again = compose_run([*words, "~optim.weight_decay", "resume=auto"])
    assert check_parts(again).plain["optim"] == config.plain["optim"]
    with pytest.raises(ConfigError, match=r"a resumed run keeps its config, but optim.weight_decay would change"):
        check_parts(compose_run([*words, "resume=auto"]))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", '{"train": {"epochs": 3}, "train": {"seed": 1}}', "a key comes twice among train, train"),
        ("a.yaml", "train: {epochs: 3}\ntrain: {seed: 1}\n", "train comes twice (line 1)"),
        ("a.yaml", "run: {name: 2020-01-01}", "run.name=2020-01-01 is a date: a text is put in quotes"),
        ("a.yaml", "optim: {3: 1}", "3 below optim is no name of a key"),
        ("a.json", '{"optim..lr": 1}', "'optim..lr' below the top is no name of a key"),
        ("a.json", '{"optim": ' + '{"a": ' * 40 + "1" + "}" * 41, "it is nested deeper than 30"),
        ("a.yaml", "a: " + "[" * 40 + "]" * 40, "it is nested deeper than 30"),
        ("a.json", "{\n\t'a': 1}", "a.json is no JSON of plain values"),
    ],
)
def test_a_file_of_other_than_plain_values_is_told(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=re.escape(message)):
        compose([f"config_file={tmp_path}/{name}"])


def test_a_number_without_a_dot_is_a_number_in_a_file_too(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("optim: {lr: 1e-3}\n")
    assert compose([f"config_file={tmp_path}/a.yaml"]).optim.arguments["lr"] == 1e-3
    (tmp_path / "a.json").write_text('{\n\t"optim": {"lr": 1e-3}\n}')
    assert compose([f"config_file={tmp_path}/a.json"]).optim.arguments["lr"] == 1e-3


def test_changed_keys() -> None:
    before = {"a": {"b": 1, "c": [1, 2]}, "train": {"epochs": 1}, "hw": {"device": "cpu"}, "d": {}}
    now = {"a": {"b": 2, "c": [1, 3]}, "train": {"epochs": 2}, "hw": {"device": "cuda"}, "e": None}
    assert sorted(changed_keys(before, now)) == ["a.b", "a.c", "d", "e"]
    assert changed_keys(before, before) == []


def test_conf_is_the_checkouts() -> None:
    assert Path(__file__).parent.parent / "conf" == CONF
