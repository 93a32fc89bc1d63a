"""predict: what it says of val is what eval scores; any file is labelled or told; and a checkpoint is all it needs."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import LEAN, train, write_image
from odd_images import write_odd_images
from PIL import Image

import tinyexp
from tinyexp import predictor
from tinyexp.__main__ import main
from tinyexp.checkpoint import load
from tinyexp.errors import ConfigError, DataError
from tinyexp.predictor import Prediction, list_images

COLOURS = {"blue": (20, 30, 200), "green": (20, 180, 40), "red": (200, 30, 20)}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("digits") / "run", "train.epochs=1")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data set of coloured files of many sizes, and a run that was trained on it."""
    home, random = tmp_path_factory.mktemp("files"), np.random.default_rng(0)
    for phase, count in (("train", 8), ("val", 7)):
        for name, true in COLOURS.items():
            for number in range(count):
                colour = COLOURS["red"] if phase == "val" and number == 0 else true  # so that some are mistakes
                size = (*random.integers(20, 90, 2), 3)
                pixels = np.clip(np.array(colour) + random.normal(0, 90, size), 0, 255).astype(np.uint8)
                path = home / "data" / phase / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    words = [
        "dataset=imagefolder",
        f"dataset.root={home}/data",
        f"dataset.cache_dir={home}/cache",
        "train.batch_size=8",
    ]
    size = ["dataset.image_size=28", "dataset.resize=32", "dataset.workers=0", "train.eval_batch_size=4"]
    train(home / "run", *words, *size, "train.epochs=2", "train.ema=0.5")
    return home


def rows(capsys: pytest.CaptureFixture[str], *words: str | Path) -> list[dict[str, str]]:
    """The CSV of predict on stdout."""
    capsys.readouterr()
    assert main(["predict", *map(str, words)]) == 0
    return list(csv.DictReader(capsys.readouterr().out.splitlines(keepends=True)))


def refused(capsys: pytest.CaptureFixture[str], *words: str | Path, code: int = 2) -> str:
    capsys.readouterr()
    assert main(["predict", *map(str, words)]) == code
    captured = capsys.readouterr()
    assert not captured.out
    return captured.err


# val


