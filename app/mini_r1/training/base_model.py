"""Where the weights are that a run began with. What has to be told apart: a recipe's model, and a built-in one."""

from __future__ import annotations

from pathlib import Path

from mini_r1.errors import KitError
from mini_r1.generation.starting_point import StartingPoint
from mini_r1.recipe.recipe_file import load_recipe
from mini_r1.run.run_dir import RunDir
from mini_r1.training import prepare, warm_start


def starting_point(run: RunDir) -> StartingPoint:
    """The model of a run before its first step. Says where it is; whoever loads it may have to fetch it from the hub.

    A built-in model is looked for in the cache only: made anew on another machine it would be another one.
    """
    recipe = load_recipe(run.recipe_file)
    name = recipe.model_name_or_path
    if recipe.built_in is None:
        if name.startswith((".", "/", "~")) and not Path(name).expanduser().is_dir():
            return StartingPoint(None, None, f"the run's model {name} is not there any more")
        revision = None if Path(name).is_dir() else run.model_commit() or recipe.model_revision
        return StartingPoint(name, revision, f"the run's model {name}")
    try:
        data = prepare.load_task_data(recipe)
        job = warm_start.of_recipe(recipe, data.train)
        made = warm_start.is_made(job.directory())
    except (KitError, OSError) as error:
        return StartingPoint(None, None, f"the warm start of {name} cannot be found: {error}")
    if not made:
        return StartingPoint(
            None,
            None,
            f"the warm start of {name} is not in the cache {warm_start.cache_root()} (MINI_R1_CACHE) any more",
        )
    return StartingPoint(str(job.directory()), None, f"the warm start of {name}, out of the cache")
