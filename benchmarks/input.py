"""Input alone, up to normalised batches on the CPU, against the usual pipelines on the same images and cores.

    python benchmarks/input.py TINY_IMAGENET.zip CIFAR10_FOLDERS.zip [--rounds 5] [--images 2048] [--only NAME]

The two are run in turn in one process; a ratio is of one round, and its median is told. `usual` is
torchvision's ImageFolder with Pillow, RandomResizedCrop, a flip, ToTensor and Normalize in a DataLoader, with no worker
on one core and two on two. For pad, crop and flip it is transforms.v2, sample by sample over tensors in memory.
The first archive is Tiny ImageNet, the second has images of 32 px as train/CLASS/* and val/CLASS/*.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import datasets, transforms
from torchvision.transforms import v2

from tinyexp.compose import compose
from tinyexp.config import Config
from tinyexp.data.decode import decode
from tinyexp.data.loader import Data
from tinyexp.data.source import list_source
from tinyexp.data.store import decoded, load_source
from tinyexp.device import Normalizer, traits
from tinyexp.dist import Dist

CPU = torch.device("cpu")
BATCH = 128
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
START = """
import sys, time
import torch
from tinyexp.compose import compose
from tinyexp.data.loader import Data
from tinyexp.data.store import load_source
from tinyexp.dist import Dist
config = compose(sys.argv[1:])
start = time.perf_counter()
with Data(load_source(config), config, Dist(torch.device("cpu"))) as data:
    next(data.train(0))
    print(time.perf_counter() - start)
"""


def take(batches: Iterator[Tensor], images: int) -> float:
    """Images a second, over about so many."""
    start, done = time.perf_counter(), 0
    for batch in batches:
        done += len(batch)
        if done >= images:
            break
    return done / (time.perf_counter() - start)


def ours(config: Config) -> Callable[[], Iterator[Tensor]]:
    data = Data(load_source(config), config, Dist(CPU))
    pixels = config.loader.image_size**2
    normalize = Normalizer(data.mean, data.std, traits(CPU, "fp32", pixels, bf16=False))
    epochs = iter(range(10**6))
    return lambda: (normalize(batch.images) for step in data.train(next(epochs)) for batch in step)


def usual_files(folder: Path, size: int, workers: int) -> Callable[[], Iterator[Tensor]]:
    steps = [transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    dataset = datasets.ImageFolder(folder, transforms.Compose([*steps, transforms.Normalize(MEAN, STD)]))
    return lambda: (images for images, _ in DataLoader(dataset, BATCH, shuffle=True, num_workers=workers))


def usual_tensors(config: Config) -> Callable[[], Iterator[Tensor]]:
    split = load_source(config).train
    images = torch.from_numpy(np.stack(list(split.fetch(np.arange(len(split.labels))))))
    images = images.permute(0, 3, 1, 2).contiguous()
    steps = [v2.RandomCrop(images.shape[-1], padding=4), v2.RandomHorizontalFlip()]
    change = v2.Compose([*steps, v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])

    def batches() -> Iterator[Tensor]:
        for index in torch.randperm(len(images)).split(BATCH):
            yield torch.stack([change(images[i]) for i in index])

    return batches


def compare(name: str, mine: Callable[..., Iterator[Tensor]], usual: Callable[..., Iterator[Tensor]], options) -> None:  # noqa: ANN001
    take(mine(), BATCH)  # its first batch maps the file
    rates = [(take(mine(), options.images), take(usual(), options.images)) for _ in range(options.rounds)]
    ratio = statistics.median(one / other for one, other in rates)
    fast, slow = (statistics.median(each) for each in zip(*rates, strict=True))
    print(f"{name:44} {fast:9,.0f} images/s  usual {slow:7,.0f}  ratio {ratio:5.1f}", flush=True)


def decode_all(paths: list[str]) -> None:
    for path in paths:
        decode(path)


def build(words: list[str], folder: Path, rounds: int) -> None:
    """Making the store against the same files decoded by as many processes and thrown away."""
    source = list_source(compose([*words, "dataset.max_gb=100"]), fetch=True)
    paths = [*source.train.paths, *source.val.paths]
    cores, shares = len(os.sched_getaffinity(0)), []
    for number in range(rounds):
        start = time.perf_counter()
        parts = [
            multiprocessing.get_context("fork").Process(target=decode_all, args=(paths[i::cores],))
            for i in range(cores)
        ]
        for part in parts:
            part.start()
        for part in parts:
            part.join()
        limit = time.perf_counter() - start
        config = compose([*words, f"dataset.cache_dir={folder}/again{number}"])
        start = time.perf_counter()
        decoded(source, config.loader)
        shares.append(limit / (time.perf_counter() - start))
    print(
        f"{'making the store / decoding alone':44} {statistics.median(shares):.0%} of {cores} cores' limit", flush=True
    )


def second_start(words: list[str], rounds: int) -> None:
    seconds = [
        float(subprocess.run([sys.executable, "-c", START, *words], capture_output=True, check=True).stdout)
        for _ in range(rounds)
    ]
    print(f"{'second start to the first batch':44} {statistics.median(seconds):.3f} s after imports", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tiny_imagenet")
    parser.add_argument("cifar10")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    everywhere = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        common = [f"dataset.cache_dir={folder}", f"train.batch_size={BATCH}", "hw=cpu"]
        tiny = ["dataset=tiny_imagenet", f"dataset.archive={options.tiny_imagenet}", *common]
        small = ["dataset=imagefolder", f"dataset.archive={options.cifar10}", "dataset.image_size=32", *common]
        load_source(compose(tiny))
        files = Path(folder) / "tiny-imagenet-200" / "train"
        pad = ["dataset.augment.crop=pad", "dataset.augment.flip=0.5"]
        whole = ["dataset.augment.scale=[0.08,1.0]"]
        for cores in (1, 2):
            os.sched_setaffinity(0, everywhere[:cores])
            torch.set_num_threads(cores)
            for size in (224, 64):
                name = f"64 -> {size} random resized crop, {cores} core{'s' * (cores > 1)}"
                if options.only in name:
                    mine = ours(compose([*tiny, f"dataset.image_size={size}", "dataset.decode_size=null", *whole]))
                    compare(name, mine, usual_files(files, size, workers=0 if cores == 1 else cores), options)
        torch.set_num_threads(1)
        os.sched_setaffinity(0, everywhere[:1])
        for size, words in ((32, [*small, *pad]), (64, [*tiny, *pad])):
            name = f"{size} px pad, crop, flip, 1 core"
            if options.only in name:
                compare(name, ours(compose(words)), usual_tensors(compose(words)), options)
        os.sched_setaffinity(0, everywhere)
        if options.only in "store":
            build(tiny, Path(folder), options.rounds)
            second_start(tiny, options.rounds)


if __name__ == "__main__":
    main()
