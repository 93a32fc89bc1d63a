"""doctor [overrides]: what this machine has, and what will go wrong on it.

Alone, or on all ranks of a run; with hw.master and no hw.node it only tries to reach the master. Nothing is written.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.text import Text

from tinyexp import machine
from tinyexp.agreement import describe
from tinyexp.compose import compose_run
from tinyexp.config import Config, HwConfig
from tinyexp.data.loader import Data
from tinyexp.data.source import Source, list_source
from tinyexp.data.store import decoded
from tinyexp.dist import Dist, process_group
from tinyexp.environment import describe_hardware
from tinyexp.errors import ConfigError, DataError, NotFetchedError, TinyexpError
from tinyexp.facts import Facts
from tinyexp.launch import is_wanted, launch, parse_address
from tinyexp.log import make_console, terminal
from tinyexp.machine import Report, by_machine, mega
from tinyexp.parts import check_parts
from tinyexp.probe import find_facts
from tinyexp.trial import devices, time_exchange, time_training, unmade_store

_WAITING = 3  # batches of a loader process in shared memory: DataLoader's two ahead, and the one in use
_NAME_IT = (
    "give GLOO_SOCKET_IFNAME the name of one that they reach (`ip addr` or `ifconfig` lists them), as en0 on macOS"
)
_CURE = "try a smaller train.batch_size, a larger train.accumulate or fewer dataset.workers"
_KILLED = "a process that the system ends for want of memory is only seen as `Killed` (SIGKILL, exit -9 or 137)"


class Screen:
    """What rank 0 says; the other ranks say nothing."""

    def __init__(self, rank: int = 0) -> None:
        self._console = make_console() if rank == 0 else None

    def line(self, name: str, text: str, style: str = "cyan") -> None:
        if self._console:
            self._console.print(Text.assemble((f"{name:<10} ", style), text), soft_wrap=True)

    def warn(self, text: str) -> None:
        self.line("warning:", text, "bold yellow")


def main(paths: list[str], overrides: list[str], options: dict[str, str]) -> int:
    """Print what there is, a thing a line; returns the exit code.

    Raises:
        ConfigError, DataError: what would stop the run; all else that can be told has been told before.
    """
    config = compose_run(overrides)
    if is_wanted(config.hw) and (config.hw.master is None or config.hw.node is not None):
        return launch(config.hw, ["doctor", *overrides])
    config = check_parts(config)
    with terminal(config.log.level), process_group(config.hw) as dist:
        screen = Screen(dist.rank)
        source, found = _source(config)
        named = parse_address(config.hw.master)[0] if config.hw.master else ""
        found |= {"master": os.environ.get("MASTER_ADDR") or named}
        mine = machine.look(dist.rank, describe_hardware(), *devices(dist), **found)
        reports = [Report(**json.loads(text)) for text in dist.gather(json.dumps(asdict(mine)))]
        tell_machines(screen, reports)
        stop = tell_network(screen, config.hw, reports)
        refused = tell_data(screen, reports)
        if source and not refused and all(report.fingerprint for report in reports):
            _tell_run(screen, config, source, reports, dist)
        if stop := refused or stop:
            stop.explained, stop.silent = True, dist.rank > 0  # all ranks have found it
            raise stop
    return 0


def _source(config: Config) -> tuple[Source | None, dict[str, Any]]:
    """The data set, where it can be read, and what a report says of it."""
    try:
        source = list_source(config, fetch=False)
    except NotFetchedError as error:
        return None, {"unfetched": str(error)}
    except DataError as error:
        return None, {"refusal": str(error)}
    return source, {"fingerprint": source.fingerprint or "none"}


def tell_machines(screen: Screen, reports: Sequence[Report]) -> None:
    for first, *others in by_machine(reports):
        screen.line("machine", f"{first.host}: {first.hardware}")
        more = f"; hw.procs=auto takes all {first.devices} GPUs" if len(reports) == 1 < first.devices else ""
        screen.line("ranks", f"{first.host}: {1 + len(others)} of {len(reports)}, of {first.threads} threads{more}")
        if others and (1 + len(others)) * first.threads > first.cores:
            screen.warn(f"{first.host}: its ranks have more threads than its {first.cores} cores: lower hw.threads")


def tell_network(screen: Screen, hw: HwConfig, reports: Sequence[Report]) -> TinyexpError | None:
    """Returns what would stop the run."""
    stop = None
    if len(reports) > 1:
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        screen.line("master", f"{place}: all {len(reports)} ranks have reached it")
    elif hw.master is None:
        return None
    else:
        fine, told = machine.knock(*parse_address(hw.master))
        screen.line("master", told)
        stop = None if fine else ConfigError(f"hw.master={hw.master} cannot be used: {told}")
    several = len({report.host for report in reports}) > 1 or (len(reports) == 1 and hw.nodes > 1)
    for first, *_ in by_machine(reports):
        screen.line("network", f"{first.host}: gloo uses {first.interface or 'the interface of the name of the host'}")
        address = first.interface or first.loopback
        if several and address.rpartition("(")[2].startswith("127."):
            screen.warn(f"{first.host}: other machines do not reach {address}: {_NAME_IT}")
    return stop


def tell_data(screen: Screen, reports: Sequence[Report]) -> TinyexpError | None:
    """Returns what would stop the run."""
    for report in reports:
        if report.refusal:
            return DataError(f"{report.who} cannot read the data set: {report.refusal}")
        if report.unfetched:
            screen.warn(f"{report.who}: a run would first fetch the data set, so no time is told: {report.unfetched}")
    return None


def _tell_run(screen: Screen, config: Config, source: Source, reports: Sequence[Report], dist: Dist) -> None:
    """What the composed config takes of memory, disk and time. Raises ConfigError where the ranks are not alike."""
    dist.agree(describe(config, source.content, dist.device.type))
    same = "" if len(reports) == 1 else ", the same on all ranks"
    screen.line("data", f"{len(source.train.labels):,} train and {len(source.val.labels):,} val images{same}")
    size = config.loader.image_size
    facts = find_facts(config, len(source.classes), (source.channels, size, size))
    if dist.world > 1:
        latency, buffer, bandwidth = time_exchange(dist, facts.gradients)
        screen.line("all-reduce", f"{1e3 * latency:.2f} ms, and {bandwidth / 1e9:.2f} GB/s with {mega(buffer)}")
    tell_disk(screen, config, facts.checkpoint)
    began = time.perf_counter()
    missing = [int(text) for text in dist.gather(str(unmade_store(source, config)))]
    if any(missing):
        tell_memory(screen, facts, reports)
        who = next(report.host for report, size in zip(reports, missing, strict=True) if size)
        told = f"{who} would first decode the images, to about {mega(max(missing))} in {config.loader.cache_dir}"
        screen.warn(f"{told} (`prepare` does this alone): its time can be told when they are there")
        return
    with Data(decoded(source, config.loader), config, dist) as data:
        processes, method = data.workers, config.loader.start_method or multiprocessing.get_start_method()
        screen.line("loader", f"{processes} processes a rank, by {method}" if processes else "in line, no processes")
        batch = max(-(-config.train.batch_size // dist.world), config.train.eval_batch_size) * source.channels * size**2
        tell_memory(screen, facts, reports, 0 if method == "fork" else processes, _WAITING * processes * batch)
        pace = time_training(config, data, dist, began)
    limit = config.train.max_time
    sooner = f"; train.max_time ends it after {limit:g} s" if limit is not None and limit < pace.total else ""
    screen.line("time", f"{pace}{sooner}")


def tell_disk(screen: Screen, config: Config, checkpoint: int) -> None:
    folder, free = machine.free_disk(Path(config.run.dir or config.run.root))
    needed = 3 * checkpoint * (2 + config.ckpt.keep)
    screen.line("disk", f"{mega(free)} free in {folder}; checkpoints of {mega(checkpoint)} are to have {mega(needed)}")
    if free < needed:
        screen.warn(f"{folder} may get full: give run.root=FOLDER on another disk, or less ckpt.keep")


def tell_memory(screen: Screen, facts: Facts, reports: Sequence[Report], processes: int = 0, waiting: int = 0) -> None:
    """`processes`: of a rank's loader, each as large as itself; `waiting`: bytes of its batches in /dev/shm."""
    network = sum(facts.memory.values())
    copy = facts.checkpoint  # until it is written
    for ranks in by_machine(reports):
        first, held, count = ranks[0], sum(report.resident for report in ranks), len(ranks)
        training = copy if facts.device.startswith("cuda") else copy + network
        wanted = count * (training + waiting + processes * first.resident)
        free, bound = min((report.free, report.bound) for report in ranks)
        parts = f"{mega(held)} now with Python, torch and data, {mega(wanted)} to come; {mega(free)} free by {bound}"
        screen.line("memory", f"{first.host}: about {mega(held + wanted)}: {parts}")
        places = {bound: (wanted, free), "/dev/shm": (count * waiting, first.shared), "GPU": (network, first.on_device)}
        for place, (size, there) in places.items():
            if there is not None and size > there:
                screen.warn(
                    f"{first.host}: {mega(size)} will not fit into {place}, {mega(there)} free: {_CURE}; {_KILLED}"
                )
