"""Optuna's tree-structured Parzen estimator as a sweep's search, with pruning; its study is a file in sweep.dir.

Every trial, value and end is in that file at once, so that a sweep that was killed goes on with the same study.
Bergstra et al. 2011 (Algorithms for Hyper-Parameter Optimization).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tinyexp.comparison import Metric
from tinyexp.config import SweepConfig
from tinyexp.errors import ConfigError
from tinyexp.job import Job
from tinyexp.ledger import key_of
from tinyexp.space import Choice, read_space
from tinyexp.sweepjobs import SweepJob, SweepPlan

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial, Trial


class TpeSearch:
    """Asks for the values of one job after the other, and hears what became of them."""

    def __init__(self, plan: SweepPlan, monitor: str, folder: Path) -> None:
        """Go on with the folder's study, or begin one.

        Raises:
            ConfigError: no Optuna.
        """
        self._plan, self._metric, config = plan, Metric(monitor), plan.config
        self._space = read_space(config.space)
        self._study = _study(folder, config, "maximize" if self._metric.sign > 0 else "minimize")
        self._running: dict[str, Trial] = {}  # by their job's key
        self._told: dict[str, int] = {}  # and the last epoch that their trial has
        self._values: dict[str, float] = {}  # of jobs that have finished
        self._lost = 0  # trials that came to nothing in a sweep before this one
        self._left = [job for past in self._study.get_trials(deepcopy=False) if (job := self._take_over(past))]

    def _take_over(self, past: FrozenTrial) -> SweepJob | None:
        """The job of a trial of a sweep before this one; where it was cut, it is this one's now."""
        from optuna.trial import Trial, TrialState

        whole = past.params.keys() == self._space.keys()
        if past.state == TrialState.RUNNING and not whole:  # killed while it drew
            self._study.tell(past.number, state=TrialState.FAIL)
        if past.state == TrialState.FAIL or not whole:
            self._lost += 1
            return None
        job = self._plan.trial({key: self._spelled(key, value) for key, value in past.params.items()})
        key = key_of(job.config.plain, job.label)
        if key in self._values:  # the same was asked for twice
            return None
        if past.state == TrialState.COMPLETE and past.value is not None:
            self._values[key] = past.value
        if past.state == TrialState.RUNNING:
            self._running[key], self._told[key] = Trial(self._study, past._trial_id), past.last_step or 0
        return job

    def ask(self) -> SweepJob | None:
        if self._left:
            return self._left.pop(0)
        while len(self._study.get_trials(deepcopy=False)) - self._lost < (self._plan.config.trials or 0):
            trial = self._study.ask()
            job = self._plan.trial({key: self._suggested(trial, key) for key in self._space})
            key = key_of(job.config.plain, job.label)
            if key in self._values:  # a space of few values is soon tried
                self._study.tell(trial, self._values[key])
            elif key in self._running:
                self._fail(trial)
            else:
                self._running[key], self._told[key] = trial, 0
                return job
        return None

    def prunes(self, job: Job) -> bool:
        trial = self._running.get(job.key)
        if trial is None:  # a job of the study that is run once more, since its directory is gone
            return False
        new = {epoch: value for epoch, value in self._scores(job).items() if epoch > self._told[job.key]}
        for epoch, value in sorted(new.items()):
            trial.report(value, epoch)
            self._told[job.key] = epoch
        return bool(new) and trial.should_prune()

    def tell(self, job: Job) -> None:
        """One that was cut stays open in the study, for a sweep after this one."""
        from optuna.trial import TrialState

        if job.key not in self._running:
            return
        scores = self._scores(job)
        if job.status == "finished" and scores:
            self._values[job.key] = self._metric.best(scores.values())
            self._study.tell(self._running.pop(job.key), self._values[job.key])
        elif job.status == "pruned":
            self._study.tell(self._running.pop(job.key), state=TrialState.PRUNED)
        elif job.status in ("finished", "failed"):
            self._fail(self._running.pop(job.key))

    def _fail(self, trial: Trial) -> None:
        from optuna.trial import TrialState

        self._study.tell(trial, state=TrialState.FAIL)

    def _scores(self, job: Job) -> dict[int, float]:
        """By epoch, as far as they are."""
        try:
            return self._metric.series(job.run)
        except ConfigError:
            return {}

    def _suggested(self, trial: Trial, key: str) -> Any:
        part = self._space[key]
        if isinstance(part, Choice):
            return self._spelled(key, trial.suggest_categorical(key, list(range(len(part.samples)))))
        if part.whole:
            return self._spelled(key, trial.suggest_int(key, int(part.low), int(part.high), log=part.log))
        return self._spelled(key, trial.suggest_float(key, part.low, part.high, log=part.log))

    def _spelled(self, key: str, value: Any) -> Any:
        """A trial's own value as a run gets it: of a choice it is the number."""
        part = self._space[key]
        return part.samples[value] if isinstance(part, Choice) else part.spelled(value)


def _study(folder: Path, config: SweepConfig, direction: Literal["maximize", "minimize"]) -> Study:
    try:
        import optuna
        from optuna.storages.journal import JournalFileBackend
    except ImportError as error:
        raise ConfigError("sweep=tpe needs Optuna: pip install 'tinyexp[optuna]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    after = config.prune_after
    return optuna.create_study(
        study_name="sweep",
        storage=optuna.storages.JournalStorage(JournalFileBackend(str(folder / "study.journal"))),
        sampler=optuna.samplers.TPESampler(seed=config.seed, n_startup_trials=config.startup),
        pruner=optuna.pruners.NopPruner()
        if after is None
        else optuna.pruners.MedianPruner(config.startup, n_warmup_steps=after),
        direction=direction,
        load_if_exists=True,
    )
