"""The command line is strict, and so is a file under it: what is wrong is told by its name, its rule, the nearest."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import PLAIN

from tinyexp.__main__ import main
from tinyexp.compose import compose, compose_run
from tinyexp.config import SLOTS, Config, LoaderConfig
from tinyexp.errors import ConfigError
from tinyexp.keys import flatten
from tinyexp.overrides import CONF, choices
from tinyexp.parts import check_parts
from tinyexp.stored import recompose
from tinyexp.words import Words, split, usages

KEYS = flatten(PLAIN.plain)
TOLD_BY_CLASSES = [key for key in KEYS if key.split(".")[0] in SLOTS]  # by the signature: what the YAML lists and more
TOLD_AT_ONCE = [key for key in KEYS if key not in TOLD_BY_CLASSES]
NOT_FROM_A_FILE = ("run.root", "run.dir", "sweep.dir", "sweep.on_error", "sweep.grid", "resume", "config_file", "trust")
SPANS_AND_NUMBERS = ("scheduler.warmup", "ckpt.every_minutes", "hw.timeout")  # whose default is a whole number
SCRIPT = Path(sys.executable).with_name("tinyexp")

USER_NET = """
from pathlib import Path
from torch import nn

Path(__file__).with_name("imported").touch()

class Net(nn.Module):
    def __init__(self, *, num_classes, width=4, rate=0.5):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(400, width), nn.ReLU(), nn.Linear(width, num_classes))

    def forward(self, images):
        return self.layers(images)
"""


def typos(key: str) -> list[str]:
    """The key with one letter of its last part doubled, dropped or swapped, each but those that are keys, too."""
    before, dot, name = key.rpartition(".")
    doubled = [name[:i] + name[i] + name[i:] for i in range(len(name))]
    dropped = [name[:i] + name[i + 1 :] for i in range(len(name))]
    swapped = [name[:i] + name[i + 1] + name[i] + name[i + 2 :] for i in range(len(name) - 1) if len(name) > 2]
    return [wrong for each in (*doubled, *dropped, *swapped) if (wrong := before + dot + each) not in KEYS]


def some_typos(keys: list[str], count: int) -> Iterator[tuple[str, str]]:
    """So many of each key's, the same each time: (wrong, right)."""
    draw = random.Random(0)
    for key in keys:
        if key == "hw.nodes":  # hw.node is as near to some of its typos
            continue
        for wrong in draw.sample(typos(key), count):
            yield wrong, key


