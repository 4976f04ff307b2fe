"""GRPO learns: after a short warm start the format reward rises within a few steps; with random rewards it does not."""

from __future__ import annotations

from pathlib import Path

import pytest
from mini_r1.cli.training_commands import train
from mini_r1.errors import ExitCode
from mini_r1.run.reader import read_metrics
from mini_r1.run.run_dir import RunDir

SMALL = [
    "warm_start.steps=80", "warm_start.traces=3000", "warm_start.min_accuracy=0", "dataset_rows=600",
    "gradient_accumulation_steps=1", "max_steps=12", "warmup_steps=0", "learning_rate=1e-3",
]  # fmt: skip
"""After 80 steps of the warm start about 30 % of the answers have the right format; after all 900, too many to rise."""


def test_the_format_reward_rises_and_with_random_rewards_it_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINI_R1_CACHE", str(tmp_path / "cache"))
    first, last = _format_of("learned", SMALL, tmp_path)
    assert last > first + 0.15
    assert 0.15 < first < 0.6
    first, last = _format_of("control", [*SMALL, "rewards={random: 1.0}"], tmp_path)
    assert last < first + 0.1


def _format_of(name: str, overrides: list[str], folder: Path) -> tuple[float, float]:
    """Mean format reward of the first and the last three steps of a run."""
    run = RunDir(folder / name)
    assert train("demo-cpu", overrides, run.path) == ExitCode.FINISHED
    shares = [row["rewards/format"] for row in read_metrics(run)]
    return sum(shares[:3]) / 3, sum(shares[-3:]) / 3
