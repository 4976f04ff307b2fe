"""The reader of a run: state, metrics, completions, attempts and held-out results, however damaged the files are.

A file may be absent, half-written or hostile. A figure counts only if it is a finite number, text is cut to a length,
and what is missing is listed (`RunData.missing`) instead of raised. No torch; pydantic only where a recipe is read.
"""

import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from mini_r1.console import text
from mini_r1.errors import KitError
from mini_r1.run.files import read_jsonl, read_object
from mini_r1.run.health import Health, check_health
from mini_r1.run.run_dir import RunDir, open_run
from mini_r1.values import interval, is_step, mapping, number

_STEP = re.compile(rb'\{"step": ([0-9]{1,15}),')  # how the trainer's rows begin
_HELD_OUT = re.compile(r"step-(\d{1,15})(?:-limit-(\d{1,15}))?(?:\.json|-completions\.jsonl)")
"""Results on the run's held-out part, or some of it; those on another file of problems have its hash in their names."""

Points = tuple[list[float], list[float]]


# --- metrics and completions over all attempts ---


def read_metrics(run: RunDir) -> list[dict[str, Any]]:
    """Return one row for each logged step, in order, from the highest attempt that logged it.

    The training metrics of a step, its evaluation and its warnings are separate lines; here they are one row.
    """
    steps: dict[int, dict[str, Any]] = {}
    for row in _merge_attempts(run, "metrics.jsonl"):
        steps.setdefault(row["step"], {}).update(row)
    return list(steps.values())


def read_completions(run: RunDir) -> Iterator[dict[str, Any]]:
    """Yield every completion, in order of steps, from the highest attempt that reached its step."""
    return _merge_attempts(run, "completions.jsonl")


def _merge_attempts(run: RunDir, name: str) -> Iterator[dict[str, Any]]:
    segments: list[tuple[Path, float]] = []
    # A later attempt resumes from a checkpoint, so all rows of an earlier one from its first step on are void.
    # Its completions have that step; its metrics may begin later (logging_steps) or with an evaluation before it.
    end = float("inf")
    for attempt in reversed(run.attempt_numbers()):
        folder = run.attempts / str(attempt)
        segments.append((folder / name, end))
        steps = (row["step"] for row in read_jsonl(folder / "completions.jsonl") if is_step(row.get("step")))
        end = min(end, next(steps, end))
    for path, end in reversed(segments):
        yield from (row for row in read_jsonl(path) if is_step(row.get("step")) and row["step"] < end)


# --- held-out results ---


def completions_file(result: Path) -> Path:
    """Return the file with an evaluation's answers, from the file with its figures."""
    return result.with_name(f"{result.stem}-completions.jsonl")


def list_held_out_results(run: RunDir, pattern: str = "step-*.json") -> Iterator[tuple[int, int | None, Path]]:
    """Yield step, limit (None: all problems) and file of each evaluation on the run's held-out part, in no order."""
    for path in run.evaluation.glob(pattern):
        if found := _HELD_OUT.fullmatch(path.name):
            yield int(found[1]), int(found[2]) if found[2] else None, path


def read_held_out_completions(run: RunDir) -> Iterator[dict[str, Any]]:
    """Yield the kept answers to held-out problems, in order of steps; `kind` is greedy or sampled."""
    best: dict[int, tuple[float, Path]] = {}  # of a step that was evaluated more than once, on the most problems
    for step, limit, path in list_held_out_results(run, "step-*.jsonl"):
        this = (float("inf") if limit is None else limit, path)
        best[step] = max(best.get(step, this), this)
    for step in sorted(best):
        yield from (row for row in read_jsonl(best[step][1]) if is_step(row.get("step")))


