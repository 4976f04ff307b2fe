"""A process that is tied to its parent ends with it, or learns that the parent has ended before."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
from mini_r1.machine.lifeline import Lifeline

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel's part is Linux's alone")

FAMILY = """
import os, subprocess, sys, time
from mini_r1.machine.lifeline import Lifeline
tie = Lifeline(os.getpid())
tied = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], preexec_fn=lambda: tie() or os._exit(1))
free = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(tied.pid, free.pid, flush=True)
time.sleep(600)
"""


def alive(pid: int) -> bool:
    """Return whether a process runs; a zombie does not."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def test_a_killed_parent_ends_what_is_tied_to_it() -> None:
    parent = subprocess.Popen([sys.executable, "-c", FAMILY], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    tied, free = map(int, parent.stdout.readline().split())
    try:
        assert alive(tied)
        parent.kill()
        parent.wait()
        end = time.monotonic() + 30
        while alive(tied):
            assert time.monotonic() < end, "it outlived its parent"
            time.sleep(0.01)
        assert alive(free), "so it was not the end of the parent alone"
    finally:
        parent.stdout.close()
        os.kill(free, signal.SIGKILL)


def test_a_process_learns_that_its_parent_has_ended_already() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0 if Lifeline(os.getppid())() and not Lifeline(os.getpid())() else 1)
    assert os.waitpid(pid, 0)[1] == 0
