"""The network: ports that must be free, interfaces that must be there."""

from __future__ import annotations

import errno
import os
import socket

from mini_r1.console import printable
from mini_r1.doctor.case import Case
from mini_r1.findings import Finding, fail, ok, skip, worst

INTERFACE_VARIABLES = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME")


def ports(case: Case) -> Finding:
    """Nobody listens on the ports that node 0 needs."""
    if not case.ports:
        return skip("this node listens on none")
    return worst(_port(port) for port in case.ports)


def _port(port: int) -> Finding:
    try:
        with socket.socket() as probe:
            # As a server binds: connections of an earlier job that linger (TIME_WAIT) are no hindrance.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("", port))
            probe.listen(1)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            return fail(f"port {port}: {error.strerror}", "choose another with --port", "node")
        return fail(
            f"port {port} is taken", f"see by whom: ss -ltnp 'sport = :{port}'; or choose another with --port", "node"
        )
    return ok(f"port {port} is free")


def interfaces(case: Case) -> Finding:
    """The network interfaces that variables name are there."""
    given = {name: case.environment[name] for name in INTERFACE_VARIABLES if case.environment.get(name)}
    if not given:
        return ok("left to NCCL and gloo")
    there = sorted(os.listdir(case.root / "sys/class/net"))
    return worst(_interface(name, value, there) for name, value in given.items())


def _interface(variable: str, value: str, there: list[str]) -> Finding:
    """NCCL: beginnings of names, `=` for whole names, `^` for all but these; gloo: whole names."""
    shown = f"{variable}={printable(value)}"
    if value.startswith("^"):
        return ok(shown)
    exact = value.startswith("=") or variable.startswith("GLOO")
    names = value.lstrip("=").split(",")
    if any(name == own if exact else own.startswith(name) for name in names for own in there):
        return ok(shown)
    return fail(
        f"{shown}: there is no such interface here, but {', '.join(there)}",
        f"unset {variable}: NCCL and gloo find one; nodes may name theirs differently",
        "node",
    )
