"""The demo's whole path in its quick form; the rise itself is shown by bench/demo_learning.py."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mini_r1.cli.demo import describe_next_steps, describe_result
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.training.workers import run_forked

Kit = Callable[..., subprocess.CompletedProcess[str]]


def test_the_quick_demo_runs_the_whole_path(mini_r1: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINI_R1_CACHE", str(tmp_path / "cache"))
    fewer = ("--set", "warm_start.traces=2000", "--set", "dataset_rows=200")
    command = ("demo", "--quick", *fewer, "--run-dir", tmp_path / "run")
    done = mini_r1(*command, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)  # one object and nothing else
    for when in ("before", "after"):
        assert {"sampled", "greedy", "ci95", "tries", "baselines"} <= set(result[when])
        low, high = result[when]["ci95"]
        assert 0 <= low <= result[when]["sampled"] <= high <= 1
    assert result["problems"] > 50
    assert result["rise"]["sampled"] == pytest.approx(
        result["after"]["sampled"] - result["before"]["sampled"], abs=1e-5
    )
    newest = tmp_path / "run" / "evaluation" / "step-2.json"
    assert json.loads(newest.read_text())["sampled"] == result["after"]["sampled"]
    assert "held out, step 2" in mini_r1("runs", tmp_path / "run", "--json").stdout
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("held_out/sampled")] == [0, 2]
    assert result["seconds_warm_start"] > 0
    assert result["seconds_grpo"] > 0
    assert result["run_dir"] == str(tmp_path / "run")
    assert "resuming after" not in done.stderr

    again = run_forked(*command, folder=tmp_path)  # finished and measured: only shown
    assert again.code == 0, again.errors
    assert "nothing to do" in again.errors
    assert again.errors.count("measured already with the same settings") == 2
    assert "warm start" not in again.errors
    assert "held-out problems" in again.output
    assert again.output.count("before:") == again.output.count("after:") == 3
    assert "tries per answer" in again.output
    assert f"tensorboard --logdir {tmp_path / 'run'}/tensorboard" in again.output
    assert "did not rise in this run" in again.output  # two small steps show nothing
    assert "What it does not show" not in again.output


def figures(tries: float, over: list[float] | None) -> dict[str, Any]:
    return {"tries": tries, "baselines": {"random_solver": {"observed_over_expected_ci95": over}}}


@pytest.mark.parametrize(("found", "program"), [(None, ".venv/bin/mini-r1"), ("/usr/bin/mini-r1", "mini-r1")])
def test_the_next_steps_can_be_copied(monkeypatch: pytest.MonkeyPatch, found: str | None, program: str) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: found)
    monkeypatch.setattr(sys, "argv", [".venv/bin/mini-r1", "demo"])
    lines = [shlex.split(line, comments=True) for line in describe_next_steps("runs/my demo").splitlines()]
    assert lines == [
        [program, "report", "runs/my demo"],
        [program, "samples", "runs/my demo", "--ok"],
        [program, "play", "runs/my demo"],
        [program.replace("mini-r1", "tensorboard"), "--logdir", "runs/my demo/tensorboard"],
    ]


@pytest.mark.parametrize(
    ("rise", "tries", "over", "said", "unsaid"),
    [
        ([0.3, 0.4], 3.6, [0.7, 0.9], ["rose by 35.0 points", "1.4 tries", "less often than"], ["did not rise"]),
        ([0.3, 0.4], 3.6, [0.9, 1.1], ["about as often as"], ["less often"]),
        ([0.3, 0.4], 3.6, [1.1, 1.3], ["more often than"], ["less often"]),
        ([0.3, 0.4], 1.2, [0.7, 0.9], ["rose by 35.0 points"], ["aha moment"]),
        ([0.3, 0.4], 3.6, None, ["rose by 35.0 points"], ["What it does not show"]),
        ([-0.1, 0.1], 3.6, [0.7, 0.9], ["did not rise"], ["aha moment", "reasoning"]),
        (None, 3.6, [0.7, 0.9], ["did not rise"], ["aha moment", "reasoning"]),
    ],
)
def test_the_closing_text_claims_what_happened(
    rise: list[float] | None, tries: float, over: list[float] | None, said: list[str], unsaid: list[str]
) -> None:
    result = {"before": figures(1.4, None), "after": figures(tries, over), "rise": {"sampled": 0.35, "ci95": rise}}
    text = describe_result(result)
    assert all(words in text for words in said), text
    assert not any(words in text for words in unsaid), text


@pytest.mark.parametrize("where", ["a file/models", "full"])
def test_a_cache_that_cannot_hold_the_model_is_refused_before_it_is_made(
    tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a file").write_text("")
    monkeypatch.setenv("MINI_R1_CACHE", "/dev/full/x" if where == "full" else str(tmp_path / where))
    done = run_forked("demo", "--quick", "--run-dir", tmp_path / "run", folder=tmp_path)
    assert done.code == 150
    assert "cannot be kept in" in done.errors
    assert "Traceback" not in done.errors
    assert "warm start 1" not in done.errors
