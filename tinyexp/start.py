"""What a run starts from: a checkpoint to go on with, other weights, or nothing; and the network that follows."""

from __future__ import annotations

import io
import logging
from dataclasses import dataclass
from typing import Any

import torch

from tinyexp.checkpoint import plain
from tinyexp.config import Config
from tinyexp.device import seed_all
from tinyexp.dist import Dist
from tinyexp.errors import ConfigError, IntegrityError
from tinyexp.freezing import Frozen, find_frozen
from tinyexp.network import Network, Seen
from tinyexp.transfer import Receipt, Transfer, Weights

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Start:
    """What was read, by rank 0, and is the same on all ranks; of state, weights and nothing it is one."""

    state: dict[str, Any] | None = None  # of the checkpoint to go on with
    weights: Weights | None = None
    whole: bool = False  # must the weights be those of this very network, all of them?

    @property
    def epoch(self) -> int:
        return int(self.state["epoch"]) if self.state else 0


@dataclass(frozen=True, kw_only=True)
class Begun:
    """A network with the weights that it starts from, and what of it is not trained."""

    network: Network
    frozen: Frozen
    start: Start
    receipt: Receipt | None = None  # of weights of another network


def begin(config: Config, data: Seen, names: tuple[str, ...], dist: Dist, start: Start) -> Begun:
    """The config's network for this data, its random weights replaced by those of `start`.

    Args:
        names: what people call the data's classes.

    Raises:
        ConfigError: as Network.build, Transfer.into and find_frozen.
        IntegrityError: the checkpoint to go on with is of another network.
    """
    network = Network.build(config, data, dist)
    receipt, loaded = None, frozenset[str]()
    if start.state:
        try:
            network.model.load_state_dict(start.state["model"])
        except (KeyError, RuntimeError) as error:
            raise IntegrityError(f"the checkpoint does not fit this run: {error}") from error
        frozen = Frozen(frozenset(start.state.get("frozen", ())), config.transfer.unfreeze_at)
    else:
        if start.weights and start.whole:
            network.load(start.weights.tensors, start.weights.origin)
            loaded = frozenset(start.weights.tensors)
        elif start.weights:
            seed_all(dist.device, config.train.seed)  # for a head that is drawn anew
            receipt = Transfer(start.weights, config.transfer, network.head, data.classes, names).into(network.model)
            loaded = receipt.known
        frozen = find_frozen(config.transfer, network.model, network.head, loaded)
        if start.weights:
            _check(start.weights, receipt, frozen, data, config.transfer.freeze)
    frozen.apply(network.model, start.epoch)
    return Begun(network=network, frozen=frozen, start=start, receipt=receipt)


def _check(
    weights: Weights, receipt: Receipt | None, frozen: Frozen, data: Seen, freeze: str | tuple[str, ...]
) -> None:
    """Raises ConfigError where random tensors would be frozen for ever; warns of what is likely a mistake."""
    random = [line for line in receipt.lines if line.name in frozen.names - receipt.known] if receipt else []
    if random:
        told = ", ".join(f"{line.name} ({line.status})" for line in random[:3])
        rule = f"{len(random)} tensors that {weights.origin} does not have would be kept at random values: {told}"
        if frozen.until is None:
            raise ConfigError(
                f"transfer.freeze={freeze}: {rule}; take transfer.freeze=loaded, transfer.rename or another file"
            )
        _log.warning("until transfer.unfreeze_at, %s", rule)
    for name, theirs, mine in (("mean", weights.mean, data.mean), ("std", weights.std, data.std)):
        if theirs and (len(theirs) != len(mine) or max(abs(a - b) for a, b in zip(theirs, mine, strict=True)) > 0.02):
            spelled = ",".join(f"{value:.3g}" for value in theirs)
            _log.warning(
                "%s was made with dataset.%s=[%s], and here it is %s", weights.origin, name, spelled, list(mine)
            )


def broadcast_weights(dist: Dist, weights: Weights | None) -> Weights | None:
    """Rank 0's, on all ranks; alone they are handed on."""
    if dist.world == 1:
        return weights
    buffer = io.BytesIO()
    if weights:
        fields = ("tensors", "origin", "classes", "names", "mean", "std")
        torch.save({name: getattr(weights, name) for name in fields}, buffer)
    content = dist.broadcast_bytes(buffer.getvalue())
    return Weights(**plain(content, "rank 0's weights")) if content else None
