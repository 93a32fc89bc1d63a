"""docs/configuration.md, from the YAML files of conf/ with their comments, and from the types in tinyexp/config.py.

`make docs` writes the page; `python docs/configuration.py --check` ends with 1 where it is not current.
"""

from __future__ import annotations

import re
import sys
import typing
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any

import yaml

from tinyexp.config import Component, Config, LoaderConfig
from tinyexp.keys import flatten
from tinyexp.typed import options, spelled

ROOT = Path(__file__).resolve().parent.parent
CONF = ROOT / "conf"
PAGE = ROOT / "docs" / "configuration.md"

INTRO = """\
# Configuration

Every key of a run: its default, what it may be, what it means. `make docs` writes this page from the files of
[conf/](../conf) and the types in [tinyexp/config.py](../tinyexp/config.py): change those, not the page.

    python -m tinyexp train.epochs=5 optim.lr=0.01    # change a value
    python -m tinyexp model=resnet18 optim=sgd        # take another file of a group
    python -m tinyexp 'optim.betas=[0.9, 0.99]'       # a list; the quotes are for the shell
    python -m tinyexp ckpt.every_minutes=null         # null is no value
    python -m tinyexp +optim.amsgrad=true             # add an argument that the file leaves out
    python -m tinyexp '~model.dropout'                # delete one: the class's own default counts
    python -m tinyexp optim._target_=torch.optim.RAdam    # another class; it gets those arguments that it takes
    python -m tinyexp model=resnet18 --cfg job        # print the composed config and train nothing

What is wrong ends the command with exit code 2 and one message, before anything is trained:

- a key that does not exist, as `optim.lrr`; the message asks whether the nearest one was meant.
- a value of another type: `train.epochs must be an integer, got 'fast'`. An integer counts as a number.
- a value out of bounds: `train.epochs must be at least 1, got 0`. A number must be finite.
- an argument that the class does not take, or one that it needs and has not got.
"""

GROUPS = """\
A group's keys are those of the file that was chosen. `dataset`, `model`, `optim` and `scheduler` name a class or
function by `_target_` and hand it the other keys as arguments. Its signature says which there are, and the type below
is that of the default; what else is taken stands under the meaning. The loader's keys and `hw` are checked like ours.
"""

LINE = re.compile(r"(?P<indent> *)(?:- )?(?P<name>[^\s:#-][^:#]*):(?: +(?P<value>[^\s#].*?))?(?: +# *(?P<text>.*))?$")


class Key(typing.NamedTuple):
    value: str  # as the file spells it
    meaning: str


@dataclass(frozen=True, kw_only=True)
class File:
    """A YAML of conf/."""

    head: str  # the comment that it begins with
    bases: list[str]  # files of its group that it goes on from
    choices: dict[str, str]  # of other groups
    target: str | None
    keys: dict[str, Key]


def read(path: Path) -> File:
    """A file with its comments, behind a key or above it. They are found line by line, and checked against YAML's."""
    lines = path.read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    head = [line[1:].strip() for line in lines[:start] if not line.startswith("# @package")]
    keys = {key: at for key, at in _keys(lines[start:]).items() if key.partition(".")[0] != "defaults"}
    values = yaml.safe_load("\n".join(lines))
    defaults = values.pop("defaults", [])
    choices = [choice for entry in defaults if isinstance(entry, dict) for choice in entry.items()]
    found = flatten({key: yaml.safe_load(at.value) for key, at in keys.items()})
    assert found == flatten(values), f"{path}: each key must stand in one line with its value, got {found}"
    keys.pop("_target_", None)
    return File(
        head="\n".join(f"\n    {line}\n" if line.startswith("python ") else plain(line) for line in head),
        bases=[base for base in defaults if isinstance(base, str) and base != "_self_"],
        choices={group.rpartition("/")[2]: choice for group, choice in choices},
        target=values.get("_target_"),
        keys=keys,
    )


def _keys(lines: list[str]) -> dict[str, Key]:
    keys: dict[str, Key] = {}
    parents: list[tuple[int, str]] = []  # indent and name of the mappings around a line, and of its own key
    above: list[str] = []
    for line in lines:
        if line.strip().startswith("#"):
            above.append(line.strip("# "))
            continue
        if match := LINE.match(line):
            indent = len(match["indent"])
            parents = [*(parent for parent in parents if parent[0] < indent), (indent, match["name"])]
            texts = [*above, *([match["text"]] if match["text"] else [])]
            assert match["value"] or not texts, f"a comment at {match['name']}, which has no value, would be lost"
            if match["value"]:
                keys[".".join(name for _, name in parents)] = Key(match["value"], "; ".join(texts))
        above = []
    return keys


