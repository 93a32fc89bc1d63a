"""Two ranks on this machine: the whole step against a plain DistributedDataParallel loop, and against one process.

    python benchmarks/ddp.py [--rounds 5] [--steps 12] [--batch 64] [--size 64]

ResNet-18 in fp32 on the digits, resized, with AdamW. First line: in the same two processes of one thread each, in turn,
our training and a bare DDP loop over ready float tensors, in one memory layout. Second: two processes of one thread
against one process of two threads, both our training, each round in fresh processes. Ratios are of the median round.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as torch_dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from tinyexp.agreement import describe
from tinyexp.compose import compose
from tinyexp.config import Config
from tinyexp.data.loader import Data
from tinyexp.data.store import load_source
from tinyexp.dist import Dist, process_group
from tinyexp.engine import TrainState, train_epoch
from tinyexp.launch import free_port
from tinyexp.network import Network
from tinyexp.run import Run
from tinyexp.start import begin


def our_loop(run: Run, state: TrainState, data: Data, config: Config, dist: Dist) -> Callable[[int], None]:
    def go(steps: int) -> None:
        done = 0
        while done < steps:
            for _ in train_epoch(state, run.clock.waiting(data.train(state.epoch), "train"), config.train, dist):
                run.after_step(state)
                done += 1
                if done == steps:
                    break
            state.scores.flush(dist, state.step)
            state.end_epoch()

    return go


def plain_loop(data: Data, config: Config, dist: Dist) -> Callable[[int], None]:
    network = Network.build(config, data, dist)
    model = DistributedDataParallel(network.model.train()) if dist.world > 1 else network.model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, fused=True)
    steps_of_epoch = [step[0] for step in data.train(0)][:8]
    batches = [(network.normalize(batch.images).clone(), batch.labels) for batch in steps_of_epoch]

    def go(steps: int) -> None:
        for step in range(steps):
            images, labels = batches[step % len(batches)]
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()

    return go


def rank(options: argparse.Namespace) -> None:
    """One process of a measurement; rank 0 prints milliseconds a step as JSON."""
    words = [
        f"run.dir={Path(options.folder) / 'run'}",
        "log.level=error",
        "model=resnet18",
        f"dataset.image_size={options.size}",
        f"train.batch_size={options.batch}",
        "train.epochs=10000",
        "train.precision=fp32",
        "hw=cpu",
        f"hw.threads={options.threads}",
    ]
    config = compose(words)
    with process_group(config.hw) as dist:
        source = load_source(config)
        dist.agree(describe(config, source.content, "cpu"))
        with Run.open(config, dist) as run, Data(source, config, dist) as data:
            begun = begin(config, data, data.names, dist, run.start(data))
            state = TrainState.build(config, data, dist, begun)
            run.begin(state, data, begun)
            loops = {"tinyexp": our_loop(run, state, data, config, dist)}
            if options.plain:
                loops["plain DDP"] = plain_loop(data, config, dist)
            times: dict[str, list[float]] = {name: [] for name in loops}
            for loop in loops.values():
                loop(3)
            for _ in range(options.rounds if options.plain else 1):
                for name, loop in loops.items():
                    if dist.world > 1:
                        torch_dist.barrier()
                    began = time.perf_counter()
                    loop(options.steps)
                    times[name].append((time.perf_counter() - began) / options.steps * 1e3)
    if dist.rank == 0:
        print(json.dumps(times))


def measure(options: argparse.Namespace, processes: int, *, plain: bool) -> dict[str, list[float]]:
    with tempfile.TemporaryDirectory() as folder:
        launcher = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--master-addr=127.0.0.1"]
        launcher += [f"--master-port={free_port()}"]
        own = [f"--{name}={getattr(options, name)}" for name in ("rounds", "steps", "batch", "size")]
        own += [f"--threads={2 // processes}", f"--folder={folder}", *(["--plain"] if plain else [])]
        command = [sys.executable, *(launcher if processes > 1 else []), __file__, *own]
        environment = {**os.environ, "OMP_NUM_THREADS": str(2 // processes)}
        answer = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        found: dict[str, list[float]] = json.loads(answer.stdout.strip().splitlines()[-1])
        return found


def tell(name: str, first: list[float], second: list[float]) -> None:
    """Speeds are the inverse of times: a ratio above 1 is the first being faster."""
    ratios = [theirs / ours for ours, theirs in zip(first, second, strict=True)]
    print(
        f"{name}: {statistics.median(first):.1f} against {statistics.median(second):.1f} ms a step; "
        f"steps/s, round by round: median {statistics.median(ratios):.2f} of {len(ratios)} "
        f"({min(ratios):.2f} to {max(ratios):.2f})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--threads", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.folder:
        rank(options)
        return
    both = measure(options, 2, plain=True)
    tell("tinyexp / plain DDP, 2 processes of 1 thread", both["tinyexp"], both["plain DDP"])
    pairs = [(measure(options, n, plain=False)["tinyexp"][0]) for _ in range(options.rounds) for n in (2, 1)]
    tell("2 processes of 1 thread / 1 process of 2 threads", pairs[::2], pairs[1::2])


if __name__ == "__main__":
    main()
