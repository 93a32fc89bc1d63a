"""A frozen part that runs once: the same training as with it in each epoch, or else it does run in each."""

from __future__ import annotations

import importlib
import inspect
import json
import linecache
import logging
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from faults import LAST, Fault, digest, kill9, metrics, run, terminate
from helpers import ALONE, LEAN, rows, train
from test_ranks import program
from torch import Tensor, nn

from tinyexp.__main__ import main
from tinyexp.checkpoint import load
from tinyexp.compose import compose
from tinyexp.config import Config
from tinyexp.data.loader import Data, load_data
from tinyexp.device import Normalizer, fast_bf16, traits
from tinyexp.features import run_once
from tinyexp.freezing import Frozen
from tinyexp.models import LeNet5
from tinyexp.models.zoo import torchvision_model
from tinyexp.network import Network
from tinyexp.start import Begun, Start, begin
from tinyexp.tail import find_tail, folded
from tinyexp.transfer import Weights

FEATURES = "transfer.freeze=[features.*]"
NET = ("model._target_=test_features.Net", "model.dropout=0.3", FEATURES)
FEW = ("train.precision=fp32", "train.batch_size=200", "train.epochs=3", "log.every=1", "optim=sgd")
TRUST = "trust=[test_features.*]"
RAN: list[int] = []  # the numbers of images of each forward of a backbone
CPU = torch.device("cpu")
BF16 = fast_bf16(CPU)


class Net(nn.Module):
    """As torchvision's are: batch-norm and dropout in what is frozen, and a classifier that begins with dropout."""

    def __init__(self, *, num_classes: int = 10, dropout: float = 0.3, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.features = nn.Sequential(
            nn.Conv2d(1, 4, 5, stride=3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(3)
        )
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(36, num_classes))
        self.features.register_forward_pre_hook(lambda _, given: RAN.append(len(given[0])))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(images).flatten(1) * self.scale)
        return logits


class NormedTail(nn.Module):
    """What is trained begins with a batch-norm, right after the last frozen convolution."""

    def __init__(self, *, num_classes: int = 10, dropout: float = 0.0) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 4, 5, stride=3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3))
        self.classifier = nn.Sequential(nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(216, num_classes))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(images))
        return logits


def weights(model: nn.Module, path: Path) -> str:
    """A file of them; batch-norm's statistics are not those of a fresh one, which do nothing."""
    torch.manual_seed(5)
    for name, tensor in model.state_dict().items():
        if name.endswith(("running_mean", "running_var")):
            tensor.uniform_(0.5, 2)
    torch.save(model.state_dict(), path)
    return f"model.weights={path}"


@pytest.fixture
def start(tmp_path: Path) -> tuple[str, ...]:
    """Words for a run of Net that is frozen up to its classifier."""
    torch.manual_seed(1)
    return (*NET, weights(Net(), tmp_path / "first.pt"), f"dataset.cache_dir={tmp_path}/cache")


def whole(directory: Path) -> dict[str, Tensor]:
    return dict(load(directory / "checkpoints" / "last.pt")["state"]["model"])


def folders(cache: Path) -> set[str]:
    return {path.name for path in (cache / "features").glob("*")} if cache.exists() else set()


def assert_like(ours: Path, theirs: Path, rel: float = 1e-4) -> None:
    """Equal curves and weights, to rounding."""
    for phase in ("train", "train_epoch", "val"):
        mine, other = ([row["loss"] for row in rows(each, phase)] for each in (ours, theirs))
        assert mine == pytest.approx(other, rel=rel), phase
        assert mine
    tops = [[(row["top1"], row["top5"]) for row in rows(each, "val")] for each in (ours, theirs)]
    assert tops[0] == tops[1]
    mine, other = whole(ours), whole(theirs)
    assert list(mine) == list(other)
    for name in mine:
        torch.testing.assert_close(mine[name], other[name], rtol=1e-3, atol=1e-5, msg=name)


# the same training


