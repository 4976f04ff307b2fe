"""The real vLLM 0.7.0, TRL 0.14.0 and DeepSpeed 0.15.4 on a CPU: two workers and vLLM's process, by `mini-r1 launch`.

Each start takes half a minute, so each run is made to tell several things.
"""

from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mini_r1.run.reader import read_completions, read_metrics
from mini_r1.run.run_dir import RunDir
from safetensors.torch import load_file

from tests.cluster.real_stack import (
    START_S,
    STEPS,
    STOP_S,
    Launch,
    assert_repeated,
    needs_vllm,
    random_model,
    reached,
    same,
    sharding_everything,
    write_recipe,
)
from tests.conftest import rows

pytestmark = [needs_vllm, pytest.mark.real]


class Case:
    """One way to shard, and a run that was stopped on its way and resumed to its end.

    Attributes:
        stops: what each stopped launch printed, and the run's state after it.
    """

    def __init__(self, folder: Path, model: Path, deepspeed: str, accumulation: int, **changes: Any) -> None:
        self.folder = folder
        self.deepspeed = deepspeed
        self.recipe = write_recipe(folder / "recipe.yaml", model, gradient_accumulation_steps=accumulation, **changes)
        self.run = RunDir(folder / "run")
        self.stops: list[tuple[str, dict[str, Any]]] = []

    def launch(self, run: RunDir, name: str) -> Launch:
        args = (self.recipe, "--run-dir", run.path, "--gpus", "3", "--deepspeed", self.deepspeed)
        return Launch(*args, log=self.folder / f"{name}.txt")

    def stop(self, run: RunDir, step: int, phase: str, end: Callable[[Launch], None], code: int) -> None:
        with self.launch(run, f"{run.path.name}-{len(self.stops)}") as launch:
            launch.wait_for(reached(run, step, phase))
            end(launch)
            assert launch.wait(STOP_S if code == 150 else START_S) == code, launch.said
        self.stops.append((launch.said, run.read_state()))

    def finish(self, run: RunDir) -> RunDir:
        with self.launch(run, f"{run.path.name}-to-its-end") as launch:
            assert launch.wait() == 0, launch.said
        return run


def signal_everybody(launch: Launch) -> None:
    """Send SIGTERM to every process, as a scheduler does."""
    for process in launch.all_processes():
        process.send_signal(signal.SIGTERM)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model(tmp_path_factory.mktemp("random") / "model")


