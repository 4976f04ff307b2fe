"""Signals to the launcher: the first asks for a stop in order, a second one for a stop at once."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

from mini_r1.machine.lifeline import SAME_REQUEST_S

REQUESTS = (signal.SIGTERM, signal.SIGINT)
NOTICE = signal.SIGUSR1
"""Slurm sends it before a time limit; a SIGTERM that follows still means a stop in order."""


class StopOrder:
    """What this process was asked inside `with StopOrder() as stop`; `clock` is monotonic."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._requested_at: float | None = None
        self.name: str | None = None  # the first signal
        self.at_once = False  # whether a second request came

    def take(self, number: int) -> None:
        self.name = self.name or signal.Signals(number).name
        if number not in REQUESTS:
            return
        if self._requested_at is None:
            self._requested_at = self._clock()
        elif self._clock() - self._requested_at > SAME_REQUEST_S:
            self.at_once = True

    def __enter__(self) -> StopOrder:
        self._before = {
            number: signal.signal(number, lambda number, frame: self.take(number)) for number in (*REQUESTS, NOTICE)
        }
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
