"""show: what a file holds and what its network costs; a class that a file may not name is not built."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import component, train
from safetensors.torch import save_file
from torch import nn

from tinyexp.__main__ import main
from tinyexp.checkpoint import load
from tinyexp.cost import find_cost
from tinyexp.errors import ConfigError
from tinyexp.models import LeNet5

Show = Callable[..., str]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("show") / "run"
    return train(folder, "train.epochs=1", "train.limit_batches=4", "optim=sgd", "optim.momentum=0.9")


@pytest.fixture
def show(capsys: pytest.CaptureFixture[str]) -> Show:
    def call(*words: Any) -> str:
        assert main(["show", *map(str, words)]) == 0
        return capsys.readouterr().out

    return call


def line(text: str, name: str) -> str:
    """The line that begins with this name."""
    (found,) = re.findall(rf"^{re.escape(name)} +(.*?) *$", text, re.MULTILINE)
    return str(found)


def changed(run: Path, path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """The run's last.pt with a change."""
    content = load(run / "checkpoints/last.pt")
    change(content)
    torch.save(content, path)
    return path


def test_what_the_state_is(run: Path, show: Show) -> None:
    out = show(run)
    assert line(out, "parameters") == "61,706, all trained"
    assert line(out, "weights") == "0.2 MB"
    kept = ", ".join(f"{name} 0.2 MB" for name in ("weights", "gradients", "optimizer"))
    assert line(out, "memory") == f"0.7 MB in training beside activations: {kept}"
    assert re.search(r"^├── group 0 +lr=\S+ tensors=10 .*momentum=0\.9", out, re.MULTILINE)
    assert out.rstrip().splitlines()[-1].split() == ["10", "tensors", "61,706"]


def test_flops_are_two_for_each_multiply_add(run: Path, show: Show) -> None:
    """LeNet-5's by hand: two convolutions, then three layers."""
    products = 28 * 28 * 6 * 25 + 10 * 10 * 16 * 6 * 25 + 400 * 120 + 120 * 84 + 84 * 10
    told = f"{2 * products / 1e6:.2f} M for an image of 1x28x28, 2 a multiply-add of convolutions and matrix products"
    assert line(show(run), "FLOPs") == told


@pytest.mark.parametrize("name", ["resnet18", "vit_b_16", "regnet_y_400mf", "mobilenet_v3_small"])
def test_flops_are_torchvisions_own_figure(name: str) -> None:
    """Those that its weights state; vit's attention has another path without gradients, regnet none without values."""
    from torchvision.models import get_model_weights

    network = component("model", "tinyexp.models.zoo.torchvision_model", name=name)
    _, flops = find_cost(network, (), 1000, (3, 224, 224))
    assert flops / 2e9 == pytest.approx(get_model_weights(name).DEFAULT.meta["_ops"], abs=6e-4)


class Attentive(nn.Module):
    """Attention over rows; one that reads its images' values cannot be called where they have none."""

    def __init__(self, reads: bool) -> None:
        super().__init__()
        self.layer, self.head = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Linear(8, 2)
        self.reads = reads

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.reads:
            assert images.sum().item() == 0
        logits: torch.Tensor = self.head(self.layer(images[:, 0]).mean(1))
        return logits


def test_flops_are_the_same_where_values_are_read() -> None:
    """On the CPU, where attention without gradients would be one call of unknown cost."""
    figures = [
        find_cost(component("model", "test_show.Attentive", reads=reads), (), 2, (1, 5, 8)) for reads in (True, False)
    ]
    assert figures[0] == figures[1]
    linear = 5 * 8 * (3 * 8 + 8 + 16 + 16) + 8 * 2  # in, out, two feed-forward, head
    assert figures[0][1] == 2 * (linear + 2 * 5 * 5 * 8)


