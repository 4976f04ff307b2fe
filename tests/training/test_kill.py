"""Killed at any moment and resumed with the same command, a run ends as if nothing had happened.

Real processes, really killed (SIGKILL), at random moments between their start and their end; some of them while a save
is being written, some killed twice. The log is written every second step and a save comes every third, so that
most saves find a half-full window of metrics. Six such runs are quick, the 24 are exhaustive.
"""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from mini_r1.run.reader import read_metrics
from mini_r1.run.run_dir import RunDir

from tests.conftest import ASSETS
from tests.training.outcome import outcome
from tests.training.workers import Workers, train

STEPS = 8
JOBS = 2  # runs at a time


@pytest.fixture(scope="module")
def recipe(untrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    values = {
        "model_name_or_path": str(untrained), "dataset_id_or_path": str(ASSETS / "countdown_rows.jsonl"),
        "test_fraction": 0.25, "max_steps": STEPS, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2,
        "num_generations": 4, "max_prompt_length": 64, "max_completion_length": 24, "learning_rate": 1e-3,
        "lr_scheduler_type": "cosine", "beta": 0.01, "temperature": 1.0, "seed": 3, "logging_steps": 2, "save_steps": 3,
        "eval_strategy": "steps", "eval_steps": 4, "eval_on_start": True,
        # An untrained model is never right: a random reward makes the groups differ.
        "rewards": {"format": 1.0, "equation": 1.0, "random": 1.0},
        # Warnings that come and go again: what the watch remembers has to survive as well.
        "watch": {"entropy": "warn", "min_entropy": 5.0, "window": 3},
    }  # fmt: skip
    path = tmp_path_factory.mktemp("recipe") / "killed.yaml"
    path.write_text(json.dumps(values))
    return path


def to_the_end(recipe: Path, run: RunDir) -> None:
    with Workers(None, train, recipe, "--run-dir", run.path, folder=run.path.with_suffix(".logs")) as workers:
        (ended,) = workers.wait(120)
    assert ended.code == 0, ended.errors


@dataclass(frozen=True, slots=True)
class Whole:
    """An uninterrupted run and how long it took, in seconds."""

    run: RunDir
    starting: float
    """Before its first line of state.json."""
    training: float
    saving: float
    """One save, on average."""


@pytest.fixture(scope="module")
def whole(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    to_the_end(recipe, RunDir(tmp_path_factory.mktemp("first") / "run"))  # it waits for the imports
    run = RunDir(tmp_path_factory.mktemp("whole") / "run")
    begun = time.time()
    to_the_end(recipe, run)
    rows = read_metrics(run)
    saves = [row["time/save"] for row in rows if "time/save" in row]
    return Whole(run, rows[0]["time"] - begun, rows[-1]["time"] - rows[0]["time"], sum(saves) / len(saves))


def saving(*folders: Path) -> bool:
    """Whether a save is half written, or half deleted, in one of them."""
    return any(next(folder.glob("[!s]*"), None) for folder in folders)


@dataclass(frozen=True, slots=True)
class Kill:
    """What a kill hit."""

    signal: int
    step: int
    in_a_save: bool


def kill(recipe: Path, run: RunDir, moment: Callable[[], bool], delay: float) -> Kill:
    """Start the run, wait for the moment and `delay` seconds more, and kill it."""
    with Workers(None, train, recipe, "--run-dir", run.path, folder=run.path.with_suffix(".logs")) as workers:
        deadline = time.monotonic() + 60
        while not moment() and workers.running():
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(delay)
        workers.kill()
        (ended,) = workers.wait()
    return Kill(-ended.code, run.read_state().get("step", 0), saving(run.checkpoints, run.snapshots))


def killed_run(recipe: Path, folder: Path, number: int, whole: Whole) -> list[Kill]:
    """A run that is killed once or twice and then ends; the moments follow from its number."""
    chance, run, kills = random.Random(number), RunDir(folder / f"run-{number}"), []
    for attempt in range(1, 2 + (number % 2 or number % 3 == 0)):
        if number % 3 == 0:
            part, step = chance.choice([run.checkpoints, run.snapshots]), chance.choice([3, 6, STEPS])
            moment = partial(saves, run, attempt, part, step)
            part_of_it = 0.1 if attempt == 1 else 0.5  # soon, so that four kills of six runs hit a save at least once
            kills.append(kill(recipe, run, moment, chance.uniform(0, part_of_it * whole.saving)))
        elif number % 3 == 1:
            kills.append(kill(recipe, run, partial(trains, run, attempt), chance.uniform(0, whole.training)))
        else:  # also before the first step, and before there is a run at all
            kills.append(kill(recipe, run, lambda: True, chance.uniform(0, 2 * whole.starting)))
    to_the_end(recipe, run)
    return kills


def trains(run: RunDir, attempt: int) -> bool:
    return run.read_state().get("attempt", 0) >= attempt


def saves(run: RunDir, attempt: int, part: Path, step: int) -> bool:
    return trains(run, attempt) and run.read_state().get("step", 0) >= step and saving(part)


@pytest.mark.parametrize(
    ("runs", "killed", "steps", "in_a_save"), [(6, 5, 3, 1), pytest.param(24, 20, 5, 6, marks=pytest.mark.exhaustive)]
)
def test_a_run_killed_at_any_moment_ends_as_an_uninterrupted_one(
    recipe: Path, whole: Whole, tmp_path: Path, runs: int, killed: int, steps: int, in_a_save: int
) -> None:
    """The numbers after that of the runs say how many of them, at how many steps and in how many saves, were hit."""
    expected = outcome(whole.run)
    with ThreadPoolExecutor(JOBS) as pool:
        jobs = [pool.submit(killed_run, recipe, tmp_path, number, whole) for number in range(runs)]
        kills = [job.result() for job in jobs]
    for number in range(runs):
        run = RunDir(tmp_path / f"run-{number}")
        found = outcome(run)
        for name, value in expected.items():
            assert found[name] == value, f"run {number}, killed at {kills[number]}: another {name}"
        assert not saving(run.checkpoints, run.snapshots)
    hit = [one for each in kills for one in each if one.signal == signal.SIGKILL]
    assert sum(any(one.signal == signal.SIGKILL for one in each) for each in kills) >= killed, kills
    assert len({one.step for one in hit}) >= steps, kills
    assert sum(one.in_a_save for one in hit) >= in_a_save, kills
