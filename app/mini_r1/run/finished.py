"""Whether a start of training has anything to do, asked before torch is imported; and how a start ended."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from mini_r1.errors import ExitCode, KitError
from mini_r1.machine.schedulers import Patience
from mini_r1.recipe.fields import Recipe
from mini_r1.recipe.named_files import digests
from mini_r1.recipe.recipe_file import differences, load_recipe
from mini_r1.run.run_dir import RunDir
from mini_r1.values import mapping


@dataclass(frozen=True, slots=True)
class Outcome:
    """Exit code and last finished step of a call of `train`."""

    exit_code: ExitCode
    step: int


def describe_interrupted(step: int) -> str:
    """Return what a run that was asked to stop has saved, and what to run."""
    if step:
        return f"interrupted after step {step}, saved: the same command resumes there"
    return "interrupted before the first step was finished, so nothing is saved: run the same command again"


def finished_step(run: RunDir, recipe: Recipe) -> int | None:
    """Return the last step of a finished run, None for one to start or to resume; another recipe is a KitError."""
    changed: dict[str, tuple[Any, Any]] = {}
    if run.complete_checkpoints():  # before the first one the recipe may be corrected
        known = mapping(run.read_record().get("recipe_files"))
        changed = differences(load_recipe(run.recipe_file), recipe) | {
            name: (f"sha256 {known[name][:12]}", f"sha256 {digest[:12]}")
            for name, digest in digests(recipe).items()
            if known.get(name, digest) != digest
        }
    if changed:
        lines = "".join(f"  {key}: the run has {a!r}, the recipe has {b!r}\n" for key, (a, b) in changed.items())
        fix = "choose another --run-dir, or undo the change"
        if set(changed) <= {"max_steps", "num_train_epochs"} and (snapshots := run.complete_snapshots()):
            fix = _describe_continuing(run, recipe, snapshots[0].path)
        raise KitError(f"{run.path} was started with another recipe:\n{lines}{fix}")
    state = run.read_state()
    return int(state["step"]) if state.get("state") == "finished" else None


def _describe_continuing(run: RunDir, recipe: Recipe, snapshot: Path) -> str:
    """Return how to train on after the end of a run: its learning rate was planned for its length."""
    warm_start = " --set warm_start=null" if recipe.warm_start else ""
    return (
        "A run keeps its length, for which its learning rate is planned. To train on from its weights, start a new run "
        "with the further steps as max_steps and your other options; its KL term compares with these weights:\n"
        f"  mini-r1 launch RECIPE --run-dir {run.path}-continued --set model_name_or_path={snapshot}{warm_start} "
        "--set max_steps=N"
    )


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
