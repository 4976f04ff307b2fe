"""Worker processes: started so that none outlives the launcher; their output is kept and shown."""

import os
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
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
        self.last_lines: deque[str] = deque(maxlen=LAST_LINES)
        self._launchers = launchers
        self._show = show
        self._lock = threading.Lock()  # of the two below
        self._unplaced: deque[str] = deque(maxlen=UNPLACED_LINES)
        self._log: IO[str] | None = None  # known only once the run has begun
        self._process = subprocess.Popen(  # noqa: S603
            start.command,
            env=start.environment(launchers),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_prepare_exec(),
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
        with suppress(ProcessLookupError, PermissionError):  # macOS raises the latter
            os.killpg(self._process.pid, signal.SIGKILL)

    def signal(self, number: signal.Signals) -> None:
        """Send the process a signal, and none of the processes that it started."""
        self._process.send_signal(number)

    def place_log(self, attempt: Path) -> None:
        """Write its output to this attempt's directory, including what came before; only the first call counts."""
        with self._lock, suppress(OSError):
            if self._log is None and attempt.is_dir():
                path = attempt / f"rank-{self.rank}.out"
                self._log = path.open("a", buffering=1, encoding="utf-8", errors="replace")
                self._log.writelines(self._unplaced)
                self._unplaced.clear()

    def finish(self) -> None:
        """End the processes that it left behind, and wait for the last of its output."""
        self.kill()
        self._finished = True
        self._reader.join(timeout=5)  # a process that it left behind may hold the pipe open
        with self._lock, suppress(OSError):
            if self._log is not None:
                self._log.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as pipe:
            while line := pipe.readline(LINE_BYTES):
                # A progress bar overwrites itself; its last state counts.
                text = line.decode(errors="replace").rstrip("\r\n").rpartition("\r")[2]
                text = printable(redact(text, self._launchers))
                self.last_lines.append(text)
                with self._lock, suppress(OSError):  # a full disk ends the log and nothing else
                    if self._log is None:
                        self._unplaced.append(text + "\n")
                    else:
                        self._log.write(text + "\n")
                if self._show is not None:
                    self._show(text)


def start_workers(
    starts: Sequence[WorkerStart], launchers: Mapping[str, str], show: Callable[[str], None]
) -> list[Worker]:
    """Start the workers of this node; rank 0's lines are shown. If one cannot be started, none is left."""
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
    if status >= 0:
        return f"ended with exit code {status}"
    if -status == signal.SIGKILL:
        return "was killed by SIGKILL: out of memory is the usual reason (`dmesg`, the job's memory limit)"
    known = -status in tuple(signal.Signals)
    return f"was killed by {signal.Signals(-status).name if known else f'signal {-status}'}"


def _prepare_exec() -> Callable[[], None]:
    """Return what a worker does between fork and exec: nothing is imported, and little allocated."""
    tie_to_launcher = Lifeline(os.getpid())

    def before_exec() -> None:
        for number in IGNORED:
            signal.signal(number, signal.SIG_IGN)
        # The worker does the same once it runs; until then it would outlive a launcher that is killed.
        if not tie_to_launcher():
            os._exit(1)

    return before_exec
