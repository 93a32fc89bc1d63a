"""A kept result is the function's own: found again for equal arguments, never for others, and computed once."""

from __future__ import annotations

import dataclasses
import enum
import errno
import inspect
import io
import itertools
import json
import logging
import math
import os
import pickle
import subprocess
import sys
import zipfile
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tinyexp.cached import _remove_damaged, cached
from tinyexp.cachekey import _hash
from tinyexp.errors import ConfigError, ResourceError


class Mode(enum.Enum):
    GREY = 1
    COLOUR = 2


class Number(enum.IntEnum):
    ONE = 1


@dataclasses.dataclass
class Size:
    height: int
    width: int


@dataclasses.dataclass
class Extent(Size):
    pass


Pair = namedtuple("Pair", "a b")


class Counted:
    """A cached function of x, whose result is the given one, and the number of its calls."""

    def __init__(self, folder: Path, result: Any = None) -> None:
        self.calls = 0

        @cached(key=["x"], folder=folder)
        def function(x: Any) -> Any:
            self.calls += 1
            return result

        self.function = function


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.exists() else []


# results

RESULTS = [
    pytest.param(value, id=str(number))
    for number, value in enumerate(
        [
            None,
            True,
            -(2**80),
            0.1,
            math.inf,
            -0.0,
            "",
            "é\0\ud800",
            b"",
            b"\0\xff",
            [],
            (),
            {},
            (1, [2, (3.0, True), {"a": None, "": ("list", [1])}]),
            ["tensor", "0"],
            np.arange(6, dtype=np.uint8).reshape(2, 3),
            np.asfortranarray(np.ones((3, 4), np.float16)),
            np.array(3.5),
            np.zeros((0, 2), ">i4"),
            np.array(["a", "bc"]),
            np.array([(1, 2.0)], [("a", "i4"), ("b", "f8")]),
            np.array(["2020-01-01"], "datetime64[D]"),
            {"images": np.eye(2), "labels": [np.arange(2), np.arange(3)]},
            *(torch.arange(4).reshape(2, 2).to(kind) for kind in (torch.float32, torch.bfloat16, torch.int64)),
            torch.tensor([True, False]),
            torch.tensor([1 + 2j]).conj(),
            torch.zeros(0, 3),
            torch.tensor(2.5, dtype=torch.bfloat16),
            torch.arange(6).reshape(2, 3).T[1:],
        ]
    )
]


def assert_same(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            assert_same(*pair)
    elif isinstance(one, dict):
        assert list(one) == list(other)
        assert_same([*one.values()], [*other.values()])
    elif isinstance(one, np.ndarray):
        assert (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    else:
        assert repr(one) == repr(other)


@pytest.mark.parametrize("value", RESULTS)
def test_a_hit_is_the_result(tmp_path: Path, value: Any) -> None:
    counted = Counted(tmp_path, value)
    for _ in range(3):
        assert_same(counted.function(1), value)
    assert counted.calls == 1
    assert len(files(tmp_path)) == 1


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.str_("a"), "a"),
        (np.float64(2), 2.0),
        (torch.ones(2, requires_grad=True), torch.ones(2)),
        (torch.nn.Parameter(torch.ones(2)), torch.ones(2)),
    ],
)
def test_a_miss_is_as_plain_as_a_hit(tmp_path: Path, value: Any, plain: Any) -> None:
    counted = Counted(tmp_path, [value])
    for _ in range(2):
        (result,) = counted.function(1)
        assert_same(result, plain)
        assert not getattr(result, "requires_grad", False)


@pytest.mark.parametrize("value", [np.zeros(3), torch.zeros(3), [0, 0, 0]])
def test_a_hit_is_safe_to_change(tmp_path: Path, value: Any) -> None:
    counted = Counted(tmp_path, value)
    counted.function(1)
    counted.function(1)[0] = 7
    assert counted.function(1)[0] == 0


UNKEPT: list[tuple[Any, str]] = [  # and the type, as the message has it
    (object(), "builtins.object"),
    ({1, 2}, "builtins.set"),
    ({1: 2}, "builtins.dict"),
    (OrderedDict(a=1), "OrderedDict"),
    (Pair(1, 2), "Pair"),
    (Size(1, 2), "Size"),
    (Mode.GREY, "Mode"),
    (Number.ONE, "Number"),
    (Path("x"), "Path"),
    (np.array([None]), "numpy.ndarray"),
    (np.ma.masked_array([1, 2], [True, False]), "MaskedArray"),
    (np.datetime64("2020-01-01T00:00:00.000000001"), "numpy.datetime64"),
    (np.longdouble(1), "numpy.longdouble"),
    (np.complex64(1), "numpy.complex64"),
    (torch.eye(2).to_sparse(), "torch.Tensor"),
    ((n for n in "ab"), "generator"),
]


