"""Mean and deviation are the pixels' own, exactly, and computed once."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ALONE, CPU, PLAIN, write_image
from numpy.typing import NDArray

from tinyexp.config import LoaderConfig
from tinyexp.data import statistics
from tinyexp.data.folder import imagefolder
from tinyexp.data.loader import Data
from tinyexp.data.source import ArraySplit, Images, Source
from tinyexp.data.statistics import normalisation
from tinyexp.data.store import StoredSplit, decoded
from tinyexp.device import Normalizer, traits


@dataclass
class Ragged:
    """Images of any size, or an error at the first fetch where there are none."""

    images: list[NDArray[np.uint8]]
    labels: NDArray[np.int64]

    def fetch(self, index: NDArray[np.int64]) -> Images:
        return [self.images[number] for number in index.tolist()]


def make_source(images: Images, fingerprint: str = "0") -> Source:
    labels = np.arange(len(images)) % 2
    split = ArraySplit(images, labels) if isinstance(images, np.ndarray) else Ragged(images, labels)
    return Source(classes=("a", "b"), channels=images[0].shape[2], train=split, val=split, fingerprint=fingerprint)


def never(source: Source) -> Source:
    """The same data set, from which nothing can be fetched."""
    return replace(source, train=Ragged([], source.train.labels))


@pytest.fixture
def loader(tmp_path: Path) -> LoaderConfig:
    return replace(PLAIN.loader, normalize="auto", cache_dir=str(tmp_path / "cache"), image_size=6)


def make_images(count: int, channels: int, *, ragged: bool = False) -> Images:
    random = np.random.default_rng(0)
    sizes = random.integers(1, 12, (count, 2)) if ragged else [(6, 6)] * count
    top = random.integers(2, 256, channels)
    made = [random.integers(0, top, (*size, channels), dtype=np.uint8) for size in sizes]
    return made if ragged else np.stack(made)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("count", [2, 600])
def test_auto_is_exact_over_all_pixels(channels: int, ragged: bool, count: int, loader: LoaderConfig) -> None:
    images = make_images(count, channels, ragged=ragged)
    mean, std = normalisation(make_source(images), loader)
    pixels = np.concatenate([image.reshape(-1, channels) for image in images]) / 255
    np.testing.assert_allclose(mean, pixels.mean(0), rtol=1e-12)
    np.testing.assert_allclose(std, np.maximum(pixels.std(0), 1 / 255), rtol=1e-12)


def test_of_many_images_some_are_looked_at_evenly(loader: LoaderConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "_MOST", 4)
    images = make_images(11, 1)
    mean, _ = normalisation(make_source(images), loader)
    assert mean[0] == pytest.approx(images[[0, 2, 5, 8]].mean() / 255, rel=1e-12)


def test_auto_is_computed_once(
    loader: LoaderConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(8):
        write_image(tmp_path / ("train", "val")[number % 2] / "ab"[number // 2 % 2] / f"{number}.png")
    source = decoded(imagefolder(root=str(tmp_path), cache_dir=tmp_path), loader)
    first = normalisation(source, loader)
    monkeypatch.setattr(StoredSplit, "fetch", None)
    with caplog.at_level(logging.INFO):
        assert normalisation(source, loader) == first
    assert f"mean {first[0][0]:.4f}, {first[0][1]:.4f}, {first[0][2]:.4f}, std" in caplog.text
    with pytest.raises(TypeError):
        normalisation(source, replace(loader, cache_dir=f"{loader.cache_dir} 2"))


def test_given_passes_through(loader: LoaderConfig) -> None:
    given = replace(loader, normalize="given", mean=(0.1, 0.2), std=(0.3, 0.4))
    assert normalisation(never(make_source(make_images(4, 2))), given) == ((0.1, 0.2), (0.3, 0.4))
    assert not Path(loader.cache_dir).exists()


@pytest.mark.parametrize("value", [0, 7, 255])
def test_a_constant_is_not_divided_by_zero(value: int, loader: LoaderConfig) -> None:
    mean, std = normalisation(make_source(np.full((5, 6, 6, 3), value, np.uint8)), loader)
    assert mean == pytest.approx([value / 255] * 3)
    assert std == (1 / 255,) * 3


def test_a_run_is_normalised_by_it(loader: LoaderConfig) -> None:
    """To mean 0 and deviation 1, three channels though the YAML's numbers are for one."""
    config = replace(PLAIN, loader=loader)
    with Data(make_source(make_images(40, 3)), config, ALONE) as data:
        assert (data.describe()["mean"], data.describe()["std"]) == (list(data.mean), list(data.std))
        normalize = Normalizer(data.mean, data.std, traits(CPU, "fp32", 36, bf16=False))
        shown = torch.cat([normalize(batch.images).clone() for step in data.train(0) for batch in step])
        assert shown.mean((0, 2, 3)).abs().max() < 1e-4
        assert (shown.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-4
