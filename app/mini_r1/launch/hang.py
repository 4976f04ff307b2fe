"""Signs of life of a node's workers, and the stacks of workers that give none.

A worker replaces its heartbeat file at every phase, and has faulthandler write all threads' stacks on SIGUSR2.
"""

import json
import os
import re
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from mini_r1.console import printable
from mini_r1.launch.workers import Worker

STACKS_WAIT_S = 10.0  # seconds for the workers to write their stacks; one that is blocked in the kernel never does
STACKS_QUIET_S = 0.5
MAX_STACK_BYTES = 1 << 20
WAITING_PLACES = ("/torch/distributed/", "/torch/autograd/", "/deepspeed/comm/")
"""Parts of the paths of files in which a worker waits for others."""

_THREAD = re.compile(r"^(?:Current thread|Thread) 0x", re.MULTILINE)
_FRAME = re.compile(r'^  File "(?P<file>[^"\n]*)", line (?P<line>\d+) in (?P<name>.*)$', re.MULTILINE)


class Heartbeat(NamedTuple):
    """The last sign of life of a rank, or its start."""

    seen: float  # when this launcher saw it, by its monotonic clock
    written: float = 0.0  # when the worker wrote it, by this node's clock; 0 without a sign of life
    step: int = 0
    phase: str = "start"
    attempt: int | None = None
    in_flight: int | None = None  # the step whose rollout vLLM samples during the phase, if any


class Heartbeats:
    def __init__(self, folder: Path, ranks: Sequence[int]) -> None:
        self._folder = folder
        self.by_rank = {rank: Heartbeat(time.monotonic()) for rank in ranks}

    def read(self) -> None:
        for rank in self.by_rank:
            with suppress(OSError, ValueError, KeyError, TypeError):  # not there yet
                facts = json.loads((self._folder / f"rank-{rank}.heartbeat").read_bytes())
                written, step, phase = float(facts["time"]), int(facts["step"]), str(facts["phase"])
                if written != self.by_rank[rank].written:
                    in_flight = int(facts["in_flight"]) if "in_flight" in facts else None
                    beat = Heartbeat(time.monotonic(), written, step, phase, facts["attempt"], in_flight)
                    self.by_rank[rank] = beat

    @property
    def attempt(self) -> int | None:
        """The run's attempt, as soon as any worker knows it."""
        return next((beat.attempt for beat in self.by_rank.values() if beat.attempt is not None), None)

    @property
    def step(self) -> int:
        """The most optimizer steps that any worker has taken."""
        return max((beat.step for beat in self.by_rank.values()), default=0)

    def silent_for(self, rank: int) -> float:
        """Return the seconds since the rank's last sign."""
        return time.monotonic() - self.by_rank[rank].seen

    def find_culprit(self, ranks: Sequence[int], stacks: Mapping[int, str]) -> int:
        """Return the rank that the others probably wait for: one that does not wait itself, and is silent for longest.

        Ranks begin a phase almost together, so stacks come first; on a GPU a waiting rank may look busy. The clock is
        the workers' own: between two reads of this launcher a rank may begin two phases, and another none.
        """
        return min(ranks, key=lambda rank: (is_waiting(stacks.get(rank, "")), self.by_rank[rank].written))

    def describe(self, stacks: Mapping[int, str], culprit: int) -> str:
        """Describe what each worker of the node is doing, the culprit first."""
        lines = []
        for rank in sorted(self.by_rank, key=lambda rank: (rank != culprit, rank)):
            beat = self.by_rank[rank]
            state = f"step {beat.step}, phase {printable(beat.phase)}"
            if beat.in_flight is not None:
                state += f" while vLLM samples for step {beat.in_flight}"
            if not beat.written:
                state = "no sign of life since its start"
            frame = f", in {top_frame(stacks[rank])}" if rank in stacks else ""
            lines.append(f"rank {rank}: {state}, silent for {self.silent_for(rank):.0f} s{frame}")
        return "\n".join(lines)


def write_stacks(folder: Path, workers: Sequence[Worker], heartbeats: Heartbeats) -> dict[int, str]:
    """Have all workers write their stacks; return the text of each rank that did.

    A worker that never gave a sign of life has no handler yet: the signal would end it.
    """
    asked = [worker for worker in workers if heartbeats.by_rank[worker.rank].written and worker.poll() is None]
    files = {worker.rank: folder / f"rank-{worker.rank}.stack" for worker in asked}
    before = {rank: _size(path) for rank, path in files.items()}
    for worker in asked:
        worker.signal(signal.SIGUSR2)
    end, sizes, quiet_since = time.monotonic() + STACKS_WAIT_S, before, time.monotonic()
    while time.monotonic() < end:
        time.sleep(0.1)
        now = {rank: _size(path) for rank, path in files.items()}
        if now != sizes:
            sizes, quiet_since = now, time.monotonic()
        if all(now[rank] > before[rank] for rank in now) and time.monotonic() - quiet_since > STACKS_QUIET_S:
            break
    stacks = {}
    for rank, path in files.items():
        with suppress(OSError), path.open("rb") as file:
            file.seek(before[rank])
            if text := file.read(MAX_STACK_BYTES).decode(errors="replace"):
                stacks[rank] = text
    return stacks


def keep_stacks(stacks: Mapping[int, str], attempt: Path) -> list[Path]:
    """Write the stacks to `rank-R.stack` of the attempt's directory; return the files that could be written."""
    written = []
    for rank, text in stacks.items():
        path = attempt / f"rank-{rank}.stack"
        with suppress(OSError):
            attempt.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.write(text)
            written.append(path)
    return written


def top_frame(stack: str) -> str:
    """Describe the main thread's innermost frame outside the standard library: a sleep says less than its caller."""
    frames = list(_FRAME.finditer(_main_thread(stack)))  # the innermost first
    if not frames:
        return "no Python frame"
    library = os.path.dirname(os.__file__)
    own = (frame for frame in frames if "site-packages" in frame["file"] or library not in frame["file"])
    frame = next(own, frames[0])
    return printable(f"{frame['name']} ({frame['file']}:{frame['line']})")


def is_waiting(stack: str) -> bool:
    """Return whether the main thread is in a collective, or in a backward pass, which has some in it."""
    return any(place in _main_thread(stack) for place in WAITING_PLACES)


def _main_thread(stack: str) -> str:
    return _THREAD.split(stack)[-1]  # faulthandler writes it last


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