@pytest.mark.parametrize(
    "words",
    [
        (),  # the classifier's dropout is that of features=never, of the same seeds
        ("train.ema=0.9",),
        ("train.accumulate=3", "train.clip_norm=0.5", "train.eval_batch_size=70"),
    ],
    ids=["plain", "ema", "accumulate"],
)
def test_training_on_features_is_training(tmp_path: Path, start: tuple[str, ...], words: tuple[str, ...]) -> None:
    once = train(tmp_path / "once", *FEW, *start, *words)
    assert len(folders(tmp_path / "cache")) == 2
    each = train(tmp_path / "each", *FEW, *start, *words, "transfer.features=never")
    assert_like(once, each)


@pytest.mark.parametrize("optim", ["sgd", "adamw"])
def test_training_a_tail_with_batch_norm(tmp_path: Path, optim: str) -> None:
    torch.manual_seed(1)
    file = weights(NormedTail(), tmp_path / "first.pt")
    words = ("model._target_=test_features.NormedTail", FEATURES, file, f"dataset.cache_dir={tmp_path}/cache")
    more = (*FEW[:-1], f"optim={optim}")
    once = train(tmp_path / "once", *more, *words)
    assert folders(tmp_path / "cache")
    assert_like(once, train(tmp_path / "each", *more, *words, "transfer.features=never"))


def test_training_lenets_head(tmp_path: Path) -> None:
    words = (weights(LeNet5(), tmp_path / "first.pt"), "transfer=frozen", f"dataset.cache_dir={tmp_path}/cache")
    once = train(tmp_path / "once", *FEW, *words)
    assert folders(tmp_path / "cache")
    assert_like(once, train(tmp_path / "each", *FEW, *words, "transfer.features=never"))
    first = torch.load(tmp_path / "first.pt", weights_only=True)
    for name, tensor in whole(once).items():
        assert torch.equal(tensor, first[name]) != name.startswith("fc3"), name


@pytest.mark.parametrize("precision", ["fp32", "auto", "bf16"])
def test_eval_of_the_run_equals_the_log(
    tmp_path: Path, start: tuple[str, ...], precision: str, capsys: pytest.CaptureFixture[str]
) -> None:
    made = train(tmp_path / "run", *FEW, *start, f"train.precision={precision}", "train.ema=0.9")
    capsys.readouterr()
    assert main(["eval", str(made), "hw.threads=1", TRUST]) == 0
    best = json.loads((made / "summary.json").read_text())["best"]
    line = f"val loss {best['loss']:.4f} top1 {best['top1']:.4f} top5 {best['top5']:.4f} (360 images)\n"
    assert capsys.readouterr().out.startswith(line)


def test_the_preview_shows_images(tmp_path: Path, start: tuple[str, ...]) -> None:
    made = train(tmp_path / "run", *FEW, *start, "dataset.preview=true")
    assert (made / "preview.png").exists()


# once


def test_each_image_passes_once(tmp_path: Path, start: tuple[str, ...]) -> None:
    def passed() -> int:
        many = [count for count in RAN if count > 4]  # fewer are trials
        RAN.clear()
        return sum(many)

    passed()
    train(tmp_path / "run", *FEW, *start)
    assert passed() == 1437 + 360
    train(tmp_path / "again", *FEW, *start, "optim.lr=0.3", "train.epochs=5")
    assert passed() == 0
    train(tmp_path / "each", *FEW, *start, "transfer.features=never")
    assert passed() == 3 * (1437 + 360)


def prepared(*words: str, tensors: dict[str, Tensor] | None = None) -> tuple[Config, Data, Begun, Data]:
    """A run's beginning: config, data, and what run_once made of them. Net's weights follow from its arguments."""
    config = compose(["hw=cpu", *words])
    data = load_data(config, ALONE)
    given = Start(weights=Weights(tensors=tensors, origin="FILE") if tensors else None)
    begun, fed = run_once(begin(config, data, data.names, ALONE, given), data, config, ALONE)
    return config, data, begun, fed


