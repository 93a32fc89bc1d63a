"""Scores are sums: added up on the device, over all ranks once, and divided once.

Nothing here waits for the device but `flush` and `EvalSums.scores`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tinyexp.dist import Dist
from tinyexp.errors import NonFiniteError

_TOP = 5
_COUNT_EVERY = 50  # micro-batches: counting fifty at once costs little more than counting one


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What a phase came to. Fractions, not percent; `top5` is None under 5 classes."""

    loss: float  # mean over the samples
    top1: float
    top5: float | None
    count: int
    confusion: Tensor | None = None  # (classes, classes) int64: row = label, column = prediction

    def row(self) -> dict[str, float]:
        """As metrics.jsonl has it."""
        top5 = {} if self.top5 is None else {"top5": self.top5}
        return {"loss": self.loss, "top1": self.top1, **top5}


@dataclass(kw_only=True)
class Sums:
    """Sums over all ranks of a span of optimizer steps, on the host."""

    losses: list[float] = field(default_factory=list)  # one a step: its sum over samples
    count: int = 0
    top1: int = 0
    top5: int = 0

    def add(self, other: Sums) -> None:
        self.losses += other.losses
        self.count += other.count
        self.top1 += other.top1
        self.top5 += other.top5

    def scores(self, num_classes: int) -> Scores:
        """fsum rounds once, so that where a cut run was cut changes nothing."""
        count = max(1, self.count)
        top5 = self.top5 / count if num_classes >= _TOP else None
        return Scores(loss=math.fsum(self.losses) / count, top1=self.top1 / count, top5=top5, count=self.count)

    def state_dict(self) -> dict[str, Any]:
        return {"losses": torch.tensor(self.losses, dtype=torch.float64), "counts": [self.count, self.top1, self.top5]}

    @staticmethod
    def from_state_dict(state: dict[str, Any]) -> Sums:
        count, top1, top5 = state["counts"]
        return Sums(losses=state["losses"].tolist(), count=count, top1=top1, top5=top5)


class RunningScores:
    """Training's scores: since the last line of the log, and since the epoch began.

    Micro-batches are kept as they come, and counted many at a time.
    """

    def __init__(self) -> None:
        self.line = Sums()
        self.epoch = Sums()
        self._begin()

    def _begin(self) -> None:
        self._losses: list[Tensor] = []  # (), one a micro-batch
        self._step_of: list[int] = []  # the step of each micro-batch, counted from the last flush
        self._norms: list[Tensor] = []  # (), one a step
        self._uncounted: list[tuple[Tensor, Tensor]] = []
        self._counts: list[Tensor] = []

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """One micro-batch: the loss summed over its samples (), logits (N, classes), labels (N,) or (N, classes)."""
        self._losses.append(loss)
        self._step_of.append(len(self._norms))
        self._uncounted.append((logits, labels))
        if len(self._uncounted) == _COUNT_EVERY:
            self._count()

    def end_step(self, gradient_norm: Tensor) -> None:
        """Close an optimizer step: the 2-norm of its gradients ()."""
        self._norms.append(gradient_norm)

    def _count(self) -> None:
        if self._uncounted:
            logits = torch.cat([logits for logits, _ in self._uncounted])
            labels = torch.cat([labels for _, labels in self._uncounted])
            _, hits, hits5 = top_hits(logits, labels.argmax(1) if labels.ndim == 2 else labels)
            self._counts.append(torch.stack([hits5.new_tensor(len(labels)), hits, hits5]))
            self._uncounted = []

    def flush(self, dist: Dist, step: int) -> None:
        """Bring `line` and `epoch` up to date over all ranks; waits for the device. `step`: the last one's number.

        Raises:
            NonFiniteError: on every rank, naming the first step whose loss or gradient was inf or nan on any.
        """
        if not self._norms:
            return
        self._count()
        steps = len(self._norms)
        losses = torch.zeros(steps, dtype=torch.float64)
        losses.index_add_(0, torch.tensor(self._step_of), torch.stack(self._losses).cpu().double())
        losses = dist.sum(losses)
        norms = torch.stack(self._norms).cpu()
        count, top1, top5 = dist.sum(torch.stack(self._counts).sum(0).cpu()).tolist()
        self._begin()
        for offset, (loss, norm) in enumerate(zip(losses.tolist(), norms.tolist(), strict=True)):
            if not (math.isfinite(loss) and math.isfinite(norm)):
                what = f"loss is {loss}" if not math.isfinite(loss) else f"gradient's norm is {norm}"
                raise NonFiniteStepError(what, step - steps + 1 + offset)
        new = Sums(losses=losses.tolist(), count=count, top1=top1, top5=top5)
        self.line.add(new)
        self.epoch.add(new)

    def state_dict(self) -> dict[str, Any]:
        """Both sums; call `flush` first."""
        return {"line": self.line.state_dict(), "epoch": self.epoch.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.line = Sums.from_state_dict(state["line"])
        self.epoch = Sums.from_state_dict(state["epoch"])
        self._begin()


class NonFiniteStepError(NonFiniteError):
    """`step`: the first optimizer step, counted from 1, with something that is not finite."""

    def __init__(self, what: str, step: int) -> None:
        super().__init__(f"at step {step} the {what}; try a lower optim.lr, train.clip_norm=1 or train.precision=fp32")
        self.step = step


class EvalSums:
    """Val's scores: the confusion matrix and the losses, kept on the device until `scores`."""

    def __init__(self, num_classes: int, device: torch.device, dtype: torch.dtype) -> None:
        self._num_classes = num_classes
        self._confusion = torch.zeros(num_classes * num_classes, dtype=torch.int64, device=device)
        self._top5 = torch.zeros((), dtype=torch.int64, device=device)
        self._losses: list[Tensor] = []
        self._dtype = dtype

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """A batch: logits (N, classes), labels (N,)."""
        self._losses.append(F.cross_entropy(logits, labels, reduction="sum").to(self._dtype))
        predictions, _, hits5 = top_hits(logits, labels)
        self._top5 += hits5
        self._confusion += torch.bincount(labels * self._num_classes + predictions, minlength=len(self._confusion))

    def scores(self, dist: Dist) -> Scores:
        """The phase's scores over all ranks; waits for the device."""
        loss = math.fsum(torch.stack(self._losses).tolist()) if self._losses else 0.0
        loss = float(dist.sum(torch.tensor([loss], dtype=torch.float64))[0])
        counts = dist.sum(torch.cat([self._confusion, self._top5[None]]).cpu())
        confusion = counts[:-1].view(self._num_classes, self._num_classes)
        total = int(confusion.sum())
        return Scores(
            loss=loss / max(1, total),
            top1=int(confusion.trace()) / max(1, total),
            top5=int(counts[-1]) / max(1, total) if self._num_classes >= _TOP else None,
            count=total,
            confusion=confusion,
        )


def top_hits(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(N, classes), (N,) -> predictions (N,), number right at top-1 (), and at top-5 ().

    By topk and not by counting larger logits, which would call every nan and every tie right.
    """
    best = logits.topk(min(_TOP, logits.shape[1]), dim=1).indices
    hits = best == labels[:, None]
    return best[:, 0], hits[:, 0].sum(), hits.sum()
