"""`rollout_ahead: 1` with the real vLLM 0.7.0 on a CPU and one worker: one run, killed after a save and resumed."""

from __future__ import annotations

from pathlib import Path

import pytest
from mini_r1.run.reader import read_completions, read_metrics
from mini_r1.run.run_dir import RunDir

from tests.cluster.real_stack import (
    STEPS,
    STOP_S,
    Launch,
    assert_repeated,
    needs_vllm,
    random_model,
    reached,
    write_recipe,
)

pytestmark = [needs_vllm, pytest.mark.real]


def test_a_run_with_rollouts_ahead_is_killed_after_a_save_and_repeats_the_lost_step_to_the_bit(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    changes = {"rollout_ahead": 1, "eval_strategy": "steps", "eval_steps": 4, "eval_problems": 4}
    recipe = write_recipe(tmp_path / "recipe.yaml", random_model(tmp_path / "model"), **changes)
    args = (recipe, "--run-dir", run.path, "--gpus", "2", "--deepspeed", "none")
    with Launch(*args, log=tmp_path / "first.txt") as launch:
        launch.wait_for(reached(run, 3, "update"))  # one step after the save of step 2: it is lost
        assert run.read_state()["in_flight"] == 5
        launch.worker(0).kill()
        assert launch.wait(STOP_S) == 150, launch.said
    newest = run.complete_checkpoints()[0].step
    assert (run.checkpoints / f"rollout-{newest}.json").is_file()
    with Launch(*args, log=tmp_path / "second.txt") as launch:
        assert launch.wait() == 0, launch.said
    assert_repeated(run, 1, 3)

    rows = {(row["step"], row["policy_step"]) for row in read_completions(run)}
    assert rows == {(1, 0), *((step, step - 2) for step in range(2, STEPS + 1))}
    logged = [row for row in read_metrics(run) if "loss" in row]
    assert [row["off_policy/age"] for row in logged] == [0, 1, 1, 1, 1, 1]
    assert [row["sync/equal"] for row in logged] == [1.0] * STEPS
    assert logged[0]["logp_gap"] < 1e-4
    assert logged[0]["off_policy/ratio"] == pytest.approx(1.0, abs=1e-3)
    # The learning rate is so high that one step changes the policy visibly.
    assert all(row["off_policy/kl"] > 1e-4 for row in logged[1:])
    assert all(row["time/rollout"] > 0 and "time/wait" in row for row in logged)
    assert [row["step"] for row in read_metrics(run) if "eval_success" in row] == [4, STEPS]
