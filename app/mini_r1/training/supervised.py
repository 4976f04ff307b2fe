"""A worker's side of the channel to its launcher (heartbeats, stacks, the request to stop), phases, and stop signals.

The channel is files in a scratch directory of the launcher (`MINI_R1_SUPERVISOR`), on a local disk. It can't be
signals: a scheduler may send the same ones to every process. No heavy imports: a worker needs this before torch.

At a request to stop a rollout is abandoned, an update is finished, then the run saves. Without a launcher a second
signal exits at once; with one that is the launcher's decision.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from mini_r1.errors import STOPPING, ExitCode, KitError
from mini_r1.machine.lifeline import SAME_REQUEST_S, STOP_FILE, SUPERVISOR, Lifeline
from mini_r1.machine.processes import this_process
from mini_r1.recipe.fields import Recipe
from mini_r1.run.files import write_json
from mini_r1.run.finished import finished_step
from mini_r1.run.run_dir import RunDir

if TYPE_CHECKING:
    from mini_r1.training.world import World

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)  # Slurm sends SIGUSR1 before a time limit
NOTICE = "mini-r1/stop"
LOOK_EVERY_S = 0.2
"""Between two checks for the launcher's file and the other ranks' notice: a token takes milliseconds."""


class Supervisor:
    """The launcher that started this worker, by its scratch directory; without one every method does nothing."""

    def __init__(self, folder: Path | None, rank: int) -> None:
        self._folder = folder
        self._rank = rank
        self._last: tuple[str, int, int | None, int | None] = ("start", 0, None, None)

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

    def beat(self, phase: str, step: int = 0, attempt: int | None = None, in_flight: int | None = None) -> None:
        """Send a heartbeat: a phase begins; `in_flight` is the step whose rollout vLLM samples meanwhile."""
        self._last = (phase, step, attempt, in_flight)
        if self._folder is None:
            return
        facts = {"step": step, "phase": phase, "attempt": attempt, "time": time.time(), "pid": os.getpid()}
        if in_flight is not None:
            facts["in_flight"] = in_flight
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

    def stop_age_s(self) -> float | None:
        """Return the seconds since the launcher passed on a signal, None if it has not."""
        if self._folder is not None:
            with contextlib.suppress(OSError):
                return time.time() - (self._folder / STOP_FILE).stat().st_mtime
        return None


class Phases:
    """The phases of one start of the program: heartbeats of every rank, and state.json of rank 0.

    state.json's heartbeat is the time at which the last phase began. It also holds the limit of a phase, because
    `mini-r1 health` has no recipe to read before the first attempt: the longest phase, the download, comes earlier.
    If the `with` block fails before the attempt has begun, state.json is restored: a refused start changes nothing.
    """

    def __init__(self, recipe: Recipe, run: RunDir, main: bool, supervisor: Supervisor) -> None:
        self._limit = recipe.hang_timeout_s
        self._run = run
        self._main = main
        self._supervisor = supervisor
        self._process = this_process()
        self._before = run.read_state()
        self._attempt: int | None = None

    def begin(
        self, name: str, step: int | None = None, attempt: int | None = None, in_flight: int | None = None
    ) -> None:
        """Report that a phase begins; `step` is the last finished one. Before the attempt begins `attempt` is None.

        `in_flight` is the step whose rollout vLLM samples meanwhile, None if there is none.
        """
        self._attempt = attempt
        self._supervisor.beat(name, step or 0, attempt, in_flight)
        if not self._main:
            return
        known = self._before.get("step", 0) if step is None else step
        number = {} if attempt is None else {"attempt": attempt}
        if in_flight is not None:
            number["in_flight"] = in_flight
        try:
            self._run.write_state(
                "running", step=known, phase=name, **number, process=self._process, hang_timeout_s=self._limit
            )  # fmt: skip
        except OSError:
            if attempt is not None:
                raise  # before the attempt, the first file that has to be saved reports a full disk

    def __enter__(self) -> Phases:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is None or self._attempt is not None or not self._main:
            return
        if self._before:
            self._run.write_last_state("unknown", **self._before)
            return
        with contextlib.suppress(OSError):
            self._run.state_file.unlink(missing_ok=True)


@contextlib.contextmanager
def starting(recipe: Recipe, run: RunDir, supervisor: Supervisor) -> Iterator[Phases | None]:
    """Hold the run directory, and show a phase `start` while torch is imported, on rank 0 or alone.

    Yield its phases for `train`; None on another rank, for a finished run, and for a directory that can't be used:
    `train` reports that on every rank.
    """
    phases = None
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(KitError, OSError):
            if os.environ.get("RANK", "0") == "0":
                stack.enter_context(run.claim())
                if finished_step(run, recipe) is None:
                    phases = stack.enter_context(Phases(recipe, run, True, supervisor))
                    phases.begin("start")
        if phases is None:
            stack.close()
        yield phases


class StopRequest:
    """Whether, and by which signal, this process was asked to stop while inside `with StopRequest(...) as stop`."""

    def __init__(self, supervisor: Supervisor, world: World) -> None:
        self._supervisor = supervisor
        self._world = world
        self._own: str | None = None
        self._asked_at = 0.0
        self._known = False
        self._checked_at = -LOOK_EVERY_S

    @property
    def signal_name(self) -> str | None:
        """The signal that this process or its launcher got, None if neither got one."""
        return self._own or self._supervisor.stop_signal()

    def __bool__(self) -> bool:
        return self.signal_name is not None

    def asked_since_s(self) -> float | None:
        """Return the seconds since this process, or its launcher, was asked to stop; None if neither was."""
        return time.monotonic() - self._asked_at if self._own else self._supervisor.stop_age_s()

    def on_any_rank(self) -> bool:
        """Return whether this rank knows that some rank was asked to stop; cheap, and not a collective."""
        now = time.monotonic()
        if not self._known and (self._own is not None or now - self._checked_at >= LOOK_EVERY_S):
            self._checked_at = now
            self._known = bool(self) or self._world.is_posted(NOTICE)
        return self._known

    def __enter__(self) -> StopRequest:
        self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        self._herald = _Herald(self._supervisor, self._world) if self._world.size > 1 else None
        return self

    def __exit__(self, *exception: object) -> None:
        if self._herald is not None:
            self._herald.close()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._own is not None and not self._supervisor:
            # torchrun passes on a signal that a scheduler may have sent to its workers, too.
            if "TORCHELASTIC_RUN_ID" in os.environ and time.monotonic() - self._asked_at <= SAME_REQUEST_S:
                return
            os._exit(ExitCode.INTERRUPTED)  # without saving; the last complete checkpoint remains
        self._own, self._asked_at = signal.Signals(number).name, time.monotonic()
        if not self._supervisor:
            # os.write and not print: a handler may run in the middle of another print.
            text = f"\n{self._own}: {STOPPING}\n"
            with contextlib.suppress(OSError):  # a full disk under it
                os.write(sys.stderr.fileno(), text.encode())


class _Herald:
    """A thread that posts a request to stop to the other ranks at once.

    The main thread may wait in a collective, where no Python runs, for a rank that samples for another minute. What the
    interpreter's own handler writes to the wakeup descriptor arrives all the same.
    """

    def __init__(self, supervisor: Supervisor, world: World) -> None:
        self._supervisor = supervisor
        self._world = world
        self._closing = False
        self._ours, self._wakeup = os.pipe()
        os.set_blocking(self._wakeup, False)
        self._before = signal.set_wakeup_fd(self._wakeup, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._watch, name="stop request", daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._closing:
            ready, _, _ = select.select([self._ours], [], [], LOOK_EVERY_S)
            signalled = bool(ready) and not set(SIGNALS).isdisjoint(os.read(self._ours, 64))
            if signalled or self._supervisor.stop_signal() is not None:
                with contextlib.suppress(RuntimeError):  # rank 0 is gone; the next collective reports it
                    self._world.post(NOTICE)
                return

    def close(self) -> None:
        signal.set_wakeup_fd(self._before)
        self._closing = True
        os.write(self._wakeup, b"\0")
        self._thread.join()
        os.close(self._ours)
        os.close(self._wakeup)