@pytest.mark.parametrize(("value", "kind"), UNKEPT, ids=[kind for _, kind in UNKEPT])
def test_a_result_that_could_not_come_back(tmp_path: Path, value: Any, kind: str) -> None:
    counted = Counted(tmp_path, {"a": [1, (value,)]})
    with pytest.raises(ConfigError, match=rf"the result has a \S*{kind}, which could not come back as it was; it can"):
        counted.function(1)
    assert files(tmp_path) == []


# keys


def distinct(folder: Path) -> list[Any]:
    """Values of which each must have a key of its own."""
    folder.mkdir()
    (folder / "a").write_text("x")
    return [
        *(None, 1, True, 1.0, "1", b"1", 0, False, "", b"", -0.0, 0.0, "None", "True", 10**5000, math.nan),
        *([], (), {}, [1], (1,), [[1]], [1, 1], ["a", "b"], ["ab"], ["a", "", "b"], [["a"], "b"], {"a": "b"}),
        *({"a": 1, "b": 2}, {"a": 2, "b": 1}, {1: 2}, {"1": 2}, {True: 2}, [("a", 1)]),
        *(np.arange(4), np.arange(4.0), np.arange(4).reshape(2, 2), np.arange(4, dtype=">i8"), np.array(1)),
        *(torch.arange(4), torch.arange(4.0), torch.arange(4).reshape(2, 2), torch.arange(4).bfloat16(), torch.ones(0)),
        *(np.zeros(2, np.int32), np.zeros(2, np.float32), torch.zeros(2, dtype=torch.int32), torch.zeros(2)),
        *(Mode.GREY, Mode.COLOUR, Number.ONE, "GREY", Size(1, 2), Size(2, 1), Extent(1, 2)),
        *(folder, folder / "a", str(folder)),
    ]


def test_each_value_has_its_own_key(tmp_path: Path) -> None:
    values = distinct(tmp_path / "data")
    counted = Counted(tmp_path / "store")
    for _ in range(2):
        for value in values:
            counted.function(value)
    assert counted.calls == len(values) == len(files(tmp_path / "store"))


def test_parts_do_not_run_together() -> None:
    assert len({_hash("k", b"ab", b"c"), _hash("k", b"a", b"bc"), _hash("k", b"abc"), _hash("ka", b"bc")}) == 4


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        (np.ones((2, 3)), np.asfortranarray(np.ones((2, 3)))),
        (torch.ones(2, 3), torch.ones(3, 2).T),
        (torch.ones(2), torch.ones(2, requires_grad=True)),
    ],
)
def test_equal_values_have_one(tmp_path: Path, one: Any, other: Any) -> None:
    counted = Counted(tmp_path)
    counted.function([one])
    counted.function([other])
    assert counted.calls == 1


def test_a_path_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counted(tmp_path / "store")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").touch()
        os.utime(tmp_path / name / "x", ns=(1, 1))
        monkeypatch.chdir(tmp_path / name)
        counted.function(Path("x"))
        counted.function(Path("x").absolute())
    assert counted.calls == 2


def test_however_it_is_called(tmp_path: Path) -> None:
    calls = itertools.count()

    @cached(key=["size", "mode"], ignore=["verbose"], folder=tmp_path)
    def preprocess(size: int, mode: str = "grey", *, verbose: bool = False) -> int:
        return next(calls)

    same = [preprocess(3), preprocess(size=3), preprocess(mode="grey", size=3), preprocess(3, "grey", verbose=True)]
    assert same == [0, 0, 0, 0]
    assert [preprocess(4), preprocess(3, "colour"), preprocess(3)] == [1, 2, 0]
    assert preprocess.__name__ == "preprocess"
    with pytest.raises(TypeError, match="size"):
        preprocess()  # type: ignore[call-arg]