VIEWS = ("transfer.views=1", "dataset.augment.flip=0.5")
SAME = (*NET, "train.precision=fp32")


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """A cache that has the features of SAME and of SAME with VIEWS, and the weights."""
    cache = tmp_path_factory.mktemp("kept")
    torch.manual_seed(1)
    tensors = Net().state_dict()
    prepared(*SAME, f"dataset.cache_dir={cache}", tensors=tensors)
    assert len(folders(cache)) == 2
    prepared(*SAME, *VIEWS, f"dataset.cache_dir={cache}", tensors=tensors)
    assert len(folders(cache)) >= 3
    return cache, tensors


@pytest.mark.usefixtures("kept_hydra")
@pytest.mark.parametrize(
    ("words", "new"),  # the least number of new features, of train and val
    [
        (("optim.lr=0.5", "train.epochs=2", "train.batch_size=50", "train.seed=1"), 0),
        (("+model.scale=2.0",), 2),
        (("dataset.image_size=24",), 2),
        (("dataset.resize=32",), 2),
        (("dataset.mean=[0.5]",), 2),
        (("dataset.std=[0.5]",), 2),
        (("train.precision=bf16",), 1 + BF16),
        ((*VIEWS, "optim.lr=0.5"), 0),
        ((*VIEWS, "train.seed=1"), 1),
        ((*VIEWS, "dataset.augment.flip=0.6"), 1),
        ((*VIEWS, "dataset.augment.erase=0.6"), 1),
        ((*VIEWS, "transfer.views=2"), 1),
    ],
)
def test_features_are_those_of_what_they_follow_from(
    kept: tuple[Path, dict[str, Tensor]], words: tuple[str, ...], new: int
) -> None:
    cache, tensors = kept
    before = len(folders(cache))
    prepared(*SAME, *words, f"dataset.cache_dir={cache}", tensors=tensors)
    made = len(folders(cache)) - before
    assert made >= new, "what would be others was taken"
    assert new or not made, "made anew, and they would be the same"


@pytest.mark.parametrize("part", ["features.1.running_mean", "classifier.1.weight"])
def test_other_weights_are_other_features(tmp_path: Path, part: str) -> None:
    torch.manual_seed(1)
    tensors = {name: tensor.clone() for name, tensor in Net().state_dict().items()}
    prepared(*NET, f"dataset.cache_dir={tmp_path}", tensors=tensors)
    tensors[part].view(-1)[0] += 1
    prepared(*NET, f"dataset.cache_dir={tmp_path}", tensors=tensors)
    assert len(folders(tmp_path)) == (2 if part.startswith("classifier") else 4)


@pytest.mark.slow
def test_a_cut_building_leaves_nothing_that_is_taken(tmp_path: Path, start: tuple[str, ...]) -> None:
    words = ("run.dir=run", "hw.threads=1", *FEW, *start)
    assert run(tmp_path, *words, faults=[Fault("tinyexp.features.features_of", kill9)]).code == -9
    assert not [path for path in (tmp_path / "cache" / "features").glob("*") if path.name[0] != "."]
    assert run(tmp_path, "resume=run", TRUST, "dataset.cache_dir=cache").code == 0
    train(tmp_path / "whole", *FEW, *start)
    assert_like(tmp_path / "run", tmp_path / "whole", rel=1e-6)