def write(path: Path, values: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(values if isinstance(values, str) else json.dumps(values))
    return path


def refusal(*words: str) -> str:
    with pytest.raises(ConfigError) as error:
        check_parts(compose(words))
    return str(error.value)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture
def user_net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The mark that a module `ournet` makes when it is imported; the class Net in it takes 20x20 px."""
    write(tmp_path / "code" / "ournet.py", USER_NET)
    monkeypatch.syspath_prepend(tmp_path / "code")
    monkeypatch.delitem(sys.modules, "ournet", raising=False)
    return tmp_path / "code" / "imported"


# every key, one letter wrong


def test_each_typo_of_our_keys_in_a_file_is_told_with_the_nearest() -> None:
    keys = [key for key in TOLD_AT_ONCE if not key.startswith("sweep.")]
    for wrong, right in some_typos(keys, 2):
        path = write(Path("params.json"), {wrong: 1})
        assert refusal(f"config_file={path}").startswith(f"{wrong} is no key; did you mean {right}?")


def test_each_typo_of_a_classes_keywords_in_a_file_is_told_with_the_nearest() -> None:
    keys = [key for key in TOLD_BY_CLASSES if not is_loaders(key) and not key.endswith("_target_")]
    for wrong, right in some_typos(keys, 2):
        target = KEYS[f"{wrong.split('.')[0]}._target_"]
        path = write(Path("params.json"), {wrong: 1})
        told = refusal(f"config_file={path}")
        assert told == f"{wrong} is no argument of {target}; did you mean {right}? (in {path})"


def is_loaders(key: str) -> bool:
    return key.removeprefix("dataset.").split(".")[0] in LoaderConfig.__dataclass_fields__


@pytest.mark.parametrize("wrong", ["dataset.wrokers", "dataset.augmnt", "dataset.maen", "optim._taget_"])
def test_a_typo_of_a_key_that_no_signature_has_is_told_with_the_nearest(wrong: str) -> None:
    assert "; did you mean " in refusal(f"+{wrong}=1")


def test_each_typo_on_the_command_line_is_told_with_the_nearest() -> None:
    for wrong, right in list(some_typos(list(KEYS), 1))[::3]:
        assert refusal(f"{wrong}=1").startswith(f"{wrong} is no key; did you mean {right}?")
    for wrong, right in list(some_typos(TOLD_AT_ONCE, 1))[::4]:
        assert refusal(f"+{wrong}=1") == f"{wrong} is no key; did you mean {right}?"


def test_each_typo_over_a_config_that_is_read_back_is_told_with_the_nearest() -> None:
    stored = {**PLAIN.plain}
    for wrong, right in some_typos(list(KEYS), 1):
        with pytest.raises(ConfigError, match=rf"^{wrong} is no key; did you mean {right}\?"):
            recompose(stored, [f"{wrong}=1"])
    for wrong, right in list(some_typos(TOLD_AT_ONCE, 2))[1::6]:
        with pytest.raises(ConfigError, match=rf"^{wrong} is no key; did you mean {right}\?$"):
            recompose(stored, [f"+{wrong}=1"])


def test_a_typo_in_an_experiment_is_told_with_the_nearest() -> None:
    ours = [key for key in TOLD_AT_ONCE if "." in key]
    classes = [key for key in TOLD_BY_CLASSES if not is_loaders(key) and not key.endswith("_target_")]
    for wrong, right in [*list(some_typos(ours, 1))[::4], *list(some_typos(classes, 1))[::3]]:
        group, _, name = wrong.partition(".")
        values: dict[str, Any] = {group: {name: 1}}
        if "." in name:
            outer, inner = name.split(".")
            values = {group: {outer: {inner: 1}}}
        write(Path("more/experiment/mine.yaml"), f"# @package _global_\n{yaml.safe_dump(values)}")
        words = split(["--config-dir", "more", "experiment=mine"], usages()).overrides
        told = refusal(*words)
        assert re.match(rf"{wrong} is no (key|argument of \S+); did you mean {right}\?", told)
        assert told.endswith("(in experiment=mine)")


def test_a_keyword_of_a_network_by_name_is_told_with_its_key() -> None:
    told = refusal("model=torchvision", "model.nmae=resnet18")
    assert told.startswith("model.nmae is no key; did you mean model.name?")
    compose(["model=torchvision", "model.name=resnet18", "+model.zero_init_residual=true"])  # which ResNet does take


def test_a_wrong_keyword_of_a_network_by_name_is_told() -> None:
    told = refusal("model=resnet18", "+model.zero_init_residul=true")
    assert "model.zero_init_residul is no argument of resnet18" in told
    assert "did you mean model.zero_init_residual?" in told


# every value, of another type


def may_be(key: str, value: object) -> bool:
    """Is the value of the type of the key's default, as far as that tells?"""
    right = KEYS[key]
    of_class = key.partition(".")[0] in SLOTS and not is_loaders(key)
    if value is None:
        return of_class or right is None or key in ("run.name", "ckpt.every_minutes", "dataset.decode_size")
    if (key == "dataset.workers" and type(value) is int) or (key == "transfer.freeze" and type(value) is list):
        return True
    if type(right) is dict and type(value) is dict:
        return True
    if type(value) in (list, dict):
        return isinstance(right, list) and isinstance(value, dict)  # see BROKEN
    if right is None:
        return type(value) is not bool
    number = (
        type(right) is float
        or key in (*SPANS_AND_NUMBERS, "hw.timeout", "hw.join_timeout")
        or (of_class and type(right) is int)
    )
    kinds = (float, int) if number else (type(right),)
    return type(value) in kinds


def test_a_value_of_another_type_is_told_by_its_key() -> None:
    told = 0
    for position, key in enumerate(key for key in KEYS if key not in NOT_FROM_A_FILE):
        wrong = [value for value in (True, 0.5, 7, "text", ["a"], {"a": 1}, None) if not may_be(key, value)]
        for value in (wrong * 2)[position % len(wrong) :][:3]:
            path = write(Path("params.json"), {key: value})
            rule = rf"^{re.escape(key)}(\[0\])* must be .*, got "
            with pytest.raises(ConfigError, match=rule) as error:
                compose([f"config_file={path}"])
            assert str(error.value).endswith("(in params.json)") or key.startswith("run.") or type(value) is dict
            told += 1
    assert told > 120


def test_a_whole_number_is_a_number_and_a_span_is_any_of_three() -> None:
    numbers = [key for key, value in KEYS.items() if type(value) is float]
    assert len(numbers) >= 6
    values = {key: 1 if key == "transfer.backbone_lr_scale" else 0 for key in numbers}
    compose([f"config_file={write(Path('params.json'), values)}"])
    for value in (3, 0.3, "2ep", "0.5ep"):
        path = write(Path("params.json"), {"scheduler.warmup": value})
        assert check_parts(compose([f"config_file={path}"])).scheduler.arguments["warmup"] == value
    for text in ("2eps", "ep", "-1ep", "2 ep", "3"):
        path = write(Path("params.json"), {"scheduler.warmup": text})
        assert "scheduler.warmup must be a number of steps, or of epochs as 2ep" in refusal(f"config_file={path}")


@pytest.mark.parametrize("group", ["train", "run", "log", "ckpt", "hw", *SLOTS])
def test_a_group_that_is_no_mapping_is_told(group: str) -> None:
    values = [["a"], 5, True] if group not in SLOTS else [["a"]]
    for value in values:
        path = write(Path("params.json"), {group: value})
        assert refusal(f"config_file={path}").startswith(f"{group} must be a mapping, got ")


BROKEN: list[dict[str, Any]] = [{"optim": {"betas": {"a": 1}}}, {"train": {"early_stop": [1]}}, {"model": 3}]


@pytest.mark.parametrize("values", BROKEN)
def test_another_shape_in_a_file_is_told(values: dict[str, Any]) -> None:
    assert main([f"config_file={write(Path('params.json'), values)}"]) == 2


@pytest.mark.parametrize(
    "word", ["optim.betas={a:1}", "trust={a:1}", "sweep.grid=[1]", "train.early_stop=[1]", "hw=[1]"]
)
def test_another_shape_is_told_with_its_rule(word: str) -> None:
    assert refusal(word).startswith(f"{word.partition('=')[0]} must be ")


def test_too_few_numbers_are_told() -> None:
    assert main(["check", "optim.betas=[0.9]"]) == 2


# whole command lines, in one process that never needs torch

WRONG: dict[str, str] = {  # words -> a part of the message
    "--cfg": "--cfg needs a value after it",
    "--cfg=jobs": "--cfg must be one of job | hydra | all, got 'jobs'",
    "--cfg yaml train.epochs=1": "--cfg must be one of job | hydra | all, got 'yaml'",
    "--info=conf": "--info must be one of all | config | defaults",
    "--config-dir": "--config-dir needs a value after it",
    "--config-dir nowhere model=mine": "--config-dir nowhere is no folder: it holds groups as conf/ does",
    "--confg job": "--confg is no option; did you mean --cfg?",
    "--multi-run train.seed=1,2": "--multi-run is no option; did you mean --multirun?",
    "--by optim.lr": "--by is no option",
    "check --out x": "--out is no option",
    "-m eval x": "the verb comes first: tinyexp eval ...",
    "eval x -m": "-m is for training, eval is one thing at a time",
    "report": "report takes one path or more, got 0",
    "report nowhere train.epochs=3": "report takes no overrides but trust=[...], got train.epochs=3",
    "check sweep": "the verb comes first: tinyexp sweep ...",
    "sweep lr=1,2": "lr is no key",
    "sweep run.dir=x train.seed=1,2": "run.dir is for one run, and -m makes several: use sweep.dir",
    "sweep train.seed=1,a": "train.seed must be an integer, got 'a'",
    "sweep train.sede=1,2": "train.sede is no key; did you mean train.seed?",
    "sweep optim.lr=interval(0,1)": "optim.lr=interval(0,1) has no end of values",
    "check train.sede=1": "train.sede is no key; did you mean train.seed?",
    "check model=lennet5": "model=lennet5 is no choice; did you mean lenet5?",
    "+experiment=fashion": "experiment=fashion is no choice; did you mean fashion_lenet5?",
    "hydra.run.dir=x": "hydra.run.dir is Hydra's own key and has no effect here: use run.dir",
    "hydra/launcher=joblib": "hydra/launcher is Hydra's own key and has no effect here",
    "model@net=lenet5": "a group has its own place, leave @net out",
    "train.early_stop={patience:a}": "train.early_stop.patience must be an integer or null, got 'a'",
    "+train={epohcs:3}": "train.epohcs is no key; did you mean train.epochs?",
    "train.batch_size=64.0": "train.batch_size must be an integer, got 64.0",
    "train.compile=1": "train.compile must be true or false, got 1",
    "log.level=Info": "log.level must be debug | info | warning | error, got 'Info'",
    "optim.lr=fast": "optim.lr must be a number, got 'fast'",
    "optim.betas=0.9": "optim.betas must be a list of numbers, got 0.9",
    "model.dropout=${oc.env:HOME}": "model.dropout must be a number, got",
    "scheduler.warmup=2epochs": "scheduler.warmup must be a number of steps, or of epochs as 2ep, got '2epochs'",
    "~train.epochs": "train.epochs is missing",
    "~optim.lrr": "optim.lrr",
    "resume=nowhere/run": "resume=nowhere/run must be auto, a run's directory (with a config.yaml) or a checkpoint",
    "config_file=nowhere.json": "nowhere.json cannot be read: No such file or directory",
}
_ALL = """
import contextlib, io, json, sys
from tinyexp.__main__ import main
told = []
for line in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(line.split())
    told.append([code, out.getvalue(), err.getvalue(), "torch" in sys.modules])
json.dump(told, sys.stdout)
"""

pytestmark = pytest.mark.usefixtures("kept_hydra")


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, list[Any]], list[Path]]:
    """How each of WRONG ended, and what lies in the folder where they were given."""
    folder = tmp_path_factory.mktemp("wrong")
    done = subprocess.run(
        [sys.executable, "-c", _ALL], input=json.dumps(list(WRONG)), capture_output=True, text=True, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(WRONG, json.loads(done.stdout), strict=True)), list(folder.iterdir())


