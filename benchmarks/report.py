"""The report of many runs, written to files: seconds, and how large its page is.

    python benchmarks/report.py [--runs 500] [--epochs 100] [--seeds 5] [--classes 10] [--rounds 5]

The runs are made by hand, with the files and the lines of real ones: groups of --seeds that differ in their rate.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from tinyexp.compose import compose


def write_run(folder: Path, config: dict[str, Any], epochs: int, classes: int) -> None:
    """A run that learnt as one of this rate and seed might."""
    rate, seed = config["optim"]["lr"], config["train"]["seed"]
    draw = random.Random(f"{rate} {seed}")
    reach = 0.99 - 0.03 * abs(math.log10(rate / 0.003))
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    rows: list[dict[str, Any]] = []
    for epoch in range(1, epochs + 1):
        for phase, below in (("train", 0.0), ("train_epoch", 0.0), ("val", 0.01)):
            top1 = reach - below - 0.8 * math.exp(-epoch / 8) + draw.gauss(0, 0.004)
            scores = {"loss": 3 * (1 - top1), "top1": top1, "top5": (1 + top1) / 2}
            speed = {"images_per_second": draw.gauss(12000, 300), "data_wait": 0.001, "seconds": 0.12}
            rate_now = {} if phase == "val" else {"lr": rate}
            rows.append({"phase": phase, "epoch": epoch, "step": 23 * epoch} | scores | rate_now | speed)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    best = max((row for row in rows if row["phase"] == "val"), key=lambda row: row["top1"])
    summary = {"status": "finished", "exit_code": 0, "error": None, "epochs": epochs, "seconds": 0.13 * epochs}
    (folder / "summary.json").write_text(json.dumps(summary | {"parameters": 61706, "best": best}))
    wrong = {(label, draw.randrange(classes)): draw.randint(1, 4) for label in range(classes) for _ in range(3)}
    counts = wrong | {(label, label): 36 for label in range(classes)}
    content = {"epoch": best["epoch"], "classes": [f"class {i}" for i in range(classes)]}
    cells = [[label, said, count] for (label, said), count in sorted(counts.items())]
    (folder / "confusion.json").write_text(json.dumps(content | {"counts": cells}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("runs", 500), ("epochs", 100), ("seeds", 5), ("classes", 10), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--keep", type=Path, help="make the runs and the report in this folder, and leave them there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        plain = compose(["hw=cpu"]).plain
        for i in range(options.runs):
            group, seed = divmod(i, options.seeds)
            rate = float(f"{10 ** (-5 + 5 * group * options.seeds / options.runs):.4g}")
            changed = plain | {"optim": plain["optim"] | {"lr": rate}, "train": plain["train"] | {"seed": seed}}
            write_run(folder / "runs" / f"{i:04}", changed, options.epochs, options.classes)
        command = [sys.executable, "-m", "tinyexp", "report", str(folder / "runs"), "--out", str(folder / "report")]
        seconds = []
        for _ in range(options.rounds):
            began = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            seconds.append(time.perf_counter() - began)
        size = (folder / "report" / "index.html").stat().st_size
    print(
        f"{options.runs} runs of {options.epochs} epochs, {options.seeds} seeds a group: "
        f"{statistics.median(seconds):.2f} s (median of {options.rounds}, {min(seconds):.2f} to {max(seconds):.2f}); "
        f"index.html {size / 1e6:.2f} MB"
    )


if __name__ == "__main__":
    main()
