"""A frozen part of a network runs once: what it makes of each image is kept, and only what comes after it trains."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tinyexp.cache import build_once
from tinyexp.config import Config
from tinyexp.cores import available_cores
from tinyexp.data import augment, geometry, resize, transform
from tinyexp.data.loader import Data
from tinyexp.data.progress import bar
from tinyexp.device import Normalizer, fast_bf16
from tinyexp.dist import Dist
from tinyexp.network import Network
from tinyexp.start import Begun
from tinyexp.tail import features_of, find_tail, folded

_VERSION = 1  # of the files below
_PIXELS = 1_600_000  # of a batch on the CPU, 32 images of 224 px: larger maps leave the cache, and take twice as long
_TRIED = 4  # images on which the tail and the folding are proven
_log = logging.getLogger(__name__)


def run_once(
    begun: Begun, data: Data, config: Config, dist: Dist, heed: Callable[[], None] = lambda: None
) -> tuple[Begun, Data]:
    """Where a frozen part can run once, its features in place of the images, and a network that is fed them.

    Else both as they are; why is told where a user would expect the other.

    Args:
        heed: called after each batch of images; what it raises ends it.

    Raises:
        ResourceError: no room for the features.
    """
    if not begun.frozen.names or begun.frozen.until is not None or config.transfer.features == "never":
        return begun, data
    why = _obstacle(config)
    images = next(data.images("val"))[:_TRIED]
    tail = None if why else find_tail(begun.network, begun.frozen, images)
    if tail is None:
        why = why or "what is trained is not all that comes after it"
        _log.info("the frozen part runs over the images in each epoch: %s", why)
        return begun, data
    maker = _Maker(begun.network, tail, data, config, heed)
    with _all_cores(config):
        train = [maker.of_train(view, images) for view in range(min(config.transfer.views or 1, config.train.epochs))]
        val = maker.of_val()
    dist.gather("features")  # which may take longer than a collective waits
    _tell([*train, val], config.train.epochs)
    fed = replace(
        begun.network,
        tail=tail,
        normalize=functools.partial(_as_fed, begun.network.traits.device, getattr(torch, val.about["dtype"])),
    )
    return replace(begun, network=fed.of(fed.model)), data.fed_by(train, val)


def _obstacle(config: Config) -> str | None:
    """What of the config makes each epoch's images others, or leaves most of them out."""
    changes = config.loader.augment
    if changes.mixup or changes.cutmix:
        return "dataset.augment mixes them"
    if config.train.limit_batches:
        return "train.limit_batches takes a few of them"
    if config.transfer.views is None and (
        changes.crop or changes.flip or changes.erase or changes.policy or changes.jitter
    ):
        return "dataset.augment changes them; transfer.views=1 has it run once, over one such view of each"
    return None


