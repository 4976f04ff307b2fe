"""A connection between two launchers: bounded lines of JSON, and proof at its start that both belong to one job.

Not `multiprocessing.connection`: its listener waits without limit for a client that sends nothing, and it pickles.
Nothing is signed or encrypted: anyone who can write to the cluster's own network can stop a job, and no more than that.
"""

import errno
import hashlib
import hmac
import ipaddress
import json
import os
import secrets
import select
import socket
import time
from contextlib import suppress
from typing import Any

from mini_r1.errors import ExitCode, KitError

MAX_BYTES = 1 << 20  # limit of a message; the largest, a recipe and versions, has about 10 thousand
NONCE_BYTES = 32
SEND_TIMEOUT_S = 10.0  # seconds until a peer that reads nothing from a full buffer counts as gone


class Gone(Exception):
    """Error raised when the other side closed the connection, belongs to another job, or sent no valid message."""


class Channel:
    """One end of a connection; it owns the socket."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._socket.settimeout(SEND_TIMEOUT_S)
        self._received = bytearray()

    @property
    def interface(self) -> str | None:
        return interface_of(self._socket.getsockname()[0])

    def send(self, message: dict[str, Any]) -> None:
        """Send one message, or raise Gone if the other side reads no more."""
        data = json.dumps(message).encode() + b"\n"
        if len(data) > MAX_BYTES:
            raise ValueError(f"a message of {len(data)} bytes; at most {MAX_BYTES}")
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise Gone(error.strerror or str(error)) from error

    def receive(self, timeout_s: float) -> dict[str, Any]:
        """Return the next message; raise Gone, or TimeoutError if no complete message came in time."""
        end = time.monotonic() + timeout_s
        while (message := self._next_message()) is None:
            if not select.select([self._socket], [], [], max(0.0, end - time.monotonic()))[0]:
                raise TimeoutError
            self._read()
        return message

    def waiting(self) -> list[dict[str, Any]]:
        """Return all messages that have come, without waiting for more, or raise Gone."""
        if select.select([self._socket], [], [], 0)[0]:
            self._read()
        return list(iter(self._next_message, None))

    def prove(self, key: bytes, *, first: bool, timeout_s: float) -> None:
        """Prove to the other side that this one has the job's key, and check the other side's proof.

        Each signs the other's random nonce and its own side, so that a signature cannot be sent back: `first` is True
        on one side and False on the other. Without a proof from there Gone is raised.
        """
        nonce = secrets.token_hex(NONCE_BYTES)
        self.send({"nonce": nonce})
        try:
            self.send({"proof": _sign(key, first, str(self.receive(timeout_s).get("nonce")))})
            proof = str(self.receive(timeout_s).get("proof"))
        except TimeoutError:
            raise Gone("it sends nothing") from None
        if not hmac.compare_digest(proof.encode(), _sign(key, not first, nonce).encode()):
            raise Gone("it is no launcher of this job")

    def close(self) -> None:
        self._socket.close()

    def _read(self) -> None:
        try:
            data = self._socket.recv(1 << 16)
        except OSError as error:
            raise Gone(error.strerror or str(error)) from error
        if not data:
            raise Gone("it closed the connection")
        self._received += data

    def _next_message(self) -> dict[str, Any] | None:
        """Return the first complete message of what was read."""
        line, newline, rest = self._received.partition(b"\n")
        if len(line) > MAX_BYTES:
            raise Gone("it sends no valid message")
        if not newline:
            return None
        self._received = rest
        with suppress(ValueError, RecursionError):
            if isinstance(message := json.loads(line), dict):
                return message
        raise Gone("it sends no valid message")


def listen(address: str, port: int) -> socket.socket:
    """Return a socket that launchers of other nodes can connect to, or raise KitError if the port is taken."""
    # Else all addresses: a name may resolve to another address here than on the other nodes.
    local = address in ("127.0.0.1", "localhost")
    try:
        if not local and socket.has_dualstack_ipv6():
            try:
                return socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=128)
            except OSError as error:
                if error.errno != errno.EADDRNOTAVAIL:  # IPv6 is compiled in and switched off
                    raise
        return socket.create_server(("127.0.0.1" if local else "0.0.0.0", port), backlog=128)  # noqa: S104
    except OSError as error:
        raise KitError(
            f"cannot listen on port {port} of this node ({os.strerror(error.errno or 0)}): another job may use it, see"
            f" `ss -ltnp | grep {port}`. End that job, or start this one on all nodes with another --port",
            ExitCode.RETRY,
        ) from error


def interface_of(address: str) -> str | None:
    """Return the name of the network interface with this IP address, given as by getsockname; None if there is none."""
    for name, addresses in interface_addresses().items():
        if _ip_address(address) in map(_ip_address, addresses):
            return name
    return None


def interface_addresses() -> dict[str, list[str]]:
    """Return the IP addresses of each network interface of this machine that has one, by its name."""
    import psutil

    families = (socket.AF_INET, socket.AF_INET6)
    found = {
        name: [own.address for own in addresses if own.family in families]
        for name, addresses in psutil.net_if_addrs().items()
    }
    return {name: addresses for name, addresses in found.items() if addresses}


def _ip_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    address = ipaddress.ip_address(text.partition("%")[0])
    # A dual-stack socket gives an IPv4 address as ::ffff:192.0.2.1.
    return getattr(address, "ipv4_mapped", None) or address


def _sign(key: bytes, first: bool, nonce: str) -> str:
    return hmac.new(key, (b"first" if first else b"second") + nonce.encode(), hashlib.sha256).hexdigest()
