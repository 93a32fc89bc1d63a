"""export: a file for other programs gives the original's logits, or there is none; and nothing that stood is lost."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import begin, component, rows, train, write_image, write_mnist
from test_weights import Evil
from torch import Tensor, nn

import tinyexp
from tinyexp import export
from tinyexp.__main__ import main
from tinyexp.checkpoint import load
from tinyexp.compose import compose
from tinyexp.errors import ConfigError, IntegrityError
from tinyexp.models import LeNet5
from tinyexp.verbs import export as verb

NAME = "digits_lenet5_epoch1"
FORMATS = {
    "state_dict": ".pth",
    "safetensors": ".safetensors",
    "onnx": ".onnx",
}
EACH = [pytest.param(name, marks=pytest.mark.slow if name == "onnx" else ()) for name in FORMATS]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose averaged weights are those to use."""
    folder = tmp_path_factory.mktemp("export") / "run"
    return train(folder, "train.epochs=1", "train.limit_batches=12", "train.ema=0.5", "model.dropout=0.5")


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resnet") / "run"
    return train(folder, "model=resnet18", "train.epochs=1", "train.batch_size=32", "optim.lr=1e-3")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, where files go unless --out says another."""
    folder = tmp_path / "place"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def val_images() -> tuple[Tensor, Tensor]:
    """Images (360, 1, 28, 28) uint8 of the digits, and their labels (360,)."""
    batches = list(begin()[1].val())
    return torch.cat([batch.images for batch in batches]), torch.cat([batch.labels for batch in batches])


# what is written


@pytest.mark.parametrize("format", EACH)
def test_a_file_is_written_and_what_was_checked_is_told(
    run: Path, place: Path, format: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(run), "--format", format]) == 0
    out, err = capsys.readouterr()
    name = NAME + FORMATS[format]
    difference = r"\d\.?\d*e-\d\d" if format == "onnx" else "0"
    tolerance = r"0\.00\d+" if format == "onnx" else "0"
    assert re.fullmatch(
        rf"checked on 256 val images: greatest difference of a logit {difference}, tolerance {tolerance}\n"
        rf"wrote {name} \({format}, 0\.\d MB\)\n",
        out,
    )
    assert err == ""
    assert [path.name for path in place.iterdir()] == [name]


def test_a_state_dict_is_best_pts_for_any_program(run: Path) -> None:
    assert main(["export", str(run)]) == 0
    content = Path(f"{NAME}.pth").read_bytes()
    tensors = torch.load(io.BytesIO(content), weights_only=True)
    expected = load(run / "checkpoints/best.pt")["state"]["model"]
    assert list(tensors) == list(expected)
    for name, tensor in tensors.items():
        assert torch.equal(tensor, expected[name])
        assert (tensor.dtype, tensor.device.type, tensor.is_contiguous()) == (torch.float32, "cpu", True)
        assert tensor.untyped_storage().nbytes() == 4 * tensor.numel()
    LeNet5().load_state_dict(tensors)
    assert len(content) < 4 * 61_706 + 10_000  # no optimizer


def test_each_tensor_lies_in_a_storage_of_its_own_in_order() -> None:
    """Whatever the network's layout: channels_last is this program's matter, and safetensors take no shared storage."""
    both = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    both["b"].weight = both["a"].weight
    both.register_buffer("laid", torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last))
    tensors = export._tensors(replace(begin()[2].network, model=both))
    assert len({tensor.data_ptr() for tensor in tensors.values()}) == len(tensors) == 5
    for name, tensor in tensors.items():
        assert tensor.is_contiguous()
        assert torch.equal(tensor, both.state_dict()[name])


def test_a_checkpoint_gives_its_averaged_weights(run: Path) -> None:
    assert main(["export", str(run / "checkpoints/last.pt"), "--out", "last.pth"]) == 0
    state = load(run / "checkpoints/last.pt")["state"]
    tensors = torch.load("last.pth", weights_only=True)
    assert all(torch.equal(tensors[name], tensor) for name, tensor in state["ema"].items())
    assert not all(torch.equal(tensors[name], tensor) for name, tensor in state["model"].items())


def test_safetensors_say_what_using_them_needs(run: Path) -> None:
    from safetensors import safe_open

    assert main(["export", str(run), "--format=safetensors"]) == 0
    with safe_open(f"{NAME}.safetensors", "pt") as file:
        about = file.metadata()
        network = LeNet5()
        network.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    check_about(about, run)
    assert about["format"] == "pt"
    images, _ = val_images()
    with torch.no_grad():
        got = network.eval()(by_hand(images, about))
        torch.testing.assert_close(got, tinyexp.load(run).network(images), rtol=1e-5, atol=1e-5)


def check_about(about: dict[str, str], run: Path) -> None:
    data = load(run / "checkpoints/best.pt")["data"]
    for key in ("classes", "names", "image_shape", "mean", "std"):
        assert json.loads(about[key]) == data[key]
    assert about["tinyexp"] == tinyexp.__version__


def by_hand(images: Tensor, about: dict[str, str]) -> Tensor:
    """Normalised as a file's words say."""
    mean, std = (torch.tensor(json.loads(about[key])).view(1, -1, 1, 1) for key in ("mean", "std"))
    return (images / 255 - mean) / std


