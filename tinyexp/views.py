"""From a network and images to what is to be seen: pictures as uint8 arrays, and points. Nothing is written here.

A network is the same afterwards, in its modes too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from tinyexp.data.loader import Data
from tinyexp.data.preview import MOST, draw_sheet, picture
from tinyexp.device import Normalizer
from tinyexp.errors import ConfigError, TinyexpError, did_you_mean
from tinyexp.network import Network, Seen
from tinyexp.projector import Embedding, sprite_side
from tinyexp.tail import features_of

_LOOKED_AT = 2_000  # val images at most
_TILES = 64  # filters or maps at most
_TILE = 48  # px at least; smaller ones are enlarged by whole times
_WORST = 24  # mistakes, three rows
_RIGHT, _WRONG = "#00674b", "#b03a00"


@dataclass(frozen=True, kw_only=True)
class Looked:
    """Val images evenly spaced over val, since a data set may be sorted by class, and what a network makes of them."""

    index: NDArray[np.int64]  # (n,), their numbers in val
    labels: Tensor  # (n,)
    logits: Tensor  # (n, classes)
    features: Tensor | None  # (n, d), what the head is fed
    thumbnails: NDArray[np.uint8] | None  # (n, side, side, 3)

    @property
    def predictions(self) -> Tensor:
        return self.logits.argmax(1)

    @property
    def probabilities(self) -> Tensor:
        """(n,) of the predictions."""
        return self.logits.softmax(1).amax(1)


def whole(network: Network, data: Seen) -> Network:
    """The network over all of its model, whatever part of it training is fed."""
    normalize = Normalizer(data.mean, data.std, network.traits)  # its own, since a Normalizer keeps its last batch
    return replace(network, forward=network.model, normalize=normalize, tail="")


@contextmanager
def _at_rest(model: nn.Module) -> Iterator[None]:
    """In eval mode and without gradients."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def look(
    network: Network,
    data: Data,
    size: int,
    *,
    features: bool,
    thumbnails: bool,
    stop: Callable[[], bool] = lambda: False,
) -> Looked:
    """Score up to 2,000 val images, `size` at a time.

    Args:
        stop: asked before each batch.
        features: keep what the network's head is fed.
        thumbnails: keep a small picture of each.

    Raises:
        TinyexpError: `stop` says so.
    """
    most = min(_LOOKED_AT, data.num_val)
    index = np.arange(most, dtype=np.int64) * data.num_val // most
    side = sprite_side(most, data.image_shape[1])
    labels, logits, fed, small = [], [], [], []
    with _at_rest(network.model):
        for begin in range(0, most, size):
            if stop():
                raise TinyexpError("a signal came")
            images, answers = data.val_at(index[begin : begin + size])
            if features:
                given, inputs = features_of(network, network.model.get_submodule(network.head), images)
                fed.append(_flat(inputs[-1].float()).cpu())
            else:
                given = network(images)
            labels.append(answers)
            logits.append(given.cpu())
            if thumbnails:
                small += [_thumbnail(image, side) for image in images]
    return Looked(
        index=index,
        labels=torch.cat(labels),
        logits=torch.cat(logits),
        features=torch.cat(fed) if features else None,
        thumbnails=np.stack(small) if thumbnails else None,
    )


def _flat(fed: Tensor) -> Tensor:
    """(n, d): means over the places of maps (n, d, h, w), or over tokens (n, tokens, d)."""
    return fed.mean(1) if fed.ndim == 3 else fed.flatten(2).mean(2) if fed.ndim > 3 else fed


def _thumbnail(image: Tensor, side: int) -> NDArray[np.uint8]:
    return np.asarray(picture(image).convert("RGB").resize((side, side), Image.Resampling.BILINEAR))


