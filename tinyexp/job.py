"""One run of a sweep: which it is, where it is, and what became of it."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass, field
from pathlib import Path

from tinyexp.errors import Interrupted, TinyexpError, describe_exit
from tinyexp.files import write_json
from tinyexp.ledger import PastJob
from tinyexp.saved import SavedRun
from tinyexp.signals import SIGNALS

_log = logging.getLogger(__name__)
DONE = ("finished", "pruned")  # statuses of jobs that are not run again


@dataclass
class Job:
    """One run of a sweep, and where it is."""

    number: int
    words: tuple[str, ...]
    label: dict[str, str]
    key: str  # of its config
    directory: Path
    epochs: int
    status: str = "waiting"  # then running; then finished, pruned, failed, killed or interrupted; or not started
    code: int | None = None  # of the process: negative is the signal that killed it
    seconds: float = 0.0
    last_words: str = ""  # of its output
    last: PastJob | None = None  # what the ledger said of this attempt when this process began
    earlier: list[PastJob] = field(default_factory=list)  # attempts that failed
    before: bool = False  # was it done when this process began?
    pruned: bool = False  # was it told to end?

    @property
    def run(self) -> SavedRun:
        """What the run has left so far, read anew."""
        return SavedRun(self.directory)

    def describe(self) -> str:
        """What happened to it, in a few words."""
        if self.code == 0 and self.status == "failed":
            return "failed: it ended with exit 0 before its last epoch"
        if self.before:
            return f"{self.status} before"
        return (
            self.status
            if self.code in (None, 0) or self.status in DONE
            else f"{self.status}: {describe_exit(self.code)}"
        )

    def attempt(self) -> PastJob:
        """As the ledger has it; of one that was not looked at yet, as it had it before."""
        if self.last and self.status in ("waiting", "not started"):
            return self.last
        return PastJob(
            directory=self.directory,
            words=self.words,
            label=self.label,
            key=self.key,
            status=self.status,
            code=self.code,
            seconds=self.seconds,
            last_words=self.last_words,
        )

    @property
    def is_bad(self) -> bool:
        return self.code is not None and self.status not in DONE

    def end(self, code: int, output: bytes) -> None:
        """Its process is gone: what became of it, and what it said where it did not finish."""
        self.code, run = code, self.run
        if run.status == "finished" and (code == 0 or -code in SIGNALS):  # one that came after all was done
            self.status, self.code = "finished", 0
        else:
            self.status = _status(code)
        if self.pruned and self.status == "interrupted":
            self.status = "pruned"
            try:
                write_json(self.directory / "summary.json", {**run.summary, "status": "pruned", "error": None})
            except TinyexpError as error:
                _log.warning("%s", error)
        elif self.status != "finished":
            lines = output.decode(errors="replace").strip().splitlines()
            self.last_words = lines[-1] if lines else ""
            with contextlib.suppress(OSError):
                self.directory.with_name(f"{self.directory.name}.out").write_bytes(output)


def _status(code: int) -> str:
    """Of a job that did not finish."""
    if code < 0:
        return "killed"
    return "interrupted" if code == Interrupted.exit_code else "failed"
