"""A run from its first line to its last: restore, log, save, stop. What is decided here, all ranks decide alike."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tinyexp.checkpoint import FORMAT, decode
from tinyexp.clock import Clock, Span
from tinyexp.config import Config
from tinyexp.console import Progress, closing_box, epoch_header, epoch_row
from tinyexp.data.loader import Data
from tinyexp.data.plan import Batch
from tinyexp.dist import Dist
from tinyexp.engine import TrainState
from tinyexp.errors import ConfigError, Interrupted, RankLostError, TinyexpError
from tinyexp.heartbeat import is_passed_on_to, report
from tinyexp.log import FILE_ONLY, drawn, plain_text
from tinyexp.meeting import Meeting
from tinyexp.metrics import NonFiniteStepError, Scores, Sums
from tinyexp.monitor import is_better, patience_spent
from tinyexp.rundir import RunDirectory, silent
from tinyexp.signals import SignalWatch
from tinyexp.start import Begun, Start, broadcast_weights
from tinyexp.summary import Summary

_ECHO = 2.0  # seconds in which torchrun, our supervisor or a sweep pass on a signal that came to this process too
_LAST_WORDS = 2.0  # seconds for what a process has to say that leaves at once
_log = logging.getLogger(__name__)


class Run:
    """One process's part in a run; rank 0's directory does the writing, the others' does nothing."""

    def __init__(self, config: Config, dist: Dist, directory: RunDirectory) -> None:
        self._config, self._dist, self._directory = config, dist, directory
        self._seconds_before = 0.0  # of the processes that came before this one
        self._line: dict[str, Any] = {}  # the last row of phase train
        self.clock = Clock("start")
        self._summary = Summary(directory.summary, lambda: self._seconds_before + self.clock.total())
        self.signals = SignalWatch(self._leave, echo=_ECHO if is_passed_on_to() else 0.0)

    @classmethod
    @contextmanager
    def open(cls, config: Config, dist: Dist) -> Iterator[Run]:
        """The run's directory, locked for as long as the run lasts; summary.json tells how it ended.

        Raises:
            ConfigError: the directory is there already, or in use.
        """
        own = RunDirectory(config) if dist.rank == 0 else None
        path = os.fsdecode(dist.broadcast_bytes(os.fsencode(own.path) if own else b""))
        run = cls(config, dist, own or silent(Path(path), config.log.level))
        dist.before_leaving(run._leave)
        if own:
            report("run", {"directory": str(Path(path).resolve())})
        try:
            run._summary.tell("running")
            yield run
            run._summary.tell("finished", 0)
        except BaseException as found:
            error = dist.explain(found)
            if isinstance(error, RankLostError):
                error.args = (f"{error}; resume={path} goes on from its last checkpoint",)
            run._fail(error)
            if error is found:
                raise
            raise error from found
        finally:
            run._directory.close()
            run.signals.close()

    def start(self, data: Data) -> Start:
        """What to start from, as rank 0 has read it: the checkpoint to go on with, or the weights that were asked for.

        Raises:
            ConfigError: the data is another, or there are no such weights.
            IntegrityError: the checkpoint is damaged.
        """
        self._dist.compare({f"the data's {name}": str(value) for name, value in data.describe().items()})
        read = self._directory.read_resumed()
        weights = None if read else self._directory.read_weights()
        self._dist.gather("read")  # which may take longer than a collective waits
        if content := self._dist.broadcast_bytes(read or b""):
            checkpoint = decode(content, f"the checkpoint of {self._directory.path}")
            data.check_same(checkpoint["data"])
            if "optimizer" not in checkpoint["state"]:
                raise ConfigError(
                    "best.pt has the weights to use and no optimizer: resume from last.pt, or use init_from"
                )
            return Start(state=checkpoint["state"])
        return Start(weights=broadcast_weights(self._dist, weights), whole=self._config.init_from is not None)

    def begin(self, state: TrainState, data: Data, begun: Begun) -> None:
        """Say what the run starts from, and write it down."""
        lines, start = 0, begun.start
        if start.state:
            lines, self._seconds_before = start.state["lines"], start.state["seconds"]
            _log.info("resumed at step %d (epoch %d)", state.step, state.epoch + 1)
        elif begun.receipt:
            _log.info("%s", "\n".join([begun.receipt.summary(), *begun.receipt.details()]))
            self._directory.receipt(begun.receipt)
        elif start.weights:
            _log.info("weights taken from %s", self._config.init_from)
        self._directory.begin(state, data, lines)
        self._dist.gather("begun")  # rank 0 alone draws, which may take longer than a collective waits
        self._introduce(state, data)

    def _introduce(self, state: TrainState, data: Data) -> None:
        self._data, self._num_classes = data, len(data.classes)
        self._summary.count(state)
        parameters = sum(p.numel() for p in state.network.model.parameters())
        trained = sum(p.numel() for p in state.parameters)
        self._summary.add(parameters=parameters, **({"skipped": data.skipped} if data.skipped else {}))
        _log.info(data.summary())
        share = "" if trained == parameters else f" of which {trained:,} are trained"
        _log.info("%s, %s parameters%s, %s", state.network.summary(), f"{parameters:,}", share, self._dist.summary())
        header = epoch_header()
        _log.info("%s", header.plain, extra=drawn(header))
        self.clock.switch("rest")
        self._began = self._saved = self.clock.total()
        self._first_step = state.step
        self._dist.reached(state.step)
        self._meeting = Meeting(state.step)
        self._line_span = Span(self.clock, state.scores.line.count)
        self._epoch_span = Span(self.clock, state.scores.epoch.count)

    def over(self, state: TrainState) -> bool:
        """Is there nothing left to train?"""
        patience = self._config.train.early_stop.patience
        stopped = patience is not None and state.stale >= patience and state.step_in_epoch == 0
        return stopped or state.epoch >= self._config.train.epochs

    def after_step(self, state: TrainState) -> None:
        """A line each log.every steps; a save when it is due; an end when a signal or max_time asks for it.

        Raises:
            Interrupted: saved, and time to go.
            NonFiniteError: a loss or gradient was inf or nan; nothing of it was saved.
        """
        self._dist.reached(state.step)
        self._directory.look_step(state)
        if state.step % self._config.log.every == 0:
            self._write_line(state)
        if self._meeting.is_at(state.step):
            self._answer(state)
        if self._directory.due():
            self._show("train", state, state.step_in_epoch, self._data.steps_per_epoch)

    def watch(self, state: TrainState, batches: Iterable[Batch]) -> Iterator[Batch]:
        """val's batches, shown as they pass.

        A signal is answered between two of them: the epoch's val is then begun again on resume.

        Raises:
            Interrupted, NonFiniteError: as after_step.
        """
        self._flush(state)
        self._trained = self._epoch_span.fields(state.scores.epoch.count)
        self._val_span = Span(self.clock)
        self.clock.switch("val")  # until after_epoch, since the device may still be at it when the last batch is out
        meeting = Meeting(0)
        for done, batch in enumerate(self.clock.waiting(batches, "val"), start=1):
            yield batch
            met = done <= self._data.common_val_batches and meeting.is_at(done)
            if met and meeting.agree(self._dist, self.signals.received is not None)[0]:
                self._interrupt(state)
            if self._directory.due():
                self._show("val", state, done, self._data.val_batches)

    def after_epoch(self, state: TrainState, scores: Scores) -> None:
        """Two rows, last.pt, best.pt where it is better, and on to the next epoch.

        Raises:
            Interrupted: as after_step.
        """
        config = self._config
        self.clock.switch("rest")
        assert scores.count == self._data.num_scored, f"val scored {scores.count} of {self._data.num_scored} samples"
        place = {"epoch": state.epoch + 1, "step": state.step}
        trained = state.scores.epoch.scores(self._num_classes).row()
        train_row = {"phase": "train_epoch"} | place | trained | {"lr": state.lr} | self._trained
        val_row = {"phase": "val"} | place | scores.row() | self._val_span.fields(scores.count)
        state.last = place | scores.row()
        if better := is_better(scores, state.best, config.ckpt.monitor):
            state.best = state.last
            self._directory.confusion(state.epoch + 1, self._data.names, scores.confusion)
        state.mark, state.stale = patience_spent(
            scores, state.mark, state.stale, config.ckpt.monitor, config.train.early_stop
        )
        state.schedule.after_epoch(scores.loss, scores.top1)
        state.end_epoch()
        self._directory.row(train_row)
        self._directory.row(val_row)
        drawing = epoch_row(train_row, val_row, config.train.epochs, better)
        _log.info("%s", drawing.plain, extra=drawn(drawing))
        self._save(state, *([f"epoch-{state.epoch:04}", "last"] if config.ckpt.keep else ["last"]), best=better)
        self._summary.count(state)
        self._summary.tell("running")
        over = self.over(state)
        if over or config.log.tensorboard.each_epoch:
            with self.clock.within("views"):
                self._directory.look_epoch(state, scores, lambda: self.signals.received is not None)
                self._dist.gather("views")  # as above
        self._epoch_span = Span(self.clock)
        if not over:
            self._answer(state)

    def finish(self, state: TrainState) -> None:
        """All on the disk, and the last words."""
        best = state.best
        assert best is not None, "a run has at least one epoch"
        if state.epoch < self._config.train.epochs:
            _log.info("stopped early: no better %s in %d epochs", self._config.ckpt.monitor, state.stale)
        with self.clock.within("save"):
            self._directory.finish(best)
        self._dist.gather("finished")  # not before all is on the disk, which only rank 0 knows
        self.clock.switch("end")
        spent = {name: seconds for name, seconds in self.clock.seconds.items() if seconds >= 0.001}
        panel = closing_box(f"{state.epoch} epochs, {state.step:,} steps", spent)
        _log.info("%s", plain_text(panel), extra=drawn(panel))
        self._directory.tell(f"best val top1 {best['top1']:.4f} (epoch {best['epoch']}) in {self._directory.path}")

    def _write_line(self, state: TrainState) -> None:
        self._flush(state)
        scores = state.scores.line.scores(self._num_classes)
        place = {"phase": "train", "epoch": state.epoch + 1, "step": state.step}
        self._line = place | scores.row() | {"lr": state.lr} | self._line_span.fields(scores.count)
        self._directory.row(self._line)
        state.scores.line = Sums()
        self._line_span = Span(self.clock)

    def _answer(self, state: TrainState) -> None:
        """All ranks learn whether any of them wants an end or a save."""
        max_time, minutes = self._config.train.max_time, self._config.ckpt.every_minutes
        now = self.clock.total()
        out_of_time = max_time is not None and now >= max_time
        save_due = minutes is not None and now - self._saved >= 60 * minutes
        self._directory.poll()
        signalled, timed_out, save = self._meeting.agree(
            self._dist, self.signals.received is not None, out_of_time, save_due
        )
        if signalled or timed_out:
            self._interrupt(state, "" if signalled else f"train.max_time={max_time:g} s")
        elif save:
            self._save(state, "last")

    def _interrupt(self, state: TrainState, reason: str = "") -> None:
        """All ranks together; without a reason it is the signal that one of them got."""
        reason = reason or next(filter(None, self._dist.gather(self.signals.received or "")))
        self._save(state, "last")
        self._directory.wait()
        self._dist.gather("saved")  # all ranks stay until rank 0 has: torchrun ends the others when one has left
        self._summary.add(steps=state.step)
        raise Interrupted(f"interrupted by {reason} at step {state.step}, saved: resume={self._directory.path} goes on")

    def _flush(self, state: TrainState) -> None:
        """Bring the scores up to date; a step that was not finite is told with its samples."""
        state.check_scale()
        try:
            state.scores.flush(self._dist, state.step)
        except NonFiniteStepError as error:
            step = state.step_in_epoch - (state.step - error.step) - 1
            self._directory.error(f"samples of step {error.step}: {self._data.sample_ids(state.epoch, step)}")
            raise

    def _save(self, state: TrainState, *names: str, best: bool = False) -> None:
        with self.clock.within("save"):
            self._flush(state)
            about = {"format": FORMAT, "config": self._config.plain, "data": self._data.describe()}
            seconds = {"seconds": self._seconds_before + self.clock.total()}
            if best:  # before last.pt, which says that it is there
                self._directory.save(about | {"state": state.weights() | seconds}, "best")
            self._directory.save(about | {"state": state.state_dict() | seconds}, *names)
        self._saved = self.clock.total()

    def _show(self, phase: str, state: TrainState, done: int, total: int) -> None:
        steps, row = state.step - self._first_step, self._line
        epoch, epochs = state.epoch + 1, self._config.train.epochs
        to_do = epochs * self._data.steps_per_epoch - state.step
        left = (self.clock.total() - self._began) / steps * to_do if steps else None
        progress = Progress(phase=phase, epoch=epoch, epochs=epochs, done=done, total=total, left=left, row=row)
        self._directory.show(progress)

    def _fail(self, error: BaseException) -> None:
        """Say in the run's own files how it ended; the door tells the terminal."""
        self._directory.restore_terminal()
        told = isinstance(error, TinyexpError)
        _log.error("%s", error or type(error).__name__, exc_info=None if told else error, extra=FILE_ONLY)
        self._summary.fail(error)

    def _leave(self, reason: str, code: int | None = None) -> None:
        """At once, from another thread, since the main one may be blocked: what stands on the disk is whole.

        Args:
            code: the exit code; of None, 75 where a checkpoint was saved, else 1.
        """
        checkpoints = self._directory.path / "checkpoints"
        saved = self._dist.rank > 0 or any((checkpoints / name).exists() for name in ("last.pt", "prev.pt"))
        if code is None:
            code = Interrupted.exit_code if saved else 1
        in_any_case = threading.Timer(_LAST_WORDS, os._exit, [code])  # the terminal or the disk may be what hangs
        in_any_case.daemon = True
        in_any_case.start()
        try:
            self._directory.restore_terminal()
            sys.stderr.write(f"left at once: {reason}\n")
            self._summary.leave(code, f"left at once: {reason}")
            report(f"rank-{self._dist.rank}", {"code": code, "error": reason})
        finally:
            os._exit(code)
