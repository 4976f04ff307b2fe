"""A training run as a user starts it: its files, stopping and resuming, what it refuses.

The uninterrupted run, the one that is killed and continued, and the evaluation are started by the console script; the
others are forked, because their start is the same.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mini_r1.run.manifest import verify
from mini_r1.run.reader import read_completions, read_metrics
from mini_r1.run.run_dir import RunDir
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.conftest import ASSETS, command, rows, without_times
from tests.training.workers import Workers, run_forked, train

Recipe = Callable[..., Path]
Kit = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def finished(
    untrained: Path, tmp_path_factory: pytest.TempPathFactory, mini_r1: Kit
) -> tuple[RunDir, subprocess.CompletedProcess[str], Path]:
    """An uninterrupted run of six steps on real rows, and the recipe it came from."""
    folder = tmp_path_factory.mktemp("finished")
    recipe = folder / "six.yaml"
    values = {
        "model_name_or_path": str(untrained),
        "dataset_id_or_path": str(ASSETS / "countdown_rows.jsonl"),
        "test_fraction": 0.25, "max_steps": 6, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2,
        "num_generations": 4, "max_prompt_length": 64, "max_completion_length": 24, "learning_rate": 1e-3,
        "lr_scheduler_type": "cosine", "beta": 0.01, "temperature": 1.0, "save_steps": 2, "seed": 3,
        # An untrained model is never right: a random reward makes the groups differ.
        "rewards": {"format": 1.0, "equation": 1.0, "random": 1.0},
    }  # fmt: skip
    recipe.write_text(json.dumps(values))  # JSON is YAML
    done = mini_r1("train", recipe, "--run-dir", folder / "run")
    return RunDir(folder / "run"), done, recipe


def test_a_run_finishes_and_reports_progress(finished: tuple[RunDir, Any, Path]) -> None:
    run, done, _ = finished
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "finished at step 6" in done.stderr
    assert "Warning" not in done.stderr
    assert "accelerator" not in done.stderr  # DeepSpeed is imported by TRL, and not used
    assert "The loss prints as 0.0000 early on" in done.stderr
    assert "step 6/6  reward " in done.stderr
    state = run.read_state()
    assert (state["state"], state["step"], state["exit_code"], state["reason"]) == ("finished", 6, 0, "finished")


def test_the_run_directory_has_the_documented_files(finished: tuple[RunDir, Any, Path]) -> None:
    run, _, recipe = finished
    record = json.loads(run.run_file.read_text())
    assert record["attempts"][0]["versions"]["trl"] == "0.14.0"
    assert record["attempts"][0]["model"]["attention"] == "sdpa"
    assert record["attempts"][0]["command"][1:] == ["train", str(recipe), "--run-dir", str(run.path)]
    assert record["data"]["rows"] == 24
    assert [saved.step for saved in run.complete_checkpoints()] == [6, 4]
    assert [saved.step for saved in run.complete_snapshots()] == [6, 4, 2]
    assert all(verify(saved, run.run_id) is None for saved in [*run.complete_checkpoints(), *run.complete_snapshots()])
    assert list(run.tensorboard.glob("events.*"))
    assert len(rows(run.held_out_file)) == 6
    assert "INFO" in (run.attempts / "1" / "rank-0.log").read_text()


def test_held_out_problems_are_never_trained_on(finished: tuple[RunDir, Any, Path]) -> None:
    run, _, _ = finished
    held_out = {(tuple(sorted(r["nums"])), r["target"]) for r in rows(run.held_out_file)}
    trained = {(tuple(sorted(r["nums"])), r["target"]) for r in read_completions(run)}
    assert held_out
    assert trained
    assert not held_out & trained


def test_every_completion_is_recorded_with_its_verdicts(finished: tuple[RunDir, Any, Path]) -> None:
    run, _, _ = finished
    records = list(read_completions(run))
    assert len(records) == 6 * 4 * 4  # steps x prompts x generations
    for record in records:
        assert {"format", "equation", "format_original", "equation_original", "random"} <= set(record["rewards"])
        assert record["reward"] == sum(record["rewards"][name] for name in ("format", "equation", "random"))
        assert record["reason"]
        assert str(record["nums"]) in record["prompt"]
        assert record["prompt"].endswith("<think>")
        assert record["tokens"] <= 24
        assert record["truncated"] or record["tokens"] < 24 or record["completion"]
    for start in range(0, len(records), 4):
        group = records[start : start + 4]
        assert len({record["prompt"] for record in group}) == 1
        rewards = [record["reward"] for record in group]
        mean = sum(rewards) / 4
        std = (sum((r - mean) ** 2 for r in rewards) / 3) ** 0.5
        for record in group:
            assert record["advantage"] == pytest.approx((record["reward"] - mean) / (std + 1e-4), abs=1e-5)


def test_metrics_keep_trl_s_names_and_log_all_four_verdicts(finished: tuple[RunDir, Any, Path]) -> None:
    run, _, _ = finished
    metrics = read_metrics(run)
    assert [row["step"] for row in metrics] == [1, 2, 3, 4, 5, 6]
    for row in metrics:
        assert {"loss", "grad_norm", "learning_rate", "reward", "reward_std", "kl", "completion_length"} <= set(row)
        assert {
            f"rewards/{n}" for n in ("format", "equation", "format_original", "equation_original", "random")
        } <= set(row)
    assert metrics[0]["kl"] == pytest.approx(0.0, abs=1e-6)  # before the first update policy and reference are one
    assert metrics[-1]["kl"] > 0


def test_snapshots_are_16_bit_and_hold_the_trained_weights(finished: tuple[RunDir, Any, Path], untrained: Path) -> None:
    run, _, _ = finished
    weights = load_file(run.snapshots / "step-6" / "model.safetensors")
    assert {str(t.dtype) for t in weights.values()} == {"torch.bfloat16"}
    before = load_file(untrained / "model.safetensors")
    trained = load_file(run.checkpoints / "step-6" / "model.safetensors")
    for name, tensor in weights.items():
        assert tensor.equal(trained[name].bfloat16())
    assert any(not trained[name].equal(before[name]) for name in before)
    assert json.loads((run.snapshots / "step-6" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert (run.snapshots / "step-6" / "tokenizer.json").is_file()


def test_the_original_s_sample_files_have_step_numbers_target_and_rewards(finished: tuple[RunDir, Any, Path]) -> None:
    run, _, _ = finished
    text = (run.completion_samples / "completion_samples.txt").read_text()
    entries = text.split("\n\n==============\n")[1:]
    assert 6 <= len(entries) <= 12  # a tenth of 96
    assert all(e.startswith("step ") and " | numbers [" in e and " | target " in e and "<think>" in e for e in entries)
    assert (run.completion_samples / "success_completion_samples.txt").is_file()


def test_starting_a_finished_run_reports_that_it_is_finished(
    finished: tuple[RunDir, Any, Path], tmp_path: Path
) -> None:
    run, _, recipe = finished
    before = run.run_file.read_text()
    again = run_forked("train", recipe, "--run-dir", run.path, folder=tmp_path)
    assert again.code == 0
    assert "is finished at step 6: nothing to do" in again.errors
    assert run.run_file.read_text() == before


def test_another_recipe_in_the_same_directory_is_refused_by_key(
    finished: tuple[RunDir, Any, Path], tmp_path: Path
) -> None:
    run, _, recipe = finished
    changes = ("--set", "beta=0.5", "--set", "logging_steps=2")
    other = run_forked("train", recipe, "--run-dir", run.path, *changes, folder=tmp_path)
    assert other.code == 78
    assert "beta: the run has 0.01, the recipe has 0.5" in other.errors
    assert "logging_steps" not in other.errors  # changes nothing that the run means


@pytest.mark.exhaustive
def test_a_killed_run_resumes_to_the_same_end(finished: tuple[RunDir, Any, Path], tmp_path: Path, mini_r1: Kit) -> None:
    whole, _, recipe = finished
    run = RunDir(tmp_path / "run")
    process = subprocess.Popen(
        [*command(), "train", str(recipe), "--run-dir", str(run.path)], stderr=subprocess.PIPE, env=os.environ
    )
    _wait_for(lambda: _logged(run) >= 3, lambda: process.poll() is None)
    process.kill()
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    assert run.read_state()["state"] == "running"
    assert run.complete_checkpoints()[0].step < 6

    again = mini_r1("train", recipe, "--run-dir", run.path)
    assert again.returncode == 0
    assert "Warning" not in again.stderr
    _same_end(run, whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=lambda n: n.name)
def test_a_stopped_run_resumes_to_the_same_end(
    finished: tuple[RunDir, Any, Path], number: signal.Signals, tmp_path: Path
) -> None:
    whole, _, recipe = finished
    run = RunDir(tmp_path / "run")
    ended = _start_and_signal(recipe, run, number, when=lambda: _logged(run) >= 3)
    assert ended == 143
    state = run.read_state()
    assert (state["state"], state["exit_code"], state["reason"]) == ("interrupted", 143, number.name)
    assert run.complete_checkpoints()[0].step == state["step"] < 6

    again = run_forked("train", recipe, "--run-dir", run.path, folder=tmp_path)
    assert again.code == 0
    assert "Warning" not in again.errors
    _same_end(run, whole)


def _same_end(run: RunDir, whole: RunDir) -> None:
    """Assert that a run that was interrupted once ended as the uninterrupted one."""
    assert without_times(read_metrics(run)) == without_times(read_metrics(whole))
    assert list(read_completions(run)) == list(read_completions(whole))
    resumed = load_file(run.checkpoints / "step-6" / "model.safetensors")
    for name, tensor in load_file(whole.checkpoints / "step-6" / "model.safetensors").items():
        assert tensor.equal(resumed[name]), name
    assert curve(run) == curve(whole) == [1, 2, 3, 4, 5, 6]
    assert sorted(p.name for p in run.attempts.iterdir()) == ["1", "2"]
    assert len(json.loads(run.run_file.read_text())["attempts"]) == 2


def test_a_damaged_newest_checkpoint_is_skipped_and_reported(
    finished: tuple[RunDir, Any, Path], tmp_path: Path
) -> None:
    whole, _, recipe = finished
    run = RunDir(tmp_path / "run")
    _start_and_signal(recipe, run, signal.SIGKILL, when=lambda: (run.checkpoints / "step-4").exists())
    newest = run.complete_checkpoints()[0]
    (newest.path / "optimizer.pt").write_bytes(b"not an optimizer")
    done = run_forked("train", recipe, "--run-dir", run.path, folder=tmp_path)
    assert done.code == 0, done.errors
    assert f"checkpoint of step {newest.step} is damaged and skipped: optimizer.pt has 16 bytes" in done.errors
    assert without_times(read_metrics(run)) == without_times(read_metrics(whole))


def _start_and_signal(recipe: Path, run: RunDir, number: signal.Signals, when: Callable[[], bool]) -> int:
    """Start a run, send it a signal as soon as `when` holds, and return its exit code."""
    with Workers(None, train, recipe, "--run-dir", run.path, folder=run.path.parent) as workers:
        _wait_for(when, workers.running)
        workers.send(number)
        (ended,) = workers.wait(120)
    return ended.code


def _wait_for(condition: Callable[[], bool], running: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert running(), "it ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.01)


def curve(run: RunDir) -> list[int]:
    """Steps of the reward as TensorBoard shows it."""
    events = EventAccumulator(str(run.tensorboard)).Reload()
    return [event.step for event in events.Scalars("rewards/reward")]


def _logged(run: RunDir) -> int:
    return len(read_metrics(run))


def test_a_longer_run_is_refused_with_the_command_that_trains_on(
    finished: tuple[RunDir, Any, Path], mini_r1: Kit, tmp_path: Path
) -> None:
    run, _, recipe = finished
    refused = mini_r1("train", recipe, "--run-dir", run.path, "--set", "max_steps=8")
    assert refused.returncode == 78
    assert "max_steps: the run has 6, the recipe has 8" in refused.stderr
    (line,) = [line for line in refused.stderr.splitlines() if line.startswith("  mini-r1 launch RECIPE")]
    words = line.replace(f"{run.path}-continued", str(tmp_path / "continued")).replace("=N", "=1").split()
    done = mini_r1("train", recipe, *words[3:])
    assert done.returncode == 0, done.stderr
    assert RunDir(tmp_path / "continued").read_state()["step"] == 1


def test_evaluation_finds_snapshot_problems_and_settings_in_the_run(
    finished: tuple[RunDir, Any, Path], mini_r1: Kit
) -> None:
    run, _, _ = finished
    done = mini_r1("evaluate", run.path, "--samples", "2", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["problems"], result["samples"], result["provenance"]["step"]) == (6, 2, 6)
    series = result.pop("series")
    assert json.loads((run.evaluation / "step-6.json").read_text()) == result
    assert series["measured"] == [0, *(saved.step for saved in reversed(run.complete_snapshots()))]
    assert result["baselines"]["untrained"]["sampled"] == series["evaluations"][0]["sampled"]
    assert {"greedy", "sampled", "ci95", "pass_at_k", "by_size", "reasons"} <= set(result)
