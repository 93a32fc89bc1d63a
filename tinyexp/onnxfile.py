"""A network as an ONNX model: images (N, C, H, W) float32, normalised, in; logits out; N is free.

Needs the packages of tinyexp[onnx]; importing this module does not.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from tinyexp.errors import ConfigError, IntegrityError
from tinyexp.export import Call, Format
from tinyexp.network import Network

_LOGGERS = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")


def check_packages() -> None:
    """Raises ConfigError where one is missing."""
    try:
        for name in ("onnx", "onnxscript", "onnxruntime"):
            importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f"--format onnx needs more packages ({error}): pip install 'tinyexp[onnx]'") from error


def _encode(network: Network, about: dict[str, str]) -> bytes:
    """Raises ConfigError for a network that torch cannot trace, and for weights of more than 2 GB."""
    import onnx

    model, parameter = network.model.eval(), next(network.model.parameters(), None)
    shape = _shape(about)
    images = torch.zeros(2, *shape) if parameter is None else torch.zeros(2, *shape, device=parameter.device)
    try:
        with _quiet(), torch.no_grad():
            program: Any = torch.onnx.export(
                model,
                (images,),
                dynamo=True,
                verbose=False,
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
            )
            proto = program.model_proto
            onnx.helper.set_model_props(proto, about)
            return bytes(proto.SerializeToString())
    except Exception as error:  # torch's exporter and protobuf have many kinds
        reason = (str(error.__cause__ or error).strip().split("\n") or [""])[0]
        raise ConfigError(
            f"{type(model).__name__} cannot be written as onnx: {type(error).__name__}: {reason}. "
            "--format state_dict and safetensors take any network"
        ) from error


def _read(content: bytes, other: Network) -> Call:
    """onnxruntime on the CPU; the network lends its normalisation alone."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # fatal errors: the others are raised
    options.intra_op_num_threads = torch.get_num_threads()
    with _refused():
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def call(images: Tensor) -> Tensor:
        normalised = other.normalize(images).contiguous().cpu().numpy()
        with _refused():
            return torch.from_numpy(session.run(["logits"], {"images": normalised})[0])

    return call


@contextlib.contextmanager
def _refused() -> Iterator[None]:
    """Raises IntegrityError for whatever onnxruntime raises."""
    try:
        yield
    except Exception as error:
        raise IntegrityError(f"onnxruntime does not take what was written as onnx: {error}") from error


def _shape(about: dict[str, str]) -> tuple[int, int, int]:
    channels, height, width = json.loads(about["image_shape"])
    return channels, height, width


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What the exporter says of its own steps is nothing that a user can act on; what goes wrong it raises."""
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    try:
        for name in _LOGGERS:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


ONNX = Format(suffixes=(".onnx",), tolerance=1e-4, encode=_encode, read=_read)
