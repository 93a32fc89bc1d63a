"""What a network takes over from the weights of another: tensors by name and shape, rows of a head by their classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tinyexp.config import TransferConfig
from tinyexp.data.imagenet import imagenet_ids, imagenet_names
from tinyexp.errors import ConfigError, did_you_mean

Status = Literal["loaded", "rows of known classes", "fresh", "other shape", "missing", "unused"]
KNOWN: Status = "rows of known classes"
_SHOWN = 5  # names in a message


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A network's state dict under bare names, on the CPU, and what is known of it."""

    tensors: dict[str, Tensor]
    origin: str  # for messages
    classes: tuple[str, ...] | None = None  # behind the rows of its head, where it says so
    names: tuple[str, ...] | None = None  # and what people call them
    mean: tuple[float, ...] | None = None  # what its images were normalised by, where that is known
    std: tuple[float, ...] | None = None
    checkpoint: dict[str, Any] | None = None  # the whole of it, where it is one of ours


@dataclass(frozen=True)
class Line:
    """What became of one tensor."""

    name: str
    shape: tuple[int, ...]
    status: Status
    note: str = ""
    whole: bool = False  # of a head: is each row taken?


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What became of each tensor, of the network's and of those that the file has besides."""

    origin: str
    lines: tuple[Line, ...]
    share: float  # of the network's parameters that have other values than their random ones

    @property
    def loaded(self) -> frozenset[str]:
        """The names of those that were taken whole."""
        return frozenset(line.name for line in self.lines if line.status == "loaded")

    @property
    def known(self) -> frozenset[str]:
        """The names of those of which no number is random."""
        return self.loaded | {line.name for line in self.lines if line.status == KNOWN and line.whole}

    def summary(self) -> str:
        counts = Counter(line.status for line in self.lines)
        unused, loaded = counts.pop("unused", 0), counts.pop("loaded", 0)
        total = loaded + sum(counts.values())
        new = ", ".join(f"{count} {status}" for status, count in counts.items())
        return (
            f"weights of {self.origin}: {loaded} of {total} tensors loaded, {total - loaded} new"
            f"{new and f' ({new})'}, {unused} unused; {self.share:.1%} of the parameters"
        )

    def details(self) -> list[str]:
        """The tensors that were not simply loaded; all of them where there are few."""
        rows = self.lines if len(self.lines) <= 20 else [line for line in self.lines if line.status != "loaded"]
        width = max((len(line.name) for line in rows), default=0)
        return [f"  {line.name:<{width}}  {line.status}{line.note and f': {line.note}'}" for line in rows]

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        rows = [{"name": e.name, "shape": list(e.shape), "status": e.status, "note": e.note} for e in self.lines]
        counts = Counter(line.status for line in self.lines)
        return {"origin": self.origin, "counts": dict(counts), "share_of_parameters": self.share, "tensors": rows}