def hints(kind: type, prefix: str = "") -> dict[str, Any]:
    """The annotations of a dataclass and of those in it, by full key."""
    found: dict[str, Any] = {}
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        key = "dataset" if hint is LoaderConfig else f"{prefix}{name}"
        if is_dataclass(hint) and hint is not Component:
            found |= hints(typing.cast(type, hint), f"{key}.")
        elif hint is not Component:
            found[key] = hint
    return found


HINTS = hints(Config)


def type_of(key: str, value: str) -> str:
    """Type and bound: by the annotation, or for an argument of a class by the value."""
    if key in HINTS:
        rules = [rule.text for _, rule in options(HINTS[key]) if rule]
        return ": ".join([spelled(HINTS[key]), *rules])
    default = yaml.safe_load(value)
    return "must be given" if default == "???" else "a list" if isinstance(default, list) else spelled(type(default))


def table(keys: dict[str, Key]) -> str:
    """A row for each key by its full name; nothing for none."""
    rows = [(f"`{key}`", f"`{at.value}`", plain(type_of(key, at.value)), plain(at.meaning)) for key, at in keys.items()]
    lines = [("Key", "Default", "Type", "Meaning"), ("---",) * 4, *rows] if rows else []
    bars = [[cell.replace("|", r"\|") for cell in line] for line in lines]  # a bare one ends a cell
    return "\n".join(f"| {' | '.join(line)} |" for line in bars)


def plain(text: str) -> str:
    """Characters that Markdown would take for its own, as they are."""
    return re.sub(r"([*<~])", r"\\\1", text)


def page(conf: Path) -> str:
    """The whole page."""
    config = read(conf / "config.yaml")
    sections: dict[str, dict[str, Key]] = {}
    for key, at in config.keys.items():
        sections.setdefault(key.partition(".")[0] if "." in key else "top level", {})[key] = at
    parts = [INTRO, "## Our own keys", config.head]
    for name, keys in sections.items():
        parts += [f"### {name}", table(keys)]
    parts += ["## Groups", GROUPS]
    for name, default in config.choices.items():
        parts += group(conf, name, default, config)
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def group(conf: Path, name: str, default: str, config: File) -> list[str]:
    """The sections of a group: its choices, and what they share."""
    files = {path.stem: read(path) for path in sorted((conf / name).glob("*.yaml"))}
    choices = [f"`{name}={choice}`{' (the default)' * (choice == default)}" for choice in files if choice[0] != "_"]
    parts = [f"## {name}", f"{', '.join(choices)}."]
    prefix = "" if name == "experiment" else f"{name}."
    for choice, file in files.items():
        meant = {f"{prefix}{key}": at.meaning for base in file.bases for key, at in files[base].keys.items()}
        if name == "experiment":
            meant |= {key: at.meaning for key, at in config.keys.items()}
            for other, one in {**config.choices, **file.choices}.items():
                meant |= {f"{other}.{key}": text for key, text in meanings(conf / other, one).items()}
        keys = {f"{prefix}{key}": at for key, at in file.keys.items()}
        parts += [
            f"### {name}: shared keys" if choice[0] == "_" else f"### {name}={choice}",
            file.head,
            f"`{name}._target_` is `{file.target}`." if file.target else "",
            f"Chooses {', '.join(f'`{other}={one}`' for other, one in file.choices.items())}." if file.choices else "",
            table({key: Key(at.value, at.meaning or meant.get(key, "")) for key, at in keys.items()}),
            *(f"The rest is {'shared' if base[0] == '_' else f'as for `{name}={base}`'}." for base in file.bases),
        ]
    return parts


def meanings(folder: Path, choice: str) -> dict[str, str]:
    """Of a choice's keys, those of its bases among them; nothing for null."""
    if not (folder / f"{choice}.yaml").is_file():
        return {}
    file = read(folder / f"{choice}.yaml")
    bases = [meanings(folder, base) for base in file.bases]
    return {key: text for each in bases for key, text in each.items()} | {
        key: at.meaning for key, at in file.keys.items() if at.meaning
    }


def main(words: list[str]) -> int:
    """Write the page, or with --check compare it; the exit code."""
    current = page(CONF)
    if words != ["--check"]:
        PAGE.write_text(current, encoding="utf-8")
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != current:
        print(f"{PAGE} is not what conf/ and tinyexp/config.py say: run `make docs`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
