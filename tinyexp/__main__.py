"""The door: a verb, its PATHs, then Hydra overrides -> one function call, and every error in one message.

python -m tinyexp [overrides]                     train one run
python -m tinyexp eval RUN|CHECKPOINT [overrides] score again
python -m tinyexp show RUN|CHECKPOINT             what is in it
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
import traceback
from collections.abc import Sequence

from tinyexp import __version__, verbs
from tinyexp.errors import ConfigError, TinyexpError, did_you_mean, exit_code

_HELP = """\
tinyexp: Hydra-composed experiments for PyTorch image classification

  tinyexp [overrides]                        train one run (`python -m tinyexp` is the same)
  tinyexp eval RUN|CHECKPOINT [overrides]    score again; equals what the run logged
  tinyexp show RUN|CHECKPOINT                tensors, optimizer, config and scores

An override is key=value or group=choice:
  tinyexp model=resnet18 optim=sgd optim.lr=0.05 train.epochs=10
  tinyexp experiment=fashion_lenet5
  tinyexp resume=outputs/RUN                 go on with a run that was cut
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code (the table is in README.md)."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        _run(words)
    except TinyexpError as error:
        print(f"tinyexp: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    except KeyboardInterrupt:
        print("tinyexp: interrupted before there was anything to save", file=sys.stderr)  # noqa: T201
        return 1
    except Exception as error:  # the last resort: an error of ours, or of the user's own class
        traceback.print_exc()
        return exit_code(error)
    return 0


def console() -> None:
    """The console script `tinyexp`."""
    sys.exit(main())


def _run(words: list[str]) -> None:
    if {"-h", "--help"} & set(words):
        print(f"{_HELP}\n{_choices()}")  # noqa: T201
        return
    if "--version" in words:
        print(__version__)  # noqa: T201
        return
    names = [module.name for module in pkgutil.iter_modules(verbs.__path__)]
    verb = words.pop(0) if words and words[0] in names else "train"
    paths = [word for word in words if "=" not in word and word[:1] not in "~+-"]
    overrides = [word for word in words if word not in paths]
    if unknown := [word for word in overrides if word.startswith("-")]:
        raise ConfigError(f"{unknown[0]} is no option{did_you_mean(unknown[0], ('--help', '--version'))}")
    if verb == "train":
        _train(paths, overrides, names)
        return
    module = importlib.import_module(f"tinyexp.verbs.{verb}")
    if len(paths) != 1:
        raise ConfigError(f"{verb} takes one path, got {len(paths)}: tinyexp {module.USAGE}")
    module.main(paths, overrides)


def _train(paths: list[str], overrides: list[str], names: list[str]) -> None:
    if paths and paths[0] in names:
        raise ConfigError(f"the verb comes first: tinyexp {paths[0]} ...")
    if paths:
        raise ConfigError(f"{paths[0]} is neither a verb nor key=value{did_you_mean(paths[0], names)}")
    from tinyexp.compose import compose_run

    config = compose_run(overrides)  # every typo is an error here, before torch is imported
    from tinyexp.verbs.train import train

    train(config)


def _choices() -> str:
    from tinyexp.compose import choices

    return "\n".join(f"  {group + '=':12}{' | '.join(names)}" for group, names in choices().items())


if __name__ == "__main__":
    console()
