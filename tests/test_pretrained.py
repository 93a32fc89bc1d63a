"""Weights by name: found in torch.hub's folder or fetched into it once, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest
import torch
import torchvision
from faults import Replaced, run
from helpers import LEAN, PLAIN, train
from test_ranks import program
from torch import Tensor, nn

from tinyexp.__main__ import main
from tinyexp.checkpoint import load
from tinyexp.compose import compose
from tinyexp.config import Config
from tinyexp.data.imagenet import imagenet_ids
from tinyexp.errors import ConfigError, IntegrityError, TinyexpError
from tinyexp.models.zoo import torchvision_model
from tinyexp.pretrained import find_weights
from tinyexp.transfer import Transfer, Weights

SMALLEST = "shufflenet_v2_x0_5"  # 1.4 million parameters
FILE = "shufflenetv2_x0.5-f707e7126e.pth"
MODEL = ("model=torchvision", f"model.name={SMALLEST}")
SHORT = (*LEAN, *MODEL, "train.epochs=1", "train.limit_batches=1", "train.batch_size=4", "train.eval_batch_size=4")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torch.hub's folder for checkpoints; nothing leads out of this machine."""

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.setattr("torch.hub.urlopen", unreachable)
    folder = tmp_path / "hub" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture(scope="session")
def original() -> dict[str, Tensor]:
    torch.manual_seed(8)
    return torchvision_model(name=SMALLEST, num_classes=1000).state_dict()


@pytest.fixture
def there(hub: Path, original: dict[str, Tensor]) -> Path:
    torch.save(original, hub / FILE)
    return hub


def named(weights: str, name: str = SMALLEST, *words: str) -> Config:
    return compose(["hw=cpu", "model=torchvision", f"model.name={name}", f"model.weights={weights}", *words])


# found


@pytest.mark.parametrize("name", ["DEFAULT", "IMAGENET1K_V1"])
def test_a_file_that_is_there_is_taken(there: Path, name: str, original: dict[str, Tensor]) -> None:
    found = find_weights(named(name))
    assert found is not None
    assert found.tensors.keys() == original.keys()
    assert all(torch.equal(tensor, original[key]) for key, tensor in found.tensors.items())
    assert (found.origin, found.classes) == (str(there / FILE), imagenet_ids())
    assert found.names is not None
    assert (len(found.names), found.names[0]) == (1000, "tench")


@pytest.mark.parametrize("target", [f"torchvision.models.{SMALLEST}", f"torchvision.models.shufflenetv2.{SMALLEST}"])
def test_a_network_by_its_own_name(there: Path, target: str) -> None:
    config = compose(["hw=cpu", f"model._target_={target}", "model.weights=DEFAULT"])
    found = find_weights(config)
    assert found is not None
    assert found.origin == str(there / FILE)


def test_a_run_takes_them_and_tells_where_from(
    there: Path, tmp_path: Path, original: dict[str, Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*SHORT, "model.weights=DEFAULT", "transfer.freeze=loaded", "log.level=info"]
    assert main([*words, f"run.dir={tmp_path}/run", f"dataset.cache_dir={tmp_path}"]) == 0
    said = capsys.readouterr()
    assert str(there / FILE) in "".join(said.out.split("\n"))
    assert said.err == ""
    state = load(tmp_path / "run" / "checkpoints" / "last.pt")["state"]["model"]
    for (
        name,
        tensor,
    ) in state.items():  # digits are grey: the first convolution has another shape, and is no more frozen
        if not name.startswith("fc.") and tensor.shape == original[name].shape:
            assert torch.equal(tensor, original[name]), name


def test_which_of_several_is_the_default(hub: Path) -> None:
    for name, number in (("DEFAULT", 2), ("IMAGENET1K_V1", 1)):
        with pytest.raises(ConfigError, match=f"resnet50-{'11ad3fa6' if number == 2 else '0676ba61'}.pth"):
            find_weights(named(name, "resnet50"))


# absent


def test_without_a_network_the_error_says_what_to_put_where(
    hub: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*SHORT, "model.weights=DEFAULT", f"run.dir={tmp_path}/run"]) == 2
    error = capsys.readouterr().err
    url = f"https://download.pytorch.org/models/{FILE}"
    assert (
        f"{url} cannot be fetched (Network is unreachable): put {FILE} into {hub}, or give model.weights=FILE" in error
    )
    assert "Traceback" not in error
    assert error.count("\n") == 1
    assert list(hub.iterdir()) == []
    assert not list((tmp_path / "run").rglob("*.pt"))
    summary = tmp_path / "run" / "summary.json"  # its directory says how it ended, or there is none
    assert not summary.parent.exists() or json.loads(summary.read_text())["status"] == "failed"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            (*MODEL, "model.weights=IMAGENET1K_V2"),
            r"is none of shufflenet_v2_x0_5's: IMAGENET1K_V1, DEFAULT; did you m",
        ),
        ((*MODEL, "model.weights=DEFUALT"), "did you mean DEFAULT"),
        (("model.weights=DEFAULT",), "there are no named weights of tinyexp.models.lenet.LeNet5; give a file or a run"),
        (("model._target_=torchvision.models.DenseNet", "model.weights=DEFAULT"), "DenseNet.*give a file"),
        (("model._target_=torchvision.models.ResNet", "model.weights=DEFAULT"), "ResNet.*give a file"),
    ],
)
def test_names_that_are_none(hub: Path, words: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_weights(compose(["hw=cpu", *words]))


def test_a_network_of_torchvision_without_weights(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchvision.models.get_model_weights", lambda _: ())
    with pytest.raises(ConfigError, match=f"torchvision has no weights of {SMALLEST}; give a file"):
        find_weights(named("DEFAULT"))


def test_a_file_and_a_run_are_two_beginnings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SHORT, "model.weights=DEFAULT", f"init_from={tmp_path}"]) == 2
    assert "init_from and model.weights are both what a run begins from" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"PK\x03\x04 and no more"])
