"""The network interface of an address."""

from __future__ import annotations

import socket
import sys

import pytest
from mini_r1.launch.channel import interface_addresses, interface_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="nodes are Linux machines")


@pytest.mark.parametrize("address", ["127.0.0.1", "::ffff:127.0.0.1"])
def test_the_loopback_address_belongs_to_lo(address: str) -> None:
    assert interface_of(address) == "lo"


def test_every_interface_has_an_address() -> None:
    found = interface_addresses()
    assert "127.0.0.1" in found["lo"]
    assert all(found.values())


def test_an_ipv6_address_is_found_too() -> None:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
            address = server.getsockname()[0]
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")
    assert interface_of(address) == "lo"


@pytest.mark.parametrize("address", ["203.0.113.7", "2001:db8::7", "fe80::7%lo"])
def test_an_address_of_another_machine_has_none(address: str) -> None:
    assert interface_of(address) is None
