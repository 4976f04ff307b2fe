"""`mini-r1 evaluate`: a run's snapshots, or any model, on a set of problems; what is written."""

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
from mini_r1.evaluation.claims import refuse_unwritable
from mini_r1.evaluation.evaluate import refuse_numbers
from mini_r1.evaluation.measuring import Work, measure_once, same_before, step_of
from mini_r1.evaluation.source import Source, Wish
from mini_r1.generation.starting_point import StartingPoint
from mini_r1.run.files import write_json
from mini_r1.run.run_dir import RunDir

UNTRAINED_FIGURES = (
    "sampled", "ci95", "greedy", "greedy_ci95", "pass_at_k", "by_size", "by_operators", "format", "tries",
    "completion_tokens", "truncated",
)  # fmt: skip
"""What a snapshot's result repeats of step 0's."""


@dataclass(frozen=True, slots=True)
class Series:
    """What came of evaluating a run's snapshots.

    Args:
        results: of every step that has one now, in order of steps; step 0 is the untrained model.
        measured: steps measured now.
        there: steps that were measured before with the same settings.
        faults: steps that could not be measured, and why.
        untrained: why there is no step 0; None if there is one.
    """

    run: Path
    results: list[dict[str, Any]]
    measured: list[int]
    there: list[int]
    faults: dict[int, str]
    untrained: str | None

    def to_json(self) -> dict[str, Any]:
        """For --json: the newest result, as of one snapshot alone, and `series` with all of them."""
        series = {
            "run": str(self.run),
            "measured": self.measured,
            "already_there": self.there,
            "faults": {str(step): words for step, words in self.faults.items()},
            "untrained": self.untrained,
            "evaluations": self.results,
        }
        return {**self.results[-1], "series": series}


