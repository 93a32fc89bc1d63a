"""check [overrides]: what would run: data, steps, parameters, memory.

What takes torch is kept in ~/.cache/tinyexp/check.json for networks that are not the user's own, so that asking again
takes half a second.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.markup import escape

from tinyexp.compose import compose_run
from tinyexp.config import SLOTS, Config
from tinyexp.console import config_tree
from tinyexp.data.plan import count_steps
from tinyexp.data.source import Source, list_source
from tinyexp.errors import ConfigError, NotFetchedError, TinyexpError
from tinyexp.facts import Facts
from tinyexp.files import write_json
from tinyexp.log import make_console

_KEPT = Path("~/.cache/tinyexp/check.json")
_MOST = 200  # answers kept
_OURS = ("tinyexp.", "torch.", "torchvision.")


def main(paths: list[str], overrides: list[str], options: dict[str, str]) -> None:
    """Print what would run.

    Raises:
        ConfigError, DataError: it would not.
    """
    config = compose_run(overrides)
    if config.run.dir and Path(config.run.dir).exists() and config.resume is None:
        raise ConfigError(f"run.dir={config.run.dir} is there already: give resume={config.run.dir}, or another one")
    try:
        source: Source | None = list_source(config, fetch=False)
    except NotFetchedError as error:
        source, told = None, {"data": str(error)}
    facts = None
    if source:
        facts = _facts(config, source)
        told = _tell_data(config, source) | _tell_network(facts)
    told["directory"] = config.run.dir or f"{config.run.root}/DATE_TIME_{config.run.name}_ID"
    left_out = facts.left_out if facts else ()
    own = {key: value for key, value in config.plain.items() if value not in (None, []) and key != "sweep"}
    for slot in SLOTS:
        own[slot] = {key: value for key, value in own[slot].items() if f"{slot}.{key}" not in left_out}
    tree = config_tree("this would run", own)
    console = make_console()
    console.print(tree)
    for name, text in told.items():
        console.print(f"[cyan]{name:<10}[/] {escape(text)}", soft_wrap=True)
    for key in left_out:
        console.print(f"{key} is left out: its class does not take it")


def _tell_data(config: Config, source: Source) -> dict[str, str]:
    num_train = len(source.train.labels)
    steps = count_steps(config.train, num_train)
    steps = min(steps, config.train.limit_batches or steps)
    return {
        "data": f"{num_train:,} train and {len(source.val.labels):,} val images of "
        f"{'x'.join(map(str, _shape(config, source)))} in {len(source.classes)} classes",
        "files": source.origin or "not told by the data set",
        "steps": f"{steps:,} an epoch, {steps * config.train.epochs:,} in {config.train.epochs} epochs",
    }


def _tell_network(facts: Facts) -> dict[str, str]:
    memory = facts.memory
    return {
        "network": f"{facts.network}, {facts.parameters:,} parameters, {facts.precision} on {facts.device}",
        "memory": f"about {_megabytes(sum(memory.values()))} beside Python, torch and the data: "
        + ", ".join(f"{name} {_megabytes(size)}" for name, size in memory.items()),
    }


def _shape(config: Config, source: Source) -> tuple[int, int, int]:
    return source.channels, config.loader.image_size, config.loader.image_size


def _facts(config: Config, source: Source) -> Facts:
    """What takes torch, from the last time where all that it follows from is as it was."""
    path, key = _KEPT.expanduser(), _key(config, source)
    kept = _read(path)
    with contextlib.suppress(TypeError):  # what is there is not what we kept
        if key in kept:
            return Facts(**kept[key])
    from tinyexp.probe import find_facts

    facts = find_facts(config, len(source.classes), _shape(config, source))
    if all(getattr(config, slot).target.startswith(_OURS) for slot in SLOTS):
        with contextlib.suppress(OSError, TinyexpError):  # a home that cannot be written costs the next check its time
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, dict([*kept.items(), (key, asdict(facts))][-_MOST:]))
    return facts


def _read(path: Path) -> dict[str, Any]:
    try:
        kept = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return kept if isinstance(kept, dict) else {}


def _key(config: Config, source: Source) -> str:
    """Names all that the facts follow from: config, data, this program, its libraries and the machine."""
    package = Path(__file__).parent.parent
    code = [(str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in sorted(package.rglob("*.py"))]
    versions = [metadata.version(name) for name in ("torch", "torchvision")]
    with contextlib.suppress(metadata.PackageNotFoundError):
        versions.append(metadata.version("timm"))
    machine = [platform.node(), os.environ.get("CUDA_VISIBLE_DEVICES")]
    own = {key: value for key, value in config.plain.items() if key not in ("run", "log", "ckpt", "sweep")}
    text = json.dumps([own, len(source.classes), source.channels, code, versions, machine])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size < 1e9 else f"{size / 1e9:,.1f} GB"
