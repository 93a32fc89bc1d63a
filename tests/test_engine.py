"""The loop: against a plain one, by its properties, and whole runs of every file in conf/."""

from __future__ import annotations

import copy
import itertools
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import ALONE, LEAN, begin, rows, steps, train, write_image, write_mnist
from torch import Tensor, nn

from tinyexp.__main__ import main
from tinyexp.checkpoint import load
from tinyexp.compose import compose
from tinyexp.config import EarlyStop
from tinyexp.device import available_devices
from tinyexp.ema import Ema
from tinyexp.engine import TrainState, evaluate, train_epoch
from tinyexp.errors import ConfigError
from tinyexp.metrics import Scores
from tinyexp.monitor import is_better, patience_spent
from tinyexp.overrides import choices
from tinyexp.verbs.eval import score

SGD = ("optim=sgd", "optim.lr=0.05")
# The mean loss of each of the first 20 steps. By kernels without AVX they differ by 3e-6 of their value.
GOLDEN = [
    *(2.301526, 2.302603, 2.279644, 2.313986, 2.295264, 2.301064, 2.307025, 2.298788, 2.288297, 2.297735),
    *(2.308320, 2.309687, 2.292251, 2.294699, 2.309932, 2.303537, 2.295624, 2.288540, 2.299258, 2.290441),
]


def parameters(model: nn.Module) -> Tensor:
    """All of them, flat."""
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def take(number: int, *overrides: str) -> TrainState:
    """The state after so many optimizer steps."""
    config, data, state = begin(*overrides)
    for _ in itertools.islice(steps(config, data, state), number):
        pass
    return state


def losses(state: TrainState) -> list[float]:
    """Of each step of the unfinished epoch, summed over its samples."""
    state.scores.flush(ALONE, state.step)
    return state.scores.epoch.losses


# the step


