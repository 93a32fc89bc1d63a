"""Which parameters training leaves as they are, and until when."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from tinyexp.config import TransferConfig
from tinyexp.errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class Frozen:
    """Parameters by name, and the epoch, counted from 0, from which on they are trained; None: never."""

    names: frozenset[str] = frozenset()
    until: int | None = None

    def at(self, epoch: int) -> frozenset[str]:
        """Those that are frozen in this epoch."""
        return self.names if self.until is None or epoch < self.until else frozenset()

    def apply(self, model: nn.Module, epoch: int) -> None:
        """Freeze what is to be frozen in this epoch, and no more of these names."""
        frozen = self.at(epoch)
        for name in self.names:
            model.get_parameter(name).requires_grad_(name not in frozen)

    def never_trained(self, model: nn.Module) -> frozenset[str]:
        """The parameters that no epoch changes, those among them that the network's own code keeps fixed."""
        fixed = frozenset(name for name, parameter in model.named_parameters() if not parameter.requires_grad)
        return fixed if self.until is None else fixed - self.names

    def train_mode(self, model: nn.Module) -> None:
        """model.train(), but for parts all of whose parameters are frozen: batch-norm keeps its statistics there."""
        model.train()
        if all(parameter.requires_grad for parameter in model.parameters()):
            return
        for name, module in model.named_modules():
            part = module
            while getattr(module, "running_mean", None) is not None and not list(part.parameters()) and name:
                name = name.rpartition(".")[0]  # batch-norm without parameters goes with what it is a part of
                part = model.get_submodule(name)
            trained = [parameter.requires_grad for parameter in part.parameters()]
            if trained and not (all(trained) if part is not module else any(trained)):
                module.eval()


def find_frozen(config: TransferConfig, model: nn.Module, head: str, loaded: Set[str]) -> Frozen:
    """What transfer.freeze says of this model.

    Args:
        head: the name of the module that gives the logits; "" where it is not known.
        loaded: names of the tensors that were taken whole from other weights.

    Raises:
        ConfigError: nothing would be left to train, or a pattern matches nothing.
    """
    if config.freeze == "none":
        return Frozen()
    names = [name for name, each in model.named_parameters() if each.requires_grad]
    frozen = frozenset(_matching(config.freeze, names, head, loaded))
    if len(frozen) == len(names):
        raise ConfigError(f"transfer.freeze={_spell(config.freeze)} leaves nothing to train")
    return Frozen(frozen, config.unfreeze_at)


def _matching(freeze: str | Sequence[str], names: Sequence[str], head: str, loaded: Set[str]) -> list[str]:
    if freeze == "loaded":
        return [name for name in names if name in loaded]
    if freeze == "backbone":
        if not head:
            raise ConfigError(
                "transfer.freeze=backbone: it is not to be told which layer gives the logits; give patterns, as "
                "transfer.freeze=[features.*]"
            )
        return [name for name in names if not name.startswith(f"{head}.")]
    for pattern in freeze:
        if not any(fnmatchcase(name, pattern) for name in names):
            near = did_you_mean(pattern, names)
            raise ConfigError(f"transfer.freeze: no parameter's name matches {pattern}{near}")
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in freeze)]


def _spell(freeze: str | Sequence[str]) -> str:
    return freeze if isinstance(freeze, str) else f"[{','.join(freeze)}]"
