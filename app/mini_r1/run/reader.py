"""What a run directory tells, whatever state it is in: every part may be absent, half-written or from another version.

Nothing a file says is trusted: a figure counts only when it is a finite number, text is cut to a length, and what is
missing is said in words (`RunData.missing`) instead of raised.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from mini_r1.console import printable
from mini_r1.errors import ExitCode, KitError
from mini_r1.machine.processes import is_gone
from mini_r1.recipe.recipe_file import load_recipe
from mini_r1.run.run_dir import RunDir, read_jsonl, read_object
from mini_r1.values import duration, interval, mapping, number

MAX_TEXT = 400
"""Characters of a text from a file that is shown in a table or a sentence."""
MAX_FIGURE = 1e100
"""A larger figure counts as absent: no run logs one, and sums and axes of such overflow."""
ASLEEP_S = 1_200.0
"""Seconds without a heartbeat after which a run that says it is running is doubted, where it names no limit itself."""

_STEP = re.compile(rb'\{"step": ([0-9]{1,15}),')
"""How the trainer's rows begin; one of another make is passed over here, and read in full elsewhere."""

Points = tuple[list[float], list[float]]


@dataclass(frozen=True, slots=True)
class Attempt:
    """One start of the program."""

    number: int
    started: float | None
    """Seconds since 1970, from run.json."""
    first_step: int | None
    """The first it worked on, from its completions."""
    last_step: int | None
    """The last it worked on; a later attempt may have done some of its steps again."""
    last_time: float | None
    """Of its last row of metrics."""
    times: Points
    """Time and step of each of its rows of metrics."""
    facts: dict[str, Any]
    """Its entry in run.json."""

    @property
    def seconds(self) -> float | None:
        """From the first thing known of it to its last row of metrics."""
        begin = self.started if self.started is not None else (self.times[0][0] if self.times[0] else None)
        return None if begin is None or self.last_time is None else max(0.0, self.last_time - begin)

    @property
    def gpus(self) -> int:
        """GPUs it held: one for each worker, and vLLM's; 0 on a CPU."""
        devices = self.facts.get("devices")
        if not isinstance(devices, list) or not devices or str(devices[0]).startswith("cpu"):
            return 0
        workers = self.facts.get("workers")
        known = workers if isinstance(workers, int) and 0 < workers < 100_000 else len(devices)
        return known + (self.facts.get("vllm_device") is not None)


@dataclass(frozen=True, slots=True)
class Evaluated:
    """One file of `evaluation/`: figures of a snapshot on held-out problems."""

    file: str
    step: int
    problems: int
    series: str
    """Files with the same problems, by hash and limit: only these may be joined by a line."""
    values: dict[str, Any]

    def figure(self, name: str) -> float | None:
        """One of its figures, None where it has none."""
        return drawable(self.values.get(name))

    def interval(self, name: str) -> tuple[float, float] | None:
        """One of its 95 % intervals."""
        limits = interval(self.values.get(name))
        return limits if limits and None not in map(drawable, limits) else None


