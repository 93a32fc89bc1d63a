"""gloo is told the interface that the system's routes take towards rank 0's machine."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

import pytest

from tinyexp import interface
from tinyexp.interface import interface_towards, use_interface

VARIABLE = "GLOO_SOCKET_IFNAME"


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (VARIABLE, "MASTER_ADDR"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def raises(error: OSError) -> Callable[..., tuple[str, str]]:
    def refuse(*_: object) -> tuple[str, str]:
        raise error

    return refuse


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_towards_this_machine_it_is_the_loopback(host: str) -> None:
    found = interface_towards(host)
    assert found is not None
    name, address = found
    assert name.startswith("lo")
    assert address == "127.0.0.1"
    assert name in [each for _, each in socket.if_nameindex()]


def test_an_unknown_host_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert interface_towards("no such host") is None
    monkeypatch.setenv("MASTER_ADDR", "no such host")
    use_interface()
    assert VARIABLE not in os.environ


def test_an_address_of_no_interface_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interface, "_address", lambda *_: "192.0.2.1")
    assert interface_towards("127.0.0.1") is None


def test_an_interface_without_an_address_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "if_nameindex", lambda: [(9, "nonesuch0"), *real])
    found = interface_towards("127.0.0.1")
    assert found is not None
    assert found[0] != "nonesuch0"


real = socket.if_nameindex()


def test_gloo_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    use_interface()
    assert os.environ[VARIABLE].startswith("lo")


def test_what_the_user_said_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv(VARIABLE, "eth7")
    monkeypatch.setattr(interface, "interface_towards", raises(OSError("asked")))
    use_interface()
    assert os.environ[VARIABLE] == "eth7"
