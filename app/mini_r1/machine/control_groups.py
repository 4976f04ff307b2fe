"""The control groups around this process: what a scheduler or a container leaves it of memory, processes and cores.

Version 2 has one tree, version 1 one for each controller. A container may see its own group as the root. A parent's
limit counts as well as the group's own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

Read = Callable[[str], str | None]
"""A file of the kernel's by its path below /, None where it cannot be read."""


class Names(NamedTuple):
    """A file of a group: how version 2 calls it, and version 1."""

    v2: str
    v1: str


MEMORY: Final = Names("memory.max", "memory.limit_in_bytes"), Names("memory.current", "memory.usage_in_bytes")
PROCESSES: Final = Names("pids.max", "pids.max"), Names("pids.current", "pids.current")


def kernel_file(path: str, root: Path = Path("/")) -> str | None:
    """A `Read` of this machine, or of the one whose root is elsewhere."""
    try:
        return (root / path).read_text(errors="replace")
    except OSError:
        return None


def limits(read: Read, controller: str, names: tuple[Names, Names]) -> Iterator[tuple[float, float]]:
    """(limit, used) of each group that sets a limit.

    Args:
        read: how files are read.
        controller: version 1's name of it.
        names: of the files with the limit and with what is used.
    """
    limit_name, used_name = names
    for folder, is_v1 in _groups(read, controller):
        limit = _number(read(f"{folder}/{limit_name.v1 if is_v1 else limit_name.v2}"))
        if limit is not None:
            yield limit, _number(read(f"{folder}/{used_name.v1 if is_v1 else used_name.v2}")) or 0.0


def cores(read: Read = kernel_file) -> float | None:
    """Cores' worth of time that the tightest group gives, None without a limit.

    Kubernetes' `resources.limits.cpu` and docker's `--cpus` are such a quota: the process sees all cores of the node.
    """
    quotas = []
    for folder, is_v1 in _groups(read, "cpu"):
        if is_v1:
            fields = [read(f"{folder}/cpu.cfs_quota_us") or "", read(f"{folder}/cpu.cfs_period_us") or ""]
        else:
            fields = (read(f"{folder}/cpu.max") or "").split()
        quota, period = (_number(field) for field in fields) if len(fields) == 2 else (None, None)
        if quota and period:  # version 1 says -1, version 2 max, where there is none
            quotas.append(quota / period)
    return min(quotas, default=None)


def usable_cores() -> int:
    """Return the number of cores that this process may use: its share of the machine, at least 1."""
    seen = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cores()
    return seen if quota is None else max(1, min(seen, int(quota)))


def _groups(read: Read, controller: str) -> Iterator[tuple[str, bool]]:
    """The folder of each group, the nearest first, and whether it is of version 1."""
    for line in (read("proc/self/cgroup") or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        mount = f"sys/fs/cgroup/{controller}" if controllers else "sys/fs/cgroup"
        group = PurePosixPath(path)
        for folder in dict.fromkeys([group, *group.parents, PurePosixPath("/")]):
            yield f"{mount}{folder}", bool(controllers)


def _number(text: str | None) -> float | None:
    """None for `max`, version 2's word for no limit; version 1 writes a number beyond any machine."""
    return float(text) if text is not None and text.strip().isdecimal() else None