@pytest.mark.parametrize("line", WRONG)
def test_wrong_line(line: str, ended: tuple[dict[str, list[Any]], list[Path]]) -> None:
    code, out, err, torch_was_needed = ended[0][line]
    assert (code, out, torch_was_needed) == (2, "", False)
    assert err.startswith("tinyexp: ")
    assert WRONG[line] in err
    assert "Traceback" not in err


def test_wrong_lines_leave_nothing_behind(ended: tuple[dict[str, list[Any]], list[Path]]) -> None:
    assert ended[1] == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("+optim.lrr=1", "optim.lrr is no argument of torch.optim.AdamW; did you mean optim.lr?"),
        (
            "+model.drop_out=0.5",
            "model.drop_out is no argument of tinyexp.models.lenet.LeNet5; did you mean model.drop",
        ),
        ("optim=sgd +optim.dampning=0.1", "optim.dampning is no argument of torch.optim.SGD; did you mean"),
        ("+scheduler.warmpu=3", "did you mean scheduler.warmup?"),
        ("+dataset.image_sise=28", "did you mean dataset.image_size?"),
        ("optim.lr=-1", "optim: torch.optim.AdamW does not take these arguments: Invalid learning rate"),
        ("model._target_=tinyexp.models.LeNet7", "LeNet7 is not in tinyexp.models; did you mean LeNet6?"),
        ("model._target_=nowhere.Net", "model._target_=nowhere.Net: there is no module nowhere"),
        ("model._target_=torch.optim.SGD", "must be a Module class"),
        ("optim._target_=torch.nn.Linear", "must be an Optimizer class"),
        ("+model.num_classes=ten", "model.num_classes must be an integer, got 'ten'"),
        ("hw=cuda hw.device=mps", "hw.device=mps is not on this machine"),
    ],
)
def test_wrong_line_that_a_class_tells(line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Before there is a directory."""
    assert main(line.split()) == 2
    out, err = capsys.readouterr()
    assert err.startswith("tinyexp: ")
    assert message in err
    assert "Traceback" not in err
    assert out == ""
    assert list(Path.cwd().iterdir()) == []


def test_a_keyword_that_only_the_class_takes() -> None:
    config = check_parts(compose(["+optim.amsgrad=true", "+model.num_classes=7"]))
    assert config.optim.arguments["amsgrad"] is True
    assert config.model.arguments["num_classes"] == 7
    assert "eps" not in check_parts(compose(["~optim.eps"])).optim.arguments


# config_file


def but_for(config: Config, *left_out: str) -> dict[str, Any]:
    return {key: value for key, value in flatten(config.plain).items() if not key.startswith(left_out)}


@pytest.mark.parametrize(
    "words",
    [
        ["optim=sgd", "optim.lr=0.05", "train.seed=7", "run.name=first"],
        ["model=torchvision", "model.name=resnet18", "+model.zero_init_residual=true", "scheduler=step", "hw=cpu"],
        ["experiment=fashion_lenet5", "dataset.root=somewhere", "train.early_stop.patience=3", "~optim.eps"],
    ],
)
def test_a_runs_own_config_repeats_it(words: list[str]) -> None:
    first = compose([*words, "run.dir=gone"])
    write(Path("config.yaml"), first.text)
    write(Path("config.json"), first.plain)
    again = compose(["config_file=config.yaml"])
    assert but_for(again, "run.dir", "config_file") == but_for(first, "run.dir", "config_file")
    assert (again.run.dir, again.config_file) == (None, "config.yaml")
    assert but_for(compose(["config_file=config.json"]), "config_file") == but_for(again, "config_file")
    assert compose_run(["config_file=config.yaml"]).plain == again.plain


def test_a_file_of_some_values() -> None:
    nested = {"train": {"epochs": 3, "early_stop": {"patience": 2}}, "optim": {"lr": 0.5}}
    dotted = {"train.epochs": 3, "train.early_stop.patience": 2, "optim.lr": 0.5}
    mixed = {"train": {"epochs": 3}, "train.early_stop": {"patience": 2}, "optim.lr": 0.5}
    expected = compose(["train.epochs=3", "train.early_stop.patience=2", "optim.lr=0.5"])
    for values in (nested, dotted, mixed):
        for name, text in (("params.json", json.dumps(values)), ("params.yaml", yaml.safe_dump(values))):
            found = compose([f"config_file={write(Path(name), text)}"])
            assert but_for(found, "config_file") == but_for(expected, "config_file")


def test_a_file_may_choose_groups_by_name() -> None:
    values = {"model": "resnet18", "optim": "sgd", "hw": "cpu", "train": {"epochs": 3}}
    found = compose([f"config_file={write(Path('params.json'), values)}"])
    expected = compose(["model=resnet18", "optim=sgd", "hw=cpu", "train.epochs=3"])
    assert but_for(found, "config_file") == but_for(expected, "config_file")
    assert found.run.name == "digits-resnet18"
    assert found.model.trusted


def test_the_command_line_goes_over_the_file() -> None:
    path = write(Path("params.json"), {"train": {"epochs": 3, "seed": 5}, "optim": "sgd", "optim_": 1} | {})
    with pytest.raises(ConfigError, match=r"optim_ is no key; did you mean optim\? \(in params.json\)"):
        compose([f"config_file={path}"])
    write(path, {"train": {"epochs": 3, "seed": 5}, "optim": {"_target_": "torch.optim.SGD", "lr": 9, "momentum": 0.1}})
    config = compose([f"config_file={path}", "train.epochs=4", "optim.lr=0.25", "train.seed=6"])
    assert (config.train.epochs, config.train.seed, config.optim.target) == (4, 6, "torch.optim.SGD")
    assert config.optim.arguments == {"lr": 0.25, "momentum": 0.1}
    replaced = compose([f"config_file={path}", "optim=adam"]).optim
    assert (replaced.target, replaced.arguments) == ("torch.optim.Adam", compose(["optim=adam"]).optim.arguments)
    assert replaced.trusted


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train": {"epohcs": 1}}, "train.epohcs is no key; did you mean train.epochs? (in params.json)"),
        ({"train.epochs": "fast"}, "train.epochs must be an integer, got 'fast' (in params.json)"),
        ({"train": {"epochs": 0}}, "train.epochs must be at least 1, got 0 (in params.json)"),
        ({"tarin": {"epochs": 1}}, "tarin is no key; did you mean train?"),
        ({"optim": {"lr": "fast"}}, "optim.lr must be a number, got 'fast' (in params.json)"),
        (
            {"optim": {"lrr": 1}},
            "optim.lrr is no argument of torch.optim.AdamW; did you mean optim.lr? (in params.json)",
        ),
        ({"model": "resnet19"}, "model=resnet19 is no choice; did you mean resnet18?"),
        ({"model": "resnet19"}, "(in params.json)"),
        ({"hw": "tpu"}, "hw=tpu is no choice; did you mean cpu? (all: auto, cpu, cuda, mps) (in params.json)"),
        ({"train": {"epochs": "${oc.env:HOME}"}}, "train.epochs='${oc.env:HOME}' in a config that is read back"),
        ({"model": "${oc.env:HOME}"}, "it may hold values only, no interpolation"),
        ({"dataset": {"mean": ["${oc.env:HOME}"]}}, "it may hold values only, no interpolation"),
        ({"run": {"name": "${now:}"}}, "it may hold values only, no interpolation"),
        ({"hydra": {"run": {"dir": "x"}}}, "hydra is no key"),
        ({"hydra.searchpath": ["file:///"]}, "hydra is no key"),
        ({"model": {"_target_": "ournet.Net"}}, "'trust=[ournet.Net]' (in params.json)"),
        ({"model": {"_target_": "ournet.Net"}, "trust": ["*"]}, "'trust=[ournet.Net]' (in params.json)"),
        ({"dataset": {"_target_": "tinyexp.data.digits.digits"}}, "dataset.image_size is missing"),
    ],
)
def test_a_wrong_file(values: dict[str, Any], message: str, user_net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(Path("params.json"), values)
    assert main([f"config_file={path}"]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err
    assert [entry.name for entry in Path.cwd().iterdir()] == ["params.json"]
    assert not user_net.exists()


def test_a_file_may_name_what_the_command_line_trusts(user_net: Path) -> None:
    path = write(Path("params.json"), {"model": {"_target_": "ournet.Net", "width": 8}})
    config = check_parts(compose([f"config_file={path}", "trust=[ournet.*]"]))
    assert (config.model.target, config.model.arguments) == ("ournet.Net", {"width": 8})
    assert user_net.exists()
    told = refusal(f"config_file={path}", "trust=[ournet.*]", "+model.widht=3")
    assert told == "model.widht is no argument of ournet.Net; did you mean model.width?"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no YAML"),
        ("a: [", "is no YAML"),
        ("- 1", "must hold a mapping of keys to values, got list"),
        ("\0", "is no YAML"),
        ("!!python/object/apply:os.system ['touch marker']", "is no YAML"),
        ("train: {epochs: !!python/object/apply:os.getpid []}", "is no YAML"),
    ],
)
def test_a_broken_file(text: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"config_file={write(Path('params.yaml'), text)}"]) == 2
    assert f"tinyexp: params.yaml {message}" in capsys.readouterr().err
    assert not Path("marker").exists()


def test_a_file_that_cannot_be_a_base(tmp_path: Path) -> None:
    path = write(Path("params.json"), {"train": {"epochs": 3}})
    assert "experiment= and config_file= are both the base" in refusal(
        f"config_file={path}", "experiment=fashion_lenet5"
    )
    assert "nowhere.json cannot be read: No such file" in refusal("config_file=nowhere.json")
    assert "cannot be read: Is a directory" in refusal(f"config_file={tmp_path}")
    write(Path("run/config.yaml"), PLAIN.text)
    with pytest.raises(ConfigError, match="goes on under that run's own config: leave config_file out"):
        compose_run(["resume=run", f"config_file={path}"])


def test_a_choice_in_a_file_is_a_name_and_no_path(user_net: Path) -> None:
    evil = write(Path("evil.yaml"), "_target_: ournet.Net\n")
    up = os.path.relpath(evil.with_suffix("").resolve(), CONF / "model")
    path = write(Path("params.json"), {"model": up, "run": {"name": "a"}})
    refusal(f"config_file={path}")
    assert not user_net.exists()


def test_a_choice_in_a_file_with_a_key_of_it() -> None:
    path = write(Path("params.json"), {"model": "lenet6", "model.dropout": 0.5})
    config = compose([f"config_file={path}"])
    assert (config.model.target, config.model.arguments) == ("tinyexp.models.lenet.LeNet6", {"dropout": 0.5})


def test_what_a_choice_leaves_open_is_given_on_the_command_line() -> None:
    words = ["model=torchvision", "model.name=resnet18"]
    assert recompose(PLAIN.plain, words).model.arguments == {"name": "resnet18"}
    path = write(Path("params.json"), {"model": "torchvision", "run": {"name": "a"}})
    assert compose([f"config_file={path}", "model.name=resnet18"]).model.arguments == {"name": "resnet18"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sweep": {"gird": {}}}, "sweep.gird is no key; did you mean sweep.grid? (in params.json)"),
        ({"run": {"nmae": "x"}}, "run.nmae is no key; did you mean run.name? (in params.json)"),
    ],
)
def test_a_wrong_file_whose_key_is_ours_to_leave_out(values: dict[str, Any], message: str) -> None:
    assert refusal(f"config_file={write(Path('params.json'), values)}") == message


# --config-dir


@pytest.fixture
def more() -> Path:
    """A folder of groups of one's own."""
    folder = Path("more")
    write(folder / "model" / "mine.yaml", "_target_: ournet.Net\nwidth: 8\nrate: 0.1\n")
    write(folder / "model" / "lenet5.yaml", "_target_: tinyexp.models.lenet.LeNet6\ndropout: 0.9\n")
    write(
        folder / "dataset" / "small.yaml",
        "defaults: [_loader, _self_]\n_target_: tinyexp.data.digits.digits\nimage_size: 20\nmean: [0.3]\nstd: [0.3]\n",
    )
    write(
        folder / "experiment" / "mine.yaml",
        "# @package _global_\ndefaults:\n  - override /model: mine\n  - override /dataset: small\n"
        "train:\n  epochs: 1\n  limit_batches: 2\n",
    )
    return folder


def with_more(*words: str) -> list[str]:
    return split(["--config-dir", "more", *words], usages()).overrides


@pytest.mark.usefixtures("more")
def test_groups_of_ones_own(user_net: Path) -> None:
    config = compose(with_more("experiment=mine", "model.width=16"))
    assert (config.run.name, config.train.epochs, config.train.limit_batches) == ("mine", 1, 2)
    assert (config.model.target, config.model.arguments) == ("ournet.Net", {"width": 16, "rate": 0.1})
    assert (config.dataset.arguments, config.loader.image_size) == ({}, 20)
    assert config.loader.workers == "auto"  # of the program's own _loader.yaml
    assert config.model.trusted
    assert not user_net.exists()  # until it is asked
    check_parts(config)
    assert user_net.exists()
    assert compose([*with_more("model=mine"), "dataset=small"]).run.name == "small-mine"


@pytest.mark.usefixtures("more")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("model=mine model.width=wide", "model.width must be a number, got 'wide'"),
        ("model=mine model.rate=high", "model.rate must be a number, got 'high'"),
        ("model=mine model.widht=3", "model.widht is no key; did you mean model.width?"),
        ("model=mine +model.widht=3", "model.widht is no argument of ournet.Net; did you mean model.width?"),
        ("model=mien", "model=mien is no choice; did you mean mine?"),
        ("dataset=small dataset.image_size=big", "dataset.image_size must be an integer, got 'big'"),
    ],
)
def test_groups_of_ones_own_are_checked_as_ours(words: str, message: str, user_net: Path) -> None:
    assert refusal(*with_more(*words.split())).startswith(message)


