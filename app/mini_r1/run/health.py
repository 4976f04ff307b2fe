"""`mini-r1 health`: does a run make progress? Judged by state.json alone, because a container asks every 30 seconds.

state.json is replaced when a phase begins, and has the longest time that a phase may take and the process that wrote
it. On that process's host a killed run is dead at once; elsewhere, when the phase has taken too long. The recipe is not
read: its reader takes longer to import than all of this. Nothing in the file is trusted.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mini_r1.console import printable, text
from mini_r1.machine.processes import is_gone
from mini_r1.run.files import load_object
from mini_r1.run.run_dir import RunDir
from mini_r1.values import is_step, number

MAX_BYTES = 1 << 20  # largest state.json that is read; a real one has a few hundred bytes
SHOWN_CHARACTERS = 300  # longest text from the file; Docker keeps 4,096 bytes of a health check's output
CLOCKS_S = 60.0  # seconds that the clocks of two hosts may differ; a heartbeat further in the future is not valid


@dataclass(frozen=True, slots=True)
class Health:
    """The health of a run."""

    state: str
    """running, saved (stopped in order: the same command resumes it), finished, failed, dead (it says it is running,
    and its process is gone or its heartbeat too old), not started, unknown."""
    why: str  # safe to print, as are `place` and `detail`
    facts: dict[str, Any] = field(
        default_factory=dict
    )  # the known ones of state, step, phase, in_flight, age_s, hang_timeout_s
    detail: str = ""  # the phase, or the reason of an end
    place: str = ""
    run: Path | None = None  # its directory; None if there is no run yet

    @property
    def healthy(self) -> bool:
        """Whether it makes progress or is finished."""
        return self.state in ("running", "finished")

    @property
    def sentence(self) -> str:
        """Which run, and how it is."""
        return f"{self.place} {self.why}".strip()

    def to_dict(self) -> dict[str, Any]:
        """For --json."""
        run = None if self.run is None else str(self.run)
        return {"healthy": self.healthy, "sentence": self.sentence, "run": run, **self.facts}


def check_health(path: Path, now: float) -> Health:
    """Return the health of a run, or of the run with the newest heartbeat in a folder; `now` is in s since 1970."""
    try:
        found = [(run, *_read_state(run, now)) for run in _find_runs(path)]
    except OSError as error:
        return Health("unknown", f"cannot be read: {error.strerror}", place=_format_path(path))
    if not found:
        return Health("not started", f"no run yet in {_format_path(path)}")
    run, at, state = max(found, key=lambda one: one[1])
    among = f" (the newest of {len(found)} runs)" if len(found) > 1 else ""
    health = _judge(at, state, now)
    if health.state == "dead":
        health = _judge(*_read_state(run, now), now)  # it may have ended in order since
    return replace(health, place=_format_path(run) + among, run=run)


def _find_runs(path: Path) -> list[Path]:
    # glob skips what this user may not enter, such as a volume's lost+found.
    files = [*path.glob("state.json")] or path.glob("*/state.json")
    return [file.parent for file in files]


def _read_state(run: Path, now: float) -> tuple[float, dict[str, Any] | str]:
    """Return when the run was last active, and its state or what is wrong with state.json."""
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


def _judge(at: float, state: dict[str, Any] | str, now: float) -> Health:
    unknown = "cannot be judged: its state.json"
    if isinstance(state, str):
        return Health("unknown", f"{unknown} {state}")
    name, step = state.get("state"), state.get("step")
    if not is_step(step):
        return Health("unknown", f"{unknown} has no step")
    age = max(now - at, 0.0)
    facts: dict[str, Any] = {"state": name, "step": step, "age_s": round(age, 1)}
    if name == "finished":
        return Health(name, f"is finished at step {step}", facts)
    if name in ("failed", "interrupted"):
        reason = _shorten(state.get("reason"), "no reason given")
        if name == "failed":
            return Health(name, f"failed at step {step}: {reason}", facts, reason)
        return Health("saved", f"was interrupted at step {step}: {reason}", facts, reason)
    if name != "running":
        return Health("unknown", f"{unknown} has a state that no run has")
    limit, phase = number(state.get("hang_timeout_s")), _shorten(state.get("phase"), "unknown")
    if limit is None or limit <= 0:
        return Health("unknown", f"{unknown} has no valid hang_timeout_s", facts)
    facts |= {"phase": phase, "hang_timeout_s": limit}
    health, verb, detail = "running", "runs", f"phase {phase} for {age:.0f} s (at most {limit:g})"
    in_flight = state.get("in_flight")
    if is_step(in_flight):  # with rollout_ahead
        facts["in_flight"] = in_flight
        detail += f", vLLM samples for step {in_flight} meanwhile"
    if is_gone(state.get("process")):
        health, verb = "dead", "is dead"
        detail = f"phase {phase}, and its process is gone; the same command resumes it"
    elif age >= limit:
        health, verb = "dead", "is stuck or dead"
        detail = f"phase {phase} began {age:.0f} s ago, and hang_timeout_s is {limit:g}"
    return Health(health, f"{verb}: step {step}, {detail}", facts, detail)


def _shorten(value: object, otherwise: str) -> str:
    return text(value if isinstance(value, str) else None, SHOWN_CHARACTERS) or otherwise


def _format_path(path: Path) -> str:
    return printable(str(path)).replace("\n", r"\n")
