"""A data set's report: each kind of finding, what spans files, and workers that die."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pytest
from odd_images import Odd, noise, picture, save, write_odd_images
from rich.console import Console

from tinyexp.data import verify as module
from tinyexp.data.decode import decode
from tinyexp.data.verify import FATAL, KINDS, Finding, Report, report_table, verify
from tinyexp.data.workers import map_tasks, worker_pool

Listing = dict[str, dict[str, list[str]]]

forks = pytest.mark.skipif(sys.platform != "linux", reason="a spawned worker has no patches of this process")


@pytest.fixture
def listing(tmp_path: Path) -> Listing:
    """3 ants and 2 bees to train, one of each to val, nothing wrong with them."""
    counts = {"train": {"ant": 3, "bee": 2}, "val": {"ant": 1, "bee": 1}}
    listing: Listing = {phase: {name: [] for name in classes} for phase, classes in counts.items()}
    for phase, classes in counts.items():
        for name, count in classes.items():
            folder = tmp_path / phase / name
            folder.mkdir(parents=True)
            for number in range(count):
                image = noise(8, 8) + len(phase) + len(listing) * number + ord(name[0])
                listing[phase][name].append(str(save(folder / f"{number}.png", image)))
    return listing


def kinds(report: Report) -> list[tuple[str, str]]:
    return [(Path(finding.path).name, finding.kind) for finding in report.findings]


# one file


def test_each_odd_file_has_its_findings(tmp_path: Path) -> None:
    odd = write_odd_images(tmp_path / "odd")
    assert len(odd) >= 24
    paths = [str(one.path) for one in odd.values()]
    report = verify({"train": {"odd": paths}}, processes=2)
    wrong = {}
    for name, one in odd.items():
        findings = [finding for finding in report.findings if finding.path == str(one.path)]
        found = sorted(finding.kind for finding in findings)
        expected = sorted([one.kind] if one.kind else one.notes)
        if found != expected or not all(re.search(one.reason, finding.reason) for finding in findings):
            wrong[name] = [(finding.kind, finding.reason) for finding in findings]
    assert not wrong
    bad = [one for one in odd.values() if one.kind]
    assert report.fatal == len(bad)
    assert report.counts == {"train": {"odd": len(odd) - len(bad)}}
    assert report.images == len(odd)
    assert {finding.kind for finding in report.findings if finding.fatal} == {one.kind for one in bad}


def test_reasons_are_one_line_and_do_not_repeat_the_path(tmp_path: Path) -> None:
    odd = write_odd_images(tmp_path / "odd")
    report = verify({"train": {"odd": [str(one.path) for one in odd.values()]}}, processes=1)
    for finding in report.findings:
        assert finding.reason
        assert "\n" not in finding.reason
        assert finding.path not in finding.reason


def test_what_is_fatal_is_what_decode_refuses(tmp_path: Path) -> None:
    odd: dict[str, Odd] = write_odd_images(tmp_path / "odd")
    for one in odd.values():
        assert (one.kind in FATAL) == (one.rgb is None)
        if one.rgb is not None:
            decode(str(one.path))


def test_a_jpeg_that_is_cut_anywhere_cannot_be_used(tmp_path: Path) -> None:
    content = save(tmp_path / "whole.jpg", noise(16, 16)).read_bytes()
    paths = []
    for number in range(0, len(content), 7):
        path = tmp_path / f"{number}.jpg"
        path.write_bytes(content[:number])
        paths.append(str(path))
    report = verify({"train": {"a": paths}}, processes=1)
    assert report.counts == {"train": {"a": 0}}
    assert {finding.kind for finding in report.findings} <= {"truncated", "empty file", "not an image", "empty class"}


# a data set


def test_a_healthy_data_set_has_no_finding(listing: Listing) -> None:
    report = verify(listing, processes=2)
    assert report == Report(counts={"train": {"ant": 3, "bee": 2}, "val": {"ant": 1, "bee": 1}}, findings=(), images=7)
    assert report.fatal == 0


def test_report_is_the_same_with_any_number_of_processes(tmp_path: Path) -> None:
    odd = write_odd_images(tmp_path / "odd")
    paths = [str(one.path) for one in odd.values()] * 5
    listing = {"train": {"a": paths, "b": paths[::-1]}, "val": {"a": paths[:9]}}
    first, second = verify(listing, processes=1), verify(listing, processes=3)
    assert first == second
    assert json.loads(json.dumps(first.to_json())) == first.to_json()
    assert first.to_json()["fatal"] == first.fatal > 0
    assert [one["fatal"] for one in first.to_json()["findings"]] == [one.fatal for one in first.findings]
    order = [KINDS.index(finding.kind) for finding in first.findings]
    assert order == sorted(order)


def test_the_same_bytes_are_found(listing: Listing, tmp_path: Path) -> None:
    def copy(to: str, name: str) -> str:
        phase, label = to.split("/")
        path = tmp_path / to / name
        path.write_bytes(Path(listing["train"]["ant"][0]).read_bytes())
        listing[phase][label].append(str(path))
        return str(path)

    original = listing["train"]["ant"][0]
    again, label = copy("train/ant", "again.png"), copy("train/bee", "label.png")
    leak, twice = copy("val/ant", "leak.png"), copy("val/bee", "twice.png")
    report = verify(listing, processes=1)
    assert report.findings == (
        Finding(path=leak, kind="duplicate", reason=f"val has the same bytes as train has in {original}"),
        Finding(path=again, kind="repeated", reason=f"the same bytes as {original}"),
        Finding(path=label, kind="repeated", reason=f"the same bytes as {original}, as another class: ant and bee"),
        Finding(path=twice, kind="repeated", reason=f"the same bytes as {leak}, as another class: ant and bee"),
    )
    assert report.fatal == 0
    assert report.counts["train"] == {"ant": 4, "bee": 3}


def test_files_that_cannot_be_used_are_no_duplicates(listing: Listing, tmp_path: Path) -> None:
    for phase in ("train", "val"):
        path = tmp_path / phase / "ant/empty.png"
        path.touch()
        listing[phase]["ant"].append(str(path))
    assert kinds(verify(listing, processes=1)) == [("empty.png", "empty file")] * 2


def test_classes_are_compared(listing: Listing, tmp_path: Path) -> None:
    listing["train"]["cat"] = [str(save(tmp_path / "cat.png", picture()))]
    listing["val"]["dog"] = []
    (tmp_path / "bad.png").write_text("bad")
    listing["val"]["bee"] = [str(tmp_path / "bad.png")]
    report = verify(listing, processes=1)
    assert [(finding.path, finding.kind) for finding in report.findings[1:]] == [
        ("val/bee", "empty class"),
        ("val/dog", "empty class"),
        ("train/cat", "class in one split alone"),
        ("val/dog", "class in one split alone"),
    ]
    assert [finding.reason for finding in report.findings[1:4]] == [
        "none of its 1 images can be used",
        "it has no image (.jpg .jpeg .png .bmp .webp .ppm .tif .tiff .gif)",
        "it is not in val; every class must be in each split",
    ]
    assert report.fatal == 5
    assert report.counts["val"] == {"ant": 1, "bee": 0, "dog": 0}


def test_files_without_an_image_extension_are_noted(listing: Listing, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("a note")
    others = [str(tmp_path / "notes.txt"), str(save(tmp_path / "x.jfif", picture(), format="JPEG"))]
    report = verify(listing, [*others, str(tmp_path / "gone")], processes=1)
    assert [(finding.kind, finding.fatal) for finding in report.findings] == [("no image extension", False)] * 3
    assert report.findings[0].reason.startswith("its name ends in none of .jpg .jpeg")
    assert report.findings[1].reason.startswith("it holds a JPEG image, but its name ends in none of")
    assert report.images == 7


def test_nothing_is_a_report_too() -> None:
    assert verify({"train": {}, "val": {}}, processes=2) == Report(
        counts={"train": {}, "val": {}}, findings=(), images=0
    )


# workers


def kill_some(path: str) -> None:
    """A decoder with a fault in it."""
    if path.endswith("killer.png"):
        os.kill(os.getpid(), signal.SIGKILL)
    decode(path)


@forks
@pytest.mark.parametrize("processes", [1, 2])
def test_a_file_that_kills_is_named_and_the_others_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    paths = []
    for number in range(300):
        killer = "killer" if number in (0, 70, 71, 299) else ""
        paths.append(str(save(tmp_path / f"{number}{killer}.png", np.full((4, 4, 3), number % 256, np.uint8))))
    monkeypatch.setattr(module, "decode", kill_some)
    seen: list[tuple[int, int]] = []
    report = verify(
        {"train": {"a": paths}}, processes=processes, progress=lambda done, total: seen.append((done, total))
    )
    killers = [finding for finding in report.findings if finding.kind == "broken"]
    assert [Path(finding.path).name for finding in killers] == [
        "0killer.png",
        "70killer.png",
        "71killer.png",
        "299killer.png",
    ]
    assert {finding.reason for finding in killers} == {"its decoding killed the process"}
    assert report.counts == {"train": {"a": 296}}
    assert seen == sorted(set(seen))
    assert seen[-1] == (300, 300)


def fail_at_three(number: int) -> int:
    if number == 3:
        raise LookupError("three")
    time.sleep(0.01 * (number % 2))
    return -number


def test_map_keeps_the_order_and_raises_what_is_raised() -> None:
    on_death: Callable[[int], int] = abs
    tasks = list(range(4, 300))
    assert map_tasks(fail_at_three, tasks[:150], processes=2, on_death=on_death) == [-task for task in tasks[:150]]
    with pytest.raises(LookupError, match="three"):
        map_tasks(fail_at_three, [1, 2, 3], processes=2, on_death=on_death)


def report_memory(path: str) -> None:
    raise MemoryError


@forks
def test_too_little_memory_for_a_file_is_a_finding(listing: Listing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "decode", report_memory)
    report = verify(listing, processes=1)
    assert Counter(finding.kind for finding in report.findings) == {"broken": 7, "empty class": 4}
    assert "more memory than there is" in report.findings[0].reason


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_worker_leaves_ctrl_c_to_its_parent_and_ends_by_sigterm() -> None:
    def ignore(*_: object) -> None: ...

    before = signal.signal(signal.SIGTERM, ignore)
    try:
        with worker_pool(1) as pool:
            worker = pool.submit(os.getpid).result()
            os.kill(worker, signal.SIGINT)
            assert pool.submit(os.getpid).result() == worker
            os.kill(worker, signal.SIGTERM)
            with pytest.raises(BrokenProcessPool):
                pool.submit(time.sleep, 10).result()
    finally:
        signal.signal(signal.SIGTERM, before)


PARENT = """
import os, time
from tinyexp.data.workers import worker_pool