@dataclass(frozen=True, slots=True)
class Evaluated:
    """One file of `evaluation/`: figures of a snapshot on held-out problems."""

    file: str
    step: int
    problems: int
    series: str  # hash and limit of the problems: a line may join only evaluations on the same ones
    values: dict[str, Any]

    @property
    def limit(self) -> int | None:
        """Number of problems that `evaluate --limit` took; None for all."""
        found = _HELD_OUT.fullmatch(self.file)
        return int(found[2]) if found and found[2] else None

    def figure(self, name: str) -> float | None:
        """Return one of its figures, None if it has no such number."""
        return number(self.values.get(name))

    def interval(self, name: str) -> tuple[float, float] | None:
        """Return one of its 95 % intervals."""
        return interval(self.values.get(name))


def read_evaluations(run: RunDir, missing: list[str]) -> list[Evaluated]:
    """Return every evaluation, by file name; a sentence for each damaged file is added to `missing`."""
    found = []
    for file in sorted(run.evaluation.glob("*.json")):
        value = read_object(file)
        facts = mapping(value.get("provenance"))
        step = facts.get("step")
        if step is None and (named := re.match(r"step-(\d{1,15})(?=[-.])", file.name)):
            step = int(named[1])
        if value and "greedy" not in value and "sampled" not in value:
            continue  # another kind of file
        measured = number(value.get("greedy", value.get("sampled")))
        if measured is None or step is None or not is_step(step):
            missing.append(f"{text(file.name)} in evaluation/ cannot be read")
            continue
        problems = int(number(value.get("problems")) or 0)
        series = f"{text(facts.get('problems_sha256'))[:8]} {problems} {facts.get('limit')}"
        found.append(Evaluated(text(file.name), step, problems, series, value))
    return found


# --- attempts ---


@dataclass(frozen=True)
class AttemptRecord:
    """One start of the program."""

    number: int
    folder: Path
    begin: float | None  # seconds since 1970: its start by run.json, else its first row of metrics
    times: Points  # time and step of each row of metrics
    facts: dict[str, Any]  # its entry in run.json

    @cached_property
    def _steps(self) -> list[int]:
        """The steps of its completions, without parsing them: a long run has hundreds of megabytes."""
        file = self.folder / "completions.jsonl"
        if not file.is_file():  # a pipe or a device may have no end
            return []
        with file.open("rb") as lines:
            return sorted({int(found[1]) for line in lines if (found := _STEP.match(line))})

    @property
    def first_step(self) -> int | None:
        """The first step it trained."""
        _, logged = self.times
        return next(iter([*self._steps, *map(int, logged)]), None)

    @property
    def last_step(self) -> int | None:
        """The last step it trained; a later attempt may have repeated some of its steps."""
        _, logged = self.times
        return max([*self._steps, *map(int, logged)], default=None)

    @property
    def seconds(self) -> float | None:
        """From its beginning to its last row of metrics."""
        at, _ = self.times
        return None if self.begin is None or not at else max(0.0, at[-1] - self.begin)

    @property
    def gpus(self) -> int:
        """GPUs it held: one for each worker, and vLLM's unless it shares one; 0 on a CPU."""
        devices = self.facts.get("devices")
        if not isinstance(devices, list) or not devices or str(devices[0]).startswith("cpu"):
            return 0
        workers = self.facts.get("workers")
        known = workers if isinstance(workers, int) and 0 < workers < 100_000 else len(devices)
        return known + (0 if self.facts.get("vllm_shared") is True else count_vllm_processes(self.facts))


def count_vllm_processes(facts: Mapping[str, Any]) -> int:
    """Return the number of vLLM's processes, one for each of its devices, by an attempt's entry in run.json."""
    devices = facts.get("vllm_device")
    return 0 if devices is None else str(devices)[:1_000].count(",") + 1


def read_attempts(run: RunDir) -> list[AttemptRecord]:
    """Return the attempts that have a folder or an entry in run.json, by number."""
    entries = run.read_record().get("attempts")
    facts = {
        entry["attempt"]: entry
        for entry in (entries if isinstance(entries, list) else [])
        if isinstance(entry, dict) and type(entry.get("attempt")) is int
    }
    found = []
    for index in sorted({*run.attempt_numbers(), *facts}):
        folder = run.attempts / str(index)
        times: Points = ([], [])
        for row in read_jsonl(folder / "metrics.jsonl"):
            at = number(row.get("time"))
            if at is not None and is_step(row.get("step")):
                times[0].append(at)
                times[1].append(float(row["step"]))
        known = facts.get(index, {})
        begin = _parse_time(known.get("started")) or next(iter(times[0]), None)
        found.append(AttemptRecord(index, folder, begin, times, known))
    return found