@dataclass
class RunData:
    """Everything of one run but its completions."""

    run: RunDir
    name: str
    state: dict[str, Any] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    evaluations: list[Evaluated] = field(default_factory=list)
    troubles: list[tuple[int, str]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    """What is not there, a sentence each."""
    read_at: float = 0.0
    gone: bool = False
    """Whether it says that it is running, and its process has ended on this host."""

    def points(self, name: str) -> Points:
        """Steps and values of one figure, where it was logged as a number."""
        known = [(row["step"], value) for row in self.rows if (value := drawable(row.get(name))) is not None]
        return [float(step) for step, _ in known], [value for _, value in known]

    def last(self, name: str) -> float | None:
        """The newest value of one figure."""
        values = self.points(name)[1]
        return values[-1] if values else None

    @property
    def step(self) -> int:
        """Optimizer steps done, as far as the files tell."""
        said = self.state.get("step")
        logged = max((row["step"] for row in self.rows), default=0)
        return max(said if type(said) is int and 0 <= said < 2**53 else 0, logged)

    @property
    def planned(self) -> int | None:
        """max_steps of the recipe; None where epochs decide."""
        steps = self.recipe.get("max_steps")
        return steps if isinstance(steps, int) and steps > 0 else None

    @property
    def restarts(self) -> list[int]:
        """Steps that a later attempt began with."""
        return [a.first_step for a in self.attempts[1:] if a.first_step is not None]

    @property
    def state_name(self) -> str:
        """running, interrupted, finished, failed (also one whose process is gone), or unknown."""
        said = "failed" if self.gone else self.state.get("state")
        return said if said in ("running", "interrupted", "finished", "failed") else "unknown"

    def state_sentence(self) -> str:
        """State, step, and why it ended."""
        state = "dead" if self.gone else text(self.state.get("state")) or "state unknown"
        total = f" of {self.planned}" if self.planned else ""
        said = f"{state} at step {self.step}{total}"
        beat = drawable(self.state.get("heartbeat"))
        if self.gone:
            return f"{said} (phase {text(self.state.get('phase'))}): its process is gone; the same command resumes it"
        if state == "running" and beat is not None:
            silent = self.read_at - beat
            limit = number(self.state.get("hang_timeout_s")) or ASLEEP_S
            if silent > limit:
                said += f", without a sign of life for {duration(silent)}: killed, most likely"
            elif phase := text(self.state.get("phase")):
                said += f" ({phase})"
        reason = text(self.state.get("reason"))
        if reason and reason != state:
            said += f": {reason}"
        return said


def read_run(path: Path, name: str | None = None) -> RunData:
    """Read all of a run but its completions.

    Args:
        path: a run directory; half of one will do.
        name: what to call it; None is the directory's name.

    Raises:
        KitError: nothing of a run is there.
    """
    run = RunDir(path)
    if not (run.is_run() or run.state_file.is_file() or run.attempts.is_dir()):
        raise KitError(f"{path} holds no run (no recipe.yaml, no state.json, no attempts)", ExitCode.CONFIG)
    data = RunData(run, text(name or path.absolute().name), read_at=time.time())
    data.state, data.record = run.read_state(), run.read_record()
    if data.state.get("state") == "running" and is_gone(data.state.get("process")):
        data.state = run.read_state()  # it may have ended in order since it was read
        data.gone = data.state.get("state") == "running"
    if not data.state:
        data.missing.append("state.json cannot be read: whether the run goes on is not known")
    if not data.record:
        data.missing.append("run.json cannot be read: versions, devices and attempts are not known")
    try:
        if run.is_run():
            data.recipe = load_recipe(run.recipe_file).model_dump()
        elif run.is_starting():
            data.missing.append("the run is starting: recipe.yaml comes with its first attempt")
        else:
            data.missing.append("recipe.yaml is not there: the settings and the planned steps are not known")
    except KitError as error:
        data.missing.append(f"the recipe cannot be read: {text(error.message)}")
    data.rows = [row for row in run.metrics() if is_step(row["step"])]
    data.attempts = _attempts(run, data.record)
    data.evaluations = list(_evaluations(run, data.missing))
    for row in data.rows:
        trouble = row.get("trouble")
        if isinstance(trouble, dict):
            data.troubles += [(row["step"], text(sentence)) for sentence in trouble.values()]
    _say_missing(data)
    return data


def _say_missing(data: RunData) -> None:
    logged = any("loss" in row for row in data.rows)
    if not logged:
        every = data.recipe.get("logging_steps")
        when = f" (the recipe logs every {every} steps)" if isinstance(every, int) and every > 1 else ""
        data.missing.append(f"no step has been logged yet{when}: there are no training curves")
    elif data.recipe and not data.recipe.get("beta"):
        data.missing.append("no KL: beta is 0, so the run has no reference model")
    if not data.evaluations:
        data.missing.append(
            "no held-out evaluation of a snapshot: `mini-r1 evaluate` makes one; training success is measured on the "
            "problems the run trains on"
        )
    elif next(data.run.held_out_completions(), None) is None:
        data.missing.append("no answers to held-out problems were kept: `mini-r1 evaluate --again` keeps them")
    if not data.points("eval_success")[0] and data.recipe.get("eval_strategy") in (None, "no"):
        data.missing.append("no held-out success during training: the recipe has no eval_steps")


def _attempts(run: RunDir, record: dict[str, Any]) -> list[Attempt]:
    told = record.get("attempts")
    entries = {
        entry["attempt"]: entry
        for entry in (told if isinstance(told, list) else [])
        if isinstance(entry, dict) and isinstance(entry.get("attempt"), int)
    }
    folders = {int(p.name) for p in run.attempts.glob("*") if p.name.isdecimal() and len(p.name) < 7}
    found = []
    for index in sorted(folders | set(entries)):
        folder = run.attempts / str(index)
        steps = list(_steps(folder / "completions.jsonl"))
        times: Points = ([], [])
        for row in read_jsonl(folder / "metrics.jsonl"):
            at = drawable(row.get("time"))
            if at is not None and is_step(row.get("step")):
                times[0].append(at)
                times[1].append(float(row["step"]))
        facts = entries.get(index, {})
        found.append(
            Attempt(
                index,
                _seconds(facts.get("started")),
                min(steps, default=int(times[1][0]) if times[1] else None),
                max([*steps, *map(int, times[1])], default=None),
                times[0][-1] if times[0] else None,
                times,
                facts,
            )
        )
    return found


def _steps(path: Path) -> Iterator[int]:
    """The step of every completion; read off the line, since a long run has hundreds of megabytes of them."""
    if not path.is_file():  # a pipe or a device may have no end
        return
    try:
        handle = path.open("rb")
    except OSError:
        return
    with handle:
        for line in handle:
            found = _STEP.match(line)
            if found:
                yield int(found.group(1))


def _evaluations(run: RunDir, missing: list[str]) -> Iterator[Evaluated]:
    files = sorted(run.evaluation.glob("*.json")) if run.evaluation.is_dir() else []
    for file in files:
        value = read_object(file)
        facts = mapping(value.get("provenance"))
        step = facts.get("step")
        if step is None and file.stem.startswith("step-"):
            digits = file.stem.split("-")[1]
            step = int(digits) if digits.isdecimal() and len(digits) < 16 else None
        if value and "greedy" not in value and "sampled" not in value:
            continue  # another kind of file, such as an index
        measured = drawable(value.get("greedy", value.get("sampled")))
        if measured is None or step is None or not is_step(step):
            missing.append(f"{text(file.name)} in evaluation/ cannot be read")
            continue
        problems = drawable(value.get("problems")) or 0
        sha, limit = text(facts.get("problems_sha256"))[:8], facts.get("limit")
        yield Evaluated(text(file.name), step, int(problems), f"{sha} {int(problems)} {limit}", value)


# --- values from files ---


def drawable(value: object) -> float | None:
    """A finite number that can be drawn, or None."""
    known = number(value)
    return None if known is None or abs(known) > MAX_FIGURE else known


def is_step(value: object) -> bool:
    """Whether this can be a step."""
    return type(value) is int and 0 <= value < 2**53


def text(value: object, limit: int = MAX_TEXT) -> str:
    """Text on one line, controls made visible, cut to a length; empty for None."""
    if value is None:
        return ""
    try:
        said = value if isinstance(value, str) else str(value)
    except ValueError:  # an integer of thousands of digits
        return "a number too long to show"
    said = " ".join(printable(said[: 4 * limit]).split())
    return said if len(said) <= limit else said[: limit - 1] + "…"


def _seconds(value: object) -> float | None:
    """Seconds since 1970 of a time as run.json writes it."""
    if not isinstance(value, str):
        return None
    try:
        return datetime.fromisoformat(value.replace("Z", "+00:00")).timestamp()
    except (ValueError, OverflowError):
        return None
