"""A network as a file for other programs: written aside, read back, and checked against the original before it counts.

The format onnx is onnxfile.py's, which needs packages that are not always there.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tinyexp.checkpoint import plain
from tinyexp.errors import ConfigError, IntegrityError
from tinyexp.files import written_aside
from tinyexp.network import Network, Seen
from tinyexp.sample import Sample

_BATCH = 32  # images that are compared at once

Call = Callable[[Tensor], Tensor]  # images (N, C, H, W) uint8 -> logits (N, classes) float32


@dataclass(frozen=True, kw_only=True)
class Format:
    """A kind of file.

    Attributes:
        encode: a network and what is said of it -> the file's bytes.
        read: the file's bytes and a network of the same kind with other weights -> what calls the file's network.
    """

    suffixes: tuple[str, ...]  # the first is the default
    tolerance: float  # of a logit, as a part of the largest
    encode: Callable[[Network, dict[str, str]], bytes]
    read: Callable[[bytes, Network], Call]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How far a file's logits are from the original's."""

    greatest: float
    tolerance: float

    @property
    def passes(self) -> bool:
        return self.greatest <= self.tolerance  # no nan does

    def __str__(self) -> str:
        return f"greatest difference of a logit {self.greatest:.3g}, tolerance {self.tolerance:.3g}"


def describe(seen: Seen, names: list[str]) -> dict[str, str]:
    """What a file says beside its tensors, each value as JSON: what using it needs."""
    about = {
        "classes": list(seen.classes),
        "names": names,
        "image_shape": list(seen.image_shape),  # (C, H, W)
        "mean": list(seen.mean),  # of channels in 0..1
        "std": list(seen.std),
    }
    return {key: json.dumps(value, ensure_ascii=False) for key, value in about.items()}


def write(
    path: Path, format: Format, network: Network, other: Network, about: dict[str, str], sample: Sample
) -> Difference:
    """Write the network's file under `path`, which must be free.

    Args:
        other: a network of the same kind, whose weights the file's replace for the check.

    Raises:
        ConfigError: the path is taken, or the network cannot be written in this format.
        IntegrityError: the file's logits are not the network's; there is no file then.
    """
    content = format.encode(network, about)
    with written_aside(path) as file:
        file.write(content)
        file.flush()
        difference = compare(network, format.read(Path(file.name).read_bytes(), other), sample.images, format.tolerance)
        if not difference.passes:
            raise IntegrityError(
                f"{path} is not written: read back, its network is not the original ({difference}; on {sample.told})"
            )
        check_free(path)  # all this took its time
    return difference


def check_free(path: Path) -> None:
    """Raises ConfigError where there is a file, or no folder for it."""
    if path.exists() or path.is_symlink():
        raise ConfigError(f"{path} is there already, and export replaces no file: give --out FILE, or remove it")
    if not path.parent.is_dir():
        raise ConfigError(f"{path.parent} is no folder: make it first, or give another --out FILE")


def compare(original: Call, copy: Call, images: Tensor, tolerance: float) -> Difference:
    """Both networks' logits for these images (N, C, H, W) uint8; the first alone, the others in batches."""
    parts = [part for part in (images[:1], *images[1:].split(_BATCH)) if len(part)]
    with torch.no_grad():
        expected = torch.cat([original(part) for part in parts])
        got = torch.cat([copy(part) for part in parts])
    if expected.shape != got.shape:
        raise IntegrityError(f"logits of {tuple(expected.shape)} are of {tuple(got.shape)} in the file")
    return Difference(
        greatest=float((expected - got).abs().max()),  # nan where one of them is
        tolerance=tolerance * float(expected.abs().max()),
    )


def _tensors(network: Network) -> dict[str, Tensor]:
    """The bare model's state dict on the CPU, each tensor contiguous and with a storage of its own."""
    state = network.model.state_dict()
    if strange := [name for name, value in state.items() if not isinstance(value, Tensor)]:
        raise ConfigError(
            f"{strange[0]} of {type(network.model).__name__} is no tensor: it has no place in such a file"
        )
    return {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}


def _encode_state_dict(network: Network, about: dict[str, str]) -> bytes:
    """What is said of it has no place here: load_state_dict takes names and tensors alone."""
    buffer = io.BytesIO()
    torch.save(_tensors(network), buffer)
    return buffer.getvalue()


def _read_state_dict(content: bytes, other: Network) -> Call:
    other.load(plain(content, "the file"), "the file")
    return other


def _encode_safetensors(network: Network, about: dict[str, str]) -> bytes:
    from safetensors.torch import save

    return save(_tensors(network), metadata={"format": "pt"} | about)


def _read_safetensors(content: bytes, other: Network) -> Call:
    from safetensors.torch import load

    other.load(load(content), "the file")
    return other


STATE_DICT = Format(suffixes=(".pth", ".pt", ".th"), tolerance=0, encode=_encode_state_dict, read=_read_state_dict)
SAFETENSORS = Format(suffixes=(".safetensors",), tolerance=0, encode=_encode_safetensors, read=_read_safetensors)
