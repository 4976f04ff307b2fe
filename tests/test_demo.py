"""The demo's whole path in its quick form; the rise itself is shown by bench/demo_learning.py."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.training.workers import run_forked

Kit = Callable[..., subprocess.CompletedProcess[str]]


def test_the_quick_demo_goes_the_whole_way(mini_r1: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINI_R1_CACHE", str(tmp_path / "cache"))
    fewer = ("--set", "warm_start.traces=2000", "--set", "dataset_rows=200")
    command = ("demo", "--quick", *fewer, "--run-dir", tmp_path / "run")
    done = mini_r1(*command, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)  # one object and nothing else
    for when in ("before", "after"):
        assert {"sampled", "greedy", "ci95", "tries", "random_solver"} <= set(result[when])
        low, high = result[when]["ci95"]
        assert 0 <= low <= result[when]["sampled"] <= high <= 1
    assert result["problems"] > 50
    assert result["seconds_warm_start"] > 0
    assert result["seconds_grpo"] > 0
    assert result["run_dir"] == str(tmp_path / "run")
    assert "going on" not in done.stderr

    again = run_forked(*command, folder=tmp_path)  # finished, and the model cached: only measured and shown
    assert again.code == 0, again.errors
    assert "nothing to do" in again.errors
    assert "warm start" not in again.errors
    assert "held-out problems" in again.output
    assert again.output.count("before:") == again.output.count("after:") == 3
    assert "tries per answer" in again.output
    assert f"tensorboard --logdir {tmp_path / 'run'}/tensorboard" in again.output
    assert "What it does not show" in again.output


@pytest.mark.parametrize("where", ["a file/models", "full"])
def test_a_cache_that_cannot_hold_the_model_is_said_before_it_is_made(
    tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a file").write_text("")
    monkeypatch.setenv("MINI_R1_CACHE", "/dev/full/x" if where == "full" else str(tmp_path / where))
    done = run_forked("demo", "--quick", "--run-dir", tmp_path / "run", folder=tmp_path)
    assert done.code == 150
    assert "cannot be kept in" in done.errors
    assert "Traceback" not in done.errors
    assert "warm start 1" not in done.errors
