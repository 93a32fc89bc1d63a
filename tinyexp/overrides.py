"""The words of a command line in Hydra's grammar: which keys they set, and the jobs that a sweep makes of them.

This file and hydraconf.py alone import hydra; omegaconf also compose.py, stored.py and validate.py.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString, ValueType
from hydra.errors import HydraException

from tinyexp.config import SLOTS
from tinyexp.errors import ConfigError, did_you_mean
from tinyexp.keys import flatten

_PACKAGE = Path(__file__).resolve().parent
# In a checkout conf/ stands beside the package, in a wheel within it.
CONF = next(
    (path for path in (_PACKAGE.parent / "conf", _PACKAGE / "conf") if (path / "config.yaml").is_file()),
    _PACKAGE / "conf",
)
GROUPS = (*SLOTS, "transfer", "hw", "sweep", "experiment")
_SEARCHPATH = "hydra.searchpath"
_FILE = "file://"
_PLAIN = re.compile(r"[\w/.+-]+", re.ASCII)  # a text that may need no quotes
_ONE_VALUE = ("sweep", "run.dir", "run.root", "resume", "config_file")
_INSTEAD = {"hydra.run.dir": "run.dir", "hydra.sweep.dir": "sweep.dir", "hydra.sweeper.params": "sweep.grid"}


@dataclass(frozen=True)
class Overrides:
    """The overrides of a command line, in their order."""

    each: tuple[Override, ...]

    @property
    def words(self) -> list[str]:
        return [str(override.input_line) for override in self.each]

    @property
    def given(self) -> frozenset[str]:
        """The keys and groups that they name, those in a mapping's value among them."""
        values = {one.key_or_group: one.value() for one in self.each}
        inner = (flatten(value, f"{key}.") for key, value in values.items() if isinstance(value, dict))
        return frozenset(values).union(*inner)

    @property
    def folders(self) -> tuple[Path, ...]:
        """Where conf/'s files are looked for: the program's own folder, then those of --config-dir."""
        return (CONF, *(Path(place.removeprefix(_FILE)) for place in self.value(_SEARCHPATH) or []))

    def value(self, key: str) -> Any:
        """What a key is set to, by itself or in a mapping's value; None where it is not."""
        found = None
        for one in self.each:
            value = one.value()
            values = flatten(value, f"{one.key_or_group}.") if isinstance(value, dict) else {one.key_or_group: value}
            found = values.get(key, value if one.key_or_group == key else found)
        return found

    @property
    def swept(self) -> str | None:
        """The first word that gives several values."""
        return next((str(one.input_line) for one in self.each if one.is_sweep_override()), None)

    def split(self) -> tuple[Overrides, Overrides]:
        """Those that choose one of a group's files or say where these are looked for, and the rest."""
        chosen = [
            one
            for one in self.each
            if one.key_or_group == _SEARCHPATH
            or (one.key_or_group in GROUPS and not one.is_delete() and not isinstance(one.value(), dict))
        ]
        return Overrides(tuple(chosen)), Overrides(tuple(one for one in self.each if one not in chosen))

    def choices(self) -> dict[str, list[str]]:
        """What each group of conf/ offers, by its path there: a folder's listing is the registry."""
        found = {}
        for group in GROUPS:
            paths = [
                path.relative_to(folder / group).with_suffix("").as_posix()
                for folder in self.folders
                for path in (folder / group).rglob("*.yaml")
                if not path.name.startswith("_")
            ]
            found[group] = sorted(set(paths))
        return found


def parse(words: Sequence[str]) -> Overrides:
    """The overrides of these words; of several for one key the last counts.

    Raises:
        ConfigError: a word that is no override, or one that has no effect here.
    """
    parsed: dict[str, Override] = {}
    for word in words:
        try:
            (override,) = OverridesParser.create().parse_overrides([_lenient(word)])
        except HydraException as error:
            told = str(error).strip().split("\n")[0]
            cure = "; a value with such signs is put in quotes: \"run.dir='~/my runs'\"" if "Lexer" in told else ""
            raise ConfigError(f"{word!r} is no override such as train.epochs=3: {told}{cure}") from error
        key = override.key_or_group
        if not key:
            raise ConfigError(f"{word!r} is no override such as train.epochs=3: it names no key")
        if re.split(r"[./]", key)[0] == "hydra" and key != _SEARCHPATH:
            instead = next((f": use {ours}" for theirs, ours in _INSTEAD.items() if key.startswith(theirs)), "")
            raise ConfigError(f"{key} is Hydra's own key and has no effect here{instead}")
        if override.package is not None:
            raise ConfigError(f"{override.input_line}: a group has its own place, leave @{override.package} out")
        parsed.pop(key, None)
        parsed[key] = override
    return Overrides(tuple(parsed.values()))