@pytest.mark.slow
def test_onnx_takes_any_number_of_images_and_agrees(resnet: Path) -> None:
    import onnxruntime

    assert main(["export", str(resnet), "--format", "onnx"]) == 0
    session = onnxruntime.InferenceSession("digits_resnet18_epoch1.onnx", providers=["CPUExecutionProvider"])
    assert [(each.name, each.shape[1:]) for each in session.get_inputs()] == [("images", [1, 28, 28])]
    assert [(each.name, each.shape[1:]) for each in session.get_outputs()] == [("logits", [10])]
    about = session.get_modelmeta().custom_metadata_map
    check_about(about, resnet)
    images, _ = val_images()
    with torch.no_grad():
        expected = tinyexp.load(resnet).network(images).numpy()
    for count in (1, 3, 360):
        (got,) = session.run(["logits"], {"images": by_hand(images[:count], about).numpy()})
        assert np.abs(got - expected[:count]).max() <= 1e-4 * np.abs(expected).max()


PLAIN = """
import sys

import numpy as np
import torch
import torchvision

data = np.load("val.npz")
images, labels = torch.from_numpy(data["images"]), torch.from_numpy(data["labels"])
mean, std = data["mean"].item(), data["std"].item()

net = torchvision.models.resnet18(num_classes=10)
net.conv1 = torch.nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)  # grey images
net.load_state_dict(torch.load("digits_resnet18_epoch1.pth", weights_only=True))
net.eval()

right = 0
with torch.no_grad():
    for part, truth in zip(images.split(64), labels.split(64)):
        logits = net((part.float() / 255 - mean) / std)
        right += (logits.argmax(1) == truth).sum().item()
assert not any(name.startswith("tinyexp") for name in sys.modules)
print(right / len(labels))
"""