def evaluate_run_or_model(
    source: str,
    problems_file: Path | None = None,
    samples: int | None = None,
    *,
    limit: int | None = None,
    step: int | None = None,
    prompt_style: str | None = None,
    temperature: float | None = None,
    max_new_tokens: int | None = None,
    seed: int | None = None,
    engine: str = "auto",
    again: bool = False,
    start: StartingPoint | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Evaluate one snapshot of a run, or a model; of a run, also write `evaluation/step-N.json` and its completions.

    A snapshot that was measured before with the same settings is not measured again.

    Args:
        source: a run directory, a model directory or a hub id.
        problems_file: None is the run's held-out part.
        samples: sampled completions for each problem; None: as many as the run was measured with before, else 4.
        limit: take this many problems of a seeded shuffle.
        step: which snapshot; None is the newest complete one; 0 is the untrained model.
        prompt_style: this and what follows: None is the run's recipe, else the original's: script prompt, 0.9,
            1,024 tokens and seed 42.
        temperature: of the sampled completions.
        max_new_tokens: longest completion.
        seed: of the sampling.
        engine: `auto` (vLLM where there is a GPU and it is installed), `vllm` or `transformers`.
        again: measure also what is measured already.
        start: what the run began with, for step 0.
        console: for progress; None is standard error.

    Returns:
        `Evaluation.to_json()`, and `provenance`: `source`, `model` (see `generation.model.describe`),
        `step` and `snapshot` (of a run), `problems_file`, `problems_sha256`, `problems_in_file`, `limit`, `selection`
        (how the limited ones were chosen, in words), `prompt_style`, `max_new_tokens`, `seed`, `engine`, `settings`
        (all that the figures depend on besides the machine), `device`, `versions`, `date` (UTC), `written_to`. Of a run
        whose step 0 is measured with the same settings `baselines` has `untrained` too.

    Raises:
        KitError: nothing there to evaluate, or an argument is out of range.
        DataError: the problems are wrong.
    """
    wish = Wish(samples, limit, prompt_style, temperature, max_new_tokens, seed)
    wish.check()
    run = RunDir(Path(source).expanduser())
    before: Source | None = None
    snapshots: list[Source] = []
    if run.is_run():
        snapshots = sources.of_run(run, problems_file, wish)
        before = sources.untrained(snapshots[0], start) if start else None
        if step == 0:
            if before is None:
                raise KitError(start.words if start else "the untrained model of this run is not known")
            chosen = before
        else:
            chosen = sources.at_step(snapshots, step)
    else:
        chosen = sources.of_model(source, problems_file, step, wish)
    refuse_numbers(chosen.samples, chosen.temperature, chosen.max_new_tokens)
    problems = sources.read_problems(chosen, limit)
    if samples is None:
        n = sources.samples_before([*snapshots, *([before] if before else [])], problems) or chosen.samples
        chosen = replace(chosen, samples=n)
        before = replace(before, samples=n) if before else None
    with Engines(engine, problems, any(one.is_adapter for one in [chosen, *snapshots])) as engines:
        work = Work(problems, engines, console or progress_console(), again, source)
        work.say_what_was_trained_on()
        found = None if again else same_before(work, chosen)
        if found is None:
            if run.is_run():
                refuse_unwritable(run)
            found, _ = measure_once(work, chosen, "completions", wait=True)
        else:
            work.say(
                f"{found['provenance']['written_to']} has it already, with the same settings: --again measures anew"
            )
    assert found is not None
    if before is not None and chosen.step:
        _with_untrained(work, [found], same_before(work, before))
    return found


def evaluate_run(
    run: RunDir,
    problems_file: Path | None,
    wish: Wish,
    start: StartingPoint,
    *,
    engine: str = "auto",
    again: bool = False,
    console: Console | None = None,
) -> Series:
    """Evaluate the untrained model and every complete snapshot of a run, as far as that is not done yet.

    In the order in which one wants to see them: the untrained model, the newest snapshot, then the others from the
    newest to the oldest. Each result is written when it is there, so that whatever ends this, the next call goes on.

    Args:
        run: the run directory.
        problems_file: None is the run's held-out part.
        wish: how to measure.
        start: what the run began with.
        engine: see `evaluate_run_or_model`.
        again: measure also what is measured already.
        console: for progress; None is standard error.

    Raises:
        KitError: nothing there to evaluate, an argument is out of range, or none of it could be measured.
        DataError: the problems are wrong.
    """
    wish.check()
    snapshots = sources.of_run(run, problems_file, wish)
    refuse_numbers(snapshots[0].samples, snapshots[0].temperature, snapshots[0].max_new_tokens)
    problems = sources.read_problems(snapshots[0], wish.limit)
    before = sources.untrained(snapshots[0], start)
    targets = [*([before] if before else []), *snapshots]
    if wish.samples is None:
        n = sources.samples_before(targets, problems) or snapshots[0].samples
        targets = [replace(target, samples=n) for target in targets]
    with Engines(engine, problems, any(target.is_adapter for target in targets)) as engines:
        work = Work(problems, engines, console or progress_console(), again, str(run.path))
        work.say_what_was_trained_on()
        there = {} if again else {step_of(target): found for target in targets if (found := same_before(work, target))}
        todo = [target for target in targets if step_of(target) not in there]
        _say_what_is_done(work, list(there), todo)
        if todo:
            refuse_unwritable(run)
        measured, faults = _measure_all(work, todo, there)
    results = {**there, **measured}
    if faults and not results:
        raise KitError("\n".join(faults.values()))
    why = None if before and 0 not in faults else faults.pop(0, start.words)
    _with_untrained(work, [result for step, result in results.items() if step], results.get(0))
    ordered = [results[step] for step in sorted(results)]
    return Series(run.path, ordered, sorted(measured), sorted(there), faults, why)


def _say_what_is_done(work: Work, there: Sequence[int], todo: Sequence[Source]) -> None:
    if there and todo:
        steps = ", ".join(map(str, sorted(there)))
        work.say(f"measured before with the same settings: steps {steps}; {len(todo)} to do")
    elif there:
        work.say("every snapshot is measured already with these settings: nothing to do (--again measures anew)")


def _measure_all(
    work: Work, todo: Sequence[Source], there: dict[int, dict[str, Any]]
) -> tuple[dict[int, dict[str, Any]], dict[int, str]]:
    """What could be measured, and what could not and why; what another process measured goes into `there`."""
    measured: dict[int, dict[str, Any]] = {}
    faults: dict[int, str] = {}
    # First what nobody is at, then what another process had claimed.
    queue = [(number, target, False) for number, target in enumerate(todo, start=1)]
    while queue:
        number, target, wait = queue.pop(0)
        step = step_of(target)
        title = f"step {step} ({number} of {len(todo)}): completions"
        try:
            result, ours = measure_once(work, target, title, wait=wait, steps_after=len(queue))
        except KitError as error:
            if error.exit_code == ExitCode.RETRY:
                raise
            faults[step] = error.message
            work.say(f"step {step} is left out: {error.message}")
            continue
        if result is None:
            queue.append((number, target, True))
        else:
            (measured if ours else there)[step] = result
    return measured, faults


def _with_untrained(work: Work, results: list[dict[str, Any]], step_0: dict[str, Any] | None) -> None:
    """Put the untrained model's figures among the baselines, where they are measured in the same way."""
    if step_0 is None:
        return
    figures = {key: step_0[key] for key in UNTRAINED_FIGURES if key in step_0}
    for result in results:
        baselines = result.get("baselines")
        if isinstance(baselines, dict) and baselines.get("untrained") != figures:
            baselines["untrained"] = figures
            write_json(Path(result["provenance"]["written_to"]), result)