def test_other_code_makes_other_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that was edited between two runs has the same name, arguments and weights."""
    monkeypatch.syspath_prepend(tmp_path)
    tensors = Net().state_dict()
    words = ["model._target_=edited.Edited", *NET[1:], f"dataset.cache_dir={tmp_path}/cache"]
    for code, made in (("relu()", 2), ("relu()", 2), ("sigmoid()", 4)):
        (tmp_path / "edited.py").write_text(
            "from test_features import Net\n\n\nclass Edited(Net):\n    def forward(self, images):\n"
            f"        return self.classifier(self.features(images).flatten(1).{code})\n"
        )
        monkeypatch.delitem(sys.modules, "edited", raising=False)
        importlib.invalidate_caches()
        linecache.checkcache()
        prepared(*words, tensors=tensors)
        assert len(folders(tmp_path / "cache")) == made


@pytest.mark.parametrize("damage", ["shorter", "no about.json", "another about.json"])
def test_damaged_features_are_told_and_made_again(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    tensors = Net().state_dict()
    words = (*NET, f"dataset.cache_dir={tmp_path}")
    prepared(*words, tensors=tensors)
    before = {path: path.read_bytes() for path in tmp_path.glob("features/*/features")}
    assert len(before) == 2
    for path in before:
        if damage == "shorter":
            path.write_bytes(path.read_bytes()[:-4])
        else:
            path.with_name("about.json").write_text("" if damage == "no about.json" else "[1]")
    prepared(*words, tensors=tensors)
    assert {path: path.read_bytes() for path in before} == before
    assert caplog.text.count("is damaged: it is made again") == 2


@pytest.mark.slow
def test_a_signal_while_features_are_made_is_answered_at_once(tmp_path: Path, start: tuple[str, ...]) -> None:
    words = ("run.dir=run", "hw.threads=1", "train.eval_batch_size=8", *FEW, *start)
    ended = run(tmp_path, *words, faults=[Fault("tinyexp.features.features_of", terminate, after=True)])
    assert ended.code == 1
    assert "SIGTERM: ended before the first step, when there was nothing to save" in ended.output
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "failed"
    assert not [path for path in (tmp_path / "cache" / "features").glob("*") if path.name[0] != "."]
    assert run(tmp_path, "resume=run", TRUST, "dataset.cache_dir=cache").code == 0


# views


def test_epochs_take_views_in_turn(tmp_path: Path, start: tuple[str, ...]) -> None:
    """Epoch e is fed what the frozen part makes of each image as it is augmented in epoch e mod 2."""
    words = (*FEW, "dataset.augment.flip=0.5", "dataset.augment.crop=pad")
    model = Net()
    model.load_state_dict(torch.load(tmp_path / "first.pt", weights_only=True))
    _, data, begun, fed = prepared(*NET, start[-1], *words, "transfer.views=2", tensors=model.state_dict())
    assert begun.network.tail == "classifier"
    normalize = Normalizer(data.mean, data.std, traits(CPU, "fp32", 28 * 28, False))
    model.eval()
    with torch.no_grad():
        views = [
            torch.cat([model.features(normalize(images)).flatten(1) for images in data.images("train", view)])
            for view in (0, 1)
        ]
        val = torch.cat([model.features(normalize(images)).flatten(1) for images in data.images("val")])
    assert not torch.allclose(views[0], views[1])
    for epoch in (0, 1, 2, 3):
        for batches in fed.train(epoch):
            for batch in batches:
                torch.testing.assert_close(batch.images, views[epoch % 2][batch.index], rtol=1e-4, atol=1e-5)
                pixels = {int(number): int(label) for number, label in zip(batch.index, batch.labels, strict=True)}
        for (plain,), (featured,) in zip(data.train(epoch), fed.train(epoch), strict=True):
            assert torch.equal(plain.index, featured.index)
            assert torch.equal(plain.labels, featured.labels)
            assert (plain.slot, plain.total) == (featured.slot, featured.total)
        assert pixels
    for plain, featured in zip(data.val(), fed.val(), strict=True):
        torch.testing.assert_close(featured.images, val[featured.index], rtol=1e-4, atol=1e-5)
        assert torch.equal(plain.labels, featured.labels)


def test_a_view_is_what_training_on_images_sees_in_that_epoch(tmp_path: Path, start: tuple[str, ...]) -> None:
    """Of two views, two epochs are as if nothing had been kept."""
    words = (*FEW, "train.epochs=2", "dataset.augment.flip=0.5", "dataset.augment.crop=pad", "transfer.views=2")
    once = train(tmp_path / "once", *words, *start)
    assert len(folders(tmp_path / "cache")) == 3
    assert_like(once, train(tmp_path / "each", *words, *start, "transfer.features=never"))


# where it cannot be


def told(caplog: pytest.LogCaptureFixture, *words: str, tensors: dict[str, Tensor]) -> tuple[str, Begun]:
    """What is logged, and the network."""
    logger = logging.getLogger("tinyexp.features")
    logger.addHandler(caplog.handler)
    level, logger.disabled = logger.level, False
    logger.setLevel(logging.INFO)
    try:
        begun = prepared(*words, tensors=tensors)[2]
    finally:
        logger.removeHandler(caplog.handler)
        logger.setLevel(level)
    return caplog.text, begun


@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("dataset.augment.mixup=0.2", "dataset.augment mixes them"),
        ("dataset.augment.cutmix=0.2", "dataset.augment mixes them"),
        ("train.limit_batches=2", "train.limit_batches takes a few of them"),
        ("dataset.augment.flip=0.5", "transfer.views=1 has it run once"),
        ("dataset.augment.crop=random_resized", "transfer.views=1 has it run once"),
        ("dataset.augment.erase=0.5", "transfer.views=1 has it run once"),
        ("dataset.augment.policy=randaugment", "transfer.views=1 has it run once"),
        ("dataset.augment.jitter=[0.1,0.1,0.1,0.1]", "transfer.views=1 has it run once"),
    ],
)
def test_each_epoch_needs_its_own_and_it_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, word: str, why: str
) -> None:
    text, begun = told(caplog, *NET, word, f"dataset.cache_dir={tmp_path}", tensors=Net().state_dict())
    assert "the frozen part runs over the images in each epoch: " in text
    assert why in text
    assert (begun.network.tail, folders(tmp_path)) == ("", set())


@pytest.mark.parametrize("word", ["transfer.features=never", "transfer.unfreeze_at=1"])
def test_what_was_asked_for_is_not_told(tmp_path: Path, caplog: pytest.LogCaptureFixture, word: str) -> None:
    text, begun = told(caplog, *NET, word, f"dataset.cache_dir={tmp_path}", tensors=Net().state_dict())
    assert (text, begun.network.tail, folders(tmp_path)) == ("", "", set())


def test_dropout_before_the_head_is_not_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """LeNet's stands between what is frozen and its last layer, in no module that has both."""
    words = ("transfer.freeze=backbone", "model.dropout=0.5", f"dataset.cache_dir={tmp_path}")
    text, begun = told(caplog, *words, tensors=dict(LeNet5().state_dict()))
    assert "what is trained is not all that comes after it" in text
    assert (begun.network.tail, folders(tmp_path)) == ("", set())


