"""export RUN|CHECKPOINT [--format state_dict|safetensors|onnx] [--out FILE] [overrides]: a file for other programs.

The format is state_dict, a .pth for load_state_dict, and FILE is DATASET_MODEL_epochN in the working directory, unless
they are given. The file is read back and its logits compared with the original's, on val images
where the data set is here. Overrides are trust=NAMES, and where the data set is: dataset.root and the like.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from tinyexp import __version__
from tinyexp.checkpoint import weights_to_use
from tinyexp.config import Config
from tinyexp.dist import Dist
from tinyexp.errors import ConfigError, did_you_mean
from tinyexp.export import SAFETENSORS, STATE_DICT, Format, check_free, describe, write
from tinyexp.network import Network
from tinyexp.onnxfile import ONNX, check_packages
from tinyexp.overrides import parse
from tinyexp.sample import take_sample
from tinyexp.stored import check_run
from tinyexp.trained import config_of, described, read_trained

_FORMATS = {"state_dict": STATE_DICT, "safetensors": SAFETENSORS, "onnx": ONNX}
_TAKEN = {"trust", "dataset.root", "dataset.archive", "dataset.cache_dir"}
_IMAGES = 256  # that the file is checked on, at most


def main(paths: list[str], overrides: list[str], options: dict[str, str]) -> None:
    """Write the network of a run's best.pt, or of the checkpoint given, with the averaged weights where it has any.

    Raises:
        ConfigError: no such checkpoint or format, a file that is there already, or packages that are missing.
        IntegrityError: the checkpoint is damaged, or what was written does not give the same logits.
    """
    name = options.get("format", "state_dict")
    if name not in _FORMATS:
        raise ConfigError(f"--format must be state_dict, safetensors or onnx, got {name}{did_you_mean(name, _FORMATS)}")
    if others := parse(overrides).given - _TAKEN:
        raise ConfigError(f"export takes no overrides but {', '.join(sorted(_TAKEN))}, got {min(others)}")
    if name == "onnx":
        check_packages()
    check_run(paths[0], overrides)
    checkpoint, origin = read_trained(paths[0])
    config = config_of(checkpoint, [*overrides, "train.precision=fp32"], "export")
    path = _path(options.get("out"), _FORMATS[name], _stem(config, checkpoint["state"]["epoch"]))
    check_free(path)
    seen = described(checkpoint, config)
    network, other = (Network.build(config, seen, Dist(torch.device("cpu"))) for _ in range(2))
    network.load(weights_to_use(checkpoint), origin)
    names = checkpoint["data"].get("names", checkpoint["data"]["classes"])
    about = describe(seen, names) | {"tinyexp": __version__}
    sample = take_sample(config, seen, _IMAGES)
    difference = write(path, _FORMATS[name], network, other, about, sample)
    print(f"checked on {sample.told}: {difference}")  # noqa: T201
    print(f"wrote {path} ({name}, {path.stat().st_size / 1e6:,.1f} MB)")  # noqa: T201


def _stem(config: Config, epoch: Any) -> str:
    """DATASET_MODEL_epochN, of signs that a file's name may have."""
    model = config.model.arguments.get("name") or config.model.target.rpartition(".")[2].lower()
    text = f"{config.dataset.target.rpartition('.')[2]}_{model}_epoch{epoch}"
    return re.sub(r"[^\w.+-]", "-", text).lstrip(".")


def _path(given: str | None, format: Format, stem: str) -> Path:
    """Raises ConfigError for a name that says another format."""
    if given is None or Path(given).is_dir():
        return Path(given or "") / f"{stem}{format.suffixes[0]}"
    path = Path(given)
    if path.suffix not in format.suffixes:
        raise ConfigError(f"--out {given} must end in {' or '.join(format.suffixes)}, or --format be another")
    return path
