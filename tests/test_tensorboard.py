"""What TensorBoard shows of a run: each view by its key, with what it says, and the training the same with all of them.

Read back with TensorBoard's own reader.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faults import SMALL, Fault, Torn, digest, disk_full, run
from google.protobuf import text_format
from helpers import ALONE, NO_BOARD, begin, make_data, make_source, rows, train
from helpers import steps as steps_of
from numpy.typing import NDArray
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig
from test_features import NET, Net, weights
from test_ranks import program
from torch import Tensor, nn

from tinyexp import pictures, views
from tinyexp.__main__ import main
from tinyexp.board import Board
from tinyexp.checkpoint import load
from tinyexp.data.loader import Data
from tinyexp.engine import evaluate, score
from tinyexp.gallery import Gallery, rates_of
from tinyexp.projector import Embedding, write_embedding

LOG = "log.tensorboard"
EVERY = {  # view -> words that turn it on, and what TensorBoard then has of it
    "scalars": ("scalars=true", {"train/loss", "train_epoch/top1", "train_epoch/loss", "val/top1", "val/loss"}),
    "groups": ("groups=true", {"custom_scalars__config__"}),
    "hparams": ("hparams=true", {"best/top1", "best/loss", "_hparams_/session_start_info"}),
    "text": ("text=true", {"config/text_summary", "environment/text_summary"}),
    "inputs": ("inputs=true", {"inputs"}),
    "filters": ("filters=true", {"filters"}),
    "graph": ("graph=true", {"the graph"}),
    "histograms": ("histograms=2", {"weights/conv1.weight", "gradients/conv1.weight"}),
    "feature_maps": ("feature_maps=conv2", {"feature_maps"}),
    "mistakes": ("mistakes=true", {"mistakes"}),
    "predictions": ("predictions=true", {"predictions"}),
    "confusion": ("confusion=true", {"confusion"}),
    "per_class": ("per_class=true", {"per_class"}),
    "lr": ("lr=true", {"lr"}),
    "projector": ("projector=features", {"the projector"}),
}
ALL = tuple(f"{LOG}.{word}" for word, _ in EVERY.values())
FEW = ("train.limit_batches=4", "train.epochs=1", "log.every=2")


def events(directory: Path) -> EventAccumulator:
    kinds = ("scalars", "images", "histograms", "tensors", "compressedHistograms")
    found = EventAccumulator(str(directory / "tb"), size_guidance=dict.fromkeys(kinds, 0))
    found.Reload()
    return found


def tags(directory: Path) -> set[str]:
    found = events(directory)
    named = found.Tags()
    lists = {tag for kind in ("scalars", "images", "histograms", "tensors") for tag in named[kind]}
    hparams = {tag for tag in found.summary_metadata if tag.startswith("_hparams_")}
    projector = {"the projector"} if (directory / "tb/projector_config.pbtxt").exists() else set()
    return lists | hparams | projector | ({"the graph"} if named["graph"] else set())


def images(directory: Path, tag: str) -> list[NDArray[np.uint8]]:
    return [
        np.asarray(Image.open(io.BytesIO(each.encoded_image_string)).convert("RGB"))
        for each in events(directory).Images(tag)
    ]


def steps(points: Sequence[Any]) -> list[int]:
    return [point.step for point in points]


def last(directory: Path) -> dict[str, Any]:
    return dict(load(directory / "checkpoints/last.pt")["state"])


def assert_same(ours: Path, theirs: Path) -> None:
    """To the bit: weights, optimizer, and what was measured."""
    assert digest(ours) == digest(theirs)
    for phase in ("train", "train_epoch", "val"):
        mine, other = (
            [(row["step"], row["loss"], row["top1"]) for row in rows(each, phase)] for each in (ours, theirs)
        )
        assert mine == other
        assert mine


@pytest.fixture(scope="module")
def tour(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe with every view, on digits: 2 epochs of 23 steps."""
    words = ("experiment=tensorboard_tour", "dataset=digits", f"{LOG}.histograms=23", "dataset.preview=true", "hw=cpu")
    directory = tmp_path_factory.mktemp("tour") / "run"
    defaults = tuple(word.replace("=false", "=true") for word in NO_BOARD)
    return train(directory, *words, *defaults)


# each view by its key


