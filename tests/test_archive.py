"""Archives of strangers: good ones come out as they are, evil ones are refused by name, and leave nothing behind."""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import lzma
import os
import random
import stat
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tinyexp.data import archive as subject
from tinyexp.data import packed
from tinyexp.data.archive import members, sha256, unpack
from tinyexp.errors import DataError, ResourceError

FORMATS = ("zip", "zip-stored", "zip-bz2", "zip-lzma", "tar", "tar.gz", "tar.bz2", "tar.xz")
_METHODS = {"zip": 8, "zip-stored": 0, "zip-bz2": 12, "zip-lzma": 14}
TREE = {
    "a.txt": b"first",
    "train/cat/1.png": b"\x89PNG" + bytes(range(256)) * 9,
    "train/empty": b"",
    "train/b c.é": b"x",
}


def pack(path: Path, kind: str, tree: dict[str, bytes]) -> Path:
    if kind in _METHODS:
        with zipfile.ZipFile(path, "w", _METHODS[kind]) as file:
            for name, content in tree.items():
                file.writestr(name, content)
        return path
    packing: Any = {"tar": "w:", "tar.gz": "w:gz", "tar.bz2": "w:bz2", "tar.xz": "w:xz"}[kind]
    with tarfile.open(path, packing) as tar:
        for name, content in tree.items():
            add(tar, name, content)
    return path


def add(tar: tarfile.TarFile, name: str, content: bytes = b"", **fields: Any) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), 0o7777
    for field, value in fields.items():
        setattr(info, field, value)
    tar.addfile(info, io.BytesIO(content))


def snapshot(root: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(root)): path.read_bytes() if path.is_file() else None for path in sorted(root.rglob("*"))
    }


def files(root: Path) -> dict[str, bytes]:
    return {name: content for name, content in snapshot(root).items() if content is not None}


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


# good archives


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_good_archive_comes_out_as_it_is(kind: str, mask: int, mode: int, tmp_path: Path) -> None:
    path = pack(tmp_path / "named.wrongly", kind, TREE)
    path.chmod(0o400)
    before, calls = sha256(path), []
    with umask(mask):
        count = unpack(path, tmp_path / "out", on_file=lambda done, total: calls.append((done, total)))
    assert count == len(TREE)
    assert files(tmp_path / "out") == TREE
    assert {stat.S_IMODE(each.stat().st_mode) for each in (tmp_path / "out").rglob("*") if each.is_file()} == {mode}
    assert sha256(path) == before
    assert members(path) == list(TREE)
    assert calls == [(done, len(TREE)) for done in range(1, len(TREE) + 1)]


@pytest.mark.parametrize("kind", FORMATS)
def test_random_trees_come_out_equal(kind: str, tmp_path: Path) -> None:
    rng = random.Random(kind)
    for turn in range(15):
        tree: dict[str, bytes] = {}
        for number in range(rng.randrange(12)):
            parts = ["".join(rng.choices("ab .é漢🙂-", k=rng.randrange(1, 60))) for _ in range(rng.randrange(7))]
            name = "/".join([f"d{part}" for part in parts] + [f"{number} .x"])
            tree[name] = rng.randbytes(rng.choice([0, 1, 511, 512, 513, 5000, 70_000]))
        path, out = pack(tmp_path / f"{turn}.x", kind, tree), tmp_path / f"out{turn}"
        assert unpack(path, out) == len(tree)
        assert files(out) == tree


@pytest.mark.parametrize("kind", FORMATS)
def test_large_file_comes_out_equal(kind: str, tmp_path: Path) -> None:
    tree = {"big": random.Random(0).randbytes(1 << 18) * 9, "after": b"z"}  # more than two pieces
    unpack(pack(tmp_path / "x", kind, tree), tmp_path / "out")
    assert files(tmp_path / "out") == tree


@pytest.mark.parametrize("kind", FORMATS)
def test_archive_in_an_archive_is_a_file(kind: str, tmp_path: Path) -> None:
    inner = pack(tmp_path / "inner", "zip", {"../evil": b"x"}).read_bytes()
    unpack(pack(tmp_path / "outer", kind, {"inner.zip": inner}), tmp_path / "out")
    assert files(tmp_path / "out") == {"inner.zip": inner}