@pytest.mark.slow
def test_torchvision_alone_scores_as_the_run_did(resnet: Path) -> None:
    assert main(["export", str(resnet)]) == 0
    images, labels = val_images()
    data = load(resnet / "checkpoints/best.pt")["data"]
    np.savez("val.npz", images=images.numpy(), labels=labels.numpy(), mean=data["mean"], std=data["std"])
    done = subprocess.run([sys.executable, "-c", PLAIN], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (logged,) = (row["top1"] for row in rows(resnet, "val"))
    assert logged > 0.8
    assert float(done.stdout) == logged


@pytest.mark.slow
def test_torchvisions_own_network_takes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With image files, of which those that the check needs are decoded, and nothing is kept of them."""
    from torchvision.models import shufflenet_v2_x0_5

    for number in range(4):
        for place in (f"train/ant/{number}", f"train/bee/{number}", f"val/ant/{number}", f"val/bee/{number}"):
            write_image(tmp_path / f"data/{place}.png", (60 * number, 200, 90))
    data = [f"dataset.root={tmp_path}/data", f"dataset.cache_dir={tmp_path}/cache", "dataset.image_size=32"]
    folder = train(
        tmp_path / "run",
        *("dataset=imagefolder", *data, "dataset.workers=0", "model=torchvision", "model.name=shufflenet_v2_x0_5"),
        *("train.epochs=1", "train.batch_size=4"),
    )
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").mkdir()
    capsys.readouterr()
    assert main(["export", str(folder)]) == 0
    assert "checked on 8 val images: greatest difference of a logit 0, tolerance 0" in capsys.readouterr().out
    assert list((tmp_path / "cache").rglob("pixels")) == []
    network = shufflenet_v2_x0_5(num_classes=2)
    network.load_state_dict(torch.load("imagefolder_shufflenet_v2_x0_5_epoch1.pth", weights_only=True))


# what it is checked on


def test_without_its_data_it_is_checked_on_noise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_mnist(tmp_path / "data")
    folder = train(tmp_path / "run", "dataset=mnist", f"dataset.root={data}", "train.epochs=1", "train.batch_size=10")
    there = shutil.move(data, tmp_path / "elsewhere")
    assert main(["export", str(folder)]) == 0
    out = capsys.readouterr().out
    assert re.search(r"checked on 256 random images, since val images are not to be had: .*data.*: .* 0, toler", out)
    assert main(["export", str(folder), "--out=b.pth", f"dataset.root={there}"]) == 0
    assert "checked on 20 val images: " in capsys.readouterr().out
    assert Path("mnist_lenet5_epoch1.pth").read_bytes() == Path("b.pth").read_bytes()


@pytest.mark.parametrize("format", ["state_dict", "safetensors"])
def test_a_file_of_other_weights_is_not_left(
    run: Path, place: Path, format: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = export._tensors

    def changed(network: Any) -> dict[str, Tensor]:
        tensors = original(network)
        tensors["fc3.bias"][4] += 1e-4
        return tensors

    monkeypatch.setattr(export, "_tensors", changed)
    assert main(["export", str(run), "--format", format]) == 3
    assert "is not written: read back, its network is not the original (greatest diff" in capsys.readouterr().err
    assert list(place.iterdir()) == []


@pytest.mark.slow
def test_onnx_of_other_weights_is_not_left(
    run: Path, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    encode = verb.ONNX.encode

    def changed(network: Any, about: dict[str, str]) -> bytes:
        with torch.no_grad():
            network.model.fc3.bias[4] += 1e-2
            content = encode(network, about)
            network.model.fc3.bias[4] -= 1e-2
        return content

    monkeypatch.setitem(verb._FORMATS, "onnx", replace(verb.ONNX, encode=changed))
    assert main(["export", str(run), "--format", "onnx"]) == 3
    assert re.search(r"is not written: .*difference of a logit 0\.01, tolerance 0\.00", capsys.readouterr().err)
    monkeypatch.setitem(verb._FORMATS, "onnx", replace(verb.ONNX, encode=lambda *_: b"no model"))
    assert main(["export", str(run), "--format", "onnx"]) == 3
    assert "onnxruntime does not take what was written" in capsys.readouterr().err
    assert list(place.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "passes"),
    [
        (lambda logits: logits, True),
        (lambda logits: logits + 0.009, True),
        (lambda logits: logits + 0.011, False),
        (lambda logits: logits * float("nan"), False),
        (lambda logits: torch.where(logits == logits[0, 0], float("nan"), logits), False),
        (lambda logits: logits * float("inf"), False),
    ],
    ids=["same", "within", "beyond", "nan", "a nan in the first", "inf"],
)
def test_the_tolerance_is_of_the_largest_logit(change: Callable[[Tensor], Tensor], passes: bool) -> None:
    images = torch.arange(70, dtype=torch.uint8).view(-1, 1, 1, 1)

    def network(part: Tensor) -> Tensor:
        """The last image's logits are the largest: 100 and -100."""
        value = part.flatten().float() / 69 * 100
        return torch.stack([value, -value], 1)

    sizes = []

    def original(part: Tensor) -> Tensor:
        sizes.append(len(part))
        return network(part)

    found = export.compare(original, lambda part: change(network(part)), images, 1e-4)
    assert found.tolerance == pytest.approx(0.01)
    assert found.passes is passes
    assert sizes[0] == 1  # a batch of one, and the others: a number of images that is fixed in the file is told
    assert sum(sizes) == 70


def test_logits_of_another_shape_are_told() -> None:
    images = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    with pytest.raises(IntegrityError, match=r"logits of \(2, 3\) are of \(2, 4\) in the file"):
        export.compare(lambda part: torch.zeros(len(part), 3), lambda part: torch.zeros(len(part), 4), images, 0)


# what is refused


def test_no_file_is_replaced(run: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path(f"{NAME}.pth").write_text("precious")
    Path("link.pth").symlink_to("nowhere")
    for words in ([], ["--out", f"{NAME}.pth"], ["--out", str(place)], ["--out", "link.pth"]):
        assert main(["export", str(run), *words]) == 2
        assert "is there already, and export replaces no file: give --out FILE, or remove" in capsys.readouterr().err
    assert Path(f"{NAME}.pth").read_text() == "precious"
    assert len(list(place.iterdir())) == 2


def test_a_file_that_comes_while_it_is_checked_stays(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = verb.STATE_DICT.read

    def slow(content: bytes, other: Any) -> Any:
        Path(f"{NAME}.pth").write_text("precious")
        return read(content, other)

    monkeypatch.setitem(verb._FORMATS, "state_dict", replace(verb.STATE_DICT, read=slow))
    assert main(["export", str(run)]) == 2
    assert Path(f"{NAME}.pth").read_text() == "precious"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--format", "onx"], "--format must be state_dict, safetensors or onnx, got onx; did you mean onnx?"),
        (["--out", "net.onnx"], "--out net.onnx must end in .pth or .pt or .th, or --format be another"),
        (["--format", "onnx", "--out", "net.pth"], "--out net.pth must end in .onnx, or --format be another"),
        (["--out", "no/such/net.pth"], "no/such is no folder: make it first, or give another --out FILE"),
        (["model=lenet6"], "export takes no overrides but dataset.archive, dataset.cache_dir, dataset.root, trust"),
        (["train.precision=bf16"], "export takes no overrides but"),
    ],
)
def test_what_is_wrong_is_told(
    run: Path, place: Path, words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(run), *words]) == 2
    assert told in capsys.readouterr().err
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_without_its_packages_onnx_says_how_to_get_them(
    run: Path, package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["export", str(run), "--format", "onnx"]) == 2
    assert capsys.readouterr().err.endswith("pip install 'tinyexp[onnx]'\n")
    assert main(["export", str(run)]) == 0