def test_all_off_leaves_nothing(tmp_path: Path) -> None:
    assert not (train(tmp_path / "run", *FEW) / "tb").exists()


@pytest.mark.parametrize("view", EVERY)
def test_a_key_shows_its_view_and_no_other(view: str, tmp_path: Path) -> None:
    word, expected = EVERY[view]
    words = [f"{LOG}.{word}"] + ([f"{LOG}.scalars=true"] if view == "groups" else [])
    shown = tags(train(tmp_path / "run", *FEW, *words))
    assert expected <= shown
    others = set().union(*(tags for name, (_, tags) in EVERY.items() if name not in (view, "scalars")))
    assert not shown & (others - expected)
    assert ("val/top1" in shown) == (view in ("scalars", "groups"))


@pytest.mark.slow
def test_each_epoch_or_the_end_alone(tmp_path: Path) -> None:
    words = ("train.limit_batches=4", "train.epochs=3", *ALL)
    at_end = events(train(tmp_path / "end", *words))
    each = events(train(tmp_path / "each", *words, f"{LOG}.each_epoch=true"))
    for view in ("feature_maps", "mistakes", "predictions", "confusion", "per_class", "lr"):
        assert steps(at_end.Images(view)) == [12], view
        assert steps(each.Images(view)) == [4, 8, 12], view
    assert steps(at_end.Images("filters")) == [0, 12]
    assert steps(each.Images("filters")) == [0, 4, 8, 12]
    assert steps(each.Images("inputs")) == [0]
    folders = [{path.name for path in (tmp_path / name / "tb/projector").iterdir()} for name in ("end", "each")]
    assert folders == [{"features-00000012"}, {f"features-{step:08}" for step in (4, 8, 12)}]


# what they say


def test_groups_name_curves_that_are_there(tour: Path) -> None:
    content = events(tour).Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
    (category,) = Layout.FromString(content).category
    assert [chart.title for chart in category.chart] == ["top1", "top5", "loss"]
    curves = set(events(tour).Tags()["scalars"])
    for chart in category.chart:
        assert list(chart.multiline.tag) == [f"train_epoch/{chart.title}", f"val/{chart.title}"]
        assert set(chart.multiline.tag) <= curves


def test_text_is_the_config_and_the_environment(tour: Path) -> None:
    text = [
        events(tour).Tensors(f"{name}/text_summary")[0].tensor_proto.string_val[0].decode()
        for name in ("config", "environment")
    ]
    assert text[0] == f"```yaml\n{(tour / 'config.yaml').read_text().rstrip()}\n```"
    assert json.loads(text[1].removeprefix("```json\n").removesuffix("\n```")) == json.loads(
        (tour / "env.json").read_text()
    )


def test_inputs_are_the_preview(tour: Path) -> None:
    (shown,) = images(tour, "inputs")
    assert np.array_equal(shown, np.asarray(Image.open(tour / "preview.png")))


def test_filters_are_the_first_convolutions(tour: Path) -> None:
    weight = last(tour)["model"]["conv1.weight"]
    shown = images(tour, "filters")[-1]
    assert np.array_equal(shown, views.tiled(weight))
    side = 50  # px: 5 enlarged ten times
    assert shown.shape == (side + 4, 6 * (side + 4), 3)
    for number, tile in enumerate(weight[:, 0].numpy()):
        seen = shown[2 : 2 + side : 10, 54 * number + 2 : 54 * number + 2 + side : 10, 0]
        assert np.array_equal(seen == 255, tile == tile.max())
        assert np.array_equal(seen == 0, tile - tile.min() < (tile.max() - tile.min()) / 255)


def test_filters_of_three_channels_have_colours() -> None:
    network = nn.Sequential(nn.Conv2d(3, 70, 7))
    shown = views.filters(network)
    assert shown is not None
    assert shown.shape == (8 * (49 + 4), 8 * (49 + 4), 3), "64 tiles at most"
    assert (shown[..., 0] != shown[..., 1]).any()
    assert views.filters(nn.Linear(2, 2)) is None


