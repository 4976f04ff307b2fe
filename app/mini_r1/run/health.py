"""`mini-r1 health`: does a run make progress? Told from state.json alone, because a container asks every half a minute.

state.json is replaced when a phase begins, and says how long one may last and which process says so: on that process's
host a run that was killed is dead at once, elsewhere when the phase has lasted too long. What it says can be checked
without the recipe, whose reader takes longer to import than all of this. The file is data: nothing in it is trusted.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mini_r1.console import printable
from mini_r1.errors import ExitCode
from mini_r1.machine.processes import is_gone
from mini_r1.run.run_dir import RunDir

MAX_BYTES = 1 << 20
"""Of state.json; it has some hundred."""
SHOWN_CHARACTERS = 300
"""Of what a file says; Docker keeps 4,096 bytes of a health check's output."""
MAX_NUMBER = 1 << 53
"""Steps and seconds below it are exact in every reader of JSON."""
CLOCKS_S = 60.0
"""Seconds that the clocks of two hosts may differ by: more is no heartbeat of now."""


@dataclass(frozen=True, slots=True)
class Health:
    """The answer.

    Args:
        healthy: the run makes progress, or has made all of it.
        sentence: why; safe to print.
        run: its directory; None: there is no run yet.
        facts: state, step, phase, age_s and hang_timeout_s, as far as they are known.
    """

    healthy: bool
    sentence: str
    run: Path | None
    facts: dict[str, Any]

    @property
    def exit_code(self) -> ExitCode:
        """0 or 1, as Docker wants it."""
        return ExitCode.FINISHED if self.healthy else ExitCode.FAILED

    def to_dict(self) -> dict[str, Any]:
        """For --json."""
        run = None if self.run is None else str(self.run)
        return {"healthy": self.healthy, "sentence": self.sentence, "run": run, **self.facts}


class _Fault(Exception):
    """What is wrong with a state.json."""


@dataclass(frozen=True, slots=True)
class _Sign:
    """A run's last sign of life.

    Args:
        run: the directory.
        at: seconds since the epoch: its heartbeat, or for want of a sound one when the file was written.
        state: what state.json says; empty with a fault.
        fault: what is wrong with it.
    """

    run: Path
    at: float
    state: dict[str, Any]
    fault: str | None


def check(path: Path, now: float) -> Health:
    """The health of a run, or of that run in a folder whose last sign of life is the newest.

    Args:
        path: a run directory, or a folder of them; it need not be there.
        now: seconds since the epoch.
    """
    try:
        signs = [_sign(run, now) for run in _runs(path)]
    except OSError as error:
        return Health(False, f"{_path(path)} cannot be read: {error.strerror}", None, {})
    if not signs:
        return Health(False, f"no run yet in {_path(path)}", None, {})
    newest = max(signs, key=lambda sign: sign.at)
    among = f" (the newest of {len(signs)} runs)" if len(signs) > 1 else ""
    healthy, words, facts = _judged(newest, now)
    if not healthy and facts.get("state") == "running":
        healthy, words, facts = _judged(_sign(newest.run, now), now)  # it may have ended in order since it was read
    return Health(healthy, f"{_path(newest.run)}{among} {words}", newest.run, facts)


def _runs(path: Path) -> list[Path]:
    """The directory itself, or those in it, where a run has said something."""
    if _has_state(path):
        return [path]
    return [run for run in path.iterdir() if _has_state(run)] if path.is_dir() else []


def _has_state(path: Path) -> bool:
    try:
        return RunDir(path).state_file.exists()
    except OSError:  # not ours to enter, such as a volume's own lost+found
        return False


def _sign(run: Path, now: float) -> _Sign:
    file = RunDir(run).state_file
    try:
        state = _read(file)
        return _Sign(run, _heartbeat(state, now), state, None)
    except _Fault as fault:
        return _Sign(run, min(file.stat().st_mtime, now), {}, str(fault))


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():  # a pipe would be waited for
        raise _Fault("is not a file")
    try:
        with file.open("rb") as handle:
            data = handle.read(MAX_BYTES + 1)
    except OSError as error:
        raise _Fault(f"cannot be read: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise _Fault("is larger than 1 MiB")
    try:
        state = json.loads(data)
    except (ValueError, RecursionError):
        raise _Fault("is not JSON") from None
    if not isinstance(state, dict):
        raise _Fault("is not a JSON object")
    return state


def _heartbeat(state: dict[str, Any], now: float) -> float:
    beat = _number(state.get("heartbeat"))
    if beat is None or not beat > 0:  # NaN is none
        raise _Fault("has no heartbeat that is a time")
    if beat > now + CLOCKS_S:
        raise _Fault("has a heartbeat in the future: a clock is wrong, or the file was not written by a run")
    return float(beat)


def _judged(sign: _Sign, now: float) -> tuple[bool, str, dict[str, Any]]:
    """Whether the run is well, what to say of it, and what is known."""
    if sign.fault is not None:
        return False, f"cannot be judged: its state.json {sign.fault}", {}
    name, step = sign.state.get("state"), sign.state.get("step")
    if not isinstance(step, int) or isinstance(step, bool) or not 0 <= step < MAX_NUMBER:
        return False, "cannot be judged: its state.json has no step", {}
    age = max(now - sign.at, 0.0)
    facts: dict[str, Any] = {"state": name, "step": step, "age_s": round(age, 1)}
    if name == "running":
        return _running(sign.state, age, facts)
    if name == "finished":
        return True, f"is finished at step {step}", facts
    if name in ("failed", "interrupted"):
        how = "failed" if name == "failed" else "was interrupted"
        return False, f"{how} at step {step}: {_line(sign.state.get('reason'), 'no reason given')}", facts
    return False, "cannot be judged: its state.json has a state that no run has", {}


def _running(state: dict[str, Any], age: float, facts: dict[str, Any]) -> tuple[bool, str, dict[str, Any]]:
    limit, phase = _number(state.get("hang_timeout_s")), _line(state.get("phase"), "unknown")
    if limit is None or not 0 < limit < MAX_NUMBER:
        return False, "cannot be judged: its state.json does not say hang_timeout_s", facts
    facts |= {"phase": phase, "hang_timeout_s": limit}
    where = f"step {facts['step']}, phase {phase}"
    if is_gone(state.get("process")):
        return False, f"is dead: {where}, and its process is gone; the same command resumes it", facts
    if age < limit:
        return True, f"runs: {where} for {age:.0f} s (at most {limit:g})", facts
    return False, f"is stuck or dead: {where} began {age:.0f} s ago, and hang_timeout_s is {limit:g}", facts


def _number(value: object) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _line(text: object, otherwise: str) -> str:
    """The first line of a text, safe to print and not too long."""
    first = text.partition("\n")[0] if isinstance(text, str) else ""
    return printable(first if len(first) <= SHOWN_CHARACTERS else first[:SHOWN_CHARACTERS] + "...") or otherwise


def _path(path: Path) -> str:
    return printable(str(path)).replace("\n", r"\n")
