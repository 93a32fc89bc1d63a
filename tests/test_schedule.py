"""Learning rates against closed forms and against torch's own; every scheduler and optimizer that torch has."""

from __future__ import annotations

import inspect
import io
import itertools
import math
from typing import Any

import pytest
import torch
from helpers import component
from torch import nn
from torch.optim import lr_scheduler

from tinyexp import schedule
from tinyexp.errors import ConfigError
from tinyexp.optim import build_optimizer
from tinyexp.schedule import Schedule, build_schedule

STEPS_PER_EPOCH = 5


def small_optimizer(lr: float = 1.0) -> torch.optim.Optimizer:
    return torch.optim.SGD([nn.Parameter(torch.zeros(3))], lr=lr, momentum=0.9)


def make(
    optimizer: torch.optim.Optimizer, name: str, *, epochs: int = 4, per_epoch: int = STEPS_PER_EPOCH, **arguments: Any
) -> Schedule:
    home = "tinyexp.schedule" if name.islower() else "torch.optim.lr_scheduler"
    return build_schedule(
        component("scheduler", f"{home}.{name}", **arguments),
        optimizer,
        total=epochs * per_epoch,
        steps_per_epoch=per_epoch,
        trust=(),
    )


def drive(
    optimizer: torch.optim.Optimizer, plan: Schedule, epochs: range, per_epoch: int = STEPS_PER_EPOCH
) -> list[float]:
    """The learning rate of each step of these epochs, val's loss rising and its top1 falling."""
    rates = []
    for epoch in epochs:
        for _ in range(per_epoch):
            optimizer.zero_grad()
            optimizer.step()
            rates.append(float(optimizer.param_groups[0]["lr"]))
            plan.after_step()
        plan.after_epoch(loss=1.0 + epoch, top1=1 / (1.0 + epoch))
    return rates


def history(name: str, *, epochs: int = 4, **arguments: Any) -> list[float]:
    optimizer = small_optimizer()
    return drive(optimizer, make(optimizer, name, epochs=epochs, **arguments), range(epochs))


# our functions


@pytest.mark.parametrize("warmup", [0, 1, 7, 0.25, 100])
def test_warmup_rises_in_a_line_and_reaches_exactly_one(warmup: float) -> None:
    total, span = 40, 10 if warmup == 0.25 else warmup
    for step in range(total):
        expected = 1.0 if step >= span else step / span
        assert schedule.constant(step, total, warmup=warmup) == expected
        assert schedule.step(step, total, step_size=1000, gamma=0.1, warmup=warmup) == expected
        assert schedule.cosine(step, total, cycles=0, warmup=warmup) == expected


@pytest.mark.parametrize(("total", "warmup"), [(10, 0), (10, 3), (1, 0), (1000, 0.1)])
@pytest.mark.parametrize(("cycles", "end"), [(0.5, 0), (1, 1), (2, 1), (1.5, 0)])
def test_cosine_ends_in_a_valley_or_on_a_peak(total: int, warmup: float, cycles: float, end: float) -> None:
    values = [schedule.cosine(step, total, cycles=cycles, warmup=warmup) for step in range(total + 1)]
    warm = round(warmup * total) if warmup < 1 else warmup
    assert values[int(warm)] == 1
    assert values[-1] == pytest.approx(end, abs=1e-12)
    assert all(0 <= value <= 1 for value in values)


def test_cosine_of_half_a_cycle_only_falls() -> None:
    values = [schedule.cosine(step, 50, cycles=0.5, warmup=0) for step in range(51)]
    assert all(before > after for before, after in itertools.pairwise(values))
    assert values[25] == pytest.approx(0.5)


def test_step_multiplies_at_each_span() -> None:
    values = [schedule.step(step, 10, step_size=4, gamma=0.5, warmup=0) for step in range(10)]
    assert values == [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25]
    assert values == [schedule.step(step, 10, step_size=0.4, gamma=0.5, warmup=0) for step in range(10)]


@pytest.mark.parametrize(("total", "warmup", "peak"), [(100, 0.3, 30), (100, 30, 30), (20, 0.5, 10), (7, 1, 1)])
def test_onecycle_rises_to_its_peak_and_falls_to_its_end(total: int, warmup: float, peak: int) -> None:
    values = [schedule.onecycle(step, total, warmup=warmup, start=0.04, end=1e-5) for step in range(total)]
    assert values[0] == pytest.approx(0.04)
    assert values[peak] == 1 == max(values)
    assert values[-1] == pytest.approx(1e-5)
    assert values[: peak + 1] == sorted(values[: peak + 1])
    assert values[peak:] == sorted(values[peak:], reverse=True)


@pytest.mark.parametrize("total", [1, 2, 3])
def test_a_run_of_few_steps_has_finite_rates(total: int) -> None:
    for step in range(total + 1):
        assert math.isfinite(schedule.onecycle(step, total, warmup=0.3, start=0.04, end=1e-5))
        assert math.isfinite(schedule.cosine(step, total, cycles=0.5, warmup=5))


