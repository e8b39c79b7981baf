"""Ports chosen in advance: free, different, and none that the kernel gives to somebody else meanwhile."""

import socket
from pathlib import Path

import pytest

from serve_app import ports
from serve_app.ports import LOCALHOST, PORTS, free_port, free_ports

KERNEL = Path("/proc/sys/net/ipv4/ip_local_port_range")


def test_each_is_another_and_can_be_had() -> None:
    """A cluster binds all of its ports at the same time."""
    found = free_ports(8)
    assert len(set(found)) == 8
    held = [socket.create_server((LOCALHOST, port)) for port in found]
    for one in held:
        one.close()


def test_none_is_one_that_somebody_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all are taken, an error that says where it looked."""
    port = free_port()
    with socket.create_server((LOCALHOST, port)):
        monkeypatch.setattr(ports, "PORTS", range(port, port + 1))
        with pytest.raises(OSError, match=f"fewer than 1 ports are free in {port} to {port}"):
            free_port()


def test_no_port_is_one_of_the_kernels_own() -> None:
    """A starting cluster asks the kernel for hundreds of ports between our choice and HAProxy's bind."""
    if not KERNEL.exists():
        pytest.skip("this system does not tell which ports it hands out")
    first, last = (int(word) for word in KERNEL.read_text().split())
    assert not set(PORTS) & set(range(first, last + 1))
