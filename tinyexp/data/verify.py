"""Every image of a data set decoded in full, in processes of their own, and what was found; no printing."""

from __future__ import annotations

import os
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import UnidentifiedImageError
from rich import box
from rich.table import Table
from rich.text import Text

from tinyexp.data.decode import EXTENSIONS, Described, UnknownRangeError, decode, describe
from tinyexp.data.workers import map_tasks
from tinyexp.errors import DataError

_UNUSABLE = ("missing", "empty file", "truncated", "not an image", "broken", "unknown range")
FATAL = (*_UNUSABLE, "empty class", "class in one split alone")  # training would stop
_SAME = ("duplicate", "repeated")
NOTED = (*_SAME, "wrong extension", "no image extension", "converted", "rotated by EXIF", "several frames")
KINDS = (*FATAL, *NOTED)  # in the report's order

_SHOWN = 50  # findings in the table
_FORMATS = {".jpg": "JPEG", ".tif": "TIFF"}  # where it is not the extension in capitals
_CONVERSIONS = {
    "1": "1 bit to 0 and 255",
    "P": "palette to RGB",
    "CMYK": "CMYK to RGB, without a colour profile",
    "YCbCr": "YCbCr to RGB",
    "LAB": "LAB to sRGB",
}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something about one file, or about one class as PHASE/CLASS."""

    path: str
    kind: str  # one of KINDS
    reason: str

    @property
    def fatal(self) -> bool:
        return self.kind in FATAL


@dataclass(frozen=True, kw_only=True)
class Report:
    """What verify found: the images that can be used by phase and class, and the findings in the order of KINDS."""

    counts: dict[str, dict[str, int]]
    findings: tuple[Finding, ...]
    images: int  # files that were decoded, or should have been

    @property
    def fatal(self) -> int:
        """How many findings would stop a training."""
        return sum(finding.fatal for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        findings = [{**asdict(finding), "fatal": finding.fatal} for finding in self.findings]
        return {"images": self.images, "fatal": self.fatal, "counts": self.counts, "findings": findings}


@dataclass(frozen=True)
class _Examined:
    """What a worker says of one file; `digest` is None where it cannot be used."""

    digest: str | None
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class _Place:
    phase: str
    name: str
    path: str


def verify(
    listing: Mapping[str, Mapping[str, Sequence[str]]],
    others: Sequence[str] = (),
    *,
    processes: int,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Decode every image of a listing, phase -> class -> paths, in `processes` processes.

    `others` are files in class folders whose names do not say that they are images. `progress` is called with the
    number of files done and of all. A file that kills its process is a finding like any other.
    """
    places = [
        _Place(phase, name, path)
        for phase, classes in listing.items()
        for name, paths in classes.items()
        for path in paths
    ]
    tasks = [(place.path, True) for place in places] + [(path, False) for path in others]
    examined = map_tasks(_examine, tasks, processes=processes, on_death=_name_killer, progress=progress)
    usable = [(place, one.digest) for place, one in zip(places, examined, strict=False) if one.digest is not None]
    tally = Counter((place.phase, place.name) for place, _ in usable)
    counts = {phase: {name: tally[phase, name] for name in classes} for phase, classes in listing.items()}
    findings = [
        *(finding for one in examined for finding in one.findings),
        *_compare_classes(listing, counts),
        *_find_duplicates(usable),
    ]
    findings.sort(key=lambda finding: KINDS.index(finding.kind))  # stable: files stay in the listing's order
    return Report(counts=counts, findings=tuple(findings), images=len(places))


# one file, in a worker


def _examine(task: tuple[str, bool]) -> _Examined:
    path, is_image = task
    if not is_image:
        return _Examined(None, (_examine_other(path),))
    try:
        described = describe(path)
        decode(path)
    except (DataError, MemoryError) as error:
        return _Examined(None, (_name_failure(path, error),))
    findings = (Finding(path=path, kind=kind, reason=reason) for kind, reason in _remark(path, described))
    return _Examined(described.digest, tuple(findings))


