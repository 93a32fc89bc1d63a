"""show RUN|FILE [trust=NAMES]: tensors, what they cost, optimizer, config and scores.

FILE is a checkpoint, or weights of any origin: .pt, .pth, .th, .safetensors. Of the classes that a checkpoint names
only the network's is built, to know its cost, and that under the trust rule and with no weights in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import Any

import torch
from rich.markup import escape
from rich.text import Text
from torch import Tensor

from tinyexp.checkpoint import load
from tinyexp.console import config_tree, visible
from tinyexp.cost import find_cost
from tinyexp.errors import ConfigError, TinyexpError
from tinyexp.log import make_console
from tinyexp.saved import find_checkpoint
from tinyexp.sheet import Sheet, show
from tinyexp.stored import check_run, check_stored, recompose
from tinyexp.weights import read_weights

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # buffers, where no network tells which are


def main(paths: list[str], overrides: list[str], _: dict[str, str]) -> None:
    """Print what a run's last.pt holds, or the file given.

    Raises:
        ConfigError: no such file, or one whose config names a class that a file may not name.
        IntegrityError: it is damaged, or holds more than tensors and plain values.
    """
    if others := [word for word in overrides if not word.startswith("trust=")]:
        raise ConfigError(f"show takes no overrides but trust=[...], got {others[0]}")
    check_run(paths[0], overrides)
    path = find_checkpoint(paths[0], "last")
    if Path(paths[0]).is_dir():
        checkpoint = load(path)
    else:
        weights = read_weights(path)
        if weights.checkpoint is None:
            make_console().print(Text(visible(str(path)), style="bold"), soft_wrap=True)
            show([_tensors("weights", weights.tensors)])
            return
        checkpoint = weights.checkpoint
    check_stored(checkpoint["config"], overrides)
    state, data, console = checkpoint["state"], checkpoint["data"], make_console()
    branches = {
        "scores": {key: state[key] for key in ("epoch", "step", "best")},
        "data": data | {"classes": f"{len(data['classes'])}: {', '.join(data['classes'][:20])}"},
        **{f"group {i}": _group(group) for i, group in enumerate(_groups(state))},
    }
    console.print(config_tree(str(path), branches | checkpoint["config"]))
    parameters, cost = _cost(checkpoint, overrides)
    trained = _trained(checkpoint, parameters)
    for name, text in (_sizes(state, trained) | cost).items():
        console.print(f"[cyan]{name:<10}[/] {escape(text)}", soft_wrap=True)
    console.print()
    show([_tensors("network", state["model"], trained)])
    if state.get("ema"):
        console.print("with averaged weights of the same names (ema)")


def _groups(state: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (state.get("optimizer") or {}).get("param_groups", [])
    return found


def _group(group: dict[str, Any]) -> dict[str, Any]:
    """An optimizer group: its learning rate, how many tensors it has, and its other values."""
    first = {"lr": group.get("lr"), "tensors": len(group["params"])}
    rest = {key: value for key, value in group.items() if key not in ("lr", "params")}
    return {key: value for key, value in (first | rest).items() if value is not None}


def _cost(checkpoint: dict[str, Any], overrides: list[str]) -> tuple[Set[str], dict[str, str]]:
    """The names of those tensors that are parameters, and a line on the operations, or on why they are not known."""
    data, tensors = checkpoint["data"], checkpoint["state"]["model"]
    try:
        config = recompose(checkpoint["config"], overrides)
        shape = tuple(data["image_shape"])
        parameters, flops = find_cost(config.model, config.trust, len(data["classes"]), shape)
    except TinyexpError as error:
        guessed = {name for name in tensors if not name.endswith(_STATISTICS)}
        return guessed, {"FLOPs": f"not known, since the network is not built: {error}"}
    told = f"{_short(flops)} for an image of {_spell(shape)}, 2 a multiply-add of convolutions and matrix products"
    return parameters, {"FLOPs": told}


def _trained(checkpoint: dict[str, Any], parameters: Set[str]) -> dict[str, str]:
    """For each tensor whether training changes it: yes, no, from an epoch on, or - for a buffer."""
    state, transfer = checkpoint["state"], checkpoint["config"].get("transfer")
    begin = transfer.get("unfreeze_at") if isinstance(transfer, Mapping) else None
    frozen = dict.fromkeys(state.get("frozen") or (), "no" if begin is None else f"from epoch {begin + 1}")
    return {name: frozen.get(name, "yes") if name in parameters else "-" for name in state["model"]}


def _sizes(state: dict[str, Any], trained: dict[str, str]) -> dict[str, str]:
    """What the state's tensors are in numbers and in bytes."""
    model = state["model"]
    count = sum(model[name].numel() for name, told in trained.items() if told != "-")
    fixed = sum(model[name].numel() for name, told in trained.items() if told == "no")
    told = {
        "parameters": f"{count:,}, " + (f"{count - fixed:,} of them trained" if fixed else "all trained"),
        "weights": _megabytes(_bytes(model)),
    }
    if _groups(state):  # best.pt has weights alone
        memory = {
            "weights": _bytes(model),
            "gradients": _bytes({name: model[name] for name, told in trained.items() if told not in ("-", "no")}),
            "optimizer": _bytes(state["optimizer"]),
            "averaged": _bytes(state.get("ema")),
        }
        parts = ", ".join(f"{name} {_megabytes(size)}" for name, size in memory.items() if size)
        told["memory"] = f"{_megabytes(sum(memory.values()))} in training beside activations: {parts}"
    return told


def _tensors(title: str, tensors: dict[str, Tensor], trained: dict[str, str] | None = None) -> Sheet:
    """Names, shapes, dtypes, counts, mean and deviation, with the sum of the counts."""
    heads = ("name", "shape", "dtype", "count", *(("trained",) if trained else ()), "mean", "std")
    rows = [
        (
            name,
            _spell(tensor.shape) or "scalar",
            str(tensor.dtype).removeprefix("torch."),
            f"{tensor.numel():,}",
            *((trained[name],) if trained else ()),
            *_statistics(tensor),
        )
        for name, tensor in tensors.items()
    ]
    total = sum(tensor.numel() for tensor in tensors.values())
    last = (f"{len(tensors)} tensors", "", "", f"{total:,}", *[""] * (len(heads) - 4))
    return Sheet(
        title=title,
        heads=heads,
        rows=[*rows, last],
        right=frozenset(("count", "mean", "std")),
        spare=("dtype", "std", "mean"),
    )


def _statistics(tensor: Tensor) -> tuple[str, str]:
    """Mean and deviation of a tensor of floating-point numbers."""
    if not tensor.is_floating_point() or tensor.layout != torch.strided or tensor.numel() == 0:
        return "-", "-"
    std, mean = torch.std_mean(tensor.float(), correction=0)
    return f"{mean:.3g}", f"{std:.3g}"


def _bytes(value: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in _each(value))


def _each(value: Any) -> Iterator[Tensor]:
    """The tensors in nested mappings and lists."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (Mapping, list, tuple)):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _each(item)


def _spell(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size < 1e9 else f"{size / 1e9:,.1f} GB"


def _short(count: int) -> str:
    return f"{count / 1e9:,.2f} G" if count >= 1e9 else f"{count / 1e6:,.2f} M"
