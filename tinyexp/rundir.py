"""A run's directory: made or taken over, locked, and written to by one process, rank 0's. Other ranks have its twin."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from tinyexp.board import Board
from tinyexp.checkpoint import Checkpointer, load, non_finite, read_checked, read_latest
from tinyexp.config import Config
from tinyexp.console import Display, Progress, config_tree
from tinyexp.data.loader import Data
from tinyexp.data.preview import write_preview
from tinyexp.engine import TrainState
from tinyexp.environment import code_patch, describe_environment
from tinyexp.errors import ConfigError, TinyexpError
from tinyexp.files import make_unique, refusal, sweep, write_json, write_text
from tinyexp.gallery import Gallery, check_views, fenced, rates_of
from tinyexp.lock import DirectoryLock
from tinyexp.log import ALWAYS, drawn, plain_text, start_run_log, start_terminal, stop_logging
from tinyexp.metrics import Scores
from tinyexp.pretrained import find_weights
from tinyexp.record import Recorder
from tinyexp.transfer import Receipt, Weights
from tinyexp.weights import read_weights

_log = logging.getLogger(__name__)


class RunDirectory:
    """Everything about a run on disk and on the terminal, for the one process that writes."""

    def __init__(self, config: Config) -> None:
        """Make the directory, or take it over to resume.

        Raises:
            ConfigError: it is there and resume was not asked for; another run is writing to it; or nobody may.
            ResourceError: the disk is full.
        """
        self._config = config
        console = start_terminal(config.log.level)
        with contextlib.ExitStack() as undone:
            undone.callback(stop_logging)
            self._take(config)
            undone.pop_all()
        self._display = Display(console)
        self._recorder: Recorder | None = None
        if not self._existed:
            write_text(self.path / "config.yaml", config.text)
        own = {key: value for key, value in config.plain.items() if value not in (None, []) and key != "sweep"}
        tree = config_tree(str(self.path), own)
        _log.info("%s", plain_text(tree), extra=drawn(tree))
        for note in config.notes:
            _log.info("%s", note)

    def _take(self, config: Config) -> None:
        self.path, self._existed = _make(config)
        self.checkpoints = self.path / "checkpoints"
        try:
            self._lock = DirectoryLock(self.path)
            self._lock.take()
            sweep(self.path)
            start_run_log(self.path / "run.log")
            self._checkpointer = Checkpointer(self.checkpoints, config.ckpt.keep)
        except OSError as error:
            raise _no_place(self.path, error) from error

    def read_resumed(self) -> bytes | None:
        """The checked bytes of the checkpoint to go on from; None where a run begins.

        Raises:
            IntegrityError: what the user named is damaged (nothing else is taken for it), or all that is there.
        """
        resume = self._config.resume
        if resume is None:
            return None
        if resume.endswith(".pt"):
            return read_checked(Path(resume))
        found = read_latest(self.checkpoints)
        if found is None:
            _log.info("%s has no checkpoint yet: the run begins", self.path)
            return None
        return found

    def read_weights(self) -> Weights | None:
        """Those of init_from, a run's best by default, or of model.weights. Raises as find_weights."""
        path = self._config.init_from
        return replace(read_weights(path), origin=f"init_from={path}") if path else find_weights(self._config)

    def receipt(self, receipt: Receipt) -> None:
        """What became of each tensor."""
        write_json(self.path / "receipt.json", receipt.plain())

    def begin(self, state: TrainState, data: Data, lines: int) -> None:
        """The state is whole: write what the run is, and go on with the metrics after their first `lines` lines.

        Not sooner: a resume that fails leaves all records as they were.

        Raises:
            ConfigError: a view of log.tensorboard that this network cannot have.
        """
        config = self._config
        views = config.log.tensorboard
        check_views(views, state.network, data)
        self._checkpointer.constants = non_finite(state.state_dict())
        stamp = time.strftime("-%Y%m%d-%H%M%S") if (self.path / "env.json").exists() else ""
        environment = describe_environment() | {"dataset": {"fingerprint": data.fingerprint}}
        write_text(self.path / "config.yaml", config.text)
        write_json(self.path / f"env{stamp}.json", environment)
        if environment["git"]["dirty"] and (patch := code_patch()):
            write_text(self.path / f"code{stamp}.patch", patch + "\n")
        self._set_aside_later_best(state.step)
        before = state.step if self._existed else None
        self._board = Board(self.path, on=views.any, step=before)
        self._recorder = Recorder(self.path, self._board if views.scalars else None, lines=lines, step=before)
        self._gallery = Gallery(self._board, views, data, config.train.eval_batch_size)
        texts = {
            "config": fenced(config.text, "yaml"),
            "environment": fenced(json.dumps(environment, indent=2), "json"),
        }
        self._gallery.begin(state, texts)
        if config.loader.preview:
            write_preview(self.path / "preview.png", data.first_step(), data.names)
            _log.info("%s shows the first augmented train images", self.path / "preview.png")
        self._check_space(3 * 4 * sum(each.numel() for each in state.network.model.parameters()))

    def look_step(self, state: TrainState) -> None:
        """What TensorBoard shows of an optimizer step, where that is due."""
        self._gallery.step(state)

    def look_epoch(self, state: TrainState, scores: Scores, stop: Callable[[], bool]) -> None:
        """What TensorBoard shows of an epoch: it scores some images, and leaves off where `stop` says so."""
        self._gallery.epoch(state, scores, lambda: rates_of(self.path / "metrics.jsonl"), stop)

    def _set_aside_later_best(self, step: int) -> None:
        """Where the user went back to an older checkpoint, the best of what came after it is no longer this run's."""
        best = self.checkpoints / "best.pt"
        if (self._config.resume or "").endswith(".pt") and best.exists() and load(best)["state"]["step"] > step:
            aside = best.replace(best.with_name("best.later.pt"))
            _log.warning("%s is of a later step than %d: kept as %s", best, step, aside.name)
            (self.path / "confusion.json").unlink(missing_ok=True)  # it was of that file

    @property
    def recorder(self) -> Recorder:
        assert self._recorder is not None, "begin comes first"
        return self._recorder

    def row(self, row: dict[str, Any]) -> None:
        self.recorder.row(row)

    def confusion(self, epoch: int, classes: Sequence[str], counts: Tensor | None) -> None:
        """Of the epoch that becomes the best, as Recorder.confusion."""
        assert counts is not None, "val counts it"
        self.recorder.confusion(epoch, classes, counts)

    def save(self, content: dict[str, Any], *names: str) -> None:
        """Raises as Checkpointer.save."""
        self.recorder.sync()
        self._board.flush()
        content = {**content, "state": {**content["state"], "lines": self.recorder.lines}}
        self._checkpointer.save(content, *names)

    def wait(self) -> None:
        """Until all checkpoints are on the disk."""
        self._checkpointer.wait()

    def poll(self) -> None:
        """Raise what went wrong with a save since."""
        self._checkpointer.poll()

    def summary(self, summary: dict[str, Any]) -> None:
        if self._recorder:
            self._recorder.summary(summary)
        elif not self._existed:
            write_json(self.path / "summary.json", summary)

    def tell(self, line: str) -> None:
        """A line that comes whatever log.level is."""
        _log.log(ALWAYS, line)

    def error(self, line: str) -> None:
        """What each rank knows, and one says."""
        _log.error(line)

    def due(self) -> bool:
        return self._display.due()

    def show(self, progress: Progress) -> None:
        self._display.show(progress)

    def _check_space(self, needed: int) -> None:
        """Say now what would else be said at the first save."""
        free = shutil.disk_usage(self.path).free
        if free < needed:
            _log.warning("%s has %d MB left; the checkpoints may need %d MB", self.path, free >> 20, needed >> 20)

    def finish(self, best: dict[str, Any]) -> None:
        """All checkpoints on the disk, the scores beside the config, the live line ended."""
        self._checkpointer.wait()
        if self._config.log.tensorboard.hparams:
            self._board.hparams(self._config.plain, best)
        self._display.close()

    def restore_terminal(self) -> None:
        """End the live line from any thread, so that messages and the prompt come after it."""
        self._display.close()

    def close(self) -> None:
        """Leave everything whole: the live line ended, checkpoints on the disk, files closed, the lock free."""
        self._display.close()
        self._checkpointer.close()
        if self._recorder:
            self._recorder.close()
            self._board.close()
        stop_logging()
        self._lock.release()