@pytest.mark.parametrize("span", ["2ep", 10, 0.5])  # of 20 steps, 5 an epoch
def test_a_span_is_epochs_steps_or_a_share(span: float | str) -> None:
    assert history("step", step_size=span, gamma=0.1, warmup=0) == pytest.approx([1.0] * 10 + [0.1] * 10)
    assert history("constant", warmup=span)[:11] == pytest.approx([step / 10 for step in range(11)])


@pytest.mark.parametrize("span", [-1, -0.5, "2epochs", "-1ep", "ep", True, None, [1]])
def test_what_is_no_span(span: object) -> None:
    with pytest.raises(ConfigError, match=r"scheduler: .* a span must be steps|scheduler.warmup must be a number, got"):
        make(small_optimizer(), "constant", warmup=span)


@pytest.mark.parametrize("step_size", [0, "0ep", 0.001])
def test_a_step_of_nothing(step_size: object) -> None:
    with pytest.raises(ConfigError, match="step_size must be at least 1 step"):
        make(small_optimizer(), "step", step_size=step_size, gamma=0.1, warmup=0)


def test_wrong_arguments_of_a_function() -> None:
    with pytest.raises(ConfigError, match=r"scheduler\.cycle is no argument of .*; did you mean scheduler\.cycles\?"):
        make(small_optimizer(), "cosine", cycle=1, warmup=0)
    with pytest.raises(ConfigError, match=r"scheduler\.warmup must be given"):
        make(small_optimizer(), "cosine", cycles=1)
    with pytest.raises(ConfigError, match=r"scheduler\.interval is no argument of"):
        make(small_optimizer(), "constant", warmup=0, interval="step")


# the same as torch's, where they are the same


def test_cosine_is_torchs() -> None:
    ours = history("cosine", cycles=0.5, warmup=0)
    assert ours == pytest.approx(history("CosineAnnealingLR", T_max=20, interval="step"), abs=1e-12)


def test_step_is_torchs() -> None:
    ours = history("step", step_size=6, gamma=0.3, warmup=0)
    assert ours == pytest.approx(history("StepLR", step_size=6, gamma=0.3, interval="step"))


def test_onecycle_is_torchs() -> None:
    ours = history("onecycle", warmup=6, start=0.04, end=0.001)
    theirs = history(
        "OneCycleLR",
        max_lr=1.0,
        pct_start=7 / 20,
        div_factor=25,
        final_div_factor=40,
        cycle_momentum=False,
        interval="step",
    )
    assert ours == pytest.approx(theirs)


# torch's classes

CLASSES: dict[str, dict[str, Any]] = {
    "ConstantLR": {"factor": 0.5, "total_iters": 2},
    "CosineAnnealingLR": {"T_max": 4},
    "CosineAnnealingWarmRestarts": {"T_0": 3, "interval": "step"},
    "CyclicLR": {"base_lr": 0.1, "max_lr": 1.0, "step_size_up": 3, "interval": "step"},
    "ExponentialLR": {"gamma": 0.9},
    "LinearLR": {"start_factor": 0.1, "total_iters": 7, "interval": "step"},
    "MultiStepLR": {"milestones": [1, 3], "gamma": 0.1},
    "OneCycleLR": {"max_lr": 1.0, "interval": "step"},
    "PolynomialLR": {"total_iters": 4, "power": 2.0},
    "ReduceLROnPlateau": {"patience": 0, "factor": 0.5},
    "StepLR": {"step_size": 2, "gamma": 0.1},
}
NEED_PYTHON = {  # a YAML has no function and no scheduler to give them
    "LambdaLR",
    "MultiplicativeLR",
    "ChainedScheduler",
    "SequentialLR",
}


def public_classes(module: object, base: type) -> set[str]:
    found = inspect.getmembers(module, lambda thing: inspect.isclass(thing) and issubclass(thing, base))
    return {name for name, kind in found if name[0] != "_" and kind is not base}


def test_every_scheduler_of_torch_is_here() -> None:
    assert public_classes(lr_scheduler, lr_scheduler.LRScheduler) == {*CLASSES, *NEED_PYTHON}


@pytest.mark.parametrize("name", CLASSES)
def test_torchs_class_runs_and_goes_on_where_it_was(name: str) -> None:
    whole = history(name, **CLASSES[name])
    assert len(set(whole)) > 1, "the learning rate never changed"

    first = small_optimizer()
    plan = make(first, name, **CLASSES[name])
    begun = drive(first, plan, range(2))
    file = io.BytesIO()
    torch.save({"optimizer": first.state_dict(), "schedule": plan.state_dict()}, file)
    state = torch.load(io.BytesIO(file.getvalue()), weights_only=True)

    second = small_optimizer()
    plan = make(second, name, **CLASSES[name])
    second.load_state_dict(state["optimizer"])
    plan.load_state_dict(state["schedule"])
    assert begun + drive(second, plan, range(2, 4)) == whole


