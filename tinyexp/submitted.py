"""A sweep's job that submitit hands to SLURM, or to a process of this machine as SLURM would have it.

It is asked to end by a file beside its log, which works from any machine that shares the disk, and for a job that
still waits for its turn.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tinyexp.errors import ConfigError, Interrupted, TinyexpError
from tinyexp.heartbeat import SWEEP

_LOOK = 0.5  # seconds between two looks for the file


class SubmittedJob:
    """`python -m tinyexp WORDS` on whatever machine it is given."""

    def __init__(
        self, words: Sequence[str], environment: Mapping[str, str], folder: Path, parameters: Mapping[str, Any]
    ) -> None:
        """Submit it; `folder` gets submitit's files.

        Raises:
            ConfigError: no submitit, no SLURM, or parameters that the executor does not take.
        """
        try:
            import submitit
        except ImportError as error:
            raise ConfigError("sweep.launcher=submitit needs submitit: pip install 'tinyexp[submitit]'") from error
        own = {"cluster": "slurm", "name": "tinyexp", **parameters}
        self._stop = folder / "stop"
        self._stop.unlink(missing_ok=True)
        try:
            executor = submitit.AutoExecutor(folder, cluster=own.pop("cluster"))
            executor.update_parameters(**own)
            self._job: Any = executor.submit(run, list(words), dict(environment), str(self._stop), str(Path.cwd()))
        except (RuntimeError, ValueError, NameError, TypeError, OSError, subprocess.CalledProcessError) as error:
            raise ConfigError(f"sweep.submitit: {error}") from error

    def poll(self) -> int | None:
        if not self._job.done():
            return None
        from submitit.core.utils import FailedJobError

        try:
            return int(self._job.result())
        except FailedJobError:  # it raised something
            return TinyexpError.exit_code
        except Exception:  # the node is lost, or it was cancelled: nothing came back, in one way or another
            return -signal.SIGKILL

    def send(self, number: int) -> None:
        """Any signal asks it to save and end; a second one cancels it."""
        if self._stop.exists():
            self._job.cancel()
        self._stop.touch()

    def output(self) -> bytes:
        said = [self._job.stdout(), self._job.stderr()]
        return "\n".join(text for text in said if text).encode()


def run(words: Sequence[str], environment: Mapping[str, str], stop: str, folder: str) -> int:
    """On the job's machine: the run's exit code. SLURM's word that time is up makes it save, too."""
    if Path(stop).exists():
        return Interrupted.exit_code
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # as the run inherits it; SLURM sends it to all processes of a job
    command = [sys.executable, "-m", "tinyexp", *words]
    own = {**os.environ, **environment, SWEEP: str(os.getpid())}
    process = subprocess.Popen(command, cwd=folder, env=own, start_new_session=True)
    asked = [False]

    def ask(*_: object) -> None:
        if not asked[0]:
            asked[0] = True
            process.send_signal(signal.SIGTERM)

    signal.signal(signal.SIGUSR2, ask)
    while (code := process.poll()) is None:
        if Path(stop).exists():
            ask()
        time.sleep(_LOOK)
    return code
