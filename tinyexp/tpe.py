"""Optuna's tree-structured Parzen estimator as a sweep's search, with pruning; its study is a file in sweep.dir.

Every trial, value and end is in that file at once, so that a sweep that was killed goes on with the same study.
Bergstra et al. 2011 (Algorithms for Hyper-Parameter Optimization).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tinyexp import seeds
from tinyexp.comparison import Metric
from tinyexp.errors import ConfigError, TinyexpError
from tinyexp.files import refusal
from tinyexp.job import Job
from tinyexp.keys import kept
from tinyexp.ledger import key_of
from tinyexp.space import Choice, read_space
from tinyexp.sweepjobs import SweepJob, SweepPlan

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial, Trial, TrialState

_JOURNAL = "study.journal"
_log = logging.getLogger(__name__)


class TpeSearch:
    """Asks for the values of one job after the other, and hears what became of them."""

    def __init__(self, plan: SweepPlan, monitor: str, folder: Path) -> None:
        """Go on with the folder's study of this space and config, or begin one.

        Raises:
            ConfigError: no Optuna.
            TinyexpError: the study cannot be read or written.
        """
        self._plan, self._metric = plan, Metric(monitor)
        self._space = read_space(plan.config.space)
        self._running: dict[str, Trial] = {}  # by their job's key
        self._told: dict[str, int] = {}  # and the last epoch that their trial has
        self._ended: dict[str, float | TrialState] = {}  # what became of jobs: a score, PRUNED or FAIL
        self._lost = 0  # trials that came to nothing in a sweep before this one
        self._broken = False
        direction: Literal["maximize", "minimize"] = "maximize" if self._metric.sign > 0 else "minimize"
        try:
            self._study = _study(folder, plan, monitor, direction)
            self._left = [job for past in self._study.get_trials(deepcopy=False) if (job := self._take_over(past))]
        except OSError as error:
            raise refusal(f"{folder / _JOURNAL}: {error.strerror}", error, TinyexpError) from error

    def _take_over(self, past: FrozenTrial) -> SweepJob | None:
        """The job of a trial of a sweep before this one; where it was cut, it is this one's now."""
        from optuna.trial import Trial, TrialState

        job = self._job(past.params) if past.params.keys() == self._space.keys() else None
        key = key_of(job.config.plain, job.label) if job else ""
        if job is None or past.state == TrialState.FAIL or key in self._ended or key in self._running:
            if past.state == TrialState.RUNNING:  # killed while it drew
                self._study.tell(past.number, state=TrialState.FAIL)
            self._lost += job is None or past.state == TrialState.FAIL
            return None
        if past.state == TrialState.RUNNING:
            self._running[key], self._told[key] = Trial(self._study, past._trial_id), past.last_step or 0
        else:
            self._ended[key] = past.state if past.value is None else past.value
        return job

    def ask(self) -> SweepJob | None:
        if self._left:
            return self._left.pop(0)
        with self._lenient():
            while not self._broken and self._count() < (self._plan.config.trials or 0):
                if job := self._asked():
                    return job
        return None

    def _count(self) -> int:
        return len(self._study.get_trials(deepcopy=False)) - self._lost

    def _asked(self) -> SweepJob | None:
        """One trial more; None where its job is there already, or cannot be."""
        from optuna.trial import TrialState

        trial = self._study.ask()
        job = self._job({key: self._suggested(trial, key) for key in self._space})
        key = key_of(job.config.plain, job.label) if job else ""
        if job is None or key in self._running:
            self._study.tell(trial, state=TrialState.FAIL)
        elif key in self._ended:  # a space of few values is soon tried
            ended = self._ended[key]
            self._study.tell(trial, **{"state" if isinstance(ended, TrialState) else "values": ended})  # type: ignore
        else:
            self._running[key], self._told[key] = trial, 0
            return job
        return None

    def prunes(self, job: Job) -> bool:
        trial = self._running.get(job.key)
        if trial is None or self._broken:  # None: a job of the study that is run once more, its directory being gone
            return False
        new = {epoch: value for epoch, value in self._scores(job).items() if epoch > self._told[job.key]}
        with self._lenient():
            for epoch, value in sorted(new.items()):
                trial.report(value, epoch)
                self._told[job.key] = epoch
            return bool(new) and max(new) < job.epochs and trial.should_prune()
        return False

    def tell(self, job: Job) -> None:
        """One that was cut stays open in the study, for a sweep after this one."""
        from optuna.trial import TrialState

        if job.key not in self._running or job.status not in ("finished", "pruned", "failed"):
            return
        trial, scores = self._running.pop(job.key), self._scores(job)
        with self._lenient():
            if job.status == "finished" and scores:
                self._ended[job.key] = best = self._metric.best(scores.values())
                self._study.tell(trial, best)
            else:
                self._ended[job.key] = state = TrialState.PRUNED if job.status == "pruned" else TrialState.FAIL
                self._study.tell(trial, state=state)

    @contextmanager
    def _lenient(self) -> Iterator[None]:
        """A study that cannot be written asks for no other job, and stops none."""
        try:
            yield
        except OSError as error:
            self._broken = True
            _log.warning("the study can no longer be written (%s): no other job is begun", error)

    def _job(self, params: Mapping[str, Any]) -> SweepJob | None:
        """None where these values cannot be together."""
        try:
            return self._plan.trial({key: self._spelled(key, value) for key, value in params.items()})
        except ConfigError as error:
            _log.warning("left out: %s", error)
            return None

    def _scores(self, job: Job) -> dict[int, float]:
        """By epoch, as far as they are."""
        try:
            return self._metric.series(job.run)
        except ConfigError:
            return {}

    def _suggested(self, trial: Trial, key: str) -> Any:
        """As the study keeps it: of a choice it is the number."""
        part = self._space[key]
        if isinstance(part, Choice):
            return trial.suggest_categorical(key, list(range(len(part.samples))))
        if part.whole:
            return trial.suggest_int(key, int(part.low), int(part.high), log=part.log)
        return trial.suggest_float(key, part.low, part.high, log=part.log)

    def _spelled(self, key: str, value: Any) -> Any:
        """A trial's own value as a run gets it."""
        part = self._space[key]
        return part.samples[value] if isinstance(part, Choice) else part.spelled(value)


