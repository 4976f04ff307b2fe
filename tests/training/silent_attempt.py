"""A trainer's attempt that ignores what is reported to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import Mock

from mini_r1.generation.sampler import never
from mini_r1.recipe.fields import Recipe
from mini_r1.run.run_dir import RunDir
from mini_r1.training.world import World


def silent_attempt(folder: Path) -> Any:
    """Return an attempt at a run in `folder` with the default rewards, format and equation."""
    recipe = Recipe(model_name_or_path="builtin:demo", max_steps=1)
    return Mock(callbacks=[], checkpoint_only=False, run=RunDir(folder), world=World(60), stop=never, recipe=recipe)