def test_folders_and_dots_in_names_are_normal(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x", "w") as tar:
        add(tar, ".", type=tarfile.DIRTYPE)
        add(tar, "./a", type=tarfile.DIRTYPE)
        add(tar, "./a//b/./c", b"1")
        add(tar, "a/b", type=tarfile.DIRTYPE)
    assert members(tmp_path / "x") == ["a/b/c"]
    unpack(tmp_path / "x", tmp_path / "out")
    assert snapshot(tmp_path / "out") == {"a": None, "a/b": None, "a/b/c": b"1"}


@pytest.mark.parametrize("kind", FORMATS)
def test_place_moves_and_leaves_out(kind: str, tmp_path: Path) -> None:
    path = pack(tmp_path / "x", kind, TREE)
    calls: list[int] = []
    count = unpack(
        path,
        tmp_path / "out",
        lambda name: f"new/{name[6:]}" if name.startswith("train/") else None,
        lambda done, total: calls.append(total - done),
    )
    assert count == 3
    assert files(tmp_path / "out") == {f"new/{name[6:]}": TREE[name] for name in TREE if name.startswith("train/")}
    assert calls == [3, 2, 1, 0]


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (lambda name: "same", "'train/cat/1.png' and 'a.txt' would be in one place"),
        (lambda name: f"../{name}", r"'a.txt' would be at '../a.txt', which has a part \.\."),
        (lambda name: f"/{name}", "'a.txt' .*absolute"),
        (lambda name: "", "'a.txt' .*empty name"),
        (lambda name: ".", "'a.txt' .*empty name"),
    ],
)
@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_place_is_checked_too(kind: str, place: Callable[[str], str], message: str, tmp_path: Path) -> None:
    path = pack(tmp_path / "x", kind, TREE)
    refused(path, message, lambda: unpack(path, tmp_path / "out", place))


# evil archives: nothing is written


def refused(
    path: Path, message: str, call: Callable[[], object] | None = None, kind: type[Exception] = DataError
) -> None:
    """Refused with the archive's name and this, and nothing is anywhere."""
    before = snapshot(path.parent)
    with pytest.raises(kind, match=message) as caught:
        (call or (lambda: unpack(path, path.parent / "out")))()
    assert str(path) in str(caught.value)
    assert str(caught.value).isprintable()
    assert snapshot(path.parent) == before


BAD_NAMES = {
    "absolute": (["/etc/x"], "'/etc/x' has an absolute path"),
    "double slash": (["//host/x"], "'//host/x' has an absolute path"),
    "up": (["../x"], r"'\.\./x' has a part \.\."),
    "up inside": (["a/../../x"], r"'a/\.\./\.\./x' has a part \.\."),
    "up at the end": (["a/.."], r"'a/\.\.' has a part \.\."),
    "drive": (["C:/x"], "'C:/x' has a drive letter"),
    "drive, relative": (["./c:x"], "'./c:x' has a drive letter"),
    "backslash": (["..\\x"], "has a backslash"),
    "escape": (["a\x1b[2Jx"], r"'a\\x1b\[2Jx' has a control character"),
    "newline": (["a\nb"], r"'a\\nb' has a control character"),
    "C1": (["a\x9bb"], r"'a\\x9bb' has a control character"),
    "line separator": (["a\u2028b"], r"'a\\u2028b' has a control character"),
    "twice": (["a", "b", "a"], "'a' and 'a' would be in one place"),
    "twice by dots": (["a/b", "./a//b"], "'./a//b' and 'a/b' would be in one place"),
    "case": (["a/READ", "a/read"], "'a/read' and 'a/READ' would be in one place"),
    "case of a folder": (["Cat/1", "cat/2"], "'cat/2' and 'Cat/1' would be in one place"),
    "sharp s": (["straße", "STRASSE"], "'STRASSE' and 'straße' would be in one place"),
    "accents": (["é", unicodedata.normalize("NFD", "é")], "would be in one place"),
    "accent and case": (["É", unicodedata.normalize("NFD", "é")], "would be in one place"),
    "file and folder": (["a", "a/b"], "'a/b' and 'a' would be in one place"),
    "folder and file": (["a/b/c", "a/b"], "'a/b' and 'a/b/c' would be in one place"),
    "file and folder by case": (["A", "a/b"], "'a/b' and 'A' would be in one place"),
    "only a dot": (["."], "'.' has an empty name"),
    "long part": (["a/" + "é" * 128], "é' has a name that is too long"),
    "long path": (["abcde/" * 200 + "x"], "/x' has a name that is too long"),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "tar.bz2", "tar.xz"])
