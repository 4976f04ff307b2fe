"""Files that a recipe names besides data and model: a prompt, and code of rewards. A run keeps a copy of each.

They are in the folder of the recipe. A validated recipe has their absolute paths. The recipe in a run directory names
the copies, which are in FOLDER next to it.
"""

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mini_r1.errors import KitError
from mini_r1.tasks.prompt_file import is_prompt_file
from mini_r1.tasks.reward_file import SUFFIX, check_source, is_code, refuse_code, short_name, source_file
from mini_r1.values import expand_path

if TYPE_CHECKING:
    from pydantic import ValidationInfo

    from mini_r1.recipe.fields import Recipe

FOLDER: Final = "recipe_files"
"""Folder of a run directory with the copies."""


def find_near_recipe(name: str, info: "ValidationInfo") -> str:
    """Return the absolute path of a file next to the recipe that is validated, or else in the current folder.

    Raises:
        ValueError: there is no such file.
    """
    folder = (info.context or {}).get("folder", Path())
    for path in (folder / expand_path(name), Path(expand_path(name))):
        if path.is_file():
            return str(path.absolute())
    raise ValueError(f"there is no file {name} in the folder of the recipe or in the current folder")


def reward_code(recipe: "Recipe") -> list[str]:
    """Return the rewards of a recipe that are code, with the paths of their files."""
    return [name for name in recipe.rewards or {} if is_code(name)]


def named_files(recipe: "Recipe", *, modules: bool = True) -> dict[str, Path]:
    """Return the files that a recipe names, by the names of their copies; also those of modules.

    Raises:
        KitError: a module is not here, or two files have one name.
    """
    named = [(Path(recipe.prompt_style).name, Path(recipe.prompt_style))] if is_prompt_file(recipe.prompt_style) else []
    for name in reward_code(recipe):
        source = short_name(name).rpartition(":")[0]
        if modules or source.endswith(SUFFIX):
            named.append((f"{source.removesuffix(SUFFIX)}{SUFFIX}", source_file(name)))
    found: dict[str, Path] = {}
    for copy, path in named:
        if found.setdefault(copy, path) != path:
            raise KitError(f"{found[copy]} and {path} have one name, and a run keeps its files together: rename one")
    return found


def check_code(recipe: "Recipe", environment: Mapping[str, str]) -> None:
    """Raise KitError if a recipe names code that is forbidden here, is not here or has no such function.

    The code is not run.
    """
    names = reward_code(recipe)
    refuse_code(names, environment)
    for name in names:
        check_source(name)


def digests(recipe: "Recipe") -> dict[str, str]:
    """Return the SHA-256 of each file that a recipe names, by name."""
    return {name: sha256(path.read_bytes()).hexdigest() for name, path in named_files(recipe).items()}


def refuse_other_files(first: Mapping[str, str], here: Mapping[str, str]) -> None:
    """Raise KitError if a worker reads other files than the first one, by their digests."""
    if other := [name for name in first if here.get(name) != first[name]]:
        raise KitError(f"{other[0]} differs between the workers of this run: give all nodes the same file")


def with_copies(recipe: "Recipe") -> "Recipe":
    """Return the recipe as a run directory has it: with the names of the copies. Modules keep their names."""
    style, rewards = recipe.prompt_style, recipe.rewards
    changes: dict[str, Any] = {"prompt_style": f"{FOLDER}/{Path(style).name}"} if is_prompt_file(style) else {}
    if rewards:
        changes["rewards"] = {
            f"{FOLDER}/{short}" if (short := short_name(name)) != name else name: weight
            for name, weight in rewards.items()
        }
    return recipe.model_copy(update=changes)
