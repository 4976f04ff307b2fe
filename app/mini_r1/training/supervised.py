"""A worker's side of the channel to its launcher: heartbeats, stacks, the request to stop.

The channel is files in a scratch directory of the launcher (`MINI_R1_SUPERVISOR`), on a local disk. It can't be
signals: a scheduler may send the same ones to every process. No heavy imports: a worker needs this before torch.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import time
from pathlib import Path

from mini_r1.machine.lifeline import STOP_FILE, SUPERVISOR, Lifeline
from mini_r1.run.files import write_json


class Supervisor:
    """The launcher that started this worker, by its scratch directory; without one every method does nothing."""

    def __init__(self, folder: Path | None, rank: int) -> None:
        self._folder = folder
        self._rank = rank
        self._last: tuple[str, int, int | None] = ("start", 0, None)

    @classmethod
    def from_environment(cls) -> Supervisor:
        """Read MINI_R1_SUPERVISOR and RANK."""
        folder = os.environ.get(SUPERVISOR)
        return cls(Path(folder) if folder else None, int(os.environ.get("RANK", "0")))

    def __bool__(self) -> bool:
        return self._folder is not None

    def attach(self) -> None:
        """Exit when the launcher does, write stacks when it asks for them, and send the first heartbeat."""
        if self._folder is None:
            return
        if not Lifeline(os.getppid())():
            os.kill(os.getpid(), signal.SIGKILL)
        # Stays open until the process exits: faulthandler writes to the descriptor from inside a signal handler.
        stacks = (self._folder / f"rank-{self._rank}.stack").open("a")
        faulthandler.register(signal.SIGUSR2, file=stacks, all_threads=True)
        self.beat("start")

    def beat(self, phase: str, step: int = 0, attempt: int | None = None) -> None:
        """Send a heartbeat: a phase begins."""
        self._last = (phase, step, attempt)
        if self._folder is None:
            return
        facts = {"step": step, "phase": phase, "attempt": attempt, "time": time.time(), "pid": os.getpid()}
        # Files that have to be saved report a full disk; a missing heartbeat is reported as a hang.
        with contextlib.suppress(OSError):
            write_json(self._folder / f"rank-{self._rank}.heartbeat", facts, sync=False)

    def beat_again(self) -> None:
        """Repeat the last heartbeat: this worker has done its part of the phase and waits for slower ones."""
        self.beat(*self._last)

    def stop_signal(self) -> str | None:
        """Return the name of the signal that the launcher got, None if it got none."""
        if self._folder is not None:
            with contextlib.suppress(OSError):
                return (self._folder / STOP_FILE).read_text().strip() or "SIGTERM"
        return None
