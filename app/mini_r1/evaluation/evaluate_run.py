"""`mini-r1 evaluate`: measure a run's snapshots, or any model, on a set of problems."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from mini_r1.console import progress_console
from mini_r1.errors import ExitCode, KitError
from mini_r1.evaluation import source as sources
from mini_r1.evaluation.answer_engines import Engines
from mini_r1.evaluation.measuring import Measurer, refuse_unwritable
from mini_r1.evaluation.source import MeasuringOptions, Problems, Source
from mini_r1.generation.model import StartingPoint
from mini_r1.run.files import write_json
from mini_r1.run.run_dir import RunDir

UNTRAINED_FIGURES = (
    "sampled", "ci95", "greedy", "greedy_ci95", "pass_at_k", "by_size", "by_operators", "format", "tries",
    "completion_tokens", "truncated",
)  # fmt: skip
"""Figures of step 0 that a snapshot's result repeats."""


@dataclass(frozen=True, slots=True)
class Series:
    """The results of a run's snapshots."""

    run: Path
    results: list[dict[str, Any]]
    """In order of steps; step 0 is the untrained model."""
    measured: list[int]
    """Steps measured now."""
    there: list[int]
    """Steps measured before with the same settings."""
    errors: dict[int, str]
    """Steps that could not be measured, and why."""
    untrained: str | None
    """Why there is no step 0; None if there is one."""

    def to_json(self) -> dict[str, Any]:
        """Return the newest result, and `series` with all of them."""
        series = {
            "run": str(self.run),
            "measured": self.measured,
            "already_there": self.there,
            "errors": {str(step): text for step, text in self.errors.items()},
            "untrained": self.untrained,
            "evaluations": self.results,
        }
        return {**self.results[-1], "series": series}