@pytest.fixture(scope="module")
def zero3(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """ZeRO-3 with one micro-batch a step, where TRL's own vLLM branch crashes at step 2; killed twice and resumed."""
    folder = tmp_path_factory.mktemp("zero3")
    case = Case(folder, model, sharding_everything(folder), accumulation=1)
    # One step after a save: it is lost, and repeated.
    case.stop(case.run, 3, "rollout", lambda launch: launch.worker(1).kill(), 150)
    case.stop(case.run, 5, "rollout", lambda launch: launch.vllm().kill(), 150)
    case.finish(case.run)
    return case


@pytest.fixture(scope="module")
def zero2(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """The shipped ZeRO-2, measuring held-out problems in between, through vLLM too; stopped by SIGTERM and resumed."""
    folder = tmp_path_factory.mktemp("zero2")
    case = Case(folder, model, "zero2", accumulation=2, eval_strategy="steps", eval_steps=3)
    case.stop(case.run, 3, "update", signal_everybody, 143)
    case.finish(case.run)
    return case


@pytest.fixture(params=["zero3", "zero2"])
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.getfixturevalue(request.param)
    return found


def test_the_weights_arrive_at_vllm_after_every_step(case: Case) -> None:
    logged = read_metrics(case.run)
    assert [row["step"] for row in logged] == list(range(1, STEPS + 1))
    assert [row["sync/equal"] for row in logged] == [1.0] * STEPS
    changed = [row["sync/changed"] > 0 for row in logged if "sync/changed" in row]
    assert sum(changed) >= len(changed) / 2 > 0, "the steps changed nothing to be seen"
    for row in logged:
        assert row["logp_gap"] < 1e-4
        assert row["time/sync"] > 0
        assert 0 < row["grad_norm"] < 100
        assert row["kl"] == pytest.approx(0.0, abs=1e-6) if row["step"] == 1 else row["kl"] > 0


def test_two_workers_train_and_their_shards_are_saved(case: Case, model: Path) -> None:
    attempt = case.run.read_record()["attempts"][0]
    assert (attempt["workers"], attempt["vllm_device"], attempt["deepspeed"]) == (2, "cpu", case.deepspeed)
    assert case.run.read_state()["state"] == "finished"
    newest = case.run.complete_checkpoints()[0]
    stage = 3 if case.deepspeed.endswith("zero3.json") else 2
    assert (newest.step, newest.facts["world_size"], newest.facts["zero_stage"]) == (STEPS, 2, stage)
    files = json.loads((newest.path / "manifest.json").read_text())["files"]
    assert len([name for name in files if "optim_states" in name]) == 2
    before = load_file(model / "model.safetensors")
    after = load_file(case.run.snapshots / f"step-{STEPS}" / "model.safetensors")
    assert after.keys() == before.keys()
    assert all(after[name].shape == tensor.shape for name, tensor in before.items())
    assert any(not after[name].float().allclose(tensor, atol=1e-2) for name, tensor in before.items())


def test_every_completion_is_recorded_once_for_each_rank_s_prompts(case: Case) -> None:
    records = list(read_completions(case.run))
    accumulation = 1 if case.deepspeed.endswith("zero3.json") else 2
    for step in range(1, STEPS + 1):
        own = [record for record in records if record["step"] == step]
        assert len(own) == 2 * accumulation * 4
        # A prompt may come twice: at the end of one pass over the problems and the start of the next.
        assert {count % 4 for count in Counter(record["prompt"] for record in own).values()} == {0}
        assert all(1 <= record["tokens"] <= 32 for record in own)


def test_held_out_problems_are_measured_through_vllm(zero2: Case) -> None:
    measured = {row["step"]: row for row in read_metrics(zero2.run) if "eval_success" in row}
    assert list(measured) == [3, 6]
    held_out = len(zero2.run.held_out_file.read_text().splitlines())
    assert {row["eval_problems"] for row in measured.values()} == {held_out}


def test_a_killed_worker_and_a_killed_vllm_end_the_job_and_it_resumes_to_the_same_end(zero3: Case) -> None:
    (said, state), (said_of_vllm, state_of_vllm) = zero3.stops
    assert "rank 1 on node 0" in said
    assert "was killed by SIGKILL" in said
    assert "vLLM's process ended" in said_of_vllm
    assert state["exit_code"] == state_of_vllm["exit_code"] == 150
    for attempt, lost in ((1, 3), (2, 5)):
        assert_repeated(zero3.run, attempt, lost)


def test_sigterm_in_an_update_saves(zero2: Case) -> None:
    ((_, state),) = zero2.stops
    assert (state["state"], state["exit_code"]) == ("interrupted", 143)
    resumed = rows(zero2.run.attempts / "2" / "metrics.jsonl")
    assert [row["step"] for row in resumed if "loss" in row] == list(range(state["step"] + 1, STEPS + 1))
    assert 3 < state["step"] < STEPS


@pytest.mark.exhaustive
def test_a_run_that_was_killed_ends_with_the_same_weights(zero3: Case) -> None:
    same(zero3.run, zero3.finish(RunDir(zero3.folder / "whole")))


@pytest.mark.exhaustive
def test_sigterm_in_a_rollout_and_in_an_update_saves_and_the_run_resumes_to_the_same_end(zero2: Case) -> None:
    run = RunDir(zero2.folder / "stopped")
    before = len(zero2.stops)
    zero2.stop(run, 1, "rollout", Launch.terminate, 143)
    first = run.read_state()
    assert (first["state"], first["exit_code"], first["reason"]) == ("interrupted", 143, "SIGTERM")
    assert run.complete_checkpoints()[0].step == first["step"] < STEPS

    zero2.stop(run, 3, "update", signal_everybody, 143)
    second = run.read_state()
    assert (second["state"], second["exit_code"]) == ("interrupted", 143)
    assert first["step"] < run.complete_checkpoints()[0].step == second["step"] < STEPS

    zero2.finish(run)
    del zero2.stops[before:]
    whole = zero2.finish(RunDir(zero2.folder / "whole"))
    same(run, whole)
    same(zero2.run, whole)