class Transfer:
    """One taking over, from `weights` into a network whose `head` gives the logits of `classes`, called `names`."""

    def __init__(
        self, weights: Weights, config: TransferConfig, head: str, classes: Sequence[str], names: Sequence[str]
    ) -> None:
        self._weights, self._config, self._head = weights, config, head
        self._classes, self._names = list(classes), list(names)

    @torch.no_grad()
    def into(self, model: nn.Module) -> Receipt:
        """Change the model's tensors in place; what of its head is not taken over is drawn anew.

        As torch draws a layer's weights: some libraries draw a head's for training from scratch, and so large that they
        drown what the features say.

        Raises:
            ConfigError: nothing fits, a name in transfer.rename is none, transfer.match=order and the order is another,
                or transfer.head=known and no class is.
        """
        mine = model.state_dict()
        parameters = {name: parameter.numel() for name, parameter in model.named_parameters()}
        theirs = self._renamed(mine)
        layer: Any = model.get_submodule(self._head) if self._head else None
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
        lines, filled = [], 0
        for name, tensor in mine.items():
            other = theirs.pop(name, None)
            line, count = self._take(name, tensor, other)
            lines.append(line)
            filled += count if name in parameters else 0
        lines += [Line(name, tuple(tensor.shape), "unused") for name, tensor in theirs.items()]
        if not filled:
            raise ConfigError(self._nothing(mine))
        return Receipt(origin=self._weights.origin, lines=tuple(lines), share=filled / sum(parameters.values()))

    def _take(self, name: str, mine: Tensor, theirs: Tensor | None) -> tuple[Line, int]:
        """What becomes of one of the network's tensors, and how many of its numbers are taken."""
        shape = tuple(mine.shape)
        of_head = bool(self._head) and name.startswith(f"{self._head}.")
        if theirs is None:
            return Line(name, shape, "missing"), 0
        if of_head and self._config.head == "fresh":
            return Line(name, shape, "fresh"), 0
        rows = self._rows(len(theirs)) if of_head and mine.ndim and theirs.ndim else None
        if rows is not None and theirs.shape[1:] == mine.shape[1:]:
            new, old = rows
            mine[new] = theirs[old].to(mine.dtype)
            whole = len(new) == len(mine)
            status: Status = "loaded" if whole and theirs.shape == mine.shape else KNOWN
            return Line(name, shape, status, f"{len(new)} of {len(mine)}", whole), mine[new].numel()
        if theirs.shape != mine.shape:
            return Line(name, shape, "other shape", f"{_spell(theirs.shape)} there, {_spell(shape)} here"), 0
        mine.copy_(theirs)
        return Line(name, shape, "loaded"), mine.numel()

    def _rows(self, count: int) -> tuple[list[int], list[int]] | None:
        """The rows of the new head and those of the old one that stand for the same classes; None: nothing is known.

        Raises:
            ConfigError: transfer.head=known, and there are none.
        """
        classes, names = self._weights.classes, self._weights.names or self._weights.classes
        if classes is None and count == len(imagenet_ids()):
            classes, names = imagenet_ids(), imagenet_names()
        must = self._config.head == "known"
        if classes is None or names is None or len(classes) != count:
            if must:
                raise ConfigError(
                    f"transfer.head=known: {self._weights.origin} does not say which classes its head's {count} rows "
                    "are; leave transfer.head out"
                )
            return None
        old_of = same_classes(self._classes, self._names, classes, names)
        if must and not old_of:
            raise ConfigError(
                f"transfer.head=known: no class of the data set ({', '.join(self._names[:_SHOWN])} ...) is one of "
                f"{self._weights.origin} ({', '.join(names[:_SHOWN])} ...); leave transfer.head out"
            )
        return list(old_of), list(old_of.values())

    def _renamed(self, mine: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if self._config.match == "order":
            return self._in_order(mine)
        theirs, rename = self._weights.tensors, self._config.rename
        parts = {".".join(name.split(".")[:i]) for name in theirs for i in range(1, name.count(".") + 2)}
        if unknown := [old for old in rename if old not in parts]:
            near = did_you_mean(unknown[0], sorted(parts))
            raise ConfigError(f"transfer.rename: {self._weights.origin} has no tensor {unknown[0]}{near}")
        made: dict[str, Tensor] = {}
        for name, tensor in theirs.items():
            fitting = [old for old in rename if name == old or name.startswith(f"{old}.")]
            old = max(fitting, key=len, default="")
            new = rename[old] + name.removeprefix(old) if old else name
            if new in made:
                raise ConfigError(f"transfer.rename: two tensors of {self._weights.origin} would be {new}; rename both")
            made[new] = tensor
        return made

    def _in_order(self, mine: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The file's tensors under the network's names, one after the other."""
        theirs, origin = list(self._weights.tensors.items()), self._weights.origin
        if len(theirs) != len(mine):
            raise ConfigError(f"transfer.match=order: {origin} has {len(theirs)} tensors, the network {len(mine)}")
        for (name, here), (other, there) in zip(mine.items(), theirs, strict=True):
            if here.shape != there.shape and not name.startswith(f"{self._head}."):
                raise ConfigError(
                    f"transfer.match=order: {name} is {_spell(here.shape)} here, and {other}, which has its place in "
                    f"{origin}, {_spell(there.shape)}: their order is not the same"
                )
        return {name: there for name, (_, there) in zip(mine, theirs, strict=True)}

    def _nothing(self, mine: Iterable[str]) -> str:
        here, there = (", ".join(list(names)[:_SHOWN]) for names in (mine, self._weights.tensors))
        return (
            f"model.weights={self._weights.origin}: none of its tensors ({there} ...) has a name and shape of the "
            f"network's ({here} ...). transfer.rename={{old: new}} maps names and prefixes"
        )


def same_classes(
    classes: Sequence[str], names: Sequence[str], old_classes: Sequence[str], old_names: Sequence[str]
) -> dict[int, int]:
    """New class -> old class, where both have one id, or one name that no other class of theirs has."""
    by_id = {name: i for i, name in enumerate(old_classes)}
    by_name, here = _only(old_names), _only(names)
    found = {}
    for i, (own, name) in enumerate(zip(classes, names, strict=True)):
        word = _word(name)
        old = by_id.get(own, by_name.get(word) if word in here else None)
        if old is not None:
            found[i] = old
    return found


def _only(names: Sequence[str]) -> dict[str, int]:
    counts = Counter(map(_word, names))
    return {_word(name): i for i, name in enumerate(names) if counts[_word(name)] == 1}


def _word(name: str) -> str:
    return name.casefold().replace("_", " ").replace("-", " ").strip()


def _spell(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"
