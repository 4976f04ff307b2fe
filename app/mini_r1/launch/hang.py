"""Signs of life of the workers of a node, and what those that give none are doing.

A worker replaces its heartbeat file at every phase, and has faulthandler write all threads' stacks on SIGUSR2. Times
are this launcher's own: seconds since it saw the file change.
"""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mini_r1.console import printable
from mini_r1.launch.workers import Worker

STACKS_WAIT_S = 10.0
"""Seconds for the workers to write their stacks; one that the kernel holds never does."""
STACKS_QUIET_S = 0.5
MAX_STACK_BYTES = 1 << 20
WAITING_PLACES = ("/torch/distributed/", "/torch/autograd/", "/deepspeed/comm/")
"""Parts of the paths of files in which a worker waits for others."""

_THREAD = re.compile(r"^(?:Current thread|Thread) 0x", re.MULTILINE)
_FRAME = re.compile(r'^  File "(?P<file>[^"\n]*)", line (?P<line>\d+) in (?P<name>.*)$', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Sign:
    """The last sign of life of a rank.

    Args:
        rank: whose.
        step: optimizer steps taken, as far as it said.
        phase: that began then; "start" before the first.
        attempt: the run's, None before it is known.
        seen: when this launcher saw it, in seconds of its monotonic clock.
        told: when the worker says it was, in seconds of this node's clock; 0 before the first.
        given: whether there was one at all.
    """

    rank: int
    step: int
    phase: str
    attempt: int | None
    seen: float
    told: float
    given: bool


class Heartbeats:
    """The signs of life of a node's workers.

    Args:
        folder: the scratch directory.
        ranks: of this node's workers.
        clock: seconds that only go forward.
    """

    def __init__(self, folder: Path, ranks: Sequence[int], clock: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder
        self._clock = clock
        self._texts: dict[int, bytes] = {}
        self.signs = {rank: Sign(rank, 0, "start", None, clock(), 0.0, False) for rank in ranks}
        """By rank."""

    def look(self) -> None:
        """Read the files again."""
        for rank, before in self.signs.items():
            try:
                text = (self._folder / f"rank-{rank}.heartbeat").read_bytes()
                if text != self._texts.get(rank):
                    self.signs[rank] = _sign(rank, json.loads(text), self._clock())
                    self._texts[rank] = text
            except (OSError, ValueError, KeyError, TypeError):
                self.signs[rank] = before  # not there yet

    @property
    def attempt(self) -> int | None:
        """The run's attempt, as soon as any worker knows it."""
        return next((sign.attempt for sign in self.signs.values() if sign.attempt is not None), None)

    @property
    def step(self) -> int:
        """The furthest that any worker is."""
        return max((sign.step for sign in self.signs.values()), default=0)

    def silent_for(self, rank: int) -> float:
        """Seconds since the rank's last sign."""
        return self._clock() - self.signs[rank].seen

    def to_blame(self, ranks: Sequence[int], stacks: Mapping[int, str]) -> int:
        """The rank that the others wait for, as far as one can tell: none that waits itself, and silent for longest.

        Ranks begin a phase almost together, so the clock alone does not tell. On a GPU a rank that waits for another
        may be seen anywhere that it asks for a result; there it is the clock that decides: the workers' own, because
        between two looks of this launcher a rank may begin two phases, and another none.
        """
        return min(ranks, key=lambda rank: (waits(stacks.get(rank, "")), self.signs[rank].told))


def _sign(rank: int, facts: dict[str, Any], now: float) -> Sign:
    attempt = facts["attempt"]
    number = None if attempt is None else int(attempt)
    return Sign(rank, int(facts["step"]), str(facts["phase"]), number, now, float(facts["time"]), True)


def write_stacks(folder: Path, workers: Sequence[Worker], heartbeats: Heartbeats) -> dict[int, str]:
    """Have all workers write their stacks; the text of each rank that did.

    A worker that never gave a sign of life has no handler yet: the signal would end it.
    """
    asked = [worker for worker in workers if heartbeats.signs[worker.rank].given and worker.poll() is None]
    files = {worker.rank: folder / f"rank-{worker.rank}.stack" for worker in asked}
    before = {rank: _size(path) for rank, path in files.items()}
    for worker in asked:
        worker.signal(signal.SIGUSR2)
    end, sizes, quiet_since = time.monotonic() + STACKS_WAIT_S, dict(before), time.monotonic()
    while time.monotonic() < end:
        time.sleep(0.1)
        now = {rank: _size(path) for rank, path in files.items()}
        if now != sizes:
            sizes, quiet_since = now, time.monotonic()
        if all(now[rank] > before[rank] for rank in now) and time.monotonic() - quiet_since > STACKS_QUIET_S:
            break
    stacks = {rank: _tail(path, before[rank]) for rank, path in files.items()}
    return {rank: text for rank, text in stacks.items() if text}


def keep_stacks(stacks: dict[int, str], attempt: Path) -> list[Path]:
    """Write the stacks to `rank-R.stack` of the attempt's directory; returns the files that could be written."""
    written = []
    for rank, text in stacks.items():
        path = attempt / f"rank-{rank}.stack"
        try:
            attempt.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.write(text)
        except OSError:
            continue
        written.append(path)
    return written


def top_frame(stack: str) -> str:
    """Where the main thread is: faulthandler writes it last of all threads, and its innermost frame first.

    The standard library's own frames are passed over, as far as there are others: a sleep says less than who sleeps.
    """
    frames = list(_FRAME.finditer(_main_thread(stack)))
    if not frames:
        return "no Python frame"
    frame = next((frame for frame in frames if not _of_the_standard_library(frame["file"])), frames[0])
    return printable(f"{frame['name']} ({frame['file']}:{frame['line']})")


def waits(stack: str) -> bool:
    """Whether the main thread is in a collective, or in a backward pass, which has some in it."""
    return any(place in _main_thread(stack) for place in WAITING_PLACES)


def words(heartbeats: Heartbeats, stacks: dict[int, str], hung: int) -> str:
    """What each worker of the node is doing, the one to blame first."""
    lines = []
    for rank in sorted(heartbeats.signs, key=lambda rank: (rank != hung, rank)):
        sign = heartbeats.signs[rank]
        where = f", in {top_frame(stacks[rank])}" if rank in stacks else ""
        said = f"step {sign.step}, phase {printable(sign.phase)}" if sign.given else "no sign of life since its start"
        lines.append(f"rank {rank}: {said}, silent for {heartbeats.silent_for(rank):.0f} s{where}")
    return "\n".join(lines)


def _main_thread(stack: str) -> str:
    starts = [match.start() for match in _THREAD.finditer(stack)]
    return stack[starts[-1] :] if starts else stack


def _of_the_standard_library(file: str) -> bool:
    return "site-packages" not in file and os.path.dirname(os.__file__) in file


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _tail(path: Path, start: int) -> str:
    try:
        with path.open("rb") as file:
            file.seek(start)
            return file.read(MAX_STACK_BYTES).decode(errors="replace")
    except OSError:
        return ""