def _name_killer(task: tuple[str, bool]) -> _Examined:
    path, is_image = task
    kind = "broken" if is_image else "no image extension"
    return _Examined(None, (Finding(path=path, kind=kind, reason="its decoding killed the process"),))


def _examine_other(path: str) -> Finding:
    try:
        held = describe(path).format
    except (DataError, MemoryError):
        held = None
    content = f"it holds a {held} image, but " if held else ""
    reason = f"{content}its name ends in none of {' '.join(EXTENSIONS)}: it is left out"
    return Finding(path=path, kind="no image extension", reason=reason)


def _remark(path: str, described: Described) -> Iterator[tuple[str, str]]:
    """Kind and reason of whatever is odd about an image that can be used."""
    suffix = Path(path).suffix.lower()
    expected = _FORMATS.get(suffix, suffix[1:].upper())
    # a camera's JPEG with a preview behind it is an MPO to Pillow
    if suffix in EXTENSIONS and expected != ("JPEG" if described.format == "MPO" else described.format):
        yield "wrong extension", f"its name says {expected}, its content {described.format}"
    if described.frames > 1:
        yield "several frames", f"{described.frames} frames, the first is taken"
    if described.orientation != 1:
        yield "rotated by EXIF", f"orientation {described.orientation}, turned upright"
    if changes := list(_list_changes(described)):
        yield "converted", f"{described.mode}: {', '.join(changes)}"


def _list_changes(described: Described) -> Iterator[str]:
    """What was done to the pixels so that they are RGB of 8 bits."""
    if described.mode in _CONVERSIONS:
        yield _CONVERSIONS[described.mode]
    elif ";16" in described.mode or described.mode == "I":
        yield "16 bits to 8"
    elif described.mode not in ("RGB", "L") and not described.transparent:
        yield "to RGB"
    if described.transparent:
        yield "transparency on white"


def _name_failure(path: str, error: DataError | MemoryError) -> Finding:
    if isinstance(error, MemoryError):
        return Finding(path=path, kind="broken", reason="its decoding needs more memory than there is")
    reason = str(error).removeprefix(f"{path} cannot be decoded: ").removeprefix(f"{path} cannot be read: ")
    cause = error.__cause__
    if isinstance(cause, FileNotFoundError):
        return Finding(path=path, kind="missing", reason=reason)
    if isinstance(cause, UnknownRangeError):
        return Finding(path=path, kind="unknown range", reason=reason)
    try:
        content = Path(path).read_bytes()
    except OSError:  # no permission, a folder
        return Finding(path=path, kind="broken", reason=reason)
    if not content:
        return Finding(path=path, kind="empty file", reason="it has 0 bytes")
    known = _recognise(content)
    if isinstance(cause, UnidentifiedImageError) and known is None:
        return Finding(path=path, kind="not an image", reason=f"{reason}, it starts with {content[:16]!r}")
    if known is not None and _is_cut(content, known):
        return Finding(path=path, kind="truncated", reason=f"{known} of {len(content)} bytes without its end: {reason}")
    kind = "truncated" if "truncated" in str(cause).lower() else "broken"
    return Finding(path=path, kind=kind, reason=f"{known}: {reason}" if known else reason)


def _recognise(content: bytes) -> str | None:
    """The format by its first bytes: Pillow does not tell a damaged header from no image at all."""
    signatures = {
        b"\xff\xd8\xff": "JPEG",
        b"\x89PNG\r\n\x1a\n": "PNG",
        b"GIF8": "GIF",
        b"BM": "BMP",
        b"II*\0": "TIFF",
        b"MM\0*": "TIFF",
    }
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "WEBP"
    return next((name for start, name in signatures.items() if content.startswith(start)), None)


