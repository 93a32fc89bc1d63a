"""A sweep: jobs that are each a process and a run directory of their own, and what became of each.

The jobs share nothing with this process but the disk: one that crashes, is killed or runs out of memory stops no other.
sweep.json says after each step how far the sweep is, so that the same command goes on after any end.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from tinyexp.config import Config
from tinyexp.errors import ConfigError, Interrupted, TinyexpError
from tinyexp.files import make_unique, refusal, write_json
from tinyexp.job import DONE, Job
from tinyexp.jobprocess import JobProcess, Running
from tinyexp.ledger import NAME, PastJob, key_of, plain_job, read_jobs
from tinyexp.lock import DirectoryLock, is_held
from tinyexp.overrides import word
from tinyexp.signals import answering
from tinyexp.slots import Slot, divide
from tinyexp.submitted import SubmittedJob
from tinyexp.sweepjobs import SweepJob

_log = logging.getLogger(__name__)
_LOOK = 0.2  # seconds between two looks at the running jobs
_NAME = re.compile(r"[^A-Za-z0-9._+-]+")  # what a directory's name, and an override's value, had better not have
_LONGEST = 80


class Search(Protocol):
    """What chooses the values of the next job by those before it."""

    def ask(self) -> SweepJob | None:
        """The next one; None: there have been enough."""

    def prunes(self, job: Job) -> bool:
        """Is a running job not worth its end?"""

    def tell(self, job: Job) -> None:
        """What became of it."""


@dataclass
class _Place:
    """A running job, and what it has of the machine."""

    running: Running
    slot: Slot
    began: float
    told: bool = False  # of the signal that asks for an end


class Sweep:
    """All jobs, in a directory of the sweep's own, which one process at a time goes on with."""

    def __init__(self, config: Config, name: str, count: int) -> None:
        """Make the directory, or take over what is there.

        Args:
            count: of jobs, for their names.

        Raises:
            ConfigError: sweep.dir cannot be made, is no sweep's, or another process is at it; or this is one of ranks.
            ResourceError: the disk is full.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ConfigError("-m is for one process, and torchrun started several: each would run the whole sweep")
        if config.hw.master is not None:
            raise ConfigError("-m is for one machine, as hw.master is not: start each run on all machines by itself")
        self.config = config.sweep
        self.directory = _make(config, name)
        self._lock = DirectoryLock(self.directory)
        self._lock.take()
        try:
            self._past = read_jobs(self.directory)
        except ConfigError:
            self._lock.release()
            raise
        self._width = len(str(count))
        self.jobs: list[Job] = []
        self.asked: int | None = None  # the signal that asks for an end
        here = config.sweep.launcher == "process"
        self._free = divide(config.hw, self.config.jobs)[::-1] if here else [Slot()] * self.config.jobs
        self._running: dict[int, _Place] = {}  # by the job's number
        self.write()  # from here on the directory is a sweep's

    def close(self) -> None:
        self._lock.release()

    def add(self, made: SweepJob) -> Job:
        """A job that is to be run, in the place that the ledger has of it, or a new one."""
        key = key_of(made.config.plain, made.label)
        if twin := next((job for job in self.jobs if job.key == key), None):
            return twin
        attempts = [past for past in self._past if past.key == key]
        directory = attempts[-1].directory if attempts else self._new_directory(made.label)
        job = Job(
            number=_number(directory),
            words=made.words,
            label=made.label,
            key=key,
            directory=directory,
            epochs=made.config.train.epochs,
            seconds=attempts[-1].seconds if attempts else 0.0,
            last=attempts[-1] if attempts else None,
            earlier=attempts[:-1],
        )
        self.jobs.append(job)
        self.write()
        return job

    def _new_directory(self, label: dict[str, str]) -> Path:
        """With the next number: those of the ledger and of what is on the disk are taken."""
        told = [*(past.directory for past in self._past), *(job.directory for job in self.jobs)]
        number = max(map(_number, [*self.directory.iterdir(), *told]), default=0) + 1
        return self.directory / _directory_name(f"{number:0{self._width}}", label)

    def run(self, look: Callable[[], None], search: Search | None = None) -> Iterator[Job]:
        """Run the jobs that are not done, and those that a search asks for; comes back with each when it has ended.

        A signal is passed on to the running jobs, which save and end; the others are then not started.

        Args:
            look: called some times a second while jobs run.
        """
        with answering(self._answer):
            while True:
                yield from self._fill(search)
                if not self._running and (self._over() or not self._waiting()):
                    break
                look()
                time.sleep(_LOOK)
                yield from self._reap(search)
        for job in self._waiting():
            if not self._is_done(job):
                job.status = "not started"
            yield job
        self.write()

    def raise_for_failures(self) -> None:
        """Raises Interrupted where a signal came, else TinyexpError where a job failed: the exit code says so."""
        failed = [job for job in self.jobs if job.is_bad]
        waiting = sum(job.status == "not started" for job in self.jobs)
        not_started = f"; {waiting} were not started" if waiting else ""
        if self.asked:
            cut = any(job.status == "interrupted" for job in self.jobs)
            told = f"the sweep was interrupted by {signal.Signals(self.asked).name}{not_started}"
            raise (Interrupted if cut or not failed else TinyexpError)(f"{told}; {self._cure()}")
        if failed:
            told = "; ".join(f"{job.directory.name} {job.describe()}" for job in failed[:3])
            more = f" and {len(failed) - 3} more" if len(failed) > 3 else ""
            counted = f"{len(failed)} of {len(self.jobs)} jobs did not finish: {told}{more}{not_started}"
            raise TinyexpError(f"{counted}; {self._cure()}")

    def write(self) -> None:
        """sweep.json: what each job is and what became of it. A full disk stops no job: each tells it by itself."""
        jobs = {job.key: [*job.earlier, job.attempt()] for job in self.jobs}
        others: dict[str, list[PastJob]] = {}
        for past in self._past:
            if past.key not in jobs:
                others.setdefault(past.key, []).append(past)
        told = [plain_job(attempts) for attempts in (*others.values(), *jobs.values())]
        try:
            write_json(self.directory / NAME, {"argv": sys.argv, "jobs": told})
        except TinyexpError as error:
            _log.warning("%s", error)

    def _cure(self) -> str:
        return f"the same command with sweep.dir={self.directory} does what is left"

    def _over(self) -> bool:
        """Is no other job to be started?"""
        return bool(self.asked) or (self.config.on_error == "stop" and any(job.is_bad for job in self.jobs))

    def _waiting(self) -> list[Job]:
        return [job for job in self.jobs if job.status == "waiting"]

    def _fill(self, search: Search | None) -> Iterator[Job]:
        """Start what there is room for; comes back with jobs that are done already."""
        while self._free and not self._over():
            # one whose directory is being written was started by a sweep that is gone, and saves or ends by itself
            job = next((each for each in self._waiting() if not is_held(each.directory)), None)
            if job is None:
                if search and (asked := search.ask()):
                    self.add(asked)
                    continue
                return
            if self._is_done(job):
                if search:
                    search.tell(job)
                self.write()
                yield job
            else:
                self._start(job, anew=job.run.status == "failed")

    def _is_done(self, job: Job) -> bool:
        """Has an earlier sweep done all of it? It is then said so."""
        if (status := job.run.status) not in DONE:
            return False
        job.status, job.code, job.before = status, 0, True
        return True

    def _start(self, job: Job, *, anew: bool) -> None:
        """Go on with what the run has left, or `anew` in a directory of its own."""
        if anew:
            job.earlier.append(replace(job.attempt(), status="failed"))
            job.last = None
            name = job.earlier[0].directory.name
            job.directory, job.seconds = self.directory / f"{name}-try-{len(job.earlier) + 1}", 0.0
        slot = self._free.pop()
        threads = [] if slot.threads is None else [word("hw.threads", slot.threads)]
        words = (*job.words, *threads, word("run.dir", str(job.directory)), "resume=auto")
        if self.config.launcher == "submitit":
            folder = self.directory / "submitit" / job.directory.name
            running: Running = SubmittedJob(words, slot.environment, folder, self.config.submitit)
        else:
            running = JobProcess(words, slot.environment)
        place = self._running[job.number] = _Place(running, slot, time.monotonic() - job.seconds)
        job.status = "running"
        if self.asked:  # while it was being started
            self._tell(place, self.asked)
        self.write()

    def _reap(self, search: Search | None) -> Iterator[Job]:
        """The jobs that have ended since."""
        for job in [each for each in self.jobs if each.number in self._running]:
            place = self._running[job.number]
            job.seconds = time.monotonic() - place.began
            if (code := place.running.poll()) is None:
                if search and not job.pruned and search.prunes(job):
                    job.pruned = True
                    place.running.send(signal.SIGTERM)
                continue
            del self._running[job.number]
            self._free.append(place.slot)
            job.end(code, place.running.output())
            if search and (not self.asked or job.status in DONE):  # one that was cut stays open, for the next sweep
                search.tell(job)
            self.write()
            yield job

    def _answer(self, number: int) -> None:
        """Signals go to the running jobs: the first makes them save and end, the second end at once."""
        again, self.asked = self.asked is not None, number
        for place in list(self._running.values()):
            self._tell(place, number, again=again)

    def _tell(self, place: _Place, number: int, *, again: bool = False) -> None:
        if again or not place.told:
            place.told = True
            place.running.send(number)


def _make(config: Config, name: str) -> Path:
    """The sweep's directory."""
    given = config.sweep.dir
    try:
        if given is None:
            return make_unique(Path(config.run.root), f"{name}-sweep")
        directory = Path(given)
        directory.mkdir(parents=True, exist_ok=(directory / NAME).is_file())
        return directory
    except FileExistsError as error:
        raise ConfigError(f"sweep.dir={given} is there already, and is no sweep's: it has no {NAME}") from error
    except OSError as error:
        raise refusal(f"a sweep's directory cannot be made: {error.strerror}", error, ConfigError) from error


def _number(path: Path) -> int:
    """Of a job's directory; 0 of anything else."""
    number = path.name.partition("-")[0]
    return int(number) if number.isdecimal() else 0


def _directory_name(number: str, label: dict[str, str]) -> str:
    """3-lr-0.001-seed-2: what it is, in letters that every shell, and Hydra's grammar, takes as they are."""
    parts = [f"{key.rpartition('.')[2]}-{value}" for key, value in label.items()]
    return _NAME.sub("_", "-".join([number, *parts]))[:_LONGEST].rstrip("._-")