@dataclass(frozen=True)
class Kept:
    """The features of a phase's images, in their order: (N, ...), mapped from a file."""

    folder: Path
    seconds: float | None  # that they took just now; None: they were there

    @functools.cached_property
    def about(self) -> dict[str, Any]:
        """dtype, shape and the seconds that they once took."""
        about: dict[str, Any] = json.loads((self.folder / "about.json").read_bytes())
        return about

    @functools.cached_property
    def rows(self) -> NDArray[Any]:
        """bf16 as the uint16 of its bits, which numpy lacks."""
        kind = "uint16" if self.about["dtype"] == "bfloat16" else self.about["dtype"]
        return np.memmap(self.folder / "features", np.dtype(kind), "r", shape=tuple(self.about["shape"]))

    def __getitem__(self, index: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(self.rows[index]).view(getattr(torch, self.about["dtype"]))


class _Maker:
    """Makes a network's features, and names them by all that they follow from."""

    def __init__(self, network: Network, tail: str, data: Data, config: Config, heed: Callable[[], None]) -> None:
        self._network, self._tail, self._data, self._config, self._heed = network, tail, data, config, heed

    def of_train(self, view: int, tried: Tensor) -> Kept:
        """In bf16 where the hardware computes in it, and with batch-norm folded."""
        traits = self._network.traits
        bf16 = self._config.train.precision in ("auto", "bf16") and fast_bf16(traits.device)
        plan = replace(traits, autocast=torch.bfloat16 if bf16 else traits.autocast)
        if traits.device.type != "mps":
            plan = replace(plan, channels_last=True)
        epoch = None if self._config.transfer.views is None else view

        def make() -> Iterator[Tensor]:
            normalize = Normalizer(self._data.mean, self._data.std, plan)
            quick = folded(replace(self._network, traits=plan, normalize=normalize), tried, self._tail)
            quick.model.to(memory_format=torch.channels_last if plan.channels_last else torch.contiguous_format)
            height, width = self._data.image_shape[1:]
            size = max(8, _PIXELS // (height * width)) if traits.device.type == "cpu" else None
            return self._run(quick, self._data.images("train", epoch, size))

        return self._kept("train", f"folded, {plan.autocast}, view {epoch}", make)

    def of_val(self) -> Kept:
        """As `eval` will run it, so that it comes to the same scores."""
        how = f"{self._network.traits.autocast}, {self._config.train.eval_batch_size}"
        return self._kept("val", how, lambda: self._run(self._network, self._data.images("val")))

    @torch.no_grad()
    def _run(self, network: Network, batches: Iterator[Tensor]) -> Iterator[Tensor]:
        """What the tail is fed for each batch of images, on the CPU."""
        network.model.eval()
        tail = network.model.get_submodule(self._tail)
        for images in batches:
            _, (features,) = features_of(network, tail, images)
            yield features.cpu()
            self._heed()

    def _kept(self, phase: str, how: str, make: Any) -> Kept:
        folder = Path(self._config.loader.cache_dir).expanduser() / "features" / self._key(phase, how)
        count = self._data.num_train if phase == "train" else self._data.num_val
        began = time.perf_counter()

        def build(aside: Path) -> None:
            aside.mkdir()
            shape, dtype, done = [count], "", 0
            with (aside / "features").open("wb") as file, bar(f"features of {phase}") as show:
                for features in make():
                    shape, dtype = [count, *features.shape[1:]], str(features.dtype).removeprefix("torch.")
                    file.write(features.contiguous().view(torch.uint8).numpy().data)
                    done += len(features)
                    show(done, count)
            size = (aside / "features").stat().st_size
            about = {"shape": shape, "dtype": dtype, "bytes": size, "seconds": time.perf_counter() - began}
            (aside / "about.json").write_text(json.dumps(about))

        if folder.exists() and not _is_whole(folder):
            _log.warning("%s is damaged: it is made again", folder)
            shutil.rmtree(folder, ignore_errors=True)
        made = build_once(folder, build, what=f"the features of {count:,} {phase} images")
        return Kept(folder, time.perf_counter() - began if made else None)

    def _key(self, phase: str, how: str) -> str:
        """32 hex digits that follow from the images, what is done to them, and the frozen part with its code."""
        model, loader = self._network.model, self._config.loader
        digest = hashlib.blake2b(digest_size=16)
        seed = self._config.train.seed if self._config.transfer.views else 0
        changes = loader.augment if self._config.transfer.views else None
        images = (
            self._data.identity(phase),
            self._data.mean,
            self._data.std,
            loader.image_size,
            loader.resize,
            changes,
            seed,
        )
        made_by = (self._config.model.target, sorted(self._config.model.arguments.items()), str(model), self._tail)
        digest.update(repr((_VERSION, phase, how, images, made_by, _versions())).encode())
        for source in sorted(_sources(model, self._config.model.target)):
            digest.update(source.encode())
        for name, tensor in sorted([*model.named_parameters(), *model.named_buffers()]):
            if not name.startswith(f"{self._tail}."):
                content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
                digest.update(name.encode() + content.tobytes())
        return digest.hexdigest()


def _is_whole(folder: Path) -> bool:
    """Is the file as long as it was made?"""
    try:
        about = json.loads((folder / "about.json").read_bytes())
        return bool((folder / "features").stat().st_size == about["bytes"])
    except (OSError, ValueError, LookupError, TypeError):
        return False


def _versions() -> list[str]:
    found = [str(torch.__version__)]
    for name in ("torchvision", "timm"):
        with suppress(metadata.PackageNotFoundError):
            found.append(metadata.version(name))
    return found


def _sources(model: nn.Module, target: str) -> set[str]:
    """The code of what changes the images, of each module's class, and of what made the network."""
    names = {type(module).__module__ for module in model.modules()} | {target.rpartition(".")[0]}
    versioned = ("torch.", "torchvision.", "timm.")
    modules = [sys.modules.get(name) for name in names if not name.startswith(versioned)]
    found = set()
    for module in (augment, geometry, resize, transform, *modules):
        with suppress(OSError, TypeError):  # a class of a notebook has no file
            found.add(inspect.getsource(module))  # type: ignore[arg-type]
    return found


@contextmanager
def _all_cores(config: Config) -> Iterator[None]:
    """One process of a machine makes the features, and the others wait; hw.threads is the user's word."""
    before = torch.get_num_threads()
    if config.hw.threads is None:
        torch.set_num_threads(max(before, available_cores()))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _as_fed(device: torch.device, dtype: torch.dtype, features: Tensor) -> Tensor:
    return features.to(device, dtype)


def _tell(kept: list[Kept], epochs: int) -> None:
    took = sum(each.about["seconds"] for each in kept)
    size = sum(each.rows.nbytes for each in kept) / 1e6
    made = [each.seconds for each in kept if each.seconds is not None]
    how = f"in {sum(made):.1f} s" if made else f"from {kept[0].folder.parent}, where they were already"
    _log.info(
        "the frozen part ran once: features of %s images (%.0f MB) %s, instead of %d times; some %.0f s saved",
        f"{sum(len(each.rows) for each in kept):,}",
        size,
        how,
        epochs,
        took * epochs - sum(made),
    )