class Trials(nn.Module):
    """Networks whose head alone does not make the logits, by kind; "plain" is one whose does."""

    def __init__(self, *, num_classes: int = 10, dropout: float = 0.0, kind: str = "plain") -> None:
        super().__init__()
        self.kind = kind
        self.features = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
        self.head = nn.Linear(10, num_classes)
        self.norm = nn.BatchNorm1d(10, affine=False)

    def forward(self, images: Tensor) -> Tensor:
        fed = self.features(images)
        if self.kind == "dropout":
            fed = nn.functional.dropout(fed, 0.1, self.training)
        elif self.kind == "norm":
            fed = self.norm(fed)
        logits: Tensor = self.head(fed)
        if self.kind == "twice":
            logits = self.head(logits)
        elif self.kind == "beside":
            logits = logits + fed
        elif self.kind == "scaled":
            logits = logits * 2
        return logits


def network_of(model: nn.Module, shape: tuple[int, int, int]) -> Network:
    """In fp32, with its batch-norm not that of a fresh network."""
    plan = traits(CPU, "fp32", shape[1] * shape[2], False)
    torch.manual_seed(2)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
            for tensor in (module.running_mean, module.running_var, module.weight, module.bias):
                nn.init.uniform_(tensor, 0.5, 1.5)
    return Network(
        model=model,
        forward=model,
        normalize=Normalizer((0.5,) * shape[0], (0.5,) * shape[0], plan),
        traits=plan,
    )


def pictures(*shape: int, count: int = 4) -> Tensor:
    return torch.randint(0, 256, (count, *shape), generator=torch.Generator().manual_seed(3)).to(torch.uint8)


