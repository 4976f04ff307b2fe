"""A stop in the middle of a step: what has begun is abandoned, the last finished step is saved, the resume is exact.

Real processes that signal themselves at a named moment. After the signal the rollout of the test never ends by itself:
a run that waits for the end of its step does not end here.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from mini_r1.run.reader import read_completions, read_metrics
from mini_r1.run.run_dir import RunDir
from mini_r1.tasks.countdown.countdown_task import CountdownTask
from mini_r1.training import rollout_engines
from mini_r1.training.trainer import CountdownTrainer
from safetensors.torch import load_file

from tests.conftest import ASSETS, without_times
from tests.training.workers import Ended, Workers, train, wait_until

STEPS = 6


def train_and_stop(moment: str, count: int, number: signal.Signals, *args: str | Path) -> None:
    """`mini-r1 train ARGS`, which gets a signal when a moment comes for the `count`-th time.

    Args:
        moment: rollout, evaluate, score (of a completion) or reference (of a micro-batch).
        count: 1 is the first time.
        number: the signal.
        args: of the command.
    """
    left = [count]

    def reached(name: str) -> bool:
        left[0] -= name == moment
        if name != moment or left[0]:
            return False
        os.kill(os.getpid(), number)
        return True

    sample, judge, completion_logps = rollout_engines.sample, CountdownTask.judge, CountdownTrainer._completion_logps

    def sampled(model: Any, prompts: Any, config: Any, **kwargs: Any) -> Any:
        if reached("evaluate" if config.num_generations == 1 else "rollout"):
            wait_until(kwargs["stop"])
        return sample(model, prompts, config, **kwargs)

    def judged(*args: Any) -> Any:
        reached("score")
        return judge(*args)

    def logps(self: Any, *args: Any) -> Any:
        if not torch.is_grad_enabled():
            reached("reference")
        return completion_logps(self, *args)

    rollout_engines.sample, CountdownTrainer._completion_logps = sampled, logps
    CountdownTask.judge = judged  # type: ignore[method-assign]
    train(*args)


@pytest.fixture(scope="module")
def recipe(untrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    values = {
        "model_name_or_path": str(untrained), "dataset_id_or_path": str(ASSETS / "countdown_rows.jsonl"),
        "test_fraction": 0.25, "max_steps": STEPS, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2,
        "num_generations": 4, "max_prompt_length": 64, "max_completion_length": 24, "learning_rate": 1e-2,
        "lr_scheduler_type": "cosine", "beta": 0.01, "temperature": 1.0, "seed": 3, "save_strategy": "no",
        "logging_steps": 2, "eval_strategy": "steps", "eval_steps": 4,
        "max_tokens_per_micro_batch": 420,  # half of the 16 completions of a step: two micro-batches
        # Dropout draws from torch's global generator, whose state has to be resumed too.
        "use_peft": True, "lora_target_modules": "all-linear", "lora_dropout": 0.1,
        # An untrained model is never right: a random reward makes the groups differ.
        "rewards": {"format": 1.0, "equation": 1.0, "random": 1.0},
    }  # fmt: skip
    path = tmp_path_factory.mktemp("recipe") / "stopped.yaml"
    path.write_text(json.dumps(values))
    return path


def start(
    recipe: Path, run: RunDir, moment: str = "", count: int = 0, number: signal.Signals = signal.SIGTERM
) -> Ended:
    args = (moment, count, number, recipe, "--run-dir", run.path)
    with Workers(None, train_and_stop, *args, folder=run.path.with_suffix(".logs")) as workers:
        (ended,) = workers.wait(120)
    return ended


def test_a_run_stopped_in_a_step_saves_the_last_finished_step_and_resumes_exactly(recipe: Path, tmp_path: Path) -> None:
    whole, run = RunDir(tmp_path / "whole"), RunDir(tmp_path / "run")
    assert start(recipe, whole).code == 0

    def stop(moment: str, count: int, *, step: int, saved: list[int], number: signal.Signals = signal.SIGTERM) -> Ended:
        ended = start(recipe, run, moment, count, number)
        assert ended.code == 143, ended.errors
        state = run.read_state()
        assert (state["state"], state["step"], state["reason"]) == ("interrupted", step, number.name), moment
        assert [checkpoint.step for checkpoint in run.complete_checkpoints()] == saved, moment
        return ended

    first = stop("rollout", 1, step=0, saved=[])
    assert "interrupted before the first step was finished, so nothing is saved" in first.errors
    assert "SIGTERM: saving what is done, then exiting" in first.errors
    second = stop("rollout", 2, step=1, saved=[1], number=signal.SIGINT)
    assert "interrupted after step 1, saved: the same command resumes there" in second.errors
    written = (run.checkpoints / "step-1").stat().st_mtime_ns
    stop("rollout", 1, step=1, saved=[1], number=signal.SIGUSR1)
    assert (run.checkpoints / "step-1").stat().st_mtime_ns == written
    stop("score", 17, step=2, saved=[2, 1])
    stop("reference", 3, step=3, saved=[3, 2])
    stop("evaluate", 1, step=4, saved=[4, 3])
    stop("evaluate", 1, step=4, saved=[4, 3])
    stop("evaluate", 2, step=STEPS, saved=[STEPS, 4])  # the first one is that of step 4
    assert start(recipe, run).code == 0
    assert run.read_state()["state"] == "finished"

    assert without_times(read_metrics(run)) == without_times(read_metrics(whole))
    assert [row["step"] for row in read_metrics(run) if "eval_success" in row] == [4, STEPS]
    assert list(read_completions(run)) == list(read_completions(whole))
    folders = [each.checkpoints / f"step-{STEPS}" for each in (run, whole)]
    ours, theirs = (load_file(folder / "adapter_model.safetensors") for folder in folders)
    for name, tensor in theirs.items():
        assert tensor.equal(ours[name]), name
