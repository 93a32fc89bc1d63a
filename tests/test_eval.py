"""eval: weights of any origin score what they score in their run, and what --out writes agrees with itself."""

from __future__ import annotations

import csv
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import ALONE, LEAN, train
from PIL import Image
from safetensors.torch import save_file

import tinyexp.pictures
from tinyexp.__main__ import main
from tinyexp.checkpoint import load
from tinyexp.compose import compose
from tinyexp.data.loader import load_data

HERE = ("hw=cpu", "hw.threads=1")
FILES = ["classes.csv", "confusion.csv", "confusion.png", "mistakes.png", "scores.json"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("eval") / "run", "train.epochs=1", "hw.threads=1")


def told(capsys: pytest.CaptureFixture[str], *words: str | Path, code: int = 0) -> list[str]:
    """What eval prints, or the error."""
    capsys.readouterr()
    assert main(["eval", *map(str, words)]) == code
    captured = capsys.readouterr()
    return (captured.err if code else captured.out).splitlines()


def table(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


# what is printed


def test_the_scores_come_first(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    best = json.loads((run / "summary.json").read_text())["best"]
    lines = told(capsys, run)
    assert lines[0] == f"val loss {best['loss']:.4f} top1 {best['top1']:.4f} top5 {best['top5']:.4f} (360 images)"
    assert lines[1].startswith(f"top1 {best['top1']:.4f}, 95% interval 0.")
    assert lines[2].startswith("ECE 0.")
    assert len(lines) == 3


# foreign weights


def foreign(run: Path, folder: Path, kind: str) -> Path:
    """The run's weights as other programs save them."""
    weights = load(run / "checkpoints/best.pt")["state"]["model"]
    path = folder / ("weights.safetensors" if kind == "safetensors" else "weights.pth")
    if kind == "safetensors":
        save_file(weights, path)
    elif kind == "bare":
        torch.save(weights, path)
    else:
        torch.save({"epoch": 3, "state_dict": {f"module.{name}": each for name, each in weights.items()}}, path)
    return path


@pytest.mark.parametrize("kind", ["bare", "under DDP", "safetensors"])
def test_foreign_weights_score_what_the_run_scored(
    run: Path, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = foreign(run, tmp_path, kind)
    assert told(capsys, path, "model=lenet5", "dataset=digits", *HERE) == told(capsys, run)


def test_our_own_safetensors_say_how_images_are_normalised(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Unless the command line does."""
    odd = train(tmp_path / "run", "train.epochs=1", "hw.threads=1", "dataset.mean=[0.9]", "dataset.std=[0.05]")
    assert main(["export", str(odd), "--format=safetensors", "--out", str(tmp_path / "net.safetensors")]) == 0
    words = (tmp_path / "net.safetensors", "dataset=digits", "model=lenet5", *HERE)
    logged = told(capsys, odd)[0]
    assert told(capsys, *words)[0] == logged
    assert told(capsys, *words, "dataset.mean=[0.5]", "dataset.std=[0.5]")[0] != logged


@pytest.mark.parametrize(
    ("words", "lacking"),
    [([], "model=... dataset=..."), (["model=lenet5"], "dataset=..."), (["dataset=digits"], "model=...")],
)
def test_foreign_weights_need_a_network_and_data(
    run: Path, words: list[str], lacking: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (line,) = told(capsys, foreign(run, tmp_path, "bare"), *words, code=2)
    assert f"weights.pth has weights alone, and eval needs to know of what network and data: give {lacking} (" in line
    assert "lenet5" in line or "digits" in line


def test_foreign_weights_of_other_classes(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("train", "val"):
        for name in "ab":
            path = tmp_path / "data" / folder / name / "x.png"
            path.parent.mkdir(parents=True)
            Image.new("RGB", (30, 30)).save(path)
    data = ["dataset=imagefolder", f"dataset.root={tmp_path}/data", f"dataset.cache_dir={tmp_path}/cache"]
    words = [*data, "dataset.image_size=28", "model=lenet5", f"--out={tmp_path}/out", *HERE]
    text = "\n".join(told(capsys, foreign(run, tmp_path, "bare"), *words, code=2))
    assert "has the weights of another network" in text
    assert "the 2 classes of tinyexp.data.folder.imagefolder" in text
    checkpoint = load(run / "checkpoints/best.pt")
    checkpoint["data"]["classes"][3] = "three"
    torch.save(checkpoint, path := tmp_path / "other.pt")
    assert "knows 10 classes (0, 1" in told(capsys, path, f"--out={tmp_path}/out", code=2)[0]
    assert not (tmp_path / "out").exists()


def test_what_eval_does_not_take(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "dataset.mean changes nothing in eval" in told(capsys, run, "dataset.mean=[0.5]", code=2)[0]
    words = ["model=lenet5", "dataset=digits", "init_from=x"]
    assert "init_from is for training" in told(capsys, foreign(run, tmp_path, "bare"), *words, code=2)[0]


# --out


def test_the_files_agree(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "out"
    lines = told(capsys, run, "--out", out)
    assert sorted(path.name for path in out.iterdir()) == FILES
    best = json.loads((run / "summary.json").read_text())["best"]
    scores = json.loads((out / "scores.json").read_text())
    assert {name: scores[name] for name in ("loss", "top1", "top5")} == {
        name: best[name] for name in ("loss", "top1", "top5")
    }
    assert lines[2] == f"ECE {scores['ece']:.4f} (15 bins), macro F1 {scores['macro_f1']:.4f}"

    (corner, *heads), *rows = table(out / "confusion.csv")
    confusion = np.array([row[1:] for row in rows], int)
    assert corner == "label"
    assert heads == [row[0] for row in rows] == [str(digit) for digit in range(10)]
    assert confusion.sum() == scores["count"] == 360
    assert confusion.trace() / 360 == best["top1"]
    assert sum(each["count"] for each in scores["bins"]) == 360

    heads, *rows = table(out / "classes.csv")
    assert heads == ["class", "name", "count", "precision", "recall", "f1"]
    assert [int(row[2]) for row in rows] == confusion.sum(1).tolist()
    assert [float(row[4]) for row in rows] == pytest.approx(confusion.diagonal() / confusion.sum(1))
    assert np.mean([float(row[5]) for row in rows]) == pytest.approx(scores["macro_f1"])
    for name in ("confusion.png", "mistakes.png"):
        with Image.open(out / name) as image:
            assert min(image.size) > 500

    (out / "theirs.txt").write_text("kept")
    told(capsys, run, f"--out={out}")  # again, over its own files
    assert sorted(path.name for path in out.iterdir()) == [*FILES, "theirs.txt"]


def test_the_mistakes_are_those_of_val(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each picture is the image that val has under its number, and its label is that image's."""
    drawn: list[Any] = []
    monkeypatch.setattr(tinyexp.pictures, "draw_mistakes", lambda _, *given: drawn.extend(given))
    assert main(["eval", str(run), f"--out={tmp_path}"]) == 0
    mistakes, images, names = drawn
    data = load_data(compose(["hw=cpu"]), ALONE)
    shown = {
        int(number): (image, int(label))
        for batch in data.val()
        for number, image, label in zip(batch.index, batch.images, batch.labels, strict=True)
    }
    assert len(mistakes) == len(images) == 25
    for mistake, image in zip(mistakes, images, strict=True):
        expected, label = shown[mistake.index]
        assert np.array_equal(image, expected.permute(1, 2, 0))
        assert mistake.label == label != mistake.prediction
    assert [each.probability for each in mistakes] == sorted((each.probability for each in mistakes), reverse=True)
    assert names == data.names


def test_out_that_can_be_no_folder(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "file"
    path.write_text("theirs")
    assert "must be a folder" in told(capsys, run, "--out", path, code=2)[0]
    assert path.read_text() == "theirs"


@pytest.mark.slow
def test_two_ranks_write_what_one_writes(run: Path, tmp_path: Path) -> None:
    for procs in (1, 2):
        words = ["eval", str(run), f"--out={tmp_path}/{procs}", f"hw.procs={procs}", "train.eval_batch_size=50", *HERE]
        subprocess.run([sys.executable, "-m", "tinyexp", *words], check=True, timeout=120)
    one, two = (json.loads((tmp_path / f"{procs}/scores.json").read_text()) for procs in (1, 2))
    mistakes, others = one.pop("mistakes"), two.pop("mistakes")
    assert [each["index"] for each in mistakes] == [each["index"] for each in others]
    assert one["ece"] == pytest.approx(two["ece"], abs=1e-6)
    assert one["top1_interval"] == two["top1_interval"]
    for name in ("classes.csv", "confusion.csv"):
        assert (tmp_path / "1" / name).read_text() == (tmp_path / "2" / name).read_text()


# trust


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("verb", ["eval", "predict"])
@pytest.mark.parametrize("kind", ["pickle", "torch", "torch of old"])
@pytest.mark.parametrize("name", ["evil.pt", "evil.pth"])
def test_a_pickle_does_not_run(verb: str, kind: str, name: str, tmp_path: Path) -> None:
    marker, path = tmp_path / "marker", tmp_path / name
    content = {"fc.weight": torch.zeros(2, 2), "evil": Evil(marker)}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "torch")
    words = [str(path), *(["val"] if verb == "predict" else ["model=lenet5", "dataset=digits"])]
    assert main([verb, *words]) == 3
    assert not marker.exists()
    torch.load(path, weights_only=False) if kind == "torch" else pickle.loads(
        path.read_bytes()
    ) if kind == "pickle" else 0
    assert marker.exists() or kind == "torch of old", "the test's own file does nothing"


def test_a_checkpoint_names_only_what_is_trusted(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = load(run / "checkpoints/best.pt")
    checkpoint["config"]["model"]["_target_"] = "mypkg.net.Net"
    torch.save(checkpoint, path := tmp_path / "forged.pt")
    for words in (["eval", path], ["predict", path, "val"]):
        assert main([*map(str, words), *LEAN]) == 2
        assert "mypkg.net.Net comes from a file" in capsys.readouterr().err
