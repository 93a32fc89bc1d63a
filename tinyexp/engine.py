"""The loop: what training changes (TrainState), one epoch of steps, and scoring. No files, no printing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from tinyexp import seeds
from tinyexp.config import Config, TrainConfig
from tinyexp.data.loader import Data
from tinyexp.data.plan import Batch
from tinyexp.device import seed_all
from tinyexp.dist import Dist
from tinyexp.ema import Ema
from tinyexp.errors import IntegrityError, NonFiniteError
from tinyexp.freezing import Frozen
from tinyexp.metrics import EvalSums, RunningScores, Scores, Sums
from tinyexp.network import Network
from tinyexp.optim import Grouping, build_optimizer, check_rates
from tinyexp.schedule import Schedule, build_schedule
from tinyexp.start import Begun, Start, begin


@dataclass(kw_only=True)
class TrainState:
    """All that training changes; what a checkpoint holds."""

    network: Network
    replica: nn.Module  # the part of the model that is trained, or DDP around it
    frozen: Frozen
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    scaler: torch.amp.GradScaler
    ema: Ema | None
    epoch: int = 0  # epochs that are over, their val included
    step: int = 0  # optimizer steps since the run began
    step_in_epoch: int = 0
    scores: RunningScores = field(default_factory=RunningScores)
    best: dict[str, Any] | None = None  # the scores of best.pt's epoch
    last: dict[str, Any] | None = None  # and of the latest
    stale: int = 0  # epochs since ckpt.monitor was last better by early_stop.min_delta
    mark: float | None = None  # what it was then
    lr: float = 0.0  # learning rate of the last step

    @staticmethod
    def build(config: Config, data: Data, dist: Dist, begun: Begun | None = None) -> TrainState:
        """A run's state before its first step; of None, it begins with random weights.

        Raises:
            ConfigError: a model, optimizer or scheduler that is not there, or arguments that it does not take.
        """
        torch.use_deterministic_algorithms(config.train.deterministic)
        begun = begun or begin(config, data, data.names, dist, Start())
        bare, frozen = begun.network, begun.frozen
        grouping = Grouping(
            bare.head, config.transfer.backbone_lr_scale, frozen.until is not None, frozen.never_trained(bare.model)
        )
        optimizer = build_optimizer(config.optim, bare.model, config.trust, grouping)
        schedule = build_schedule(
            config.scheduler,
            optimizer,
            total=config.train.epochs * data.steps_per_epoch,
            steps_per_epoch=data.steps_per_epoch,
            trust=config.trust,
        )
        check_rates(optimizer, grouping, config.scheduler.target)
        state = TrainState(
            network=bare,
            replica=bare.model,
            frozen=frozen,
            optimizer=optimizer,
            schedule=schedule,
            scaler=torch.amp.GradScaler(dist.device.type, enabled=bare.traits.grad_scaler),
            ema=None if config.train.ema is None else Ema(bare.model, config.train.ema),
        )
        state.wrap(config.train, dist)
        if begun.start.state:
            state.load_state_dict(begun.start.state)
        return state

    def begin_epoch(self, train: TrainConfig, dist: Dist) -> None:
        """The network ready to train; where it is time, with what was frozen till now."""
        if self.epoch == self.frozen.until and self.step_in_epoch == 0:
            self.frozen.apply(self.network.model, self.epoch)
            self.wrap(train, dist)
        self.frozen.train_mode(self.network.model)

    def wrap(self, train: TrainConfig, dist: Dist) -> None:
        """Under DDP or torch.compile, make the wrapper for those parameters that are trained now."""
        self.replica = dist.wrap(self.network.model.get_submodule(self.network.tail))
        self.network = self.network.calling(torch.compile(self.replica) if train.compile else self.replica)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Those that training changes."""
        return [parameter for parameter in self.network.model.parameters() if parameter.requires_grad]

    @property
    def eval_network(self) -> Network:
        """The network to score and to keep: the averaged copy where there is one."""
        return self.network.of(self.ema.model if self.ema else self.network.model)

    def accumulating(self, more: bool) -> AbstractContextManager[object]:
        """Under DDP, gradients are averaged over ranks with the last micro-batch of a step alone."""
        return self.replica.no_sync() if more and isinstance(self.replica, DistributedDataParallel) else nullcontext()

    def state_dict(self) -> dict[str, Any]:
        """Tensors and JSON types, under bare names; `scores` must be flushed."""
        return {
            "model": self.network.model.state_dict(),
            "ema": self.ema.model.state_dict() if self.ema else None,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "scores": self.scores.state_dict(),
            "frozen": sorted(self.frozen.names),
            **{name: getattr(self, name) for name in _PLAIN},
        }

    def weights(self) -> dict[str, Any]:
        """What best.pt keeps: the weights to use, which are the averaged ones where there are any, and their scores."""
        return {
            "model": self.eval_network.model.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "best": self.best,
            "frozen": sorted(self.frozen.names),
        }

    def check_scale(self) -> None:
        """Raises NonFiniteError when fp16's gradients overflow whatever the scale: then they are not finite at all."""
        if self.scaler.is_enabled() and self.scaler.get_scale() < 1:
            raise NonFiniteError(f"fp16 gradients overflow at step {self.step} at any scale; try train.precision=bf16")

    def end_epoch(self) -> None:
        """On to the next epoch's first step."""
        self.scores.epoch = Sums()
        self.epoch += 1
        self.step_in_epoch = 0

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises IntegrityError for the state of another network or optimizer."""
        try:
            self.network.model.load_state_dict(state["model"])
            if self.ema:
                self.ema.model.load_state_dict(state["ema"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])
            self.scaler.load_state_dict(state["scaler"])
            self.scores.load_state_dict(state["scores"])
            for name in _PLAIN:
                setattr(self, name, state[name])
        except (KeyError, ValueError, RuntimeError) as error:
            raise IntegrityError(f"the checkpoint does not fit this run: {error}") from error


_PLAIN = ("epoch", "step", "step_in_epoch", "best", "last", "stale", "mark", "lr")


def train_epoch(state: TrainState, steps: Iterable[list[Batch]], train: TrainConfig, dist: Dist) -> Iterator[None]:
    """Train on each step's micro-batches; comes back to the caller after each optimizer step."""
    state.begin_epoch(train, dist)
    network, parameters = state.network, state.parameters
    for batches in steps:
        state.optimizer.zero_grad()
        for batch in batches:
            seed_all(dist.device, seeds.key(train.seed, state.epoch, state.step_in_epoch, batch.slot))  # for dropout
            labels = network.to_device(batch.labels)
            with state.accumulating(more=batch is not batches[-1]):
                logits = network(batch.images)
                loss = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=train.label_smoothing)
                # Over the whole step's samples; times world, since DDP's mean over ranks divides by it.
                state.scaler.scale(loss * (dist.world / batch.total)).backward()
            state.scores.add(loss.detach(), logits.detach(), labels)
        dist.average_gradients(parameters)
        optimizer_step(state, parameters, train)
        yield


