"""How a run is divided into optimizer steps, and which training problem comes when.

The problems are one seeded permutation after another, cut to the length of the run. The transformers Trainer then sees
a single epoch of exactly max_steps full optimizer steps: no step is left half accumulated at the end of an epoch, and a
resumed run, on any number of processes, continues with the next problem.
"""

import math
import random
from dataclasses import dataclass

from mini_r1.errors import KitError
from mini_r1.recipe.fields import Recipe


@dataclass(frozen=True, slots=True)
class Schedule:
    """The optimizer steps of a run."""

    prompts: int  # of one optimizer step, over all workers
    accumulation: int  # micro-batches of each worker in a step
    steps: int


def plan_schedule(recipe: Recipe, prompts: int, rows: int, workers: int) -> Schedule:
    """Divide a run over `rows` training problems into steps of `prompts` prompts."""
    accumulation = accumulation_steps(prompts, recipe.per_device_train_batch_size, workers)
    return Schedule(prompts, accumulation, total_steps(recipe.max_steps, recipe.num_train_epochs, rows, prompts))


def total_steps(max_steps: int, epochs: float, rows: int, prompts_per_step: int) -> int:
    """Return max_steps if positive, else the optimizer steps that cover `epochs` passes over `rows`."""
    return max_steps if max_steps > 0 else max(1, math.ceil(epochs * rows / prompts_per_step))


def accumulation_steps(prompts_per_step: int, per_device_batch: int, workers: int) -> int:
    """Return the micro-batches of each worker in an optimizer step; KitError if they can't share its prompts evenly."""
    steps, left = divmod(prompts_per_step, per_device_batch * workers)
    if left or not steps:
        most = prompts_per_step // per_device_batch
        possible = [n for n in range(1, most + 1) if prompts_per_step % (per_device_batch * n) == 0]
        raise KitError(
            f"an optimizer step of this run has {prompts_per_step} prompts, and {workers} workers with "
            f"per_device_train_batch_size {per_device_batch} cannot share them evenly: "
            f"start with {', '.join(map(str, possible))} workers"
        )
    return steps


def run_order(rows: int, count: int, seed: int) -> list[int]:
    """Return `count` row indices: shuffled passes over `rows` rows (KitError if none), deterministic for a seed."""
    if rows == 0:
        raise KitError("the training part of the data is empty: lower test_fraction or give more rows")
    order: list[int] = []
    for epoch in range(math.ceil(count / rows)):
        epoch_order = list(range(rows))
        random.Random(f"{seed}/{epoch}").shuffle(epoch_order)
        order += epoch_order
    return order[:count]
