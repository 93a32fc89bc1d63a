"""docs/configuration.md: it is what conf/ and the types say, all of it, and what it says is true."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from helpers import PLAIN

from tinyexp.compose import compose
from tinyexp.errors import ConfigError
from tinyexp.keys import flatten
from tinyexp.overrides import CONF, choices

SCRIPT = Path(__file__).parent.parent / "docs" / "configuration.py"


@pytest.fixture(scope="module")
def docs() -> ModuleType:
    """The generator: a script, and so imported by its path."""
    spec = importlib.util.spec_from_file_location("configuration", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclass looks for it
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def page(docs: ModuleType) -> str:
    return str(docs.page(CONF))


def rows(page: str) -> list[list[str]]:
    """The cells of all tables' rows."""
    lines = [line for line in page.splitlines() if line.startswith("| `")]
    return [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines]


def test_every_key_and_every_choice_stands_there(page: str) -> None:
    for key in flatten(PLAIN.plain):
        assert f"`{key}`" in page, key
    for group, names in choices().items():
        assert f"\n## {group}\n" in page
        for name in names:
            assert f"\n### {group}={name}\n" in page


def test_each_row_is_whole(page: str) -> None:
    for cells in rows(page):
        assert len(cells) == 4, cells  # a bar that is not escaped would make more of them
        assert all(cell.strip() for cell in cells), f"{cells[0]} needs a comment in conf/"


def test_each_section_has_its_own_name(page: str) -> None:
    names = re.findall(r"^#+ (.*)$", page, re.MULTILINE)
    assert len(names) == len(set(names)) > 20


def test_types_come_from_the_dataclasses(page: str) -> None:
    types = {cells[0].strip(): cells[2].strip() for cells in rows(page)}
    assert types["`train.epochs`"] == "an integer: at least 1"
    assert types["`train.ema`"] == "a number or null: between 0 and 1"
    assert types["`dataset.std`"].endswith(": above 0 for each channel")
    assert types["`log.level`"] == r"debug \| info \| warning \| error"
    assert types["`hw.threads`"] == "an integer or null: 1 to 1024"
    assert types["`sweep.grid`"] == "a mapping"
    assert types["`model.dropout`"] == "a number"


def test_its_examples_are_true(page: str) -> None:
    intro = page.partition("\n## ")[0]
    commands = re.findall(r"^    python -m tinyexp (.*)$", intro, re.MULTILINE)
    assert len(commands) > 5
    for command in commands:
        compose([word for word in shlex.split(command, comments=True) if word not in ("--cfg", "job")])
    messages = re.findall(r": `(([a-z.]+) must .*, got '?(.*?)'?)`", intro)
    assert len(messages) == 2
    for message, key, value in messages:
        with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
            compose([f"{key}={value}"])
    with pytest.raises(ConfigError, match="did you mean"):
        compose(["optim.lrr=1"])


def test_a_page_that_is_not_current_is_told(
    docs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(CONF, tmp_path / "conf")
    monkeypatch.setattr(docs, "CONF", tmp_path / "conf")
    monkeypatch.setattr(docs, "PAGE", tmp_path / "page.md")
    assert docs.main(["--check"]) == 1  # there is none
    assert docs.main([]) == 0
    assert docs.main(["--check"]) == 0
    for name, word in (
        ("config.yaml", "passes over"),
        ("optim/sgd.yaml", "momentum."),
        ("dataset/_loader.yaml", "px;"),
    ):
        file = tmp_path / "conf" / name
        old = file.read_text()
        assert word in old
        file.write_text(old.replace(word, f"changed {word}"))
        capsys.readouterr()
        assert docs.main(["--check"]) == 1
        assert "page.md is not what conf/ and tinyexp/config.py say: run `make docs`" in capsys.readouterr().err
        file.write_text(old)
    assert docs.main(["--check"]) == 0
    docs.PAGE.write_text(docs.PAGE.read_text().replace("`64`", "`65`"))
    assert docs.main(["--check"]) == 1


def test_a_comment_is_read_behind_its_key_and_above_it(docs: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("# head\n# more\na:\n  # above\n  b: [1, 2]  # behind\n  c:\n    d: x#y\ne: {f: 1} # of e\n")
    read = docs.read(file)
    assert read.head == "head\nmore"
    assert read.keys == {"a.b": ("[1, 2]", "above; behind"), "a.c.d": ("x#y", ""), "e": ("{f: 1}", "of e")}


@pytest.mark.parametrize("text", ["a:\n  - 1\n", "a:\n  b\n", "'a b:c': 1\n", "a:  # lost\n  b: 1\n", "a: |\n  b\n"])
def test_nothing_of_a_file_is_lost_in_silence(docs: ModuleType, tmp_path: Path, text: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(AssertionError, match=r"must stand in one line|would be lost"):
        docs.read(tmp_path / "a.yaml")


def test_the_page_in_docs_is_current_and_needs_no_torch() -> None:
    code = f"import runpy, sys; main = runpy.run_path({str(SCRIPT)!r})['main']; assert 'torch' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; sys.exit(main(['--check']))"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