def test_what_is_no_file_of_weights(hub: Path, content: bytes) -> None:
    """As a portal's login page is, saved by hand."""
    (hub / FILE).write_bytes(content)
    with pytest.raises(IntegrityError, match=FILE):
        find_weights(named("DEFAULT"))


# fetched


@pytest.fixture
def shop(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bytes, str], list[str]]]:
    """Offers a file, under a name, as torchvision's weights of SMALLEST; what was asked for is in the list."""
    chosen = torchvision.models.get_model_weights(SMALLEST)["DEFAULT"].value
    before = chosen.url

    def offer(content: bytes, name: str) -> list[str]:
        asked: list[str] = []
        path = tmp_path / "shop" / name
        path.parent.mkdir()
        path.write_bytes(content)

        def serve(request: Any) -> Any:
            asked.append(request.full_url)
            return urlopen(request)

        monkeypatch.setattr("torch.hub.urlopen", serve)
        object.__setattr__(chosen, "url", path.as_uri())
        return asked

    yield offer
    object.__setattr__(chosen, "url", before)


def saved(tensors: dict[str, Tensor], path: Path) -> bytes:
    torch.save(tensors, path)
    return path.read_bytes()


def test_it_is_fetched_once(
    shop: Callable[[bytes, str], list[str]], hub: Path, original: dict[str, Tensor], tmp_path: Path
) -> None:
    content = saved(original, tmp_path / "made.pth")
    name = f"net-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    asked = shop(content, name)
    for _ in range(2):
        found = find_weights(named("DEFAULT"))
        assert found is not None
        assert all(torch.equal(tensor, original[key]) for key, tensor in found.tensors.items())
    assert len(asked) == 1
    assert [path.name for path in hub.iterdir()] == [name]


