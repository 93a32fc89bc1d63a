"""One process or many: what ranks say to each other. Alone, every call does nothing, and the caller need not ask."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as torch_dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tinyexp.config import HwConfig
from tinyexp.device import available_devices, pick_device


@dataclass(frozen=True)
class Dist:
    """A process that is alone: rank 0 of 1. Its collectives return what they were given."""

    device: torch.device
    rank: int = 0
    world: int = 1

    def summary(self) -> str:
        return f"{self.world} rank{'s' if self.world > 1 else ''} of {torch.get_num_threads()} threads"

    def slot(self, micro: int, accumulate: int) -> int:
        """The place of this rank's micro-batch number `micro` in the optimizer step's global batch."""
        return self.rank * accumulate + micro

    def sum(self, values: Tensor) -> Tensor:
        """Elementwise over all ranks; values and result are on the CPU."""
        return values

    def any(self, wishes: list[bool]) -> list[bool]:
        """Which of these does any rank wish?"""
        return wishes

    def broadcast_bytes(self, data: bytes) -> bytes:
        """Rank 0's bytes, on every rank."""
        return data

    def copy_from_first(self, tensors: Sequence[Tensor]) -> None:
        """Make each tensor what it is on rank 0, in place."""

    def wrap(self, model: nn.Module) -> nn.Module:
        """The module to call in training, which averages gradients over the ranks."""
        return model


class Group(Dist):
    """One of several processes that torchrun started."""

    def sum(self, values: Tensor) -> Tensor:
        total = self._on_wire(values.clone())
        torch_dist.all_reduce(total)
        return total.cpu()

    def any(self, wishes: list[bool]) -> list[bool]:
        return [bool(count) for count in self.sum(torch.tensor(wishes, dtype=torch.int32))]

    def broadcast_bytes(self, data: bytes) -> bytes:
        size = self._on_wire(torch.tensor([len(data)]))
        torch_dist.broadcast(size, src=0)
        if not int(size):
            return b""
        mine = (
            torch.frombuffer(bytearray(data), dtype=torch.uint8)
            if self.rank == 0
            else torch.empty(int(size), dtype=torch.uint8)
        )
        content = self._on_wire(mine)
        torch_dist.broadcast(content, src=0)
        return content.cpu().numpy().tobytes()

    def copy_from_first(self, tensors: Sequence[Tensor]) -> None:
        for tensor in tensors:
            content = self._on_wire(tensor)
            torch_dist.broadcast(content, src=0)
            tensor.copy_(content)

    def wrap(self, model: nn.Module) -> nn.Module:
        device_ids = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=device_ids, gradient_as_bucket_view=True)

    def _on_wire(self, tensor: Tensor) -> Tensor:
        """Where the backend can take it: NCCL its own device, gloo the CPU alone."""
        return tensor.to(self.device) if self.device.type == "cuda" else tensor.cpu()


@contextmanager
def process_group(hw: HwConfig) -> Iterator[Dist]:
    """The ranks of this run, as torchrun's environment tells them; left in order on every way out.

    Raises:
        ConfigError: hw.device is not on this machine.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = pick_device(hw.device, available_devices(), local_rank)
    if hw.threads is not None:
        torch.set_num_threads(hw.threads)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if "WORLD_SIZE" not in os.environ or "RANK" not in os.environ:
        yield Dist(device)
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    torch_dist.init_process_group(backend, timeout=timedelta(seconds=hw.timeout))
    try:
        yield Group(device, torch_dist.get_rank(), torch_dist.get_world_size())
    finally:
        torch_dist.destroy_process_group()  # without it a finished gloo job ends with SIGABRT
