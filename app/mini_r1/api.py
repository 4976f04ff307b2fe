"""The Python API: the functions that the commands call, for scripts and notebooks (docs/api.md).

torch is imported by `train` and `evaluate` when they are called, and not before.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from mini_r1.console import printable, progress_console
from mini_r1.errors import ExitCode
from mini_r1.machine.heavy_imports import needs_extra
from mini_r1.machine.trackers import refuse_trackers
from mini_r1.recipe import recipe_file
from mini_r1.recipe.deepspeed_file import DeepSpeedFile
from mini_r1.recipe.fields import GENERATED, Recipe
from mini_r1.recipe.named_files import check_code
from mini_r1.run.finished import Outcome, describe_interrupted, finished_step_before_loading, print_finished
from mini_r1.run.run_dir import RunDir
from mini_r1.tasks.registry import DEFAULT_TASK

if TYPE_CHECKING:
    from mini_r1.evaluation.evaluate_run import Series
    from mini_r1.tasks.task_data import TaskData

StrPath = str | os.PathLike[str]


def load_recipe(recipe: StrPath, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        recipe: name of a shipped recipe such as `demo-cpu`, or path of a YAML file.
        overrides: `key=value` texts as for `--set`, the value in YAML; a later one wins.

    Returns:
        The validated recipe; its attributes are the keys of docs/recipe.md.

    Raises:
        RecipeError: there is no such recipe, or it is wrong; one line for each error, with its place.
    """
    return recipe_file.load_recipe(recipe_file.find_recipe(os.fspath(recipe)), overrides)


def load_data(recipe: Recipe) -> TaskData[Any]:
    """Load a recipe's problems and split them, without torch; the same recipe gives the same split everywhere.

    Returns:
        `train` and `held_out`, lists of the task's problems (Countdown: `nums`, a tuple of 1 to 8 ints, and `target`,
        an int), and `provenance`, what a run records about its data.

    Raises:
        DataError: the source does not exist or can't be read, or a row is wrong; names the place.
        KitError: the hub is down, and its cache doesn't hold the data.
    """
    from mini_r1.training.recipe_data import load_task_data

    return load_task_data(recipe)


def score(row: Mapping[str, Any], place: str = "row") -> dict[str, float | str]:
    """Judge one completion, as a line of `mini-r1 score`.

    Args:
        row: `completion` (str, the text after the prompt's `<think>`), the columns of the task (Countdown: `nums`,
            ints, and `target`, int) and `task`, if it is not `countdown`; other keys are ignored.
        place: name of the row in an error.

    Returns:
        Each reward that every verdict has, 0 or 1 (Countdown: `format`, `equation`, `format_original`,
        `equation_original`), and `reason`: `correct`, or what is wrong.

    Raises:
        DataError: the row is none of these.
    """
    from mini_r1.tasks.registry import score_row

    return score_row(row, place)


