"""What is frozen keeps its values to the bit, and all else is trained as if it were alone."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as torch_dist
from faults import LAST, SMALL, STEPS, Fault, digest, kill9, metrics, run
from helpers import ALONE, CPU, LEAN, rows, steps, train
from test_ranks import program, weights
from torch import Tensor, nn

from tinyexp.__main__ import main
from tinyexp.compose import compose
from tinyexp.config import Config
from tinyexp.data.loader import Data, load_data
from tinyexp.dist import Group
from tinyexp.engine import TrainState
from tinyexp.errors import ConfigError
from tinyexp.freezing import Frozen
from tinyexp.heads import find_head
from tinyexp.models import LeNet5, LeNet6
from tinyexp.models.zoo import torchvision_model
from tinyexp.start import Start
from tinyexp.start import begin as begin_with
from tinyexp.transfer import Weights

NET = "model._target_=test_freezing.Net"
FEATURES = "transfer.freeze=[features.*]"
BACKBONE = {name for name in LeNet5().state_dict() if not name.startswith("fc3")}


class Net(nn.Module):
    """Batch-norm and dropout in the part that is frozen here, and in the rest."""

    def __init__(self, *, num_classes: int = 10, dropout: float = 0.0, fixed: bool = False) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 4, 5, stride=3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3), nn.AdaptiveAvgPool2d(3)
        )
        self.neck = nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.BatchNorm1d(16), nn.Dropout(0.2 + dropout))
        self.head = nn.Linear(16, num_classes)
        self.features[0].bias.requires_grad_(not fixed)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.neck(self.features(images)))
        return logits


def begin(*words: str, tensors: dict[str, Tensor] | None = None) -> tuple[Config, Data, TrainState]:
    """What a run has before its first step; `tensors` are those of model.weights."""
    config = compose(["hw=cpu", *words])
    data = load_data(config, ALONE)
    start = Start(weights=Weights(tensors=tensors, origin="FILE") if tensors else None)
    begun = begin_with(config, data, data.names, ALONE, start)
    return config, data, TrainState.build(config, data, ALONE, begun)


def copies(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def changed(model: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


def frozen_names(*words: str, tensors: dict[str, Tensor] | None = None) -> set[str]:
    model = begin(*words, tensors=tensors)[2].network.model
    return {name for name, parameter in model.named_parameters() if not parameter.requires_grad}


# what training leaves alone


@pytest.mark.parametrize("optim", ["sgd", "adamw"])
def test_frozen_tensors_stay_as_they_were_to_the_bit(optim: str) -> None:
    """Whatever weight decay and momentum would do; buffers too."""
    config, data, state = begin(NET, FEATURES, f"optim={optim}", "optim.weight_decay=0.5", "train.ema=0.9")
    model = state.network.model
    model.features[1].running_mean.fill_(0.5)  # else what it would change to might be what it is
    before = copies(model)
    for _ in itertools.islice(steps(config, data, state), 6):
        pass
    assert changed(model, before) == {name for name in before if not name.startswith("features")}
    assert not [name for name in changed(state.eval_network.model, before) if name.startswith("features.0")]
    frozen = list(model.features.parameters())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in frozen)
    held = {id(parameter) for group in state.optimizer.param_groups for parameter in group["params"]}
    assert held == {id(parameter) for part in (model.neck, model.head) for parameter in part.parameters()}
    assert not [parameter for parameter in frozen if parameter in state.optimizer.state]
    assert len(state.optimizer.state) == 6


def modes(state: TrainState, config: Config, data: Data, number: int = 2) -> dict[str, set[bool]]:
    """Whether each module was in training mode when it ran, over some steps."""
    seen: dict[str, set[bool]] = {}
    for name, module in state.network.model.named_modules():
        module.register_forward_hook(lambda module, *_, name=name: seen.setdefault(name, set()).add(module.training))
    for _ in itertools.islice(steps(config, data, state), number):
        pass
    return seen


def test_wholly_frozen_parts_run_as_in_eval() -> None:
    config, data, state = begin(NET, FEATURES)
    seen = modes(state, config, data)
    for name in seen:
        assert seen[name] == {not name.startswith("features")}, name


def test_a_part_with_something_to_train_is_in_training() -> None:
    config, data, state = begin(NET, "transfer.freeze=[features.0.*,features.1.bias]")
    seen = modes(state, config, data)
    assert {name for name in seen if seen[name] == {False}} == {"features.0"}
    assert state.network.model.features[1].num_batches_tracked == 2


def test_frozen_dropout_and_batch_norm_give_what_eval_gives() -> None:
    config, data, state = begin(NET, FEATURES)
    model = state.network.model
    made: list[tuple[Tensor, Tensor]] = []
    model.features.register_forward_hook(lambda _, given, output: made.append((given[0].clone(), output)))
    model.neck.register_forward_hook(lambda _, given, output: made.append((given[0].clone(), output)))
    next(steps(config, data, state))
    model.eval()
    model._forward_hooks.clear()
    (images, maps), (fed, hidden) = made[:2]
    assert torch.equal(model.features(images), maps)
    assert not torch.equal(model.neck(fed), hidden)


# which parameters those are


def test_backbone_is_all_but_the_head() -> None:
    assert frozen_names("transfer.freeze=backbone", tensors=dict(LeNet5().state_dict())) == BACKBONE


def test_loaded_is_what_was_taken_whole() -> None:
    assert frozen_names("transfer.freeze=loaded", "model=lenet6", tensors=dict(LeNet5().state_dict())) == BACKBONE
    some = {name: each for name, each in LeNet5().state_dict().items() if name.startswith("conv")}
    assert frozen_names("transfer.freeze=loaded", tensors=some) == set(some)


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        ("conv1.*", {"conv1.weight", "conv1.bias"}),
        ("conv*.weight,fc1.bias", {"conv1.weight", "conv2.weight", "fc1.bias"}),
        ("conv1.*,conv1.weight", {"conv1.weight", "conv1.bias"}),
        ("fc3.bias", {"fc3.bias"}),
    ],
)
def test_patterns(patterns: str, names: set[str]) -> None:
    assert frozen_names(f"transfer.freeze=[{patterns}]") == names


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("transfer.freeze=[*]", "transfer.freeze=[*] leaves nothing to train"),
        ("transfer.freeze=[conv1.*,conv3.*]", "transfer.freeze: no parameter's name matches conv3.*; "),
        ("transfer.freeze=[conv1]", "transfer.freeze: no parameter's name matches conv1"),
        ("transfer.unfreeze_at=2", "transfer.unfreeze_at must be null where nothing is frozen"),
        ("transfer.views=2", "transfer.views must be null where nothing is frozen"),
        ("transfer.freeze=backbon", "transfer.freeze must be"),
    ],
)
def test_what_cannot_be_frozen(words: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        begin(words)


@pytest.mark.parametrize("freeze", ["backbone", "loaded"])
def test_random_weights_are_not_frozen(tmp_path: Path, freeze: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*LEAN, f"transfer.freeze={freeze}", f"run.dir={tmp_path}/run"]) == 2
    told = f"transfer.freeze={freeze} would keep random weights as they are: give model.weights="
    assert told in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_all_that_is_loaded_leaves_nothing_to_train() -> None:
    with pytest.raises(ConfigError, match=r"transfer.freeze=loaded leaves nothing to train"):
        begin("transfer.freeze=loaded", tensors=dict(LeNet5().state_dict()))


def test_backbone_without_a_head_says_what_would_do() -> None:
    model = "model._target_=test_freezing.NormedLast"
    with pytest.raises(ConfigError, match=r"which layer gives the logits; give patterns, as .*freeze=\[features"):
        begin(model, "transfer.freeze=backbone", tensors=dict(NormedLast(num_classes=10).state_dict()))


def test_a_backbone_of_random_weights_is_not_frozen() -> None:
    """Of fc3, which is before the head and of another shape, nothing was loaded."""
    with pytest.raises(ConfigError, match=r"transfer.freeze=backbone: .*fc3"):
        begin("transfer.freeze=backbone", "model=lenet6", tensors=dict(LeNet5().state_dict()))


def test_what_the_network_itself_keeps_fixed_is_never_trained() -> None:
    words = (NET, "+model.fixed=true", FEATURES, "transfer.unfreeze_at=1", "train.limit_batches=2")
    config, data, state = begin(*words)
    before = copies(state.network.model)
    for _ in itertools.islice(steps(config, data, state), 4):
        pass
    assert "features.0.weight" in changed(state.network.model, before)
    assert "features.0.bias" not in changed(state.network.model, before)


def test_nothing_left_but_what_the_network_itself_keeps_fixed() -> None:
    rest = "features.0.weight,features.1.*,neck.*,head.*"
    with pytest.raises(ConfigError, match="leaves nothing to train"):
        begin(NET, "+model.fixed=true", f"transfer.freeze=[{rest}]")


# until an epoch


@pytest.mark.parametrize("optim", ["sgd", "adamw"])
def test_all_is_trained_from_that_epoch_on(optim: str) -> None:
    words = (NET, FEATURES, "transfer.unfreeze_at=2", "train.limit_batches=3", f"optim={optim}")
    config, data, state = begin(*words)
    model, before = state.network.model, copies(state.network.model)
    each_step = steps(config, data, state)
    for step in range(1, 9):
        next(each_step)
        late = [name for name in changed(model, before) if name.startswith("features")]
        assert bool(late) == (step > 6), step
        assert (model.features[0].weight in state.optimizer.state) == (step > 6)
    assert set(late) == {name for name in before if name.startswith("features")}
    assert model.features.training
    assert model.features[1].num_batches_tracked == 2


def cut(save: int) -> list[Fault]:
    return [Fault("os.replace", kill9, LAST, save, after=True)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("save", "step"),
    [
        pytest.param(3, 3, id="before"),
        pytest.param(STEPS, STEPS, id="before val"),
        pytest.param(STEPS + 1, STEPS, id="at its beginning"),
        pytest.param(STEPS + 3, STEPS + 1, id="after its first step"),
        pytest.param(STEPS + 6, STEPS + 4, id="in it"),
    ],
)
def test_cut_and_resumed_is_uncut(tmp_path: Path, thawed: Path, save: int, step: int) -> None:
    """And the weights' file is gone by then."""
    (tmp_path / "first.pt").write_bytes((thawed.parent / "first.pt").read_bytes())
    assert run(tmp_path, *THAWED, faults=cut(save)).code == -9
    (tmp_path / "first.pt").unlink()
    ended = run(tmp_path, "resume=run")
    assert ended.code == 0, ended.output
    assert f"resumed at step {step} " in ended.output
    assert digest(tmp_path / "run") == digest(thawed)
    assert metrics(tmp_path / "run") == metrics(thawed)


