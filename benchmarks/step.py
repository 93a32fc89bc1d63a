"""The whole training step against a bare loop over the same batches: what seeding, scores, checks and logs cost.

    python benchmarks/step.py [--rounds 7] [--steps 300] [--batch 64]

Both train LeNet5 on the digits with fused AdamW, in turn in one process; ratios are of the median round. `bare` reads
ready float tensors; `tinyexp` reads uint8 batches in the keyed order, normalises, seeds dropout, keeps scores and the
gradient's norm, checks for inf and nan, and writes a line to metrics.jsonl and TensorBoard each 50 steps.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from tinyexp.compose import compose
from tinyexp.data.loader import load_data
from tinyexp.dist import Dist
from tinyexp.engine import TrainState, train_epoch
from tinyexp.models import LeNet5
from tinyexp.run import Run
from tinyexp.start import begin


def bare_loop(images: torch.Tensor, labels: torch.Tensor, batch: int) -> Callable[[int], None]:
    torch.manual_seed(0)
    model = LeNet5()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, fused=True)
    batches = list(zip(images.split(batch), labels.split(batch), strict=True))[: len(images) // batch]

    def run(steps: int) -> None:
        for step in range(steps):
            x, y = batches[step % len(batches)]
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=64)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        overrides = [f"run.dir={Path(folder) / 'run'}", "log.level=error", f"train.batch_size={options.batch}"]
        config = compose([*overrides, "train.epochs=10000"])
        dist = Dist(torch.device("cpu"))
        with Run.open(config, dist) as run, load_data(config, dist) as data:
            begun = begin(config, data, data.names, dist, run.start(data))
            state = TrainState.build(config, data, dist, begun)
            run.begin(state, data, begun)

            def ours(steps: int) -> None:
                done = 0
                while done < steps:
                    for _ in train_epoch(
                        state, run.clock.waiting(data.train(state.epoch), "train"), config.train, dist
                    ):
                        run.after_step(state)
                        done += 1
                        if done == steps:
                            break
                    state.scores.flush(dist, state.step)
                    state.end_epoch()

            split = [batches[0] for batches in data.train(0)]
            images = torch.cat([batch.images for batch in split]).float().div(255).sub(0.31).div(0.32)
            # both in one layout, (N, C, H, W): with one channel, strides of another pass for it
            images = images.flatten().view(-1, *data.image_shape)
            bare = bare_loop(images, torch.cat([batch.labels for batch in split]), options.batch)
            loops = {"bare": bare, "tinyexp": ours}
            times: dict[str, list[float]] = {name: [] for name in loops}
            for loop in loops.values():
                loop(50)
            for _ in range(options.rounds):
                for name, loop in loops.items():
                    began = time.perf_counter()
                    loop(options.steps)
                    times[name].append((time.perf_counter() - began) / options.steps * 1e6)
    ratios = [ours / bare for ours, bare in zip(times["tinyexp"], times["bare"], strict=True)]
    for name, values in times.items():
        print(f"{name:8} {statistics.median(values):8.0f} us a step  (min {min(values):.0f}, max {max(values):.0f})")
    print(f"tinyexp / bare, round by round: median {statistics.median(ratios):.2f} of {len(ratios)}")


if __name__ == "__main__":
    main()