def evaluate_run_or_model(
    source: str,
    problems_file: Path | None = None,
    options: MeasuringOptions | None = None,
    *,
    step: int | None = None,
    engine: str = "auto",
    again: bool = False,
    start: StartingPoint | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Evaluate one snapshot of a run, or a model; for a run, also write `evaluation/step-N.json` and its completions.

    A snapshot that was measured before with the same settings is not measured again.

    Args:
        source: a run directory, a model directory or a hub id.
        problems_file: None is the run's held-out part.
        options: how to measure.
        step: which snapshot; None is the newest complete one; 0 is the untrained model.
        engine: `auto` (vLLM if there is a GPU and it is installed), `vllm` or `transformers`.
        again: repeat what is measured already.
        start: what the run began with, for step 0.
        console: for progress; None is standard error.

    Returns:
        `Evaluation.to_json()`, and `provenance`: see docs/evaluation.md. For a run whose step 0 is measured with the
        same settings, `baselines` has `untrained` too.

    Raises:
        KitError: nothing there to evaluate, or an argument is out of range.
        DataError: the problems are wrong.
    """
    options = options or MeasuringOptions()
    options.check()
    run = RunDir(Path(source).expanduser())
    before: Source | None = None
    snapshots: list[Source] = []
    if run.is_run():
        snapshots = sources.run_sources(run, problems_file, options)
        before = sources.untrained_source(snapshots[0], start) if start else None
        if step != 0:
            chosen = sources.find_step(snapshots, step)
        elif before is not None:
            chosen = before
        else:
            raise KitError(start.words if start else "the untrained model of this run is not known")
    else:
        chosen = sources.model_source(source, problems_file, step, options)
    problems = sources.read_problems(chosen, options.limit)
    targets = [chosen, *([before] if before else []), *snapshots]
    chosen, *others = _with_samples_of_before(targets, problems, options)
    with Engines(engine, problems, any(target.is_adapter for target in [chosen, *snapshots])) as engines:
        measurer = Measurer(problems, engines, console or progress_console(), again, source)
        found = measurer.find(chosen)
        if found is None:
            if run.is_run():
                refuse_unwritable(run)
            found, _ = measurer.measure(chosen, "completions", wait=True)
        else:
            path = found["provenance"]["written_to"]
            measurer.print(f"{path} has it already, with the same settings: --again measures it again")
    assert found is not None
    if before is not None and chosen.step:
        _add_untrained([found], others[0].read_same_result(problems))
    return found


def evaluate_run(
    run: RunDir,
    problems_file: Path | None,
    options: MeasuringOptions,
    start: StartingPoint,
    *,
    engine: str = "auto",
    again: bool = False,
    console: Console | None = None,
) -> Series:
    """Evaluate the untrained model and every complete snapshot of a run that has no result with these settings yet.

    In order of interest: the untrained model, the newest snapshot, then the others from the newest to the oldest. Each
    result is written as soon as it is there, so the next call resumes after any stop.

    The arguments are those of `evaluate_run_or_model`.

    Raises:
        KitError: nothing there to evaluate, an argument is out of range, or none of it could be measured.
        DataError: the problems are wrong.
    """
    options.check()
    snapshots = sources.run_sources(run, problems_file, options)
    problems = sources.read_problems(snapshots[0], options.limit)
    before = sources.untrained_source(snapshots[0], start)
    targets = _with_samples_of_before([*([before] if before else []), *snapshots], problems, options)
    with Engines(engine, problems, any(target.is_adapter for target in targets)) as engines:
        measurer = Measurer(problems, engines, console or progress_console(), again, str(run.path))
        there = {target.step or 0: found for target in targets if (found := measurer.find(target))}
        todo = [target for target in targets if (target.step or 0) not in there]
        if not todo:
            measurer.print(
                "every snapshot is measured already with these settings: nothing to do (--again measures again)"
            )
        elif there:
            steps = ", ".join(map(str, sorted(there)))
            measurer.print(f"measured before with the same settings: steps {steps}; {len(todo)} to do")
        if todo:
            refuse_unwritable(run)
        measured, errors = _measure_all(measurer, todo, there)
    results = {**there, **measured}
    if errors and not results:
        raise KitError("\n".join(errors.values()))
    untrained = None if before and 0 not in errors else errors.pop(0, start.words)
    _add_untrained([result for step, result in results.items() if step], results.get(0))
    ordered = [results[step] for step in sorted(results)]
    return Series(run.path, ordered, sorted(measured), sorted(there), errors, untrained)


def _with_samples_of_before(targets: Sequence[Source], problems: Problems, options: MeasuringOptions) -> list[Source]:
    """Take the most samples that one was measured with, by default: fewer would replace a result that cost more."""
    if options.samples is not None:
        return list(targets)
    before = [(target.read_result(problems) or {}).get("samples") for target in targets]
    samples = max((n for n in before if type(n) is int and 0 < n <= sources.MOST_SAMPLES), default=None)
    return [replace(target, samples=samples or target.samples) for target in targets]


def _measure_all(
    measurer: Measurer, todo: Sequence[Source], there: dict[int, dict[str, Any]]
) -> tuple[dict[int, dict[str, Any]], dict[int, str]]:
    """Return the results measured here, and why others are missing; add what another process measured to `there`."""
    measured: dict[int, dict[str, Any]] = {}
    errors: dict[int, str] = {}
    # First what no other process is measuring, then what another had claimed.
    queue = [(number, target, False) for number, target in enumerate(todo, start=1)]
    while queue:
        number, target, wait = queue.pop(0)
        step = target.step or 0
        title = f"step {step} ({number} of {len(todo)}): completions"
        try:
            result, ours = measurer.measure(target, title, wait=wait, steps_after=len(queue))
        except KitError as error:
            if error.exit_code == ExitCode.RETRY:
                raise
            errors[step] = error.message
            measurer.print(f"step {step} is left out: {error.message}")
            continue
        if result is None:
            queue.append((number, target, True))
        else:
            (measured if ours else there)[step] = result
    return measured, errors


def _add_untrained(results: list[dict[str, Any]], step_0: dict[str, Any] | None) -> None:
    """Add the untrained model's figures to the baselines."""
    if step_0 is None:
        return
    figures = {key: step_0[key] for key in UNTRAINED_FIGURES if key in step_0}
    for result in results:
        baselines = result.get("baselines")
        if isinstance(baselines, dict) and baselines.get("untrained") != figures:
            baselines["untrained"] = figures
            write_json(Path(result["provenance"]["written_to"]), result)
