"""What the ranks of a run know of each other besides collectives: who is alive, how far each is, and how one ended.

It goes through the store of torch's rendezvous, by threads of its own: the main one may be blocked in a collective.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from torch.distributed import DistError, PrefixStore, Store  # type: ignore[attr-defined]

from tinyexp.errors import Interrupted, RankLostError, TinyexpError, exit_code, of_exit_code
from tinyexp.heartbeat import Heartbeat, end_with_parent, under_torchrun
from tinyexp.rendezvous import first_line, open_store

_BEAT = 1.0  # seconds between two signs of life
_SILENT = 4.0  # seconds without one, after which a rank is taken for the lost one when a collective has failed
_PATIENCE = 8.0  # seconds to find out who it was
_GRACE = 10.0  # seconds for the main thread to end by itself
_SPREAD = 3.0  # seconds for the others to hear how the first one ended
_LEAST = 60.0  # seconds for the last words of one that has begun to end, or hw.timeout where that is more
_TOLD, _HELLO, _ALIVE = "told", "hello", "alive"  # keys of the store
_DONE = "done"
_FAILED = "failed"  # in a sign of life: this rank came to a collective, and it failed
_HEARD = "heard"  # and this: it knows how the first one ended


@dataclass(frozen=True)
class Peer:
    """A rank, and where it is."""

    rank: int
    local_rank: int
    machine: int  # torchrun's number of it; a host may be rehearsing several
    host: str

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.host}"

    def is_beside(self, other: Peer) -> bool:
        """On the same machine?"""
        return (self.machine, self.host) == (other.machine, other.host)

    @staticmethod
    def this() -> Peer:
        rank, local_rank, machine = (int(os.environ.get(name, "0")) for name in ("RANK", "LOCAL_RANK", "GROUP_RANK"))
        return Peer(rank, local_rank, machine, socket.gethostname())


class Peers:
    """One rank's view of all, from `join` to `close`."""

    def __init__(self, store: Store, world: int, timeout: float) -> None:
        """All ranks are waited for.

        Raises:
            RankLostError: one did not come within `timeout` seconds.
        """
        self.me = Peer.this()
        self.timeout = timeout
        self.leave: Callable[[str, int], None] = _leave
        self._store = store
        self._heartbeat = Heartbeat.of_rank(self.me.rank)
        self._gathered = 0
        self._to_tell: str | None = None
        self._ending = 0.0  # since when
        self._failed = False  # has a collective?
        self._closed, self._hurry = threading.Event(), threading.Event()
        self._told: dict[str, Any] | None = None  # how the first rank ended that did not end well
        self._told_at = 0.0
        store.set(f"{_HELLO}/{self.me.rank}", json.dumps(asdict(self.me)))
        store.set(f"{_ALIVE}/{self.me.rank}", "0")
        self.all = self._meet(world)
        now = time.monotonic()
        self._answered = now  # when the store last did
        self._beats = [""] * world
        self._heard = [now] * world
        self._threads = [
            threading.Thread(target=self._exchange, args=(store.clone(),), name="peers", daemon=True),
            threading.Thread(target=self._guard, name="guard", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    @staticmethod
    def join(timeout: float) -> tuple[Peers, Store]:
        """The ranks that torchrun's environment names, and the store that torch's own group is to use.

        Raises:
            RankLostError: not all of them came.
        """
        if under_torchrun():
            end_with_parent()
        store = open_store(timeout)
        again = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # of torchrun itself; not the same on all machines
        mine = PrefixStore(f"tinyexp/{again if os.environ.get('GROUP_WORLD_SIZE') == '1' else 0}", store)
        return Peers(mine, int(os.environ["WORLD_SIZE"]), timeout), store

    def reached(self, step: int) -> None:
        """This rank has done so many steps."""
        self._heartbeat.reached(step)

    def gather(self, text: str) -> list[str]:
        """Each rank's text; waits for all, however long their work takes, as long as each is alive.

        Raises:
            TinyexpError: a rank has ended, or gives no sign of life.
        """
        keys = [f"gathered/{self._gathered}/{peer.rank}" for peer in self.all]
        self._gathered += 1
        try:
            self._store.set(keys[self.me.rank], text)
            for key in keys:
                while not self._store.check([key]):
                    if lost := self._told or self._lost(self.timeout):
                        raise self._as_error(lost)
                    time.sleep(0.05)
            return [content.decode() for content in self._store.multi_get(keys)]
        except DistError as error:
            raise self.explain(error) from error

    def explain(self, error: BaseException) -> BaseException:
        """What to raise instead: an error that follows from a peer's end names that peer; another is told to the peers.

        Whatever it is, this rank is on its way out from now on.
        """
        self._ending = self._ending or time.monotonic()
        if getattr(error, "explained", False):
            return error
        if _is_of_collective(error):
            self._failed = True
            until = time.monotonic() + _PATIENCE
            while (lost := self._told or self._lost(_SILENT)) is None and time.monotonic() < until:
                self._hurry.set()
                time.sleep(0.1)
            unknown = f"no rank is known to be lost, but a collective failed: {first_line(error)}"
            lost = lost or self._absent() or self._record(None, unknown)
            made = self._as_error(self._tell(lost))
            made.__cause__ = error
            return made
        text = str(error) if isinstance(error, TinyexpError) else f"{type(error).__name__}: {first_line(error)}"
        code = exit_code(error)
        held = self._tell(self._record(self.me, text, code))
        if isinstance(error, TinyexpError):  # found by several ranks alike, it is said by one
            alike = held["code"] == code and (held["text"] == text or code == Interrupted.exit_code)
            of_another = alike and held["by"] != self.me.rank
            beside = self.all[held["by"]].is_beside(self.me) or self.me.local_rank > 0
            error.silent, error.explained = of_another and beside, True
        return error

    def close(self) -> None:
        """This rank has done its part."""
        self._spread()
        self._closed.set()
        self._hurry.set()
        self._threads[0].join(_BEAT)  # not for ever: the store may hang

    def _meet(self, world: int) -> list[Peer]:
        keys = [f"{_HELLO}/{rank}" for rank in range(world)]
        until = time.monotonic() + self.timeout
        while not self._store.check(keys):
            if time.monotonic() > until:
                missing = [str(rank) for rank, key in enumerate(keys) if not self._store.check([key])]
                raise RankLostError(f"rank {', '.join(missing)} did not come within hw.timeout={self.timeout:g} s")
            self._heartbeat.beat()  # the guard is not there yet
            time.sleep(0.02)
        return [Peer(**json.loads(content)) for content in self._store.multi_get(keys)]

    def _exchange(self, store: Store) -> None:
        """A thread: my sign of life against those of the others, until the end or until the store is gone."""
        keys = [f"{_ALIVE}/{peer.rank}" for peer in self.all]
        try:
            while not self._closed.is_set():
                if self._to_tell:
                    store.compare_set(_TOLD, "", self._to_tell)  # the first word holds for all
                heard = self._told is not None
                marks = [_HEARD] * heard + [_FAILED] * self._failed
                store.set(keys[self.me.rank], " ".join([str(time.monotonic()), *marks]))
                told = json.loads(store.get(_TOLD)) if store.check([_TOLD]) else None
                self._take([content.decode() for content in store.multi_get(keys)], told)
                if heard or not self._told:  # else the others are to know at once that it was heard
                    self._hurry.wait(_BEAT)
                    self._hurry.clear()
            store.set(keys[self.me.rank], _DONE)
        except (DistError, ValueError):  # it is gone, or another program writes there
            return  # from now on its answers are missing

    def _take(self, beats: list[str], told: dict[str, Any] | None) -> None:
        self._answered = now = time.monotonic()
        for rank, beat in enumerate(beats):
            if beat != self._beats[rank] or beat == _DONE:
                self._beats[rank], self._heard[rank] = beat, now
        if told and not self._told:
            self._told_at = now
            self._told = told

    def _guard(self) -> None:
        """A thread: shows the supervisor that this process runs, and ends it where its main thread never would."""
        while not self._closed.wait(_BEAT / 2):
            self._heartbeat.beat()
            if self._ending:
                if time.monotonic() - self._ending > max(_LEAST, self.timeout):
                    self.leave("it does not come to its end", RankLostError.exit_code)
                continue
            given_up = self._told and self._told["rank"] == self.me.rank
            late = given_up or (self._told and time.monotonic() - self._told_at > _GRACE)
            patience = _GRACE + (self.timeout if self._threads[0].is_alive() else 0)  # without a store nobody will tell
            lost = self._told if late else None if self._told else self._lost(patience)
            if lost:
                self._spread()
                error = self._as_error(lost)
                self.leave(str(error), error.exit_code)

    def _spread(self) -> None:
        """Wait until all that live have heard how the first one ended: the store may end with this process."""
        until = time.monotonic() + _SPREAD
        while self._told and self._threads[0].is_alive() and time.monotonic() < until:
            now = time.monotonic()
            living = [beat for beat, heard in zip(self._beats, self._heard, strict=True) if now - heard < _SILENT]
            if all(beat == _DONE or _HEARD in beat for beat in living):
                return
            self._hurry.set()
            time.sleep(0.02)

    def _lost(self, silent: float) -> dict[str, Any] | None:
        """Which rank has given no sign of life for so many seconds."""
        now = time.monotonic()
        if now - self._answered > silent:
            first = self.all[0]
            told = f"its machine has not answered for {now - self._answered:.0f} s"
            return self._record(first, told) if not self.me.is_beside(first) else None
        rank = min(range(len(self.all)), key=self._heard.__getitem__)
        if now - self._heard[rank] > silent and rank != self.me.rank:
            return self._record(self.all[rank], f"no sign of life for {now - self._heard[rank]:.0f} s")
        return None

    def _absent(self) -> dict[str, Any] | None:
        """The one rank that is alive and never came to the collective in which all others failed."""
        absent = [peer for peer, beat in zip(self.all, self._beats, strict=True) if not beat.endswith(_FAILED)]
        if len(absent) != 1 or absent[0] == self.me:
            return None
        told = f"alive, but it came to no collective within hw.timeout={self.timeout:g} s"
        return self._record(absent[0], f"{told} (give more where a step or a save takes so long)")

    def _record(self, peer: Peer | None, text: str, code: int | None = None) -> dict[str, Any]:
        """Ranks go in step, so that mine is that of any, but for one."""
        rank = None if peer is None else peer.rank
        return {"rank": rank, "by": self.me.rank, "step": self._heartbeat.step, "text": text, "code": code}

    def _tell(self, record: dict[str, Any]) -> dict[str, Any]:
        """Let all know, unless one has told before; returns what holds, after two seconds at most."""
        if self._told is None:
            self._to_tell = json.dumps(record)
            until = time.monotonic() + 2 * _BEAT
            while self._told is None and self._threads[0].is_alive() and time.monotonic() < until:
                self._hurry.set()
                time.sleep(0.02)
        return self._told or record

    def _as_error(self, record: dict[str, Any]) -> TinyexpError:
        """The same on each rank; said by one of each machine."""
        code, rank = record["code"], record["rank"]
        record["text"] = "".join(sign if sign.isprintable() else " " for sign in record["text"])
        at = f"at step {record['step']:,}"
        if rank is None:
            error: TinyexpError = RankLostError(f"{record['text']} ({at})")
        elif code is None:
            error = RankLostError(f"{self.all[rank]} was lost {at}: {record['text']}")
        else:
            error = of_exit_code(code)(f"{self.all[rank]} ended {at}: {record['text']}")
        gone = None if rank is None else self.all[rank]
        here = [peer.local_rank for peer in self.all if peer.is_beside(self.me) and peer != gone]
        told_here = code is not None and gone is not None and gone.is_beside(self.me)
        error.silent = told_here or self.me.local_rank != min(here, default=self.me.local_rank)
        error.explained = True
        return error


def _is_of_collective(error: BaseException) -> bool:
    """Is it what torch raises when a peer is gone or does not come? gloo's have no class of their own."""
    if isinstance(error, DistError):
        return True
    text = str(error)
    signs = ("third_party/gloo", "gloo/", "[c10d]", "NCCL", "ProcessGroup")
    return isinstance(error, RuntimeError) and any(sign in text for sign in signs)


def _leave(reason: str, code: int) -> None:
    sys.stderr.write(f"tinyexp: left at once: {reason}\n")
    os._exit(code)