def draw_predictions(looked: Looked, data: Data) -> Image.Image:
    """Some of the images, evenly spaced, with their predictions: green where right, red where wrong."""
    most = min(MOST, len(looked.index))
    return _draw(looked, torch.arange(most) * len(looked.index) // most, data)


def draw_mistakes(looked: Looked, data: Data) -> Image.Image | None:
    """Those of which the network was surest, the worst first; None without a mistake."""
    wrong = (looked.predictions != looked.labels).nonzero()[:, 0]
    surest = looked.probabilities[wrong].argsort(descending=True, stable=True)[:_WORST]
    return _draw(looked, wrong[surest], data) if len(wrong) else None


def _draw(looked: Looked, places: Tensor, data: Data) -> Image.Image:
    images, _ = data.val_at(looked.index[places.numpy()])
    columns = (looked.labels, looked.predictions, looked.probabilities)
    lines, colours = [], []
    for label, prediction, probability in zip(*(values[places].tolist() for values in columns), strict=True):
        lines.append([f"{probability:.0%} {data.names[prediction]}", f"is {data.names[label]}"])
        colours.append(_RIGHT if label == prediction else _WRONG)
    return draw_sheet(images, lines, colours)


def points(looked: Looked, names: tuple[str, ...]) -> Embedding:
    """Features, or logits where there are none, with each image's label, prediction and number in val."""
    assert looked.thumbnails is not None
    vectors = looked.logits if looked.features is None else looked.features
    rows = [
        (names[label], names[prediction], "right" if label == prediction else "wrong", str(number))
        for label, prediction, number in zip(
            looked.labels.tolist(), looked.predictions.tolist(), looked.index.tolist(), strict=True
        )
    ]
    heads = ("label", "prediction", "right or wrong", "number in val")
    return Embedding(vectors=vectors.numpy(), heads=heads, rows=rows, thumbnails=looked.thumbnails)


def trace(network: Network, image_shape: tuple[int, int, int], run: Callable[[nn.Module, Tensor], None]) -> None:
    """Have `run` take the whole model and a batch that it can be run on. Raises whatever it raises."""
    with _at_rest(network.model):
        run(network.model, torch.zeros(1, *image_shape, device=network.traits.device))


def filters(model: nn.Module) -> NDArray[np.uint8] | None:
    """The first convolution's weights: in colour where it has three channels, else each channel's. None without one."""
    weight = next((each.weight for each in model.modules() if isinstance(each, nn.Conv2d)), None)
    if weight is None:
        return None
    weight = weight.detach().float().cpu()
    colour = weight.shape[1] == 3
    return tiled(weight if colour else weight.flatten(0, 1)[:, None])


def feature_maps(network: Network, layer: str, image: Tensor) -> NDArray[np.uint8]:
    """What a layer makes of an image (C, H, W) uint8, one tile a channel.

    Raises:
        ConfigError: there is no such layer, or it makes no maps.
    """
    layers = dict(network.model.named_modules())
    if layer not in layers:
        near = did_you_mean(layer, [name for name in layers if name])
        raise ConfigError(f"log.tensorboard.feature_maps={layer} is no layer of {type(network.model).__name__}{near}")
    seen: list[Any] = []
    hook = layers[layer].register_forward_hook(lambda _module, _given, output: seen.append(output))
    try:
        with _at_rest(network.model):
            network(image[None])
    finally:
        hook.remove()
    maps = seen[-1] if seen else None
    if not isinstance(maps, Tensor) or maps.ndim != 4:
        got = f"{tuple(maps.shape)}" if isinstance(maps, Tensor) else type(maps).__name__
        raise ConfigError(
            f"log.tensorboard.feature_maps={layer} must be a layer that gives maps (N, C, H, W), and it gives {got}: "
            "take a convolution"
        )
    return tiled(maps[0].float().cpu()[:, None])


def tiled(tiles: Tensor) -> NDArray[np.uint8]:
    """(n, 1 or 3, h, w) of any numbers -> a picture (H, W, 3) of the first ones, each from its least to its most."""
    tiles = tiles[:_TILES]
    low, high = (bound[:, None, None, None] for bound in tiles.flatten(1).aminmax(dim=1))
    shades = ((tiles - low) / (high - low).clamp_min(1e-12) * 255).nan_to_num().clamp(0, 255).byte()
    times = -(-_TILE // max(shades.shape[2:]))
    shades = shades.expand(-1, 3, -1, -1).repeat_interleave(times, 2).repeat_interleave(times, 3)
    count, _, height, width = shades.shape
    columns = min(8, count)
    rows = -(-count // columns)
    cells = torch.full((rows * columns, 3, height + 4, width + 4), 255, dtype=torch.uint8)
    cells[:count, :, 2:-2, 2:-2] = shades
    sheet = cells.view(rows, columns, 3, height + 4, width + 4).permute(0, 3, 1, 4, 2)
    return sheet.reshape(rows * (height + 4), columns * (width + 4), 3).numpy()
