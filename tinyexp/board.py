"""A run's TensorBoard: the events and files under tb/. What is drawn, and when, is gallery.py's and record.py's."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from tinyexp.keys import BESIDE, flatten
from tinyexp.lenient import Lenient
from tinyexp.projector import Embedding, write_embedding


class Board:
    """All that TensorBoard shows of one run. A disk that fails is told once, and nothing more is written."""

    def __init__(self, directory: Path, *, on: bool, step: int | None) -> None:
        """`on`: else there is no tb/, and nothing is drawn; `step`: a resumed run's, from which on it is drawn anew."""
        self._folder = directory / "tb"
        self._lenient = Lenient(directory)
        self._writer = SummaryWriter(str(self._folder), purge_step=step) if on else None

    def scalar(self, tag: str, value: float, step: int) -> None:
        self._write(lambda writer: writer.add_scalar(tag, value, step))

    def image(self, tag: str, image: NDArray[np.uint8], step: int) -> None:
        """(H, W, 3)."""

        def write(writer: SummaryWriter) -> None:
            file = io.BytesIO()  # SummaryWriter's own way takes three copies in float32: gigabytes of a large figure
            Image.fromarray(image).save(file, "PNG")
            height, width, channels = image.shape
            made = Summary.Image(height=height, width=width, colorspace=channels, encoded_image_string=file.getvalue())
            writer._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=tag, image=made)]), step)

        self._write(write)

    def text(self, tag: str, markdown: str, step: int) -> None:
        self._write(lambda writer: writer.add_text(tag, markdown, step))

    def histogram(self, tag: str, values: Tensor, step: int) -> None:
        """Of the values that are finite, if there are any."""
        finite = values[values.isfinite()]
        if finite.numel():
            self._write(lambda writer: writer.add_histogram(tag, finite.float().cpu(), step))

    def layout(self, charts: Mapping[str, Sequence[str]]) -> None:
        """Charts by title, each of several scalars in one plot."""
        layout = {"train and val": {title: ["Multiline", list(tags)] for title, tags in charts.items()}}
        self._write(lambda writer: writer.add_custom_scalars(layout))

    def graph(self, model: nn.Module, images: Tensor) -> None:
        """The model as it runs on these images. Raises whatever a model says that cannot be traced."""

        def write(writer: SummaryWriter) -> None:
            with warnings.catch_warnings(), redirect_stdout(io.StringIO()):  # it prints what it raises, too
                warnings.simplefilter("ignore")  # torch.jit.trace is deprecated, and TensorBoard has no other way
                writer.add_graph(model, images)

        self._write(write)

    def embedding(self, step: int, name: str, embedding: Embedding) -> None:
        self._write(lambda _: write_embedding(self._folder, step, name, embedding))

    def hparams(self, config: Mapping[str, Any], best: Mapping[str, Any]) -> None:
        """What of the config may change a score, with the final scores, as one row of the HPARAMS table."""
        flat = {key: _cell(value) for key, value in flatten(config).items() if not key.startswith(BESIDE)}
        scores = {f"best/{name}": best[name] for name in ("top1", "loss")}
        # A key that is null has a column, since it may be a number in another run, and no cell: "None" is no number.
        columns, _, _ = hparams({key: "" if value is None else value for key, value in flat.items()}, scores)
        _, cells, end = hparams(flat, scores)

        def write(writer: SummaryWriter) -> None:
            for summary in (columns, cells, end):
                writer._get_file_writer().add_summary(summary)  # add_hparams would make a second run of it
            for tag, value in scores.items():
                writer.add_scalar(tag, value, best["step"])

        self._write(write)

    def flush(self) -> None:
        self._write(lambda writer: writer.flush())

    def close(self) -> None:
        self._write(lambda writer: writer.close())

    def _write(self, write: Callable[[SummaryWriter], object]) -> None:
        if writer := self._writer:
            self._lenient("tb/", lambda: write(writer))


def _cell(value: Any) -> Any:
    """As the table's columns sort it: numbers as numbers."""
    return value if value is None or isinstance(value, (bool, int, float)) else str(value)
