"""Optimizer steps and the order of problems: whole passes, fixed by the random seed, cut to the run's length."""

from __future__ import annotations

import pytest
from mini_r1.errors import KitError
from mini_r1.training.schedule import accumulation_steps, run_order, total_steps


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
