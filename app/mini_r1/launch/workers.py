"""Worker processes: started so that none outlives the launcher; their output is kept and shown."""

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
from mini_r1.launch.worker_environment import WorkerStart
from mini_r1.machine.lifeline import Lifeline
from mini_r1.machine.redact import redact

LAST_LINES = 40
LINE_BYTES = 4_000  # limit of a line that is kept; a longer one is broken there
UNPLACED_LINES = 1_000  # lines of a worker's output that are kept until its attempt is known
IGNORED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""Signals that a scheduler may send to every process: ignored by a worker until it has its own handlers."""


class Worker:
    """One process of `mini-r1 train`; `show` takes each line of its output, made safe to print."""

    def __init__(self, start: WorkerStart, launchers: Mapping[str, str], show: Callable[[str], None] | None) -> None:
        self.rank = start.rank
        self.killed = False  # by the launcher
        self._finished = False
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
            preexec_fn=_BeforeExec(),
        )
        self._reader = threading.Thread(target=self._read, name=f"rank {self.rank}", daemon=True)

    def start_reading(self) -> None:
        """Begin to read its output; after all workers are started, because a fork and threads do not mix."""
        self._reader.start()

    def poll(self) -> int | None:
        """Return its exit status, -N if signal N ended it; None while it runs."""
        return self._process.poll()

    def kill(self) -> None:
        """End the worker and all processes that it started, at once."""
        if self._finished:
            return  # its number may belong to another process by now
        self.killed = self.killed or self.poll() is None
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS raises the latter
            os.killpg(self._process.pid, signal.SIGKILL)

    def signal(self, number: signal.Signals) -> None:
        """Send the process a signal, and none of the processes that it started."""
        self._process.send_signal(number)

    def place_log(self, attempt: Path) -> None:
        """Write its output to this attempt's directory, including what came before."""
        self._log.place(attempt / f"rank-{self.rank}.out")

    def finish(self) -> None:
        """End the processes that it left behind, and wait for the last of its output."""
        self.kill()
        self._finished = True
        self._reader.join(timeout=5)  # a process that it left behind may hold the pipe open
        self._log.close()

    def last_lines(self) -> list[str]:
        return list(self._last)

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as pipe:
            while line := pipe.readline(LINE_BYTES):
                # A progress bar overwrites itself; its last state counts.
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
        self._waiting: deque[str] = deque(maxlen=UNPLACED_LINES)
        self._file: IO[str] | None = None

    def write(self, line: str) -> None:
        """Keep a line, or write it to the file. A full disk ends the log and nothing else."""
        with self._lock, contextlib.suppress(OSError):
            if self._file is None:
                self._waiting.append(line)
            else:
                self._file.write(line)

    def place(self, path: Path) -> None:
        """Open the file; only the first call counts."""
        with self._lock, contextlib.suppress(OSError):
            if self._file is None and path.parent.is_dir():
                self._file = path.open("a", buffering=1, encoding="utf-8", errors="replace")
                self._file.writelines(self._waiting)
                self._waiting.clear()

    def close(self) -> None:
        with self._lock, contextlib.suppress(OSError):
            if self._file is not None:
                self._file.close()


def start_workers(
    starts: Sequence[WorkerStart], launchers: Mapping[str, str], show: Callable[[str], None]
) -> list[Worker]:
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
        worker.start_reading()
    return workers


def to_exit_code(status: int) -> ExitCode:
    """Return the exit code that a worker's exit status means for the job."""
    if status < 0:
        return ExitCode.RETRY  # killed: the node's memory, an administrator, a crash in native code
    return ExitCode(status) if status in tuple(ExitCode) else ExitCode.FAILED


def describe_status(status: int) -> str:
    """Describe an exit status."""
    if status >= 0:
        return f"ended with exit code {status}"
    if -status == signal.SIGKILL:
        return "was killed by SIGKILL: out of memory is the usual reason (`dmesg`, the job's memory limit)"
    known = -status in tuple(signal.Signals)
    return f"was killed by {signal.Signals(-status).name if known else f'signal {-status}'}"


class _BeforeExec:
    """What a worker does between fork and exec: nothing is imported, and little allocated."""

    def __init__(self) -> None:
        self._tie_to_launcher = Lifeline(os.getpid())

    def __call__(self) -> None:
        for number in IGNORED:
            signal.signal(number, signal.SIG_IGN)
        # The worker does the same once it runs; until then it would outlive a launcher that is killed.
        if not self._tie_to_launcher():
            os._exit(1)