def test_the_loop_is_a_plain_loop() -> None:
    """The lines that anyone would write, on the same batches, give the same weights."""

    def rate(step: int) -> float:
        """2 steps up, then down over the other 118 of 20 epochs."""
        return min(1, step / 2) * 0.5 * (1 + math.cos(math.pi * max(0, step - 2) / 118))

    config, data, state = begin(*SGD, "train.batch_size=50", "train.limit_batches=6", "scheduler.warmup=2")
    model = copy.deepcopy(state.network.model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    plain = []
    for (batch,) in data.train(0):
        images = (batch.images / 255 - 0.3056) / 0.3246
        loss = F.cross_entropy(model(images), batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        plain.append(loss.item() * 50)
    for _ in train_epoch(state, data.train(0), config.train, ALONE):
        pass
    torch.testing.assert_close(parameters(state.network.model), parameters(model), rtol=1e-5, atol=1e-6)
    assert losses(state) == pytest.approx(plain, rel=1e-5)
    assert state.lr == pytest.approx(0.05 * rate(5))


@pytest.mark.parametrize("accumulate", [2, 3, 7])
def test_accumulated_micro_batches_are_one_batch(accumulate: int) -> None:
    """To rounding; the last step, which is smaller, included."""
    words = (*SGD, "train.batch_size=400", "train.label_smoothing=0.1")  # 400, 400, 400 and 237 samples
    whole, split = take(4, *words), take(4, *words, f"train.accumulate={accumulate}")
    assert (whole.step_in_epoch, split.step_in_epoch) == (4, 4)
    torch.testing.assert_close(parameters(split.network.model), parameters(whole.network.model), rtol=1e-4, atol=1e-6)
    assert losses(split) == pytest.approx(losses(whole), rel=1e-5)


def test_a_batch_is_learned_by_heart() -> None:
    config, data, state = begin("train.batch_size=64")
    step = next(data.train(0))
    for _ in train_epoch(state, itertools.repeat(step, 60), config.train, ALONE):
        pass
    scores = evaluate(state.eval_network, step, 10, ALONE)
    assert (scores.top1, scores.count) == (1, 64)


def test_label_smoothing() -> None:
    config, data, state = begin("train.label_smoothing=0.2", "train.batch_size=16")
    (batch,) = next(data.train(0))
    expected = F.cross_entropy(state.network(batch.images), batch.labels, reduction="sum", label_smoothing=0.2)
    next(steps(config, data, state))
    assert losses(state) == [expected.item()]


def test_soft_labels_train() -> None:
    config, data, state = begin("train.batch_size=16")
    (batch,) = next(data.train(0))
    soft = replace(batch, labels=F.one_hot(batch.labels, 10).float())
    after = {}
    for name, kind in (("hard", batch), ("soft", soft)):
        _, _, state = begin("train.batch_size=16")
        next(train_epoch(state, [[kind]], config.train, ALONE))
        after[name] = parameters(state.network.model)
    torch.testing.assert_close(after["soft"], after["hard"])


@pytest.mark.parametrize("bound", [0.01, 0.1, 1e9])
def test_clip_norm_bounds_the_gradient(bound: float) -> None:
    """Without momentum and decay, a step of rate 1 is the gradient."""
    words = ("optim=sgd", "optim.lr=1", "optim.momentum=0", "optim.weight_decay=0")
    start = parameters(begin(*words)[2].network.model)
    free = parameters(take(1, *words).network.model) - start
    clipped = parameters(take(1, *words, f"train.clip_norm={bound}").network.model) - start
    norm = free.norm().item()
    assert 0.1 < norm < 1e9
    assert clipped.norm().item() == pytest.approx(min(norm, bound), rel=1e-3)
    torch.testing.assert_close(clipped / clipped.norm(), free / norm, rtol=1e-3, atol=1e-5)


def test_dropout_follows_from_seed_epoch_step_and_slot() -> None:
    """And not from what was drawn before."""
    config, data, state = begin("model.dropout=0.5", "train.batch_size=32", "optim.lr=0.0")
    (batch,) = next(data.train(0))
    drawn: list[Tensor] = []
    state.network.model.dropout.register_forward_hook(lambda *call: drawn.append(call[-1]))

    def step(*, seed: int = 0, epoch: int = 0, step_in_epoch: int = 0, slot: int = 0) -> None:
        state.epoch, state.step_in_epoch = epoch, step_in_epoch
        next(train_epoch(state, [[replace(batch, slot=slot)]], replace(config.train, seed=seed), ALONE))

    for place in ({}, {}, {"seed": 1}, {"epoch": 1}, {"step_in_epoch": 1}, {"slot": 1}):
        torch.rand(3)
        step(**place)
    first, again, *others = drawn
    assert torch.equal(first, again)
    assert not any(torch.equal(a, b) for a, b in itertools.combinations([first, *others], 2))


def test_val_has_no_dropout_and_training_has_it_again() -> None:
    config, data, state = begin("model.dropout=0.5", "train.limit_batches=1", "train.eval_batch_size=50")
    for _ in range(2):
        next(train_epoch(state, data.train(0), config.train, ALONE))
        assert state.network.model.training
        seen = []
        for probability in (0.5, 0.5, 0.0, 0.5):
            state.network.model.dropout.p = probability
            seen.append(evaluate(state.eval_network, data.val(), 10, ALONE).loss)
        assert len(set(seen)) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("model._target_=torch.nn.Flatten", "model Flatten must give (2, 10) logits for 2 images, got (2, 784)"),
        ("model._target_=torch.nn.Identity", "must give (2, 10) logits for 2 images, got (2, 1, 28, 28)"),
        ("model._target_=torch.nn.PixelShuffle +model.upscale_factor=3", "does not take images of 1x28x28: "),
        ("model._target_=os.getcwd", "model._target_=os.getcwd must return a Module, got str"),
    ],
)
def test_what_is_no_network_for_this_data(words: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        begin(*words.split())


# the averaged copy


def test_ema_is_the_average_written_by_hand() -> None:
    config, data, state = begin(*SGD, "train.ema=0.8")
    average = parameters(state.network.model)
    for number, _ in enumerate(itertools.islice(steps(config, data, state), 30), start=1):
        decay = min(0.8, (1 + number) / (10 + number))
        average = decay * average + (1 - decay) * parameters(state.network.model)
    torch.testing.assert_close(parameters(state.eval_network.model), average, rtol=1e-5, atol=1e-6)
    assert not torch.equal(parameters(state.network.model), average)
    assert not any(parameter.requires_grad for parameter in state.eval_network.model.parameters())


def test_ema_copies_buffers() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    average = Ema(model, 0.9)
    for step in (1, 2):
        model(torch.randn(4, 1, 5, 5))
        average.update(step)
    for mine, theirs in zip(average.model.buffers(), model.buffers(), strict=True):
        assert torch.equal(mine, theirs)
    assert model[1].num_batches_tracked == 2


# runs


def test_golden_curve() -> None:
    """A change that should alter no number alters none of these."""
    changes = ("dataset.augment.crop=pad", "dataset.augment.padding=2", "dataset.augment.flip=0.5")
    state = take(20, "optim=sgd", "optim.lr=0.02", "scheduler.warmup=4", *changes)
    assert [loss / 64 for loss in losses(state)] == pytest.approx(GOLDEN, rel=2e-5)


def test_two_runs_are_equal_bit_for_bit(tmp_path: Path) -> None:
    words = ("train.epochs=2", "train.limit_batches=5", "log.every=2", "model.dropout=0.3", "dataset.augment.crop=pad")
    states, logs = [], []
    for name in ("a", "b"):
        run = train(tmp_path / name, *words)
        states.append(load(run / "checkpoints" / "last.pt")["state"]["model"])
        logs.append([(row["step"], row["loss"], row["top1"]) for phase in ("train", "val") for row in rows(run, phase)])
        torch.rand(7)
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert logs[0] == logs[1]
    assert len(logs[0]) == 5 + 2


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("train.ema=0.9", "ckpt.monitor=val/loss"),
        ("train.precision=bf16", "dataset.image_size=64"),  # channels_last too
        ("train.eval_batch_size=7", "train.limit_batches=3"),
    ],
    ids=["plain", "ema", "bf16", "limited"],
)
def test_best_scored_again_is_what_was_logged(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    run = train(tmp_path / "run", "train.epochs=3", "train.limit_batches=8", *overrides)
    path = run / "checkpoints" / "best.pt"
    checkpoint = load(path)
    scores = score(checkpoint, str(path), ["hw.threads=1"])
    logged = next(row for row in rows(run, "val") if row["epoch"] == checkpoint["state"]["best"]["epoch"])
    assert scores.row() == {name: logged[name] for name in ("loss", "top1", "top5")}
    key = (lambda row: row["top1"]) if "ema" not in str(overrides) else (lambda row: -row["loss"])
    assert key(logged) == max(map(key, rows(run, "val")))
    assert scores.row().items() <= checkpoint["state"]["best"].items()


def test_early_stop(tmp_path: Path) -> None:
    run = train(
        tmp_path / "run",
        *("train.epochs=9", "train.limit_batches=1", "train.early_stop.patience=2", "train.early_stop.min_delta=1"),
    )
    assert [row["epoch"] for row in rows(run, "val")] == [1, 2, 3]


def init_from(tmp_path: Path, *overrides: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The best row of a run, and the only one of another that began from it and learned nothing."""
    first = train(tmp_path / "first", "train.epochs=2", "train.limit_batches=4")
    second = train(
        tmp_path / "second", "train.epochs=1", "train.limit_batches=4", f"init_from={first}", "optim.lr=0.0", *overrides
    )
    return max(rows(first, "val"), key=lambda row: row["top1"]), rows(second, "val")[0]


@pytest.mark.parametrize("overrides", [(), ("train.ema=0.99",), ("train.seed=5",)])
def test_init_from_takes_the_weights(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    before, after = init_from(tmp_path, *overrides)
    assert all(after[name] == pytest.approx(before[name]) for name in ("loss", "top1", "top5"))


def test_init_from_refuses_another_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = train(tmp_path / "first", "train.epochs=1", "train.limit_batches=1")
    assert main([*LEAN, f"run.dir={tmp_path}/second", f"init_from={first}", "model=lenet6"]) == 2
    assert f"init_from={first} has the weights of another network" in capsys.readouterr().err


# which epoch is the best


def scores(loss: float, top1: float) -> Scores:
    return Scores(loss=loss, top1=top1, top5=None, count=1)


@pytest.mark.parametrize(
    ("monitor", "loss", "top1", "better"),  # than a loss of 0.5 and a top1 of 0.8
    [
        ("val/top1", 0.9, 0.81, True),
        ("val/top1", 0.1, 0.79, False),
        ("val/top1", 0.4, 0.80, True),
        ("val/top1", 0.6, 0.80, False),
        ("val/top1", 0.5, 0.80, False),
        ("val/loss", 0.4, 0.10, True),
        ("val/loss", 0.6, 0.99, False),
        ("val/loss", 0.5, 0.81, True),
        ("val/loss", 0.5, 0.79, False),
        ("val/loss", 0.5, 0.80, False),
    ],
)
def test_a_tie_is_broken_by_the_other_score(monitor: str, loss: float, top1: float, better: bool) -> None:
    assert is_better(scores(loss, top1), {"loss": 0.5, "top1": 0.8}, monitor) is better
    assert is_better(scores(loss, top1), None, monitor)


def test_patience_waits_for_more_than_min_delta() -> None:
    """The mark stays where it was: small steps together count once they pass it by min_delta."""
    early_stop, mark, stale, seen = EarlyStop(patience=2, min_delta=0.125), None, 0, []
    for top1 in (0.5, 0.5625, 0.625, 0.6875, 0.25, 0.5, 0.875):
        mark, stale = patience_spent(scores(1.0, top1), mark, stale, "val/top1", early_stop)
        seen.append((mark, stale))
    assert seen == [(0.5, 0), (0.5, 1), (0.5, 2), (0.6875, 0), (0.6875, 1), (0.6875, 2), (0.875, 0)]
    assert patience_spent(scores(1.0, 0.5), -2.0, 3, "val/loss", early_stop) == (-1.0, 0)


# every file in conf/


def small_data(name: str, folder: Path) -> list[str]:
    """Overrides that give a data set of conf/dataset a few samples of its kind."""
    if name in ("mnist", "fashion_mnist"):
        return [f"dataset.root={write_mnist(folder)}"]
    if name == "imagefolder":
        for place in ("train/ant/1", "train/ant/2", "train/bee/1", "train/bee/2", "val/ant/1", "val/bee/1"):
            write_image(folder / f"{place}.png")
        return [f"dataset.root={folder}", "dataset.image_size=64"]
    if name == "digits":
        return []
    pytest.skip(f"this test has no small data for {name}")


@pytest.mark.parametrize("choice", [f"{group}={name}" for group, names in choices().items() for name in names])
def test_every_file_in_conf_trains_a_step(choice: str, tmp_path: Path) -> None:
    if choice == "model=timm":
        pytest.importorskip("timm", reason="timm is not installed")
    words = [choice, *(["model.name=mobilenet_v3_small"] if choice == "model=torchvision" else [])]
    if choice == "transfer=frozen" or choice.startswith("experiment=lenet5_to") or "lite0" in choice:
        first = train(tmp_path / "first", "train.epochs=1", "train.limit_batches=1")
        words.append(f"model.weights={first}")
    if choice in ("sweep=random", "sweep=tpe"):
        words.append("sweep.space={train.seed:[1,2]}")
    config = compose(words)
    if config.hw.device not in ("auto", *available_devices()):
        pytest.skip(f"{config.hw.device} is not on this machine")
    words += small_data(config.dataset.target.rpartition(".")[2], tmp_path / "data")
    run = train(tmp_path / "run", *words, "train.epochs=1", "train.limit_batches=1", "train.batch_size=8")
    assert [row["phase"] for row in rows(run, "train_epoch") + rows(run, "val")] == ["train_epoch", "val"]


def test_compiled_is_eager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By torch's tracing, without its C++ compiler, which takes half a minute and is torch's to test."""
    compiled = []

    def trace(module: nn.Module) -> Any:
        compiled.append(module)
        return torch._dynamo.optimize("aot_eager")(module)

    monkeypatch.setattr(torch, "compile", trace)
    words = ("train.epochs=1", "train.limit_batches=3", "log.every=1")
    runs = [train(tmp_path / name, *words, f"train.compile={name}") for name in ("false", "true")]
    assert len(compiled) == 1
    eager, traced = ([row["loss"] for row in rows(run, "train")] for run in runs)
    assert traced == pytest.approx(eager)
    names = [set(load(run / "checkpoints" / "last.pt")["state"]["model"]) for run in runs]
    assert names[0] == names[1], "a checkpoint's names are those of the bare model"