THAWED = (
    *SMALL,
    "model=lenet6",
    "model.weights=first.pt",
    "transfer.freeze=loaded",
    "transfer.unfreeze_at=1",
    "transfer.backbone_lr_scale=0.5",
    "dataset.cache_dir=cache",
)


@pytest.fixture(scope="module")
def thawed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uncut run that trains all from its second epoch on."""
    folder = tmp_path_factory.mktemp("thawed")
    torch.save(LeNet5().state_dict(), folder / "first.pt")
    ended = run(folder, *THAWED)
    assert ended.code == 0, ended.output
    return folder / "run"


@pytest.mark.slow
def test_the_uncut_run_did_what_it_was_told(thawed: Path) -> None:
    """Else the tests of cuts would compare runs that freeze nothing."""
    state = torch.load(thawed / "checkpoints" / "last.pt", weights_only=True)["state"]
    assert set(state["frozen"]) == BACKBONE
    first = torch.load(thawed.parent / "first.pt", weights_only=True)
    assert not any(torch.equal(state["model"][name], first[name]) for name in BACKBONE)
    assert len(state["optimizer"]["state"]) == 12


# learning rates


def test_the_backbones_rate_is_a_share_of_the_heads_at_each_step() -> None:
    words = ("optim=sgd", "optim.lr=0.4", "scheduler=cosine", "scheduler.warmup=2", "train.limit_batches=6")
    config, data, state = begin(NET, *words, "transfer.backbone_lr_scale=0.25", "train.epochs=2")
    head, backbone = state.optimizer.param_groups
    assert {id(each) for each in head["params"]} == {id(each) for each in state.network.model.head.parameters()}
    assert len(head["params"]) + len(backbone["params"]) == len(list(state.network.model.parameters()))
    seen = []
    for _ in itertools.islice(steps(config, data, state), 11):
        assert backbone["lr"] == pytest.approx(head["lr"] / 4)
        seen.append(state.lr)
    assert max(seen) == pytest.approx(0.4)
    assert len(set(seen)) > 8


def test_a_step_of_the_backbone_is_its_share() -> None:
    """Of plain SGD without momentum and decay it is exactly that."""
    after = {}
    for scale in (1.0, 0.5):
        words = ("optim=sgd", "optim.momentum=0", "optim.weight_decay=0", "optim.lr=0.5", "scheduler=constant")
        config, data, state = begin(*words, f"transfer.backbone_lr_scale={scale}")
        before = copies(state.network.model)
        next(steps(config, data, state))
        after[scale] = {name: each - before[name] for name, each in state.network.model.state_dict().items()}
    for name, moved in after[1.0].items():
        share = 1 if name.startswith("fc3") else 0.5
        torch.testing.assert_close(after[0.5][name], moved * share, rtol=1e-3, atol=1e-6)


def test_the_logged_rate_is_the_heads(tmp_path: Path) -> None:
    words = ("optim.lr=0.02", "scheduler=constant", "train.epochs=1", "train.limit_batches=2", "log.every=1")
    made = train(tmp_path / "run", *words, "transfer.backbone_lr_scale=0.1")
    assert {row["lr"] for row in rows(made, "train")} == {0.02}


def test_rates_that_differ_need_a_rate_and_a_head() -> None:
    with pytest.raises(ConfigError, match=r"transfer.backbone_lr_scale=0.1 needs optim.lr to be given"):
        begin("optim=adamw", "optim.lr=null", "transfer.backbone_lr_scale=0.1")
    with pytest.raises(ConfigError, match=r"transfer.backbone_lr_scale=0.1 needs to know which layer gives the logits"):
        begin("model._target_=test_freezing.NormedLast", "transfer.backbone_lr_scale=0.1")


@pytest.mark.parametrize("name", ["OneCycleLR", "CyclicLR"])
def test_a_scheduler_that_sets_rates_of_its_own_is_refused(name: str) -> None:
    """Both groups would have its max_lr, and the scale would be lost without a word."""
    more = {"OneCycleLR": ("+scheduler.max_lr=0.1",), "CyclicLR": ("+scheduler.base_lr=0.1", "+scheduler.max_lr=0.2")}
    words = [f"scheduler._target_=torch.optim.lr_scheduler.{name}", "+scheduler.interval=step", *more[name]]
    config = [*words, "~scheduler.warmup", "~scheduler.cycles", "optim=sgd", "transfer.backbone_lr_scale=0.1"]
    with pytest.raises(ConfigError, match="backbone_lr_scale"):
        begin(*config)


# which layer gives the logits


class NormedLast(nn.Module):
    """The logits are those of a batch-norm."""

    def __init__(self, *, num_classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(784, num_classes), nn.BatchNorm1d(num_classes))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layers(images)
        return logits


class Scaled(nn.Module):
    """A layer with weights of its own, and another in it that has none."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.relu = nn.Parameter(torch.randn(10, 10)), nn.ReLU()

    def forward(self, values: Tensor) -> Tensor:
        return nn.functional.linear(self.relu(values), self.weight)


