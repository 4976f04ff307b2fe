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
from mini_r1.run.finished import finished_step
from mini_r1.run.manifest import Saved
from mini_r1.run.run_dir import RunDir
from mini_r1.values import number


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


def refuse_other_workers(run: RunDir, recipe: Recipe, workers: int, zero_stage: int) -> None:
    """Raise KitError if recipe, number of workers or ZeRO stage can't resume a run; asked before torch is loaded.

    The run directory is read without its lock, so that nothing waits here for another process that holds it.
    """
    checkpoints = run.complete_checkpoints() if run.is_run() else []
    if checkpoints and finished_step(run, recipe) is None:
        refuse_other_shards(checkpoints[0], workers, zero_stage)
        prompts = number(run.read_record().get("prompts_per_step"))
        if prompts:
            accumulation_steps(int(prompts), recipe.per_device_train_batch_size, workers)


def refuse_other_shards(saved: Saved, world_size: int, zero_stage: int) -> None:
    """Raise KitError if a checkpoint's state is sharded in another way than these workers'; stage 0: no DeepSpeed."""
    before, stage = saved.facts.get("world_size", 1), saved.facts.get("zero_stage", 0)
    if stage != zero_stage:
        now = f"ZeRO-{zero_stage}" if zero_stage else "none"
        then = f"DeepSpeed ZeRO-{stage}" if stage else "no DeepSpeed"
        raise KitError(
            f"the newest checkpoint (step {saved.step}) was written with {then}, and now it is {now}: start with "
            f"--deepspeed {f'zero{stage}' if stage else 'none'} again, or choose another --run-dir"
        )
    if stage and before != world_size:
        raise KitError(
            f"the newest checkpoint (step {saved.step}) was written by {before} workers with DeepSpeed ZeRO, its "
            f"optimizer state is sharded, and there are {world_size} now: start with {before} workers again "
            "(deepspeed#5405), or choose another --run-dir"
        )
