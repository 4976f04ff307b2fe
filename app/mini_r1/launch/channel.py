"""A connection between two launchers: bounded JSON messages, and proof at its start that both are of one job.

Not `multiprocessing.connection`: its listener waits without end for whoever connects and says nothing, a port scanner
for example, and it pickles. No message is signed and nothing is encrypted: the key keeps jobs and accidents apart. Who
can read and write the cluster's own network can stop a job, and not more than that.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import json
import os
import secrets
import select
import socket
import struct
import time
from typing import Any

from mini_r1.errors import ExitCode, KitError

MAX_BYTES = 1 << 20
"""Of a message; the largest, a recipe and versions, is some 10 thousand."""
NONCE_BYTES = 32
SEND_TIMEOUT_S = 10.0
"""Seconds until a peer that takes nothing from a full buffer counts as gone."""

_LENGTH = struct.Struct("!I")


class Gone(Exception):
    """The other side closed the connection, is no launcher of this job, or says what no launcher says."""


class Channel:
    """One end of a connection.

    Args:
        connection: a connected socket; the channel owns it from here on.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._socket.settimeout(SEND_TIMEOUT_S)
        self._received = bytearray()

    def fileno(self) -> int:
        """For select."""
        return self._socket.fileno()

    @property
    def local_address(self) -> str:
        """This end's IP address: an address by which the two machines do reach one another."""
        return str(self._socket.getsockname()[0])

    def send(self, message: dict[str, Any]) -> None:
        """Send one message.

        Raises:
            Gone: the other side takes nothing any more.
        """
        data = json.dumps(message).encode()
        if len(data) > MAX_BYTES:
            raise ValueError(f"a message of {len(data)} bytes; at most {MAX_BYTES}")
        self._send(_LENGTH.pack(len(data)) + data)

    def receive(self, timeout_s: float) -> dict[str, Any]:
        """The next message.

        Raises:
            Gone: the other side closed, or sent no message.
            TimeoutError: nothing whole came in time.
        """
        end = time.monotonic() + timeout_s
        while True:
            message = self._whole()
            if message is not None:
                return message
            self._fill(end)

    def waiting(self) -> list[dict[str, Any]]:
        """All messages that have come, without waiting for more.

        Raises:
            Gone: the other side closed, or sent no message.
        """
        if select.select([self._socket], [], [], 0)[0]:
            self._fill(time.monotonic())
        found = []
        while (message := self._whole()) is not None:
            found.append(message)
        return found

    def prove(self, key: bytes, *, first: bool, timeout_s: float) -> None:
        """Show the other side that this one has the key, and have it show the same.

        Each signs the other's random bytes and the side it is on, so that an answer cannot be sent back as one's own.

        Args:
            key: of the job.
            first: on one side True, on the other False.
            timeout_s: for the whole of it.

        Raises:
            Gone: it has not.
        """
        end = time.monotonic() + timeout_s
        mine = secrets.token_bytes(NONCE_BYTES)
        self._send(mine)
        theirs = self._exactly(NONCE_BYTES, end)
        self._send(_signature(key, first, theirs))
        if not hmac.compare_digest(self._exactly(NONCE_BYTES, end), _signature(key, not first, mine)):
            raise Gone("it is no launcher of this job")

    def close(self) -> None:
        """Close the connection; the other side sees it."""
        self._socket.close()

    def _send(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise Gone(error.strerror or str(error)) from error

    def _fill(self, end: float) -> None:
        """Read what has come, waiting until `end` for something to come."""
        if not select.select([self._socket], [], [], max(0.0, end - time.monotonic()))[0]:
            raise TimeoutError
        try:
            data = self._socket.recv(1 << 16)
        except OSError as error:
            raise Gone(error.strerror or str(error)) from error
        if not data:
            raise Gone("it closed the connection")
        self._received += data

    def _exactly(self, count: int, end: float) -> bytes:
        while len(self._received) < count:
            try:
                self._fill(end)
            except TimeoutError:
                raise Gone("it says nothing") from None
        data = bytes(self._received[:count])
        del self._received[:count]
        return data

    def _whole(self) -> dict[str, Any] | None:
        """A message of what has been read, if there is one."""
        if len(self._received) < _LENGTH.size:
            return None
        length = _LENGTH.unpack_from(self._received)[0]
        if length > MAX_BYTES:
            raise Gone("it sends what is no message")
        if len(self._received) < _LENGTH.size + length:
            return None
        data = bytes(self._received[_LENGTH.size : _LENGTH.size + length])
        del self._received[: _LENGTH.size + length]
        try:
            message = json.loads(data)
        except (ValueError, RecursionError):
            raise Gone("it sends what is no message") from None
        if not isinstance(message, dict):
            raise Gone("it sends what is no message")
        return message


def listen(address: str, port: int) -> socket.socket:
    """A socket that launchers of other nodes can connect to.

    On this machine's loopback address alone where that is the address; else on all, because a name may lead to one
    here that it does not lead to from elsewhere.

    Raises:
        KitError: the port is taken.
    """
    if address in ("127.0.0.1", "localhost"):
        hosts = ["127.0.0.1"]
    else:
        hosts = [*(["::"] if socket.has_dualstack_ipv6() else []), "0.0.0.0"]  # noqa: S104
    for host in hosts:
        v6 = ":" in host
        family = socket.AF_INET6 if v6 else socket.AF_INET
        try:
            return socket.create_server((host, port), family=family, dualstack_ipv6=v6, backlog=128)
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL and host != hosts[-1]:
                continue  # IPv6 is compiled in and switched off
            raise port_taken(port, error) from error
    raise AssertionError("there is always a last host")


def port_taken(port: int, error: OSError) -> KitError:
    """What to say when a port cannot be listened on."""
    return KitError(
        f"port {port} of this node cannot be listened on ({os.strerror(error.errno or 0)}): another job may have it,"
        f" see `ss -ltnp | grep {port}`. End that one, or start this job on all nodes with another --port",
        ExitCode.RETRY,
    )


def _signature(key: bytes, first: bool, nonce: bytes) -> bytes:
    return hmac.new(key, (b"first" if first else b"second") + nonce, hashlib.sha256).digest()
