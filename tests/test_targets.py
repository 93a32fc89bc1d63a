"""Dotted names in a config: what they may lead to, with which arguments, and whose word counts."""

from __future__ import annotations

import copy
import functools
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
import yaml
from helpers import PLAIN, component, rows, train
from torch import nn

from tinyexp.__main__ import main
from tinyexp.compose import compose
from tinyexp.config import SLOTS, LoaderConfig
from tinyexp.errors import ConfigError
from tinyexp.optim import build_optimizer
from tinyexp.overrides import CONF
from tinyexp.parts import check_parts
from tinyexp.plainfile import read
from tinyexp.stored import recompose
from tinyexp.targets import build, resolve

DANGEROUS = [  # all of them resolve, some through a package that is trusted
    "os.system",
    "subprocess.Popen",
    "builtins.open",
    "builtins.eval",
    "pathlib.Path.write_text",
    "shutil.rmtree",
    "torch.load",
    "torch.save",
    "torch.hub.load",
    "torch.utils.cpp_extension.load",
    "torch.nn.functional.importlib.import_module",
    "torch.optim.optimizer.torch.load",
    "torchvision.datasets.utils.os.system",
    "tinyexp.files.os.remove",
    "tinyexp.data.listing.os.remove",
    "tinyexp.models.zoo.torchvision.torch.load",
    "tinyexp.data.idx.Path.unlink",
]

USER_CODE = """
import torch
from pathlib import Path
from torch import nn
import numpy as np
from tinyexp.data.source import ArraySplit, Source

Path(__file__).with_name("imported").touch()

class Net(nn.Module):
    def __init__(self, num_classes, width):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.LazyLinear(width), nn.ReLU(), nn.LazyLinear(num_classes))
        self.layers(torch.zeros(1, 16))

    def forward(self, images):
        return self.layers(images)

class Descent(torch.optim.SGD):
    def __init__(self, params, *, lr):
        super().__init__(params, lr=lr, momentum=0.5)

class Halving(torch.optim.lr_scheduler.LRScheduler):
    def get_lr(self):
        return [base / 2**self.last_epoch for base in self.base_lrs]

def brightness(*, count):
    "Is an image bright?"
    labels = np.arange(count) % 2
    images = np.full((count, 4, 4, 1), 40, np.uint8) + labels[:, None, None, None].astype(np.uint8) * 160
    split = ArraySplit(images, labels)
    return Source(classes=("dark", "bright"), channels=1, train=split, val=split, fingerprint="00")
"""