@pytest.mark.parametrize("which", ["digits", "files", "averaged weights"])
def test_val_is_what_eval_scores(
    digits: Path, home: Path, which: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = {"digits": digits, "files": home / "run"}.get(which, home / "run/checkpoints/last.pt")
    assert main(["eval", str(run), f"--out={tmp_path}"]) == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    with (tmp_path / "confusion.csv").open() as file:
        expected = {row.pop("label"): {name: int(count) for name, count in row.items()} for row in csv.DictReader(file)}
    found = rows(capsys, run, "val")
    assert sum(row["label"] == row["true"] for row in found) / len(found) == scores["top1"]
    for true, counts in expected.items():
        for label, count in counts.items():
            assert sum((row["true"], row["label"]) == (true, label) for row in found) == count
    surest = max(float(row["probability"]) for row in found if row["label"] != row["true"])
    assert surest == pytest.approx(scores["mistakes"][0]["probability"], abs=1e-6)
    for each in scores["bins"]:
        inside = [share for row in found if each["low"] < (share := float(row["probability"])) <= each["high"]]
        assert sum(inside) == pytest.approx(each["count"] * (each["probability"] or 0), abs=1e-4)


def test_a_folder_of_vals_files_is_val(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    of_val, of_folder = rows(capsys, home / "run", "val"), rows(capsys, home / "run", home / "data" / "val")
    assert [{**row, "true": ""} for row in of_val] == [{**row, "true": ""} for row in of_folder]
    assert {row["true"] for row in of_val} == set(COLOURS)
    assert all(f"/{row['true']}/" in row["path"] for row in of_val)


# from the checkpoint alone


def test_the_checkpoint_is_enough(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Moved, without its config.yaml, its data set and its cache."""
    before = rows(capsys, home / "run", home / "data" / "val")
    shutil.copytree(home / "data" / "val", tmp_path / "elsewhere")
    shutil.copytree(home / "run", tmp_path / "moved")
    (tmp_path / "moved" / "config.yaml").unlink()
    home.rename(aside := home.with_name("aside"))
    try:
        shutil.copy(aside / "run/checkpoints/best.pt", tmp_path / "alone.pt")
        for path in ("moved", "alone.pt"):
            after = rows(capsys, tmp_path / path, tmp_path / "elsewhere")
            assert [{**row, "path": ""} for row in after] == [{**row, "path": ""} for row in before]
        assert "dataset.root=" in refused(capsys, tmp_path / "alone.pt", "val")
    finally:
        aside.rename(home)


def test_weights_alone_are_not_enough(digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(load(digits / "checkpoints/best.pt")["state"]["model"], path := tmp_path / "bare.pth")
    assert "bare.pth has weights alone, without the class names, the image size" in refused(capsys, path, "val")
    with pytest.raises(ConfigError, match="has weights alone"):
        tinyexp.load(path)


def test_damage_is_told(digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = bytearray((digits / "checkpoints/best.pt").read_bytes())
    content[len(content) // 2] ^= 8
    (tmp_path / "best.pt").write_bytes(content)
    assert "is damaged" in refused(capsys, tmp_path / "best.pt", "val", code=3)


# what is shown to the network


def test_odd_files_are_labelled_or_told(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = {str(each.path): each for each in write_odd_images(tmp_path / "odd").values() if each.path.exists()}
    decodes = [each for each in odd.values() if each.rgb is not None]
    assert 0 < len(decodes) < len(odd)
    out = tmp_path / "predictions.csv"
    assert main(["predict", str(home / "run"), *odd, "--out", str(out)]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{len(decodes)} images labelled, {len(odd) - len(decodes)} could not be decoded, in {out}\n"
    with out.open(newline="") as file:
        found = list(csv.DictReader(file))
    assert [row["path"] for row in found] == list(odd)
    for row in found:
        each = odd[row["path"]]
        assert (row["label"] == "") == (row["probability"] == "") == (each.rgb is None)
        assert (f"warning: {each.path} " in captured.err) == (each.rgb is None)


def test_a_turned_image_is_put_upright(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = Image.open(home / "data/val/red/0.png").resize((40, 30))
    image.save(tmp_path / "a.png")
    (exif := image.getexif())[0x0112] = 6
    image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "b.png", exif=exif)
    image.convert("RGBA").save(tmp_path / "c.png")
    one, *others = rows(capsys, home / "run", tmp_path)
    assert [{**row, "path": one["path"]} for row in others] == [one, one]


def test_colour_is_made_grey_for_a_grey_network(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    colours = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    colours.save(tmp_path / "colour.png")
    colours.convert("L").save(tmp_path / "grey.png")
    one, other = rows(capsys, digits, tmp_path)
    assert {**one, "path": ""} == {**other, "path": ""}


def test_few_are_in_memory(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a hundred thousand paths, no more are decoded than some batches before the first is labelled."""
    pixels, decoded = np.zeros((30, 30, 3), np.uint8), list[str]()

    def decode(path: str, _: int | None) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        decoded.append(path)
        return pixels

    monkeypatch.setattr(predictor, "decode", decode)

    def paths() -> Iterator[str]:
        yield from (f"{number}.png" for number in range(100_000))

    found = tinyexp.load(home / "run")._predictor.files(paths(), 1)  # type: ignore[arg-type]
    assert next(found).path == "0.png"
    assert len(decoded) <= 4 * 4, "with train.eval_batch_size=4"
    found.close()  # type: ignore[attr-defined]


# which files


def test_files_of_a_folder(tmp_path: Path) -> None:
    names = ["b/z.JPEG", "b/deep/er/a.png", "a.webp", "c 1.jpg"]
    others = [".hidden.png", ".git/x.png", "__MACOSX/y.png", "b/._z.JPEG", "notes.txt", "b/Thumbs.db"]
    for name in (*names, *others):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "loop").symlink_to(tmp_path)
    assert list_images(f"{tmp_path}/") == list_images(str(tmp_path)) == sorted(f"{tmp_path}/{name}" for name in names)
    assert list_images(str(tmp_path / "notes.txt")) == [str(tmp_path / "notes.txt")], "who names a file means it"
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"empty has no image \(\.jpg"):
        list_images(str(tmp_path / "empty"))
    with pytest.raises(ConfigError, match="nowhere is not there"):
        list_images(str(tmp_path / "nowhere"))


def test_names_that_are_odd(home: Path, tmp_path: Path) -> None:
    names = ['a,b".png', "line\nbreak.png", "=1+1.png", os.fsdecode(b"no-utf8-\xff.png")]
    paths = [str(write_image(tmp_path / "odd" / name)) for name in names]
    out = tmp_path / "out.csv"
    assert main(["predict", str(home / "run"), str(tmp_path / "odd"), f"--out={out}"]) == 0
    with out.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        assert [row["path"] for row in csv.DictReader(file)] == sorted(paths)


# the words


def test_columns(digits: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = [f"{column}_{rank}" for rank in range(2, 6) for column in ("label", "probability")]
    for words, columns in (
        (["val"], ["path", "label", "probability", *more, "true"]),
        (["val", "--topk=1"], ["path", "label", "probability", "true"]),
        (["val", "--topk", "50"], [*(f"{column}_10" for column in ("label", "probability"))]),
    ):
        (first, *_) = rows(capsys, digits, *words, "--limit", "3")
        assert list(first)[: len(columns)] == columns or list(first)[-3:-1] == columns
        shares = [float(value) for name, value in first.items() if "probability" in name]
        assert shares == sorted(shares, reverse=True)
        assert sum(shares) == pytest.approx(1, abs=1e-5) or len(shares) < 10
    (first, *_) = rows(capsys, home / "run", home / "data")
    assert list(first) == ["path", "label", "probability", *more[:4]], "no more than there are classes"


@pytest.mark.parametrize("what", ["val", "folder"])
def test_limit(home: Path, what: str, capsys: pytest.CaptureFixture[str]) -> None:
    where = "val" if what == "val" else home / "data" / "val"
    assert rows(capsys, home / "run", where, "--limit=5") == rows(capsys, home / "run", where)[:5]
    assert len(rows(capsys, home / "run", where, "--limit=1000")) == 21


def test_limit_of_samples_that_are_no_files(digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = rows(capsys, digits, "val", "--limit=300")
    assert [row["path"] for row in found] == [f"val/{number}" for number in range(300)]


def test_what_people_call_a_class(digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = load(digits / "checkpoints/best.pt")
    checkpoint["data"]["names"] = [f"digit {number}" for number in range(10)]
    torch.save(checkpoint, path := tmp_path / "named.pt")
    found = rows(capsys, path, "val", "--limit=9", "--topk=2")
    assert list(found[0])[-2:] == ["true", "name"]
    assert all(row["name"] == f"digit {row['label']}" for row in found)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["val", "--topk=0"], "--topk must be a whole number, at least 1, got '0'"),
        (["val", "--limit=some"], "--limit must be a whole number, at least 1, got 'some'"),
        (["val", "other"], "val is the whole of the data set's val"),
        ([], "predict takes two paths or more, got 1"),
        (["nowhere"], "nowhere is not there"),
        (["val", "hw.procs=2"], "predict is one process"),
        (["val", "dataset.std=[1]"], "dataset.std changes nothing in predict"),
        (["val", "train.epoch=2"], "did you mean train.epochs"),
    ],
)
def test_wrong_words(digits: Path, words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert told in refused(capsys, digits, *words)


def test_an_error_on_the_way_leaves_what_stood_there(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "predictions.csv"
    out.write_text("before")

    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(predictor, "decode", fail)
    assert main(["predict", str(home / "run"), str(home / "data"), f"--out={out}"]) == 5
    assert (out.read_text(), list(tmp_path.iterdir())) == ("before", [out])


@pytest.mark.slow
def test_a_reader_that_leaves(home: Path) -> None:
    command = f"{sys.executable} -m tinyexp predict {home}/run {home}/data {f'{home}/data ' * 200}| head -2"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True, timeout=120)
    assert len(done.stdout.splitlines()) == 2
    assert "Error" not in done.stderr
    assert "Exception" not in done.stderr


# from Python


def test_from_python(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = sorted((home / "data" / "val").rglob("*.png"))
    expected = rows(capsys, home / "run", home / "data" / "val")
    checkpoint = home / "run/checkpoints/best.pt"
    for loaded in (tinyexp.load(home / "run"), tinyexp.load(checkpoint), tinyexp.load(str(checkpoint))):
        found = loaded.predict(files)
        assert [(each.path, each.label) for each in found] == [(row["path"], row["label"]) for row in expected]
        assert [f"{each.probability:.6f}" for each in found] == [row["probability"] for row in expected]
        one = loaded.predict(str(files[3]), topk=2)
        assert isinstance(one, Prediction)
        for (label, share), (other, again) in zip(one.topk, found[3].topk[:2], strict=True):
            assert (label, share) == (other, pytest.approx(again)), "the batch rounds, and no more"
        assert (one.label, one.probability) == one.topk[0]
        assert loaded.predict([]) == []
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"broken\.png cannot be decoded"):
        loaded.predict([files[0], broken])
    with pytest.raises(ConfigError, match="topk must be at least 1"):
        loaded.predict(files[0], topk=0)


def test_a_checkpoints_file_is_no_run(home: Path) -> None:
    loaded, run = tinyexp.load(home / "run/checkpoints/best.pt"), tinyexp.load(home / "run")
    assert loaded.config == run.config
    assert loaded.classes == run.classes == sorted(COLOURS)
    assert torch.equal(next(loaded.model.parameters()), next(run.model.parameters()))
    for name in ("history", "summary", "status", "environment", "patch"):
        with pytest.raises(ConfigError, match=r"is of a run, and .* is a checkpoint alone: load its run's directory"):
            getattr(loaded, name)
    assert len(run.history) > 2


def test_a_run_without_its_config_is_its_checkpoint(home: Path, tmp_path: Path) -> None:
    run = shutil.copytree(home / "run", tmp_path / "run")
    (run / "config.yaml").unlink()
    loaded = tinyexp.load(run)
    assert loaded.config == tinyexp.load(home / "run").config
    assert loaded.summary["status"] == "finished"


def test_lean_is_taken(digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Words of where and how, which change no prediction."""
    assert rows(capsys, digits, "val", *LEAN) == rows(capsys, digits, "val")


@pytest.mark.parametrize("out", ["photo.png", "predictions", "there.csv"])
def test_what_is_no_csv_file_is_never_written_over(
    home: Path, tmp_path: Path, out: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--out` before a photo's name would else be the end of the photo."""
    photo = write_image(tmp_path / "photo.png")
    before = photo.read_bytes()
    (tmp_path / "there.csv").mkdir()
    told = refused(capsys, home / "run", photo, f"--out={tmp_path / out}")
    assert "--out must name a CSV file, as predictions.csv" in told
    assert photo.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"photo.png", "there.csv"}
