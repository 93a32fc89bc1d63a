"""From a command line to a typed Config.

Nothing here imports torch, so that a typo costs half a second and no more.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tinyexp.config import SLOTS, Config
from tinyexp.errors import ConfigError
from tinyexp.heartbeat import is_rank
from tinyexp.hydraconf import by_hydra, to_plain
from tinyexp.keys import blaming, changed_keys, flatten
from tinyexp.overrides import Overrides, parse
from tinyexp.plainfile import read
from tinyexp.saved import find_checkpoint, is_place
from tinyexp.stored import compose_file, recompose
from tinyexp.typed import typed
from tinyexp.validate import group_files, mapping, validate


def compose(words: Sequence[str]) -> Config:
    """The Config of a command line's overrides over conf/.

    Raises:
        ConfigError: an unknown group, choice or key, a wrong type or value, or a malformed override.
    """
    return compose_overrides(parse(words))


def compose_run(words: Sequence[str]) -> Config:
    """The Config of a training run: `resume=RUN` reads that run's own, all else is composed from conf/.

    Raises:
        ConfigError: as compose; resume or init_from names nothing, or a key would change that a resumed run may not.
    """
    overrides = parse(words)
    resume = overrides.value("resume")
    if resume is None or resume == "auto":
        config = compose_overrides(overrides)
        directory = Path(config.run.dir) if config.run.dir else None
        if _is_elsewhere(overrides):
            return config
        if resume is None or directory is None or not (directory / "config.yaml").is_file():
            check_begin(config)
            return config
        stored = read(directory / "config.yaml")
    else:
        if _is_elsewhere(overrides) and not is_rank():  # its ranks will be handed the run's config
            return compose_overrides(parse([one for one in words if not one.startswith("resume=")]))
        directory = Path(str(resume)) if _is_elsewhere(overrides) else _run_directory(str(resume))
        if "config_file" in overrides.given:
            raise ConfigError(f"resume={resume} goes on under that run's own config: leave config_file out")
        given = overrides.value("run.dir")
        if given is not None and Path(str(given)).resolve() != directory.resolve():
            raise ConfigError(f"resume={resume} goes on in that run's own directory: leave run.dir out")
        stored = _read_config(directory)
        config = recompose({**stored, "run": {**mapping(stored.get("run", {}), "run"), "dir": str(directory)}}, words)
    before = recompose(stored, []).plain
    # what another class's YAML left over is not in the run's own config, and check_parts sees to it that it goes
    left_over = {f"{slot}.{key}" for slot in SLOTS for key in getattr(config, slot).inherited} - flatten(before).keys()
    changed = changed_keys(before, config.plain)
    rule = f"a resumed run keeps its config, but KEYS would change from {directory}/config.yaml: "
    rule += "to begin a new run from its weights, use init_from"
    if wrong := [key for key in changed if key not in left_over]:
        raise ConfigError(rule.replace("KEYS", ", ".join(wrong)))
    return replace(config, must_go={key: rule.replace("KEYS", key) for key in changed})


def check_begin(config: Config) -> None:
    """What a new run begins from is there. Raises ConfigError."""
    if config.init_from is not None and config.weights is not None:
        raise ConfigError("init_from and model.weights are both what a run begins from: leave one of them out")
    freeze, transfer = config.transfer.freeze, config.transfer
    if transfer.match == "order" and transfer.rename:
        raise ConfigError("transfer.match=order and transfer.rename are two ways to the same: leave one of them out")
    if config.init_from is not None and (transfer.match, transfer.rename, transfer.head) != ("name", {}, "auto"):
        raise ConfigError(
            "init_from takes all weights of the same network: transfer.match, rename and head are for model.weights"
        )
    random = config.init_from is None and (config.weights is None or config.transfer.scratch)
    if random and freeze in ("loaded", "backbone"):
        raise ConfigError(
            f"transfer.freeze={freeze} would keep random weights as they are: "
            "give model.weights=DEFAULT|NAME|FILE|RUN or init_from=RUN"
        )
    place = config.init_from
    if config.weights is not None and not config.transfer.scratch and is_place(config.weights):
        place = config.weights
    if place is not None:
        find_checkpoint(place, "best")


def compose_overrides(overrides: Overrides) -> Config:
    """As compose, of words that are parsed."""
    if overrides.swept:
        raise ConfigError(f"{overrides.swept} gives several values: `tinyexp -m ...` makes a run of each")
    if (file := typed(str | None, overrides.value("config_file"), "config_file")) is not None:
        return compose_file(Path(file), overrides)
    config, chosen = by_hydra(overrides.words)
    path = group_files("experiment", overrides.folders).get(chosen.get("experiment") or "")
    stated = flatten(read(path, aliases=True)) if path else {}
    keys = stated.keys() - overrides.given
    if left := [key for key in keys if stated[key] == "???"]:  # where the key has a value, OmegaConf takes ??? for none
        raise ConfigError(f"{left[0]} must be given, as {left[0]}=... (in experiment={chosen.get('experiment')})")
    if ours := [key for key in keys if key.partition(".")[0] == "hydra"]:
        raise ConfigError(f"{ours[0]} is Hydra's own key and has no effect here: use sweep.grid (in {path})")
    sources = dict.fromkeys(keys, f"experiment={chosen.get('experiment')}")
    with blaming(sources):
        plain = to_plain(config)
        return validate(
            plain,
            folders=overrides.folders,
            trusted=frozenset(SLOTS),
            inherited=_inherited(plain, chosen, overrides, {*overrides.given, *keys}),
            sources=sources,
        )


def _inherited(
    plain: dict[str, Any], chosen: Mapping[str, str | None], overrides: Overrides, explicit: set[str]
) -> dict[str, frozenset[str]]:
    """By slot, the arguments that come from the chosen YAML although the class is now another, and that nobody gave."""
    found = {}
    for slot in SLOTS:
        values = mapping(plain.get(slot, {}), slot)
        path = group_files(slot, overrides.folders).get(chosen.get(slot) or "")
        if path and f"{slot}._target_" in explicit | _targets(values, path):
            found[slot] = frozenset(key for key in values if f"{slot}.{key}" not in explicit)
    return found


def _targets(values: dict[str, Any], path: Path) -> set[str]:
    """The slot's `_target_` where it is not its YAML's."""
    listed = read(path, aliases=True).get("_target_")
    return {f"{path.parent.name}._target_"} if listed is not None and listed != values.get("_target_") else set()


def _is_elsewhere(overrides: Overrides) -> bool:
    """Is this not rank 0's machine, or not rank 0? The run's directory may not be here then."""
    return os.environ["RANK"] != "0" if is_rank() else bool(overrides.value("hw.node"))


def _read_config(directory: Path) -> dict[str, Any]:
    """A run's config.yaml; rank 0's on all ranks, since the others may have no such directory."""
    path = directory / "config.yaml"
    if not is_rank():
        return read(path)
    from tinyexp.rendezvous import hand_on

    handed: dict[str, Any] = json.loads(hand_on(json.dumps(read(path)) if os.environ["RANK"] == "0" else None))
    return handed


def _run_directory(resume: str) -> Path:
    """The run of `resume=`: a run's directory, or a checkpoint in one's checkpoints/."""
    path = Path(resume)
    if path.suffix == ".pt":
        if not path.is_file():
            raise ConfigError(f"resume={resume}: there is no such checkpoint")
        path = path.resolve().parent.parent
    if not (path / "config.yaml").is_file():
        raise ConfigError(
            f"resume={resume} must be auto, a run's directory (with a config.yaml) or a checkpoint in one"
        )
    return path
