"""The model that a run began with: a recipe's model, or a built-in one out of the cache."""

from __future__ import annotations

from pathlib import Path

from mini_r1.errors import KitError
from mini_r1.generation.starting_point import StartingPoint
from mini_r1.recipe.recipe_file import load_recipe
from mini_r1.run.run_dir import RunDir
from mini_r1.training import prepare, warm_start


def starting_point(run: RunDir) -> StartingPoint:
    """Return the model of a run before its first step; loading it may need the hub.

    A built-in model is taken from the cache only: made again on another machine it would have other weights.
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
        directory = warm_start.of_recipe(recipe, data.train).directory()
        made = warm_start.is_made(directory)
    except (KitError, OSError) as error:
        return StartingPoint(None, None, f"the warm start of {name} cannot be found: {error}")
    if made:
        return StartingPoint(str(directory), None, f"the warm start of {name}, out of the cache")
    root = warm_start.cache_root()
    return StartingPoint(None, None, f"the warm start of {name} is not in the cache {root} (MINI_R1_CACHE) any more")