def test_finding_the_cost_computes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network is made without content, so that one of any size takes no memory."""
    devices = set()
    forward = LeNet5.forward

    def watched(self: LeNet5, images: torch.Tensor) -> torch.Tensor:
        devices.add(images.device.type)
        devices.update(parameter.device.type for parameter in self.parameters())
        return forward(self, images)

    monkeypatch.setattr(LeNet5, "forward", watched)
    find_cost(component("model", "tinyexp.models.lenet.LeNet5"), (), 10, (1, 28, 28))
    assert devices == {"meta"}


def test_each_tensors_mean_and_deviation(run: Path, show: Show, tmp_path: Path) -> None:
    bias = torch.tensor([1.0, 3.0] * 3)
    path = changed(run, tmp_path / "a.pt", lambda content: content["state"]["model"].update({"conv1.bias": bias}))
    assert line(show(path), "conv1.bias").split() == ["6", "float32", "6", "yes", "2", "1"]


def test_what_is_frozen_is_told(run: Path, show: Show, tmp_path: Path) -> None:
    frozen = ["conv1.weight", "conv1.bias"]
    path = changed(run, tmp_path / "a.pt", lambda content: content["state"].update(frozen=frozen))
    out = show(path)
    assert line(out, "parameters") == "61,706, 61,550 of them trained"
    assert [line(out, name).split()[3] for name in (*frozen, "fc3.bias")] == ["no", "no", "yes"]

    def thaw(content: dict[str, Any]) -> None:
        content["state"]["frozen"] = frozen
        content["config"]["transfer"] = {**content["config"].get("transfer", {}), "freeze": frozen, "unfreeze_at": 5}

    out = show(changed(run, tmp_path / "b.pt", thaw))
    assert re.search(r"^conv1\.bias .* from epoch 6 ", out, re.MULTILINE)
    assert line(out, "parameters") == "61,706, all trained"

    path = changed(run, tmp_path / "c.pt", lambda content: content["state"].pop("frozen", None))
    assert line(show(path), "parameters") == "61,706, all trained"  # of an older version


def test_buffers_are_no_parameters(tmp_path: Path, show: Show) -> None:
    folder = train(
        tmp_path / "run",
        *("model=torchvision", "model.name=shufflenet_v2_x0_5", "dataset.image_size=32"),
        *("train.epochs=1", "train.limit_batches=1", "train.batch_size=4"),
    )
    out = show(folder)
    assert line(out, "conv1.1.running_mean").split()[3] == "-"
    assert line(out, "conv1.1.num_batches_tracked").split()[:6] == ["scalar", "int64", "1", "-", "-", "-"]
    assert line(out, "conv1.1.weight").split()[3] == "yes"
    from torchvision.models import shufflenet_v2_x0_5

    model = shufflenet_v2_x0_5(num_classes=10)
    count = sum(parameter.numel() for parameter in model.parameters()) - 24 * 2 * 9  # one channel, not three
    assert line(out, "parameters") == f"{count:,}, all trained"


def test_a_network_that_cannot_be_built_is_no_failure(run: Path, show: Show, tmp_path: Path) -> None:
    def smaller(content: dict[str, Any]) -> None:
        content["data"]["image_shape"] = [1, 5, 5]

    def unknown(content: dict[str, Any]) -> None:
        content["config"]["model"]["depth"] = 3

    for change, told in ((smaller, "needs images of at least 12 px"), (unknown, "model.depth is no argument of")):
        out = show(changed(run, tmp_path / "a.pt", change))
        assert re.match(rf"not known, since the network is not built: .*{told}", line(out, "FLOPs"))
        assert line(out, "parameters") == "61,706, all trained"


def test_a_network_that_takes_no_such_image(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"torch\.nn\.Linear does not take an image of 1x8x8: "):
        find_cost(component("model", "torch.nn.Linear", in_features=3, out_features=2), (), 2, (1, 8, 8))
    assert issubclass(nn.Linear, nn.Module)


def test_a_class_that_a_file_may_not_name_is_not_built(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    marker = tmp_path / "marker"

    def forge(content: dict[str, Any]) -> None:
        content["config"]["model"] = {"_target_": "pathlib.Path.touch", "self": str(marker)}
        content["config"]["trust"] = ["*"]

    assert main(["show", str(changed(run, tmp_path / "a.pt", forge))]) == 2
    assert "model._target_=pathlib.Path.touch comes from a file that was read back" in capsys.readouterr().err
    assert not marker.exists()


def test_a_checkpoint_of_weights_alone_has_no_memory_of_training(run: Path, show: Show) -> None:
    out = show(run / "checkpoints/best.pt")
    assert "in training beside activations" not in out
    assert line(out, "weights") == "0.2 MB"


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_of_any_origin(suffix: str, tmp_path: Path, show: Show) -> None:
    path = tmp_path / f"net{suffix}"
    tensors = {
        "head.weight": torch.full((2, 3), 0.5).half(),
        "steps": torch.tensor(7),
        "[red]\x1b[2J": torch.zeros(0),
    }
    save_file(tensors, path) if suffix == ".safetensors" else torch.save({"state_dict": tensors}, path)
    out = show(path)
    assert out.startswith(f"{path}\n")
    assert line(out, "head.weight").split() == ["2x3", "float16", "6", "0.5", "0"]
    assert line(out, "steps").split() == ["scalar", "int64", "1", "-", "-"]
    assert "\x1b" not in out
    assert line(out, r"[red]\x1b[2J").split() == ["0", "float32", "0", "-", "-"]
    assert line(out, "3 tensors").split() == ["7"]
