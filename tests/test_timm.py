"""timm's networks: fitted to the data as torchvision's are, without weights; and what is said where timm is not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tinyexp.__main__ import main
from tinyexp.compose import compose
from tinyexp.errors import ConfigError
from tinyexp.models.timm_zoo import timm_model

FAMILIES = {  # with a size of images that each takes
    "convnext_atto": 64,
    "deit_tiny_patch16_224": 48,
    "densenet121": 64,
    "efficientnet_lite0": 28,
    "maxvit_tiny_tf_224": 64,
    "mixer_s32_224": 64,
    "mobilenetv4_conv_small": 64,
    "nfnet_f0": 64,
    "regnety_002": 64,
    "resnet18": 32,
    "resnet18.a1_in1k": 32,
    "swin_tiny_patch4_window7_224": 64,
    "vit_tiny_patch16_224": 32,
    "xception41": 64,
}


@pytest.fixture
def no_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)


def test_without_timm_the_error_says_how_to_get_it(no_timm: None, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=r"model=timm needs timm .*: pip install 'tinyexp\[timm\]'"):
        timm_model(name="resnet18", num_classes=7)
    assert main(["check", "model=timm"]) == 2
    assert capsys.readouterr().err.endswith("pip install 'tinyexp[timm]'\n")


def test_without_timm_all_else_goes_on(no_timm: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert compose(["model=timm"]).model.arguments == {"name": "efficientnet_lite0"}
    assert main(["--help"]) == 0
    assert " timm" in capsys.readouterr().out
    assert main(["--cfg", "job", "model=timm"]) == 0


@pytest.mark.slow
def test_timm_is_imported_where_its_network_is_made_alone() -> None:
    code = (
        "import sys, tinyexp, tinyexp.models, tinyexp.models.timm_zoo; from tinyexp.__main__ import main\n"
        "main(['--help']); main(['--cfg', 'job', 'model=timm'])\n"
        "assert 'timm' not in sys.modules, 'imported'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_fitted_to_the_data(name: str) -> None:
    pytest.importorskip("timm", reason="timm is not installed")
    size = FAMILIES[name]
    for in_channels in (1, 3):
        with torch.device("meta"):  # shapes alone, nothing is computed
            model = timm_model(name=name, num_classes=7, in_channels=in_channels, image_size=size).eval()
            assert model(torch.zeros(2, in_channels, size, size)).shape == (2, 7)


@pytest.mark.slow
def test_names_and_arguments() -> None:
    pytest.importorskip("timm", reason="timm is not installed")
    with torch.device("meta"):
        assert len(timm_model(name="vit_tiny_patch16_224", num_classes=7, image_size=64, depth=3).blocks) == 3
    for name in ("resnet19", "ResNet18"):
        with pytest.raises(ValueError, match=f"model.name={name} is no classification network of timm; did you mean"):
            timm_model(name=name, num_classes=7)
    with pytest.raises(ValueError, match=r"model\.foo is no argument of resnet18"):
        timm_model(name="resnet18", num_classes=7, foo=3)
    with pytest.raises(ValueError, match=r"model.name=zzzzzzzzz is no .*; some: \w+, ") as raised:
        timm_model(name="zzzzzzzzz", num_classes=7)
    assert len(str(raised.value)) < 500  # and not the thousand that there are


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hf-hub:somebody/net", "hf_hub:somebody/net", "local-dir:.", "resnet18.nobody"])
def test_no_name_leads_to_a_hub_or_a_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm", reason="timm is not installed")
    import timm

    monkeypatch.setattr(timm, "create_model", lambda *_, **__: pytest.fail("was called"))
    with pytest.raises(ValueError, match="is no classification network of timm"):
        timm_model(name=name, num_classes=7)
    for key in ("checkpoint_path", "pretrained", "pretrained_cfg", "cache_dir"):
        with pytest.raises(ValueError, match=f"model.{key} is not taken: .*model.weights"):
            timm_model(name="resnet18", num_classes=7, **{key: str(tmp_path)})