def head_of(model: nn.Module, size: tuple[int, ...], num_classes: int = 10) -> str:
    model.eval()
    with torch.no_grad():
        return find_head(model, num_classes, lambda: model(torch.zeros(2, *size)))[1]


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("resnet18", "fc"),
        ("mobilenet_v3_small", "classifier.3"),
        ("vgg11", "classifier.6"),
        ("squeezenet1_0", "classifier.1"),
        ("densenet121", "classifier"),
        ("swin_t", "head"),
        ("vit_b_16", "heads.head"),
        ("efficientnet_b0", "classifier.1"),
        ("convnext_tiny", "classifier.2"),
        ("shufflenet_v2_x0_5", "fc"),
    ],
)
def test_heads_of_torchvision(name: str, head: str) -> None:
    with torch.device("meta"):
        model = torchvision_model(name=name, num_classes=10, image_size=64)
        assert head_of(model, (3, 64, 64)) == head


def test_heads_of_ours_and_of_timm() -> None:
    assert head_of(LeNet5(), (1, 28, 28)) == "fc3"
    assert head_of(LeNet6(), (1, 28, 28)) == "fc4"


@pytest.mark.slow
def test_head_of_a_timm_network() -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed")
    with torch.device("meta"):
        assert head_of(timm.create_model("tf_efficientnet_lite0", num_classes=10), (3, 64, 64)) == "classifier"


