"""Hosts on this machine: each with its own interfaces, name, /etc/hosts, /dev/shm and mounts, as in a cluster.

They are Linux namespaces, each held open by a process that ends with its standard input. Interfaces, names and mounts
cannot be seen outside, and vanish with the last process inside, even if the tests are killed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType

import psutil

NAMESPACES = ("--net", "--uts", "--mount")
HOLD = """
set -e
hostname "$1"
mount --bind "$2" /etc/hosts
mount -t tmpfs shm /dev/shm
ip link set lo up
echo here
exec cat
"""
PROBE = """
set -e
hostname probe
mount -t tmpfs shm /dev/shm
ip link add probe0 type veth peer name probe1
"""
NAMES, ADDRESSES, LINKS = ("hare", "tortoise"), ("198.51.100.1", "198.51.100.2"), ("lan7", "enp3s0")


def why_none() -> str | None:
    """Return why this machine cannot have such hosts; None if it can."""
    missing = [program for program in ("ip", "mount", "nsenter", "unshare") if shutil.which(program) is None]
    if missing:
        return f"no network namespaces without {', '.join(missing)}: `apt-get install iproute2 util-linux` (Debian)"
    done = subprocess.run(["unshare", *NAMESPACES, "sh", "-c", PROBE], capture_output=True, text=True, timeout=30)
    return None if done.returncode == 0 else f"network namespaces are not permitted: {done.stderr.strip()}"


class Host:
    """A host that exists until the `with` ends.

    Args:
        name: what `hostname` says there.
        hosts: becomes its /etc/hosts.
    """

    def __init__(self, name: str, hosts: Path) -> None:
        self.name = name
        self._holder = subprocess.Popen(
            ["unshare", *NAMESPACES, "sh", "-c", HOLD, "sh", name, str(hosts)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def __enter__(self) -> Host:
        assert self._holder.stdout is not None
        assert self._holder.stderr is not None
        if self._holder.stdout.readline() != b"here\n":
            raise OSError(self._holder.stderr.read().decode())
        self._network = _network(self.pid)
        assert self._network not in (None, _network(os.getpid())), "kill_all would kill everything"
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.kill_all()
        self._holder.kill()
        self._holder.communicate()

    @property
    def pid(self) -> int:
        """Id of the process that holds it open."""
        return self._holder.pid

    @property
    def inside(self) -> tuple[str, ...]:
        """Prefix that runs a command there, in the command's own process."""
        return ("nsenter", "--target", str(self.pid), *NAMESPACES)

    def run(self, *command: str | Path) -> None:
        """Run a short command on the host."""
        subprocess.run([*self.inside, *map(str, command)], check=True, capture_output=True, timeout=30)

    def processes(self) -> list[psutil.Process]:
        """Return all processes of the host."""
        return [p for p in psutil.process_iter() if p.pid != self.pid and _network(p.pid) == self._network]

    def kill_all(self) -> None:
        """Kill all processes of the host, as when a machine crashes."""
        while found := self.processes():
            for process in found:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            time.sleep(0.05)


@contextmanager
def two_hosts(folder: Path) -> Iterator[tuple[Host, Host]]:
    """Connect two hosts with a cable.

    Each knows the other by its address, and itself, as Debian and Ubuntu install it, by 127.0.1.1.

    Args:
        folder: for their /etc/hosts.
    """
    with ExitStack() as stack:
        hosts = []
        for own, other, address in zip(NAMES, reversed(NAMES), reversed(ADDRESSES), strict=True):
            path = folder / f"hosts-of-{own}"
            path.write_text(f"127.0.0.1 localhost\n127.0.1.1 {own}\n{address} {other}\n")
            hosts.append(stack.enter_context(Host(own, path)))
        first, second = hosts
        cable = ("type", "veth", "peer", "name", LINKS[1], "netns", str(second.pid))
        first.run("ip", "link", "add", LINKS[0], *cable)
        for host, link, address in zip(hosts, LINKS, ADDRESSES, strict=True):
            host.run("ip", "address", "add", f"{address}/24", "dev", link)
            host.run("ip", "link", "set", link, "up")
        yield first, second


def _network(pid: int) -> int | None:
    """Return the number of a process's network; None if the process is gone or a zombie."""
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino
    except OSError:
        return None
