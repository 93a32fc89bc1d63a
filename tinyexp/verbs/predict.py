"""predict RUN|CHECKPOINT FOLDER|FILE|val... [--out FILE.csv] [--limit N] [--topk N] [overrides]: label images.

The checkpoint alone is needed; `val` is the val split of its own data set, which must be there. The CSV,
on stdout without --out, has a line an image: path, label, probability, then label_2, probability_2, ... (5 in all, or
--topk), for `val` the column true, and name where people call a label otherwise. An image that cannot be decoded has an
empty label; it is told, and the others go on.
"""

from __future__ import annotations

import csv
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tinyexp.config import Config
from tinyexp.data.filesplit import FileSplit
from tinyexp.data.progress import bar
from tinyexp.data.source import list_source
from tinyexp.dist import process_group
from tinyexp.errors import ConfigError, DataError, TinyexpError
from tinyexp.files import refusal, written_aside
from tinyexp.launch import is_wanted
from tinyexp.predictor import TOPK, Failure, Prediction, Predictor, list_images
from tinyexp.stored import check_run
from tinyexp.trained import config_of, read_trained

_VAL = "val"
_COLUMNS = ("label", "probability")


@dataclass(kw_only=True)
class Labelled:
    """Predictions to come, and what is known of them beforehand."""

    found: Iterator[Prediction | Failure]
    count: int
    true: list[str] | None = None  # their labels


def main(paths: list[str], overrides: list[str], options: dict[str, str]) -> None:
    """Raises ConfigError, DataError or IntegrityError where nothing can be predicted at all."""
    checkpoint_path, *images = paths
    if _VAL in images and len(images) > 1:
        raise ConfigError(f"val is the whole of the data set's val (a folder of that name is ./val), got {images}")
    out = options.get("out")
    if out is not None and (not out.endswith(".csv") or Path(out).is_dir()):
        raise ConfigError(f"--out must name a CSV file, as predictions.csv, got {out!r}")
    topk, limit = _number(options, "topk") or TOPK, _number(options, "limit")
    check_run(checkpoint_path, overrides)
    checkpoint, origin = read_trained(checkpoint_path)
    config = config_of(checkpoint, overrides, "predict")
    if is_wanted(config.hw):
        raise ConfigError("predict is one process: leave hw.procs, hw.nodes and hw.max_restarts out")
    files = None if images == [_VAL] else [file for path in images for file in list_images(path)][:limit]
    with process_group(config.hw) as dist:
        predictor = Predictor(checkpoint, config, dist, origin)
        topk = min(topk, len(predictor.classes))
        if files is None:
            labelled = _val(predictor, config, limit, topk)
        else:
            labelled = Labelled(found=predictor.files(files, topk), count=len(files))
        _write(out, labelled, predictor, topk)


def _number(options: dict[str, str], name: str) -> int | None:
    """Raises ConfigError for an option that is no whole number above 0."""
    value = options.get(name)
    if value is None:
        return None
    if not (value.isascii() and value.isdecimal() and int(value) > 0):
        raise ConfigError(f"--{name} must be a whole number, at least 1, got {value!r}")
    return int(value)


def _val(predictor: Predictor, config: Config, limit: int | None, topk: int) -> Labelled:
    """Raises ConfigError for a data set of other classes."""
    source = list_source(config, fetch=True)
    if source.classes != predictor.classes:
        raise ConfigError(
            f"the checkpoint knows {len(predictor.classes)} classes ({', '.join(predictor.classes[:5])} ...), and the "
            f"data set has {len(source.classes)} others ({', '.join(source.classes[:5])} ...)"
        )
    true = [source.classes[label] for label in source.val.labels[:limit].tolist()]
    if isinstance(source.val, FileSplit):
        found = predictor.files(source.val.paths[:limit], topk)
    else:
        found = predictor.split(source.val, len(true), topk)
    return Labelled(found=found, count=len(true), true=true)


def _write(out: str | None, labelled: Labelled, predictor: Predictor, topk: int) -> None:
    """The CSV, and what it came to; that stands on stdout, unless the CSV does."""
    if out is not None:
        path = Path(out)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise refusal(f"--out {path} could not be written: {error.strerror}", error, TinyexpError) from error
        with written_aside(path) as raw, _as_text(raw) as file, bar("predicting") as show:
            told = _rows(file, labelled, predictor, topk, show)
        print(f"{told}, in {path}")  # noqa: T201
        return
    stdout = sys.stdout.buffer
    try:
        # on a terminal the lines themselves show how far it is
        with _as_text(stdout) as file, nullcontext(_no_bar) if stdout.isatty() else bar("predicting") as show:
            told = _rows(file, labelled, predictor, topk, show)
    except BrokenPipeError:  # the reader, as `head`, has what it wants
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    print(told, file=sys.stderr)  # noqa: T201


def _no_bar(done: int, total: int) -> None:
    pass


def _rows(file: IO[str], labelled: Labelled, predictor: Predictor, topk: int, show: Callable[[int, int], None]) -> str:
    """A line an image as they come; returns the sum of it all in words."""
    writer = csv.writer(file, lineterminator="\n")
    named = predictor.names != predictor.classes
    ranks = [f"{column}{rank}" for rank in ("", *(f"_{i}" for i in range(2, topk + 1))) for column in _COLUMNS]
    true = labelled.true
    writer.writerow(["path", *ranks, *["true"] * (true is not None), *["name"] * named])
    failed = right = 0
    for number, each in enumerate(labelled.found):
        if isinstance(each, Failure):
            failed += 1
            print(f"warning: {each.reason}", file=sys.stderr)  # noqa: T201
            cells, name = [""] * len(ranks), ""
        else:
            cells = [cell for label, share in each.topk for cell in (label, f"{share:.6f}")]
            name = each.name
            right += true is not None and each.label == true[number]
        writer.writerow([each.path, *cells, *([] if true is None else [true[number]]), *[name] * named])
        show(number + 1, labelled.count)
    done = labelled.count - failed
    if not done:
        raise DataError(f"none of {labelled.count} images could be decoded")
    top1 = f", top1 {right / max(1, done):.4f}" if true is not None else ""
    return f"{done} images labelled{top1}, {failed} could not be decoded"


@contextmanager
def _as_text(raw: Any) -> Iterator[IO[str]]:
    """A binary file as text; names of files that are no UTF-8 come out as they are."""
    file = io.TextIOWrapper(raw, encoding="utf-8", errors="surrogateescape", newline="", write_through=True)
    try:
        yield file
        file.flush()
    finally:
        file.detach()
