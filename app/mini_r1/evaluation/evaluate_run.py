"""`mini-r1 evaluate`: measure a run's snapshots, or any model, on a set of problems."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from mini_r1.console import progress_console
from mini_r1.errors import ExitCode, KitError
from mini_r1.evaluation import source as sources
from mini_r1.evaluation.answer_engines import Engines
from mini_r1.evaluation.measuring import Measurer, refuse_unwritable
from mini_r1.evaluation.source import Problems, Source
from mini_r1.generation.model import StartingPoint
from mini_r1.run.files import write_json
from mini_r1.run.run_dir import RunDir
from mini_r1.tasks.registry import DEFAULT_TASK, find_task

NOT_REPEATED = {"problems", "samples", "temperature", "failures", "reasons", "baselines", "seconds", "provenance"}
"""Keys of step 0 that a snapshot's result does not repeat."""
MOST_SAMPLES = 10_000
"""Most samples for each problem: more than any figure needs, and few enough to hold."""
UNKNOWN = StartingPoint(None, None, "the untrained model of this run is not known")


@dataclass(frozen=True, slots=True)
class Series:
    """The results of one call: of a run's snapshots, or of a model."""

    run: Path
    evaluations: list[dict[str, Any]]
    """`Evaluation.to_json()` and `provenance` (docs/evaluation.md) in order of steps; step 0 is the untrained model."""
    measured: list[int]  # steps measured now
    already_there: list[int]  # steps measured before with the same settings
    errors: dict[int, str]  # steps that could not be measured, and why
    untrained: str | None  # why there is no step 0; None if there is one

    def to_json(self) -> dict[str, Any]:
        """Return the newest result, and `series` with all of them."""
        return {**self.evaluations[-1], "series": {**asdict(self), "run": str(self.run)}}


def evaluate_run_or_model(
    source: str,
    problems_file: Path | None = None,
    *,
    columns: Mapping[str, str] | None = None,
    samples: int | None = None,
    limit: int | None = None,
    step: int | None = None,
    every: bool = False,
    start: StartingPoint = UNKNOWN,
    engine: str = "auto",
    again: bool = False,
    console: Console | None = None,
    task: str = DEFAULT_TASK,
) -> Series:
    """Evaluate a model, or a run's snapshots that have no result with these settings yet.

    The arguments are the options of the command; a run has its own `task`, and `columns` if they are None. With
    `every`, in order of interest: the untrained model (`start`), the newest snapshot, then the others from the newest
    to the oldest; else the snapshot of `step` (None: the newest).
    Each result of a run is written as soon as it is there, so the next call resumes after any stop.

    Raises:
        KitError: nothing there to evaluate, a problem is wrong, or none of it could be measured.
    """
    run = RunDir(Path(source))
    is_run = run.is_run()
    if is_run:
        targets = sources.run_sources(run, problems_file, columns or {})
    else:
        targets = [sources.model_source(source, problems_file, step, find_task(task), columns or {})]
    before = sources.untrained_source(targets[0], start) if is_run else None
    if step == 0 and before is None:
        raise KitError(start.description)
    problems = sources.read_problems(targets[0], limit)
    targets = _with_samples([*([before] if before else []), *targets], problems, samples)
    wanted = targets if every else [sources.find_step(targets, step)]
    with closing(Engines(engine, problems)) as engines:
        measurer = Measurer(problems, engines, console or progress_console(), again, source)
        there = {target.step or 0: found for target in wanted if (found := measurer.find(target))}
        todo = [target for target in wanted if (target.step or 0) not in there]
        if there:
            steps = ", ".join(map(str, sorted(there)))
            measurer.print(
                f"measured already with the same settings: steps {steps}; {len(todo) or 'nothing'} to do "
                "(--again measures again)"
            )
        if todo and is_run:
            refuse_unwritable(run)
        measured, errors = _measure_all(measurer, todo, there, every)
    results = {**there, **measured}
    if errors and not results:
        raise KitError("\n".join(errors.values()))
    untrained = None if before and 0 not in errors else errors.pop(0, start.description)
    if before and (step_0 := targets[0].read_same_result(problems)):
        _add_untrained(results, step_0)
    ordered = [results[step] for step in sorted(results)]
    return Series(run.path, ordered, sorted(measured), sorted(there), errors, untrained)


def _with_samples(targets: Sequence[Source], problems: Problems, samples: int | None) -> list[Source]:
    """Set the samples; by default the most that one was measured with: fewer would replace a result that cost more."""
    if samples is None:
        before = [(target.read_result(problems) or {}).get("samples") for target in targets]
        samples = max((n for n in before if type(n) is int and 0 < n <= MOST_SAMPLES), default=None)
    return [replace(target, samples=samples or target.samples) for target in targets]


def _measure_all(
    measurer: Measurer, todo: Sequence[Source], there: dict[int, dict[str, Any]], every: bool
) -> tuple[dict[int, dict[str, Any]], dict[int, str]]:
    """Return the results measured here, and why others are missing; add what another process measured to `there`."""
    measured: dict[int, dict[str, Any]] = {}
    errors: dict[int, str] = {}
    # First what no other process is measuring, then what another had claimed.
    queue = [(number, target, not every) for number, target in enumerate(todo, start=1)]
    while queue:
        number, target, wait = queue.pop(0)
        step = target.step or 0
        title = f"step {step} ({number} of {len(todo)}): completions" if every else "completions"
        try:
            result, ours = measurer.measure(target, title, wait=wait, steps_after=len(queue))
        except KitError as error:
            if error.exit_code == ExitCode.RETRY or not every:
                raise
            errors[step] = error.message
            measurer.print(f"step {step} is left out: {error.message}")
            continue
        if result is None:
            queue.append((number, target, True))
        else:
            (measured if ours else there)[step] = result
    return measured, errors


def _add_untrained(results: dict[int, dict[str, Any]], step_0: dict[str, Any]) -> None:
    """Add the untrained model's figures to the baselines."""
    figures = {key: value for key, value in step_0.items() if key not in NOT_REPEATED}
    for step, result in results.items():
        baselines = result.get("baselines")
        if step and isinstance(baselines, dict) and baselines.get("untrained") != figures:
            baselines["untrained"] = figures
            write_json(Path(result["provenance"]["written_to"]), result)
