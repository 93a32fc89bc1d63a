"""Training a head: on features that a frozen backbone made once, against running it in each epoch in fp32.

    python benchmarks/features.py WORDS...          words of a run, as model=... model.weights=... dataset=...

Both train the same epochs from the same weights. The second runs --real epochs of them, since each takes as long; the
first is the whole of its run from its first line, its features not yet in the cache.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


def run(folder: Path, words: list[str]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A run's summary, and its rows of phases train_epoch and val."""
    command = [sys.executable, "-m", "tinyexp", f"run.dir={folder}", "transfer=frozen", *words]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return json.loads((folder / "summary.json").read_text()), [row for row in rows if row["phase"] != "train"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument(
        "--real", type=int, default=1, help="epochs in which the backbone runs; the others are reckoned"
    )
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("words", nargs="+")
    options = parser.parse_args()
    ratios = []
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            words = [*options.words, f"train.epochs={options.epochs}"]
            store = f"dataset.cache_dir={folder}/cache"
            subprocess.run(
                [sys.executable, "-m", "tinyexp", "prepare", *options.words, store],
                check=True,
                stdout=subprocess.DEVNULL,
            )
            once, rows = run(Path(folder, "once"), [*words, store])
            each_words = [*words, store, "transfer.features=never", "train.precision=fp32"]
            if options.real < options.epochs:
                each_words += [f"train.epochs={options.real}", "scheduler=constant"]
            _, slow = run(Path(folder, "each"), each_words)
        epoch = sum(row["seconds"] for row in slow) / options.real
        ratios.append(epoch * options.epochs / once["seconds"])
        best = max(row["top1"] for row in rows if row["phase"] == "val")
        print(
            f"features once, {options.epochs} epochs: {once['seconds']:.1f} s in all (best val top1 {best:.4f}); "
            f"the backbone in each epoch: {epoch:.1f} s an epoch; {ratios[-1]:.1f}x",
            flush=True,
        )
    print(f"median {sorted(ratios)[len(ratios) // 2]:.1f}x of {len(ratios)}")


if __name__ == "__main__":
    main()