def test_histograms_count_every_number(tour: Path) -> None:
    found, weights = events(tour), last(tour)["model"]
    assert {tag.partition("/")[2] for tag in found.Tags()["histograms"]} == set(weights)
    for name, tensor in weights.items():
        for kind in ("weights", "gradients"):
            drawn = found.Histograms(f"{kind}/{name}")
            assert steps(drawn) == [23, 46]
            assert sum(drawn[-1].histogram_value.bucket) == drawn[-1].histogram_value.num == tensor.numel()
        value = found.Histograms(f"weights/{name}")[-1].histogram_value
        assert value.max == pytest.approx(float(tensor.max()))
        assert value.sum == pytest.approx(float(tensor.double().sum()), abs=1e-4)


def test_frozen_parameters_have_no_gradients(tmp_path: Path) -> None:
    start = weights(Net(), tmp_path / "first.pt")
    shown = tags(train(tmp_path / "run", *FEW, *NET, start, "transfer.features=never", f"{LOG}.histograms=1"))
    assert "weights/features.0.weight" in shown
    assert {tag for tag in shown if tag.startswith("gradients/")} == {
        "gradients/classifier.1.weight",
        "gradients/classifier.1.bias",
    }


def test_hparams_are_numbers_and_no_names(tour: Path) -> None:
    kept = events(tour).summary_metadata
    start = metadata.parse_session_start_info_plugin_data(
        kept[metadata.SESSION_START_INFO_TAG].plugin_data.content
    ).hparams
    columns = {
        info.name
        for info in metadata.parse_experiment_plugin_data(
            kept[metadata.EXPERIMENT_TAG].plugin_data.content
        ).hparam_infos
    }
    assert start["optim.lr"].number_value == 2e-3
    assert start["train.batch_size"].number_value == 64
    assert start["train.seed"].WhichOneof("kind") == "number_value"
    assert start["model._target_"].string_value.endswith("LeNet5")
    assert "train.ema" in columns
    assert "train.ema" not in start, "null is no value"
    assert not [key for key in columns if key.startswith(("run.", "log.", "sweep.", "resume", "hw.timeout"))]
    best = json.loads((tour / "summary.json").read_text())["best"]
    assert events(tour).Scalars("best/top1")[0].value == pytest.approx(best["top1"])


def test_feature_maps_are_what_the_layer_gives(tour: Path) -> None:
    _, data, state = begin("experiment=tensorboard_tour", "dataset=digits")
    state.network.model.load_state_dict(last(tour)["model"])
    seen: list[Tensor] = []
    state.network.model.get_submodule("conv2").register_forward_hook(lambda *given: seen.append(given[2].detach()))
    list(score(state.network, [next(data.val())], ALONE))
    assert np.abs(images(tour, "feature_maps")[-1].astype(int) - views.tiled(seen[0][0][:, None])).max() <= 1


def test_the_confusion_is_vals(tour: Path) -> None:
    _, data, state = begin("dataset=digits")
    state.network.model.load_state_dict(last(tour)["model"])
    labels, predictions = [], []
    for batch, logits in score(state.network, data.val(), ALONE):
        labels.append(batch.labels)
        predictions.append(logits.argmax(1))
    pairs = torch.cat(labels) * 10 + torch.cat(predictions)
    confusion = torch.bincount(pairs, minlength=100).view(10, 10).numpy()
    for view, figure in (("confusion", pictures.confusion_figure), ("per_class", pictures.classes_figure)):
        assert np.array_equal(images(tour, view)[-1], pictures.pixels(figure(confusion, data.names)))


def test_lr_is_the_logs(tour: Path) -> None:
    logged = [*rows(tour, "train"), *rows(tour, "train_epoch")]
    rates = sorted((row["step"], row["lr"]) for row in logged)
    assert [step for step, _ in rates] == [20, 23, 40, 46]
    assert np.array_equal(images(tour, "lr")[-1], pictures.pixels(pictures.rates_figure(rates)))


