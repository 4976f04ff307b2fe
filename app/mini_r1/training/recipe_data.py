"""The data of a recipe, without torch."""

from collections.abc import Callable
from typing import Any

from rich.console import Console

from mini_r1.console import ProgressLine
from mini_r1.errors import Stopped
from mini_r1.recipe.fields import Recipe
from mini_r1.tasks.registry import find_task
from mini_r1.tasks.task_data import GENERATED_ROWS, TaskData, load_data

SILENT = Console(quiet=True)


def load_task_data(
    recipe: Recipe, commit: str | None = None, console: Console = SILENT, stop: Callable[[], bool] = lambda: False
) -> TaskData[Any]:
    """Return the recipe's problems, split; the same on every rank and at every start. `stop` is asked for each one.

    `commit` is that of a hub data set that a run began with: its branch may have moved since.
    """
    total = recipe.dataset_rows or GENERATED_ROWS
    with ProgressLine(console, "generating problems", total) as line:

        def generated(rows: int) -> None:
            if stop():
                raise Stopped(f"stopped after generating {rows:,} of {total:,} problems: run the same command again")
            line.update(rows)

        task = find_task(recipe.task)
        return load_data(
            task,
            recipe.dataset_id_or_path,
            revision=commit or recipe.dataset_revision,
            config=recipe.dataset_config,
            split=recipe.dataset_split,
            test_split=recipe.dataset_test_split,
            columns=task.fields.mapped(recipe.dataset_columns),
            rows=recipe.dataset_rows,
            seed=recipe.dataset_seed,
            test_fraction=recipe.test_fraction,
            split_by=recipe.split_by,
            generator=recipe.generator.model_dump() if recipe.generator else None,
            progress=generated,
        )