@pytest.mark.usefixtures("more")
def test_help_lists_ones_own_choices(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config-dir", "more", "--help"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^  model= .*\| mine \|", out, re.MULTILINE)
    assert re.search(r"^  dataset= .*\| small \|", out, re.MULTILINE)
    assert "mine" not in choices()["model"]


@pytest.mark.usefixtures("more")
def test_a_choice_of_conf_goes_before_one_of_the_same_name() -> None:
    """As Hydra has it: its own folder first, then hydra.searchpath."""
    assert compose(with_more("model=lenet5")).model.target == "tinyexp.models.lenet.LeNet5"


@pytest.mark.usefixtures("more")
@pytest.mark.parametrize("option", ["--config-dir=more", "-cd more", "--config-dir more"])
def test_spellings_of_config_dir(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*option.split(), "--cfg", "job", "model=mine"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["model"] == {
        "_target_": "ournet.Net",
        "width": 8,
        "rate": 0.1,
        "weights": None,
    }


def test_config_dir_with_spaces_and_commas(capsys: pytest.CaptureFixture[str]) -> None:
    write(Path("my conf, [1] ü=x%20'/model/mine.yaml"), "_target_: tinyexp.models.lenet.LeNet6\ndropout: 0.25\n")
    assert main(["--config-dir", "my conf, [1] ü=x%20'", "--cfg", "job", "model=mine"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["model"]["dropout"] == 0.25
    assert main(["--config-dir", "my conf, [1] ü=x%20'", "--help"]) == 0
    assert "| mine |" in capsys.readouterr().out
    assert main(["--config-dir", "my conf, [1] ü=x%20'", "model=mine", "model.dropout=high"]) == 2
    assert "model.dropout must be a number, got 'high'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_with_groups_of_ones_own(more: Path, tmp_path: Path, user_net: Path) -> None:
    """In a process of its own; what it wrote names the class, and is trusted from --config-dir no more."""
    environment = os.environ | {"PYTHONPATH": str(user_net.parent)}
    words = ["--config-dir", str(more), "experiment=mine", "hw=cpu", "run.dir=run"]
    command = [sys.executable, "-m", "tinyexp"]
    done = subprocess.run([*command, *words], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(Path("run/config.yaml").read_text())["model"]["_target_"] == "ournet.Net"
    user_net.unlink()
    assert main(["eval", "run"]) == 2
    assert not user_net.exists()
    assert main(["eval", "run", "trust=[ournet.*]"]) == 0


# words


def test_any_order_of_words_is_the_same() -> None:
    Path("more").mkdir()
    draw, known = random.Random(0), usages()
    overrides = ["model=lenet6", "optim.lr=0.1", "+optim.amsgrad=true", "~optim.eps", "train.seed=1,2"]
    options = [
        ["--cfg", "job"],
        ["--config-dir=more"],
        ["-i", "config"],
        ["--help"],
        ["-h"],
        ["--by", "a,b"],
        ["--out=x"],
    ]
    for _ in range(300):
        verb = draw.choice(["report", "train"])
        paths = ["a", "b"] if verb == "report" else []
        chosen = [option for option in options if verb == "report" or option[0] not in ("--by", "--out=x")]
        each = draw.sample(chosen, draw.randint(0, len(chosen)))
        given = draw.sample(overrides, draw.randint(0, len(overrides)))
        ordered = split([verb, *(word for option in each for word in option), *paths, *given], known)
        queues = [[[word] for word in paths], [[word] for word in given], [list(option) for option in each]]
        mixed = [verb]
        while any(queues):
            mixed += draw.choice([queue for queue in queues if queue]).pop(0)
        assert parts(split(mixed, known)) == parts(ordered)
        assert [word for word in split(mixed, known).overrides if word in overrides] == given  # the last word counts


def parts(words: Words) -> tuple[object, ...]:
    return (words.verb, words.paths, words.overrides, words.options, words.flags, words.hydra)


def test_a_value_that_looks_like_an_option_or_a_verb() -> None:
    known = usages()
    assert split(["report", "eval", "train"], known).paths == ["eval", "train"]
    assert split(["eval", "a", "run.name=--cfg"], known).overrides == ["run.name=--cfg"]
    assert split(["report", "a", "--by", "--out"], known).options == {"by": "--out"}
    assert split(["report", "a", "--by=b=c"], known).options == {"by": "b=c"}
    assert split(["--info", "train.seed=1"], known).options == {"info": "all"}


@pytest.mark.parametrize("word", ["train.epochs=1", "~optim.eps", "+optim.amsgrad=true"])
@pytest.mark.parametrize("verb", sorted(usages()))
def test_an_override_is_never_a_path(verb: str, word: str) -> None:
    paths = ["run", "val"][: {"predict": 2}.get(verb, int(usages()[verb].takes_paths))]
    line = split([verb, *paths, word], usages())
    assert (line.verb, line.overrides, line.paths) == (verb, [word], paths)


def test_each_verb_says_what_it_takes() -> None:
    for verb, usage in usages().items():
        assert usage.form.split()[0] == verb
        assert usage.meaning
        assert usage.text.startswith(usage.meaning)
        for option in usage.options:
            with pytest.raises(ConfigError, match=f"--{option} needs a value after it"):
                split([verb, "run", f"--{option}"], usages())


@pytest.mark.parametrize(
    "words", ["--cfg job train.epochs=3", "train.epochs=3 -c job", "--cfg=job train train.epochs=3"]
)
def test_cfg_prints_what_would_run(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    wrong_place = words.split()[1] == "train"
    assert main(words.split()) == (2 if wrong_place else 0)
    if not wrong_place:
        assert yaml.safe_load(capsys.readouterr().out) == compose(["train.epochs=3"]).plain
        assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ("--info defaults model=resnet18", 0, "model/resnet18"),
        ("--info model=resnet19", 2, "tinyexp: model=resnet19 is no choice; did you mean resnet18?"),
    ],
)
def test_what_hydra_alone_can_tell(words: str, code: int, told: str) -> None:
    """In a process of its own, since Hydra sets up the logging, too."""
    done = subprocess.run([sys.executable, "-m", "tinyexp", *words.split()], capture_output=True, text=True)
    assert done.returncode == code
    assert told in done.stdout + done.stderr
    assert list(Path.cwd().iterdir()) == []


# completion


def complete(line: str) -> list[str]:
    done = subprocess.run(
        [SCRIPT, "-sc", "query=bash"],
        env=os.environ | {"COMP_LINE": line, "COMP_POINT": str(len(line))},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


@pytest.mark.skipif(not SCRIPT.exists(), reason=f"{SCRIPT} is not there: make run installs it")
@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("tinyexp ev", {"eval"}),
        ("tinyexp ", {*usages(), "model=", "train."}),
        ("tinyexp model=res", {"model=resnet18", "model=resnet50"}),
        ("tinyexp check optim=sgd optim.nes", {"optim.nesterov="}),
        ("tinyexp eval out", set()),
    ],
)
def test_completion(line: str, found: set[str]) -> None:
    completed = set(complete(line))
    assert found <= completed
    assert line == "tinyexp " or found == completed


@pytest.mark.skipif(not SCRIPT.exists(), reason=f"{SCRIPT} is not there: make run installs it")
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_installed(shell: str) -> None:
    done = subprocess.run([SCRIPT, "-sc", f"install={shell}"], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert "tinyexp" in done.stdout
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=done.stdout, text=True, check=True)


@pytest.mark.parametrize("words", ["-sc", "-sc install=tcsh"])
def test_a_wrong_word_about_completion(words: str) -> None:
    done = subprocess.run([sys.executable, "-m", "tinyexp", *words.split()], capture_output=True, text=True)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
