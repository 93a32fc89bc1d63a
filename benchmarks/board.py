"""What TensorBoard takes of a run: the time in its views and its events, against the whole run's.

    python benchmarks/board.py WORDS...          words of a run, as experiment=fashion_lenet5

The run is one process like any other, whose calls of Board and Gallery are timed from outside, nested ones once: side
by side with log.tensorboard all off, a percent would be lost in the noise. What the writer's own thread takes is not in
it, nor the import of TensorBoard, which --import times in a fresh process.
"""

from __future__ import annotations

import argparse
import functools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tinyexp.__main__ import main as tinyexp
from tinyexp.board import Board
from tinyexp.gallery import Gallery

_IMPORT = "import torch, time; t = time.perf_counter(); import tinyexp.board; print(time.perf_counter() - t)"


class Stopwatch:
    """Seconds in the functions that it wraps, each moment once."""

    def __init__(self) -> None:
        self.seconds, self.calls, self._inside = 0.0, 0, False

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*given: Any, **named: Any) -> Any:
            if self._inside:
                return function(*given, **named)
            self._inside, began = True, time.perf_counter()
            try:
                return function(*given, **named)
            finally:
                self.seconds += time.perf_counter() - began
                self.calls += 1
                self._inside = False

        return timed


def measure(words: list[str]) -> tuple[float, int, float]:
    """Seconds and calls of TensorBoard's, and seconds of the run."""
    watch = Stopwatch()
    for kind in (Board, Gallery):
        for name, function in list(vars(kind).items()):
            if callable(function):
                setattr(kind, name, watch.wrap(function))
    with tempfile.TemporaryDirectory() as folder:
        if code := tinyexp([f"run.dir={folder}/run", "log.level=warning", *words]):
            sys.exit(code)
        summary = json.loads(Path(folder, "run/summary.json").read_text())
    return watch.seconds, watch.calls, summary["seconds"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--import", dest="fresh", action="store_true", help="time the import, too")
    parser.add_argument("words", nargs="*", default=["experiment=fashion_lenet5"])
    options = parser.parse_args()
    seconds, calls, whole = measure(options.words)
    print(f"TensorBoard: {seconds:.3f} s in {calls:,} calls of a run of {whole:.1f} s: {seconds / whole:.2%}")
    if options.fresh:
        output = subprocess.run([sys.executable, "-c", _IMPORT], check=True, capture_output=True, text=True).stdout
        print(f"its import after torch's: {float(output):.2f} s")


if __name__ == "__main__":
    main()
