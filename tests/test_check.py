"""check: its figures are those of the run that would be, nothing is made, and what is kept is never stale."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import begin

from tinyexp.__main__ import main
from tinyexp.compose import compose
from tinyexp.facts import Facts
from tinyexp.overrides import choices
from tinyexp.probe import find_facts
from tinyexp.targets import build

pytestmark = pytest.mark.usefixtures("kept_hydra")

SHAPE = (1, 28, 28)  # the digits' (C, H, W)
NETWORK = re.compile(r"^network +(\w+), ([\d,]+) parameters, (\w+) on (\w+)$", re.MULTILINE)

USER_CODE = """
import torch
from torch import nn

class Net(nn.Module):
    width = 4

    def __init__(self, *, num_classes):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(784, self.width), nn.Linear(self.width, num_classes))

    def forward(self, images):
        return self.layers(images)

class Stubborn(Net):
    "Cannot be made on the meta device."

    def __init__(self, *, num_classes):
        super().__init__(num_classes=num_classes)
        self.scale = float(self.layers[1].weight.abs().max())

class Frozen(Net):
    def __init__(self, *, num_classes):
        super().__init__(num_classes=num_classes)
        self.layers[1].requires_grad_(False)

class Undecided(Net):
    def forward(self, images):
        return self.layers(images).argmax(1)

def no_network(*, num_classes):
    return torch.optim.SGD

def bare(*, num_classes):
    return Bare(num_classes)

class Bare(nn.Module):
    "No parameters."

    def __init__(self, num_classes):
        super().__init__()
        self.num_classes = num_classes

    def forward(self, images):
        return images.flatten(1)[:, :self.num_classes]
"""


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where check keeps its answers, in a home of the test's own; the test's folder is empty."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "home" / ".cache" / "tinyexp" / "check.json"


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The networks that were really asked, one after the other."""
    asked: list[str] = []

    def find(config: Any, *arguments: Any) -> Facts:
        asked.append(config.model.target.rpartition(".")[2])
        return find_facts(config, *arguments)

    monkeypatch.setattr("tinyexp.probe.find_facts", find)
    return asked


@pytest.fixture
def user_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "theirnet.py").write_text(USER_CODE)
    monkeypatch.syspath_prepend(tmp_path / "code")
    monkeypatch.delitem(sys.modules, "theirnet", raising=False)


def check(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["check", "hw=cpu", *words]) == 0
    return capsys.readouterr().out


def facts(*words: str, classes: int = 10, shape: tuple[int, int, int] = SHAPE) -> Facts:
    return find_facts(compose(["hw=cpu", *words]), classes, shape)


# figures


