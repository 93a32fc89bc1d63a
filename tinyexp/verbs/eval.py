"""eval RUN|CHECKPOINT [--out DIR] [overrides]: score it again; equals what the run logged.

A file of weights alone takes its network and data from model=... dataset=...; DIR gets scores.json, classes.csv,
confusion.csv, confusion.png and mistakes.png.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyexp.agreement import describe
from tinyexp.assessment import Assessment, Assessor
from tinyexp.compose import compose
from tinyexp.config import Config
from tinyexp.data.loader import Data
from tinyexp.data.source import Source
from tinyexp.data.store import load_source
from tinyexp.data.transform import Transform
from tinyexp.dist import Dist, process_group
from tinyexp.engine import score as score_batches
from tinyexp.engine import tally
from tinyexp.errors import ConfigError
from tinyexp.files import write_json, written_aside
from tinyexp.launch import is_wanted, launch
from tinyexp.metrics import Scores
from tinyexp.network import Network
from tinyexp.overrides import parse
from tinyexp.stored import check_run
from tinyexp.trained import OF_TRAINING, config_of
from tinyexp.transfer import Weights
from tinyexp.weights import of_checkpoint, read_weights


def main(paths: list[str], overrides: list[str], options: dict[str, str]) -> int:
    """Print the scores of a run's best.pt, or of the checkpoint or weights given; returns the exit code.

    Raises:
        ConfigError: no such file, or overrides that do not fit it.
        IntegrityError: it is damaged, or holds more than tensors and plain values.
    """
    check_run(paths[0], overrides)
    weights = read_weights(paths[0])
    config = _config(weights, overrides)
    out = Path(options["out"]) if "out" in options else None
    if out is not None and out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} must be a folder, and a file of that name is there: give another")
    if is_wanted(config.hw):
        given = [f"--{name}={value}" for name, value in options.items()]
        return launch(config.hw, ["eval", *paths, *given, *overrides])
    _score(weights, config, out)
    return 0


def score(checkpoint: dict[str, Any], origin: str, overrides: list[str]) -> Scores:
    """Print and return a checkpoint's scores under its own config with overrides.

    Images are normalised as its network learned them.

    Raises:
        ConfigError: overrides that do not fit, or a data set of other classes.
    """
    weights = of_checkpoint(checkpoint, origin)
    return _score(weights, _config(weights, overrides), None)


def _config(weights: Weights, overrides: list[str]) -> Config:
    """The checkpoint's own with the overrides, or of weights alone the command line's.

    Raises:
        ConfigError: overrides that change nothing here; or no word on what network and data weights alone are of.
    """
    if weights.checkpoint is None:
        given = parse(overrides).given
        if wrong := given & OF_TRAINING:
            raise ConfigError(f"{min(wrong)} is for training: leave it out")
        whole = given & {"experiment", "config_file"}
        if (
            lacking := []
            if whole
            else [slot for slot in ("model", "dataset") if not given & {slot, f"{slot}._target_"}]
        ):
            choices = parse(overrides).choices()
            offered = "; ".join(f"{slot}={' | '.join(choices[slot])}" for slot in lacking)
            raise ConfigError(
                f"{weights.origin} has weights alone, and eval needs to know of what network and data: "
                f"give {' '.join(f'{slot}=...' for slot in lacking)} ({offered})"
            )
        config = compose(overrides)
        if weights.mean and weights.std and not given & {"dataset.mean", "dataset.std", "dataset.normalize"}:
            loader = replace(config.loader, normalize="given", mean=weights.mean, std=weights.std)
            return replace(config, loader=loader)
        return config
    return config_of(weights.checkpoint, overrides, "eval")


def _score(weights: Weights, config: Config, out: Path | None) -> Scores:
    """Raises ConfigError for a data set of other classes, or weights of another network."""
    assessor = Assessor()
    with process_group(config.hw) as dist:
        source = load_source(config)
        dist.agree(describe(config, source.content, dist.device.type) | _about(weights))
        with Data(source, config, dist) as data:
            if weights.classes is not None and data.classes != weights.classes:
                raise ConfigError(
                    f"{weights.origin} knows {len(weights.classes)} classes ({', '.join(weights.classes[:20])}), "
                    f"and the data set has {len(data.classes)} ({', '.join(data.classes[:20])})"
                )
            network = _network(weights, config, data, dist)
            scored = assessor.watch(score_batches(network, data.val(), dist))
            scores = tally(network, scored, len(data.classes), dist)
        found = Found(assessor.assess(scores, dist), data, source, config)
        if dist.rank == 0:
            top5 = "" if scores.top5 is None else f" top5 {scores.top5:.4f}"
            print(f"val loss {scores.loss:.4f} top1 {scores.top1:.4f}{top5} ({scores.count} images)")  # noqa: T201
            print("\n".join(found.assessment.lines()))  # noqa: T201
            if out is not None:
                _write(out, found, weights.origin)
    return scores


def _about(weights: Weights) -> dict[str, str]:
    """What ranks compare, since each reads a file of its own."""
    if weights.checkpoint is not None:
        return {"the checkpoint's step": str(weights.checkpoint["state"]["step"])}
    return {"the weights' sum": str(sum(float(tensor.double().sum()) for tensor in weights.tensors.values()))}


def _network(weights: Weights, config: Config, data: Data, dist: Dist) -> Network:
    network = Network.build(config, data, dist)
    try:
        network.load(weights.tensors, weights.origin)
    except ConfigError as error:
        if weights.checkpoint is not None:
            raise
        told = f"here it is {config.model.target} for the {len(data.classes)} classes of {config.dataset.target}"
        raise ConfigError(f"{error} ({told}: give the model=... and dataset=... that it was trained as)") from error
    return network


# --out


@dataclass(frozen=True)
class Found:
    """All that the files of --out are made of."""

    assessment: Assessment
    data: Data
    source: Source
    config: Config

    @property
    def confusion(self) -> NDArray[np.int64]:
        assert self.assessment.scores.confusion is not None
        return self.assessment.scores.confusion.numpy()

    def images(self) -> NDArray[np.uint8]:
        """Those of the mistakes, as val's transform makes them: (n, H, W, C)."""
        transform = Transform(self.config.loader, self.data.mean, self.config.train.seed)
        index = np.array([mistake.index for mistake in self.assessment.mistakes], np.int64)
        return transform.val(self.source.val.fetch(index))