@pytest.fixture
def user_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path with a package `mypkg`, which leaves a file `imported` beside it when it is imported."""
    package = tmp_path / "code" / "mypkg"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "parts.py").write_text(USER_CODE)
    monkeypatch.syspath_prepend(package.parent)
    for name in ("mypkg", "mypkg.parts"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return package


# resolve


@pytest.mark.parametrize(
    ("slot", "name"),
    [(path.parent.name, read(path)["_target_"]) for slot in SLOTS for path in sorted((CONF / slot).glob("[!_]*.yaml"))],
)
def test_what_conf_names_is_trusted_when_it_is_read_back(slot: str, name: str) -> None:
    found = resolve(component(slot, name, trusted=False), ())
    assert f"{found.__module__}.{found.__qualname__}".rpartition(".")[2] == name.rpartition(".")[2]


@pytest.mark.parametrize(
    ("slot", "name"),
    [
        ("model", "torch.nn.Linear"),
        ("model", "torchvision.models.resnet18"),
        ("model", "torchvision.models.ResNet"),
        ("optim", "torch.optim.adam.Adam"),
        ("scheduler", "torch.optim.lr_scheduler.StepLR"),
        ("scheduler", "tinyexp.schedule.constant"),
        ("dataset", "tinyexp.data.folder.imagefolder"),
    ],
)
def test_the_libraries_own_are_trusted(slot: str, name: str) -> None:
    assert callable(resolve(component(slot, name, trusted=False), ()))


@pytest.mark.parametrize("slot", SLOTS)
@pytest.mark.parametrize("name", DANGEROUS)
def test_a_file_that_is_read_back_may_not_name_it(slot: str, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"{slot}\._target_={name} "):
        resolve(component(slot, name, trusted=False), ())


@pytest.mark.parametrize("slot", SLOTS)
def test_what_is_not_trusted_is_not_even_imported(slot: str, user_package: Path) -> None:
    for name in ("mypkg.parts.Net", "mypkg.parts", "mypkg.parts.Net.__init__.__globals__"):
        with pytest.raises(ConfigError, match=rf"If you trust it: 'trust=\[{name}\]'"):
            resolve(component(slot, name, trusted=False), ("mypkg", "mypkg.part", "notmypkg.*"))
    assert "mypkg" not in sys.modules
    assert not (user_package / "imported").exists()


@pytest.mark.parametrize("pattern", ["mypkg.*", "mypkg.parts.*", "mypkg.parts.Net", "*.Net"])
def test_trust_adds_names(pattern: str, user_package: Path) -> None:
    found = resolve(component("model", "mypkg.parts.Net", trusted=False), ("other.*", pattern))
    assert found is sys.modules["mypkg.parts"].Net


@pytest.mark.parametrize(
    ("slot", "name", "wanted"),
    [
        ("model", "torch.optim.SGD", "must be a Module class or a function that makes one"),
        ("model", "torch.nn", "must be a Module class"),
        ("model", "builtins.dict", "must be a Module class"),
        ("model", "math.pi", "must be a Module class"),
        ("optim", "torch.nn.Linear", "must be an Optimizer class$"),
        ("optim", "torch.nn.functional.relu", "must be an Optimizer class$"),
        ("scheduler", "torch.optim.SGD", "must be an LRScheduler class or a function"),
        ("dataset", "torch.utils.data.DataLoader", "must be a function that makes a tinyexp.data.source.Source"),
    ],
)
def test_a_slot_takes_its_kind_alone(slot: str, name: str, wanted: str) -> None:
    with pytest.raises(ConfigError, match=rf"{slot}\._target_={name} {wanted}"):
        resolve(component(slot, name), ())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.Net", "there is no module nowhere"),
        ("Net", r"there is no module Net \(a dotted name is needed, such as mypkg.net.Net\)"),
        ("tinyexp.models.LeNet7", "LeNet7 is not in tinyexp.models; did you mean LeNet6?"),
        ("tinyexp.modles.LeNet5", "modles is not in tinyexp; did you mean models?"),
        ("mypkg.parts.Net.nope", "nope is not in Net"),
        ("mypkg.needy.Net", "importing mypkg.needy needs nowhere, which is missing"),
    ],
)
def test_a_name_that_leads_nowhere(name: str, message: str, user_package: Path) -> None:
    (user_package / "needy.py").write_text("import nowhere")
    with pytest.raises(ConfigError, match=message):
        resolve(component("model", name), ())


# build


def test_offered_arguments_go_where_they_are_taken() -> None:
    model = build(component("model", "tinyexp.models.LeNet5", dropout=0.25), (), num_classes=3, image_size=32, nope=1)
    assert (model.fc3.out_features, model.fc1.in_features, model.dropout.p) == (3, 16 * 6 * 6, 0.25)


def test_the_configs_own_argument_goes_before_the_offered_one() -> None:
    assert build(component("model", "tinyexp.models.LeNet5", num_classes=7), (), num_classes=3).fc3.out_features == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dropuot": 0.5}, r"model\.dropuot is no argument of tinyexp\.models\.LeNet5; did you mean model\.dropout\?"),
        ({"x": 1}, r"model\.x is no argument of .*; valid: dropout, image_size, in_channels, num_classes"),
        ({"image_size": 4}, "does not take these arguments: LeNet needs images of at least 12 px, got image_size=4"),
        ({"dropout": "high"}, "model.dropout must be a number, got 'high'"),
    ],
)
def test_wrong_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(component("model", "tinyexp.models.LeNet5", **arguments), ())


def test_another_target_leaves_out_what_only_the_yamls_own_takes() -> None:
    """But not what the command line gives."""
    optim = compose(["optim._target_=torch.optim.RMSprop", "optim.eps=0.5"]).optim
    assert build_optimizer(optim, nn.Linear(2, 2), ()).defaults["eps"] == 0.5  # betas are AdamW's
    again = recompose(compose([]).plain, ["optim._target_=torch.optim.RMSprop"]).optim
    assert isinstance(build_optimizer(again, nn.Linear(2, 2), ()), torch.optim.RMSprop)
    for words in (["optim.betas=[0.8,0.9]"], ["+optim.lrr=1"]):
        with pytest.raises(ConfigError, match=r"optim\.(betas|lrr) is no argument of torch\.optim\.RMSprop"):
            build_optimizer(compose(["optim._target_=torch.optim.RMSprop", *words]).optim, nn.Linear(2, 2), ())


def test_a_class_that_takes_anything_gets_no_leftovers(user_package: Path) -> None:
    """AdamW's betas are nobody's word for a class with **keywords."""
    (user_package / "more.py").write_text(
        "import torch\nclass Plain(torch.optim.SGD):\n"
        "    def __init__(self, params, lr=0.1, **more):\n        super().__init__(params, lr=lr, **more)\n"
    )
    config = check_parts(compose(["optim._target_=mypkg.more.Plain"]))
    assert config.plain["optim"] == {"_target_": "mypkg.more.Plain", "lr": 3e-3}
    config = check_parts(compose(["optim._target_=mypkg.more.Plain", "optim.weight_decay=0.5"]))
    assert config.plain["optim"]["weight_decay"] == 0.5


@pytest.mark.parametrize(
    "name", ["tinyexp.data.idx._download", "tinyexp.data.decode.decode", "torch.nn.Module.__init__"]
)
def test_a_file_names_data_sets_and_no_other_function_of_ours(name: str) -> None:
    with pytest.raises(ConfigError, match=r"If you trust it|must be a function"):
        resolve(component("dataset", name, trusted=False), ())


def test_a_missing_argument() -> None:
    with pytest.raises(ConfigError, match=r"model\.out_features must be given: torch\.nn\.Linear needs it"):
        build(component("model", "torch.nn.Linear", in_features=3), ())
    with pytest.raises(ConfigError, match=r"dataset\.image_size must be given: tinyexp\.data\.digits\.digits needs it"):
        build(component("dataset", "tinyexp.data.digits.digits"), ())


def test_the_model_is_no_argument_of_an_optimizer() -> None:
    with pytest.raises(ConfigError, match=r"optim\.params is no argument of torch\.optim\.SGD"):
        build_optimizer(component("optim", "torch.optim.SGD", lr=0.1, params=[]), nn.Linear(2, 2), ())


def test_lbfgs_is_refused() -> None:
    with pytest.raises(ConfigError, match="LBFGS runs the model several times a step, which this loop does not"):
        build_optimizer(component("optim", "torch.optim.LBFGS", lr=0.1), nn.Linear(2, 2), ())


# the command line


def test_classes_of_ones_own(user_package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One run with a data set, model, optimizer and scheduler outside the package, by names alone."""
    run = train(
        tmp_path / "run",
        *("dataset._target_=mypkg.parts.brightness", "+dataset.count=20", "dataset.image_size=4"),
        *("model._target_=mypkg.parts.Net", "+model.width=8"),
        *("optim._target_=mypkg.parts.Descent", "optim.lr=0.5"),
        "scheduler._target_=mypkg.parts.Halving",
        *("train.epochs=3", "train.batch_size=10", "log.level=info"),
    )
    out = capsys.readouterr().out
    for key in ("model.dropout", "optim.betas", "scheduler.cycles"):  # of conf/'s own choices
        assert f"{key} is left out: mypkg.parts." in out
    assert [row["lr"] for row in rows(run, "train_epoch")] == [0.5, 0.25, 0.125]
    assert rows(run, "val")[-1]["top1"] == 1
    assert "top5" not in rows(run, "val")[-1]

    capsys.readouterr()
    assert main(["show", str(run)]) == 2  # the names now come from a file
    assert main(["show", str(run), "trust=[mypkg.*]"]) == 0
    assert "layers.1.weight" in capsys.readouterr().out

    assert main(["eval", str(run)]) == 2  # the names now come from a file
    assert "dataset._target_=mypkg.parts.brightness comes from a file that was read back" in capsys.readouterr().err
    assert main(["eval", str(run), "trust=[mypkg.*]"]) == 0
    assert "top1 1.0000 (20 images)" in capsys.readouterr().out


