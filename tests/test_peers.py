"""Ranks that are threads over one store: they wait for who is alive, and name who is not."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import timedelta
from typing import Any, TypeVar

import pytest
from torch.distributed import DistBackendError, DistNetworkError, PrefixStore, TCPStore

from tinyexp import peers as module
from tinyexp.errors import (
    ConfigError,
    IntegrityError,
    Interrupted,
    NonFiniteError,
    RankLostError,
    ResourceError,
    TinyexpError,
    exit_code,
)
from tinyexp.heartbeat import FOLDER, read_signs
from tinyexp.peers import Peer, Peers

T = TypeVar("T")
REFUSED = "[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:4711"


def slowly(*values: Any) -> list[Any]:
    """Further values of a test, that `make check` leaves out."""
    return [pytest.param(*(v if isinstance(v, tuple) else (v,)), marks=pytest.mark.slow) for v in values]


class Ranks:
    """A store, and for each rank a thread that has its own connection to it."""

    def __init__(self, stores: Sequence[Any], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stores, self._name = list(stores), name
        self.left: list[tuple[int, str, int]] = []  # who had to leave, why, and with which exit code
        self.timeout = 20.0
        self._who = threading.local()
        monkeypatch.setattr(Peer, "this", staticmethod(lambda: self._who.peer))

    def join(self, peer: Peer, world: int) -> Peers:
        self._who.peer = peer
        made = Peers(PrefixStore(self._name, self.stores[peer.rank]), world, self.timeout)
        made.leave = lambda reason, code: self.left.append((peer.rank, reason, code)) or made._closed.set()
        return made

    def hello(self, peer: Peer) -> None:
        """A rank that has come, and gives no sign of life any more."""
        store = PrefixStore(self._name, self.stores[peer.rank])
        store.set(f"hello/{peer.rank}", json.dumps(asdict(peer)))
        store.set(f"alive/{peer.rank}", "0")

    def run(self, job: Callable[[Peers], T], machines: Sequence[int] = (0, 0), silent: Sequence[int] = ()) -> list[T]:
        """What `job` returns on each rank; rank r is on the machine `machines[r]`."""
        everyone = peers_on(machines)
        for rank in silent:
            self.hello(everyone[rank])

        def rank(peer: Peer) -> T:
            me = self.join(peer, len(everyone))
            try:
                return job(me)
            finally:
                me.close()

        with ThreadPoolExecutor(len(everyone)) as pool:
            return list(pool.map(rank, [peer for peer in everyone if peer.rank not in silent]))


def serve(ranks: int) -> list[Any]:
    """A connection of each rank, and last the store itself."""
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    limit = timedelta(seconds=20)
    clients = [
        TCPStore("127.0.0.1", server.port, is_master=False, wait_for_workers=False, timeout=limit) for _ in range(ranks)
    ]
    return [*clients, server]


@pytest.fixture(scope="module")
def stores() -> list[Any]:
    """For all tests, since connecting takes a while."""
    return serve(4)


@pytest.fixture
def ranks(stores: list[Any], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Ranks:
    """With a tenth of all times."""
    for name in ("_BEAT", "_SILENT", "_PATIENCE", "_GRACE"):
        monkeypatch.setattr(module, name, getattr(module, name) / 10)
    monkeypatch.delenv(FOLDER, raising=False)
    return Ranks(stores, request.node.name, monkeypatch)


def peers_on(machines: Sequence[int]) -> list[Peer]:
    """Peers of these machines; each machine is a host of its own."""
    seen: list[int] = []
    made = []
    for rank, machine in enumerate(machines):
        made.append(Peer(rank, seen.count(machine), machine, f"host{machine}"))
        seen.append(machine)
    return made


def collective_failed() -> RuntimeError:
    return RuntimeError(REFUSED)


def until(condition: Callable[[], object], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


# who is there


def test_each_knows_all(ranks: Ranks) -> None:
    for known in ranks.run(lambda me: me.all, machines=(0, 0, 1)):
        assert known == [Peer(0, 0, 0, "host0"), Peer(1, 1, 0, "host0"), Peer(2, 0, 1, "host1")]


def test_a_host_may_rehearse_several_machines() -> None:
    here = Peer(0, 0, 0, "host")
    assert here.is_beside(Peer(1, 1, 0, "host"))
    assert not here.is_beside(Peer(1, 0, 1, "host"))
    assert not here.is_beside(Peer(1, 0, 0, "other"))


def test_who_does_not_come_is_named(ranks: Ranks) -> None:
    ranks.timeout = 0.3
    ranks.hello(Peer(2, 0, 0, "host0"))
    with pytest.raises(RankLostError, match=r"^rank 1, 3 did not come within hw\.timeout=0\.3 s$"):
        ranks.join(Peer(0, 0, 0, "host0"), 4)


# gathering


def test_texts_come_in_the_order_of_ranks_time_after_time(ranks: Ranks) -> None:
    def job(me: Peers) -> list[list[str]]:
        time.sleep(0.05 * (2 - me.me.rank))
        return [me.gather(f"{word} of {me.me.rank}") for word in ("ä", "two")]

    for gathered in ranks.run(job, machines=(0, 1, 2)):
        assert gathered == [["ä of 0", "ä of 1", "ä of 2"], ["two of 0", "two of 1", "two of 2"]]


def test_a_slow_one_is_waited_for_as_long_as_it_lives(ranks: Ranks) -> None:
    ranks.timeout = 0.4

    def job(me: Peers) -> list[str]:
        time.sleep(0.8 if me.me.rank == 1 else 0)
        return me.gather(str(me.me.rank))

    assert ranks.run(job) == [["0", "1"]] * 2
    assert not ranks.left


@pytest.mark.parametrize("lost", [0, *slowly(1)])
def test_who_gives_no_sign_is_not_waited_for(ranks: Ranks, lost: int) -> None:
    ranks.timeout = 0.5

    def job(me: Peers) -> str:
        me.reached(1234)
        with pytest.raises(RankLostError) as error:
            me.gather("here")
        return str(error.value)

    told = ranks.run(job, machines=(0, 1, 2), silent=[lost])
    assert len(told) == 2
    assert all(each.startswith(f"rank {lost} on host{lost} was lost at step 1,234: no sign of life") for each in told)


def test_an_error_of_one_ends_the_gathering_of_all(ranks: Ranks) -> None:
    def job(me: Peers) -> BaseException:
        if me.me.rank == 1:
            return me.explain(ConfigError("the folder is not there"))
        with pytest.raises(ConfigError) as error:
            me.gather("here")
        return error.value

    first, second, third = ranks.run(job, machines=(0, 1, 2))
    assert str(second) == "the folder is not there"
    assert str(first) == str(third) == "rank 1 on host1 ended at step 0: the folder is not there"


# what ended one ends all


@pytest.mark.parametrize(
    ("error", "kind", "code", "text"),
    [
        (NonFiniteError("c"), NonFiniteError, 4, "c"),
        (ZeroDivisionError("g"), TinyexpError, 1, "ZeroDivisionError: g"),
        *slowly(
            (ConfigError("a"), ConfigError, 2, "a"),
            (IntegrityError("b"), IntegrityError, 3, "b"),
            (ResourceError("d"), ResourceError, 5, "d"),
            (Interrupted("e"), Interrupted, 75, "e"),
            (TinyexpError("f"), TinyexpError, 1, "f"),
            (MemoryError("h\nmore"), ResourceError, 5, "MemoryError: h"),
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_others_give_its_kind_rank_host_step_and_code(
    ranks: Ranks, error: Exception, kind: type[TinyexpError], code: int, text: str
) -> None:
    def job(me: Peers) -> BaseException:
        me.reached(17)
        return me.explain(error if me.me.rank == 1 else collective_failed())

    first, second = ranks.run(job)
    assert second is error
    assert type(first) is kind
    assert str(first) == f"rank 1 on host0 ended at step 17: {text}"
    assert exit_code(first) == exit_code(error) == code
    assert first.explained


@pytest.mark.parametrize(
    "error", [DistNetworkError("gone"), *slowly(collective_failed(), DistBackendError("NCCL error"))]
)
def test_what_follows_for_others_keeps_its_cause(ranks: Ranks, error: Exception) -> None:
    explained = ranks.run(lambda me: me.explain(NonFiniteError("nan") if me.me.rank == 0 else error))[1]
    assert isinstance(explained, NonFiniteError)
    assert explained.__cause__ is error


def test_the_first_word_holds_for_all(ranks: Ranks) -> None:
    def job(me: Peers) -> BaseException:
        if me.me.rank == 2:
            return me.explain(NonFiniteError("nan"))
        until(lambda: me._told)
        return me.explain(ConfigError("mine") if me.me.rank == 1 else collective_failed())

    first, second, third = ranks.run(job, machines=(0, 0, 0))
    assert str(third) == "nan"
    assert (str(second), second.silent) == ("mine", False)  # another thing, so it is said too
    assert str(first) == "rank 2 on host0 ended at step 0: nan"


def test_of_two_words_at_once_one_holds(ranks: Ranks) -> None:
    """For a rank that has heard neither, too."""
    together = threading.Barrier(2)

    def job(me: Peers) -> tuple[str, str]:
        if me.me.rank < 2:
            me._to_tell = json.dumps(me._record(me.me, f"word of {me.me.rank}", 4))
            together.wait()
            me._hurry.set()
        until(lambda: me._told)
        time.sleep(0.3)  # for the other's word
        assert me._told is not None
        return me._told["text"], json.loads(me._store.get("told"))["text"]

    told = ranks.run(job, machines=(0, 0, 0))
    assert len(set(told)) == 1
    assert told[0][0] == told[0][1]


def test_an_explained_error_is_not_explained_again(ranks: Ranks) -> None:
    def job(me: Peers) -> None:
        error = me.explain(collective_failed() if me.me.rank else NonFiniteError("nan"))
        assert me.explain(error) is error

    ranks.run(job)


# who says it


def test_errors_alike_are_said_by_one_of_each_machine(ranks: Ranks) -> None:
    explained = ranks.run(lambda me: me.explain(ConfigError("the same on all")), machines=(0, 0, 1))
    assert [str(error) for error in explained] == ["the same on all"] * 3
    assert sorted(error.silent for error in explained) == [False, False, True]  # one on each machine


def test_interrupted_ranks_say_it_once_whatever_their_signal(ranks: Ranks) -> None:
    explained = ranks.run(lambda me: me.explain(Interrupted(f"by signal {me.me.rank}")), machines=(0, 0, 1))
    assert sorted(error.silent for error in explained) == [False, False, True]


def test_errors_that_differ_are_all_said(ranks: Ranks) -> None:
    explained = ranks.run(lambda me: me.explain(ConfigError(f"rank {me.me.rank}")))
    assert [error.silent for error in explained] == [False, False]


def test_what_a_rank_told_is_said_once_on_each_other_machine(ranks: Ranks) -> None:
    def job(me: Peers) -> BaseException:
        return me.explain(NonFiniteError("nan") if me.me.rank == 1 else collective_failed())

    explained = ranks.run(job, machines=(0, 0, 1, 1))
    assert [error.silent for error in explained] == [True, False, False, True]


@pytest.mark.parametrize(
    ("lost", "silent"),
    [(0, [None, False, False, True]), *slowly((1, [False, None, False, True]), (3, [False, True, False]))],
)
def test_a_lost_rank_is_said_by_the_first_of_each_machine(ranks: Ranks, lost: int, silent: list[bool | None]) -> None:
    explained = ranks.run(lambda me: me.explain(collective_failed()), machines=(0, 0, 1, 1), silent=[lost])
    assert [error.silent for error in explained] == [each for each in silent if each is not None]
    assert {str(error).partition(": ")[0] for error in explained} == {
        f"rank {lost} on host{lost // 2} was lost at step 0"
    }


# who is lost


def test_who_goes_silent_is_named_after_some_seconds(ranks: Ranks) -> None:
    began = time.monotonic()
    (error,) = ranks.run(lambda me: me.explain(collective_failed()), silent=[1])
    assert module._SILENT < time.monotonic() - began < module._PATIENCE + 1
    assert isinstance(error, RankLostError)
    assert str(error).startswith("rank 1 on host0 was lost at step 0: no sign of life for ")


def test_a_collective_that_fails_while_all_live_says_so(ranks: Ranks) -> None:
    explained = ranks.run(lambda me: me.explain(collective_failed()))
    for error in explained:
        assert isinstance(error, RankLostError)
        assert str(error) == f"no rank is known to be lost, but a collective failed: {REFUSED} (at step 0)"
    assert [error.silent for error in explained] == [False, True]


def test_the_end_of_the_store_names_the_first_machine(ranks: Ranks) -> None:
    together = threading.Barrier(2)
    ranks.stores = serve(2)

    def job(me: Peers) -> BaseException:
        if together.wait() == 0:
            del ranks.stores[-1]
        return me.explain(collective_failed())

    first, second = ranks.run(job, machines=(0, 1))
    assert str(second).startswith("rank 0 on host0 was lost at step 0: its machine has not answered for ")
    assert str(first).startswith("no rank is known to be lost, but a collective failed")  # it is on that machine


def test_who_tells_stays_until_all_that_live_have_heard(ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store may end with it, and nobody would learn more."""
    monkeypatch.setattr(module, "_BEAT", 1.5)
    monkeypatch.setattr(module, "_SILENT", 6.0)
    together, known = threading.Barrier(2), []

    def job(me: Peers) -> None:
        if me.me.rank == 1:
            other.append(me)
        together.wait()
        if me.me.rank == 0:
            me.explain(NonFiniteError("nan"))
            me.close()
            known.append(other[0]._told)
        together.wait()

    other: list[Peers] = []
    ranks.run(job, machines=(0, 1))
    assert known[0]["text"] == "nan"