@pytest.mark.parametrize(
    "words",
    [
        *([f"model={name}"] for name in choices()["model"] if name != "torchvision"),
        ["model=torchvision", "model.name=mobilenet_v3_small"],
        ["model=torchvision", "model.name=vit_b_16", "dataset.image_size=32"],
    ],
    ids=lambda words: words[-1],
)
def test_parameters_are_those_of_the_real_network(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    size = 32 if "dataset.image_size=32" in words else 28
    out = check(capsys, *words)
    with torch.device("meta"):  # shapes alone, since vit_b_16 takes a second
        model = build(compose(words).model, (), num_classes=10, in_channels=1, image_size=size)
    assert NETWORK.search(out).groups() == (  # type: ignore[union-attr]
        type(model).__name__,
        f"{sum(parameter.numel() for parameter in model.parameters()):,}",
        "fp32",
        "cpu",
    )


@pytest.mark.parametrize(
    "words",
    [
        ["train.batch_size=1"],
        ["train.batch_size=2"],  # an odd number of images: the last one joins the step before
        ["train.batch_size=64"],
        ["train.batch_size=359", "train.accumulate=7"],
        ["train.batch_size=1436"],
        ["train.batch_size=1437"],
        ["train.batch_size=100000"],
        ["train.limit_batches=5"],
        ["train.limit_batches=5000", "train.epochs=3"],
    ],
)
def test_steps_are_those_of_the_data(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    config, data, _ = begin(*words)
    each, epochs = data.steps_per_epoch, config.train.epochs
    assert re.search(rf"^steps +{each:,} an epoch, {each * epochs:,} in {epochs} epochs$", check(capsys, *words), re.M)


def test_data_and_directory(capsys: pytest.CaptureFixture[str]) -> None:
    out = check(capsys, "dataset.image_size=20")
    assert re.search(r"^data +1,437 train and 360 val images of 1x20x20 in 10 classes$", out, re.M)
    assert re.search(r"^files +/.*/digits\.npz$", out, re.M)
    assert re.search(r"^directory +outputs/DATE_TIME_digits-lenet5_ID$", out, re.M)
    assert re.search(r"^directory +a/b$", check(capsys, "run.dir=a/b"), re.M)
    assert re.search(r"^directory +a/DATE_TIME_mine_ID$", check(capsys, "run.root=a", "run.name=mine"), re.M)


@pytest.mark.parametrize(
    ("words", "share"),
    [
        (["optim=sgd", "optim.momentum=0"], 0),
        (["optim=sgd"], 1),
        (["optim=adam"], 2),
        (["optim=adamw"], 2),
        (["optim=adamw", "+optim.amsgrad=true"], 3),
        (["optim._target_=torch.optim.Adagrad"], 1),
    ],
)
def test_the_optimizers_share(words: list[str], share: int) -> None:
    found = facts(*words)
    assert found.gradients == found.weights == 61_706 * 4
    assert found.optimizer == share * found.gradients


def test_the_optimizers_share_is_that_of_a_real_one() -> None:
    _, data, state = begin("optim=adamw", "+optim.amsgrad=true", "train.limit_batches=1")
    optimizer = state.optimizer
    for parameter in state.network.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    tensors = [value for values in optimizer.state.values() for value in values.values() if value.numel() > 1]
    real = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert facts("optim=adamw", "+optim.amsgrad=true").optimizer == pytest.approx(real, rel=0.01)
    assert data.steps_per_epoch == 1


def test_activations_are_what_autograd_keeps_of_lenet5() -> None:
    """By hand: each layer's input, a ReLU's result (which is the next one's input), a pooling's places as int64."""
    floats = 28 * 28 + (6 * 28 * 28 + 6 * 14 * 14) + (16 * 10 * 10 + 16 * 5 * 5) + 120 + 84
    places = 6 * 14 * 14 + 16 * 5 * 5
    for batch in (1, 64, 100):
        by_hand = batch * (4 * floats + 8 * places)
        assert 0.95 < facts(f"train.batch_size={batch}").activations / by_hand < 1.1


def test_activations_follow_the_micro_batch_and_the_precision() -> None:
    whole = facts("train.batch_size=64").activations
    assert facts("train.batch_size=64", "train.accumulate=4").activations * 4 == whole
    assert facts("train.batch_size=128").activations == 2 * whole
    assert facts("train.precision=bf16").activations * 2 == whole
    assert facts("train.precision=bf16").precision == "bfloat16"


def test_averaged_weights_are_as_large_as_the_weights() -> None:
    assert (facts().averaged, facts("train.ema=0.9").averaged) == (0, 61_706 * 4)
    assert "averaged" not in facts().memory
    assert sum(facts("train.ema=0.9").memory.values()) == sum(facts().memory.values()) + 61_706 * 4


def test_frozen_weights_have_no_gradient(user_code: None) -> None:
    found = facts("model._target_=theirnet.Frozen")
    assert found.weights - found.gradients == (784 + 1) * 4 * 4
    assert found.optimizer == 2 * found.gradients


def test_what_is_left_out_is_told(user_code: None, capsys: pytest.CaptureFixture[str]) -> None:
    out = check(capsys, "model._target_=theirnet.Net")
    assert "model.dropout is left out: its class does not take it" in out


@pytest.mark.parametrize("name", ["Net", "Stubborn", "bare"])
def test_networks_of_any_kind(name: str, user_code: None) -> None:
    found = facts(f"model._target_=theirnet.{name}")
    assert found.parameters == (0 if name == "bare" else 784 * 4 + 4 + 4 * 10 + 10)


# nothing is made


def test_nothing_is_made_but_what_is_kept(kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check(capsys, "train.epochs=3")
    check(capsys, "run.dir=a/b", "train.epochs=3")
    made = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert made == [kept]
    assert list(Path.cwd().iterdir()) == []


def test_the_second_answer_is_the_first_without_torch(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["optim=sgd", "scheduler._target_=torch.optim.lr_scheduler.ConstantLR"]
    first = check(capsys, *words)
    assert "scheduler.cycles is left out" in first
    content = kept.read_bytes()
    code = "import sys; from tinyexp.__main__ import main; sys.exit(main(sys.argv[1:]) or 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, "check", "hw=cpu", *words], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == first
    assert kept.read_bytes() == content


# what is kept


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\x00", b"[]", b'{"a": 1}'])
def test_a_broken_file_of_answers_is_harmless(
    content: bytes, kept: Path, probed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    kept.parent.mkdir(parents=True)
    kept.write_bytes(content)
    first = check(capsys)
    assert check(capsys) == first
    assert probed == ["LeNet5"]  # once, and then it is kept over what was there


def test_a_file_of_answers_that_is_too_deep_is_harmless(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept.parent.mkdir(parents=True)
    kept.write_text("[" * 100_000)
    check(capsys)


@pytest.mark.parametrize("answer", [None, 5, {}, {"device": "cpu", "more": 2}])
def test_a_broken_answer_is_asked_again(answer: object, kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = check(capsys)
    (key,) = json.loads(kept.read_bytes())
    kept.write_text(json.dumps({key: answer}))
    assert check(capsys) == first


def test_where_nothing_can_be_kept(kept: Path, probed: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    kept.mkdir(parents=True)  # root may write anywhere, but not over a folder
    assert check(capsys) == check(capsys)
    kept.rmdir()
    kept.parent.rmdir()
    kept.parent.write_text("a file in the folder's place")
    check(capsys)
    assert probed == ["LeNet5"] * 3
    assert kept.parent.read_text() == "a file in the folder's place"


@pytest.mark.parametrize(
    "words",
    [
        ["optim.lr=0.004"],
        ["optim=sgd"],
        ["train.batch_size=65"],
        ["train.accumulate=2"],
        ["train.ema=0.9"],
        ["train.precision=bf16"],
        ["dataset.image_size=32"],
        ["model=lenet6"],
        ["+model.num_classes=10"],
        ["scheduler=step"],
        ["trust=[a.*]"],
    ],
)
def test_another_question_is_asked_anew(
    words: list[str], probed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    check(capsys)
    check(capsys, *words)
    assert len(probed) == 2
    check(capsys, *words)
    check(capsys)
    assert len(probed) == 2


@pytest.mark.parametrize("words", [["run.name=other"], ["log.every=3"], ["ckpt.keep=2"], ["run.root=elsewhere"]])
def test_what_the_network_does_not_follow_from_is_not_asked_again(
    words: list[str], probed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    check(capsys)
    check(capsys, *words)
    assert probed == ["LeNet5"]


def test_other_data_or_libraries_are_asked_anew(
    probed: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tinyexp.data.digits import digits

    def fewer(*, image_size: int) -> object:
        from dataclasses import replace

        whole = digits(image_size=image_size)
        return replace(whole, classes=(*whole.classes, "none of them"))

    check(capsys)
    monkeypatch.setattr("tinyexp.data.digits.digits", fewer)
    assert "in 11 classes" in check(capsys)
    monkeypatch.setattr("tinyexp.data.digits.digits", digits)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    check(capsys)
    monkeypatch.setattr("tinyexp.verbs.check.metadata.version", lambda name: "0.1")
    check(capsys)
    assert len(probed) == 4


def test_only_the_newest_answers_are_kept(
    kept: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tinyexp.verbs.check._MOST", 2)
    for seed in range(3):
        check(capsys, f"train.seed={seed}")
    keys = list(json.loads(kept.read_bytes()))
    assert len(keys) == 2
    check(capsys, "train.seed=0")
    assert next(iter(json.loads(kept.read_bytes()))) == keys[1]


def test_a_class_of_ones_own_is_asked_each_time(
    user_code: None, kept: Path, probed: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its code may change, and nobody would see it."""
    assert "3,190 parameters" in check(capsys, "model._target_=theirnet.Net")
    monkeypatch.setattr("theirnet.Net.width", 8)
    assert "6,370 parameters" in check(capsys, "model._target_=theirnet.Net")
    assert probed == ["Net", "Net"]
    assert not kept.exists()


# errors


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("dataset.image_size=8", "LeNet needs images of at least 12 px, got image_size=8"),
        ("model=torchvision model.name=alexnet", "model AlexNet does not take images of 1x28x28: "),
        ("model=torchvision model.name=alexnet", "Try another dataset.image_size"),
        ("model=torchvision model.name=resnet81", "model.name=resnet81 is no classification network of torchvision"),
        ("hw.device=cuda", "hw.device=cuda is not on this machine, which has: cpu (hw=auto takes the first)"),
        ("train.precision=fp16", "train.precision=fp16 is for cuda and mps; on the CPU use bf16 or fp32"),
        ("dataset=imagefolder", "dataset.root is not given"),
        ("dataset=imagefolder dataset.root=nowhere", "dataset.root=nowhere is no folder"),
        ("+model.num_classes=3", "model LeNet5 must give (64, 10) logits, got (64, 3)"),
        ("+model.in_channels=3", "model LeNet5 does not take images of 1x28x28"),
        ("+optim.lrr=1", "optim.lrr is no argument of torch.optim.AdamW; did you mean optim.lr?"),
        ("model._target_=theirnet.Undecided", "model Undecided must give (64, 10) logits, got (64,)"),
        ("model._target_=theirnet.no_network", "model._target_=theirnet.no_network must return a Module, got type"),
        ("resume=nowhere", "resume=nowhere must be auto, a run's directory"),
        ("run.dir=.", "run.dir=. is there already: give resume=., or another one"),
    ],
)
def test_what_would_not_run(words: str, message: str, user_code: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "hw=cpu", *words.split()]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("tinyexp: ")
    assert message in err
    assert "Traceback" not in err
    assert out == ""
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize("words", ["dataset.mean=[0.1,0.1] dataset.std=[0.1,0.1]", "init_from=nowhere"])
def test_what_would_not_run_and_is_not_told(words: str) -> None:
    assert main(["check", "hw=cpu", *words.split()]) == 2


def test_a_run_that_goes_on_is_checked(capsys: pytest.CaptureFixture[str]) -> None:
    Path("run").mkdir()
    Path("run/config.yaml").write_text(compose(["run.dir=run", "hw=cpu", "train.epochs=9"]).text)
    assert main(["check", "resume=run"]) == 0
    assert re.search(r"^directory +run$", capsys.readouterr().out, re.M)
    assert [path.name for path in Path("run").iterdir()] == ["config.yaml"]
