"""A process that dies with its parent, however that ends: what is started here outlives nobody who waits for it.

The kernel's own means, and Linux's alone (prctl(2), PR_SET_PDEATHSIG); elsewhere there is none, and nothing happens.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
"""Option of prctl(2), from linux/prctl.h."""


class Lifeline:
    """Ties the process that calls it to its parent.

    Made before a fork it can be called between that and exec: the call imports and looks up nothing.

    Args:
        parent: id of the process that has to live.
    """

    def __init__(self, parent: int) -> None:
        self._parent = parent
        self._prctl = ctypes.CDLL(None).prctl if sys.platform.startswith("linux") else None

    def __call__(self) -> bool:
        """From now on this process gets SIGKILL when its parent ends; False: the parent has ended already."""
        if self._prctl is None:
            return True
        self._prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        return os.getppid() == self._parent
