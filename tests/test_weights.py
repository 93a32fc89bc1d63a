"""Weights from files of any origin: the same tensors under the same names, or an error, and never code."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import train
from safetensors.torch import save_file
from torch import Tensor

from tinyexp.__main__ import main
from tinyexp.checkpoint import load
from tinyexp.errors import ConfigError, IntegrityError
from tinyexp.models import LeNet5
from tinyexp.weights import read_weights

STATE = LeNet5().state_dict()
INSIDE = ("state_dict", "model_state_dict", "model")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with averaged weights, which differ from those of training."""
    folder = tmp_path_factory.mktemp("weights") / "run"
    return train(folder, "train.epochs=1", "train.limit_batches=4", "train.ema=0.9")


def same(got: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return list(got) == list(expected) and all(torch.equal(got[name], expected[name]) for name in got)


def old_torch(content: Any, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


# what can be read


@pytest.mark.parametrize("save", [torch.save, old_torch], ids=["zip", "before 1.6"])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".th"])
def test_a_plain_state_dict(suffix: str, save: Callable[[Any, Path], None], tmp_path: Path) -> None:
    path = tmp_path / f"net{suffix}"
    save(STATE, path)
    weights = read_weights(path)
    assert same(weights.tensors, STATE)
    assert (weights.origin, weights.classes, weights.names, weights.checkpoint) == (str(path), None, None, None)


def test_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save_file(dict(STATE), path)
    weights = read_weights(str(path))
    assert same(dict(sorted(weights.tensors.items())), dict(sorted(STATE.items())))
    assert weights.checkpoint is None


@pytest.mark.parametrize("save", [torch.save, old_torch], ids=["zip", "before 1.6"])
@pytest.mark.parametrize("key", INSIDE)
def test_a_state_dict_inside_another_programs_checkpoint(
    key: str, save: Callable[[Any, Path], None], tmp_path: Path
) -> None:
    path = tmp_path / "checkpoint.pth"
    save({"epoch": 3, key: OrderedDict(STATE), "args": {"lr": 0.1}, "optimizer": {"state": {}}}, path)
    assert same(read_weights(path).tensors, STATE)


def test_a_tensor_beside_the_state_dict_is_not_it(tmp_path: Path) -> None:
    """As pytorch/examples/imagenet saves its best accuracy."""
    path = tmp_path / "checkpoint.pth"
    torch.save({"epoch": 3, "state_dict": STATE, "best_acc1": torch.tensor(76.1)}, path)
    assert same(read_weights(path).tensors, STATE)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_the_names_are_bare(prefix: str, tmp_path: Path) -> None:
    for name, content in (("plain.pt", STATE), ("inside.pt", {"model": STATE})):
        wrapped = {f"{prefix}{key}": value for key, value in STATE.items()}
        torch.save({"model": wrapped} if "model" in content else wrapped, tmp_path / name)
        assert same(read_weights(tmp_path / name).tensors, STATE)
    save_file(wrapped, tmp_path / "net.safetensors")
    assert set(read_weights(tmp_path / "net.safetensors").tensors) == set(STATE)


def test_a_part_that_is_called_module_keeps_its_name(tmp_path: Path) -> None:
    named = {"module.weight": torch.ones(2), "head.weight": torch.ones(3)}
    torch.save(named, tmp_path / "net.pt")
    assert same(read_weights(tmp_path / "net.pt").tensors, named)


def test_a_run_and_its_checkpoints(run: Path) -> None:
    """A run is its best.pt; last.pt gives its averaged weights; each says what is behind the head's rows."""
    best, last = (load(run / f"checkpoints/{name}.pt") for name in ("best", "last"))
    assert not same(last["state"]["ema"], last["state"]["model"])
    for path, expected in (
        (run, best["state"]["model"]),
        (run / "checkpoints/best.pt", best["state"]["model"]),
        (run / "checkpoints/last.pt", last["state"]["ema"]),
    ):
        weights = read_weights(path)
        assert same(weights.tensors, expected)
        assert weights.classes == weights.names == tuple("0123456789")
        assert weights.checkpoint is not None
        assert weights.checkpoint["config"] == best["config"]


# what cannot


def test_no_such_file_and_no_such_kind(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"net\.pth is not there"):
        read_weights(tmp_path / "net.pth")
    (tmp_path / "net.h5").write_bytes(b"\x89HDF")
    with pytest.raises(ConfigError, match=r"net\.h5 must end in \.pt, \.pth, \.th, \.safetensors, or be a run"):
        read_weights(tmp_path / "net.h5")


