"""sweep [overrides]: a run for each combination of values, as optim.lr=1e-3,1e-2; -m is the same.

All jobs are composed and their parts checked before the first begins.
"""

from __future__ import annotations

import logging

from tinyexp.compose import SweepJob, compose_sweep
from tinyexp.config import SLOTS
from tinyexp.errors import ConfigError
from tinyexp.log import drawn, plain_text, start_run_log, start_terminal, stop_logging
from tinyexp.sweep import Sweep
from tinyexp.sweeptable import SweepTable, job_line
from tinyexp.verbs import report

_log = logging.getLogger(__name__)


def main(paths: list[str], overrides: list[str], options: dict[str, str]) -> None:
    """Run the jobs, show how each does and what became of it, and the report of them all.

    Raises:
        ConfigError: one of the jobs would not run; none was begun.
        TinyexpError: a job did not finish.
        Interrupted: a signal came; the running job has saved.
    """
    jobs = compose_sweep(overrides)
    _check(jobs)
    sweep = Sweep.make(jobs)
    console = start_terminal(jobs[0].config.log.level)
    start_run_log(sweep.directory / "sweep.log")
    try:
        _log.info("%d job%s in %s", len(jobs), "" if len(jobs) == 1 else "s", sweep.directory)
        with SweepTable(console, sweep) as table:
            for job in sweep.run(table.show):
                _log.info("%s", job_line(job, len(jobs)))
        final = table.drawing()
        _log.info("%s", plain_text(final), extra=drawn(final))
    finally:
        stop_logging()
    if any(job.status == "finished" for job in sweep.jobs):
        own = sorted({getattr(job.config, slot).target for job in jobs for slot in SLOTS})
        report.main([str(sweep.directory)], [f"trust=[{','.join(own)}]"], {})
    sweep.raise_for_failures()


def _check(jobs: list[SweepJob]) -> None:
    """Ask each job's classes. Raises ConfigError that names the job."""
    from tinyexp.parts import check_parts  # takes torch, and what is wrong in words has been told by now

    for job in jobs:
        try:
            check_parts(job.config)
        except ConfigError as error:
            words = [f"{key}={value}" for key, value in job.label.items()] or job.words
            raise ConfigError(f"{error} (job {' '.join(words)}; none was begun)") from error
