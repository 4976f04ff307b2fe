"""Asked to stop: a signal sets a flag, the trainer saves at the next step boundary, a second signal stops at once."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

from mini_r1.errors import ExitCode

SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)
)  # SIGUSR1 is what Slurm is told to send ahead of a time limit; Windows has none


class StopRequest:
    """Whether, and by which signal, this process was asked to stop while inside `with StopRequest() as stop`."""

    def __init__(self) -> None:
        self.signal_name: str | None = None

    def __bool__(self) -> bool:
        return self.signal_name is not None

    def __enter__(self) -> StopRequest:
        self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal_name is not None:
            os._exit(ExitCode.INTERRUPTED)  # asked twice: the last complete checkpoint stands
        self.signal_name = signal.Signals(number).name
        # os.write and not print: a handler may run in the middle of another print.
        text = f"\n{self.signal_name}: saving at the end of this step, then stopping; once more stops at once\n"
        os.write(sys.stderr.fileno(), text.encode())
