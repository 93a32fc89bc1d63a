"""The averaged copy of a model: its parameters are averaged after each step, its buffers copied."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Ema:
    """Exponential moving average of the weights.

    The decay rises to its value as (1 + step) / (10 + step), so that a short run is not an average of its random start
    (as in TensorFlow's ExponentialMovingAverage with num_updates).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._source = model
        self._decay = decay
        self._average = copy.deepcopy(model).requires_grad_(False).eval()
        self._mine = list(self._average.parameters())
        self._theirs = [parameter.detach() for parameter in model.parameters()]

    def update(self, step: int) -> None:
        """After optimizer step number `step`, counted from 1."""
        decay = min(self._decay, (1 + step) / (10 + step))
        get_ema_multi_avg_fn(decay)(self._mine, self._theirs, step)

    def restart(self) -> None:
        """Begin the average anew from the source's weights of now."""
        self._average.load_state_dict(self._source.state_dict())

    @property
    def model(self) -> nn.Module:
        """The averaged copy, with the source's buffers of now."""
        with torch.no_grad():
            for mine, theirs in zip(self._average.buffers(), self._source.buffers(), strict=True):
                mine.copy_(theirs)
        return self._average