def test_the_projector_has_a_row_and_a_picture_for_each_point(tour: Path) -> None:
    config = text_format.Parse((tour / "tb/projector_config.pbtxt").read_text(), ProjectorConfig())
    assert [info.tensor_name for info in config.embeddings] == ["features, step 46", "features, step 23"]
    _, data, state = begin("dataset=digits")
    state.network.model.load_state_dict(last(tour)["model"])
    looked = views.look(views.whole(state.network, data), data, 100, features=True, thumbnails=True)
    info = config.embeddings[0]
    vectors = np.loadtxt(tour / "tb" / info.tensor_path, delimiter="\t")
    assert vectors.shape == (360, 84)
    assert looked.features is not None
    assert vectors == pytest.approx(looked.features.numpy(), rel=1e-4, abs=1e-5)
    heads, *cells = [line.split("\t") for line in (tour / "tb" / info.metadata_path).read_text().splitlines()]
    assert heads == ["label", "prediction", "right or wrong", "number in val"]
    assert [row[0] for row in cells] == [data.names[label] for label in looked.labels]
    assert [row[1] for row in cells] == [data.names[label] for label in looked.predictions]
    sprite = np.asarray(Image.open(tour / "tb" / info.sprite.image_path))
    side, columns = 28, 19  # 19 x 19 = 361
    assert list(info.sprite.single_image_dim) == [side, side]
    assert sprite.shape == (columns * side, columns * side, 3)
    val, _ = data.val_at(np.arange(360))
    for number in (0, 18, 19, 359):
        top, left = number // columns * side, number % columns * side
        assert np.array_equal(sprite[top : top + side, left : left + side, 1], val[number, 0].numpy())


@pytest.mark.parametrize(("name", "told"), [("a\tb\nc", "a b c"), ("", "?"), ("\udce9", "?")])
def test_any_class_name_is_one_cell(name: str, told: str, tmp_path: Path) -> None:
    data = make_data(make_source(num_val=5))
    _, _, state = begin("dataset.image_size=16")
    network = replace(state.network, normalize=lambda images: torch.zeros(len(images), 1, 16, 16))
    looked = views.look(network, data, 4, features=False, thumbnails=True)
    looked = replace(looked, logits=looked.logits[:, :3])
    write_embedding(tmp_path, 3, "logits", views.points(looked, (name,) * 3))
    lines = (tmp_path / "projector/logits-00000003/metadata.tsv").read_text().splitlines()
    assert len(lines) == 6
    assert [line.split("\t")[:2] for line in lines[1:]] == [[told, told]] * 5


def test_a_run_that_went_back_offers_no_later_points(tmp_path: Path) -> None:
    data = make_data(make_source(num_val=6))
    looked = replace(looked_at(data, [0, 1, 2], [1.0] * 3), thumbnails=np.zeros((3, 4, 4, 3), np.uint8))
    for step in (5, 10, 7):
        write_embedding(tmp_path, step, "logits", views.points(looked, data.names))
    config = text_format.Parse((tmp_path / "projector_config.pbtxt").read_text(), ProjectorConfig())
    assert [info.tensor_name for info in config.embeddings] == ["logits, step 7", "logits, step 5"]


