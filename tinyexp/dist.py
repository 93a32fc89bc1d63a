"""One process or many: what ranks say to each other. Alone, every call does nothing, and the caller need not ask."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as torch_dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tinyexp.agreement import difference
from tinyexp.config import HwConfig
from tinyexp.cores import MACHINES_HERE, cores_of_rank, ranks_here
from tinyexp.device import available_devices, pick_device
from tinyexp.errors import ConfigError
from tinyexp.heartbeat import is_rank, local_rank
from tinyexp.interface import use_interface
from tinyexp.peers import Peers


@dataclass(frozen=True)
class Dist:
    """A process that is alone: rank 0 of 1. Its collectives return what they were given."""

    device: torch.device
    rank: int = 0
    world: int = 1

    def summary(self) -> str:
        idle = torch.cuda.device_count() - 1 if self.device.type == "cuda" and self.world == 1 else 0
        more = f" ({idle} more cuda devices are idle: hw.procs=auto takes all)" if idle else ""
        return f"{self.world} rank{'s' if self.world > 1 else ''} of {torch.get_num_threads()} threads{more}"

    def agree(self, about: Mapping[str, str]) -> None:
        """The ranks wait for each other, make sure that `about` is the same on all, and connect.

        Nothing else here may be called before, but for `gather` and `compare`.

        Raises:
            ConfigError: it is not; the message is the same on all ranks.
        """

    def gather(self, text: str) -> list[str]:
        """Each rank's text, in their order, on every rank; waits as long as all are alive."""
        return [text]

    def compare(self, about: Mapping[str, str]) -> None:
        """Raises ConfigError where it is not the same on all ranks; the message is."""

    def reached(self, step: int) -> None:
        """This rank has done so many optimizer steps: for who watches it."""

    def explain(self, error: BaseException) -> BaseException:
        """What to raise instead of an error: what follows from another rank's end names that rank."""
        return error

    def before_leaving(self, leave: Callable[[str, int], None]) -> None:
        """What to call, with the reason and the exit code, where this process must end from another thread."""

    def slot(self, micro: int, accumulate: int) -> int:
        """The place of this rank's micro-batch number `micro` in the optimizer step's global batch."""
        return self.rank * accumulate + micro

    def sum(self, values: Tensor) -> Tensor:
        """Elementwise over all ranks; values and result are on the CPU."""
        return values

    def broadcast_bytes(self, data: bytes) -> bytes:
        """Rank 0's bytes, on every rank."""
        return data

    def copy_from_first(self, tensors: Sequence[Tensor]) -> None:
        """Make each tensor what it is on rank 0, in place."""

    def wrap(self, model: nn.Module) -> nn.Module:
        """The module to call in training, which averages gradients over the ranks as they come."""
        return model

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Make each gradient the mean over the ranks, where `wrap`'s module has not."""


@dataclass(frozen=True, kw_only=True)
class Group(Dist):
    """One of several processes that torchrun started."""

    peers: Peers
    store: Any  # of torch's rendezvous
    timeout: timedelta

    def compare(self, about: Mapping[str, str]) -> None:
        described = [json.loads(text) for text in self.gather(json.dumps(dict(about)))]
        if told := difference([str(peer) for peer in self.peers.all], described):
            error = ConfigError(told)
            error.explained, error.silent = True, self.peers.me.local_rank > 0
            raise error

    def agree(self, about: Mapping[str, str]) -> None:
        self.compare(about)
        backend = "nccl" if self.device.type == "cuda" else "gloo"
        torch_dist.init_process_group(
            backend, store=self.store, rank=self.rank, world_size=self.world, timeout=self.timeout
        )

    def gather(self, text: str) -> list[str]:
        return self.peers.gather(text)

    def reached(self, step: int) -> None:
        self.peers.reached(step)

    def explain(self, error: BaseException) -> BaseException:
        if isinstance(error, RuntimeError) and "find_unused_parameters" in str(error):
            error = ConfigError("the network has parameters that its forward does not use: give hw.grad_sync=staged")
        return self.peers.explain(error)

    def before_leaving(self, leave: Callable[[str, int], None]) -> None:
        self.peers.leave = leave

    def sum(self, values: Tensor) -> Tensor:
        total = self._on_wire(values.clone())
        torch_dist.all_reduce(total)
        return total.cpu()

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
        if self.world == 1:
            return model
        device_ids = [self.device.index] if self.device.type == "cuda" else None
        # batch-norm that is frozen has nothing to tell
        buffers = any(list(module.buffers(recurse=False)) and _is_trained(module) for module in model.modules())
        replica = DistributedDataParallel(model, device_ids=device_ids, gradient_as_bucket_view=True)
        replica.broadcast_buffers = buffers  # the argument is deprecated
        return replica

    def _on_wire(self, tensor: Tensor) -> Tensor:
        """Where the backend can take it: NCCL its own device, gloo the CPU alone."""
        return tensor.to(self.device) if self.device.type == "cuda" else tensor.cpu()


class StagedGroup(Group):
    """Gradients are averaged at a step's end through one flat buffer on the CPU: no collective takes MPS tensors."""

    def wrap(self, model: nn.Module) -> nn.Module:
        self.copy_from_first(list(model.state_dict().values()))
        return model

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients]).cpu()
        torch_dist.all_reduce(flat)
        mean = flat.div_(self.world).to(self.device)
        for gradient, part in zip(gradients, mean.split([each.numel() for each in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))


def _is_trained(module: nn.Module) -> bool:
    parameters = list(module.parameters())
    return not parameters or any(parameter.requires_grad for parameter in parameters)


@contextmanager
def process_group(hw: HwConfig) -> Iterator[Dist]:
    """The ranks of this run, as torchrun's environment tells them; left in order on every way out.

    Raises:
        ConfigError: hw.device is not on this machine.
        RankLostError: another rank did not come, or is gone.
    """
    if not is_rank():
        device = _device(hw)
        yield Dist(device)
        return
    use_interface()
    peers, store = Peers.join(hw.timeout)
    group: Group | None = None
    try:
        device = _device(hw)
        timeout = timedelta(seconds=hw.timeout)
        kind = StagedGroup if _is_staged(hw, device) else Group
        group = kind(device, peers.me.rank, len(peers.all), peers=peers, store=store, timeout=timeout)
        yield group
    except BaseException as error:
        explained = (group or peers).explain(error)
        if explained is error:
            raise
        raise explained from error
    finally:
        peers.close()
        if torch_dist.is_initialized():
            torch_dist.destroy_process_group()  # without it a finished gloo job ends with SIGABRT


def _device(hw: HwConfig) -> torch.device:
    """This rank's, with its share of the cores."""
    device = pick_device(hw.device, available_devices(), local_rank())
    if hw.threads is not None or ranks_here() > 1:
        torch.set_num_threads(hw.threads or cores_of_rank())
    if device.type == "cuda":
        wanted, there = ranks_here(), torch.cuda.device_count()
        if wanted > there or MACHINES_HERE in os.environ:
            raise ConfigError(
                f"each rank needs a device of its own: here are {wanted} ranks and {there} cuda devices; "
                "a rehearsal of several machines is for hw=cpu"
            )
        torch.cuda.set_device(device)
    return device


def _is_staged(hw: HwConfig, device: torch.device) -> bool:
    if hw.grad_sync == "ddp" and device.type == "mps":
        raise ConfigError("hw.grad_sync=ddp is not for mps, whose tensors no collective takes: auto takes staged there")
    return hw.grad_sync == "staged" or (hw.grad_sync == "auto" and device.type == "mps")
