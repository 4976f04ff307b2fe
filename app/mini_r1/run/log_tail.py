"""`mini-r1 logs`: what the processes of a run's newest attempt logged, as lines that are safe to print. No torch."""

import os
import re
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from mini_r1.console import printable
from mini_r1.run.health import check_health
from mini_r1.run.run_dir import RunDir

READ_BYTES = 1 << 20  # bytes of a file in memory at a time; a longer line is split
POLL_S = 0.5  # seconds between two looks at files that are followed

_END = re.compile(rb"[\r\n]+")  # a progress bar ends its states with \r


class LogTail:
    """A log file whose lines are read once each."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._rest = b""

    def read(self, *, ended: bool = False) -> Iterator[str]:
        """Yield the complete lines that are new; if the writer has ended, the last one may be incomplete."""
        if not self._path.is_file():  # a pipe may never answer
            return
        with self._path.open("rb") as file:
            if os.fstat(file.fileno()).st_size < self._offset:
                self._offset, self._rest = 0, b""  # it was cut or replaced
            file.seek(self._offset)
            while data := file.read(READ_BYTES):
                self._offset += len(data)
                *lines, self._rest = _END.split(self._rest + data)
                if len(self._rest) > READ_BYTES:
                    lines, self._rest = [*lines, self._rest], b""
                yield from map(self._format, filter(None, lines))
        if ended and self._rest:
            yield self._format(self._rest)
            self._rest = b""

    def _format(self, line: bytes) -> str:
        return printable(f"{self._path.name}: {line.decode(errors='replace')}")


def find_logs(run: RunDir) -> list[Path]:
    """Return the logs and outputs of the newest attempt: each rank's, vLLM's, and the push's."""
    newest = run.attempts / str(max(run.attempt_numbers(), default=0))
    return sorted([*newest.glob("*.log"), *newest.glob("*.out")])


def read_logs(run: RunDir, last: int, *, follow: bool = False) -> Iterator[str]:
    """Yield the `last` lines of each log, 0 for all; with `follow` also new lines, until the run has ended."""
    tails: dict[Path, LogTail] = {}
    while True:
        running = follow and check_health(run.path, time.time()).state == "running"
        for path in find_logs(run):
            if path in tails:
                yield from tails[path].read(ended=not running)
            else:
                tails[path] = LogTail(path)
                lines = tails[path].read(ended=not running)
                yield from deque(lines, maxlen=last) if last else lines
        if not running:
            return
        time.sleep(POLL_S)
