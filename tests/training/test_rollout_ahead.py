"""`rollout_ahead: 1`: what runs when, with which weights, and that every stop resumes to the same bits.

vLLM's process is a stand-in (tests/training/stand_in_vllm.py). The real one: tests/cluster/test_real_ahead.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mini_r1.run.reader import read_completions, read_metrics
from mini_r1.run.run_dir import RunDir
from safetensors.torch import load_file

from tests.conftest import ASSETS
from tests.training.outcome import outcome
from tests.training.stand_in_vllm import with_stand_in
from tests.training.workers import Ended, Workers

STEPS = 6
Start = Callable[..., Ended]


@pytest.fixture(scope="module")
def start(untrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Start:
    """Train with the stand-in to the end, or until `what` happens at the moment `when`."""
    folder = tmp_path_factory.mktemp("ahead")

    def run(
        run_dir: RunDir,
        when: str = "",
        what: str = "SIGTERM",
        *,
        endless: str = "never",
        ranks: int = 1,
        devices: str = "cpu",
        environment: dict[str, str] | None = None,
        **changes: Any,
    ) -> Ended:
        values = {
            "model_name_or_path": str(untrained), "dataset_id_or_path": str(ASSETS / "countdown_rows.jsonl"),
            "test_fraction": 0.25, "max_steps": STEPS, "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": 4 // ranks, "num_generations": 4, "max_prompt_length": 64,
            "max_completion_length": 24, "learning_rate": 1e-2, "lr_scheduler_type": "cosine", "beta": 0.01,
            "temperature": 1.0, "seed": 3, "save_steps": 3, "eval_strategy": "steps", "eval_steps": 4,
            "eval_problems": 4, "use_vllm": True, "rollout_ahead": 1, "watch": {"logp_gap": "off"},
            # An untrained model is never right: a random reward makes the groups differ.
            "rewards": {"format": 1.0, "equation": 1.0, "random": 1.0},
        }  # fmt: skip
        recipe = folder / f"{run_dir.path.parent.name}-{run_dir.path.name}.yaml"
        recipe.write_text(json.dumps({**values, **changes}))  # JSON is YAML
        channel = run_dir.path.with_suffix(".channel")
        channel.mkdir(parents=True, exist_ok=True)
        known = {"MINI_R1_SUPERVISOR": str(channel), "MINI_R1_VLLM_DEVICE": devices, "MINI_R1_ACCELERATOR": "cpu"}
        log = run_dir.path.with_suffix(".moments")
        args = (log, when, what, endless, recipe, "--run-dir", run_dir.path)
        with Workers(ranks, with_stand_in, *args, folder=folder, environment=known | (environment or {})) as workers:
            return workers.wait(120)[0]

    return run


def moments(run: RunDir) -> list[str]:
    return [json.loads(line) for line in run.path.with_suffix(".moments").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(start: Start, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run that nothing disturbed."""
    run = RunDir(tmp_path_factory.mktemp("whole") / "run")
    ended = start(run)
    assert ended.code == 0, ended.errors
    return run


def test_the_next_rollout_begins_before_the_update_and_ends_after_it_has_begun(whole: RunDir) -> None:
    """The stand-in's rollout waits for the update: a trainer that waited for the rollout would not have ended."""
    found = moments(whole)
    for step in range(1, STEPS):
        assert found.index(f"rollout {step + 1}") < found.index(f"update {step}") < found.index(f"wait {step + 1}")
    assert f"rollout {STEPS + 1}" not in found


def test_each_completion_has_the_step_of_the_weights_that_sampled_it(whole: RunDir) -> None:
    rows = list(read_completions(whole))
    assert {(row["step"], row["policy_step"]) for row in rows} == {(1, 0), *((k, k - 2) for k in range(2, STEPS + 1))}
    logged = [row for row in read_metrics(whole) if "loss" in row]
    assert [row["off_policy/age"] for row in logged] == [0, *[1] * (STEPS - 1)]
    # The log-probabilities are those of the weights of `policy_step`: only in step 1 they are the trainer's.
    assert logged[0]["off_policy/kl"] < 1e-6
    assert logged[0]["off_policy/ratio"] == pytest.approx(1.0, abs=1e-4)
    assert all(row["off_policy/kl"] > 1e-5 for row in logged[1:])
    assert all(0 < row["off_policy/sample_size"] < 1 for row in logged[1:])
    assert all(0 <= row["off_policy/capped"] < 1 for row in logged)
    assert all(row["time/rollout"] > 0 and row["time/wait"] > 0 for row in logged)


