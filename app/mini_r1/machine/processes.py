"""The process that wrote a file, and whether it has ended: only the kernel that ran it can tell.

A process is identified by its id, its start, the boot and the namespace of its id, all from Linux's /proc. On another
host, in another container and on other systems nothing is known. psutil doesn't fit: its start time moves with the
clock, and its `pid_exists` denies processes that /proc hides.
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from mini_r1.values import mapping

PROC = Path("/proc")
ENDED = ("Z", "X")
"""States of a process that has ended: not reaped yet, dead."""
MOST_PIDS = 1 << 22
"""Linux's limit."""


def this_process() -> dict[str, Any] | None:
    """Return what identifies this process; None if the kernel does not show it."""
    try:
        _, started = _read_stat(os.getpid())
        return {"pid": os.getpid(), "started": started, **_kernel()}
    except (OSError, ValueError, IndexError):
        return None


def is_gone(process: object) -> bool:
    """Return whether the process that `this_process` described has ended for certain; False if it cannot be known.

    The description comes from a file and is not trusted.
    """
    known = mapping(process)
    pid = known.get("pid")
    if type(pid) is not int or not 0 < pid < MOST_PIDS:
        return False
    with suppress(OSError):
        if _kernel().items() <= known.items():
            try:
                state, started = _read_stat(pid)
            except (OSError, ValueError, IndexError):
                return not _exists(pid)
            return state in ENDED or started != known.get("started")
    return False


def _kernel() -> dict[str, str]:
    """Return what identifies the running kernel, and the namespace of this process's id."""
    boot = (PROC / "sys/kernel/random/boot_id").read_text().strip()
    return {"boot": boot, "namespace": os.readlink(PROC / "self/ns/pid")}


def _read_stat(pid: int) -> tuple[str, int]:
    """Return state, and start in clock ticks since the boot: fields 3 and 22 of proc(5), behind the name."""
    fields = (PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
    return fields[0], int(fields[19])


def _exists(pid: int) -> bool:
    """Return whether there is such a process: /proc may hide those of other users (hidepid)."""
    try:
        os.kill(pid, 0)
    except OSError as error:
        return not isinstance(error, ProcessLookupError)
    return True
