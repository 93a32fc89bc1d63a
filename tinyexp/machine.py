"""What this machine has, as the system tells it: memory and its limits, room on disks, who answers on the network.

Without torch. Paths of the system are arguments, so that another machine's can be read in a test.
"""

from __future__ import annotations

import os
import re
import resource
import shutil
import socket
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from itertools import groupby
from pathlib import Path
from typing import Any

from tinyexp.cores import available_cores
from tinyexp.interface import interface_towards

_MEMINFO = Path("/proc/meminfo")
_STATUS = Path("/proc/self/status")
_CGROUP = Path("/proc/self/cgroup")
_CGROUPS = Path("/sys/fs/cgroup")
_CACHED = re.compile(r"^(?:total_)?inactive_file (\d+)$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Report:
    """What one rank tells all others of the machine that it is on; memory in bytes."""

    host: str
    machine: int  # the launcher's number of it, since one host may be rehearsing several
    rank: int
    hardware: str
    cores: int  # that its ranks share
    threads: int  # of this rank
    resident: int  # memory that this process holds, with Python, torch and data sets that are arrays
    free: int
    bound: str  # what leaves no more free
    devices: int  # GPUs
    on_device: int | None  # free memory of the GPU; None on the CPU
    shared: int | None  # free where loader processes put their batches; None where there is no such place
    interface: str = ""  # that leads to rank 0's machine, and its address
    loopback: str = ""  # the address that its own name leads to, where no other machine can reach that
    fingerprint: str = ""  # the data set's; empty where it could not be read
    unfetched: str = ""  # why: it would first be fetched
    refusal: str = ""  # why: a run could not read it either

    @property
    def who(self) -> str:
        return f"rank {self.rank} on {self.host}"

    @property
    def place(self) -> tuple[int, str]:
        """The same for all ranks of one machine."""
        return self.machine, self.host


def by_machine(reports: Sequence[Report]) -> list[list[Report]]:
    """The ranks of each machine; torchrun numbers those of one machine one after the other."""
    return [list(ranks) for _, ranks in groupby(reports, key=lambda report: report.place)]


def look(
    rank: int, hardware: dict[str, Any], sizes: Sequence[str], on_device: int | None, *, master: str, **found: Any
) -> Report:
    """What a rank sees; hardware: describe_hardware's; sizes: of its GPUs' memory; master: the host of rank 0."""
    (free, bound), host, cores = free_memory(), socket.gethostname(), available_cores()
    name, address = interface_towards(master) or ("", "")
    chosen = os.environ.get("GLOO_SOCKET_IFNAME", name)
    gpus = [f"{gpu} of {size}" for gpu, size in zip(hardware["cuda"], sizes, strict=True)] + ["mps"] * hardware["mps"]
    return Report(
        host=host,
        machine=int(os.environ.get("GROUP_RANK", "0")),
        rank=rank,
        hardware=f"{hardware['processor']}, {cores} of {hardware['cores']} cores, {', '.join(gpus) or 'no GPU'}, "
        f"torch {metadata.version('torch')}",
        cores=cores,
        threads=hardware["threads"],
        devices=len(sizes),
        on_device=on_device,
        resident=resident_memory(),
        free=free,
        bound=bound,
        shared=free_shared(),
        interface=f"{chosen} ({address})" if chosen == name != "" else chosen,
        loopback=loopback_of(host),
        **found,
    )


def free_memory(meminfo: Path = _MEMINFO, own: Path = _CGROUP, groups: Path = _CGROUPS) -> tuple[int, str]:
    """Bytes that can still be had, and what sets this bound: the machine, or a cgroup that this process is in."""
    found = [(_available(meminfo), "this machine")]
    for folder, limit, used in _bounds(own, groups):
        if limit is not None and used is not None:
            left = limit - used + _reclaimable(folder / "memory.stat")
            found.append((max(0, min(limit, left)), f"the limit of {folder}, {mega(limit)}"))
    return min(found)


def resident_memory(status: Path = _STATUS) -> int:
    """Bytes that this process holds; where the system tells no better, the most that it ever held."""
    try:
        return 1024 * int(re.findall(r"^VmRSS:\s+(\d+) kB", status.read_text(), re.MULTILINE)[0])
    except (OSError, IndexError):
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else 1024 * most


def free_disk(path: Path) -> tuple[Path, int]:
    """The nearest folder there is of a path that may not be there yet, and the bytes free on its disk."""
    there = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.is_dir())
    return there, shutil.disk_usage(there).free


def free_shared(path: Path = Path("/dev/shm")) -> int | None:
    """Bytes free where loader processes put their batches; None where the system has no such place (macOS)."""
    return shutil.disk_usage(path).free if path.is_dir() else None


def loopback_of(host: str) -> str:
    """The address that a machine's name leads to, if it is one that no other machine can reach; else nothing."""
    try:
        address = socket.gethostbyname(host)
    except OSError:
        return ""
    return address if address.startswith("127.") else ""


def knock(host: str, port: int, seconds: float = 5.0) -> tuple[bool, str]:
    """Whether a run could begin with host:port as its master, and what came of trying to connect there."""
    place = f"{host}:{port}"
    try:
        socket.create_connection((host, port), timeout=seconds).close()
    except ConnectionRefusedError:
        return True, f"{place} is reached, and nobody listens there yet: start node 0 first"
    except socket.gaierror as error:
        return False, f"{place}: the name {host} is not known here ({error.strerror}): give an address"
    except TimeoutError:
        return False, f"{place} gave no answer in {seconds:g} s: a firewall, or another machine's address"
    except OSError as error:
        return False, f"{place} cannot be reached: {error.strerror or error}: a firewall, or no route to it"
    return True, f"{place} answers"


def mega(size: float) -> str:
    return f"{size / 1e6:,.1f} MB" if size < 1e9 else f"{size / 1e9:,.1f} GB"


def _available(meminfo: Path) -> int:
    try:
        return 1024 * int(re.findall(r"^MemAvailable:\s+(\d+) kB", meminfo.read_text(), re.MULTILINE)[0])
    except (OSError, IndexError):
        # macOS tells no sum of what could be had: half of what there is, since the system holds much that it can drop
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _bounds(own: Path, groups: Path) -> Iterator[tuple[Path, int | None, int | None]]:
    """Folder, limit and use of each cgroup that bounds this process's memory, up to the root of version 1 or 2.

    In a container its own group is often mounted as the root, and the path in `own` is not there: the root counts.
    """
    try:
        lines = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        return
    for _, controllers, path in lines:
        if "memory" in controllers.split(","):
            root, limit, used = groups / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        elif not controllers:
            root, limit, used = groups, "memory.max", "memory.current"
        else:
            continue
        inner = root / path.lstrip("/")
        for folder in (inner, *inner.parents):
            if folder.is_relative_to(root):
                yield folder, _number(folder / limit), _number(folder / used)


def _number(path: Path) -> int | None:
    """None for `max`, and where there is no such file; version 1 says the former by a number over all memory."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _reclaimable(stat: Path) -> int:
    """Bytes of files that the group has read and the system can drop; a limit counts them as used."""
    try:
        return max(map(int, _CACHED.findall(stat.read_text())), default=0)
    except OSError:
        return 0