@pytest.mark.parametrize("case", BAD_NAMES)
def test_bad_names_are_refused(kind: str, case: str, tmp_path: Path) -> None:
    names, message = BAD_NAMES[case]
    path = tmp_path / "x"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as file:
            for name in ("fine", *names):
                info = zipfile.ZipInfo("-")
                info.filename = name
                file.writestr(info, b"evil")
    else:
        with tarfile.open(path, {"tar": "w"}.get(kind, kind.replace("tar.", "w:"))) as tar:  # type: ignore[call-overload]
            add(tar, "fine", b"1")
            for name in names:
                add(tar, name, b"evil")
    refused(path, message)
    refused(path, message, lambda: members(path))


class Evil(NamedTuple):
    make: Callable[[Path], object]
    message: str


def zip_of(name: str = "m", content: bytes = b"evil", **fields: Any) -> Callable[[Path], None]:
    """A zip whose member has a head like none that zipfile writes."""

    def make(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("fine", b"1")
            info = zipfile.ZipInfo("-")
            info.filename = name
            for field, value in fields.items():
                setattr(info, field, value)
            file.writestr(info, content)

    return make


def patched(make: Callable[[Path], object], local: int, central: int, code: str, value: int) -> Callable[[Path], None]:
    """The last member's field, in both of its heads (local < 0: in the central one alone)."""

    def made(path: Path) -> None:
        make(path)
        content = bytearray(path.read_bytes())
        if local >= 0:
            struct.pack_into(code, content, content.rindex(b"PK\x03\x04") + local, value)
        struct.pack_into(code, content, content.rindex(b"PK\x01\x02") + central, value)
        path.write_bytes(content)

    return made


def replaced(make: Callable[[Path], object], old: bytes, new: bytes) -> Callable[[Path], None]:
    def made(path: Path) -> None:
        make(path)
        content = path.read_bytes()
        assert old in content
        path.write_bytes(content.replace(old, new))

    return made


def tar_of(name: str = "m", content: bytes = b"", packing: str = "w", **fields: Any) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        with tarfile.open(path, packing, format=tarfile.PAX_FORMAT) as tar:  # type: ignore[call-overload]
            add(tar, "fine", b"1")
            add(tar, name, content, **fields)

    return make


def tar_head(path: Path, size: bytes, kind: bytes = b"0", rest: bytes = b"") -> None:
    """A tar of one member, whose size is written as it is given."""
    head = bytearray(tarfile.TarInfo("m").tobuf(tarfile.GNU_FORMAT))
    head[124:136], head[156:157], head[148:156] = size.rjust(12, b"0"), kind, b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    path.write_bytes(head + rest + bytes(10_240))


def tar_folders(*names: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        with tarfile.open(path, "w") as tar:
            for name in names:
                add(tar, name, type=tarfile.DIRTYPE)

    return make


def sparse(path: Path) -> None:
    tar_of("m", b"", pax_headers={"GNU.sparse.map": "0,0", "GNU.sparse.size": "9" * 12})(path)


def bomb_of_heads(path: Path) -> None:
    """Zeros in a pax head: a library that trusts its size has all of it in memory."""
    head = tarfile.TarInfo("m")
    head.type, head.size = tarfile.XHDTYPE, 2_000_000
    with lzma.open(path, "wb", preset=0) as file:
        file.write(head.tobuf() + bytes(2_000_000 // 512 * 512 + 1024))


def zip_overlapping(path: Path) -> None:
    """Two heads in the index, one member (the way of zbsm.zip)."""
    content = random.Random(0).randbytes(5000)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("fine", content)
        second = zipfile.ZipInfo("m")
        second.file_size = second.compress_size = len(content)
        second.CRC, second.header_offset = file.infolist()[0].CRC, 0
        file.filelist.append(second)


LINK, FIFO, DEVICE, SOCKET = (
    (kind | 0o777) << 16 for kind in (stat.S_IFLNK, stat.S_IFIFO, stat.S_IFBLK, stat.S_IFSOCK)
)
NOT_PLAIN = "'m/?' is a link, a device or else no plain file"
EVIL = {
    "zip: link": Evil(zip_of(content=b"/etc/passwd", external_attr=LINK), NOT_PLAIN),
    "zip: link as a folder": Evil(zip_of("m/", b"", external_attr=LINK), NOT_PLAIN),
    "zip: link by a DOS head": Evil(zip_of(external_attr=LINK, create_system=0), NOT_PLAIN),
    "zip: fifo": Evil(zip_of(external_attr=FIFO), NOT_PLAIN),
    "zip: device": Evil(zip_of(external_attr=DEVICE), NOT_PLAIN),
    "zip: socket": Evil(zip_of(external_attr=SOCKET), NOT_PLAIN),
    "zip: folder by its mode": Evil(zip_of(external_attr=(stat.S_IFDIR | 0o777) << 16), NOT_PLAIN),
    "zip: folder with bytes": Evil(zip_of("m/"), "'m/' is a folder with bytes"),
    "zip: no name": Evil(zip_of(""), "'' has an empty name"),
    "zip: NUL": Evil(replaced(zip_of("m_.png"), b"m_.png", b"m\0.png"), r"'m\\x00.png' has a control character"),
    "zip: encrypted": Evil(patched(zip_of(), 6, 8, "<H", 1), "'m' is encrypted"),
    "zip: strongly encrypted": Evil(patched(zip_of(), 6, 8, "<H", 0x40), "'m' is encrypted"),
    "zip: deflate64": Evil(patched(zip_of(), 8, 10, "<H", 9), "'m' is packed by method 9"),
    "zip: zeros": Evil(zip_of(content=bytes(11_000_000), compress_type=8), "'m' declares more than 200 times"),
    "zip: 4 GB declared": Evil(patched(zip_of(), 22, 24, "<I", 0xFFFF_FFF0), "'m' declares more than 200 times"),
    "zip: overlapping": Evil(zip_overlapping, "'m' shares its bytes"),
    "zip: name not UTF-8": Evil(replaced(zip_of("é_"), "é_".encode(), b"\xff\xfe_"), "is damaged"),
    "zip: index before its file": Evil(
        lambda path: path.write_bytes(b"PK\5\6" + bytes(8) + b"\xff" * 10), "is damaged"
    ),
    "tar: link": Evil(tar_of(type=tarfile.SYMTYPE, linkname="/etc/passwd"), NOT_PLAIN),
    "tar: hard link": Evil(tar_of(type=tarfile.LNKTYPE, linkname="fine"), NOT_PLAIN),
    "tar: fifo": Evil(tar_of(type=tarfile.FIFOTYPE), NOT_PLAIN),
    "tar: device": Evil(tar_of(type=tarfile.CHRTYPE), NOT_PLAIN),
    "tar: block device": Evil(tar_of(type=tarfile.BLKTYPE), NOT_PLAIN),
    "tar: unknown type": Evil(tar_of(type=b"Z"), NOT_PLAIN),
    "tar: sparse": Evil(sparse, NOT_PLAIN),
    "tar: no name": Evil(tar_of(""), "'' has an empty name"),
    "tar: root": Evil(tar_of("/", type=tarfile.DIRTYPE), "'' has an empty name"),
    "tar: folder twice": Evil(tar_folders("a", "a"), "'a' and 'a' would be in one place"),
    "tar: folder by case": Evil(tar_folders("A/b", "a"), "'a' and 'A/b' would be in one place"),
    "tar: NUL": Evil(
        replaced(tar_of("mé_"), "path=mé_".encode(), b"path=mx\0_"), r"'mx\\x00_' has a control character"
    ),
    "tar: name not UTF-8": Evil(tar_of("m\udcff"), r"'m\\udcff' has a control character, or one that is not UTF-8"),
    "tar: size below 0": Evil(lambda path: tar_head(path, b"\xff" * 12), "'m' declares a size below 0"),
    "tar: round in circles": Evil(lambda path: tar_head(path, b"\xff" * 10 + b"\xfe\0"), "'m' declares a size below 0"),
    "tar: gigabytes declared": Evil(lambda path: tar_head(path, b"7" * 11 + b"\0"), "'m' brings it to more than 200"),
    "tar: more than is there": Evil(lambda path: tar_head(path, b"7" * 7 + b"\0"), "is damaged"),
    "tar: great head": Evil(
        lambda path: tar_head(path, b"7" * 9 + b"\0", b"x"), "is damaged .*a head must have at most"
    ),
    "tar.xz: great head": Evil(bomb_of_heads, "is damaged .*a head must have at most"),
    "empty": Evil(lambda path: path.write_bytes(b""), "must be a zip or a tar .* fetch it again"),
    "page": Evil(lambda path: path.write_bytes(b"<!DOCTYPE html>" * 99), "must be a zip or a tar .*begins b'<!DOCTYPE"),
    "gz of no tar": Evil(lambda path: path.write_bytes(lzma.compress(b"text" * 999)), "must be a zip or a tar"),
}


@pytest.mark.parametrize("case", EVIL)
def test_evil_archives_are_refused(case: str, tmp_path: Path) -> None:
    path = tmp_path / "x"
    EVIL[case].make(path)
    refused(path, EVIL[case].message)
    refused(path, EVIL[case].message, lambda: members(path))


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_too_many_entries_are_refused(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = pack(tmp_path / "x", kind, {str(number): b"" for number in range(6)})
    monkeypatch.setattr(subject, "MAX_ENTRIES", 5)
    refused(path, "'5' is one too many: at most 5 entries")
    monkeypatch.setattr(subject, "MAX_ENTRIES", 6)
    assert unpack(path, tmp_path / "out") == 6


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "tar.bz2", "tar.xz"])
def test_zeros_in_many_members_are_refused(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "RATIO_FREE_WHOLE", 10_000_000)
    path = pack(tmp_path / "x", kind, {f"m{number}": bytes(6_000_000) for number in range(2)})
    refused(path, "more than 200 times")


def test_zeros_behind_the_end_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "RATIO_FREE_WHOLE", 1_000_000)
    path = pack(tmp_path / "x", "tar", TREE)
    path.write_bytes(gzip.compress(path.read_bytes() + bytes(5_000_000)))
    refused(path, "it unpacks to more than 200 times its size")


@pytest.mark.slow
@pytest.mark.parametrize("packing", ["zip", "gz"])
def test_gigabyte_of_zeros_is_refused(packing: str, tmp_path: Path) -> None:
    path = tmp_path / "x"
    if packing == "zip":
        with zipfile.ZipFile(path, "w", 8, compresslevel=1) as file, file.open("zeros", "w") as member:
            for _ in range(300):
                member.write(bytes(1 << 20))
        refused(path, "'zeros' declares more than 200 times")
    else:
        with tarfile.open(path, "w:gz", compresslevel=1) as tar:
            info = tarfile.TarInfo("zeros")
            info.size = 300 << 20
            with Path("/dev/zero").open("rb") as zeros:
                tar.addfile(info, zeros)
        refused(path, "more than 200 times")


def test_no_room_is_told_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = pack(tmp_path / "x", "zip", {"a": bytes(3_000_000), "b": b"1"})
    usage = type("Usage", (), {"free": 1_000_000})
    monkeypatch.setattr(subject.shutil, "disk_usage", lambda folder: usage)
    refused(path, r"needs 3.0 MB to unpack, and .* has room for 1.0 MB: free some", kind=ResourceError)
    assert unpack(path, tmp_path / "out", lambda name: "b" if name == "b" else None) == 1  # what is left out needs none


# damage


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("part", [0.01, 0.5, 0.99, -1])
def test_cut_archives_are_told(kind: str, part: float, tmp_path: Path) -> None:
    tree = {f"{number}/file": random.Random(number).randbytes(3000) for number in range(30)}
    path = pack(tmp_path / "x", kind, tree)
    content = path.read_bytes()
    path.write_bytes(content[: -1 if part < 0 else int(len(content) * part)])
    refused(path, "is damaged|must be a zip or a tar")


@pytest.mark.parametrize("kind", ["zip", "zip-stored", "zip-bz2", "zip-lzma", "tar.gz", "tar.bz2", "tar.xz"])
def test_flipped_bits_never_pass(kind: str, tmp_path: Path) -> None:
    """A plain tar has no sums of what it holds: that is what `sha256` is for."""
    tree = {"one": random.Random(1).randbytes(700) + b"text " * 99, "two": random.Random(2).randbytes(500)}
    whole = pack(tmp_path / "whole", kind, tree).read_bytes()
    rng = random.Random(kind)
    for turn in range(120):
        content = bytearray(whole)
        content[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        path, out = tmp_path / "x", tmp_path / f"out{turn}"
        path.write_bytes(content)
        try:
            unpack(path, out)
        except DataError:
            continue
        # a time, a mode or a name may change unseen; what the files hold may not
        assert sorted(files(out).values()) == sorted(tree.values())


def test_bad_sum_is_told_with_its_member(tmp_path: Path) -> None:
    path = pack(tmp_path / "x", "zip-stored", {"fine": b"1", "m": b"the content"})
    path.write_bytes(path.read_bytes().replace(b"the content", b"the c0ntent"))
    with pytest.raises(DataError, match=r"x is damaged in its member 'm' \(Bad CRC-32.*fetch it again"):
        unpack(path, tmp_path / "out")


@pytest.mark.parametrize("method", [0, 8, 12, 14])
@pytest.mark.parametrize("declared", [0, 3, 999, 1001, 5000])
@pytest.mark.parametrize("honest_sum", [True, False])
def test_lying_sizes_are_told(method: int, declared: int, honest_sum: bool, tmp_path: Path) -> None:
    """Also where the sum is of as many bytes as are declared, which zipfile takes for whole."""
    content, path = random.Random(0).randbytes(1000), tmp_path / "x"
    make = patched(zip_of(content=content, compress_type=method), 22, 24, "<I", declared)
    if not honest_sum:
        make = patched(make, 14, 16, "<I", zlib.crc32(content[:declared]))
    make(path)
    with pytest.raises(DataError, match="x is damaged in its member 'm'"):
        unpack(path, tmp_path / "out")
    assert len(snapshot(tmp_path)) == 4  # the archive, out, out/fine, out/m
    assert (tmp_path / "out/m").stat().st_size <= declared


def test_broken_head_amid_a_tar_is_not_its_end(tmp_path: Path) -> None:
    path = pack(tmp_path / "x", "tar", {"a": b"1", "b": b"2"})
    content = bytearray(path.read_bytes())
    content[1024 + 5] ^= 1
    path.write_bytes(content)
    refused(path, "is damaged .*end")


def test_tar_is_read_forward_alone(tmp_path: Path) -> None:
    with packed.Forward(pack(tmp_path / "x", "tar.gz", TREE)) as stream:
        assert stream.seek(1000) == stream.tell() == 1000
        with pytest.raises(ValueError, match="must not begin before"):
            stream.seek(999)


def test_tar_without_its_end_is_cut(tmp_path: Path) -> None:
    path = pack(tmp_path / "x", "tar", {"a": b"1", "b": b"2"})
    path.write_bytes(path.read_bytes()[:1024])
    refused(path, "is damaged .*end")


# the system


def test_folder_must_not_be_there(tmp_path: Path) -> None:
    path = pack(tmp_path / "x", "zip", TREE)
    (tmp_path / "there").mkdir()
    (tmp_path / "out").symlink_to("elsewhere")
    with pytest.raises(FileExistsError):
        unpack(path, tmp_path / "there")
    with pytest.raises(FileExistsError):
        unpack(path, tmp_path / "out")
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_full_disk_passes_as_it_is(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, original = pack(tmp_path / "x", kind, TREE), io.open

    def full(file: Any, mode: str = "r", *given: Any, **named: Any) -> Any:
        if mode == "xb":
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(file, mode, *given, **named)

    monkeypatch.setattr(io, "open", full)
    with pytest.raises(OSError, match="No space left") as caught:
        unpack(path, tmp_path / "out")
    assert caught.value.errno == errno.ENOSPC


def test_callers_errors_pass_as_they_are(tmp_path: Path) -> None:
    def fail(*given: object) -> str:
        raise ValueError("mine")

    path = pack(tmp_path / "x", "tar.gz", TREE)
    for number, call in enumerate((lambda out: unpack(path, out, fail), lambda out: unpack(path, out, on_file=fail))):
        with pytest.raises(ValueError, match=r"^mine$"):
            call(tmp_path / str(number))


def test_sha256_is_that_of_the_file(tmp_path: Path) -> None:
    content = random.Random(0).randbytes((2 << 20) + 17)
    (tmp_path / "x").write_bytes(content)
    assert sha256(tmp_path / "x") == hashlib.sha256(content).hexdigest()


@pytest.mark.slow
@pytest.mark.skipif("TINYEXP_DATA" not in os.environ, reason="TINYEXP_DATA names no folder with archives of images")
@pytest.mark.parametrize("name", ["tiny-imagenet-200.zip", "cifar10-imagefolder-sample.zip"])
def test_real_archives_come_out_as_by_zipfile(name: str, tmp_path: Path) -> None:
    path = Path(os.environ["TINYEXP_DATA"]) / name
    if not path.is_file():
        pytest.skip(f"TINYEXP_DATA has no {name}")
    count = unpack(path, tmp_path / "ours")
    with zipfile.ZipFile(path) as file:
        file.extractall(tmp_path / "theirs")
    ours = files(tmp_path / "ours")
    assert count == len(ours)
    assert ours == files(tmp_path / "theirs")
