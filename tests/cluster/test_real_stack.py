"""The real vLLM 0.7.0, TRL 0.14.0 and DeepSpeed 0.15.4 on a CPU: two workers and vLLM's process, by `mini-r1 launch`.

Each start takes half a minute, so each run is made to tell several things.
"""

from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mini_r1.rundir import RunDir
from safetensors.torch import load_file

from tests.cluster.real_stack import (
    STEPS,
    STOP_S,
    Launch,
    needs_vllm,
    random_model,
    reached,
    same,
    sharding_everything,
    write_recipe,
)

pytestmark = [needs_vllm, pytest.mark.real]


class Case:
    """One way to shard, and the run that nothing interrupted."""

    def __init__(self, folder: Path, model: Path, deepspeed: str, accumulation: int, **changes: Any) -> None:
        self.folder = folder
        self.deepspeed = deepspeed
        self.recipe = write_recipe(folder / "recipe.yaml", model, gradient_accumulation_steps=accumulation, **changes)
        self.whole = RunDir(folder / "whole")

    def launch(self, run: RunDir, name: str) -> Launch:
        args = (self.recipe, "--run-dir", run.path, "--gpus", "3", "--deepspeed", self.deepspeed)
        return Launch(*args, log=self.folder / f"{name}.txt")

    def finish(self, run: RunDir, name: str) -> None:
        with self.launch(run, name) as launch:
            assert launch.wait() == 0, launch.said


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model(tmp_path_factory.mktemp("random") / "model")


@pytest.fixture(scope="module")
def zero3(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    """ZeRO-3 with one micro-batch a step, where TRL's own vLLM branch crashes at step 2."""
    folder = tmp_path_factory.mktemp("zero3")
    case = Case(folder, model, sharding_everything(folder), accumulation=1)
    case.finish(case.whole, "whole")
    return case


@pytest.fixture(scope="module")
def zero2(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    """The shipped ZeRO-2, measuring held-out problems in between, through vLLM too."""
    folder = tmp_path_factory.mktemp("zero2")
    case = Case(folder, model, "zero2", accumulation=2, eval_strategy="steps", eval_steps=3)
    case.finish(case.whole, "whole")
    return case


@pytest.fixture(params=["zero3", "zero2"])
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.getfixturevalue(request.param)
    return found


def test_the_weights_arrive_at_vllm_after_every_step(case: Case) -> None:
    rows = case.whole.metrics()
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert [row["sync/equal"] for row in rows] == [1.0] * STEPS
    assert sum(row["sync/changed"] > 0 for row in rows[1:]) >= STEPS // 2, "the steps changed nothing to be seen"
    for row in rows:
        assert row["logp_gap"] < 1e-4
        assert row["time/sync"] > 0
        assert 0 < row["grad_norm"] < 100
        assert row["kl"] == pytest.approx(0.0, abs=1e-6) if row["step"] == 1 else row["kl"] > 0


def test_two_workers_train_and_their_shards_are_saved(case: Case, model: Path) -> None:
    attempt = case.whole.read_record()["attempts"][0]
    assert (attempt["workers"], attempt["vllm_device"], attempt["deepspeed"]) == (2, "cpu", case.deepspeed)
    assert case.whole.read_state()["state"] == "finished"
    newest = case.whole.complete_checkpoints()[0]
    stage = 3 if case.deepspeed.endswith("zero3.json") else 2
    assert (newest.step, newest.facts["world_size"], newest.facts["zero_stage"]) == (STEPS, 2, stage)
    files = json.loads((newest.path / "manifest.json").read_text())["files"]
    assert len([name for name in files if "optim_states" in name]) == 2
    before = load_file(model / "model.safetensors")
    after = load_file(case.whole.snapshots / f"step-{STEPS}" / "model.safetensors")
    assert after.keys() == before.keys()
    assert all(after[name].shape == tensor.shape for name, tensor in before.items())
    assert any(not after[name].float().allclose(tensor, atol=1e-2) for name, tensor in before.items())


def test_every_completion_is_recorded_once_for_each_rank_s_prompts(case: Case) -> None:
    records = list(case.whole.completions())
    accumulation = 1 if case.deepspeed.endswith("zero3.json") else 2
    for step in range(1, STEPS + 1):
        own = [record for record in records if record["step"] == step]
        assert len(own) == 2 * accumulation * 4
        # A prompt may come twice: where one pass over the problems ends and the next begins.
        assert {count % 4 for count in Counter(record["prompt"] for record in own).values()} == {0}
        assert all(1 <= record["tokens"] <= 32 for record in own)


def test_held_out_problems_are_measured_through_vllm(zero2: Case) -> None:
    measured = {row["step"]: row for row in zero2.whole.metrics() if "eval_success" in row}
    assert list(measured) == [3, 6]
    held_out = len(zero2.whole.held_out_file.read_text().splitlines())
    assert {row["eval_problems"] for row in measured.values()} == {held_out}


def test_a_killed_worker_and_a_killed_vllm_end_the_job_and_it_goes_on_to_the_same_end(zero3: Case) -> None:
    run = RunDir(zero3.folder / "killed")
    with zero3.launch(run, "worker-killed") as launch:
        launch.wait_for(reached(run, 2, "rollout"))
        launch.worker(1).kill()
        assert launch.wait(STOP_S) == 150, launch.said
    assert "rank 1 on node 0" in launch.said
    assert "was killed by SIGKILL" in launch.said
    assert run.read_state()["exit_code"] == 150

    with zero3.launch(run, "vllm-killed") as launch:
        launch.wait_for(reached(run, 4, "rollout"))
        launch.vllm().kill()
        assert launch.wait(STOP_S) == 150, launch.said
    assert "vLLM's process ended" in launch.said
    assert run.read_state()["exit_code"] == 150

    zero3.finish(run, "resumed")
    same(run, zero3.whole)


def test_sigterm_in_a_rollout_and_in_an_update_saves_and_it_goes_on_to_the_same_end(zero2: Case) -> None:
    run = RunDir(zero2.folder / "stopped")
    with zero2.launch(run, "in-rollout") as launch:
        launch.wait_for(reached(run, 1, "rollout"))
        launch.terminate()
        assert launch.wait() == 143, launch.said
    first = run.read_state()
    assert (first["state"], first["exit_code"], first["reason"]) == ("interrupted", 143, "SIGTERM")
    assert run.complete_checkpoints()[0].step == first["step"] < STEPS

    with zero2.launch(run, "in-update") as launch:
        launch.wait_for(reached(run, 3, "update"))
        for process in launch.all_processes():  # as a scheduler does
            process.send_signal(signal.SIGTERM)
        assert launch.wait() == 143, launch.said
    second = run.read_state()
    assert (second["state"], second["exit_code"]) == ("interrupted", 143)
    assert first["step"] < run.complete_checkpoints()[0].step == second["step"] < STEPS

    zero2.finish(run, "resumed")
    same(run, zero2.whole)