@pytest.mark.parametrize("value", [object(), {1}, len, Pair(1, 2), Size, np.array([None]), torch.eye(2).to_sparse()])
def test_a_value_that_can_be_no_key(tmp_path: Path, value: Any) -> None:
    with pytest.raises(ConfigError, match=r"x of .*function is of type \S+; a key can be of None, bool, .*dataclass"):
        Counted(tmp_path).function([value])
    assert files(tmp_path) == []


def change_content(folder: Path) -> None:
    (folder / "deep/a").write_text("longer")


def change_time(folder: Path) -> None:
    os.utime(folder / "deep/a", ns=(1, 1))


def add(folder: Path) -> None:
    (folder / "deep/c").touch()


def rename(folder: Path) -> None:
    (folder / "deep/a").rename(folder / "deep/b")


@pytest.mark.parametrize("change", [change_content, change_time, add, rename])
def test_a_folder_counts_with_its_files(tmp_path: Path, change: Callable[[Path], None]) -> None:
    data = tmp_path / "data"
    (data / "deep").mkdir(parents=True)
    (data / "deep/a").write_text("x")
    counted = Counted(tmp_path / "store")
    for _ in range(2):
        counted.function(data)
    assert counted.calls == 1
    change(data)
    counted.function(data)
    assert counted.calls == 2


def test_a_file_counts_with_its_size_and_time(tmp_path: Path) -> None:
    path, counted = tmp_path / "a", Counted(tmp_path / "store")
    with pytest.raises(ConfigError, match=r"x of .* is a Path that cannot be read: .*a: No such file"):
        counted.function(path)
    for text, nanoseconds in (("x", 1), ("xy", 1), ("xy", 2), ("xy", 2)):
        path.write_text(text)
        os.utime(path, ns=(nanoseconds, nanoseconds))
        counted.function(path)
    assert counted.calls == 3


def define(code: str, folder: Path, name: str, module: str = "module") -> Callable[[], Any]:
    """`function` of a module with this code; `name` is its file, where there is one."""
    space: dict[str, Any] = {"cached": cached, "folder": folder, "__name__": module}
    exec(compile(code, name, "exec"), space)
    return space["function"]  # type: ignore[no-any-return]


@pytest.mark.parametrize("has_source", [True, False])
def test_the_code_counts(tmp_path: Path, has_source: bool) -> None:
    head, folder = "@cached(key=[], folder=folder)\ndef function(): ", tmp_path / "store"
    bodies = ["return 1", "return 2", "return str(1)", "return abs(1)", "return (lambda: 3)()", "return (lambda: 4)()"]
    results = []
    for turn in range(2):
        for number, body in enumerate(bodies):
            name = tmp_path / f"{turn}-{number}.py"
            if has_source:
                name.write_text(head + body)
            function = define(head + body, folder, str(name))
            assert has_source == _has_source(function)
            results.append(function())
    assert results == [1, 2, "1", 1, 3, 4] * 2
    assert len(files(folder)) == len(bodies)
    define(head + bodies[0], folder, str(name), "another")()
    assert len(files(folder)) == len(bodies) + 1


def _has_source(function: Callable[[], Any]) -> bool:
    try:
        return bool(inspect.getsource(function))
    except OSError:
        return False


def test_a_key_is_the_same_in_each_process(tmp_path: Path) -> None:
    """Also of what Python orders anew in each, such as a set in the bytecode."""
    code = (
        "from pathlib import Path; from tinyexp.cached import cached\n"
        'exec(\'\'\'@cached(key=["x"], folder=Path("store"))\n'
        'def function(x): return x in {"a", "b", "c", "d"}\'\'\')\n'
        "function({'a': 1, 'b': 2})"
    )
    code = code.replace("x in {", "str(x) in {")
    for seed in ("1", "2", "3"):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True, timeout=20)
    assert len(files(tmp_path / "store")) == 1


# methods


def test_methods(tmp_path: Path) -> None:
    class Faces:
        calls = 0
        mode = "grey"

        def __init__(self, size: int) -> None:
            self.size = size

        @cached(key=["size", "mode", "count"], folder=tmp_path)
        def images(self, count: int) -> list[Any]:
            """Some."""
            Faces.calls += 1
            return [type(self).__name__, self.size, self.mode, count]

    class Cars(Faces):
        pass

    faces = Faces(3)
    assert faces.images(1) == Faces(3).images(count=1) == Faces.images(faces, 1) == ["Faces", 3, "grey", 1]
    assert Faces.calls == 1
    faces.mode = "colour"
    assert faces.images(1) == ["Faces", 3, "colour", 1]
    assert Faces(4).images(1) == ["Faces", 4, "grey", 1]
    assert Cars(3).images(1) == ["Cars", 3, "grey", 1]
    assert Faces.images.__doc__ == "Some."
    del faces.size
    with pytest.raises(
        ConfigError, match="its key names size, which is neither a parameter nor an attribute of this Fa"
    ):
        faces.images(1)