def train(
    recipe: Recipe,
    run_dir: StrPath,
    *,
    deepspeed: DeepSpeedFile | None = None,
    console: Console | None = None,
    join: Callable[[RunDir], None] | None = None,
) -> Outcome:
    """Train a recipe in this process, or resume it from the last checkpoint in its run directory.

    Blocks until the run is finished or asked to stop (SIGTERM, SIGINT, SIGUSR1). Call it from the main thread, which
    handles the signals.

    Args:
        recipe: from `load_recipe`.
        run_dir: run directory; made if it is missing.
        deepspeed: configuration for workers of torchrun; None: no DeepSpeed.
        console: where progress is printed; default: standard error.
        join: called before torch is imported by one of several workers; None: this process trains alone.

    Returns:
        `exit_code` (0 finished, 143 stopped after a save) and `step`, the last finished optimizer step.

    Raises:
        KitError: recipe, data, run directory or machine can't be used; `exit_code` is that of docs/exit-codes.md.
        Stopped: asked to stop before the first step.
    """
    from mini_r1.launch.torchrun import refuse_alone
    from mini_r1.machine.schedulers import Patience
    from mini_r1.tasks.problem_files import data_files, read_files
    from mini_r1.tasks.registry import find_task
    from mini_r1.training.schedule import refuse_other_workers
    from mini_r1.training.supervised import Supervisor, starting

    console = console or progress_console()
    run = RunDir(Path(run_dir))
    for warning in recipe.warnings():
        console.print(f"warning: {printable(warning)}", style="yellow", markup=False)
    check_code(recipe, os.environ)
    refuse_trackers(recipe.report_to, os.environ, needs_key=not console.quiet)
    if join is not None:
        join(run)
    else:
        refuse_alone(recipe, deepspeed, os.environ)
        patience = Patience(os.environ, lambda text: console.print(text, markup=False))
        finished = finished_step_before_loading(run, recipe, patience)
        if finished is not None:
            print_finished(console, run, finished)
            return Outcome(ExitCode.FINISHED, finished)
        refuse_other_workers(run, recipe, 1, 0)
    if not recipe.data_on_hub and recipe.dataset_id_or_path != GENERATED:  # before torch is loaded
        splits = [recipe.dataset_split, *filter(None, [recipe.dataset_test_split])]
        task = find_task(recipe.task)
        for files in data_files(Path(recipe.dataset_id_or_path), recipe.dataset_config, splits):
            read_files(files[:1], task.fields.mapped(recipe.dataset_columns), task.parser(), most=1)
    with starting(recipe, run, Supervisor.from_environment()) as started:
        with needs_extra("train", deepspeed=deepspeed is not None, console=console):
            from mini_r1.training.train import train as run_training
        outcome = run_training(recipe, run, sys.argv, console, deepspeed=deepspeed, started=started)
    if outcome.exit_code == ExitCode.FINISHED:
        console.print(f"finished at step {outcome.step}: {run.path}", markup=False)
    else:
        console.print(describe_interrupted(outcome.step), markup=False)
    return outcome


def evaluate(
    run_or_model: StrPath,
    problems: StrPath | None = None,
    *,
    samples: int | None = None,
    limit: int | None = None,
    step: int | None = None,
    every: bool = False,
    columns: Mapping[str, str] | None = None,
    engine: str = "auto",
    again: bool = False,
    task: str = DEFAULT_TASK,
    console: Console | None = None,
) -> Series:
    """Measure held-out success of a run's snapshot or of a model, and report it to the run's trackers.

    Args:
        run_or_model: run directory, model directory or hub id of a model.
        problems: file or folder of problems; None: those that the run held out.
        samples: sampled completions for each problem, besides the greedy one; None: as before, else 4.
        limit: the first N problems only.
        step: snapshot of the run; 0 is the untrained model, None the newest.
        every: the untrained model and all snapshots, instead of one.
        columns: columns of the task's fields in `problems`, if they have other names; None: those of the run's recipe.
        engine: `auto`, `vllm` or `transformers`.
        again: repeat what was measured with these settings.
        task: that of a model's problems; a run has its own.
        console: where progress is printed; default: standard error.

    Returns:
        `evaluations`, a list with a dict for each step, in order (docs/evaluation.md): `sampled`, `greedy`, `pass_at_k`
        and other shares (0..1), `ci95` (two shares or None), `provenance`. A run has them in `RUN/evaluation`, too.

    Raises:
        KitError: there is nothing to evaluate, a problem is wrong, or nothing could be measured.
    """
    run = RunDir(Path(run_or_model))
    console = console or progress_console()
    with needs_extra("train", console=console):
        from mini_r1.evaluation.evaluate_run import UNKNOWN, evaluate_run_or_model
        from mini_r1.training.prepare import starting_point
        from mini_r1.training.tracking import report_held_out
    series = evaluate_run_or_model(
        os.fspath(run_or_model),
        None if problems is None else Path(problems),
        samples=samples,
        limit=limit,
        step=step,
        every=every,
        start=starting_point(run) if run.is_run() else UNKNOWN,
        columns=columns,
        engine=engine,
        again=again,
        task=task,
        console=console,
    )
    if run.is_run() and series.measured and problems is None and limit is None:  # a curve has one set of problems
        report_held_out(run, series.evaluations, console)
    return series
