"""The control groups of this process: what a scheduler or a container leaves it of memory, processes and cores.

Version 2 has one tree, version 1 one for each controller. psutil shows the machine alone.
"""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Final

from mini_r1.machine.findings import Finding, fail, ok, skip, warn
from mini_r1.values import GIB

Read = Callable[[str], str | None]
"""Returns the text of a kernel file by its path below /; None if it cannot be read."""


FILES: Final = {
    "memory": (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")),
    "pids": (("pids.max", "pids.current"), ("pids.max", "pids.current")),
}
"""Files of each controller: its limit and its use, in version 2 and in version 1."""


def read_kernel_file(path: str, root: Path = Path("/")) -> str | None:
    """Return the text of a kernel file of the machine with this root; None if it cannot be read."""
    try:
        return (root / path).read_text(errors="replace")
    except OSError:
        return None


def limits(read: Read, controller: str) -> Iterator[tuple[float, float]]:
    """Yield (limit, used) for each group that sets a limit; `controller` is `memory` or `pids` (processes)."""
    for folder, is_v1 in _groups(read, controller):
        limit, used = (_number(read(f"{folder}/{file}")) for file in FILES[controller][is_v1])
        if limit is not None:
            yield limit, used or 0.0


def compare_memory(needed_gib: float, read: Read = read_kernel_file) -> Finding:
    """Return whether the machine, or this job's share of it, has the memory that processes need together."""
    meminfo = dict(re.findall(r"^(\w+):\s+(\d+)", read("proc/meminfo") or "", re.MULTILINE))
    if not {"MemTotal", "MemAvailable"} <= set(meminfo):
        return skip("/proc/meminfo cannot be read")
    limit, free, source = int(meminfo["MemTotal"]) * 1024.0, int(meminfo["MemAvailable"]) * 1024.0, "the machine"
    for group_limit, used in limits(read, "memory"):
        if group_limit < limit:
            limit, source = group_limit, "this job's control group"
        free = min(free, max(group_limit - used, 0))
    found = f"{free / GIB:.1f} of {limit / GIB:.1f} GiB free ({source})"
    needed = f"{found}, the plan needs {needed_gib:.1f}"
    if limit < needed_gib * GIB:
        return fail(needed, "give the job more memory (--mem, resources.limits.memory)", "node")
    if free < needed_gib * GIB:
        return warn(needed, "check what else uses the node's memory")
    return ok(found)


def cores(read: Read = read_kernel_file) -> float | None:
    """Return the cores of the smallest quota, as Kubernetes' `resources.limits.cpu` and docker's `--cpus` set it."""
    quotas = []
    for folder, is_v1 in _groups(read, "cpu"):
        if is_v1:
            fields = [read(f"{folder}/cpu.cfs_quota_us") or "", read(f"{folder}/cpu.cfs_period_us") or ""]
        else:
            fields = (read(f"{folder}/cpu.max") or "").split()
        quota, period = (_number(field) for field in fields) if len(fields) == 2 else (None, None)
        if quota and period:  # without a quota version 1 has -1, version 2 max
            quotas.append(quota / period)
    return min(quotas, default=None)


def usable_cores() -> int:
    """Return the number of cores that this process may use: its share of the machine, at least 1."""
    seen = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cores()
    return seen if quota is None else max(1, min(seen, int(quota)))


def _groups(read: Read, controller: str) -> Iterator[tuple[str, bool]]:
    """Yield the folder of each group and its parents, whose limits hold too, and whether it is of version 1."""
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
    """Return a number; None for `max`, version 2's "no limit" (version 1 writes a number beyond any machine)."""
    return float(text) if text is not None and text.strip().isdecimal() else None