def test_a_run_does_not_vouch_for_itself(
    user_package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither a config.yaml that was given to us nor its checkpoint may run what it names, though it says `trust`."""
    run = train(tmp_path / "run", "train.epochs=1", "train.limit_batches=1")
    config = run / "config.yaml"
    text = (
        config.read_text()
        .replace("tinyexp.models.lenet.LeNet5", "mypkg.parts.Net")
        .replace("trust: []", "trust: ['*']")
    )
    assert "mypkg.parts.Net" in text
    assert "trust: ['*']" in text
    config.write_text(text)
    path = run / "checkpoints" / "best.pt"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["config"] |= {"trust": ["*"], "model": {"_target_": "mypkg.parts.Net", "width": 3}}
    torch.save(checkpoint, path)
    for words in ([f"resume={run}", "train.epochs=2", "hw=cpu"], ["eval", str(run), "hw=cpu"]):
        assert main(words) == 2
        assert "If you trust it: 'trust=[mypkg.parts.Net]'" in capsys.readouterr().err
    assert not (user_package / "imported").exists()


# whatever reads a config back


LOADER = {key: PLAIN.plain["dataset"][key] for key in LoaderConfig.__dataclass_fields__}  # its own keys, for any data
HARMFUL: dict[str, dict[str, Any]] = {  # names with arguments that would make the file `marker` if they were called
    "os.system": {"command": "touch marker"},
    "builtins.open": {"file": "marker", "mode": "w"},
    "torch.load": {"f": "pickle.pt", "weights_only": False},
    "torch.hub.load": {"repo_or_dir": "hub", "model": "touch", "source": "local"},
    "torchvision.datasets.utils.os.system": {"command": "touch marker"},
    "mypkg.parts.Net": {"width": 3},  # whose import makes the file `imported`
}


class Touch:
    """Unpickled, it makes the file `marker`."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch marker",)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("trust") / "run", "train.epochs=1", "train.limit_batches=1")


