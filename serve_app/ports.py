"""Ports for programs that are about to start, and that get their numbers in advance; a host's kind of address.

A port that the kernel names for a bind to 0 may be handed to any other program before ours binds it,
and the many processes of a starting cluster ask for hundreds. These ports lie where the kernel hands
none out by itself (Linux: from 32768 up, others from 49152), and outside those of Ray (workers 10002
to 19999, Serve's replicas from 30000).
"""

from __future__ import annotations

import contextlib
import random
import socket

LOCALHOST = "127.0.0.1"
PORTS = range(20_000, 30_000)


def family_of(host: str) -> socket.AddressFamily:
    """Of addresses with colons IPv6, of all else, names too, IPv4."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def free_ports(count: int) -> list[int]:
    """Ports of this host that nobody has now.

    Raises:
        OSError: nearly all of them are taken.
    """
    found: list[int] = []
    for port in random.SystemRandom().sample(PORTS, len(PORTS)):
        if len(found) == count:
            return found
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind((LOCALHOST, port))
            found.append(port)
    raise OSError(f"fewer than {count} ports are free in {PORTS.start} to {PORTS.stop - 1}")


def free_port() -> int:
    """One of them."""
    return free_ports(1)[0]
