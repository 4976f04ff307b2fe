"""Asked to stop, by a signal or by the launcher: the trainer saves at the next step boundary and ends.

Without a launcher a second signal stops at once. With one that is the launcher's to decide: a scheduler may signal
every process, and the launcher hears of it too.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

from mini_r1.errors import ExitCode
from mini_r1.training.supervised import Supervisor

SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)
)  # SIGUSR1 is what Slurm is told to send ahead of a time limit; Windows has none


class StopRequest:
    """Whether, and by which signal, this process was asked to stop while inside `with StopRequest(...) as stop`."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._own: str | None = None

    @property
    def signal_name(self) -> str | None:
        """The signal that this process or its launcher got; None: neither got one."""
        return self._own or self._supervisor.asked_to_stop()

    def __bool__(self) -> bool:
        return self.signal_name is not None

    def __enter__(self) -> StopRequest:
        self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._supervisor:
            self._own = signal.Signals(number).name
            return
        if self._own is not None:
            os._exit(ExitCode.INTERRUPTED)  # asked twice: the last complete checkpoint stands
        self._own = signal.Signals(number).name
        # os.write and not print: a handler may run in the middle of another print.
        text = f"\n{self._own}: saving at the end of this step, then stopping; once more stops at once\n"
        os.write(sys.stderr.fileno(), text.encode())