@pytest.fixture
def trap(
    whole_run: Path, tmp_path: Path, user_package: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, str], dict[str, Any]]:
    """Puts a harmful name into a slot of ./run's config.yaml and returns the config; what it would load is there."""
    here = tmp_path / "here"
    shutil.copytree(whole_run, here / "run")
    monkeypatch.chdir(here)
    torch.save(Touch(), "pickle.pt")
    Path("hub").mkdir()
    Path("hub/hubconf.py").write_text("import os\nos.system('touch marker')\ndef touch(**_): pass\n")
    kept: dict[tuple[str, ...], Any] = {}
    original = hydra.compose

    def composed(*given: Any, overrides: list[str], **named: Any) -> Any:  # each composing takes a tenth of a second
        if tuple(overrides) not in kept:
            kept[tuple(overrides)] = original(*given, overrides=overrides, **named)
        return copy.deepcopy(kept[tuple(overrides)])

    monkeypatch.setattr(hydra, "compose", composed)
    clean = read(Path("run/config.yaml"))

    def set_trap(slot: str, name: str) -> dict[str, Any]:
        values = {**(LOADER if slot == "dataset" else {}), "_target_": name, **HARMFUL[name]}
        config = {**clean, slot: values, "trust": ["*", name]}
        Path("run/config.yaml").write_text(json.dumps(config))
        return config

    return set_trap


