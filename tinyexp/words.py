"""The words of a command line: verb, PATHs, --options and overrides. Each verb says its own form in its docstring.

A verb's first line is `VERB PATHS [--option VALUE]: meaning`; it is read without importing the verb, which may need
torch. A folder's listing is the registry.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tinyexp.errors import ConfigError, did_you_mean

_VERBS = Path(__file__).with_name("verbs")
_FLAGS = {  # spellings, as Hydra has them
    "--help": "help",
    "-h": "help",
    "--version": "version",
    "--multirun": "multirun",
    "-m": "multirun",
    "--hydra-help": "hydra-help",
    "--resolve": "resolve",
}
_OPTIONS = {  # and those that a value follows
    "--config-dir": "config-dir",
    "-cd": "config-dir",
    "--cfg": "cfg",
    "-c": "cfg",
    "--info": "info",
    "-i": "info",
    "--package": "package",
    "-p": "package",
}
_OF_HYDRA = ("cfg", "info", "hydra-help", "resolve", "package")
_CFG = ("job", "hydra", "all")
_INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")


@dataclass(frozen=True)
class Usage:
    """What a verb takes."""

    form: str  # VERB PATHS [--option VALUE]
    meaning: str
    text: str  # the whole of it

    @property
    def options(self) -> list[str]:
        """Those that a value follows."""
        return re.findall(r"--([a-z]+) ", self.form)

    @property
    def switches(self) -> list[str]:
        """Those that stand alone."""
        return re.findall(r"--([a-z]+)\]", self.form)

    @property
    def takes_paths(self) -> bool:
        return bool(self._paths)

    @property
    def _paths(self) -> list[str]:
        return [word for word in re.sub(r"\[.*?\]", "", self.form).split()[1:] if "=" not in word]

    def check_paths(self, paths: Sequence[str]) -> None:
        """Raises ConfigError for too few or too many."""
        needed, several = len(self._paths), self._paths[-1].endswith("...")
        if len(paths) < needed or (len(paths) > needed and not several):
            count = {1: "one path", 2: "two paths"}[needed]
            verb, wanted = self.form.split()[0], f"{count} or more" if several else count
            raise ConfigError(f"{verb} takes {wanted}, got {len(paths)}: tinyexp {self.form}")


@dataclass(kw_only=True)
class Words:
    """A command line, taken apart."""

    verb: str = "train"
    paths: list[str] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list)  # --config-dir among them, as what it stands for
    options: dict[str, str] = field(default_factory=dict)
    flags: set[str] = field(default_factory=set)
    hydra: list[str] = field(default_factory=list)  # the words that Hydra's own command line takes


def usages() -> dict[str, Usage]:
    """The verbs there are, train first."""
    found = {}
    for path in sorted(_VERBS.glob("[!_]*.py"), key=lambda path: (path.stem != "train", path.stem)):
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        form, _, text = docstring.partition(": ")
        found[path.stem] = Usage(form, meaning=text.split("\n", 1)[0].rstrip("."), text=text)
    return found


def split(words: Sequence[str], known: dict[str, Usage]) -> Words:
    """Raises ConfigError for what is neither a verb, a path that the verb takes, an option of its nor an override."""
    line, rest, folders = Words(), list(words), list[str]()
    if rest and rest[0] in known:
        line.verb = rest.pop(0)
    options = _OPTIONS | {f"--{name}": name for name in known[line.verb].options}
    switches = {f"--{name}": name for name in known[line.verb].switches}
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if name in _FLAGS:
            line.flags.add(_FLAGS[name])
            line.hydra += [name] * (_FLAGS[name] in _OF_HYDRA)
        elif word in switches:
            line.options[switches[word]] = ""
        elif name in options:
            value = value if equals else _value(options[name], name, rest)
            if options[name] == "config-dir":
                folders.append(value)
            else:
                _take(line, options[name], value, name)
        elif word.startswith("-"):
            raise ConfigError(f"{word} is no option{did_you_mean(word, {*options, *switches, *_FLAGS})}")
        else:
            is_override = "=" in word or word[:1] in ("~", "+")
            (line.overrides if is_override else line.paths).append(word)
    return _settle(line, folders, known)


def _settle(line: Words, folders: list[str], known: dict[str, Usage]) -> Words:
    """What the words mean together."""
    if folders:
        from tinyexp.overrides import config_dir

        line.overrides.insert(0, config_dir(folders))
    line.hydra += line.overrides
    if line.flags & {"resolve", "package"} and "cfg" not in line.flags:
        raise ConfigError("--resolve and --package say how --cfg job prints: give it too")
    if "multirun" in line.flags:
        if line.verb not in ("train", "sweep"):
            raise ConfigError(f"-m is for training, {line.verb} is one thing at a time")
        if line.flags & set(_OF_HYDRA):
            raise ConfigError("--cfg and --info show one run: leave -m and its several values out")
        line.verb = "sweep"
    if not line.flags & {"help", "version"}:
        _check_paths(line, known)
    return line


def _take(line: Words, name: str, value: str, spelled: str) -> None:
    """One option with its value."""
    allowed = {"cfg": _CFG, "info": _INFO}.get(name, (value,))
    if value not in allowed:
        raise ConfigError(f"{spelled} must be one of {' | '.join(allowed)}, got {value!r}")
    if name in _OF_HYDRA:
        line.hydra += [spelled, value]
        line.flags.add(name)
        line.options[name] = value
    else:
        line.options[name] = value


def _value(name: str, spelled: str, rest: list[str]) -> str:
    """The word after an option; --info may stand alone."""
    if name == "info" and (not rest or rest[0] not in _INFO):
        return "all"
    if not rest:
        raise ConfigError(f"{spelled} needs a value after it")
    return rest.pop(0)


def _check_paths(line: Words, known: dict[str, Usage]) -> None:
    usage = known[line.verb]
    if usage.takes_paths:
        usage.check_paths(line.paths)
    elif line.paths and line.paths[0] in known:
        raise ConfigError(f"the verb comes first: tinyexp {line.paths[0]} ...")
    elif line.paths:
        raise ConfigError(f"{line.paths[0]} is neither a verb nor key=value{did_you_mean(line.paths[0], known)}")
