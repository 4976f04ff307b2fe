"""The launcher while its workers run: it forwards a request to stop, and waits.

A worker that fails, hangs or is lost takes all others down, on every node: they cannot continue without it.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mini_r1.errors import STOPPING, ExitCode
from mini_r1.launch.hang import Heartbeats, is_waiting, keep_stacks, write_stacks
from mini_r1.launch.peers import Ending, Peers, agree
from mini_r1.launch.stop_order import StopOrder
from mini_r1.launch.workers import Worker, describe_status, to_exit_code
from mini_r1.machine.lifeline import STOP_FILE
from mini_r1.run.files import write_text
from mini_r1.run.run_dir import RunDir

CHECK_EVERY_S = 0.1
GRACE_S = 10.0  # seconds for the others to log their own error when one has failed
KILLED_WAIT_S = 30.0  # seconds for a killed process to be gone; one that waits for a dead disk is left to the system
SHOWN_BYTES = 6_000  # limit of a failed worker's output in its error, which is sent to every node


@dataclass(slots=True)
class Supervision:
    """Watches the workers of one node until all have ended."""

    workers: Sequence[Worker]
    folder: Path  # scratch directory shared with the workers
    run: RunDir
    peers: Peers
    stop: StopOrder
    node: str  # this node's name in messages
    hang_timeout_s: float
    say: Callable[[str], None]
    heartbeats: Heartbeats = field(init=False)
    _ended: dict[int, int] = field(init=False, default_factory=dict)  # exit statuses by rank
    _deadline: float | None = field(init=False, default=None)  # for the workers that still run, once one has failed
    _stop_forwarded: bool = field(init=False, default=False)
    _overruled: Ending | None = field(init=False, default=None)  # replaces the workers' own ending

    def __post_init__(self) -> None:
        self.heartbeats = Heartbeats(self.folder, [worker.rank for worker in self.workers])

    def watch(self) -> Ending:
        """Wait until all workers of this node have ended."""
        while len(self._ended) < len(self.workers):
            time.sleep(CHECK_EVERY_S)
            self.heartbeats.read()
            if self.heartbeats.attempt is not None:
                for worker in self.workers:
                    worker.place_log(self.run.attempts / str(self.heartbeats.attempt))
            self._check_signals()
            self._check_ends()
            self._check_hangs()
            self._check_peers()
            if self._deadline is not None and time.monotonic() > self._deadline:
                self._kill_all()
        for worker in self.workers:
            worker.finish()
        return self._ending()

    def wait_for_peers(self) -> Ending:
        """Wait until all nodes have ended; return the ending that they agreed on."""
        while self.peers.result is None:
            if self.stop.at_once:
                return Ending(ExitCode.INTERRUPTED, f"stopped at once, before {self.node} knew how the others ended")
            time.sleep(CHECK_EVERY_S)
        return self.peers.result

    @property
    def _running(self) -> list[Worker]:
        return [worker for worker in self.workers if worker.rank not in self._ended]

    def _check_signals(self) -> None:
        if self.stop.at_once and self._overruled is None:
            text = f"{self.node} was asked twice to stop: stopped at once"
            self.peers.report_problem(text)
            self._overrule(Ending(ExitCode.INTERRUPTED, text))
        elif self.stop.name is not None and not self._stop_forwarded:
            self._stop_forwarded = True
            write_text(self.folder / STOP_FILE, self.stop.name, sync=False)
            if self._deadline is None:
                self.say(f"{self.stop.name}: {STOPPING}")

    def _check_ends(self) -> None:
        for worker in self._running:
            status = worker.poll()
            if status is None:
                continue
            self._ended[worker.rank] = status
            if to_exit_code(status) not in (ExitCode.FINISHED, ExitCode.INTERRUPTED) and self._deadline is None:
                self.peers.report_problem(f"rank {worker.rank} on {self.node} {describe_status(status)}")
                self._deadline = time.monotonic() + GRACE_S

    def _check_hangs(self) -> None:
        if self._deadline is None and any(
            self.heartbeats.silent_for(worker.rank) > self.hang_timeout_s for worker in self._running
        ):
            self.peers.report_problem(f"workers of {self.node} hang", hung=True)
            self._end_hang()

    def _check_peers(self) -> None:
        problem = self.peers.problem
        if problem is None or self._deadline is not None:
            return
        self.say(f"{problem.text}: stopping the workers of {self.node}")
        if problem.hung:
            self._end_hang()
        else:
            self._deadline = time.monotonic() + GRACE_S

    def _end_hang(self) -> None:
        """Keep the stacks of all workers, then kill them."""
        stacks = write_stacks(self.folder, self._running, self.heartbeats)
        # Before the first attempt there is no directory: the stacks are kept as those of attempt 0.
        kept = keep_stacks(stacks, self.run.attempts / str(self.heartbeats.attempt or 0))
        rank = self.heartbeats.find_culprit([worker.rank for worker in self._running or self.workers], stacks)
        silent = self.heartbeats.silent_for(rank)
        files = f"\nstacks: {', '.join(map(str, kept))}" if kept else ""
        text = (
            f"rank {rank} on {self.node} hangs: no sign of life for {silent:.0f} s (hang_timeout_s is"
            f" {self.hang_timeout_s:g})\n{self.heartbeats.describe(stacks, rank)}{files}"
        )
        survived = is_waiting(stacks.get(rank, ""))  # for a rank of another node
        self._overrule(Ending(ExitCode.RETRY, text, survived, silent))

    def _overrule(self, ending: Ending) -> None:
        """Kill the workers; their own exit statuses do not count."""
        self._overruled = ending
        self._deadline = time.monotonic()
        self._kill_all()

    def _kill_all(self) -> None:
        for worker in self._running:
            worker.kill()
        end = time.monotonic() + KILLED_WAIT_S
        while time.monotonic() < end and any(worker.poll() is None for worker in self._running):
            time.sleep(CHECK_EVERY_S)
        for worker in self._running:
            self._ended[worker.rank] = worker.poll() or -9

    def _ending(self) -> Ending:
        if self._overruled is not None:
            return self._overruled
        own = [worker for worker in self.workers if not worker.killed or self._ended[worker.rank] >= 0]
        codes = {worker.rank: to_exit_code(self._ended[worker.rank]) for worker in own}
        problem = self.peers.problem
        code = agree([Ending(code) for code in (*codes.values(), *([ExitCode.RETRY] * bool(problem or not own)))]).code
        if code in (ExitCode.FINISHED, ExitCode.INTERRUPTED):
            return Ending(code)
        # Of several with the same code, the others survived the one that was killed.
        failed = [worker for worker in own if codes[worker.rank] == code]
        failed.sort(key=lambda worker: (self._ended[worker.rank] >= 0, worker.rank))
        survived = code == ExitCode.RETRY and not any(self._ended[worker.rank] < 0 for worker in failed)
        if problem is not None and survived:
            return Ending(code, problem.text, survived=not problem.lost)
        return Ending(code, self._describe_failure(failed[0]), survived)

    def _describe_failure(self, worker: Worker) -> str:
        lines = [f"  {line}" for line in list(worker.last_lines) if line.strip()]
        while sum(map(len, lines)) > SHOWN_BYTES:
            del lines[0]
        output = "; its last lines:" if lines else " without output"
        status = describe_status(self._ended[worker.rank])
        return "\n".join([f"rank {worker.rank} on {self.node} {status}{output}", *lines])