def test_the_first_two_rollouts_are_those_of_a_run_without(whole: RunDir, start: Start, tmp_path: Path) -> None:
    """Both have the untrained weights and the seed of their step; in a run without, the second has trained ones."""
    run = RunDir(tmp_path / "run")
    assert start(run, rollout_ahead=0, max_steps=2, learning_rate=1e-12, eval_strategy="no").code == 0

    def texts(run: RunDir, step: int) -> list[str]:
        return [row["completion"] for row in read_completions(run) if row["step"] == step]

    assert {row["policy_step"] for row in read_completions(run) if row["step"] == 2} == {1}
    for step in (1, 2):
        assert texts(run, step) == texts(whole, step)


def stopped(start: Start, run: RunDir, when: str, what: str, code: int, step: int, **kwargs: Any) -> None:
    ended = start(run, when, what, **kwargs)
    assert ended.code == code, ended.errors
    if what != "SIGKILL":
        assert run.read_state()["step"] == step, when


def test_every_stop_and_kill_resumes_to_the_same_bits(whole: RunDir, start: Start, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    stopped(start, run, "update 2", "SIGTERM", 143, 2)
    assert (run.checkpoints / "rollout-2.json").is_file()
    stopped(start, run, "update 4", "SIGKILL", -9, 3)  # after the save of step 3
    stopped(start, run, "score 4", "SIGTERM", 143, 3)
    stopped(start, run, "rollout 6", "kill vllm", 150, 4)  # in step 5: step 4 is lost, too
    stopped(start, run, "evaluate 4", "SIGTERM", 143, 4)
    stopped(start, run, "wait 6", "SIGTERM", 143, 5)
    assert start(run).code == 0
    ours, theirs = outcome(run), outcome(whole)
    for name in ("checkpoints", "snapshots"):  # a stop saves at other steps
        del ours[name], theirs[name]
    assert ours == theirs
    assert {path.name for path in run.checkpoints.glob("*rollout*")} == {"rollout-5.json"}


def test_a_rollout_that_is_not_stored_is_sampled_again_and_the_log_says_so(start: Start, tmp_path: Path) -> None:
    """Stopped with too short a grace period, then killed while it waits for the rollout after a save."""
    run = RunDir(tmp_path / "run")
    stopped(start, run, "update 2", "SIGTERM", 143, 2, endless="rollout 3", environment={"MINI_R1_GRACE_S": "6"})
    log = (run.attempts / "1" / "rank-0.log").read_text()
    assert "the rollout of step 3 is discarded: the grace period is too short to wait for it" in log
    stopped(start, run, "wait 4", "SIGKILL", -9, 3)
    assert not list(run.checkpoints.glob("rollout-*"))
    assert start(run).code == 0
    for attempt, step in ((2, 2), (3, 3)):
        log = (run.attempts / str(attempt) / "rank-0.log").read_text()
        assert f"checkpoint {step} has no rollout of step {step + 1}" in log
    ages = [row["off_policy/age"] for row in read_metrics(run) if "loss" in row]
    assert ages == [0, 1, 0, 0, 1, 1]


@pytest.mark.exhaustive
def test_two_ranks_with_an_adapter_and_two_vllm_processes_resume_to_the_same_bits(start: Start, tmp_path: Path) -> None:
    kind: dict[str, Any] = {
        "ranks": 2, "devices": "cpu,cpu", "use_peft": True, "lora_target_modules": "all-linear", "lora_dropout": 0.1,
        "max_steps": 4,
    }  # fmt: skip
    whole, run = RunDir(tmp_path / "whole"), RunDir(tmp_path / "run")
    assert start(whole, **kind).code == 0
    for when, step in (("update 1", 1), ("wait 3", 2), ("score 4", 3)):
        stopped(start, run, when, "SIGTERM", 143, step, **kind)
    assert start(run, **kind).code == 0
    assert list(read_completions(run)) == list(read_completions(whole))
    ours, theirs = (load_file(each.checkpoints / "step-4" / "adapter_model.safetensors") for each in (run, whole))
    assert all(tensor.equal(ours[name]) for name, tensor in theirs.items())
