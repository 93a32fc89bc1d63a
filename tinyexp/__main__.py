"""The door: a verb, its PATHs and --options, then Hydra overrides -> one function call; every error in one message."""

from __future__ import annotations

import importlib
import os
import re
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from tinyexp import __version__
from tinyexp.errors import ConfigError, TinyexpError, did_you_mean, exit_code
from tinyexp.heartbeat import end_with_sweep, local_rank, rank_tag, report
from tinyexp.launch import is_wanted, launch
from tinyexp.words import Usage, Words, split, usages

_HELP = """\
tinyexp: Hydra-composed experiments for PyTorch image classification

{usages}

  -m, --multirun        the verb sweep: tinyexp -m optim.lr=1e-3,1e-2 'train.seed=range(3)'
  --config-dir DIR      groups of your own, as DIR/model/mine.yaml
  --cfg job             print the composed config; --info says how Hydra came to it
  --version

An override is key=value, group=choice, +key=value (what only the class takes) or ~key:
  tinyexp model=resnet18 optim=sgd optim.lr=0.05 train.epochs=10
  tinyexp experiment=fashion_lenet5
  tinyexp resume=outputs/RUN                 go on with a run that was cut

{choices}

Completion: eval "$(tinyexp -sc install=bash)"; zsh the same; tinyexp -sc install=fish | source
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code (the table is in README.md)."""
    words = list(sys.argv[1:] if argv is None else argv)
    code, told, say = 0, "", True
    try:
        code = _run(words)
    except TinyexpError as error:
        code, told = error.exit_code, str(error)
        # what is wrong in words is so on all ranks, and one says it
        say = not error.silent and (error.explained or not isinstance(error, ConfigError) or local_rank() == 0)
    except BrokenPipeError:  # the reader of stdout, as `head`, has what it wants
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except KeyboardInterrupt:
        code, told = 1, "interrupted before there was anything to save"
    except Exception as error:  # the last resort: an error of ours, or of the user's own class
        traceback.print_exc()
        code, told, say = exit_code(error), f"{type(error).__name__}: {error}", False
    report(f"rank-{os.environ.get('RANK')}", {"code": code, "error": told})
    if told and say:
        print(f"tinyexp{rank_tag()}: {told}", file=sys.stderr)  # noqa: T201
    return code


def console() -> None:
    """The console script `tinyexp`, which finds a user's own classes in the working directory as `python -m` does."""
    sys.path.append("")
    sys.exit(main())


def _run(words: list[str]) -> int:
    known = usages()
    if {"-sc", "--shell-completion"} & set(words):
        _complete(words, known)
        return 0
    line = split(words, known)
    if "help" in line.flags:
        of_verb = f"tinyexp {known[line.verb].form}\n\n{known[line.verb].text}\n\n" if line.verb in words else ""
        print(of_verb + _help(known, line.overrides))  # noqa: T201
    elif "version" in line.flags:
        print(__version__)  # noqa: T201
    elif line.flags & {"cfg", "info", "hydra-help"}:
        _show_config(line)
    elif line.verb == "train":
        end_with_sweep()
        from tinyexp.compose import compose_run

        config = compose_run(line.overrides)  # most typos are an error here, before torch is imported
        if is_wanted(config.hw):
            return launch(config.hw, words)
        from tinyexp.verbs.train import train

        try:
            train(config)
        except SystemExit as error:  # of a user's own class; without this it would look like a run that is done
            raise TinyexpError(f"sys.exit({error.code!r}) was called in the middle of the run") from error
    else:
        verb = importlib.import_module(f"tinyexp.verbs.{line.verb}")
        return verb.main(line.paths, line.overrides, line.options) or 0
    return 0


def _help(known: dict[str, Usage], overrides: list[str]) -> str:
    from tinyexp.overrides import choices

    width = 34  # of a form; a longer one has its meaning below
    forms = {verb: usage.form + f"\n{' ':{width + 10}}" * (len(usage.form) > width) for verb, usage in known.items()}
    lines = [f"  tinyexp {forms[verb]:<{width}}  {usage.meaning}" for verb, usage in known.items()]
    listed = [f"  {group + '=':12}{' | '.join(names)}" for group, names in choices(overrides).items()]
    return _HELP.format(usages="\n".join(lines), choices="\n".join(listed)).rstrip()


def _show_config(line: Words) -> None:
    """The composed config, checked as a run's is; what Hydra alone can tell it tells itself."""
    from tinyexp.compose import compose_run
    from tinyexp.config import SLOTS
    from tinyexp.hydraconf import hydra_main
    from tinyexp.validate import to_text

    if line.verb not in ("train", "check"):
        raise ConfigError(f"--cfg, --info and --hydra-help are of one run to train, and not of {line.verb}")
    config = compose_run(line.overrides)
    parts = [getattr(config, slot) for slot in SLOTS]
    added = any(word.startswith("+") for word in line.overrides)
    if added or any(part.inherited or not part.trusted for part in parts):
        from tinyexp.parts import check_parts  # only classes know

        config = check_parts(config)
    if line.options.get("cfg") != "job":
        hydra_main(line.hydra)
        return
    shown: Any = config.plain
    for part in line.options.get("package", "").split(".") if "package" in line.options else ():
        if not isinstance(shown, dict) or part not in shown:
            raise ConfigError(f"--package {line.options['package']} is no group{did_you_mean(part, config.plain)}")
        shown = shown[part]
    print(to_text(shown).rstrip())  # noqa: T201


def _complete(words: list[str], known: dict[str, Usage]) -> None:
    """Hydra completes overrides; the verbs are ours. What a PATH may be, the shell knows."""
    from tinyexp.hydraconf import hydra_main

    asked = [word for word in words if word not in ("-sc", "--shell-completion")]
    if len(asked) != 1 or not re.fullmatch(r"(install|uninstall|query)=(bash|zsh|fish)", asked[0]):
        raise ConfigError(
            f"-sc takes install=SHELL with SHELL one of bash | zsh | fish, got {' '.join(asked) or 'nothing'}"
        )
    typed = os.environ.get("COMP_LINE", "").split(" ")
    if len(typed) == 2 and asked[0].startswith("query="):
        print(" ".join(verb for verb in known if verb.startswith(typed[1])))  # noqa: T201
    if len(typed) > 2 and typed[1] in known:
        if known[typed[1]].takes_paths:
            return
        del typed[1]
        os.environ["COMP_LINE"] = " ".join(typed)
        os.environ["COMP_POINT"] = str(len(os.environ["COMP_LINE"]))
    hydra_main(words)


if __name__ == "__main__":
    console()
