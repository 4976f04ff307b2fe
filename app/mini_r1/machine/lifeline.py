"""What ties a worker to its launcher: the names of their channel, and an end with the parent process (on Linux)."""

import ctypes
import os
import signal
import sys
from collections.abc import Mapping

SUPERVISOR = "MINI_R1_SUPERVISOR"
"""Variable with the launcher's scratch directory, where heartbeats, stacks and the request to stop are written."""
VLLM_DEVICE = "MINI_R1_VLLM_DEVICE"
"""Variable of rank 0 with vLLM's devices, separated by commas, one for each of its processes: `cpu`, or the process's
CUDA_VISIBLE_DEVICES."""
VLLM_SHARED = "MINI_R1_VLLM_SHARED"
"""Variable of rank 0 with the value 1 if vLLM's device is also the one that it trains on."""
STOP_FILE = "stop"
"""The request to stop: holds the name of the signal that the launcher got."""
SAME_REQUEST_S = 2.0
"""Seconds in which two requests to stop count as one: a scheduler may signal a process and then its group."""
PR_SET_PDEATHSIG = 1
"""Option of prctl(2), from linux/prctl.h."""


def shares_vllm_device(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether this worker trains on vLLM's device."""
    return environment.get(VLLM_SHARED) == "1"


class Lifeline:
    """Ties the process that calls it to the parent with this id; the call is safe between fork and exec."""

    def __init__(self, parent: int) -> None:
        self._parent = parent
        self._prctl = ctypes.CDLL(None).prctl if sys.platform.startswith("linux") else None

    def __call__(self) -> bool:
        """Have this process get SIGKILL when its parent ends; return False if the parent has ended already."""
        if self._prctl is None:
            return True
        self._prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        return os.getppid() == self._parent
