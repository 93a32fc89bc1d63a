"""docs/first-steps.md: its commands, run in their order in one empty folder, do what it says."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parent.parent / "docs" / "first-steps.md").read_text(encoding="utf-8")
CODES = {"is no key": 2, "interrupted by": 75}  # of what the page shows to fail
FIGURE = re.compile(r"[\d.,]+|[─┼]+")  # and rules, which are as wide as figures make them


def steps() -> list[tuple[str, list[str]]]:
    """Each command, and the lines that the page shows of what it printed."""
    blocks = re.findall(r"^    \$ (tinyexp .*)\n((?:    (?!\$).*\n)*)", PAGE, re.MULTILINE)
    return [(command, [line[4:] for line in text.splitlines() if line.strip() != "..."]) for command, text in blocks]


@pytest.mark.slow
def test_every_command_prints_what_the_page_shows(tmp_path: Path) -> None:
    """But for figures, which are another machine's: the words of each line shown come in the output, in this order."""
    (params,) = re.findall(r"^    (\{\n.*?^    \})\n", PAGE, re.MULTILINE | re.DOTALL)
    (tmp_path / "params.json").write_text(params)
    assert len(steps()) >= 11
    environment = os.environ | {"HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}  # other tests run beside it
    for command, shown in steps():
        words = [sys.executable, "-m", "tinyexp", *shlex.split(command)[1:]]
        done = subprocess.run(
            words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        output = done.stdout + done.stderr
        code = next((code for words, code in CODES.items() if any(words in line for line in shown)), 0)
        assert done.returncode == code, (command, output)
        lines = iter(FIGURE.sub("#", line).split() for line in output.splitlines())
        for line in shown:
            wanted = FIGURE.sub("#", line).replace("★ best", "").split()
            assert any(set(wanted) <= set(found) for found in lines), (command, line, output)
    assert (tmp_path / "outputs" / "rates-report" / "curves.png").stat().st_size > 10_000
