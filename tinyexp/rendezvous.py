"""The store in which the ranks of a run meet, before any of them is known to the others."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

from torch.distributed import DistError, rendezvous  # type: ignore[attr-defined]

from tinyexp.errors import RankLostError

_kept: list[Any] = []  # a store of rank 0 that torchrun does not hold serves the others as long as it lives


def hand_on(text: str | None, timeout: float = 120.0) -> str:
    """Rank 0's text, on every rank, before any `Peers`; the others give None.

    Raises:
        RankLostError: it did not come within `timeout` seconds.
    """
    store = open_store(timeout)
    _kept.append(store)
    try:
        if text is not None:
            store.set("tinyexp/handed", text)
        handed: str = store.get("tinyexp/handed").decode()
    except DistError as error:
        raise RankLostError(f"rank 0 did not give its config within {timeout:g} s: {first_line(error)}") from error
    return handed


def open_store(timeout: float) -> Any:
    """The store of the rendezvous that torchrun's environment names.

    Raises:
        RankLostError: it cannot be reached within `timeout` seconds.
    """
    try:
        return next(rendezvous("env://", timeout=timedelta(seconds=timeout)))[0]
    except (DistError, ValueError) as error:
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        who = (
            "the other ranks did not come to" if os.environ["RANK"] == "0" else "rank 0's machine cannot be reached at"
        )
        raise RankLostError(f"{who} {place}: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """Of its message, as far as a line of the console goes."""
    return str(error).strip().split("\n")[0][:300]