def test_a_last_layer_that_is_not_seen_is_no_other() -> None:
    assert head_of(NormedLast(num_classes=10), (1, 28, 28)) == ""
    assert head_of(nn.Sequential(nn.Linear(4, 10), Scaled()), (4,)) == ""
    wrapped = nn.Sequential(nn.Linear(4, 10), nn.utils.parametrizations.weight_norm(nn.Linear(10, 10)))
    assert head_of(wrapped, (4,)) in ("", "1")
    assert head_of(nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 7), nn.Linear(7, 10)), (4,)) == "3"


def test_a_layer_that_is_the_whole_network_is_no_head() -> None:
    assert head_of(nn.Linear(4, 10), (4,)) == ""


# ranks


FEW = (*LEAN, "train.precision=fp32", "train.batch_size=200", "train.epochs=3", "log.every=1", "optim=sgd")


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("transfer.features=never", "dataset.augment.flip=0.5"),
        ("transfer.unfreeze_at=1", "train.ema=0.9", "train.clip_norm=1"),
    ],
    ids=["frozen", "unfrozen"],
)
def test_two_ranks_are_one_process(tmp_path: Path, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit, and rank 0 alone has read the weights."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    torch.save(Net().state_dict(), tmp_path / "first.pt")
    start = (NET, "transfer.freeze=backbone", f"model.weights={tmp_path}/first.pt", f"dataset.cache_dir={tmp_path}")
    alone = train(tmp_path / "alone", *FEW, *start, *words, "train.accumulate=2")
    program(*FEW, *start, *words, "hw.procs=2", f"run.dir={tmp_path}/together")
    mine, theirs = weights(alone), weights(tmp_path / "together")
    parameters = [name for name, _ in Net().named_parameters()]
    # batch-norm's statistics are of rank 0's micro-batches where they are not frozen
    equal = parameters if "unfreeze" in words[0] else list(mine)
    assert {name for name in equal if not torch.equal(mine[name], theirs[name])} == set()
    first = torch.load(tmp_path / "first.pt", weights_only=True)
    moved = any(not torch.equal(theirs[name], first[name]) for name in parameters if not name.startswith("head"))
    assert moved == ("unfreeze" in words[0])
    losses = [[row["loss"] for row in rows(each, "train")] for each in (alone, tmp_path / "together")]
    assert losses[0] == losses[1]


@pytest.fixture
def pair() -> Iterator[Group]:
    """A rank of two, whose group has it alone: to see what it would send."""
    torch_dist.init_process_group("gloo", store=torch_dist.HashStore(), rank=0, world_size=1)
    peers: Any = None
    yield Group(CPU, 0, 2, peers=peers, store=None, timeout=timedelta(seconds=9))
    torch_dist.destroy_process_group()


def sent(wrapped: Any) -> tuple[int, bool]:
    """The parameters whose gradients DDP averages, and whether it sends buffers."""
    return wrapped._get_ddp_logging_data()["num_parameter_tensors"], wrapped.broadcast_buffers


def test_frozen_parameters_are_not_sent(pair: Group) -> None:
    words = (NET, FEATURES, "transfer.unfreeze_at=1", "train.limit_batches=2")
    config, _, state = begin(*words)
    state.wrap(config.train, pair)
    assert sent(state.replica) == (6, True)  # the neck's batch-norm has buffers to send
    state.frozen.apply(state.network.model, 1)
    state.wrap(config.train, pair)
    assert sent(state.replica) == (10, True)


def test_buffers_are_not_sent_where_the_head_alone_is_trained(pair: Group) -> None:
    config, _, state = begin(NET, "transfer.freeze=[features.*,neck.*]")
    state.wrap(config.train, pair)
    assert sent(state.replica) == (2, False)


# the record


def test_what_was_frozen_is_in_the_checkpoint_and_told(tmp_path: Path) -> None:
    words = (NET, FEATURES, "train.epochs=1", "train.limit_batches=1", f"run.dir={tmp_path}/run")
    assert main([*LEAN, "log.level=info", *words]) == 0
    assert "of which 794 are trained" in (tmp_path / "run" / "run.log").read_text()
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.pt", weights_only=True)["state"]
    assert state["frozen"] == sorted(name for name, _ in Net().named_parameters() if name.startswith("features"))
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["parameters"] == 794 + 112


class Bare(nn.Module):
    """Batch-norm without parameters, in a part with them and in one of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, affine=False))
        self.head = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, affine=False))


@pytest.mark.parametrize(
    ("names", "backbone", "head"),
    [
        (["backbone.0.weight", "backbone.0.bias"], False, True),
        (["backbone.0.bias"], False, True),
        (["head.0.weight", "head.0.bias"], True, False),
        ([], True, True),
    ],
)
def test_batch_norm_without_parameters_goes_with_its_part(names: list[str], backbone: bool, head: bool) -> None:
    model, frozen = Bare(), Frozen(frozenset(names))
    frozen.apply(model, 0)
    frozen.train_mode(model)
    assert (model.backbone[1].training, model.head[1].training) == (backbone, head)