def _write(folder: Path, found: Found, origin: str) -> None:
    """Raises ConfigError where `folder` can be none, else as files.written_aside."""
    from tinyexp.pictures import draw_confusion, draw_mistakes  # matplotlib takes half a second

    assessment, data = found.assessment, found.data
    images = found.images()  # read before anything is written
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {folder} cannot be a folder: {error.strerror}") from error
    per_class = (
        (label, name, each.count, each.precision, each.recall, each.f1)
        for label, name, each in zip(data.classes, data.names, assessment.classes, strict=True)
    )
    _write_csv(folder / "classes.csv", ("class", "name", "count", "precision", "recall", "f1"), per_class)
    rows = ((label, *row) for label, row in zip(data.classes, found.confusion.tolist(), strict=True))
    _write_csv(folder / "confusion.csv", ("label", *data.classes), rows)
    draw_confusion(folder / "confusion.png", found.confusion, data.names)
    draw_mistakes(folder / "mistakes.png", assessment.mistakes, images, data.names)
    mistakes = [
        {"index": each.index, "label": data.classes[each.label], "prediction": data.classes[each.prediction]}
        | {"probability": each.probability}
        for each in assessment.mistakes
    ]
    write_json(folder / "scores.json", {"checkpoint": origin, **assessment.to_json(), "mistakes": mistakes})


def _write_csv(path: Path, heads: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(heads)
    writer.writerows(rows)
    with written_aside(path) as file:
        file.write(text.getvalue().encode(errors="surrogateescape"))  # classes are names of folders