def test_who_tells_does_not_stay_for_a_dead_one(ranks: Ranks) -> None:
    def job(me: Peers) -> float:
        time.sleep(1.5 * module._SILENT)
        me.explain(NonFiniteError("nan"))
        began = time.monotonic()
        me.close()
        return time.monotonic() - began

    (waited,) = ranks.run(job, silent=[1])
    assert waited < 0.5 * module._SPREAD


@pytest.mark.slow
def test_one_that_is_done_is_not_lost(ranks: Ranks) -> None:
    ranks.timeout = 0.3

    def job(me: Peers) -> None:
        if me.me.rank == 0:
            time.sleep(ranks.timeout + module._GRACE + 0.3)

    ranks.run(job)
    assert not ranks.left


# the guard


def test_a_rank_leaves_when_one_has_told_and_its_main_thread_does_not_end(ranks: Ranks) -> None:
    def job(me: Peers) -> float:
        if me.me.rank == 0:
            me.explain(IntegrityError("damaged"))
        began = time.monotonic()
        until(lambda: ranks.left)
        return time.monotonic() - began

    waited = ranks.run(job)
    assert ranks.left == [(1, "rank 0 on host0 ended at step 0: damaged", 3)]
    assert min(waited) > 0.7 * module._GRACE


@pytest.mark.slow
def test_a_rank_leaves_when_one_gives_no_sign_and_its_main_thread_is_blocked(ranks: Ranks) -> None:
    ranks.timeout = 0.2
    ranks.run(lambda _: until(lambda: ranks.left), silent=[1])
    ((rank, reason, code),) = ranks.left
    assert (rank, code) == (0, 6)
    assert reason.startswith("rank 1 on host0 was lost at step 0: no sign of life for ")


