"""Whether a start of training has anything to do: asked before torch is imported."""

from rich.console import Console

from mini_r1.errors import KitError
from mini_r1.machine.schedulers import Patience
from mini_r1.recipe.fields import Recipe
from mini_r1.recipe.recipe_file import differences, load_recipe
from mini_r1.run.run_dir import RunDir


def finished_step(run: RunDir, recipe: Recipe) -> int | None:
    """Return the last step of a finished run, None for one to start or to resume; another recipe is a KitError."""
    changed = differences(load_recipe(run.recipe_file), recipe) if run.complete_checkpoints() else {}
    if changed:  # before the first checkpoint the recipe may be corrected
        lines = "".join(f"  {key}: the run has {a!r}, the recipe has {b!r}\n" for key, (a, b) in changed.items())
        raise KitError(
            f"{run.path} was started with another recipe:\n{lines}choose another --run-dir, or undo the change"
        )
    state = run.read_state()
    return int(state["step"]) if state.get("state") == "finished" else None


def print_finished(console: Console, run: RunDir, step: int) -> None:
    """Print that a run was finished before this start."""
    console.print(f"{run.path} is finished at step {step}: nothing to do", markup=False)


def finished_step_before_loading(run: RunDir, recipe: Recipe, patience: Patience | None = None) -> int | None:
    """Return `finished_step`, asked before torch is loaded; training asks again while it holds the run directory."""
    try:
        if not any(run.path.iterdir()):
            return None  # `claim` would remove it afterwards, and a volume may be mounted there
    except FileNotFoundError:
        return None
    except OSError:
        pass  # `claim` reports what is wrong
    with run.claim(patience):
        return finished_step(run, recipe)
