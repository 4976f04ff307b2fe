"""`mini-r1 health`: does a run make progress? Judged by state.json alone, because a container asks every 30 seconds.

state.json is replaced when a phase begins, and has the longest time that a phase may take and the process that wrote
it. On that process's host a killed run is dead at once; elsewhere, when the phase has taken too long. The recipe is not
read: its reader takes longer to import than all of this. Nothing in the file is trusted.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mini_r1.console import printable
from mini_r1.errors import ExitCode
from mini_r1.machine.processes import is_gone
from mini_r1.run.files import load_object
from mini_r1.run.run_dir import RunDir
from mini_r1.values import number

MAX_BYTES = 1 << 20  # largest state.json that is read; a real one has a few hundred bytes
SHOWN_CHARACTERS = 300  # longest text from the file; Docker keeps 4,096 bytes of a health check's output
MAX_NUMBER = 1 << 53  # steps and seconds below it are exact in every JSON reader
CLOCKS_S = 60.0  # seconds that the clocks of two hosts may differ; a heartbeat further in the future is not valid


@dataclass(frozen=True, slots=True)
class Health:
    """The health of a run."""

    healthy: bool  # whether it makes progress or is finished
    sentence: str  # why; safe to print
    run: Path | None  # its directory; None if there is no run yet
    facts: dict[str, Any]  # the known ones of state, step, phase, age_s and hang_timeout_s

    @property
    def exit_code(self) -> ExitCode:
        """0 or 1, as Docker wants it."""
        return ExitCode.FINISHED if self.healthy else ExitCode.FAILED

    def to_dict(self) -> dict[str, Any]:
        """For --json."""
        run = None if self.run is None else str(self.run)
        return {"healthy": self.healthy, "sentence": self.sentence, "run": run, **self.facts}


def check_health(path: Path, now: float) -> Health:
    """Return the health of a run, or of the run with the newest heartbeat in a folder; `now` is in s since 1970."""
    try:
        found = [(run, *_read_state(run, now)) for run in _find_runs(path)]
    except OSError as error:
        return Health(False, f"{_format_path(path)} cannot be read: {error.strerror}", None, {})
    if not found:
        return Health(False, f"no run yet in {_format_path(path)}", None, {})
    run, at, state = max(found, key=lambda one: one[1])
    among = f" (the newest of {len(found)} runs)" if len(found) > 1 else ""
    healthy, why, facts = _judge(at, state, now)
    if not healthy and facts.get("state") == "running":
        healthy, why, facts = _judge(*_read_state(run, now), now)  # it may have ended in order since
    return Health(healthy, f"{_format_path(run)}{among} {why}", run, facts)


def _find_runs(path: Path) -> list[Path]:
    if _has_state(path):
        return [path]
    return [run for run in path.iterdir() if _has_state(run)] if path.is_dir() else []


def _has_state(path: Path) -> bool:
    try:
        return RunDir(path).state_file.exists()
    except OSError:  # no permission to enter it, such as a volume's lost+found
        return False


def _read_state(run: Path, now: float) -> tuple[float, dict[str, Any] | str]:
    """Return when the run's last sign of life was, and its state or what is wrong with state.json."""
    file = RunDir(run).state_file
    try:
        state = load_object(file, MAX_BYTES)
        beat = number(state.get("heartbeat"))
        if beat is None or beat <= 0:
            raise ValueError("has no heartbeat that is a time")
        if beat > now + CLOCKS_S:
            raise ValueError("has a heartbeat in the future: a clock is wrong, or the file was not written by a run")
        return beat, state
    except ValueError as error:
        return min(file.stat().st_mtime, now), str(error)


def _judge(at: float, state: dict[str, Any] | str, now: float) -> tuple[bool, str, dict[str, Any]]:
    """Return whether the run is healthy, why, and what is known."""
    unknown = "cannot be judged: its state.json"
    if isinstance(state, str):
        return False, f"{unknown} {state}", {}
    name, step = state.get("state"), state.get("step")
    if type(step) is not int or not 0 <= step < MAX_NUMBER:
        return False, f"{unknown} has no step", {}
    age = max(now - at, 0.0)
    facts: dict[str, Any] = {"state": name, "step": step, "age_s": round(age, 1)}
    if name == "finished":
        return True, f"is finished at step {step}", facts
    if name in ("failed", "interrupted"):
        how = "failed" if name == "failed" else "was interrupted"
        return False, f"{how} at step {step}: {_first_line(state.get('reason'), 'no reason given')}", facts
    if name != "running":
        return False, f"{unknown} has a state that no run has", {}
    limit, phase = number(state.get("hang_timeout_s")), _first_line(state.get("phase"), "unknown")
    if limit is None or not 0 < limit < MAX_NUMBER:
        return False, f"{unknown} has no valid hang_timeout_s", facts
    facts |= {"phase": phase, "hang_timeout_s": limit}
    doing = f"step {step}, phase {phase}"
    if is_gone(state.get("process")):
        return False, f"is dead: {doing}, and its process is gone; the same command resumes it", facts
    if age < limit:
        return True, f"runs: {doing} for {age:.0f} s (at most {limit:g})", facts
    return False, f"is stuck or dead: {doing} began {age:.0f} s ago, and hang_timeout_s is {limit:g}", facts


def _first_line(text: object, otherwise: str) -> str:
    """Return the first line of a text, safe to print and cut to a length."""
    first = text.partition("\n")[0] if isinstance(text, str) else ""
    return printable(first if len(first) <= SHOWN_CHARACTERS else first[:SHOWN_CHARACTERS] + "...") or otherwise


def _format_path(path: Path) -> str:
    return printable(str(path)).replace("\n", r"\n")
