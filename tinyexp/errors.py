"""What can go wrong, by exit code. A message says the rule, what came, and what would do; standard library only."""

from __future__ import annotations

import difflib
import signal
from collections.abc import Iterable


class TinyexpError(Exception):
    """An end of the run that is told in one message, without a traceback; `exit_code` is the process's."""

    exit_code = 1
    silent = False  # another rank says it
    explained = False  # all ranks know of it


class ConfigError(TinyexpError):
    """A wrong key, value or command line."""

    exit_code = 2


class DataError(TinyexpError):
    """A data set that is missing, damaged or not what it says it is."""

    exit_code = 2


class NotFetchedError(DataError):
    """A data set that a run would first download or unpack."""


class IntegrityError(TinyexpError):
    """A file that fails its check; it is never used."""

    exit_code = 3


class NonFiniteError(TinyexpError):
    """A loss, gradient or weight that is inf or nan; it is never written."""

    exit_code = 4


class ResourceError(TinyexpError):
    """Out of memory or disk."""

    exit_code = 5


class RankLostError(TinyexpError):
    """A process of the run, or its machine, is gone or does not answer."""

    exit_code = 6


class Interrupted(TinyexpError):
    """Stopped from outside (a signal, train.max_time) with a checkpoint saved: a scheduler may requeue."""

    exit_code = 75


def did_you_mean(name: str, valid: Iterable[str], prefix: str = "", cutoff: float = 0.6) -> str:
    """'; did you mean x?' with the nearest valid name (told with the prefix), or the list of all when none is near."""
    names = sorted(map(str, valid))
    near = difflib.get_close_matches(name, names, n=1, cutoff=cutoff)
    return f"; did you mean {prefix}{near[0]}?" if near else f"; valid: {', '.join(names) or 'none'}"


_MEANING = {
    1: "an error",
    2: "wrong config or data",
    3: "a damaged file",
    4: "not finite",
    5: "out of memory or disk",
    6: "a rank was lost",
    75: "saved",
}


def describe_exit(code: int) -> str:
    """A process's exit code in words; a negative one is the signal that killed it."""
    if code < 0:
        return f"by {signal.Signals(-code).name}"
    return f"{_MEANING[code]} (exit {code})" if code in _MEANING else f"exit {code}"


def of_exit_code(code: int) -> type[TinyexpError]:
    """The kind of error that ends a process with this code."""
    kinds = (ConfigError, IntegrityError, NonFiniteError, ResourceError, RankLostError, Interrupted)
    return next((kind for kind in kinds if kind.exit_code == code), TinyexpError)


def exit_code(error: BaseException) -> int:
    """The process's exit code for how a run ended."""
    if isinstance(error, TinyexpError):
        return error.exit_code
    # torch's are found by name and words, since this file knows nothing of torch
    out_of_memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return ResourceError.exit_code if out_of_memory or "can't allocate memory" in str(error) else 1