def test_an_interval_is_the_unit_of_all_that_a_class_counts() -> None:
    by_epoch = history("StepLR", step_size="2ep", gamma=0.1)
    assert by_epoch == history("StepLR", step_size=2, gamma=0.1, interval="epoch")
    assert by_epoch == history("StepLR", step_size="2ep", gamma=0.1, interval="step")
    assert history("OneCycleLR", max_lr=1.0)[::STEPS_PER_EPOCH][-1] < 1e-3  # it is over with the run
    with pytest.raises(ConfigError, match=r"scheduler\.interval must be step or epoch, got 'batch'"):
        make(small_optimizer(), "StepLR", step_size=2, interval="batch")


def test_plateau_watches_the_score_that_its_mode_is_for() -> None:
    """The loss rises and top1 falls: no mode of the two sees anything better after the first epoch."""
    for mode in ("min", "max"):
        rates = history("ReduceLROnPlateau", patience=0, factor=0.5, mode=mode)
        assert rates[::STEPS_PER_EPOCH] == [1, 1, 0.5, 0.25]
    with pytest.raises(ConfigError, match=r"scheduler\.interval must be epoch for ReduceLROnPlateau"):
        make(small_optimizer(), "ReduceLROnPlateau", interval="step")


# a run that is made longer


@pytest.mark.parametrize(
    ("name", "arguments", "late"),
    [
        ("cosine", {"cycles": 0.5, "warmup": 0.1}, 0),
        ("onecycle", {"warmup": 0.3, "start": 0.04, "end": 1e-5}, 0),
        ("step", {"step_size": 0.25, "gamma": 0.1, "warmup": 0}, 0),
        ("OneCycleLR", {"max_lr": 1.0, "interval": "step"}, 1),  # torch's sets a rate when it steps
    ],
)
def test_a_longer_run_has_the_schedule_of_its_new_length(name: str, arguments: dict[str, Any], late: int) -> None:
    first = small_optimizer()
    plan = make(first, name, epochs=4, **arguments)
    drive(first, plan, range(4))

    second = small_optimizer()
    longer = make(second, name, epochs=8, **arguments)
    second.load_state_dict(first.state_dict())  # brings the old learning rate
    longer.load_state_dict(plan.state_dict())
    rates = drive(second, longer, range(4, 8))
    assert rates[late:] == pytest.approx(history(name, epochs=8, **arguments)[20 + late :])


# optimizers

OPTIMIZERS: dict[str, dict[str, Any]] = {
    name: {"lr": lr}
    for name, lr in {
        "ASGD": 0.05,
        "Adadelta": 1.0,
        "Adafactor": 0.05,
        "Adagrad": 0.05,
        "Adam": 0.01,
        "AdamW": 0.01,
        "Adamax": 0.01,
        "NAdam": 0.01,
        "RAdam": 0.01,
        "RMSprop": 0.01,
        "Rprop": 0.01,
        "SGD": 0.05,
    }.items()
}
OTHERS = {"LBFGS", "Muon", "SparseAdam"}  # needs a closure; takes matrices alone; takes sparse gradients alone


def test_every_optimizer_of_torch_is_here() -> None:
    assert public_classes(torch.optim, torch.optim.Optimizer) == {*OPTIMIZERS, *OTHERS}


def fall(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 20) -> tuple[float, float]:
    """The loss before and after some steps on one batch."""
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(16, 1, 6, 6, generator=generator), torch.arange(16) % 4
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses[0], losses[-1]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_torchs_optimizer_trains(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4))
    optimizer = build_optimizer(component("optim", f"torch.optim.{name}", **OPTIMIZERS[name]), model, ())
    first, last = fall(model, optimizer)
    assert last < 0.9 * first


def test_muon_takes_matrices_alone() -> None:
    target = component("optim", "torch.optim.Muon", lr=0.02)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 16, bias=False), nn.ReLU(), nn.Linear(16, 4, bias=False))
    first, last = fall(model, build_optimizer(target, model, ()))
    assert last < 0.9 * first
    with pytest.raises(ConfigError, match="Muon does not take these arguments: Muon only supports 2D parameters"):
        build_optimizer(target, nn.Conv2d(1, 4, 3), ())


def test_sparse_adam_is_not_for_dense_gradients() -> None:
    """It says so itself, at its first step."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 4))
    optimizer = build_optimizer(component("optim", "torch.optim.SparseAdam", lr=0.02), model, ())
    with pytest.raises(RuntimeError, match="SparseAdam does not support dense gradients, please consider Adam"):
        fall(model, optimizer)


@pytest.mark.parametrize(
    ("arguments", "fused"),
    [({}, True), ({"foreach": True}, None), ({"fused": False}, False), ({"foreach": None}, True)],
)
def test_an_optimizer_is_fused_unless_another_way_is_asked_for(arguments: dict[str, Any], fused: bool | None) -> None:
    optimizer = build_optimizer(component("optim", "torch.optim.AdamW", lr=0.1, **arguments), nn.Linear(2, 2), ())
    assert optimizer.defaults["fused"] is fused


def test_frozen_parameters_are_left_out() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    model[0].requires_grad_(False)
    optimizer = build_optimizer(component("optim", "torch.optim.SGD", lr=0.1), model, ())
    assert [parameter.shape for parameter in optimizer.param_groups[0]["params"]] == [(2, 3), (2,)]
