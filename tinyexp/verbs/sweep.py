"""sweep [overrides]: a run for each combination of values, as optim.lr=1e-3,1e-2; -m is the same.

With sweep=random or sweep=tpe, a run for each of sweep.trials values of sweep.space. All are composed and their parts
checked before the first begins. sweep.dir gets a directory a job, and at the end index.html, report.md,
report.csv and curves.png: what `tinyexp report` says of them, with the epochs of sweep.at_epochs. The same command with
the same sweep.dir does what is left: finished jobs are not run again, cut ones go on, failed ones begin anew.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable

from tinyexp.config import SLOTS
from tinyexp.errors import ConfigError
from tinyexp.log import drawn, plain_text, start_run_log, start_terminal, stop_logging
from tinyexp.sweep import Search, Sweep
from tinyexp.sweepjobs import SweepJob, plan_sweep
from tinyexp.sweeptable import SweepTable, job_line
from tinyexp.tpe import TpeSearch
from tinyexp.verbs import report

_log = logging.getLogger(__name__)


def main(paths: list[str], overrides: list[str], options: dict[str, str]) -> None:
    """Run the jobs, show how each does and what became of it, and the report of them all.

    Raises:
        ConfigError: one of the jobs would not run; none was begun.
        TinyexpError: a job did not finish.
        Interrupted: a signal came; the running jobs have saved.
    """
    plan = plan_sweep(overrides)
    planned = [*plan.jobs, *plan.samples]
    _check(planned)
    first = planned[0].config
    names = {job.config.run.name for job in planned}
    name, total = str(first.run.name) if len(names) == 1 else "several", len(plan.jobs) or plan.config.trials or 0
    sweep = Sweep(first, name, total)
    try:
        console = start_terminal(first.log.level)
        start_run_log(sweep.directory / "sweep.log")
        for job in plan.jobs:
            sweep.add(job)
        search: Search | None = TpeSearch(plan, first.ckpt.monitor, sweep.directory) if not plan.jobs else None
        _log.info("%d job%s in %s", total, "" if total == 1 else "s", sweep.directory)
        with SweepTable(console, sweep, total) as table:
            for ended in sweep.run(table.show, search):
                _log.info("%s", job_line(ended, total))
        final = table.drawing()
        _log.info("%s", plain_text(final), extra=drawn(final))
    finally:
        stop_logging()
        sweep.close()
    if any(job.status == "finished" for job in sweep.jobs):
        _report(str(sweep.directory), planned)
    sweep.raise_for_failures()


def _report(folder: str, planned: Iterable[SweepJob]) -> None:
    """The table of them all, shown and written into the sweep's directory with their curves."""
    jobs = list(planned)
    epochs = jobs[0].config.sweep.at_epochs
    options = {"epochs": ",".join(map(str, epochs))} if epochs else {}
    targets = {(slot, getattr(job.config, slot).target) for job in jobs for slot in SLOTS}
    own = sorted({target for slot, target in targets if report.refusal(((slot, target),), ())})
    report.main([folder], [f"trust=[{','.join(own)}]"] if own else [], {**options, "out": folder})
    sys.stdout.write(f"index.html, report.md, report.csv and curves.png are in {folder}\n")


def _check(jobs: list[SweepJob]) -> None:
    """Ask each job's classes. Raises ConfigError that names the job."""
    from tinyexp.parts import check_parts  # takes torch, and what is wrong in words has been told by now

    for job in jobs:
        try:
            check_parts(job.config)
        except ConfigError as error:
            words = [f"{key}={value}" for key, value in job.label.items()] or job.words
            raise ConfigError(f"{error} (job {' '.join(words)}; none was begun)") from error
