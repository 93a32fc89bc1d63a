"""show RUN|CHECKPOINT [trust=NAMES]: tensors, optimizer, config and scores.

Nothing is built from what is in it.
"""

from __future__ import annotations

from typing import Any

from rich.table import Table

from tinyexp.checkpoint import load
from tinyexp.console import config_tree
from tinyexp.errors import ConfigError
from tinyexp.log import make_console
from tinyexp.saved import find_checkpoint
from tinyexp.stored import check_run, check_stored


def main(paths: list[str], overrides: list[str], _: dict[str, str]) -> None:
    """Print scores, data, config, optimizer groups and tensors of a run's last.pt, or of the checkpoint given.

    Raises:
        ConfigError: no such checkpoint, or one whose config names a class that a file may not name.
        IntegrityError: the checkpoint is damaged.
    """
    if others := [word for word in overrides if not word.startswith("trust=")]:
        raise ConfigError(f"show takes no overrides but trust=[...], got {others[0]}")
    check_run(paths[0], overrides)
    path = find_checkpoint(paths[0], "last")
    checkpoint = load(path)
    check_stored(checkpoint["config"], overrides)
    state, console = checkpoint["state"], make_console()
    scores = {"epoch": state["epoch"], "step": state["step"], "best": state["best"]}
    data = checkpoint["data"] | {
        "classes": f"{len(checkpoint['data']['classes'])}: {', '.join(checkpoint['data']['classes'][:20])}"
    }
    groups = {f"group {i}": _group(group) for i, group in enumerate(state.get("optimizer", {}).get("param_groups", []))}
    console.print(config_tree(str(path), {"scores": scores, "data": data, **groups, **checkpoint["config"]}))
    console.print(_tensors("network", state["model"]))
    if state.get("ema"):
        console.print("with averaged weights of the same names (ema)")


def _group(group: dict[str, Any]) -> dict[str, Any]:
    return {key: len(value) if key == "params" else value for key, value in group.items() if value is not None}


def _tensors(title: str, tensors: dict[str, Any]) -> Table:
    """Names, shapes, dtypes and counts, with their sum."""
    table = Table(title=title, title_justify="left", box=None, padding=(0, 3, 0, 0), show_footer=True)
    total = sum(tensor.numel() for tensor in tensors.values())
    table.add_column("name", footer=f"{len(tensors)} tensors")
    table.add_column("shape")
    table.add_column("dtype")
    table.add_column("count", justify="right", footer=f"{total:,}")
    for name, tensor in tensors.items():
        shape = "x".join(map(str, tensor.shape)) or "scalar"
        table.add_row(name, shape, str(tensor.dtype).removeprefix("torch."), f"{tensor.numel():,}")
    return table
