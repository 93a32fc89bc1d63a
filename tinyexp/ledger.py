"""sweep.json: the jobs of a sweep and what became of each, so that the same command again does only what is left."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyexp.errors import ConfigError
from tinyexp.keys import flatten, kept

NAME = "sweep.json"


@dataclass(frozen=True, kw_only=True)
class PastJob:
    """What sweep.json says of one attempt at a job."""

    directory: Path
    words: tuple[str, ...]
    label: dict[str, str]
    key: str  # of its config
    status: str
    code: int | None
    seconds: float
    last_words: str

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "directory": self.directory.name,
            "words": list(self.words),
            "label": self.label,
            "key": self.key,
            "status": self.status,
            "exit_code": self.code,
            "seconds": round(self.seconds, 3),
            "last_words": self.last_words,
        }


def plain_job(attempts: Sequence[PastJob]) -> dict[str, Any]:
    """A job's line in the ledger: its last attempt, and in it those before."""
    *earlier, last = attempts
    return {**last.plain(), "earlier": [each.plain() for each in earlier]}


def key_of(plain: Mapping[str, Any], label: Mapping[str, str]) -> str:
    """Names a job by what of its config a resumed run keeps, how many epochs it is to have, and what else is varied."""
    same = {**kept(plain), "train.epochs": plain["train"]["epochs"]}
    varied = {key: value for key, value in label.items() if not _is_said(key, flatten(plain), same)}
    return hashlib.blake2b(json.dumps([same, varied], sort_keys=True).encode(), digest_size=8).hexdigest()


def _is_said(key: str, flat: Mapping[str, Any], same: Mapping[str, Any]) -> bool:
    """Is all that this key or group makes of a config among what is the same?"""
    below = [each for each in flat if f"{each}.".startswith(f"{key}.")]
    return bool(below) and all(each in same for each in below)


def read_jobs(folder: Path) -> list[PastJob]:
    """The attempts at the jobs of a sweep's directory, those at one job one after the other; none where there is none.

    Raises:
        ConfigError: its sweep.json cannot be made out.
    """
    path = folder / NAME
    try:
        jobs = json.loads(path.read_bytes())["jobs"]
        return [_read(folder, attempt) for job in jobs for attempt in (*job.get("earlier", ()), job)]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be made out ({error}): restore it, or give another sweep.dir") from error


def _read(folder: Path, job: dict[str, Any]) -> PastJob:
    return PastJob(
        directory=folder / str(job["directory"]),
        words=tuple(map(str, job.get("words", ()))),
        label={str(key): str(value) for key, value in job["label"].items()},
        key=str(job.get("key")),
        status=str(job["status"]),
        code=job["exit_code"] if isinstance(job["exit_code"], int) else None,
        seconds=float(job.get("seconds", 0)),
        last_words=str(job["last_words"]),
    )
