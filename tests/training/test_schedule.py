"""Optimizer steps and the order of problems: whole passes, fixed by the random seed, cut to the run's length."""

from __future__ import annotations

from pathlib import Path

import pytest
from mini_r1.errors import KitError
from mini_r1.recipe.fields import Recipe
from mini_r1.recipe.recipe_file import dump_recipe
from mini_r1.run.files import write_json
from mini_r1.run.manifest import Saved, seal
from mini_r1.run.run_dir import RunDir
from mini_r1.training.schedule import (
    Schedule,
    accumulation_steps,
    plan_schedule,
    refuse_other_shards,
    refuse_other_workers,
    run_order,
    total_steps,
)

RECIPE = Recipe(model_name_or_path="builtin:demo", per_device_train_batch_size=2, max_steps=7)


def test_each_pass_uses_every_row_once() -> None:
    order = run_order(rows=10, count=25, seed=1)
    assert len(order) == 25
    assert sorted(order[:10]) == sorted(order[10:20]) == list(range(10))
    assert order[:10] != order[10:20]
    assert len(set(order[20:])) == 5


def test_the_order_of_a_seed_never_changes() -> None:
    """A resumed run continues with the next problem, so the order may not change."""
    assert run_order(rows=5, count=12, seed=1) == [2, 1, 0, 4, 3, 1, 4, 2, 0, 3, 4, 1]


def test_a_longer_run_begins_like_a_shorter_one() -> None:
    assert run_order(10, 40, 1)[:25] == run_order(10, 25, 1)
    assert run_order(10, 25, 1) != run_order(10, 25, 2)


def test_epochs_become_whole_optimizer_steps() -> None:
    assert total_steps(max_steps=450, epochs=3.0, rows=10, prompts_per_step=4) == 450
    assert total_steps(max_steps=1, epochs=3.0, rows=10, prompts_per_step=4) == 1
    assert total_steps(max_steps=0, epochs=3.0, rows=10, prompts_per_step=4) == 8
    assert total_steps(max_steps=-1, epochs=1.0, rows=10, prompts_per_step=4) == 3
    assert total_steps(max_steps=-1, epochs=0.01, rows=10, prompts_per_step=4) == 1
    assert total_steps(max_steps=-1, epochs=1.0, rows=0, prompts_per_step=4) == 1  # `run_order` refuses it
    assert plan_schedule(RECIPE, prompts=24, rows=10, workers=3) == Schedule(prompts=24, accumulation=4, steps=7)


def test_no_rows_to_train_on() -> None:
    with pytest.raises(KitError, match="training part of the data is empty"):
        run_order(0, 4, 1)


@pytest.mark.parametrize(("workers", "steps"), [(1, 12), (2, 6), (3, 4), (4, 3), (12, 1)])
def test_another_number_of_workers_shares_the_same_prompts(workers: int, steps: int) -> None:
    assert accumulation_steps(24, 2, workers) == steps


@pytest.mark.parametrize("workers", [5, 8, 24])
def test_workers_that_cannot_share_a_step_s_prompts_are_refused(workers: int) -> None:
    with pytest.raises(KitError, match=f"24 prompts, and {workers} workers .* start with 1, 2, 3, 4, 6, 12 workers"):
        accumulation_steps(24, 2, workers)


@pytest.mark.parametrize(
    ("facts", "workers", "stage", "said"),
    [
        ({}, 4, 0, None),  # not sharded: any number of workers
        ({"world_size": 3, "zero_stage": 0}, 4, 0, None),
        ({"world_size": 3, "zero_stage": 2}, 3, 2, None),
        ({"zero_stage": 2}, 1, 2, None),
        ({"zero_stage": 2}, 2, 2, r"by 1 workers with DeepSpeed ZeRO.* there are 2 now: start with 1 workers again"),
        ({"world_size": 3, "zero_stage": 2}, 2, 2, r"by 3 workers .* there are 2 now: start with 3 workers again"),
        ({}, 1, 2, r"step 5\) was written with no DeepSpeed, and now it is ZeRO-2: start with --deepspeed none again"),
        ({"zero_stage": 3}, 1, 0, r"written with DeepSpeed ZeRO-3, and now it is none: .* --deepspeed zero3 again"),
        ({"zero_stage": 3}, 1, 2, r"written with DeepSpeed ZeRO-3, and now it is ZeRO-2: .* --deepspeed zero3 again"),
    ],
)
def test_a_sharded_checkpoint_is_resumed_by_the_same_workers(
    facts: dict[str, int], workers: int, stage: int, said: str | None
) -> None:
    saved = Saved(Path("step-5"), 5, {"step": 5, **facts})
    if said is None:
        refuse_other_shards(saved, workers, stage)
    else:
        with pytest.raises(KitError, match=said):
            refuse_other_shards(saved, workers, stage)


def test_what_cannot_resume_a_run_is_refused_by_its_newest_checkpoint(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    refuse_other_workers(run, RECIPE, 5, 2)  # nothing is there
    run.checkpoints.mkdir()
    for step, stage in ((2, 2), (4, 0), (6, 3)):
        (run.checkpoints / "part").mkdir()
        seal(run.checkpoints / "part", run.checkpoints / f"step-{step}", run_id="x", world_size=3, zero_stage=stage)
    refuse_other_workers(run, RECIPE, 5, 2)  # no run: `claim` refuses the directory
    run.recipe_file.write_text(dump_recipe(RECIPE))
    with pytest.raises(KitError, match=r"step 6\) was written with DeepSpeed ZeRO-3"):
        refuse_other_workers(run, RECIPE, 3, 2)
    refuse_other_workers(run, RECIPE, 3, 3)
    write_json(run.run_file, {"run_id": "x", "prompts_per_step": 8})
    with pytest.raises(KitError, match="has 8 prompts, and 3 workers"):
        refuse_other_workers(run, RECIPE, 3, 3)
    run.write_state("finished", step=7)
    refuse_other_workers(run, RECIPE, 5, 2)
