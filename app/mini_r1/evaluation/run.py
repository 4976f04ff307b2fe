"""`mini-r1 evaluate`: a run's snapshots, or any model, on a set of problems; what is written."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import mini_r1
from mini_r1.console import ProgressLine, printable, progress_console
from mini_r1.errors import ExitCode, KitError
from mini_r1.evaluation import source as sources
from mini_r1.evaluation.engines import Engines
from mini_r1.evaluation.evaluate import measure, refuse_numbers
from mini_r1.evaluation.source import Problems, Source, Wish
from mini_r1.generation.completers import Completer
from mini_r1.generation.model import device
from mini_r1.generation.starting_point import StartingPoint
from mini_r1.provenance import utc_now, versions
from mini_r1.rundir import RunDir, completions_of, write_json, write_jsonl

RECORDED_VERSIONS = ("torch", "transformers", "tokenizers", "numpy", "vllm")
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


@dataclass(slots=True)
class _Work:
    """One call's settings."""

    problems: Problems
    engines: Engines
    console: Console
    again: bool

    def say(self, line: str) -> None:
        self.console.print(printable(line), markup=False)


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
        prompt_style: this and what follows: None is the run's recipe, else the seed's script prompt, temperature 0.9,
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
        work = _Work(problems, engines, console or progress_console(), again)
        found = None if again else _same(work, chosen)
        if found is None:
            found = _measured(work, chosen, source, "completions")
        else:
            work.say(
                f"{found['provenance']['written_to']} has it already, with the same settings: --again measures anew"
            )
    if before is not None and chosen.step:
        _with_untrained(work, [found], _same(work, before))
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
        work = _Work(problems, engines, console or progress_console(), again)
        there = {} if again else {_step(target): found for target in targets if (found := _same(work, target))}
        todo = [target for target in targets if _step(target) not in there]
        _say_what_is_done(work, list(there), todo)
        measured: dict[int, dict[str, Any]] = {}
        faults: dict[int, str] = {}
        for number, target in enumerate(todo, start=1):
            step = _step(target)
            title = f"step {step} ({number} of {len(todo)}): completions"
            try:
                measured[step] = _measured(work, target, str(run.path), title)
            except KitError as error:
                if error.exit_code == ExitCode.RETRY:
                    raise
                faults[step] = error.message
                work.say(f"step {step} is left out: {error.message}")
    results = {**there, **measured}
    if faults and not results:
        raise KitError("\n".join(faults.values()))
    why = None if before and 0 not in faults else faults.pop(0, start.words)
    _with_untrained(work, [result for step, result in results.items() if step], results.get(0))
    ordered = [results[step] for step in sorted(results)]
    return Series(run.path, ordered, sorted(measured), sorted(there), faults, why)


def _say_what_is_done(work: _Work, there: Sequence[int], todo: Sequence[Source]) -> None:
    if there and todo:
        steps = ", ".join(map(str, sorted(there)))
        work.say(f"measured before with the same settings: steps {steps}; {len(todo)} to do")
    elif there:
        work.say("every snapshot is measured already with these settings: nothing to do (--again measures anew)")


def _measured(work: _Work, chosen: Source, source: str, title: str) -> dict[str, Any]:
    """Measure and, of a run, write."""
    chosen.verify()
    path = sources.result_file(chosen, work.problems)
    _say_what_differs(work, chosen, path)
    completer = work.engines.of(chosen, work.say)
    problems = work.problems.asked
    with ProgressLine(work.console, title, len(problems) * (1 + chosen.samples)) as line:
        evaluation = measure(
            completer,
            problems,
            samples=chosen.samples,
            temperature=chosen.temperature,
            max_new_tokens=chosen.max_new_tokens,
            prompt_style=chosen.style,
            seed=chosen.seed,
            on_progress=line.update,
        )
    result = {**evaluation.to_json(chosen.game), "provenance": _provenance(chosen, work.problems, completer, source)}
    if path is not None:
        result["provenance"]["written_to"] = str(path)
        path.parent.mkdir(exist_ok=True)
        write_jsonl(completions_of(path), evaluation.rows(_step(chosen)))
        write_json(path, result)  # last: with it the step counts as measured
    return result


def _provenance(chosen: Source, problems: Problems, completer: Completer, source: str) -> dict[str, Any]:
    where = device()
    return {
        "source": source,
        "model": completer.facts,
        "step": chosen.step,
        "snapshot": str(chosen.saved.path) if chosen.saved else None,
        "problems_file": str(chosen.problems_file),
        "problems_sha256": problems.sha256,
        "problems_in_file": problems.available,
        "limit": problems.limit,
        "selection": problems.words,
        "prompt_style": chosen.style,
        "max_new_tokens": chosen.max_new_tokens,
        "seed": chosen.seed,
        "engine": completer.name,
        "settings": sources.settings(chosen, problems),
        "device": torch.cuda.get_device_name(where) if where.type == "cuda" else f"cpu x {os.cpu_count()}",
        "versions": {
            "mini-r1": mini_r1.__version__,
            "python": platform.python_version(),
            **versions(RECORDED_VERSIONS),
        },
        "date": utc_now(),
        "written_to": None,
    }


def _same(work: _Work, chosen: Source) -> dict[str, Any] | None:
    """The result of these very weights, problems and settings, if it is written already."""
    path = sources.result_file(chosen, work.problems)
    found = sources.read_result(path)
    if found is None or found["provenance"].get("settings") != sources.settings(chosen, work.problems):
        return None
    found["provenance"]["written_to"] = str(path)  # where it is now: a run may have been moved
    return found


def _say_what_differs(work: _Work, chosen: Source, path: Path | None) -> None:
    """Before a result is replaced: by what it was another."""
    before = sources.read_result(path)
    if before is None or path is None or work.again:
        return
    now, then = sources.settings(chosen, work.problems), before["provenance"].get("settings")
    if not isinstance(then, dict):
        work.say(f"{path} is of an earlier version of the kit: measured again")
        return
    changed = [key.replace("_", " ") for key in now if now[key] != then.get(key)]
    if changed:
        work.say(f"{path} was measured with other settings ({', '.join(changed)}): measured again")


def _with_untrained(work: _Work, results: list[dict[str, Any]], step_0: dict[str, Any] | None) -> None:
    """Put the untrained model's figures among the baselines, where they are measured in the same way."""
    if step_0 is None:
        return
    figures = {key: step_0[key] for key in UNTRAINED_FIGURES if key in step_0}
    for result in results:
        baselines = result.get("baselines")
        if isinstance(baselines, dict) and baselines.get("untrained") != figures:
            baselines["untrained"] = figures
            write_json(Path(result["provenance"]["written_to"]), result)


def _step(source: Source) -> int:
    return source.step or 0
