"""A sweep's job as a process of this machine."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Protocol

from tinyexp.heartbeat import SWEEP


class Running(Protocol):
    """A job that was started, wherever it runs."""

    def poll(self) -> int | None:
        """Its exit code, negative for the signal that killed it; None while it runs."""

    def send(self, number: int) -> None:
        """Pass a signal on; nothing happens to one that has ended."""

    def output(self) -> bytes:
        """What it said, on both streams, once it has ended."""


class JobProcess:
    """`python -m tinyexp WORDS`, in a session of its own, so that Ctrl-C reaches it once: from the sweep.

    It saves and ends when the sweep's process ends, however that does.
    """

    def __init__(self, words: Sequence[str], environment: Mapping[str, str]) -> None:
        self._output = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tinyexp", *words],
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._output,
            start_new_session=True,
            env={**os.environ, **environment, SWEEP: str(os.getpid())},
        )

    def poll(self) -> int | None:
        return self._process.poll()

    def send(self, number: int) -> None:
        self._process.send_signal(number)

    def output(self) -> bytes:
        with self._output:
            self._output.seek(0)
            return self._output.read()