def test_a_rank_leaves_soon_when_the_store_is_gone_and_its_main_thread_is_blocked(ranks: Ranks) -> None:
    ranks.stores = serve(2)
    together = threading.Barrier(2)

    def job(me: Peers) -> None:
        if together.wait() == 0:
            del ranks.stores[-1]
        until(lambda: ranks.left)

    ranks.run(job, machines=(0, 1))
    ((rank, reason, code),) = ranks.left
    assert (rank, code) == (1, 6)
    assert reason.startswith("rank 0 on host0 was lost at step 0: its machine has not answered for 1 s")


@pytest.mark.slow
def test_a_rank_on_its_way_out_is_let_go(ranks: Ranks) -> None:
    def job(me: Peers) -> None:
        me.explain(NonFiniteError(str(me.me.rank)))
        time.sleep(module._GRACE + 0.2)

    ranks.run(job)
    assert not ranks.left


def test_the_supervisor_sees_a_rank_run(
    ranks: Ranks, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("signs")
    monkeypatch.setenv(FOLDER, str(folder))

    def job(me: Peers) -> int:
        me.reached(7 + me.me.rank)
        time.sleep(0.3)
        return me._heartbeat._beats

    assert min(ranks.run(job)) > 3
    assert [(sign.rank, sign.step) for sign in read_signs(folder)] == [(0, 7), (1, 8)]
