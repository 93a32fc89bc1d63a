"""The network interface through which this machine reaches rank 0's. gloo takes that of the hostname's address, which
is often 127.0.1.1 or that of another network; its variable GLOO_SOCKET_IFNAME says better."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import sys

_SIOCGIFADDR = 0x8915 if sys.platform == "linux" else 0xC0206921  # <sys/ioctl.h>: an interface's IPv4 address
_ELSEWHERE = "192.0.2.1"  # an address of nobody (RFC 5737)
_VARIABLE = "GLOO_SOCKET_IFNAME"


def interface_towards(host: str) -> tuple[str, str] | None:
    """(name, IPv4 address) of the interface that the system's routes take to this host; None where it cannot be told.

    Nothing is sent.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, 9))
            address = probe.getsockname()[0]
            return next(
                ((name, address) for _, name in socket.if_nameindex() if _address(probe, name) == address), None
            )
        except OSError:
            return None


def use_interface() -> None:
    """Let gloo take the interface towards MASTER_ADDR, unless its variable is set.

    Where several machines are there and that is a loopback (Debian's hosts file has node 0's name at 127.0.1.1), it is
    the one of the default route.
    """
    if _VARIABLE in os.environ:
        return
    found = interface_towards(os.environ.get("MASTER_ADDR", ""))
    several = int(os.environ.get("GROUP_WORLD_SIZE", "1")) > 1
    if several and found and found[1].startswith("127."):
        found = interface_towards(_ELSEWHERE) or found
    if found:
        os.environ[_VARIABLE] = found[0]


def _address(any_socket: socket.socket, name: str) -> str | None:
    try:
        answer = fcntl.ioctl(any_socket, _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
    except OSError:  # an interface without one
        return None
    return socket.inet_ntoa(answer[20:24])
