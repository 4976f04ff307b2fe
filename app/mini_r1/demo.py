"""`mini-r1 demo`: held-out success before, GRPO on the kit's own path, held-out success after."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from mini_r1.commands import say_interrupted
from mini_r1.console import ProgressLine, printable, progress_console
from mini_r1.countdown.task import Problem, random_success, tries
from mini_r1.errors import ExitCode, KitError, Stopped
from mini_r1.heavy_imports import needs_extra
from mini_r1.recipe import DEMO_MODEL, Recipe
from mini_r1.recipe_file import effective_output_dir, find_recipe, load_recipe
from mini_r1.rundir import RunDir

if TYPE_CHECKING:
    from mini_r1.evaluation.evaluate import Evaluation

RECIPE = "demo-cpu"
SAMPLES = 4
"""Sampled completions for each held-out problem."""
BATCH_ROWS = 1024
"""Sequences decoded at once: 125 MB of keys and values with this small model."""
SHOWN = 3
"""Problems whose completions are printed."""
QUICK = (
    "max_steps=2",
    "warmup_steps=0",
    "gradient_accumulation_steps=1",
    "warm_start.steps=60",
    "warm_start.min_accuracy=0",
    "dataset_rows=600",
)

WHAT_IT_SHOWS = """\
What this shows: the training path of the big run - prompt, rewards, rollout,
GRPO, checkpoints - raises success on problems the model never saw. The model
was taught to try things and to give up early, and learned by itself to keep
searching: tries per answer go up. That is the 'aha moment' in miniature.
What it does not show: reasoning. Its arithmetic is memorised, its search is
random: compare it with the random solver that never repeats itself and makes
as many tries. A false '(yes)' costs nothing, and may become more frequent."""


def demo(overrides: Sequence[str], run_dir: Path | None, *, quick: bool, as_json: bool) -> ExitCode:
    """Run the demo.

    Args:
        overrides: `key=value` for the recipe.
        run_dir: where; default is the recipe's.
        quick: two small steps: shows the path, not the rise.
        as_json: end with one JSON object on standard output.

    Raises:
        KitError: as `train` does.
    """
    path = find_recipe(RECIPE)
    recipe = load_recipe(path, [*(QUICK if quick else ()), *overrides])
    if recipe.model_name_or_path != DEMO_MODEL:
        raise KitError(f"the demo is about its own model, {DEMO_MODEL}: for another one use `mini-r1 train`")
    stem = path.with_stem(f"{RECIPE}-quick") if quick else path
    run = RunDir(run_dir or effective_output_dir(recipe, stem))
    console = progress_console()
    with needs_extra("train", console=console):
        from mini_r1.generation.model import load_model, load_tokenizer
        from mini_r1.training import prepare
        from mini_r1.training.run import train as run_training
        from mini_r1.training.signals import StopRequest
        from mini_r1.training.supervised import Supervisor
        from mini_r1.training.warm_start import making, of_recipe

    with StopRequest(Supervisor(None, 0)) as stop:
        data = prepare.load_task_data(recipe, None, console, stop.on_any_rank)
        held_out = list({p.key: p for p in data.held_out}.values())  # the same problem in another order counts once
        prepare.tune_machine(recipe)
        start = Path(prepare.model_source(recipe, data, console, stop.on_any_rank))
        tokenizer = load_tokenizer(str(start), None)
        before = _measure(
            load_model(str(start), None, None, None), tokenizer, held_out, recipe, console, "before", stop.on_any_rank
        )

    outcome = run_training(recipe, run, sys.argv, console, data)
    if outcome.exit_code != ExitCode.FINISHED:
        say_interrupted(console, outcome.step)
        return outcome.exit_code

    snapshot = run.complete_snapshots()[0].path
    trained = load_model(str(snapshot), None, "float32", None)
    with StopRequest(Supervisor(None, 0)) as stop:
        after = _measure(trained, tokenizer, held_out, recipe, console, "after", stop.on_any_rank)
    limit = of_recipe(recipe, ()).model.demonstrator.largest_value
    result = {
        "before": {**_figures(before), "random_solver": random_success(_tries(before), limit, recipe.seed)},
        "after": {**_figures(after), "random_solver": random_success(_tries(after), limit, recipe.seed)},
        "problems": len(held_out),
        "seconds_warm_start": making(start).get("seconds"),
        "seconds_grpo": round(seconds_of_steps(run), 1),
        "run_dir": str(run.path),
    }
    if as_json:
        print(json.dumps(result))
    else:
        _show(result, before, after)
    return ExitCode.FINISHED


def seconds_of_steps(run: RunDir) -> float:
    """Seconds in optimizer steps over all attempts: rollout, score, update and save."""
    phases = ("time/rollout", "time/score", "time/update", "time/save")
    seconds, before = 0.0, 0
    for row in run.metrics():  # a row is the mean over the steps since the one before it
        seconds += (row["step"] - before) * sum(row.get(phase, 0.0) for phase in phases)
        before = row["step"]
    return seconds


def _measure(
    model: Any,
    tokenizer: Any,
    problems: Sequence[Problem],
    recipe: Recipe,
    console: Console,
    when: str,
    stop: Callable[[], bool],
) -> Evaluation:
    from mini_r1.evaluation.evaluate import evaluate

    def measured(done: int) -> None:
        if stop():
            raise Stopped(f"stopped while the model was measured {when} training: the same command measures it again")
        line.update(done)

    with ProgressLine(console, f"held-out problems, {when} training", len(problems) * (SAMPLES + 1)) as line:
        return evaluate(
            model,
            tokenizer,
            problems,
            samples=SAMPLES,
            temperature=recipe.temperature,
            max_new_tokens=recipe.max_completion_length,
            prompt_style=recipe.prompt_style,
            seed=recipe.seed,
            on_progress=measured,
            batch_rows=BATCH_ROWS,
        )


def _figures(evaluation: Evaluation) -> dict[str, Any]:
    facts = evaluation.to_json()
    keys = ("sampled", "greedy", "ci95", "tries", "format", "truncated", "completion_tokens")
    return {key: facts[key] for key in keys}


def _tries(evaluation: Evaluation) -> list[tuple[Problem, int]]:
    """Problem and number of tries of every sampled completion."""
    return [(answer.problem, tries(answer.text)) for answers in evaluation.sampled for answer in answers]


def _show(result: dict[str, Any], first: Evaluation, second: Evaluation) -> None:
    console = Console(highlight=False)
    table = Table("", "before", "after", title=f"{result['problems']} held-out problems", title_justify="left")
    before, after = result["before"], result["after"]
    interval = "{0[0]:.1%} - {0[1]:.1%}"
    for label, key, form in (
        ("success, sampled", "sampled", "{:.1%}"),
        ("  95 % interval", "ci95", interval),
        ("success, greedy", "greedy", "{:.1%}"),
        ("random solver, as many tries", "random_solver", "{:.1%}"),
        ("format right", "format", "{:.1%}"),
        ("tries per answer", "tries", "{:.2f}"),
        ("tokens per completion", "completion_tokens", "{:.1f}"),
    ):
        table.add_row(label, form.format(before[key]), form.format(after[key]))
    console.print(table)
    for pair in list(zip(first.sampled, second.sampled, strict=True))[:SHOWN]:
        problem = pair[0][0].problem
        console.print(f"\n[bold]{list(problem.nums)} -> {problem.target}[/bold]", markup=True)
        for when, answers in zip(("before", "after"), pair, strict=True):
            console.print(f"[dim]{when}:[/dim]", markup=True)
            console.print("<think>" + printable(answers[0].text), markup=False)
            console.print(f"-> {printable(answers[0].verdict.reason)}", style="dim", markup=False)
    console.print(
        f"\nwarm start {result['seconds_warm_start']:.0f} s (cached from now on), GRPO {result['seconds_grpo']:.0f} s\n"
        f"run directory: {result['run_dir']}\ncurves: tensorboard --logdir {result['run_dir']}/tensorboard\n",
        markup=False,
        soft_wrap=True,  # a path or a command is copied whole
    )
    console.print(WHAT_IT_SHOWS, style="dim", markup=False)