def _parse_time(value: object) -> float | None:
    """Return the seconds since 1970 of a time in run.json."""
    try:
        return datetime.fromisoformat(str(value).replace("Z", "+00:00")).timestamp()
    except (ValueError, OverflowError):
        return None


# --- a whole run ---


@dataclass
class RunData:
    """Everything of one run except its completions."""

    run: RunDir
    name: str
    health: Health = field(default_factory=lambda: Health("unknown", "not read"))
    state: dict[str, Any] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)  # run.json
    recipe: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)  # the metrics
    attempts: list[AttemptRecord] = field(default_factory=list)
    evaluations: list[Evaluated] = field(default_factory=list)
    troubles: list[tuple[int, str]] = field(default_factory=list)  # step and sentence of each warning
    missing: list[str] = field(default_factory=list)  # what could not be read or was not measured, a sentence each

    def points(self, name: str) -> Points:
        """Return steps and values of one figure, for the rows that have it as a number."""
        known = [(row["step"], value) for row in self.rows if (value := number(row.get(name))) is not None]
        return [float(step) for step, _ in known], [value for _, value in known]

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        logged = [row["step"] for row in self.rows]
        return max([step for step in (self.state.get("step"), *logged) if is_step(step)], default=0)

    @property
    def planned(self) -> int | None:
        """max_steps of the recipe; None if its epochs decide."""
        steps = self.recipe.get("max_steps")
        return steps if isinstance(steps, int) and steps > 0 else None

    def state_sentence(self) -> str:
        """Return the state, the step, and the phase or why the run ended."""
        state = self.health.state.replace("unknown", "state unknown")
        sentence = f"{state} at step {self.step}" + (f" of {self.planned}" if self.planned else "")
        return f"{sentence}: {self.health.detail}" if self.health.detail else sentence


def read_run(path: Path, name: str | None = None) -> RunData:
    """Return what can be read of a run, except its completions; a KitError if there is nothing."""
    from mini_r1.recipe.named_files import with_copies
    from mini_r1.recipe.recipe_file import load_recipe

    run = open_run(path, begun=False)
    health = check_health(path, time.time())
    data = RunData(run, text(name or path.absolute().name), health, run.read_state(), run.read_record())
    if not data.state:
        data.missing.append("state.json cannot be read: the run's state is not known")
    if not data.record:
        data.missing.append("run.json cannot be read: versions, devices and attempts are not known")
    try:
        if run.is_run():
            data.recipe = with_copies(load_recipe(run.recipe_file)).model_dump()
        elif run.is_starting():
            data.missing.append("the run is starting: recipe.yaml comes with its first attempt")
        else:
            data.missing.append("recipe.yaml is not there: the settings and the planned steps are not known")
    except KitError as error:
        data.missing.append(f"the recipe cannot be read: {text(error.message)}")
    data.rows = read_metrics(run)
    data.attempts = read_attempts(run)
    data.evaluations = read_evaluations(run, data.missing)
    data.troubles = [
        (row["step"], text(sentence)) for row in data.rows for sentence in mapping(row.get("trouble")).values()
    ]
    _list_missing(data)
    return data


def _list_missing(data: RunData) -> None:
    if not any("loss" in row for row in data.rows):
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
    elif next(read_held_out_completions(data.run), None) is None:
        data.missing.append("no answers to held-out problems were kept: `mini-r1 evaluate --again` keeps them")
    if not any(data.points("eval_success")) and data.recipe.get("eval_strategy") in (None, "no"):
        data.missing.append("no held-out success during training: the recipe has no eval_steps")
