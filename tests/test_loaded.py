"""tinyexp.load: a run in a notebook is what its directory says, and its network scores what the log says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from helpers import begin, rows, train

import tinyexp
from tinyexp.errors import ConfigError


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose averaged weights are those to use."""
    folder = tmp_path_factory.mktemp("loaded") / "run"
    return train(folder, "train.epochs=2", "train.limit_batches=8", "train.ema=0.5", "model.dropout=0.5")


def test_what_it_says_is_what_the_files_say(directory: Path) -> None:
    run = tinyexp.load(directory)
    assert run.config == yaml.safe_load((directory / "config.yaml").read_text())
    assert [row for row in run.history if row["phase"] == "val"] == rows(directory, "val")
    assert (run.status, run.summary["epochs"], len(run.classes)) == ("finished", 2, 10)
    assert sum(parameter.numel() for parameter in run.model.parameters()) == run.summary["parameters"]


def test_its_network_scores_what_the_run_logged(directory: Path) -> None:
    """uint8 images in, logits out: normalised as in training, with best.pt's weights, without dropout."""
    run = tinyexp.load(str(directory))
    _, data, _ = begin("train.limit_batches=8", "hw.threads=1")
    right = total = 0
    for batch in data.val():
        with torch.no_grad():
            right += int((run.network(batch.images).argmax(1) == batch.labels).sum())
        total += len(batch.labels)
    assert right / total == run.summary["best"]["top1"]
    assert not run.model.training


def test_a_file_may_name_only_what_is_trusted(directory: Path, tmp_path: Path) -> None:
    forged = tmp_path / "run"
    forged.mkdir()
    text = (directory / "config.yaml").read_text()
    (forged / "config.yaml").write_text(text.replace("tinyexp.models.lenet.LeNet5", "mypkg.net.Net"))
    with pytest.raises(ConfigError, match=r"mypkg\.net\.Net comes from a file .*'trust=\[mypkg\.net\.Net\]'"):
        tinyexp.load(forged)
    with pytest.raises(ConfigError, match="there is no module mypkg"):  # now it is looked for
        tinyexp.load(forged, trust=["mypkg.*"])


def test_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no config\.yaml: tinyexp\.load takes a run's directory"):
        tinyexp.load(tmp_path)
    (tmp_path / "config.yaml").write_text("model: {}\n")
    with pytest.raises(ConfigError, match=r"best\.pt is not there"):
        _ = tinyexp.load(tmp_path).model


def test_importing_the_package_takes_no_torch() -> None:
    code = "import sys, tinyexp; assert not {'torch', 'hydra', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
