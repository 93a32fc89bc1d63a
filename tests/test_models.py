"""Networks: shapes, what one can take over from another, and torchvision's families fitted to the data."""

from __future__ import annotations

import pytest
import torch

from tinyexp.models import LeNet5, LeNet6

FAMILIES = [
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "efficientnet_v2_s",
    "googlenet",
    "inception_v3",
    "maxvit_t",
    "mnasnet0_5",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "regnet_y_400mf",
    "resnet18",
    "resnext50_32x4d",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "swin_t",
    "swin_v2_t",
    "vgg11_bn",
    "vit_b_32",
    "wide_resnet50_2",
]


@pytest.mark.parametrize("network", [LeNet5, LeNet6])
@pytest.mark.parametrize("size", [12, 13, 28, 32, 65])
def test_lenet_takes_any_size_that_is_enough(network: type[LeNet5], size: int) -> None:
    model = network(num_classes=7, in_channels=3, image_size=size)
    logits = model(torch.zeros(2, 3, size, size))
    assert logits.shape == (2, 7)


@pytest.mark.parametrize("network", [LeNet5, LeNet6])
def test_lenet_refuses_small_images(network: type[LeNet5]) -> None:
    with pytest.raises(ValueError, match="at least 12 px, got image_size=11"):
        network(image_size=11)


def test_lenet5_is_that_of_the_paper() -> None:
    assert sum(parameter.numel() for parameter in LeNet5().parameters()) == 61_706


def test_lenet6_takes_over_lenet5_but_for_the_last_layers() -> None:
    old, new = LeNet5().state_dict(), LeNet6().state_dict()
    shared = {name for name, tensor in new.items() if name in old and old[name].shape == tensor.shape}
    assert shared == {f"{layer}.{part}" for layer in ("conv1", "conv2", "fc1", "fc2") for part in ("weight", "bias")}
    assert new["fc3.weight"].shape == (64, 84)
    assert new["fc4.weight"].shape == (10, 64)


@pytest.mark.parametrize("network", [LeNet5, LeNet6])
def test_lenet_drops_in_training_alone(network: type[LeNet5]) -> None:
    model = network(dropout=0.5)
    images = torch.rand(4, 1, 28, 28)
    assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))


@pytest.mark.parametrize("network", [LeNet5, LeNet6])
def test_lenet_learns_a_batch_by_heart(network: type[LeNet5]) -> None:
    torch.manual_seed(0)
    model, images, labels = network(), torch.rand(16, 1, 28, 28), torch.arange(16) % 10
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    assert torch.equal(model(images).argmax(1), labels)


# torchvision's; its import takes a second


@pytest.mark.parametrize("in_channels", [1, 3])
@pytest.mark.parametrize("name", FAMILIES)
def test_zoo_fits_every_family_to_the_data(name: str, in_channels: int) -> None:
    from tinyexp.models.zoo import torchvision_model

    size = 96 if name == "inception_v3" else 448 if name == "maxvit_t" else 64
    # meta: shapes alone, nothing is computed; regnet's builder reads values of tensors
    with torch.device("cpu" if name.startswith("regnet") else "meta"):
        model = torchvision_model(name=name, num_classes=7, in_channels=in_channels, image_size=size)
        assert model(torch.zeros(2, in_channels, size, size)).shape == (2, 7)


def test_zoo_changes_nothing_but_the_channels() -> None:
    from tinyexp.models.zoo import torchvision_model

    grey, rgb = (torchvision_model(name="resnet18", num_classes=7, in_channels=channels) for channels in (1, 3))
    differing = {name for name, tensor in rgb.state_dict().items() if tensor.shape != grey.state_dict()[name].shape}
    assert differing == {"conv1.weight"}
    assert grey.conv1.weight.shape == (64, 1, 7, 7)
    spread = (3 * 49) ** -0.5  # nn.Conv2d's own: uniform with variance 1 / (3 fan-in)
    assert float(grey.conv1.weight.detach().std()) == pytest.approx(spread, rel=0.1)
    assert grey(torch.zeros(2, 1, 32, 32)).isfinite().all()


def test_zoo_hands_on_arguments() -> None:
    from tinyexp.models.zoo import torchvision_model

    with torch.device("meta"):
        model = torchvision_model(name="mobilenet_v2", num_classes=7, dropout=0.35)
    assert model.classifier[0].p == 0.35


@pytest.mark.parametrize("name", ["resnet19", "ResNet18", "fcn_resnet50", "r3d_18"])
def test_zoo_names_the_nearest(name: str) -> None:
    from tinyexp.models.zoo import torchvision_model

    with pytest.raises(ValueError, match=f"model.name={name} is no classification network.*(did you mean|valid:)"):
        torchvision_model(name=name, num_classes=7)
