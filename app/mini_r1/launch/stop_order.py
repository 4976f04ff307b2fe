"""Signals to the launcher: the first asks for a stop in order, a second one for a stop at once.

SIGUSR1 is a notice: Slurm sends it ahead of a time limit, and a SIGTERM may follow that still means 'in order'. A
scheduler may send the same request twice, to a process and to its group: within SAME_S both are one.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from types import FrameType

ORDERS = (signal.SIGTERM, signal.SIGINT)
NOTICE = signal.SIGUSR1
SAME_S = 2.0
"""Seconds in which a request may come twice."""


class StopOrder:
    """What this process was asked, inside `with StopOrder() as stop`.

    Args:
        clock: seconds that only go forward.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ordered_at: float | None = None
        self.name: str | None = None
        """Of the first signal."""
        self.at_once = False
        """Whether a second request came."""

    @property
    def asked(self) -> bool:
        """Whether a signal came."""
        return self.name is not None

    def take(self, number: int) -> None:
        """Take a signal."""
        self.name = self.name or signal.Signals(number).name
        if number not in ORDERS:
            return
        if self._ordered_at is None:
            self._ordered_at = self._clock()
        elif self._clock() - self._ordered_at > SAME_S:
            self.at_once = True

    def __enter__(self) -> StopOrder:
        self._before = {number: signal.signal(number, self._handle) for number in (*ORDERS, NOTICE)}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.take(number)