def tail_of(model: nn.Module, frozen: str, shape: tuple[int, int, int] = (1, 28, 28)) -> str | None:
    """Its tail, where the parameters whose names begin so are frozen."""
    network = network_of(model, shape)
    names = Frozen(frozenset(name for name, _ in model.named_parameters() if name.startswith(frozen)))
    names.apply(model, 0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = find_tail(network, names, pictures(*shape))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items()), "it was a trial"
    return found


@pytest.mark.parametrize("kind", ["dropout", "twice", "beside", "scaled"])
def test_a_head_that_does_not_make_the_logits_alone_is_no_tail(kind: str) -> None:
    assert tail_of(Trials(kind=kind), "features") is None


def test_tails() -> None:
    assert tail_of(Trials(), "features") == "head"
    assert tail_of(Trials(kind="norm"), "features") == "head"  # without parameters it goes with what is frozen
    assert tail_of(Net(), "features") == "classifier"  # with its dropout
    assert tail_of(Net(dropout=0), "features") == "classifier.1"
    assert tail_of(NormedTail(), "features") == "classifier"
    assert tail_of(LeNet5(), ("conv1", "conv2", "fc1", "fc2")) == "fc3"  # type: ignore[arg-type]
    assert tail_of(LeNet5(), "fc") is None
    mobile = torchvision_model(name="mobilenet_v3_small", num_classes=10, image_size=32)
    assert tail_of(mobile, "features", (3, 32, 32)) == "classifier"


def test_a_frozen_part_between_trained_ones_is_no_backbone() -> None:
    assert tail_of(LeNet5(), "fc1") is None


# folding


def largest(first: Tensor, second: Tensor) -> float:
    return float((first - second).abs().max() / first.abs().max())


@torch.no_grad()
def logits(network: Network, images: Tensor) -> Tensor:
    network.model.eval()
    return network(images)


def norms(network: Network) -> int:
    return sum(isinstance(each, nn.modules.batchnorm._BatchNorm) for each in network.model.modules())


def fold(network: Network, images: Tensor, tail: str) -> Network:
    """Proven by what this part is fed, where `folded` asks for it."""
    return folded(network, images, *[tail][: len(inspect.signature(folded).parameters) - 2])


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_folded_is_the_same_network(name: str) -> None:
    model = torchvision_model(name=name, num_classes=10, image_size=32)
    network, images = network_of(model, (3, 32, 32)), pictures(3, 32, 32)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    quick = fold(network, images, "fc" if name == "resnet18" else "classifier")
    assert norms(quick) == 0
    others = pictures(3, 32, 32, count=6)[4:]  # that it was not proven on
    assert largest(logits(network, others), logits(quick, others)) < 1e-4
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


@pytest.mark.slow
def test_folded_is_the_same_network_of_timm() -> None:
    """Its batch-norm carries the activation."""
    timm = pytest.importorskip("timm", reason="timm is not installed")
    network = network_of(timm.create_model("tf_efficientnet_lite0", num_classes=10), (3, 32, 32))
    quick = fold(network, pictures(3, 32, 32), "classifier")
    assert norms(quick) == 0
    others = pictures(3, 32, 32, count=6)[4:]
    assert largest(logits(network, others), logits(quick, others)) < 1e-4


class Forked(nn.Module):
    """What a batch-norm is fed has another use as well; or the batch-norm has two places."""

    def __init__(self, kind: str, gain: float) -> None:
        super().__init__()
        self.kind = kind
        self.first, self.second = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(4), nn.Linear(4, 10, bias=False)
        self.head.weight.data *= gain

    def forward(self, images: Tensor) -> Tensor:
        maps = self.first(images)
        fed = self.norm(maps) + maps if self.kind == "forked" else self.norm(self.second(self.norm(maps)))
        logits: Tensor = self.head(fed.mean((2, 3)))
        return logits


@pytest.mark.parametrize("gain", [1.0, 1e-4, 0.0])  # some begin with a head of zeros, which shows nothing
@pytest.mark.parametrize("kind", ["forked", "shared"])
def test_a_network_that_cannot_be_folded_stays_as_it_is(kind: str, gain: float) -> None:
    network, images = network_of(Forked(kind, gain), (1, 12, 12)), pictures(1, 12, 12)
    quick = fold(network, images, "head")
    assert norms(quick) == 1
    fed: list[Tensor] = []
    for each in (network, quick):
        hook = each.model.head.register_forward_pre_hook(lambda _, given: fed.append(given[0]))
        logits(each, images)
        hook.remove()
    assert largest(*fed) < 1e-5


