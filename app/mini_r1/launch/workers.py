"""Worker processes: started so that nothing survives the launcher, and what they print, kept and shown."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from mini_r1.console import printable
from mini_r1.errors import ExitCode
from mini_r1.launch.worker_environment import Start
from mini_r1.machine.lifeline import Lifeline
from mini_r1.machine.redact import redact

LAST_LINES = 40
LINE_BYTES = 4_000
"""Of a line that is kept; a longer one is broken there."""
UNPLACED_BYTES = 1 << 20
"""Of a worker's output that is kept until it is known which attempt it belongs to."""
HELD_BACK = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""What a scheduler may send to every process: ignored by a worker until it has its own handlers."""


class Worker:
    """One process of `mini-r1 train`.

    Args:
        start: how it is started.
        launchers: the launcher's environment, for what it gets of it and for the secrets to take out of its words.
        show: takes each line it prints, made safe to print.
    """

    def __init__(self, start: Start, launchers: Mapping[str, str], show: Callable[[str], None] | None) -> None:
        self.rank = start.rank
        self.killed = False
        """Whether the launcher killed it."""
        self._swept = False
        self._launchers = launchers
        self._show = show
        self._last: deque[str] = deque(maxlen=LAST_LINES)
        self._log = RankLog()
        self._process = subprocess.Popen(  # noqa: S603
            start.command,
            env=start.environment(launchers),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_Before(),
        )
        self._reader = threading.Thread(target=self._read, name=f"rank {self.rank}", daemon=True)

    @property
    def pid(self) -> int:
        """Of the process, and of its group and session."""
        return self._process.pid

    def listen(self) -> None:
        """Begin to read what it prints; once all workers are there, because a fork does not go with threads."""
        self._reader.start()

    def poll(self) -> int | None:
        """Its exit status, -N when signal N ended it; None while it runs."""
        return self._process.poll()

    def kill(self) -> None:
        """End it and all that it started, at once."""
        if self._swept:
            return  # its number may be another's by now
        self.killed = self.killed or self.poll() is None
        with contextlib.suppress(ProcessLookupError, PermissionError):  # the latter is macOS's word for it
            os.killpg(self.pid, signal.SIGKILL)

    def signal(self, number: signal.Signals) -> None:
        """Send the process, and nothing that it started, a signal."""
        self._process.send_signal(number)

    def place_log(self, attempt: Path) -> None:
        """Its output goes to this attempt's directory from here on, with what there was of it before."""
        self._log.place(attempt / f"rank-{self.rank}.out")

    def finish(self) -> None:
        """End what it left behind, and wait for the last of its output."""
        self.kill()
        self._swept = True
        self._reader.join(timeout=5)  # a process that it left behind may hold the pipe open
        self._log.close()

    def last_lines(self) -> list[str]:
        """The last that it printed, made safe to print."""
        return list(self._last)

    def _read(self) -> None:
        pipe: IO[bytes] | None = self._process.stdout
        if pipe is None:
            return
        with pipe:
            while line := pipe.readline(LINE_BYTES):
                # A progress bar writes over itself; its last state is the one that counts.
                text = line.decode(errors="replace").rstrip("\r\n").rpartition("\r")[2]
                text = printable(redact(text, self._launchers))
                self._last.append(text)
                self._log.write(text + "\n")
                if self._show is not None:
                    self._show(text)


class RankLog:
    """A worker's output on its way to the attempt's directory, which is known only once the run has begun."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[str] = deque()
        self._bytes = 0
        self._file: IO[str] | None = None

    def write(self, text: str) -> None:
        """Keep it, or write it down. A disk that is full ends the log and nothing else."""
        with self._lock, contextlib.suppress(OSError):
            if self._file is not None:
                self._file.write(text)
                self._file.flush()
                return
            self._waiting.append(text)
            self._bytes += len(text)
            while self._bytes > UNPLACED_BYTES:
                self._bytes -= len(self._waiting.popleft())

    def place(self, path: Path) -> None:
        """Write it there from here on; only the first place counts."""
        with self._lock, contextlib.suppress(OSError):
            if self._file is None and path.parent.is_dir():
                self._file = path.open("a", encoding="utf-8", errors="replace")
                self._file.writelines(self._waiting)
                self._file.flush()
                self._waiting.clear()

    def close(self) -> None:
        """End it."""
        with self._lock, contextlib.suppress(OSError):
            if self._file is not None:
                self._file.close()
                self._file = None


def start_all(starts: Sequence[Start], launchers: Mapping[str, str], show: Callable[[str], None]) -> list[Worker]:
    """Start the workers of this node; rank 0's lines are shown.

    Raises:
        OSError: a process could not be started; those that were are killed.
    """
    workers: list[Worker] = []
    try:
        for start in starts:
            workers.append(Worker(start, launchers, show if start.rank == 0 else None))
    except OSError:
        for worker in workers:
            worker.kill()
        raise
    for worker in workers:
        worker.listen()
    return workers


def verdict(status: int) -> ExitCode:
    """What a worker's exit status says about the job."""
    if status < 0:
        return ExitCode.RETRY  # killed: the node's memory, an administrator, a crash in native code
    try:
        return ExitCode(status)
    except ValueError:
        return ExitCode.FAILED


def how_it_ended(status: int) -> str:
    """An exit status in words."""
    if status >= 0:
        return f"ended with exit code {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    if -status == signal.SIGKILL:
        return f"was killed by {name}: out of memory is the usual reason (`dmesg`, the job's memory limit)"
    return f"was killed by {name}"


class _Before:
    """What a worker does between fork and exec: no import, no allocation of note."""

    def __init__(self) -> None:
        self._tied = Lifeline(os.getpid())

    def __call__(self) -> None:
        for number in HELD_BACK:
            signal.signal(number, signal.SIG_IGN)
        # The worker does the same once it runs; until then a launcher that is killed would leave it behind.
        if not self._tied():
            os._exit(1)
