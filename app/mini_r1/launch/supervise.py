"""The launcher while its workers run: it looks, several times a second, whether anything has to be done.

Asked to stop, it passes that on and waits. A worker that fails, hangs or is lost takes the others down, here and on
the other nodes: they cannot go on without it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from mini_r1.errors import ExitCode
from mini_r1.launch.hang import Heartbeats, keep_stacks, waits, words, write_stacks
from mini_r1.launch.peers import Ending, Peers, agreed
from mini_r1.launch.stop_order import StopOrder
from mini_r1.launch.workers import Worker, how_it_ended, verdict
from mini_r1.run.files import write_text
from mini_r1.run.run_dir import RunDir

LOOK_EVERY_S = 0.1
GRACE_S = 10.0
"""Seconds for the others to end by themselves when one has failed: their own words may say why."""
KILLED_WAIT_S = 30.0
"""Seconds for a killed process to be gone; one that waits for a dead disk is left to the system."""
SHOWN_BYTES = 6_000
"""Of a failure's words: they travel to every node."""


class Supervision:
    """Watches the workers of one node until all have ended.

    Args:
        workers: of this node.
        heartbeats: theirs.
        folder: the scratch directory that they share with the launcher.
        run: where results go.
        peers: the launchers of the other nodes.
        stop: what this launcher is asked.
        node: this node's words for itself.
        hang_timeout_s: seconds in one phase after which a worker counts as hung.
        say: takes a line for the user.
    """

    def __init__(
        self,
        workers: Sequence[Worker],
        heartbeats: Heartbeats,
        folder: Path,
        run: RunDir,
        peers: Peers,
        stop: StopOrder,
        node: str,
        hang_timeout_s: float,
        say: Callable[[str], None],
    ) -> None:
        self._workers = list(workers)
        self._heartbeats = heartbeats
        self._folder = folder
        self._run = run
        self._peers = peers
        self._stop = stop
        self._node = node
        self._hang_timeout_s = hang_timeout_s
        self._say = say
        self._ended: dict[int, int] = {}
        self._deadline: float | None = None  # when the workers that are left are killed
        self._passed_on = False
        self._logs_placed = False
        self._overruled: Ending | None = None  # an end that is not the workers' own

    def watch(self) -> Ending:
        """Wait until all workers of this node have ended."""
        while len(self._ended) < len(self._workers):
            time.sleep(LOOK_EVERY_S)
            self._heartbeats.look()
            self._place_logs()
            self._attend_signals()
            self._attend_ends()
            self._attend_hangs()
            self._attend_others()
            if self._deadline is not None and time.monotonic() > self._deadline:
                self._kill_all()
        for worker in self._workers:
            worker.finish()
        return self._ending()

    def wait_for_others(self) -> Ending:
        """Wait until all nodes have ended; what they agreed on."""
        while self._peers.result is None:
            if self._stop.at_once:
                return Ending(
                    ExitCode.INTERRUPTED, f"stopped at once, before {self._node} had heard of the others' end"
                )
            time.sleep(LOOK_EVERY_S)
        return self._peers.result

    # --- what may have to be done ---

    def _place_logs(self) -> None:
        if not self._logs_placed and self._heartbeats.attempt is not None:
            attempt = self._run.attempts / str(self._heartbeats.attempt)
            for worker in self._workers:
                worker.place_log(attempt)
            self._logs_placed = True

    def _attend_signals(self) -> None:
        if self._stop.at_once and self._overruled is None:
            self._overrule(Ending(ExitCode.INTERRUPTED, f"{self._node} was asked twice to stop: stopped at once"))
        elif self._stop.name is not None and not self._passed_on:
            self._passed_on = True
            write_text(self._folder / "stop", self._stop.name, sync=False)
            if not self._workers_are_failing:
                self._say(f"{self._stop.name}: saving what is done, then exiting; a second signal exits without saving")

    def _attend_ends(self) -> None:
        for worker in self._workers:
            status = worker.poll()
            if status is None or worker.rank in self._ended:
                continue
            self._ended[worker.rank] = status
            if verdict(status) not in (ExitCode.FINISHED, ExitCode.INTERRUPTED) and not self._workers_are_failing:
                self._peers.tell_trouble(f"rank {worker.rank} on {self._node} {how_it_ended(status)}")
                self._deadline = time.monotonic() + GRACE_S

    def _attend_hangs(self) -> None:
        if self._workers_are_failing:
            return
        if any(self._heartbeats.silent_for(worker.rank) > self._hang_timeout_s for worker in self._running):
            self._peers.tell_trouble(f"workers of {self._node} hang", hung=True)
            self._end_hang()

    def _attend_others(self) -> None:
        trouble = self._peers.trouble
        if trouble is None or self._workers_are_failing:
            return
        self._say(f"{trouble.text}: stopping the workers of {self._node}")
        if trouble.hung:
            self._end_hang()
        else:
            self._deadline = time.monotonic() + GRACE_S

    # --- doing it ---

    @property
    def _running(self) -> list[Worker]:
        return [worker for worker in self._workers if worker.rank not in self._ended]

    @property
    def _workers_are_failing(self) -> bool:
        return self._deadline is not None

    def _end_hang(self) -> None:
        """Write down what everybody is doing, then stop."""
        stacks = write_stacks(self._folder, self._running, self._heartbeats)
        # An attempt that had not begun has no directory: its stacks are kept as those of attempt 0.
        kept = keep_stacks(stacks, self._run.attempts / str(self._heartbeats.attempt or 0))
        rank = self._heartbeats.to_blame([worker.rank for worker in self._running or self._workers], stacks)
        silent = self._heartbeats.silent_for(rank)
        lines = [
            f"rank {rank} on {self._node} hangs: no sign of life for {silent:.0f} s (hang_timeout_s is"
            f" {self._hang_timeout_s:g})",
            words(self._heartbeats, stacks, rank),
        ]
        if kept:
            lines.append(f"stacks: {', '.join(map(str, kept))}")
        survived = waits(stacks.get(rank, ""))  # for a rank of another node
        self._overrule(Ending(ExitCode.RETRY, "\n".join(lines), survived, silent), told=True)

    def _overrule(self, ending: Ending, *, told: bool = False) -> None:
        """Kill the workers; what they end with does not count."""
        self._overruled = ending
        self._deadline = time.monotonic()
        if not told:
            self._peers.tell_trouble(ending.text)
        self._kill_all()

    def _kill_all(self) -> None:
        for worker in self._running:
            worker.kill()
        end = time.monotonic() + KILLED_WAIT_S
        while time.monotonic() < end and any(worker.poll() is None for worker in self._running):
            time.sleep(LOOK_EVERY_S)
        for worker in self._running:
            self._ended[worker.rank] = worker.poll() or -9

    def _ending(self) -> Ending:
        """How this node ended."""
        if self._overruled is not None:
            return self._overruled
        own = [worker for worker in self._workers if not worker.killed or self._ended[worker.rank] >= 0]
        trouble = self._peers.trouble
        endings = [Ending(verdict(self._ended[worker.rank])) for worker in own]
        ending = agreed([*endings, *([Ending(ExitCode.RETRY)] if trouble or not endings else [])])
        if ending.code in (ExitCode.FINISHED, ExitCode.INTERRUPTED):
            return ending
        failed = [worker for worker in own if verdict(self._ended[worker.rank]) == ending.code]
        # One that was killed is what those survived that end with the same code.
        failed.sort(key=lambda worker: (self._ended[worker.rank] >= 0, worker.rank))
        survived = ending.code == ExitCode.RETRY and not any(self._ended[worker.rank] < 0 for worker in failed)
        if trouble is not None and survived:
            return Ending(ending.code, trouble.text, survived=not trouble.lost)
        return Ending(ending.code, self._blame(failed[0]), survived)

    def _blame(self, worker: Worker) -> str:
        """Which worker failed, and what it said last."""
        lines = [line for line in worker.last_lines() if line.strip()]
        said = "; its last lines:" if lines else " and had said nothing"
        first = f"rank {worker.rank} on {self._node} {how_it_ended(self._ended[worker.rank])}{said}"
        kept: list[str] = []
        for line in reversed(lines):
            if sum(map(len, kept)) + len(line) > SHOWN_BYTES:
                break
            kept.append(line)
        return "\n".join([first, *(f"  {line}" for line in reversed(kept))])
