"""Where the weights are that a run began with. What has to be told apart: a recipe's model, and the demo's own."""

from __future__ import annotations

from pathlib import Path

from mini_r1.errors import KitError
from mini_r1.generation.starting_point import StartingPoint
from mini_r1.recipe import DEMO_MODEL, WarmStartRecipe
from mini_r1.recipe_file import load_recipe
from mini_r1.rundir import RunDir
from mini_r1.training import prepare, warm_start


def starting_point(run: RunDir) -> StartingPoint:
    """The model of a run before its first step. Says where it is; whoever loads it may have to fetch it from the hub.

    A demo model is looked for in the cache only: made anew on another machine it would be another one.
    """
    recipe = load_recipe(run.recipe_file)
    name = recipe.model_name_or_path
    if name != DEMO_MODEL:
        if name.startswith((".", "/", "~")) and not Path(name).expanduser().is_dir():
            return StartingPoint(None, None, f"the run's model {name} is not there any more")
        revision = None if Path(name).is_dir() else run.model_commit() or recipe.model_revision
        return StartingPoint(name, revision, f"the run's model {name}")
    try:
        data = prepare.load_task_data(recipe)
        settings = recipe.warm_start or WarmStartRecipe()
        job = warm_start.WarmStart(data.train, recipe.prompt_style, warm_start.largest_value(recipe), settings)
        made = warm_start.is_made(job.directory())
    except (KitError, OSError) as error:
        return StartingPoint(None, None, f"the demo's warm start cannot be found: {error}")
    if not made:
        return StartingPoint(
            None, None, f"the demo's warm start is not in the cache {warm_start.cache_root()} (MINI_R1_CACHE) any more"
        )
    return StartingPoint(str(job.directory()), None, "the demo's warm start, out of the cache")