def test_a_wrong_hash_is_an_error_and_nothing_is_kept(
    shop: Callable[[bytes, str], list[str]], hub: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shop(b"another file", "net-0123abcd.pth")
    assert main([*SHORT, "model.weights=DEFAULT", f"run.dir={tmp_path}/run"]) != 0
    error = capsys.readouterr().err
    assert "net-0123abcd.pth" in error
    assert "invalid hash value" in error
    assert "Traceback" not in error
    assert list(hub.iterdir()) == []


def test_a_folder_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hub").write_text("a file")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    with pytest.raises(TinyexpError, match="hub"):
        find_weights(named("DEFAULT"))


# names that torchvision itself maps to those of its networks


def emptied(model: nn.Module) -> dict[str, Tensor]:
    """Tensors of its names and shapes that take no room; each has a number of its own."""
    return {
        name: torch.full((), i + 1).to(tensor.dtype).expand(tensor.shape)
        for i, (name, tensor) in enumerate(model.state_dict().items())
    }


@pytest.mark.parametrize(
    ("name", "file", "older"),
    [
        (
            "densenet121",
            "densenet121-a639ec97.pth",
            {f".{part}{i}.": f".{part}.{i}." for part in ("norm", "conv") for i in (1, 2)},
        ),
        ("vit_b_16", "vit_b_16-c867db91.pth", {".mlp.0.": ".mlp.linear_1.", ".mlp.3.": ".mlp.linear_2."}),
    ],
)
def test_files_with_names_of_older_networks(hub: Path, name: str, file: str, older: dict[str, str]) -> None:
    """As those that torchvision offers are: what it loads of them is what is loaded here, all of it."""
    with torch.device("meta"):
        shapes = torchvision.models.get_model(name, num_classes=1000)
    tensors = emptied(shapes)
    renamed = {}
    for key, tensor in tensors.items():
        other = key
        for new, old in older.items():
            other = other.replace(new, old) if "layer" in key else other
        if not key.endswith("num_batches_tracked"):  # which came later too
            renamed[other] = tensor
    tensors = {key: tensor for key, tensor in tensors.items() if not key.endswith("num_batches_tracked")}
    assert renamed.keys() != tensors.keys()
    torch.save(renamed, hub / file)
    found = find_weights(named("IMAGENET1K_V1", name))
    assert found is not None
    assert set(tensors) <= set(found.tensors), sorted(set(tensors) - set(found.tensors))[:3]
    assert all(found.tensors[key].flatten()[0] == tensors[key].flatten()[0] for key in tensors)


def test_rows_of_their_head_are_imagenets(there: Path, original: dict[str, Tensor]) -> None:
    found = find_weights(named("DEFAULT"))
    assert isinstance(found, Weights)
    model = torchvision_model(name=SMALLEST, num_classes=2)
    classes = ("n02124075", "n01443537")
    Transfer(found, PLAIN.transfer, "fc", classes, classes).into(model)
    rows = [imagenet_ids().index(name) for name in classes]
    assert torch.equal(model.fc.weight, original["fc.weight"][rows])


# not needed


@pytest.mark.parametrize("words", [("transfer=scratch", "model.weights=DEFAULT"), ("model.weights=null",)])
def test_what_is_not_loaded_is_not_looked_for(hub: Path, words: tuple[str, ...]) -> None:
    assert find_weights(compose(["hw=cpu", *MODEL, *words])) is None


def test_scratch_is_a_run_of_random_weights(hub: Path, tmp_path: Path) -> None:
    runs = [
        train(tmp_path / name, *SHORT[len(LEAN) :], *words, f"dataset.cache_dir={tmp_path}")
        for name, words in (("scratch", ("transfer=scratch", "model.weights=DEFAULT")), ("none", ()))
    ]
    mine, theirs = (load(each / "checkpoints" / "last.pt")["state"]["model"] for each in runs)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())
    assert not (runs[0] / "receipt.json").exists()


def unreachable(*_: Any, **__: Any) -> None:
    raise URLError("Network is unreachable")


@pytest.mark.slow
def test_a_resumed_run_needs_no_file(there: Path, tmp_path: Path) -> None:
    short = (*SHORT, "transfer.freeze=loaded", "model.weights=DEFAULT", "run.dir=run", "train.epochs=2")
    faults = [
        Replaced("torch.hub._hub_dir", str(there.parent)),
        Replaced("torch.hub.urlopen", unreachable),
    ]
    cut = run(tmp_path, *short, "train.max_time=0.001", faults=faults)
    assert cut.code == 75, cut.output
    (there / FILE).unlink()
    ended = run(tmp_path, "resume=run", "train.max_time=null", faults=faults)
    assert ended.code == 0, ended.output
    again = run(tmp_path, *short, "run.dir=other", faults=faults)
    assert again.code == 2, "the file was not needed at all"


@pytest.mark.slow
def test_one_rank_reads_the_file(there: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one's process has it nowhere."""
    (tmp_path / "sitecustomize.py").write_text(
        f"import os\nif os.environ.get('RANK') == '1': os.environ['TORCH_HOME'] = {str(tmp_path / 'nowhere')!r}\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    words = (*SHORT, "model.weights=DEFAULT", f"dataset.cache_dir={tmp_path}", "train.batch_size=8")
    program(*words, "hw.procs=2", f"run.dir={tmp_path}/together")
    assert not (tmp_path / "nowhere").exists()
    assert (tmp_path / "together" / "receipt.json").exists()


# timm's


def test_timms_weights_are_of_the_tag_in_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed")
    asked = []

    def create(name: str, **arguments: Any) -> nn.Module:
        asked.append((name, arguments))
        return nn.Linear(2, 3)

    monkeypatch.setattr(timm, "create_model", create)
    config = compose(["hw=cpu", "model=timm", "model.name=resnet18.a1_in1k", "model.weights=DEFAULT"])
    found = find_weights(config)
    assert found is not None
    assert set(found.tensors) == {"weight", "bias"}
    assert asked == [("resnet18.a1_in1k", {"pretrained": True})]
    with pytest.raises(ConfigError, match=r"of timm's give DEFAULT, and the tag as model.name"):
        find_weights(compose(["hw=cpu", "model=timm", "model.weights=a1_in1k"]))


def test_timm_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed")

    def create(*_: Any, **__: Any) -> None:
        raise OSError("no network\nand many more lines")

    monkeypatch.setattr(timm, "create_model", create)
    with pytest.raises(ConfigError, match=r"cannot be fetched into its cache \(HF_HOME\): no network; give model.wei"):
        find_weights(compose(["hw=cpu", "model=timm", "model.weights=DEFAULT"]))