def assert_refused(words: list[str], slot: str, name: str, package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = sorted(Path.cwd().rglob("*"))
    assert main(words) == 2, (words, slot, name)
    told = "".join("".join(capsys.readouterr()).split())  # a table breaks its lines
    assert f"{slot}._target_={name}" in told
    # a function is no optimizer, whoever names it
    assert f"trust=[{name}]" in told or (slot == "optim" and "mustbeanOptimizerclass" in told)
    assert "Traceback" not in told
    assert not Path("marker").exists()
    assert sorted(Path.cwd().rglob("*")) == files
    assert "mypkg" not in sys.modules
    assert not (package / "imported").exists()


Trap = Callable[[str, str], dict[str, Any]]
READERS = ("resume=run hw=cpu", "eval run", "show run", "report run", "config_file=run/config.yaml")


@pytest.mark.parametrize("slot", SLOTS)
@pytest.mark.parametrize("words", READERS)
def test_no_verb_takes_a_harmful_name_from_a_runs_config(
    words: str, slot: str, trap: Trap, user_package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in HARMFUL:
        trap(slot, name)
        assert_refused(words.split(), slot, name, user_package, capsys)


@pytest.mark.parametrize(
    ("words", "slots"),
    [
        ("eval run hw=cpu", ("dataset", "model")),
        ("eval checkpoint.pt", ("dataset", "model")),
        ("show run", SLOTS),
        ("show checkpoint.pt", SLOTS),
    ],
)
def test_no_verb_takes_a_harmful_name_from_a_checkpoint(
    words: str, slots: tuple[str, ...], trap: Trap, user_package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Though the config.yaml beside it is clean."""
    for slot in slots:
        for name in HARMFUL:
            forge_checkpoint(trap, words, slot, name)
            assert_refused(words.split(), slot, name, user_package, capsys)


def forge_checkpoint(trap: Trap, words: str, slot: str, name: str) -> None:
    clean = Path("run/config.yaml").read_text()
    path = Path("run/checkpoints") / ("best.pt" if words.startswith("eval") else "last.pt")
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["config"] = trap(slot, name)
    Path("run/config.yaml").write_text(clean)
    torch.save(checkpoint, path if "run" in words else "checkpoint.pt")


@pytest.mark.parametrize("slot", ["optim", "scheduler"])
def test_eval_does_not_ask_what_it_does_not_need(slot: str, trap: Trap, user_package: Path) -> None:
    for name in HARMFUL:
        forge_checkpoint(trap, "eval run", slot, name)
        main(["eval", "run", "hw=cpu"])
        assert not Path("marker").exists()
        assert "mypkg" not in sys.modules
        assert not (user_package / "imported").exists()


@pytest.mark.parametrize("words", ["resume=run hw=cpu", "eval run", "config_file=run/config.yaml"])
def test_an_interpolation_that_is_read_back_is_not_evaluated(
    words: str, trap: Trap, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not in any place of a config, of whatever depth."""
    monkeypatch.setenv("SECRET", "a secret")
    text, secret = Path("run/config.yaml").read_text(), "${oc.env:SECRET}"
    path = Path("run/checkpoints/best.pt")
    checkpoint = torch.load(path, weights_only=True)
    for key in ("model.dropout", "optim.betas", "optim._target_", "trust", "run.name", "train.early_stop.patience"):
        config = yaml.safe_load(text)
        group, _, name = key.rpartition(".")
        place = functools.reduce(dict.__getitem__, filter(None, group.split(".")), config)
        place[name] = [secret, secret] if name in ("betas", "trust") else secret
        if key == "trust" and words.startswith("config_file"):
            continue  # a file's trust is not read
        Path("run/config.yaml").write_text(yaml.safe_dump(config))
        if words.startswith("eval"):
            Path("run/config.yaml").write_text(text)
            torch.save(checkpoint | {"config": config}, path)
        assert main(words.split()) == 2
        err = capsys.readouterr().err
        assert f"tinyexp: {key}=" in err
        assert "may hold values only, no interpolation" in err or (
            key == "optim._target_" and "comes from a file that was read back" in err
        )
        assert "a secret" not in err


@pytest.mark.parametrize("words", ["show run", "report run", "eval run hw=cpu", "resume=run train.epochs=2"])
def test_what_is_trusted_is_read(words: str, trap: Trap, user_package: Path) -> None:
    """As far as the name goes: these weights are LeNet5's."""
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    (user_package / "parts.py").write_text(f"{USER_CODE}\nfrom tinyexp.models import LeNet5\n")
    config["model"]["_target_"] = "mypkg.parts.LeNet5"
    Path("run/config.yaml").write_text(yaml.safe_dump(config))
    path = Path("run/checkpoints/best.pt")
    torch.save(torch.load(path, weights_only=True) | {"config": config}, path)
    assert main(words.split()) == 2
    assert "mypkg" not in sys.modules
    assert main([*words.split(), "trust=[mypkg.*]"]) == 0