def optimizer_step(state: TrainState, parameters: list[nn.Parameter], train: TrainConfig) -> None:
    """From the step's gradients to new weights, and on to the next step."""
    state.scaler.unscale_(state.optimizer)
    norm = get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    if train.clip_norm is not None:
        clip_grads_with_norm_(parameters, train.clip_norm, norm)
    state.scaler.step(state.optimizer)  # under fp16, a step whose gradients overflow is left out
    state.scaler.update()
    state.lr = float(state.optimizer.param_groups[0]["lr"])
    state.schedule.after_step()
    state.step += 1
    state.step_in_epoch += 1
    if state.ema:
        state.ema.update(state.step)
    state.scores.end_step(torch.zeros_like(norm) if state.scaler.is_enabled() else norm)


def evaluate(network: Network, batches: Iterable[Batch], num_classes: int, dist: Dist) -> Scores:
    """Score each sample once. The bare model, so that ranks may have different numbers of batches.

    Raises:
        NonFiniteError: the loss is inf or nan.
    """
    return tally(network, score(network, batches, dist), num_classes, dist)


@torch.no_grad()
def score(network: Network, batches: Iterable[Batch], dist: Dist) -> Iterator[tuple[Batch, Tensor]]:
    """Each batch with its logits (N, classes), on the device."""
    network.model.eval()
    dist.copy_from_first(list(network.model.buffers()))  # DDP leaves batch-norm's different after its last step
    for batch in batches:
        yield batch, network(batch.images)


def tally(network: Network, scored: Iterable[tuple[Batch, Tensor]], num_classes: int, dist: Dist) -> Scores:
    """The scores of what `score` gives, over all ranks.

    Raises:
        NonFiniteError: the loss is inf or nan.
    """
    sums = EvalSums(num_classes, network.traits.device, network.traits.score_dtype)
    for batch, logits in scored:
        sums.add(logits, network.to_device(batch.labels))
    scores = sums.scores(dist)
    if not math.isfinite(scores.loss):
        raise NonFiniteError(
            f"val loss is {scores.loss}: the weights have left the range of numbers; try a lower optim.lr"
        )
    return scores