@pytest.mark.parametrize("count", [7, 2000, 4999])
def test_val_images_are_evenly_spaced(count: int) -> None:
    """A data set may be sorted by class, and two thousand of the first would be of few."""
    data = make_data(make_source(num_val=count))
    _, _, state = begin("dataset.image_size=16")
    network = replace(state.network, normalize=lambda images: torch.zeros(len(images), 1, 16, 16))
    looked = views.look(network, data, 256, features=False, thumbnails=False)
    assert len(looked.index) == len(looked.logits) == min(count, 2000)
    gaps = np.diff(looked.index)
    assert set(gaps) <= {count // len(looked.index), -(-count // len(looked.index))}
    assert (looked.index[0], looked.index[-1] >= count - max(gaps)) == (0, True)
    assert looked.labels.tolist() == [number % 3 for number in looked.index]


def test_looking_leaves_a_network_as_it_was() -> None:
    """One that is in training mode too, with its batch-norm and dropout."""
    _, data, state = begin("model._target_=test_features.Net", "model.dropout=0.5")
    network = views.whole(state.network, data)
    network.model.eval()
    images, _ = data.val_at(np.arange(360))
    logits = network(images).detach()
    network.model.train()
    network.model.features[3].eval()
    before = {name: tensor.clone() for name, tensor in network.model.state_dict().items()}
    looked = views.look(network, data, 100, features=True, thumbnails=False)
    views.feature_maps(network, "features.0", images[0])
    torch.testing.assert_close(looked.logits, logits, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.model.state_dict().items())
    assert [name for name, module in network.model.named_modules() if not module.training] == ["features.3"]


def test_gradients_are_those_of_the_step(tmp_path: Path) -> None:
    config, data, state = begin(f"{LOG}.histograms=3")
    board = Board(tmp_path, on=True, step=None)
    gallery = Gallery(board, config.log.tensorboard, data, 100)
    for _ in zip(range(4), steps_of(config, data, state), strict=False):
        gallery.step(state)
        if state.step == 3:
            gradients = {name: each.grad.clone() for name, each in state.network.model.named_parameters()}
    board.close()
    for name, gradient in gradients.items():
        (drawn,) = events(tmp_path).Histograms(f"gradients/{name}")
        assert drawn.step == 3
        assert drawn.histogram_value.sum_squares == pytest.approx(float(gradient.double().square().sum()), rel=1e-4)


def test_a_signal_leaves_the_rest_of_the_views_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config, data, state = begin(*(f"{LOG}.{name}=true" for name in ("mistakes", "predictions", "confusion", "lr")))
    board = Board(tmp_path, on=True, step=None)
    gallery = Gallery(board, config.log.tensorboard, data, 100)
    answers = iter([False, False, False, True])  # filters, val images and their first batch
    scores = evaluate(state.eval_network, data.val(), len(data.classes), ALONE)
    gallery.epoch(state, scores, lambda: [(1, 0.1)], lambda: next(answers, True))
    board.close()
    assert events(tmp_path).Tags()["images"] == ["filters"]
    for view in ("val images", "confusion", "lr"):
        assert caplog.text.count(f"TensorBoard's {view} cannot be drawn (a signal came)") == 1


def test_rates_leave_out_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 2, "lr": 0.1}\n{"step": 2}\n{"step": 4, "lr": 0.05}\n{"step": 6, "l')
    assert rates_of(path) == [(2, 0.1), (4, 0.05)]
    assert rates_of(tmp_path / "none") == []


def test_the_newest_points_come_first_whatever_they_are_called(tmp_path: Path) -> None:
    embedding = Embedding(
        vectors=np.zeros((2, 3), np.float32),
        heads=("a", "b"),
        rows=[("x", "y")] * 2,
        thumbnails=np.zeros((2, 4, 4, 3), np.uint8),
    )
    for step, name in ((10, "logits"), (20, "features"), (100_000_000, "features")):
        write_embedding(tmp_path, step, name, embedding)
    lines = (tmp_path / "projector_config.pbtxt").read_text().splitlines()
    assert [re.findall(r'tensor_name: "(.*?)"', line)[0] for line in lines] == [
        "features, step 100000000",
        "features, step 20",
        "logits, step 10",
    ]


def looked_at(data: Data, predictions: list[int], sureness: list[float]) -> views.Looked:
    """The first images with these predictions of three classes."""
    index = np.arange(len(predictions))
    logits = torch.zeros(len(predictions), 3)
    logits[index, predictions] = torch.tensor(sureness)
    _, labels = data.val_at(index)
    return views.Looked(index=index, labels=labels, logits=logits, features=None, thumbnails=None)


def colour_below(sheet: Image.Image, place: int) -> str:
    """Of the text under an image of the first row."""
    below = np.asarray(sheet)[4 + 112 : 4 + 112 + 28, 4 + 116 * place : 116 * (place + 1)].reshape(-1, 3)
    return "red" if below[:, 0].min() > below[:, 1].min() else "green"


def test_right_is_green_and_wrong_is_red() -> None:
    data = make_data(make_source(num_val=6))  # labels 0 1 2 0 1 2
    sheet = views.draw_predictions(looked_at(data, [0, 1, 1, 0, 2, 2], [1.0] * 6), data)
    assert [colour_below(sheet, place) for place in range(6)] == ["green", "green", "red", "green", "red", "green"]


def test_the_surest_mistake_is_the_first() -> None:
    data = make_data(make_source(num_val=6))
    sheet = views.draw_mistakes(looked_at(data, [0, 2, 2, 1, 1, 0], [9.0, 1.0, 9.0, 3.0, 9.0, 2.0]), data)
    assert sheet is not None
    assert sheet.size == (3 * 116 + 4, 112 + 36), "three are wrong"
    images, _ = data.val_at(np.array([3, 5, 1]))
    for place, image in enumerate(images):
        seen = np.asarray(sheet)[4:116:28, 4 + 116 * place : 116 * (place + 1) : 28, 0]
        assert np.array_equal(seen, image[0].numpy())
    assert views.draw_mistakes(looked_at(data, [0, 1, 2], [1.0] * 3), data) is None


@pytest.mark.parametrize(("count", "size", "side"), [(2000, 224, 64), (2000, 28, 28), (1, 8, 8), (40_000, 64, 40)])
def test_a_sheet_of_thumbnails_is_no_wider_than_the_projector_takes(count: int, size: int, side: int) -> None:
    assert views.sprite_side(count, size) == side


def test_bars_of_many_classes_keep_their_names() -> None:
    confusion = np.eye(200, dtype=np.int64) * 10 + 1
    shown = pictures.pixels(pictures.classes_figure(confusion, [f"class {number}" for number in range(200)]))
    assert shown.shape[0] >= 200 * 15, "15 px a class"


# the training is the same


def both(tmp_path: Path, *words: str) -> tuple[Path, Path]:
    """A run with every view after each epoch, and one without any."""
    on = train(tmp_path / "on", *words, *ALL, f"{LOG}.each_epoch=true", f"{LOG}.histograms=1")
    return on, train(tmp_path / "off", *words)


@pytest.mark.parametrize(
    "words",
    [
        ("model.dropout=0.3", "train.ema=0.9", "dataset.augment.crop=pad", "dataset.augment.flip=0.5"),
        ("model.dropout=0.3", "dataset.augment.policy=trivialaugment", "dataset.workers=0", "train.accumulate=2"),
        ("scheduler=step", "train.clip_norm=0.1", "dataset.augment.mixup=0.4", "optim=sgd"),
    ],
    ids=["ema", "policy", "mixup"],
)
def test_weights_are_the_same_to_the_bit(words: tuple[str, ...], tmp_path: Path) -> None:
    assert_same(*both(tmp_path, "train.epochs=2", "train.limit_batches=5", "log.every=2", *words))


@pytest.mark.parametrize("features", ["auto", "never"])
def test_weights_are_the_same_with_frozen_parts(features: str, tmp_path: Path) -> None:
    start = weights(Net(), tmp_path / "first.pt")
    words = [*NET, start, f"dataset.cache_dir={tmp_path}/cache", f"transfer.features={features}"]
    words += ["train.epochs=2", "log.every=5", "train.ema=0.9"]
    named = [word.replace("conv2", "features.0") for word in ALL]
    on = train(tmp_path / "on", *words, *named, f"{LOG}.each_epoch=true", f"{LOG}.histograms=1")
    assert_same(on, train(tmp_path / "off", *words))
    assert set(EVERY["mistakes"][1] | {"the projector", "feature_maps"}) <= tags(on)
    vectors = np.loadtxt(next((on / "tb/projector").glob("*/tensors.tsv")), delimiter="\t")
    assert vectors.shape == (360, 36)


@pytest.mark.slow
def test_a_resumed_run_is_the_same_and_keeps_its_views(tmp_path: Path) -> None:
    words = ("model.dropout=0.3", "train.epochs=2", "train.limit_batches=5", "log.every=2", "train.ema=0.9")
    on, off = both(tmp_path, *words)
    cut = tmp_path / "cut"
    more = (*ALL, f"{LOG}.each_epoch=true", f"{LOG}.histograms=1")
    train(cut, *words, *more, "ckpt.keep=2")
    torch_file = cut / "checkpoints/epoch-0001.pt"
    assert main([f"resume={torch_file}", "log.level=warning"]) == 0
    assert_same(cut, off)
    names = [path.name for path in sorted((cut / "tb/projector").iterdir())]
    assert names == ["features-00000005", "features-00000010"]
    config = text_format.Parse((cut / "tb/projector_config.pbtxt").read_text(), ProjectorConfig())
    assert len(config.embeddings) == 2
    found, uncut = events(cut), events(on)
    for tag in uncut.Tags()["scalars"]:
        assert steps(found.Scalars(tag)) == steps(uncut.Scalars(tag)), tag
    for tag in uncut.Tags()["histograms"]:
        assert steps(found.Histograms(tag)) == [*range(1, 5), *range(6, 11)], "forgotten from the resumed step on"
    assert steps(found.Images("mistakes"))[-1] == 10


@pytest.mark.slow
def test_one_of_two_ranks_draws(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    words = ("hw=cpu", "hw.procs=2", "train.epochs=2", "train.limit_batches=4", "log.every=2", "train.precision=fp32")
    program(*words, *ALL, f"{LOG}.each_epoch=true", f"run.dir={directory}")
    assert len(list((directory / "tb").glob("events.*"))) == 1
    found = events(directory)
    assert steps(found.Images("predictions")) == [4, 8]
    assert steps(found.Histograms("gradients/conv1.weight")) == [2, 4, 6, 8]
    assert [row["step"] for row in rows(directory, "val")] == [4, 8]


# what goes wrong


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("feature_maps=conv3", "log.tensorboard.feature_maps=conv3 is no layer of LeNet5; did you mean conv"),
        ("feature_maps=fc1", "must be a layer that gives maps (N, C, H, W), and it gives (1, 120): take a convolution"),
        ("projector=pixels", "log.tensorboard.projector"),
        ("histograms=0", "log.tensorboard.histograms must be at least 1 step"),
    ],
)
def test_a_view_that_cannot_be_is_told_before_training(
    word: str, message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([f"run.dir={tmp_path}/run", "hw=cpu", f"{LOG}.{word}"]) == 2
    told = capfd.readouterr()
    assert message in " ".join((told.out + told.err).split())
    assert not (tmp_path / "run/metrics.jsonl").exists()


class NoHead(nn.Module):
    """Its logits are the sum of two layers', and no tracing goes through it."""

    def __init__(self, *, num_classes: int = 10) -> None:
        super().__init__()
        self.last = nn.Conv2d(1, num_classes + 2, 5)

    def forward(self, images: Tensor) -> Tensor:
        if torch.jit.is_tracing():
            raise RuntimeError("not to be traced\nfor a reason")
        return self.last(images).amax((2, 3))[:, 2:]


def test_a_network_that_cannot_be_traced_is_trained(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ("model._target_=test_tensorboard.NoHead", *FEW)
    directory = train(tmp_path / "run", *words, f"{LOG}.graph=true", f"{LOG}.filters=true")
    told = capfd.readouterr()
    line = "TensorBoard's graph cannot be drawn (not to be traced); the training goes on"
    assert (told.out + told.err).count("cannot be drawn") == 1
    assert line in (directory / "run.log").read_text()
    assert "filters" in tags(directory)
    assert digest(directory) == digest(train(tmp_path / "off", *words))


def test_a_network_without_a_known_head_has_logits_to_project(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = [f"run.dir={tmp_path}/run", "hw=cpu", *FEW, "model._target_=test_tensorboard.NoHead"]
    assert main([*words, f"{LOG}.projector=features"]) == 2
    assert "which layer gives the logits; take logits" in capfd.readouterr().err
    directory = train(tmp_path / "logits", *FEW, *words[-1:], f"{LOG}.projector=logits")
    (vectors,) = (directory / "tb/projector").glob("*/tensors.tsv")
    assert np.loadtxt(vectors, delimiter="\t").shape == (360, 10)


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(Torn(r"/events\.out", disk_full, nth=40), id="events"),
        pytest.param(Fault("os.fsync", disk_full, r"tensors\.tsv"), id="projector"),
    ],
)
def test_a_full_disk_is_told_once(fault: Fault | Torn, tmp_path: Path, uncut: Path) -> None:
    ended = run(tmp_path, *SMALL, *ALL, f"{LOG}.each_epoch=true", faults=[fault])
    assert ended.code == 0, ended.output
    assert digest(tmp_path / "run") == digest(uncut)
    warnings = [line for line in ended.output.splitlines() if "warning" in line]
    assert len(warnings) == 1, warnings
    assert "tb/ in run can no longer be written" in warnings[0]
    assert "the training goes on" in warnings[0]


def test_values_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    board = Board(tmp_path, on=True, step=None)
    board.histogram("some", torch.tensor([1.0, torch.inf, torch.nan, 2.0]), 1)
    board.histogram("none", torch.tensor([torch.inf, torch.nan]), 1)
    board.close()
    found = events(tmp_path)
    assert found.Histograms("some")[0].histogram_value.num == 2
    assert "none" not in found.Tags()["histograms"]
