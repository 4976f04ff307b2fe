"""Which snapshot is the best."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mini_r1.publishing import figures
from mini_r1.rundir import RunDir

from tests.publishing.conftest import evaluation

STEPS = [6, 4, 2]


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """One with metrics alone."""
    run = RunDir(tmp_path / "run")
    (run.attempts / "1").mkdir(parents=True)
    return run


def curve(run: RunDir, **success: Any) -> None:
    rows = [{"step": int(step[1:]), "eval_success": value, "eval_problems": 20} for step, value in success.items()]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (run.attempts / "1" / "metrics.jsonl").write_text(text)
    (run.attempts / "1" / "completions.jsonl").write_text('{"step": 1}\n')


def test_the_highest_evaluation_is_the_best(run: RunDir) -> None:
    evaluation(run, 2, 0.3)
    evaluation(run, 4, 0.6)
    evaluation(run, 6, 0.5)
    curve(run, s2=0.9, s4=0.1)
    best = figures.best(run, STEPS)
    assert best is not None
    assert (best.step, best.success, best.source) == (4, 0.6, "evaluation/step-4.json")


def test_pass_at_1_goes_before_an_older_key(run: RunDir) -> None:
    evaluation(run, 2, 0.3, pass_at_k={"1": {"value": 0.8, "ci95": [0.7, 0.9]}})
    evaluation(run, 4, 0.6)
    assert figures.chosen_step(run, "BEST", STEPS) == 2


def test_the_earlier_of_two_alike(run: RunDir) -> None:
    evaluation(run, 6, 0.5)
    evaluation(run, 4, 0.5)
    assert figures.chosen_step(run, "BEST", STEPS) == 4


def test_other_problems_and_snapshots_that_are_gone_do_not_count(run: RunDir) -> None:
    evaluation(run, 6, 0.9, "step-6-1a2b3c4d.json")
    evaluation(run, 6, 0.9, "step-6-limit-10.json")
    evaluation(run, 8, 0.9)
    evaluation(run, 2, 0.1)
    assert figures.chosen_step(run, "BEST", STEPS) == 2


def test_without_evaluations_the_runs_own_curve_decides(run: RunDir) -> None:
    curve(run, s2=0.2, s4=0.4, s5=0.8, s6=None)
    best = figures.best(run, STEPS)
    assert best is not None
    assert (best.step, best.source, best.problems) == (4, "the run's own curve", 20)


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "null", '{"sampled": "0.5"}', '{"sampled": NaN}', '{"pass_at_k": {"1": 3}}', "\x00\xff",
        '{"sampled": 1' + "0" * 400 + "}", "[" * 100_000,
    ],
)  # fmt: skip
def test_a_broken_evaluation_counts_as_none(run: RunDir, text: str) -> None:
    run.evaluation.mkdir()
    (run.evaluation / "step-6.json").write_text(text)
    assert figures.best(run, STEPS) is None
    evaluation(run, 2, 0.1)
    assert figures.chosen_step(run, "BEST", STEPS) == 2
