"""What TensorBoard shows of a run beside its curves, and when: at the beginning, each so many steps, after epochs.

By rank 0 alone. It looks on and changes nothing; a view that fails is told and leaves the training as it is.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tinyexp import views
from tinyexp.board import Board
from tinyexp.config import TensorBoardConfig
from tinyexp.data.loader import Data
from tinyexp.data.preview import draw_first
from tinyexp.engine import TrainState
from tinyexp.errors import ConfigError, TinyexpError
from tinyexp.metrics import Scores
from tinyexp.network import Network

_CURVES = ("top1", "top5", "loss")  # that train and val have in common
_log = logging.getLogger(__name__)


class Gallery:
    """One run's views; each is a key of log.tensorboard, and has its name in TensorBoard too."""

    def __init__(self, board: Board, config: TensorBoardConfig, data: Data, size: int) -> None:
        """`size`: val images of one forward pass."""
        self._board, self._config, self._data, self._size = board, config, data, size
        self._failed: set[str] = set()
        self._stop: Callable[[], bool] = lambda: False

    def begin(self, state: TrainState, texts: Mapping[str, str]) -> None:
        """What is known before the first step. `texts`: names and Markdown."""
        config, board, data, step = self._config, self._board, self._data, state.step
        if config.groups and config.scalars:
            names = _CURVES if len(data.classes) >= 5 else ("top1", "loss")
            board.layout({name: (f"train_epoch/{name}", f"val/{name}") for name in names})
        if config.text:
            for name, text in texts.items():
                board.text(name, text, step)
        if config.inputs:
            self._draw("inputs", lambda: np.asarray(draw_first(data.first_step(), data.names)), step)
        if config.filters:
            self._draw("filters", lambda: views.filters(state.eval_network.model), step)
        if config.graph:
            self._try("graph", lambda: views.trace(state.network, data.image_shape, board.graph))

    def step(self, state: TrainState) -> None:
        """After an optimizer step, whose gradients are still there; waits for the device where histograms are due."""
        every = self._config.histograms
        if every is not None and state.step % every == 0:
            self._try("histograms", lambda: self._histograms(state))

    def _histograms(self, state: TrainState) -> None:
        for name, parameter in state.network.model.named_parameters():
            self._board.histogram(f"weights/{name}", parameter.detach(), state.step)
            if parameter.grad is not None:  # a frozen one has none
                self._board.histogram(f"gradients/{name}", parameter.grad, state.step)

    def epoch(
        self,
        state: TrainState,
        scores: Scores,
        rates: Callable[[], list[tuple[int, float]]],
        stop: Callable[[], bool],
    ) -> None:
        """After an epoch's val, whose scores these are.

        Args:
            rates: the learning rate at steps so far.
            stop: asked before each view and each batch; true where a signal has come.
        """
        self._stop = stop
        config, data, step = self._config, self._data, state.step
        network = views.whole(state.eval_network, data)
        if config.filters:
            self._draw("filters", lambda: views.filters(network.model), step)
        if layer := config.feature_maps:
            self._draw(
                "feature_maps", lambda: views.feature_maps(network, layer, data.val_at(np.array([0]))[0][0]), step
            )
        if config.mistakes or config.predictions or config.projector:
            self._try("val images", lambda: self._look(network, step))
        if config.confusion or config.per_class or config.lr:
            self._figures(scores, rates, step)

    def _look(self, network: Network, step: int) -> None:
        config, data = self._config, self._data
        looked = views.look(
            network,
            data,
            self._size,
            stop=self._stop,
            features=config.projector == "features",
            thumbnails=config.projector is not None,
        )
        if config.mistakes and (sheet := views.draw_mistakes(looked, data)):
            self._board.image("mistakes", np.asarray(sheet), step)
        if config.predictions:
            self._board.image("predictions", np.asarray(views.draw_predictions(looked, data)), step)
        if config.projector:
            self._board.embedding(step, config.projector, views.points(looked, data.names))

    def _figures(self, scores: Scores, rates: Callable[[], list[tuple[int, float]]], step: int) -> None:
        from tinyexp import pictures  # matplotlib takes half a second

        assert scores.confusion is not None
        confusion, names = scores.confusion.numpy(), self._data.names
        if self._config.confusion:
            self._draw("confusion", lambda: pictures.pixels(pictures.confusion_figure(confusion, names)), step)
        if self._config.per_class:
            self._draw("per_class", lambda: pictures.pixels(pictures.classes_figure(confusion, names)), step)
        if self._config.lr:

            def draw() -> NDArray[np.uint8] | None:
                found = rates()
                return pictures.pixels(pictures.rates_figure(found)) if found else None

            self._draw("lr", draw, step)

    def _draw(self, name: str, draw: Callable[[], NDArray[np.uint8] | None], step: int) -> None:
        def show() -> None:
            if (image := draw()) is not None:
                self._board.image(name, image, step)

        self._try(name, show)

    def _try(self, name: str, draw: Callable[[], None]) -> None:
        """Told once, where a network of any kind does not take what is done with it here."""
        try:
            if self._stop():
                raise TinyexpError("a signal came")
            draw()
        except Exception as error:  # whatever it says
            if name not in self._failed:
                self._failed.add(name)
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                _log.warning("TensorBoard's %s cannot be drawn (%s); the training goes on", name, reason)


def check_views(config: TensorBoardConfig, network: Network, data: Data) -> None:
    """Raises ConfigError for a view that this network cannot have, before anything is trained."""
    if config.feature_maps:
        black = torch.zeros(data.image_shape, dtype=torch.uint8)
        views.feature_maps(views.whole(network, data), config.feature_maps, black)
    if config.projector == "features" and not network.head:
        raise ConfigError(
            "log.tensorboard.projector=features: it is not to be told which layer gives the logits; take logits"
        )


def fenced(text: str, language: str) -> str:
    """As Markdown that shows it as it is."""
    longest = max([len(run) for run in re.findall("`+", text)], default=0)
    fence = "`" * max(3, 1 + longest)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def rates_of(metrics: Path) -> list[tuple[int, float]]:
    """(step, learning rate) where the log has one, in a resumed run's earlier part too."""
    rows = map(json.loads, metrics.read_bytes().split(b"\n")[:-1]) if metrics.exists() else ()  # a torn line is none
    return sorted({row["step"]: row["lr"] for row in rows if "lr" in row}.items())
