"""What a network takes over from another's weights, what of it is frozen, and where a frozen part runs once."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import LEAN, PLAIN, begin, rows, train
from torch import Tensor, nn

from tinyexp.__main__ import main
from tinyexp.checkpoint import load
from tinyexp.compose import compose
from tinyexp.data.imagenet import imagenet_ids, imagenet_names
from tinyexp.errors import ConfigError
from tinyexp.models.lenet import LeNet5, LeNet6
from tinyexp.transfer import Receipt, Transfer, Weights, same_classes


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of LeNet5 on digits."""
    return train(tmp_path_factory.mktemp("first") / "run", "train.epochs=1", "train.limit_batches=2")


DIGITS = tuple(str(digit) for digit in range(10))


def take(
    model: nn.Module,
    tensors: dict[str, Tensor],
    *,
    layer: str = "",
    classes: tuple[str, ...] = DIGITS,
    old_classes: tuple[str, ...] | None = None,
    **keys: Any,
) -> Receipt:
    """`layer` is the new network's head; `keys` are transfer's."""
    weights = Weights(tensors=tensors, origin="FILE", classes=old_classes)
    return Transfer(weights, replace(PLAIN.transfer, **keys), layer, classes, classes).into(model)


def statuses(receipt: Receipt) -> dict[str, str]:
    return {line.name: line.status for line in receipt.lines}


def copies(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


# by name and shape


def test_what_fits_by_name_and_shape_is_taken_and_nothing_else_is_touched() -> None:
    old, new = LeNet5(), LeNet6()
    before, source = copies(new), copies(old)
    receipt = take(new, source, layer="fc4")
    loaded = {name for name in source if not name.startswith("fc3")}
    assert receipt.loaded == loaded
    assert len(loaded) == 8
    for name, tensor in new.state_dict().items():
        if not name.startswith("fc4"):  # the head, which is drawn anew
            torch.testing.assert_close(tensor, source[name] if name in loaded else before[name], rtol=0, atol=0)
    assert statuses(receipt)["fc3.weight"] == "other shape"
    assert statuses(receipt)["fc4.weight"] == "missing"
    assert "8 of 12 tensors loaded, 4 new" in receipt.summary()


def test_the_share_is_of_parameters() -> None:
    receipt = take(LeNet6(), copies(LeNet5()), layer="fc4")
    whole = sum(parameter.numel() for parameter in LeNet6().parameters())
    taken = sum(tensor.numel() for name, tensor in LeNet5().state_dict().items() if not name.startswith("fc3"))
    assert receipt.share == pytest.approx(taken / whole)


def test_buffers_are_taken_and_count_as_no_parameters() -> None:
    def block() -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))

    old, new = block(), block()
    old[1].running_mean.fill_(7)
    assert take(new, copies(old)).share == 1
    assert new[1].running_mean.tolist() == [7, 7]


def test_what_only_the_file_has_is_told_as_unused() -> None:
    receipt = take(LeNet5(), copies(LeNet5()) | {"more.weight": torch.zeros(3)})
    assert statuses(receipt)["more.weight"] == "unused"
    assert ", 1 unused;" in receipt.summary()


def test_nothing_at_all_is_an_error_that_shows_names_of_both() -> None:
    with pytest.raises(ConfigError, match=r"none of its tensors \(other ...\) .* \(conv1.weight, .*transfer.rename"):
        take(LeNet5(), {"other": torch.zeros(3)})


def test_half_precision_weights_become_the_networks() -> None:
    new = LeNet5()
    take(new, {name: tensor.half() for name, tensor in copies(LeNet5()).items()})
    assert {tensor.dtype for tensor in new.state_dict().values()} == {torch.float32}


# renaming


def test_rename_maps_names_and_prefixes() -> None:
    source = {f"net.{name}".replace("net.fc2.bias", "beta"): each for name, each in copies(LeNet5()).items()}
    receipt = take(LeNet5(), source, rename={"net.conv1": "conv1", "net.fc2": "fc2", "beta": "fc2.bias"})
    assert receipt.loaded == {"conv1.weight", "conv1.bias", "fc2.weight", "fc2.bias"}


def test_a_prefix_is_whole_parts_of_a_name() -> None:
    with pytest.raises(ConfigError, match="FILE has no tensor con; did you mean conv"):
        take(LeNet5(), copies(LeNet5()), rename={"con": "conv1"})


def test_rename_may_swap_and_the_longest_prefix_counts() -> None:
    source = copies(LeNet5())
    swapped = {
        name.replace("fc2", "x").replace("fc1", "fc2").replace("x", "fc1"): each for name, each in source.items()
    }
    new = LeNet5()
    assert len(take(new, swapped, rename={"fc1": "fc2", "fc2": "fc1"}).loaded) == 10
    torch.testing.assert_close(new.fc1.weight, source["fc1.weight"], rtol=0, atol=0)
    receipt = take(LeNet5(), source, rename={"fc1": "gone", "fc1.bias": "fc1.bias"})
    assert statuses(receipt)["fc1.weight"] == "missing"
    assert "fc1.bias" in receipt.loaded