# at decoration


def plain(size: int, mode: str = "grey") -> None: ...


def starred(*sizes: int) -> None: ...


def double_starred(**sizes: int) -> None: ...


def method(self: Any, size: int) -> None: ...


@pytest.mark.parametrize(
    ("function", "key", "ignore", "told"),
    [
        (plain, ["size"], [], "parameter mode must stand in key or in ignore, and stands in neither: put it in key if"),
        (plain, ["mode"], [], "parameter size must stand in key or in ignore"),
        (plain, ["size", "mode"], ["mode"], "parameter mode must .* stands in both"),
        (plain, ["size", "mode", "siez"], [], r"siez is no parameter; did you mean size\?"),
        (plain, ["size", "mode"], ["verbose"], "verbose is no parameter"),
        (plain, "size", [], r"write \['size'\] and not 'size'"),
        (plain, ["size"], "mode", r"write \['size'\] and not 'size'"),
        (starred, ["sizes"], [], r"\*sizes.* has no names for a key: write each parameter out"),
        (double_starred, [], ["sizes"], r"\*\*sizes.* has no names for a key"),
        (method, ["size"], ["mode"], "mode is no parameter"),
        (method, ["mode"], [], "parameter size must stand"),
    ],
)
def test_refused_at_decoration(function: Callable[..., None], key: Any, ignore: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=rf"@cached of test_cached\.{function.__name__}: .*{told}"):
        cached(key=key, ignore=ignore)(function)


# the file


