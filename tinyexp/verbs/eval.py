"""eval RUN|CHECKPOINT [overrides]: score it again; equals what the run logged."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tinyexp.agreement import describe
from tinyexp.checkpoint import load, weights_to_use
from tinyexp.data.loader import Data
from tinyexp.data.store import load_source
from tinyexp.dist import process_group
from tinyexp.engine import evaluate
from tinyexp.errors import ConfigError
from tinyexp.launch import is_wanted, launch
from tinyexp.metrics import Scores
from tinyexp.network import Network
from tinyexp.overrides import parse
from tinyexp.saved import find_checkpoint
from tinyexp.stored import check_run, check_stored, recompose

_NOT_HERE = {"dataset.mean", "dataset.std", "dataset.normalize", "run.dir", "resume", "init_from", "config_file"}


def main(paths: list[str], overrides: list[str], _: dict[str, str]) -> int:
    """Print the scores of a run's best.pt, or of the checkpoint given; returns the exit code.

    Raises:
        ConfigError: no such checkpoint, or overrides that do not fit it.
        IntegrityError: the checkpoint is damaged.
    """
    check_run(paths[0], overrides)
    path = find_checkpoint(paths[0], "best")
    checkpoint = load(path)
    if wrong := parse(overrides).given & _NOT_HERE:
        raise ConfigError(
            f"{min(wrong)} changes nothing in eval, which scores the network as it was trained: leave it out"
        )
    check_stored(checkpoint["config"], overrides)
    hw = recompose(checkpoint["config"], overrides).hw
    if is_wanted(hw):
        return launch(hw, ["eval", *paths, *overrides])
    score(checkpoint, str(path), overrides)
    return 0


def score(checkpoint: dict[str, Any], origin: str, overrides: list[str]) -> Scores:
    """Print and return a checkpoint's scores under its own config with overrides.

    Images are normalised as its network learned them.

    Raises:
        ConfigError: overrides that do not fit, or a data set of other classes.
    """
    config = recompose(checkpoint["config"], overrides)
    known = checkpoint["data"]
    loader = replace(config.loader, normalize="given", mean=tuple(known["mean"]), std=tuple(known["std"]))
    config = replace(config, loader=loader)
    with process_group(config.hw) as dist:
        source = load_source(config)
        about = {"the checkpoint's step": str(checkpoint["state"]["step"])}
        dist.agree(describe(config, source.content, dist.device.type) | about)
        with Data(source, config, dist) as data:
            if list(data.classes) != known["classes"]:
                raise ConfigError(
                    f"{origin} knows the classes {known['classes']}, and the data set has {list(data.classes)}"
                )
            network = Network.build(config, data, dist)
            network.load(weights_to_use(checkpoint), origin)
            scores = evaluate(network, data.val(), len(data.classes), dist)
    if dist.rank == 0:
        top5 = "" if scores.top5 is None else f" top5 {scores.top5:.4f}"
        print(f"val loss {scores.loss:.4f} top1 {scores.top1:.4f}{top5} ({scores.count} images)")  # noqa: T201
    return scores