def test_two_tensors_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"two tensors of FILE would be conv2.weight; rename both"):
        take(LeNet5(), copies(LeNet5()), rename={"conv1": "conv2"})


def test_rename_is_given_on_the_command_line() -> None:
    assert compose(["transfer.rename={backbone: encoder, fc: head}"]).transfer.rename == {
        "backbone": "encoder",
        "fc": "head",
    }


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("transfer.freeze=backbone", "would keep random weights as they are"),
        ("transfer=frozen transfer.scratch=true model.weights=x.pt", "would keep random weights as they are"),
        ("init_from=FIRST model.weights=FIRST", "init_from and model.weights are both"),
        ("init_from=FIRST transfer.head=fresh", "are for model.weights"),
        ("model.weights=FIRST transfer.match=order transfer.rename.a=b", "two ways to the same"),
        ("model.weights=FIRST transfer=frozen transfer.unfreeze_at=20", "must be below train.epochs=20, got 20"),
        ("transfer.unfreeze_at=2", "must be null where nothing is frozen"),
        ("model=lenet6 model.weights=FIRST transfer=frozen", "fc3.weight (other shape)"),
    ],
)
def test_what_contradicts_itself_is_told(
    words: str, told: str, first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*LEAN, f"run.dir={tmp_path}/run", *words.replace("FIRST", str(first)).split()]) == 2
    assert told in capsys.readouterr().err


def test_another_normalisation_is_told(first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"model.weights={first}", "dataset.mean=[0.9]", "train.epochs=1", "train.limit_batches=1"]
    assert main([*LEAN, f"run.dir={tmp_path}/run", *words]) == 0
    assert "was made with dataset.mean=[0.306]" in capsys.readouterr().out


def test_by_order_names_are_no_matter() -> None:
    source = {f"t{i}": tensor for i, tensor in enumerate(copies(LeNet5()).values())}
    new = LeNet5()
    take(new, source, match="order")
    for mine, theirs in zip(new.state_dict().values(), source.values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


def test_by_order_shapes_must_agree_but_for_the_heads() -> None:
    source = list(copies(LeNet5(num_classes=4)).values())
    take(LeNet5(), {str(i): tensor for i, tensor in enumerate(source)}, match="order", layer="fc3")
    with pytest.raises(ConfigError, match=r"fc3.weight is 10x84 here, and 8, .* 4x84: their order is not the same"):
        take(LeNet5(), {str(i): tensor for i, tensor in enumerate(source)}, match="order")
    with pytest.raises(ConfigError, match="FILE has 9 tensors, the network 10"):
        take(LeNet5(), {str(i): tensor for i, tensor in enumerate(source[1:])}, match="order")


# the head


def test_rows_of_known_classes_go_to_their_places() -> None:
    old, new = LeNet5(num_classes=3), LeNet5(num_classes=4)
    receipt = take(
        new, copies(old), layer="fc3", classes=("cat", "fox", "dog", "cow"), old_classes=("dog", "owl", "cat")
    )
    for name in ("weight", "bias"):
        mine, theirs = getattr(new.fc3, name), getattr(old.fc3, name)
        torch.testing.assert_close(mine[[0, 2]], theirs[[2, 0]], rtol=0, atol=0)
        assert not torch.isclose(mine[[1, 3]][:, None], theirs[None]).any()
    assert [line.note for line in receipt.lines if line.status == "rows of known classes"] == ["2 of 4"] * 2
    assert "fc3.weight" not in receipt.loaded


def test_a_head_of_the_same_classes_in_another_order_is_put_in_order() -> None:
    old, new = LeNet5(num_classes=3), LeNet5(num_classes=3)
    take(new, copies(old), layer="fc3", classes=("c", "a", "b"), old_classes=("a", "b", "c"))
    torch.testing.assert_close(new.fc3.weight, old.fc3.weight[[2, 0, 1]], rtol=0, atol=0)


def test_a_fresh_head_takes_nothing() -> None:
    old, new = LeNet5(), LeNet5()
    receipt = take(new, copies(old), layer="fc3", old_classes=DIGITS, head="fresh")
    assert not torch.isclose(new.fc3.weight, old.fc3.weight).all()
    assert statuses(receipt)["fc3.bias"] == "fresh"


def test_what_is_new_of_a_head_is_drawn_as_torch_does() -> None:
    """timm draws a head's weights so large that they drown what pretrained features say."""
    old, new = LeNet5(num_classes=3), LeNet5(num_classes=4)
    with torch.no_grad():
        new.fc3.weight.fill_(9)
    take(new, copies(old), layer="fc3", classes=("cat", "fox", "dog", "cow"), old_classes=("dog", "owl", "cat"))
    assert new.fc3.weight.abs().max() <= 1 / 84**0.5
    torch.testing.assert_close(new.fc3.weight[0], old.fc3.weight[2], rtol=0, atol=0)


def test_known_is_refused_where_nothing_is() -> None:
    with pytest.raises(ConfigError, match="FILE does not say which classes its head's 10 rows are"):
        take(LeNet5(), copies(LeNet5()), layer="fc3", head="known")
    with pytest.raises(ConfigError, match=r"no class of the data set \(0, 1, .*\) is one of FILE \(a, b ...\)"):
        take(LeNet5(), copies(LeNet5(num_classes=2)), layer="fc3", head="known", old_classes=("a", "b"))


def test_a_thousand_unnamed_rows_are_imagenets() -> None:
    old = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 1000))
    new = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    take(new, copies(old), layer="1", classes=("n02124075", "n01443537"))
    rows = [imagenet_ids().index(name) for name in ("n02124075", "n01443537")]
    torch.testing.assert_close(new[1].weight, old[1].weight[rows], rtol=0, atol=0)


