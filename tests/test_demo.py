"""The demo's whole path in its quick form; the rise itself is shown by bench/demo_learning.py."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Kit = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def quick(mini_r1: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kit:
    monkeypatch.setenv("MINI_R1_CACHE", str(tmp_path / "cache"))
    return lambda *arguments: mini_r1("demo", "--quick", "--run-dir", tmp_path / "run", *arguments)


def test_the_quick_demo_goes_the_whole_way(quick: Kit, tmp_path: Path) -> None:
    done = quick("--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)  # one object and nothing else
    for when in ("before", "after"):
        assert {"sampled", "greedy", "ci95", "tries", "random_solver"} <= set(result[when])
        low, high = result[when]["ci95"]
        assert 0 <= low <= result[when]["sampled"] <= high <= 1
    assert result["problems"] > 100
    assert result["seconds_warm_start"] > 0
    assert result["seconds_grpo"] > 0
    assert result["run_dir"] == str(tmp_path / "run")
    assert "going on" not in done.stderr

    again = quick()  # finished, and the model cached: only measured and shown
    assert again.returncode == 0, again.stderr
    assert "nothing to do" in again.stderr
    assert "warm start" not in again.stderr
    assert "held-out problems" in again.stdout
    assert again.stdout.count("before:") == again.stdout.count("after:") == 3
    assert "tries per answer" in again.stdout
    assert f"tensorboard --logdir {tmp_path / 'run'}/tensorboard" in again.stdout
    assert "What it does not show" in again.stdout


@pytest.mark.parametrize("where", ["a file/models", "full"])
def test_a_cache_that_cannot_hold_the_model_is_said_before_it_is_made(
    mini_r1: Kit, tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a file").write_text("")
    monkeypatch.setenv("MINI_R1_CACHE", "/dev/full/x" if where == "full" else str(tmp_path / where))
    done = mini_r1("demo", "--quick", "--run-dir", tmp_path / "run")
    assert done.returncode == 150
    assert "cannot be kept in" in done.stderr
    assert "Traceback" not in done.stderr
    assert "warm start 1" not in done.stderr
