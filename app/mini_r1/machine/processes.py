"""The process that wrote a file, and whether it is gone: only the kernel that ran it can tell.

Linux alone: a process is known by its id, its start, the boot and the namespace of its id, all from /proc. On another
host, in another container and elsewhere nothing is known, and nothing is said.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mini_r1.values import mapping

PROC = Path("/proc")
ENDED = ("Z", "X")
"""States of a process that has ended: not reaped yet, dead."""
MOST_PIDS = 1 << 22
"""Linux's own limit."""


def this_process() -> dict[str, Any] | None:
    """Return what tells this process from every other one; None where the kernel does not say it."""
    try:
        _, started = _stat(os.getpid())
        return {"pid": os.getpid(), "started": started, **_kernel()}
    except (OSError, ValueError, IndexError):
        return None


def is_gone(process: object) -> bool:
    """Whether the process that `this_process` told of has ended for certain; False also where nobody can know.

    Args:
        process: as a file has it; nothing in it is trusted.
    """
    told = mapping(process)
    pid = told.get("pid")
    if type(pid) is not int or not 0 < pid < MOST_PIDS:
        return False
    try:
        if any(told.get(name) != value for name, value in _kernel().items()):
            return False
    except OSError:
        return False
    try:
        state, started = _stat(pid)
    except (OSError, ValueError, IndexError):
        return not _exists(pid)
    return state in ENDED or started != told.get("started")


def _kernel() -> dict[str, str]:
    """The running kernel, and the namespace of this process's id."""
    boot = (PROC / "sys/kernel/random/boot_id").read_text().strip()
    return {"boot": boot, "namespace": os.readlink(PROC / "self/ns/pid")}


def _stat(pid: int) -> tuple[str, int]:
    """State, and start in clock ticks since the boot: fields 3 and 22 of proc(5); the name before may have spaces."""
    fields = (PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
    return fields[0], int(fields[19])


def _exists(pid: int) -> bool:
    """Whether there is such a process: /proc may hide those of other users (hidepid)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