def test_imagenets_classes_are_a_thousand_in_the_order_of_their_ids() -> None:
    assert len(imagenet_ids()) == len(imagenet_names()) == 1000
    assert list(imagenet_ids()) == sorted(set(imagenet_ids()))
    assert dict(zip(imagenet_ids(), imagenet_names(), strict=True))["n02124075"] == "Egyptian cat"


@pytest.mark.parametrize(
    ("classes", "names", "old_classes", "old_names", "found"),
    [
        (["n1", "n2"], ["cat", "dog"], ["n2", "n3"], ["hound", "cat"], {0: 1, 1: 0}),  # by id, then by name
        (["a"], ["Egyptian_cat"], ["n9"], ["Egyptian cat"], {0: 0}),
        (["a"], ["crane"], ["n1", "n2"], ["crane", "crane"], {}),  # which of them?
        (["a", "b"], ["crane", "crane"], ["n1"], ["crane"], {}),
        (["a"], ["cat"], ["b"], ["catfish"], {}),
    ],
)
def test_classes_are_the_same_by_id_or_by_a_name_that_is_the_only_one(
    classes: list[str], names: list[str], old_classes: list[str], old_names: list[str], found: dict[int, int]
) -> None:
    assert same_classes(classes, names, old_classes, old_names) == found


# the run


def test_a_run_begins_from_another_networks_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = train(tmp_path / "first", "train.epochs=1", "train.limit_batches=2")
    second = tmp_path / "second"
    words = [f"model.weights={first}", "model=lenet6", "transfer.freeze=loaded", "train.epochs=2"]
    assert main([*LEAN, f"run.dir={second}", "log.level=info", "train.limit_batches=3", *words]) == 0
    out = capsys.readouterr().out
    assert "8 of 12 tensors loaded, 4 new" in out
    assert "fc3.weight    other shape: 10x84 there, 64x84 here" in out
    receipt = json.loads((second / "receipt.json").read_text())
    assert receipt["counts"] == {"loaded": 8, "other shape": 2, "missing": 2}
    before, after = load(first / "checkpoints/best.pt")["state"]["model"], load(second / "checkpoints/last.pt")["state"]
    for name, tensor in after["model"].items():
        assert (name in after["frozen"]) == (not name.startswith(("fc3", "fc4")))
        if name in after["frozen"]:
            torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


def test_a_head_that_knows_the_classes_scores_before_the_first_step(tmp_path: Path) -> None:
    first = train(tmp_path / "first", "train.epochs=3")
    words = ["optim=sgd", "optim.lr=1e-9", "train.epochs=1", "transfer.head=known"]
    second = train(tmp_path / "second", f"model.weights={first}", *words)
    best = json.loads((first / "summary.json").read_text())["best"]
    assert rows(second, "val")[0]["top1"] == best["top1"]


@pytest.mark.slow
def test_transferred_weights_learn_faster_than_random_ones(tmp_path: Path) -> None:
    first = train(tmp_path / "first", "train.epochs=5")
    words = ["model=lenet6", "train.epochs=3", "log.every=50"]
    scratch = rows(train(tmp_path / "scratch", *words), "train")[0]["loss"]
    transferred = rows(train(tmp_path / "transferred", f"model.weights={first}", *words), "train")[0]["loss"]
    assert transferred < 0.8 * scratch


def test_random_weights_are_those_of_a_run_without_transfer() -> None:
    _, _, plain = begin()
    _, _, scratch = begin("transfer=scratch", "model.weights=nowhere.pt")
    for mine, theirs in zip(
        plain.network.model.state_dict().values(), scratch.network.model.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


def test_a_missing_file_is_told_before_there_is_a_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*LEAN, f"run.dir={tmp_path}/run", "model.weights=nowhere.pt"]) == 2
    assert "nowhere.pt is not there" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
