"""Limits of a job that its scheduler restarts: failures without a new checkpoint, restarts, hours.

Slurm, a Job and a PyTorchJob restart by different rules, and none counts all of these. So every attempt of a job
(MINI_R1_JOB_ID) is a line in `jobs/JOB-NODE.jsonl` of the run directory, which needs no lock: another process may hold
the run. A limit that is reached is exit code 78, which no scheduler retries.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from mini_r1.disk_errors import FULL
from mini_r1.errors import Cause, ExitCode, KitError
from mini_r1.launch.peers import Ending
from mini_r1.launch.stop_order import StopOrder
from mini_r1.machine.schedulers import JOB_ID, read_limit
from mini_r1.run.files import AppendFile, make_folder, read_jsonl
from mini_r1.run.run_dir import RunDir

MAX_FAILURES, MAX_RESTARTS, MAX_HOURS = "MINI_R1_MAX_FAILURES", "MINI_R1_MAX_RESTARTS", "MINI_R1_MAX_HOURS"
DEFAULT_FAILURES, DEFAULT_RESTARTS = 3, 100
MAX_IDLE = 10
"""Attempts of any kind without a new checkpoint: preempted or killed each time before the first save."""
AGAIN = "Fix the cause, raise the limit if it is too low, and start the job again: it resumes and counts from 0"


class LimitReached(KitError):
    """Error raised for a job that may not be restarted; its other nodes need not be met to know it."""


@dataclass(frozen=True, slots=True)
class PastAttempt:
    """An attempt of this job on this node."""

    step: int  # newest checkpoint at its start; 0 for none
    seconds: float
    code: int | None  # None if it was killed


class AttemptLimits:
    """Counts the attempts of this job on this node; without MINI_R1_JOB_ID it does nothing."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._job = re.sub(r"[^\w.-]", "_", environment.get(JOB_ID, "").strip())[:100]
        self._failures = _read_count(environment, MAX_FAILURES, DEFAULT_FAILURES)
        self._restarts = _read_count(environment, MAX_RESTARTS, DEFAULT_RESTARTS)
        self._hours = read_limit(environment, MAX_HOURS)
        self._lines: AppendFile | None = None
        self._number = 0
        self._seconds = 0.0  # of earlier attempts
        self._timer: threading.Timer | None = None
        self._overdue = False
        self._uncounted = ""

    def begin(self, run: RunDir, node: int, stop: StopOrder) -> None:
        """Write down that an attempt begins, or raise LimitReached; `stop` is ordered when the hours are over."""
        if not self._job:
            return
        path, known = run.path / "jobs" / f"{self._job}-{node}.jsonl", True
        try:
            if run.path.is_dir() and run.holds_other_files():
                return  # refused later
            known = path.exists()
            newest, heartbeat = run.complete_checkpoints(), run.read_state().get("heartbeat")
            step = newest[0].step if newest else 0
            last, past = _read_attempts(list(read_jsonl(path)), heartbeat if isinstance(heartbeat, float) else 0.0)
            self._seconds = sum(attempt.seconds for attempt in past)
            make_folder(path.parent)
            self._lines = AppendFile(path)
            reason = self._find_limit(past, step)
            self._write(attempt=last + 1, event="limit" if reason else "start", step=step)
            if reason:
                raise LimitReached(f"{reason}. {AGAIN}", Cause.LIMIT.exit_code)
            self._number = last + 1
        except OSError as error:
            # A full disk may be free at the next attempt, which finds the empty file of this one.
            if known or error.errno not in FULL:
                self._uncounted = f"; no retry, because attempts cannot be counted in {path} ({error.strerror})"
        if self._hours is not None:
            left = max(0.0, 3600 * self._hours - self._seconds)
            self._timer = threading.Timer(min(left, threading.TIMEOUT_MAX), self._stop_in_time, [stop])
            self._timer.daemon = True
            self._timer.start()

    def explain(self, ending: Ending) -> Ending:
        """Return an ending as the limit reached, if the hours are over or a retry would not be counted."""
        if self._overdue and ending.code == ExitCode.INTERRUPTED:
            return Ending(Cause.LIMIT.exit_code, f"{self._describe_hours()}: stopped. {AGAIN}")
        if self._uncounted and ending.code == ExitCode.RETRY:
            return replace(ending, code=Cause.LIMIT.exit_code, text=ending.text + self._uncounted)
        return ending

    def end(self, ending: Ending) -> Ending:
        """Write down how the attempt ended; return the ending as `explain` does."""
        if self._timer is not None:
            self._timer.cancel()
        ending = self.explain(ending)
        if self._number:
            with contextlib.suppress(OSError):
                self._write(attempt=self._number, event="end", code=int(ending.code))
        return ending

    def _write(self, **fields: object) -> None:
        if self._lines is not None:
            self._lines.write_rows({"time": time.time(), **fields})

    def _find_limit(self, past: Sequence[PastAttempt], step: int) -> str:
        """Return which limit is reached before another attempt, with the name of its setting; else an empty text."""
        failures = idle = 0
        for attempt in past:
            idle = idle + 1 if attempt.step == step else 0
            failed = attempt.step == step and attempt.code not in (None, ExitCode.INTERRUPTED)
            failures = failures + 1 if failed else 0
        if failures and failures >= self._failures:
            return f"{failures} attempts in a row failed without a new checkpoint ({MAX_FAILURES})"
        if idle >= MAX_IDLE:
            return f"{idle} attempts in a row wrote no new checkpoint: give each more time, or save more often"
        if len(past) > self._restarts:
            return f"restarted {len(past) - 1} times ({MAX_RESTARTS})"
        return self._describe_hours() if self._hours is not None and self._seconds >= 3600 * self._hours else ""

    def _describe_hours(self) -> str:
        return f"the attempts of this job have run for {self._hours:g} hours ({MAX_HOURS})"

    def _stop_in_time(self, stop: StopOrder) -> None:
        self._overdue = True
        stop.name = stop.name or MAX_HOURS


def _read_count(environment: Mapping[str, str], name: str, default: int) -> int:
    value = read_limit(environment, name)
    if value is not None and value != int(value):
        raise KitError(f"{name}={value:g}: must be a whole number")
    return default if value is None else int(value)


def _read_attempts(rows: Sequence[Mapping[str, object]], heartbeat: float) -> tuple[int, list[PastAttempt]]:
    """Return the last attempt's number, and the attempts since a limit was reached or one ended with 0 or 78.

    No scheduler restarts those: a person has started the job again. The time of a killed attempt ends with the run's
    last heartbeat.
    """
    last, past = 0, list[PastAttempt]()
    ends = {row.get("attempt"): row for row in rows if row.get("event") == "end"}
    for row in rows:
        number, began, step = row.get("attempt"), row.get("time"), row.get("step")
        if row.get("event") == "limit":
            past.clear()
        if not (row.get("event") == "start" and isinstance(number, int) and isinstance(began, float)):
            continue
        end = ends.get(number, {})
        code, ended = end.get("code"), end.get("time", heartbeat)
        seconds = max(0.0, ended - began) if isinstance(ended, float) else 0.0
        last = number
        past.append(PastAttempt(step if isinstance(step, int) else 0, seconds, code if isinstance(code, int) else None))
        if code in (ExitCode.FINISHED, ExitCode.CONFIG):
            past.clear()
    return last, past
