"""README and docs/texts: both languages have the same commands, names and figures, and each command is a right one."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tinyexp.compose import compose
from tinyexp.parts import check_parts
from tinyexp.sweepjobs import plan_sweep
from tinyexp.words import split, usages

ROOT = Path(__file__).parent.parent
PAIRS = [("README.md", "README.zh-CN.md"), ("docs/texts.md", "docs/texts.zh-CN.md")]
PAGES = [page for pair in PAIRS for page in pair]
FENCE = re.compile(r"^```\n(?s:.*?)^```$", re.MULTILINE)


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def code(page: str) -> list[str]:
    """The lines of the page's indented blocks, without their comments."""
    lines = re.findall(r"^    (.*)$", read(page), re.MULTILINE)
    return [line for each in lines if (line := re.sub(r"(^|\s+)# .*$", "", each).rstrip())]


def prose(page: str) -> str:
    """The page without its blocks."""
    return re.sub(r"^    .*$", "", FENCE.sub("", read(page)), flags=re.MULTILINE)


def results(text: str) -> list[str]:
    return re.findall(r"[\d.]+ ± [\d.]+ \(n = \d+\) \| [\d.]+", text)


def names(text: str) -> set[str]:
    return set(re.findall(r"`([^`\n]+)`", FENCE.sub("", text)))


def figures(text: str) -> set[str]:
    """But for those of names and links."""
    text = re.sub(r"`[^`\n]+`|\]\(.*?\)", "", FENCE.sub("", text))
    return set(re.findall(r"(?<![A-Za-z0-9_.,])\d+(?:[.,]\d+)*", text))


def overrides(line: str) -> list[str] | None:
    """The words that tinyexp gets of a command; None where it is another program's."""
    program, *words = shlex.split(line)
    if program == "make":
        given = dict(word.split("=", 1) for word in words if "=" in word)
        return shlex.split(given.get("ARGS", ""))
    return words[words.index("tinyexp") + 1 :] if "tinyexp" in words and "-m" in words else None


COMMANDS = sorted({line for page in PAGES for line in code(page) if "tinyexp" in line or line.startswith("make ")})


@pytest.fixture
def _folder_with_what_commands_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "params.json").write_text('{"model": "lenet6", "optim.lr": 0.002}')
    for file in ("mine/experiment/small.yaml", "outputs/RUN/config.yaml"):
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).write_text("# @package _global_\ntrain:\n  epochs: 1\n")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("english", "chinese"), PAIRS)
def test_both_languages_have_the_same_commands_in_the_same_order(english: str, chinese: str) -> None:
    assert code(chinese) == code(english)


@pytest.mark.parametrize(("english", "chinese"), PAIRS)
def test_both_languages_have_the_same_results_names_and_figures(english: str, chinese: str) -> None:
    """A figure that stands in one alone is an old one, or was never printed."""
    for find in (FENCE.findall, results, names, figures):
        assert find(read(chinese)) == find(read(english))


@pytest.mark.parametrize("line", COMMANDS)
@pytest.mark.usefixtures("kept_hydra", "_folder_with_what_commands_name")
def test_each_command_composes_and_its_classes_take_it(line: str) -> None:
    words = overrides(line)
    if words is None:
        return
    known = split(words, usages())
    if known.verb == "sweep":
        plan = plan_sweep(known.overrides)
        check_parts([*plan.jobs, *plan.samples][-1].config)
    elif known.overrides:
        check_parts(compose(known.overrides))


def test_there_are_commands() -> None:
    assert sum(overrides(line) is not None for line in COMMANDS) > 60


@pytest.mark.parametrize("page", PAGES)
def test_its_links_lead_to_files_and_headings(page: str) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    assert links
    for link in links:
        path, _, anchor = link.partition("#")
        target = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        assert target.is_file(), link
        headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE) if anchor else []
        slugs = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
        assert not anchor or anchor in slugs, link
