"""A worker's side of what it and its launcher tell each other: heartbeats, stacks, the request to stop.

All of it goes through files in a scratch directory of the launcher's (`MINI_R1_SUPERVISOR`), on the node's own disk. A
signal would not do: a scheduler may send its own to every process, and nobody could tell the two apart. Light, because
a worker needs it before it spends seconds on importing torch.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import time
from pathlib import Path

from mini_r1.machine.lifeline import Lifeline
from mini_r1.run.files import write_json

VARIABLE = "MINI_R1_SUPERVISOR"
STOP_FILE = "stop"
"""Its text is the signal that the launcher got."""


class Supervisor:
    """The launcher that started this worker; without one every method does nothing.

    Args:
        folder: the scratch directory that both know, None without a launcher.
        rank: of this worker.
    """

    def __init__(self, folder: Path | None, rank: int) -> None:
        self._folder = folder
        self._rank = rank
        self._last: tuple[str, int, int | None] = ("start", 0, None)

    @classmethod
    def from_environment(cls) -> Supervisor:
        """What MINI_R1_SUPERVISOR and RANK say."""
        folder = os.environ.get(VARIABLE)
        return cls(Path(folder) if folder else None, int(os.environ.get("RANK", "0")))

    def __bool__(self) -> bool:
        return self._folder is not None

    def attend(self) -> None:
        """Be ready for the launcher: die with it, write stacks when it asks for them, say that this process lives."""
        if self._folder is None:
            return
        if not Lifeline(os.getppid())():
            os.kill(os.getpid(), signal.SIGKILL)
        # Open for as long as the process lives: faulthandler writes to the descriptor from inside a signal handler.
        stacks = (self._folder / f"rank-{self._rank}.stack").open("a")
        faulthandler.register(signal.SIGUSR2, file=stacks, all_threads=True)
        self.beat("start")

    def beat(self, phase: str, step: int = 0, attempt: int | None = None) -> None:
        """Tell the launcher that a phase begins."""
        self._last = (phase, step, attempt)
        if self._folder is None:
            return
        facts = {"step": step, "phase": phase, "attempt": attempt, "time": time.time(), "pid": os.getpid()}
        # A disk that is full is told by whoever has something to save, and a heartbeat left out ends in a hang's words.
        with contextlib.suppress(OSError):
            write_json(self._folder / f"rank-{self._rank}.heartbeat", facts, sync=False)

    def beat_again(self) -> None:
        """Tell the launcher that this worker has done its part of the phase: who is silent for longer is waited for."""
        self.beat(*self._last)

    def asked_to_stop(self) -> str | None:
        """The name of the signal that the launcher got, None if it got none."""
        if self._folder is None:
            return None
        try:
            return (self._folder / STOP_FILE).read_text().strip() or "SIGTERM"
        except OSError:
            return None
