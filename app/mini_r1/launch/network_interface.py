"""The network interface that an address of this machine belongs to."""

from __future__ import annotations

import ipaddress
import socket
import struct
import sys
from pathlib import Path

SIOCGIFADDR = 0x8915
"""Request of ioctl(2): an interface's IPv4 address, from linux/sockios.h."""
_IFREQ = struct.Struct("16sH2x4s16x")
"""struct ifreq of netdevice(7): name, address family, (port), IPv4 address."""
_IF_INET6 = Path("/proc/net/if_inet6")


def interface_of(address: str) -> str | None:
    """The interface with this IP address.

    Args:
        address: as getsockname gives it; an IPv4 one may stand in an IPv6 one's clothes (::ffff:192.0.2.1).

    Returns:
        Its name; None where no interface has the address, or where the system is not Linux.
    """
    if sys.platform != "linux":
        return None
    wanted = ipaddress.ip_address(address.partition("%")[0])
    wanted = getattr(wanted, "ipv4_mapped", None) or wanted
    return _ipv4().get(wanted.packed) if wanted.version == 4 else _ipv6().get(wanted.packed)


def _ipv4() -> dict[bytes, str]:
    """Names by address, of what is up."""
    import fcntl  # not on every system that imports this

    found: dict[bytes, str] = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for _, name in socket.if_nameindex():
            request = _IFREQ.pack(name.encode(), socket.AF_INET, b"")
            try:
                answer = fcntl.ioctl(any_socket, SIOCGIFADDR, request)
            except OSError:
                continue  # it has none
            found[_IFREQ.unpack(answer)[2]] = name
    return found


def _ipv6() -> dict[bytes, str]:
    try:
        lines = _IF_INET6.read_text().splitlines()
    except OSError:
        return {}  # IPv6 is switched off
    return {bytes.fromhex(line.split()[0]): line.split()[5] for line in lines}