def test_the_default_folder_is_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is at the call."""
    decorated = cached(key=["size", "mode"])(plain)
    elsewhere = cached(key=["size", "mode"], folder="~/deep")(plain)
    monkeypatch.setenv("HOME", str(tmp_path))
    decorated(1)
    elsewhere(1)
    (name,) = [path.name for path in files(tmp_path / ".cache/tinyexp/cached")]
    assert name.startswith("plain-")
    assert name.endswith(".npz")
    assert len(files(tmp_path / "deep")) == 1


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("exploded"),)


def npz(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def tree(value: Any) -> np.ndarray[Any, Any]:
    return np.frombuffer(json.dumps(value).encode(), np.uint8)


def npy(value: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, value)
    return file.getvalue()


def bad_crc(whole: bytes) -> bytes:
    """A bit of the array's data is another."""
    position = whole.index(np.arange(100.0).tobytes()) + 333
    return whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda whole: b"",
    "cut": lambda whole: whole[: len(whole) // 2],
    "cut by one": lambda whole: whole[:-1],
    "zeros": lambda whole: bytes(len(whole)),
    "text": lambda whole: b"precious",
    "crc": bad_crc,
    "pickle": lambda whole: pickle.dumps(Bomb()),
    "pickle in npz": lambda whole: npz(tree=np.array([Bomb()], object)),
    "pickle in array": lambda whole: npz(tree=tree(["array", "0"]), **{"0": np.array([Bomb()], object)}),
    "npy": lambda whole: npy(np.arange(3)),
    "no tree": lambda whole: npz(other=np.arange(3)),
    "no json": lambda whole: npz(tree=np.frombuffer(b'["list"', np.uint8)),
    "no array": lambda whole: npz(tree=tree(["array", "0"])),
    "unknown kind": lambda whole: npz(tree=tree(["set", []])),
    "no kind": lambda whole: npz(tree=tree([])),
    "no dtype": lambda whole: npz(tree=tree(["tensor", "0", "load", [3]]), **{"0": np.arange(3)}),
    "wrong shape": lambda whole: npz(tree=tree(["tensor", "0", "uint8", [4]]), **{"0": np.zeros(3, np.uint8)}),
    "deep": lambda whole: npz(tree=np.frombuffer(b"[" * 100_000, np.uint8)),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file(
    tmp_path: Path,
    damage: Callable[[bytes], bytes],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is told and computed again, and nothing in it is run."""
    monkeypatch.chdir(tmp_path)
    counted = Counted(tmp_path / "store", [np.arange(100.0)])
    counted.function(1)
    (path,) = files(tmp_path / "store")
    whole = path.read_bytes()
    damaged = damage(whole)
    path.write_bytes(damaged)
    assert_same(counted.function(1), [np.arange(100.0)])
    assert counted.calls == 2
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert f"{path} is damaged and is computed again" in warning
    assert files(tmp_path / "store") == [path]
    assert zipfile.ZipFile(path).testzip() is None
    counted.function(1)
    assert counted.calls == 2
    assert not Path("exploded").exists()


def test_a_whole_file_put_there_meanwhile_stays(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    path.write_text("damaged")
    with path.open("rb") as file:
        (tmp_path / "aside").write_text("whole")
        (tmp_path / "aside").rename(path)
        _remove_damaged(path, file)
    assert path.read_text() == "whole"


def test_what_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    counted = Counted(tmp_path)
    counted.function(1)
    counted.function(1)
    (path,) = files(tmp_path)
    assert {record.name for record in caplog.records} == {"tinyexp.cached"}
    miss, hit = [record.getMessage() for record in caplog.records]
    name, _, digest = path.stem.rpartition("-")
    assert miss == f"cached: miss {name} {digest}, computed in 0.0 s"
    assert hit.startswith(f"cached: hit {name} {digest} (0.0")
    assert len(bytes.fromhex(digest)) == 16


# a function that fails, and many at once


@pytest.mark.parametrize(
    "error", [ValueError("no"), KeyboardInterrupt(), OSError(errno.ENOSPC, "its own disk"), FileNotFoundError()]
)
def test_what_the_function_raises_passes(tmp_path: Path, error: BaseException) -> None:
    failing = True

    @cached(key=[], folder=tmp_path)
    def function() -> int:
        if failing:
            raise error
        return 3

    with pytest.raises(type(error)) as raised:
        function()
    assert raised.value is error
    assert raised.value.__context__ is None
    assert files(tmp_path) == []
    failing = False
    assert function() == 3


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache's own: its folder is named, and how to give another."""

    def full(*arguments: Any, **named: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(
        ResourceError, match=f"made in {tmp_path}: No space .*make room there, or give another folder to"
    ):
        Counted(tmp_path).function(1)
    assert files(tmp_path) == []


@pytest.mark.parametrize("there", ["nothing", "damaged"])
def test_many_processes_compute_once(tmp_path: Path, there: str) -> None:
    (tmp_path / "module.py").write_text(
        "import time; from pathlib import Path; from tinyexp.cached import cached\n"
        "@cached(key=['size'], folder='store')\n"
        "def preprocess(size):\n"
        "    with Path('calls').open('a') as file: file.write('x')\n"
        "    time.sleep(0.3)\n"
        "    return {'size': size}\n"
    )
    code = "import module; Path = module.Path; Path('go').open().close(); print(module.preprocess(3))"
    os.mkfifo(tmp_path / "go")
    command = [sys.executable, "-c", code]
    if there == "damaged":
        one = subprocess.Popen(command, cwd=tmp_path)
        (tmp_path / "go").open("w").close()
        assert one.wait(20) == 0
        (path,) = files(tmp_path / "store")
        path.write_bytes(path.read_bytes()[:-5])
        (tmp_path / "calls").unlink()
    pipe = subprocess.PIPE
    children = [subprocess.Popen(command, cwd=tmp_path, stdout=pipe, text=True) for _ in range(6)]
    with (tmp_path / "go").open("w"):
        said = [child.communicate(timeout=20)[0] for child in children]
    assert said == ["{'size': 3}\n"] * 6
    assert (tmp_path / "calls").read_text() == "x"
    assert len(files(tmp_path / "store")) == 1


def test_imported_without_torch_and_numpy() -> None:
    """`import tinyexp` may take it in, and a plain result needs no torch."""
    code = (
        "import sys; from tinyexp.cached import cached; assert 'numpy' not in sys.modules\n"
        "import pathlib, tempfile\n"
        "with tempfile.TemporaryDirectory() as folder:\n"
        "    function = cached(key=[], folder=folder)(lambda: [1, b'x'])\n"
        "    assert function() == function() == [1, b'x']\n"
        "assert 'numpy' in sys.modules and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=20)
