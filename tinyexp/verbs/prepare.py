"""prepare [--verify] [--out FILE] [overrides]: fetch, unpack and decode a data set, as its first run would.

With --verify every image is decoded in full first, and what is wrong is listed, in FILE too (verify.json by default).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.text import Text

from tinyexp.compose import compose_run
from tinyexp.config import Config
from tinyexp.cores import available_cores
from tinyexp.data.listing import Listing, ListingError
from tinyexp.data.progress import bar
from tinyexp.data.source import Source, list_source
from tinyexp.data.store import decoded
from tinyexp.data.verify import report_table, verify
from tinyexp.errors import ConfigError, DataError, TinyexpError
from tinyexp.files import refusal, write_json
from tinyexp.log import make_console, terminal

_REPORT = "verify.json"


def main(paths: Sequence[str], overrides: list[str], options: dict[str, str]) -> None:
    """Raises ConfigError or DataError for a data set that cannot be trained on."""
    config = compose_run(overrides)
    if "out" in options and "verify" not in options:
        raise ConfigError("--out FILE is for --verify's report: give --verify too")
    with terminal(config.log.level):
        _prepare(config, options)


def _prepare(config: Config, options: dict[str, str]) -> None:
    try:
        source = list_source(config, fetch=True)
    except ListingError as error:
        if "verify" not in options:
            raise
        _verify(error.listing, Path(options.get("out", _REPORT)), stop=False)
        raise  # which dataset.on_error=skip would not mend
    if "verify" in options:
        if source.listing is None:
            raise ConfigError(f"--verify is for image files, and {config.dataset.target} reads none")
        _verify(source.listing, Path(options.get("out", _REPORT)), stop=config.loader.on_error == "stop")
    _tell(config, decoded(source, config.loader))


def _verify(listing: Listing, path: Path, *, stop: bool) -> None:
    """Raises DataError where a training would stop."""
    phases = {
        phase: {name: [file.path for file in files] for name, files in classes.items()}
        for phase, classes in listing.phases.items()
    }
    with bar("decoding images") as show:
        report = verify(phases, listing.others, processes=available_cores(), progress=show)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise refusal(f"--out {path} could not be written: {error.strerror}", error, TinyexpError) from error
    write_json(path, report.to_json())
    console = make_console()
    console.print(report_table(report))
    console.print(Text(f"written to {path}"), soft_wrap=True)  # Text, since a path may have brackets
    if report.fatal and stop:
        raise DataError(
            f"{report.fatal} findings in {listing.base} would stop a training: mend them, or give dataset.on_error=skip"
        )


def _tell(config: Config, source: Source) -> None:
    skipped = f", {source.skipped:,} left out that cannot be decoded" if source.skipped else ""
    told = (
        f"{len(source.train.labels):,} train and {len(source.val.labels):,} val images in {len(source.classes)} "
        f"classes from {source.origin or config.dataset.target} are ready{skipped}"
    )
    make_console().print(Text(told), soft_wrap=True)
