"""SIGTERM, SIGINT, SIGUSR1 and SIGHUP: the first asks for a checkpoint and an end, the second ends at once.

A Python signal handler does not run while the main thread is blocked in a collective or a long operation; the system's
own byte in a pipe and a thread that waits for it do.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

from tinyexp.errors import TinyexpError

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
DEADLINE = 20.0  # seconds from the first signal to a saved checkpoint; torchrun kills after 30


def heeded() -> list[signal.Signals]:
    """Those of SIGNALS that this process answers: nohup has SIGHUP ignored, and so it stays."""
    return [number for number in SIGNALS if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]


@contextlib.contextmanager
def answering(answer: Callable[[int], None]) -> Iterator[None]:
    """`answer` gets each signal while this is entered; for a process that passes them on."""
    before = {number: signal.signal(number, lambda number, _: answer(number)) for number in heeded()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class SignalWatch:
    """`received` names the first signal. `leave` is called, in another thread, at the second one or past the deadline.

    Made in the main thread; `close` brings back what was there before.
    """

    def __init__(self, leave: Callable[[str], None], deadline: float = DEADLINE, echo: float = 0.0) -> None:
        """Another signal within `echo` seconds of the first is taken for the same one, passed on by a launcher."""
        self.received: str | None = None
        self._echo = echo
        self._leave = leave
        self._deadline = deadline
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._previous = {number: signal.signal(number, _take) for number in heeded()}
        self._wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._watch, name="signals", daemon=True)
        self._thread.start()

    def heed(self) -> None:
        """Between two pieces of a long beginning. Raises TinyexpError where a signal has come."""
        if self.received:
            raise TinyexpError(f"{self.received}: ended before the first step, when there was nothing to save")

    def close(self) -> None:
        signal.set_wakeup_fd(self._wakeup)
        late = self.received and self._echo  # what the launcher passes on now must not end a process that has saved
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_IGN if late else handler)
        os.write(self._writer, b"\0")
        self._thread.join()
        os.close(self._reader)
        os.close(self._writer)

    def _watch(self) -> None:
        wanted = {int(number) for number in SIGNALS}
        latest = math.inf
        while True:
            left = None if latest == math.inf else max(0.0, latest - time.monotonic())
            ready, _, _ = select.select([self._reader], [], [], left)
            if not ready:
                self._leave(f"{self.received}: no checkpoint within {self._deadline:.0f} s")
                return
            for number in os.read(self._reader, 64):
                if number == 0:
                    return
                if number in wanted and self.received and time.monotonic() < latest - self._deadline + self._echo:
                    continue
                if number in wanted and self.received:
                    self._leave(f"{signal.Signals(number).name} after {self.received}")
                    return
                if number in wanted:
                    self.received = signal.Signals(number).name
                    latest = time.monotonic() + self._deadline
                    if not self._echo:  # else the launcher says it
                        _say(f"{self.received}: saving after this step; once more leaves at once")


def _say(message: str) -> None:
    """Past all buffers and locks, which the blocked main thread may hold."""
    with contextlib.suppress(OSError):
        os.write(2, f"\r{message}\n".encode())


def _take(number: int, frame: FrameType | None) -> None:
    """Instead of the signal's default, which would end the process; the watching thread does the rest."""
