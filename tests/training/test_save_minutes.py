"""`save_minutes`: a checkpoint by rank 0's clock, and a resume from it with the same bits."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mini_r1.run.reader import read_completions, read_metrics
from mini_r1.run.run_dir import RunDir
from mini_r1.training import attempt, rollout_engines
from safetensors.torch import load_file

from tests.conftest import without_times
from tests.training.workers import Ended, Workers, train

STEPS, RANKS = 6, 2


def train_by_the_clock(killed_at: int | None, *args: str | Path) -> None:
    """`mini-r1 train ARGS` with a clock that advances a minute at each reading; rank 1's never does.

    Args:
        killed_at: the rollout that kills this process.
        args: of the command.
    """
    minutes = itertools.count() if os.environ["RANK"] == "0" else itertools.repeat(0)
    sample, calls = rollout_engines.sample, itertools.count(1)

    class Clock:
        time = staticmethod(attempt.time.time)
        monotonic = staticmethod(lambda: 60.0 * next(minutes))

    def killed(*given: Any, **kwargs: Any) -> list[list[int]]:
        if next(calls) == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return sample(*given, **kwargs)

    attempt.time, rollout_engines.sample = Clock, killed
    train(*args)


def start(recipe: Path, run: RunDir, killed_at: int | None = None) -> list[Ended]:
    args = (killed_at, recipe, "--run-dir", run.path)
    with Workers(RANKS, train_by_the_clock, *args, folder=run.path.with_suffix(".logs")) as workers:
        return workers.wait()


def steps(run: RunDir) -> tuple[list[int], list[int]]:
    """Steps that have a checkpoint, and those that have a snapshot."""
    return [one.step for one in run.complete_checkpoints()], [one.step for one in run.complete_snapshots()]


@pytest.mark.exhaustive
def test_a_checkpoint_by_the_clock_of_rank_0_has_no_snapshot(small_recipe: Callable[..., Path], tmp_path: Path) -> None:
    changes = {"max_steps": STEPS, "save_steps": 5, "lr_scheduler_type": "cosine"}
    whole, run = RunDir(tmp_path / "whole"), RunDir(tmp_path / "run")
    # 0: training begins, 1 and 2: steps end, a save is due, 3: it is done, 4 and 5: steps end.
    by_the_clock = small_recipe("by-the-clock", save_minutes=2, **changes)
    assert {ended.code for ended in start(by_the_clock, run, killed_at=5)} == {-signal.SIGKILL}
    assert steps(run) == ([4, 2], [])
    assert [ended.code for ended in start(by_the_clock, run)] == [0, 0]
    assert steps(run) == ([6, 5], [6, 5])

    assert [ended.code for ended in start(small_recipe("plain", save_minutes=0, **changes), whole)] == [0, 0]
    assert steps(whole) == ([6, 5], [6, 5])
    assert without_times(read_metrics(run)) == without_times(read_metrics(whole))
    assert list(read_completions(run)) == list(read_completions(whole))
    for name, tensor in load_file(whole.checkpoints / f"step-{STEPS}" / "model.safetensors").items():
        assert tensor.equal(load_file(run.checkpoints / f"step-{STEPS}" / "model.safetensors")[name]), name


def test_checkpoints_at_every_step_keep_two_checkpoints_and_the_planned_snapshots(
    small_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    run = RunDir(tmp_path / "run")
    assert [ended.code for ended in start(small_recipe(max_steps=4, save_minutes=1e-6), run)] == [0, 0]
    assert steps(run) == ([4, 3], [4, 2])