def _study(folder: Path, plan: SweepPlan, monitor: str, direction: Literal["maximize", "minimize"]) -> Study:
    """The journal's study of this space, monitor and config: another one has its own."""
    try:
        import optuna
        from optuna.storages.journal import JournalFileBackend
    except ImportError as error:
        raise ConfigError("sweep=tpe needs Optuna: pip install 'tinyexp[optuna]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    config, after = plan.config, plan.config.prune_after
    study = optuna.create_study(
        study_name=_name(plan, monitor),
        storage=optuna.storages.JournalStorage(JournalFileBackend(str(_mended(folder)))),
        pruner=optuna.pruners.NopPruner()
        if after is None
        else optuna.pruners.MedianPruner(config.startup, n_warmup_steps=after),
        direction=direction,
        load_if_exists=True,
    )
    # a sampler of the same seed would begin with the same values again
    seed = seeds.key(config.seed, len(study.get_trials(deepcopy=False))) % 2**32
    study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=config.startup)
    return study


def _name(plan: SweepPlan, monitor: str) -> str:
    sample = plan.samples[0].config.plain
    varied = tuple(f"{key.lstrip('+')}." for key in plan.config.space)
    same = {key: value for key, value in kept(sample).items() if not f"{key}.".startswith(varied)}
    about = [plan.config.space, monitor, same, sample["train"]["epochs"]]
    return hashlib.blake2b(json.dumps(about, sort_keys=True).encode(), digest_size=8).hexdigest()


def _mended(folder: Path) -> Path:
    """The journal without what a process that was killed, or a full disk, left: the sweep's lock is ours."""
    path = (folder / _JOURNAL).resolve()  # Optuna's own lock is a link to it, which a relative path would break
    path.with_name(f"{path.name}.lock").unlink(missing_ok=True)
    if path.exists() and not (content := path.read_bytes()).endswith(b"\n"):
        os.truncate(path, content.rfind(b"\n") + 1)
    return path