def test_a_batch_norm_that_is_trained_is_not_folded(tmp_path: Path) -> None:
    """What its tail is fed is the convolution's output, and not its own."""
    torch.manual_seed(1)
    file = weights(NormedTail(), tmp_path / "first.pt")
    model = NormedTail()
    model.load_state_dict(torch.load(tmp_path / "first.pt", weights_only=True))
    words = ("model._target_=test_features.NormedTail", FEATURES, "train.precision=fp32")
    _, data, _, fed = prepared(*words, f"dataset.cache_dir={tmp_path}", tensors=model.state_dict())
    (batch,) = next(fed.train(0))
    (pixels,) = next(data.train(0))
    normalize = Normalizer(data.mean, data.std, traits(CPU, "fp32", 28 * 28, False))
    expected = model.eval().features(normalize(pixels.images))
    torch.testing.assert_close(batch.images, expected.detach(), rtol=1e-4, atol=1e-5)
    assert file


# cut, and on two ranks


@pytest.mark.slow
@pytest.mark.parametrize(
    ("save", "gone"),
    [(3, False), (9, False), (12, True)],
    ids=["first epoch", "its end", "second epoch, without the features"],
)
def test_cut_and_resumed_is_uncut(tmp_path: Path, uncut_once: Path, save: int, gone: bool) -> None:
    shutil.copy(uncut_once.parent / "first.pt", tmp_path)
    assert run(tmp_path, *SAVED, faults=[Fault("os.replace", kill9, LAST, save, after=True)]).code == -9
    (tmp_path / "first.pt").unlink()
    if gone:
        shutil.rmtree(tmp_path / "cache")
    ended = run(tmp_path, "resume=run", TRUST, "dataset.cache_dir=cache")
    assert ended.code == 0, ended.output
    assert ("where they were already" in ended.output) != gone
    assert digest(tmp_path / "run") == digest(uncut_once)
    assert metrics(tmp_path / "run") == metrics(uncut_once)


SAVED = (
    *NET,
    *FEW,
    "model.weights=first.pt",
    "run.dir=run",
    "hw.threads=1",
    "train.ema=0.9",
    "ckpt.every_minutes=0",
    "dataset.cache_dir=cache",
    "dataset.augment.flip=0.5",
    "transfer.views=2",
)


@pytest.fixture(scope="module")
def uncut_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("features")
    weights(Net(), folder / "first.pt")
    ended = run(folder, *SAVED)
    assert ended.code == 0, ended.output
    assert "the frozen part ran once" in ended.output
    return folder / "run"


@pytest.mark.slow
def test_two_ranks_make_one_cache_and_are_one_process(
    tmp_path: Path, start: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    words = (*LEAN, *FEW, *start)
    program(*words, "hw.procs=2", "log.level=info", f"run.dir={tmp_path}/together")
    there = folders(tmp_path / "cache")
    assert len(there) == 2
    alone = train(tmp_path / "alone", *words, "train.accumulate=2")
    assert folders(tmp_path / "cache") == there
    mine, theirs = whole(alone), whole(tmp_path / "together")
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())
    losses = [[row["loss"] for row in rows(each, "train")] for each in (alone, tmp_path / "together")]
    assert losses[0] == losses[1]
    assert "the frozen part ran once" in (tmp_path / "together" / "run.log").read_text()


def test_unused_features_cost_nothing(tmp_path: Path) -> None:
    """No more views are made than there are epochs."""
    words = (*NET, "train.epochs=2", "transfer.views=5", "dataset.augment.flip=0.5", f"dataset.cache_dir={tmp_path}")
    fed: Any = prepared(*words, tensors=Net().state_dict())[3]
    assert fed
    assert len(folders(tmp_path)) == 3
