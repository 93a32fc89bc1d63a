"""A sweep: jobs that are each a process and a run directory of their own, one after the other, and what became of each.

The jobs share nothing with this process but the disk: one that crashes, is killed or runs out of memory stops no other.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tinyexp.compose import SweepJob
from tinyexp.errors import ConfigError, Interrupted, TinyexpError, describe_exit
from tinyexp.files import make_unique, refusal, write_json
from tinyexp.overrides import word
from tinyexp.saved import SavedRun
from tinyexp.signals import answering

_log = logging.getLogger(__name__)
_LOOK = 0.25  # seconds between two looks at a running job
_NAME = re.compile(r"[^A-Za-z0-9._+-]+")  # what a directory's name, and an override's value, had better not have
_LONGEST = 80


@dataclass
class Job:
    """One run of a sweep, and where it is."""

    number: int
    words: tuple[str, ...]
    label: dict[str, str]
    directory: Path
    epochs: int
    status: str = "waiting"  # then running; then finished, failed, killed or interrupted; or not started
    code: int | None = None  # of the process: negative is the signal that killed it
    seconds: float = 0.0
    last_words: str = ""  # of its output

    @property
    def run(self) -> SavedRun:
        """What the run has left so far, read anew."""
        return SavedRun(self.directory)

    def describe(self) -> str:
        """What happened to it, in a few words."""
        if self.code == 0 and self.status == "failed":
            return "failed: it ended with exit 0 before its last epoch"
        return self.status if self.code in (None, 0) else f"{self.status}: {describe_exit(self.code)}"


@dataclass(frozen=True)
class PastJob:
    """What sweep.json says of a job."""

    directory: Path
    label: dict[str, str]
    status: str
    code: int | None
    last_words: str


def read_jobs(folder: Path) -> list[PastJob]:
    """The jobs of a sweep's directory; none where it is no sweep's, or its sweep.json cannot be made out."""
    try:
        jobs = json.loads((folder / "sweep.json").read_bytes())["jobs"]
        return [
            PastJob(
                directory=folder / str(job["directory"]),
                label={str(key): str(value) for key, value in job["label"].items()},
                status=str(job["status"]),
                code=job["exit_code"] if isinstance(job["exit_code"], int) else None,
                last_words=str(job["last_words"]),
            )
            for job in jobs
        ]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return []


@dataclass
class Sweep:
    """All jobs, in a directory of the sweep's own."""

    directory: Path
    jobs: list[Job]
    on_error: str
    asked: int | None = None  # the signal that asks for an end
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @staticmethod
    def make(jobs: Sequence[SweepJob]) -> Sweep:
        """Its directory is made, those of its jobs are not.

        Raises:
            ConfigError: sweep.dir is there already, or cannot be made; or this is one of several ranks.
            ResourceError: the disk is full.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ConfigError("-m is for one process, and torchrun started several: each would run the whole sweep")
        first = jobs[0].config
        if first.hw.master is not None:
            raise ConfigError("-m is for one machine, as hw.master is not: start each run on all machines by itself")
        names = {job.config.run.name for job in jobs}
        try:
            if first.sweep.dir is None:
                name = f"{first.run.name if len(names) == 1 else 'several'}-sweep"
                directory = make_unique(Path(first.run.root), name)
            else:
                directory = Path(first.sweep.dir)
                directory.mkdir(parents=True)
        except FileExistsError as error:
            raise ConfigError(f"sweep.dir={first.sweep.dir} is there already: two sweeps never share one") from error
        except OSError as error:
            raise refusal(f"a sweep's directory cannot be made: {error.strerror}", error, ConfigError) from error
        width = len(str(len(jobs)))
        found = [
            Job(
                number=number,
                words=job.words,
                label=job.label,
                directory=directory / _directory_name(number, width, job.label),
                epochs=job.config.train.epochs,
            )
            for number, job in enumerate(jobs, start=1)
        ]
        sweep = Sweep(directory, found, first.sweep.on_error)
        sweep.write()
        return sweep

    def run(self, look: Callable[[Job], None]) -> Iterator[Job]:
        """Run the jobs that are waiting, one after the other; comes back with each when it has ended.

        A signal is passed on to the running job, which saves and ends; the others are then not started.

        Args:
            look: called some times a second while a job runs.
        """
        with answering(self._answer):
            for job in self.jobs:
                if self.asked or (self.on_error == "stop" and any(map(_is_bad, self.jobs))):
                    job.status = "not started"
                else:
                    self._run_job(job, look)
                self.write()
                yield job

    def raise_for_failures(self) -> None:
        """Raises Interrupted where a signal came, else TinyexpError where a job failed: the exit code says so."""
        failed = [job for job in self.jobs if _is_bad(job)]
        waiting = sum(job.status == "not started" for job in self.jobs)
        not_started = f"; {waiting} were not started" if waiting else ""
        if self.asked:
            cut = next((job for job in self.jobs if job.status == "interrupted"), None)
            more = f"; its last job goes on with resume={cut.directory}" if cut else ""
            told = f"the sweep was interrupted by {signal.Signals(self.asked).name}{not_started}{more}"
            raise (Interrupted if cut or not failed else TinyexpError)(told)
        if failed:
            told = "; ".join(f"{job.directory.name} {job.describe()}" for job in failed[:3])
            more = f" and {len(failed) - 3} more" if len(failed) > 3 else ""
            raise TinyexpError(f"{len(failed)} of {len(self.jobs)} jobs did not finish: {told}{more}{not_started}")

    def write(self) -> None:
        """sweep.json: what each job is and what became of it. A full disk stops no job: each tells it by itself."""
        try:
            write_json(self.directory / "sweep.json", {"argv": sys.argv, "jobs": [_plain(job) for job in self.jobs]})
        except TinyexpError as error:
            _log.warning("%s", error)

    def _run_job(self, job: Job, look: Callable[[Job], None]) -> None:
        command = [sys.executable, "-m", "tinyexp", *job.words, word("run.dir", str(job.directory))]
        job.status, began = "running", time.monotonic()
        self.write()
        with tempfile.TemporaryFile() as output:
            # In a session of its own, so that Ctrl-C reaches it once: from here.
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
            while job.code is None:
                look(job)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    job.code = self._process.wait(_LOOK)
                job.seconds = time.monotonic() - began
            finished = job.run.status == "finished"
            job.status = "finished" if job.code == 0 and finished else _status(job.code)
            if job.status != "finished":
                output.seek(0)
                self._keep_output(job, output.read())
        look(job)

    def _keep_output(self, job: Job, output: bytes) -> None:
        """What a job that did not finish said, beside its directory: it may have come to no run.log."""
        lines = output.decode(errors="replace").strip().splitlines()
        job.last_words = lines[-1] if lines else ""
        with contextlib.suppress(OSError):
            self.directory.joinpath(f"{job.directory.name}.out").write_bytes(output)

    def _answer(self, number: int) -> None:
        """Signals go to the running job: the first makes it save and end, the second end at once."""
        self.asked = number
        if self._process is not None:  # send_signal does nothing to one that has ended
            self._process.send_signal(number)


def _directory_name(number: int, width: int, label: dict[str, str]) -> str:
    """0-lr-0.001-seed-2: what it is, in letters that every shell, and Hydra's grammar, takes as they are."""
    parts = [f"{key.rpartition('.')[2]}-{value}" for key, value in label.items()]
    return _NAME.sub("_", "-".join([f"{number:0{width}}", *parts]))[:_LONGEST].rstrip("._-")


def _is_bad(job: Job) -> bool:
    return job.code is not None and job.status != "finished"


def _status(code: int) -> str:
    """Of a job that did not finish."""
    if code < 0:
        return "killed"
    return "interrupted" if code == Interrupted.exit_code else "failed"


def _plain(job: Job) -> dict[str, Any]:
    return {
        "directory": job.directory.name,
        "words": list(job.words),
        "label": job.label,
        "status": job.status,
        "exit_code": job.code,
        "seconds": round(job.seconds, 3),
        "last_words": job.last_words,
    }