if __name__ == "__main__":
    pool = worker_pool(3)
    pool.submit(time.sleep, 600)
    print(*{pool.submit(os.getpid).result() for _ in range(20)}, *(pool._processes or {}), flush=True)
    time.sleep(600)
"""


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")
def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        workers = sorted({int(number) for number in parent.stdout.readline().split()})
        assert len(workers) == 3
        assert all(map(is_running, workers))
        parent.kill()
    until = time.monotonic() + 10
    while any(map(is_running, workers)):
        assert time.monotonic() < until, "a worker outlives its parent"
        time.sleep(0.02)


# the table


def draw(report: Report) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(report_table(report))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_table_lists_counts_and_findings() -> None:
    findings = [Finding(path="/x/[red]b\udcff.png", kind="truncated", reason="cut [/] short")]
    findings += [Finding(path=f"/x/{number}.png", kind="converted", reason="P") for number in range(60)]
    text = draw(Report(counts={"train": {"ant": 3, "bee": 2}}, findings=tuple(findings), images=66))
    assert re.search(r"train +5 images, 2 classes +ant 3, bee 2", text)
    assert re.search(r"truncated +/x/\[red\]b\\xff.png +cut \[/\] short", text)
    assert "/x/48.png" in text
    assert "/x/49.png" not in text
    assert re.search(r"converted +11 more", text)


def test_table_abbreviates_many_classes() -> None:
    counts = {f"class {number}": number for number in range(1, 200)}
    text = draw(Report(counts={"train": counts}, findings=(), images=19900))
    assert re.search(r"19900 images, 199 classes +class 1 1 \(fewest\), median 100, class 199 199 \(most\)", text)
    assert "class 57" not in text