class _Silent:
    """The twin: every method is there and does nothing; warnings and errors of this rank come to the terminal."""

    def __init__(self, path: Path, level: str) -> None:
        self.path = path
        start_terminal(level)

    def close(self) -> None:
        stop_logging()

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


def silent(path: Path, level: str) -> RunDirectory:
    """The do-nothing twin, for ranks other than 0."""
    return cast(RunDirectory, _Silent(path, level))


def _make(config: Config) -> tuple[Path, bool]:
    """The run's directory, and whether it was there before."""
    path = Path(config.run.dir) if config.run.dir else None
    if path is None and config.resume == "auto":
        raise ConfigError(
            "resume=auto needs run.dir=DIR: the directory in which to go on, or to begin where it is not there"
        )
    try:
        if path is None:
            return make_unique(Path(config.run.root), str(config.run.name)), False
        existed = path.exists()
        if existed and config.resume is None:
            raise ConfigError(
                f"run.dir={path} is there already: give resume={path} to go on with it, or another directory"
            )
        path.mkdir(parents=True, exist_ok=config.resume is not None)
        return path, existed
    except OSError as error:
        raise _no_place(path or Path(config.run.root), error) from error


def _no_place(path: Path, error: OSError) -> TinyexpError:
    return refusal(f"{path} cannot be a run's directory: {error.strerror}", error, ConfigError)