@pytest.mark.slow
def test_what_onnx_cannot_have_is_told(run: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network whose code looks at its images' values cannot be traced; a state dict takes it."""
    forward = LeNet5.forward
    monkeypatch.setattr(LeNet5, "forward", lambda self, x: forward(self, x) * (1 if x.sum().item() > 1e9 else 2))
    with pytest.raises(ConfigError, match=r"LeNet5 cannot be written as onnx: .*--format state_dict and safetensors"):
        verb.main([str(run)], [], {"format": "onnx"})
    assert list(place.iterdir()) == []
    assert main(["export", str(run)]) == 0


def test_a_file_may_name_only_what_is_trusted(
    run: Path, tmp_path: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forged = tmp_path / "run"
    shutil.copytree(run, forged)
    config = (forged / "config.yaml").read_text()
    (forged / "config.yaml").write_text(config.replace("tinyexp.models.lenet.LeNet5", "mypkg.net.Net"))
    assert main(["export", str(forged)]) == 2
    path = forged / "checkpoints/best.pt"
    content = load(path)
    content["config"]["model"]["_target_"] = "os.system"
    torch.save(content, path)
    (forged / "config.yaml").write_text(config)
    for each in (forged, path):
        assert main(["export", str(each)]) == 2
        assert "model._target_=os.system comes from a file that was read back" in capsys.readouterr().err
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("forced", [False, True], ids=["", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"])
def test_code_in_a_checkpoint_is_not_run(
    run: Path, tmp_path: Path, place: Path, forced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if forced:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    marker, path = tmp_path / "marker", tmp_path / "evil.pt"
    torch.save(load(run / "checkpoints/best.pt") | {"evil": Evil(marker)}, path)
    assert main(["export", str(path)]) == 3
    assert not marker.exists()
    assert list(place.iterdir()) == []


def test_a_name_of_a_config_is_no_path() -> None:
    plain = compose([])
    config = replace(plain, model=component("model", "mypkg.Net", name="../../etc/x y\n"))
    assert verb._stem(config, 3) == "digits_..-..-etc-x-y-_epoch3"
    assert verb._stem(plain, 3) == "digits_lenet5_epoch3"
    tiny = replace(
        compose(["model=resnet50"]), dataset=component("dataset", "tinyexp.data.tiny_imagenet.tiny_imagenet")
    )
    assert verb._stem(tiny, 25) == "tiny_imagenet_resnet50_epoch25"
