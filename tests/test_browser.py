"""TensorBoard's own page, in a browser: each tab shows what a run has drawn."""

from __future__ import annotations

import io
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import page
from helpers import NO_BOARD, train
from PIL import Image

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """TensorBoard over the recipe's run on digits."""
    directory = tmp_path_factory.mktemp("tour") / "run"
    defaults = [word.replace("=false", "=true") for word in NO_BOARD]
    train(directory, "experiment=tensorboard_tour", "dataset=digits", *defaults, "log.tensorboard.histograms=23")
    yield from served(directory)


def served(directory: Path) -> Iterator[str]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", directory, "--host", "127.0.0.1", "--port", port]
    with subprocess.Popen(
        list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stderr is not None
            assert any("Press CTRL+C" in line for line in server.stderr), "it did not begin"
            yield f"http://127.0.0.1:{port}/"
        finally:
            server.terminate()


@pytest.fixture(scope="module")
def opened(url: str) -> Iterator[tuple[Any, list[str]]]:
    errors: list[str] = []
    with page(url, errors) as one:
        yield one, errors


def show(opened: tuple[Any, list[str]], url: str, tab: str) -> Any:
    one, _ = opened
    one.goto(f"{url}#{tab}")
    one.reload()
    return one


@pytest.mark.parametrize(
    ("tab", "texts"),
    [
        ("scalars", ["best/top1", "train/loss"]),
        ("custom_scalars", ["train and val", "top5"]),
        ("graphs", ["LeNet5"]),
        ("histograms", ["gradients/conv1.weight"]),
        ("text", ["config/text_summary", "batch_size: 64", "fingerprint"]),
        ("hparams", ["optim.lr", "best/top1"]),
    ],
)
def test_a_tab_has_the_runs_data(tab: str, texts: list[str], url: str, opened: tuple[Any, list[str]]) -> None:
    one = show(opened, url, tab)
    for text in texts:
        one.get_by_text(text).first.wait_for(state="attached", timeout=60_000)
    assert not opened[1], "what the console calls an error"


def test_pictures_are_there(url: str, opened: tuple[Any, list[str]]) -> None:
    one = show(opened, url, "images")
    for view in ("confusion", "feature_maps", "filters"):
        one.get_by_text(view, exact=True).first.wait_for(timeout=60_000)
    image = one.locator("tf-image-loader img").first
    image.wait_for(timeout=60_000)
    assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") == 1020  # the confusion matrix


def test_the_projector_draws_the_images_as_points(url: str, opened: tuple[Any, list[str]]) -> None:
    one = show(opened, url, "projector")
    frame = one.frame_locator("iframe").frame_locator("iframe")  # a plugin's, and in it the projector's own
    frame.get_by_text("features, step 46").first.wait_for(state="attached", timeout=60_000)
    frame.locator("span.numDataPoints", has_text="360").wait_for(timeout=60_000)
    one.wait_for_timeout(3000)  # the points fly to their places
    shot = frame.locator("#scatter").screenshot()
    pixels = np.asarray(Image.open(io.BytesIO(shot)).convert("RGB")).reshape(-1, 3)
    grey = pixels[(pixels.max(1) == pixels.min(1)) & (pixels[:, 0] < 250)]
    assert len(grey) > 2000, "thumbnails, which are grey"
    assert len(np.unique(grey[:, 0])) > 50, "and no dots of one colour"
    assert not opened[1]