def _is_cut(content: bytes, known: str) -> bool:
    """Whether a file that cannot be decoded lacks its end, by what its format says of where that is."""
    if known == "JPEG":
        return b"\xff\xd9" not in content[-64:]
    if known == "PNG":
        return b"IEND" not in content[-64:]
    if known == "GIF":
        return not content.endswith(b";")
    if known == "WEBP":
        return int.from_bytes(content[4:8], "little") + 8 > len(content)
    if known == "BMP":
        return int.from_bytes(content[2:6], "little") > len(content)
    order: Any = "little" if content.startswith(b"II") else "big"
    return int.from_bytes(content[4:8], order) >= len(content)  # a TIFF's directory, which often stands at the end


# across files


def _compare_classes(
    listing: Mapping[str, Mapping[str, Sequence[str]]], counts: Mapping[str, Mapping[str, int]]
) -> Iterator[Finding]:
    for name in dict.fromkeys(name for classes in listing.values() for name in classes):
        having = [phase for phase, classes in listing.items() if name in classes]
        if len(having) < len(listing):
            lacking = [phase for phase in listing if phase not in having]
            yield Finding(
                path=f"{having[0]}/{name}",
                kind="class in one split alone",
                reason=f"it is not in {' or '.join(lacking)}; every class must be in each split",
            )
        for phase in having:
            if not counts[phase][name]:
                reason = f"none of its {len(listing[phase][name])} images can be used"
                reason = reason if listing[phase][name] else f"it has no image ({' '.join(EXTENSIONS)})"
                yield Finding(path=f"{phase}/{name}", kind="empty class", reason=reason)


def _find_duplicates(usable: Sequence[tuple[_Place, str]]) -> Iterator[Finding]:
    """Files of the same bytes: across splits a leak, within one a repetition; each is compared with the first."""
    groups: defaultdict[str, list[_Place]] = defaultdict(list)
    for place, digest in usable:
        groups[digest].append(place)
    for group in groups.values():
        first_of: dict[str, _Place] = {}
        for place in group:
            first = first_of.setdefault(place.phase, place)
            if first is not place:
                other = "" if first.name == place.name else f", as another class: {first.name} and {place.name}"
                yield Finding(path=place.path, kind="repeated", reason=f"the same bytes as {first.path}{other}")
        first, *rest = first_of.values()
        for place in rest:
            other = "" if first.name == place.name else f", as another class: {first.name} and {place.name}"
            reason = f"{place.phase} has the same bytes as {first.phase} has in {first.path}{other}"
            yield Finding(path=place.path, kind="duplicate", reason=reason)


# the report


def report_table(report: Report) -> Table:
    """Counts by phase, then the findings by kind, at most 50 of them; for rich to print."""
    table = Table("kind", "what", "why", box=box.SIMPLE)
    for phase, counts in report.counts.items():
        table.add_row(phase, f"{sum(counts.values())} images, {len(counts)} classes", _summarise(counts))
    table.add_section()
    for finding in report.findings[:_SHOWN]:
        # Text, since a path may have brackets; and a name of bytes that are no text must not stop the printing
        cells = (finding.kind, _printable(finding.path), _printable(finding.reason))
        table.add_row(*map(Text, cells), style="red" if finding.fatal else None)
    for kind, count in Counter(finding.kind for finding in report.findings[_SHOWN:]).items():
        table.add_row(kind, f"{count} more")
    return table


def _summarise(counts: Mapping[str, int]) -> str:
    """Images a class: each where there are few, else the smallest, the median and the largest."""
    if len(counts) <= 10:
        return ", ".join(f"{name} {count}" for name, count in counts.items())
    smallest, largest = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
    middle = statistics.median(counts.values())
    return f"{smallest} {counts[smallest]} (fewest), median {middle:g}, {largest} {counts[largest]} (most)"


def _printable(text: str) -> str:
    return os.fsencode(text).decode(errors="backslashreplace")