@pytest.mark.parametrize(
    ("content", "got"),
    [
        ({"epoch": 3, "lr": 0.1}, r"got \['epoch', 'lr'\]"),
        ({"state_dict": {"epoch": 3}}, r"got \['state_dict'\]"),
        ({}, r"got \[\]"),
        ([torch.ones(2)], "got list"),
        (torch.ones(2), "got Tensor"),
    ],
    ids=["numbers", "numbers inside", "empty", "list", "tensor"],
)
def test_no_state_dict(content: Any, got: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "net.pt")
    with pytest.raises(ConfigError, match=rf"net\.pt has no state dict: .*{got}"):
        read_weights(tmp_path / "net.pt")


def test_a_checkpoint_of_ours_that_lacks_a_part(run: Path, tmp_path: Path) -> None:
    content = load(run / "checkpoints/best.pt")
    del content["data"]
    torch.save(content, tmp_path / "best.pt")
    with pytest.raises(IntegrityError, match="it lacks data"):
        read_weights(tmp_path / "best.pt")


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("data", "classes", [0, 1]),
        ("data", "classes", []),
        ("data", "names", ["one"]),
        ("data", "image_shape", [1, 28]),
        ("data", "image_shape", "1x28x28"),
        ("data", "mean", ["0.5"]),
        ("data", "std", [0.5, 0.5]),
        ("state", "model", [1, 2]),
        ("state", "ema", "none"),
    ],
)
def test_a_checkpoint_of_ours_with_a_part_of_another_kind(
    part: str, key: str, value: object, run: Path, tmp_path: Path
) -> None:
    content = load(run / "checkpoints" / "last.pt")
    content[part][key] = value
    torch.save(content, tmp_path / "other.pt")
    told = "mean" if key == "std" else key
    with pytest.raises(
        IntegrityError, match=rf"no checkpoint that tinyexp wrote: {part}\.{told} is not what it should"
    ):
        read_weights(tmp_path / "other.pt")


@pytest.mark.parametrize(
    "tensor",
    [torch.zeros(2, dtype=torch.complex64), torch.zeros(2, device="meta")],
    ids=["complex", "meta"],
)
def test_a_tensor_that_is_no_plain_one_is_told_by_its_name(tensor: Tensor, tmp_path: Path) -> None:
    torch.save({"ok": torch.zeros(2), "odd.weight": tensor}, tmp_path / "odd.pth")
    with pytest.raises(
        ConfigError, match=r"odd\.pth: odd\.weight must be a plain tensor of real numbers, got .*: save"
    ):
        read_weights(tmp_path / "odd.pth")


def test_every_flipped_byte_of_a_tensor_is_told(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    torch.save(STATE, path)
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        inside = [entry.header_offset + 200 for entry in archive.infolist() if entry.file_size > 2000]
    assert len(inside) >= 4
    for place in inside:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(IntegrityError, match=r"net\.pth is damaged"):
            read_weights(path)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
@pytest.mark.parametrize("kind", ["zip", "before 1.6", "safetensors"])
def test_truncated(kind: str, share: float, tmp_path: Path) -> None:
    path = tmp_path / ("net.safetensors" if kind == "safetensors" else "net.pth")
    {"zip": torch.save, "before 1.6": old_torch, "safetensors": save_file}[kind](dict(STATE), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(IntegrityError, match=r"net\.(pth|safetensors) (is damaged|cannot be loaded)"):
        read_weights(path)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_what_is_something_else(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"net{suffix}"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "no weights")
    with pytest.raises(IntegrityError):
        read_weights(path)
    path.write_bytes(b"<!DOCTYPE html><html>404</html>")
    with pytest.raises(IntegrityError):
        read_weights(path)


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def evil_bytes(kind: str, evil: Evil) -> bytes:
    buffer = io.BytesIO()
    content = {"state_dict": dict(STATE), "args": evil}
    if kind == "pickle":
        return pickle.dumps(content)
    torch.save(content, buffer, _use_new_zipfile_serialization=kind == "zip")
    return buffer.getvalue()


@pytest.mark.parametrize("forced", [False, True], ids=["", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".th", ".safetensors"])
@pytest.mark.parametrize("kind", ["zip", "before 1.6", "pickle"])
def test_code_in_a_file_is_not_run(
    kind: str, suffix: str, forced: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if forced:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    marker, path = tmp_path / "marker", tmp_path / f"net{suffix}"
    path.write_bytes(evil_bytes(kind, Evil(marker)))
    with pytest.raises(IntegrityError, match=rf"net\{suffix} "):
        read_weights(path)
    assert main(["show", str(path)]) == 3
    assert not marker.exists()


@pytest.mark.parametrize("kind", ["zip", "before 1.6"])
def test_that_code_would_run(kind: str, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    torch.load(io.BytesIO(evil_bytes(kind, Evil(marker))), weights_only=False)
    assert marker.exists()