def choices(words: Sequence[str] = ()) -> dict[str, list[str]]:
    """What each group of conf/, and of a --config-dir among the words, offers."""
    return parse(words).choices()


def no_choice(group: str, value: object, names: Sequence[str]) -> str:
    """What is said of a name that a group does not offer."""
    return f"{group}={value} is no choice{did_you_mean(str(value), names)} (all: {', '.join(names)})"


def _lenient(word: str) -> str:
    """+key=value is taken where the key is there already, too: what it asks for is the same."""
    if word.startswith(
        ("sweep.grid", "sweep.space", "sweep.submitit", "transfer.rename")
    ):  # whose keys are whatever is named
        return f"++{word}"
    if not word.startswith("+") or word.startswith("++"):
        return word
    return word[1:] if word[1:].partition("=")[0] in GROUPS else f"+{word}"


def config_dir(folders: Sequence[str]) -> str:
    """The override that `--config-dir FOLDER` stands for. Raises ConfigError where there is no such folder."""
    paths = [Path(folder).expanduser() for folder in folders]
    if missing := [path for path in paths if not path.is_dir()]:
        raise ConfigError(
            f"--config-dir {missing[0]} is no folder: it holds groups as conf/ does, such as model/mine.yaml"
        )
    return word(_SEARCHPATH, [f"{_FILE}{path.resolve()}" for path in paths])


def word(key: str, value: object) -> str:
    """KEY=VALUE in Hydra's grammar, quoted where it must be."""
    return f"{key}={_spell(value)}"


@dataclass(frozen=True)
class Job:
    """One run of a sweep: all its words, and those values that differ from job to job."""

    words: tuple[str, ...]
    label: Mapping[str, str]


def jobs(overrides: Overrides, grid: Mapping[str, Any]) -> list[Job]:
    """Each combination of the swept values, the last varying fastest; `grid` adds keys that the words do not set.

    Raises:
        ConfigError: values that cannot be counted, or a pattern that no choice matches.
    """
    choices = overrides.choices()
    swept_keys = [one.key_or_group for one in overrides.each if one.is_sweep_override()]
    grid_keys = [key.lstrip("+") for key in grid]
    if wrong := [key for key in (*swept_keys, *grid_keys) if key.startswith(_ONE_VALUE)]:
        raise ConfigError(f"{wrong[0]} is one for the whole sweep, and cannot be swept")
    if "experiment" in grid_keys:
        raise ConfigError("experiment cannot be in sweep.grid, which an experiment holds: give -m experiment=a,b")
    axes = [_words(override, choices) for override in overrides.each]
    for key, values in grid.items():
        if key.lstrip("+") not in overrides.given:
            axes.append(_grid_words(key, values, choices))
    swept = [position for position, words in enumerate(axes) if len(words) > 1]
    return [
        Job(words, {key.lstrip("+"): value for key, _, value in (words[i].partition("=") for i in swept)})
        for words in itertools.product(*axes)
    ]


def _grid_words(key: str, values: object, choices: Mapping[str, list[str]]) -> list[str]:
    """A line of sweep.grid: a list of values, or Hydra's text such as range(3)."""
    if isinstance(values, list) and values:
        return [word(key, value) for value in values]
    if isinstance(values, (list, dict)) or values is None:
        raise ConfigError(f"sweep.grid.{key} must be a list of values or a text such as range(3), got {values!r}")
    return _words(parse([f"{key}={values}"]).each[0], choices)


def _words(override: Override, choices: Mapping[str, list[str]]) -> list[str]:
    """The word of each value that an override gives."""
    line = str(override.input_line)
    if not override.is_sweep_override():
        return [line]
    if override.value_type is ValueType.GLOB_CHOICE_SWEEP:
        names = choices.get(override.key_or_group, [])
        pattern: Any = override.value()
        values: list[str] = pattern.filter(names)
        if not values:
            raise ConfigError(f"{line} matches no choice{did_you_mean('', names)}")
    elif override.is_discrete_sweep():
        values = list(override.sweep_string_iterator())
        if not values:
            raise ConfigError(f"{line} gives no value: the end of a range is not in it, as range(3) is 0,1,2")
    else:
        raise ConfigError(f"{line} has no end of values: give some, as {override.key_or_group}=0.1,0.2 or range(3)")
    return [f"{override.get_key_element()}={value}" for value in values]


def _spell(value: object) -> str:
    """A value as Hydra's grammar reads it back."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_spell(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(_spell, value)) + "]"
    if isinstance(value, str) and not (_PLAIN.fullmatch(value) and parse([f"k={value}"]).value("k") == value):
        return QuotedString(value, Quote.single).with_quotes()
    return str(value)
