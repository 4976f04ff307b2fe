"""What bench/gpu says of the answers that it reads, and what its bars let through: its figures are claims."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mini_r1.recipe.fields import Recipe
from mini_r1.tasks.countdown.data import read_problems
from mini_r1.tasks.countdown.problem import Problem
from mini_r1.tasks.countdown.rewards import judge

from tests.gpu_benches import GPU, gpu_benches

RIGHT = "20 + 3 = 23 - 2 = 21 (yes)\n</think>\n<answer>20 + 3 - 2</answer>"


@pytest.fixture(scope="module")
def scratch() -> Iterator[Any]:
    with gpu_benches("scratch") as benches:
        yield benches.scratch


@pytest.fixture
def report(scratch: Any) -> Any:
    return importlib.import_module("_report")


def answer(completion: str, target: int = 21, nums: tuple[int, ...] = (20, 3, 2)) -> dict[str, Any]:
    return {
        "kind": "sampled",
        "nums": list(nums),
        "target": target,
        "completion": completion,
        "tries": judge(completion, Problem(nums, target)).tries,
        "tokens": 9,
        "truncated": False,
    }


@pytest.mark.parametrize(
    ("completion", "repeated", "false_claims", "arithmetic"),
    [
        pytest.param(RIGHT, 0, 0, 1, id="right"),
        pytest.param("20 - 3 = 17 - 2 = 15 (too low)\n" * 2 + RIGHT, 1 / 3, 0, 1, id="one result twice"),
        pytest.param("20 + 3 = 24 - 2 = 21 (yes)\n</think>", 0, 1, 0, id="yes to a wrong calculation"),
        pytest.param("20 - 3 = 17 - 2 = 15 (yes)\n</think>", 0, 1, 1, id="yes to another result"),
        pytest.param("1 + 1 = 3 (yes)\n<answer>1 + 1</answer>", 0, 1, 0, id="the thought is never closed"),
        pytest.param("</think>\n1 + 1 = 3 (yes)", 0, 0, 0, id="after the thought nothing counts"),
    ],
)
def test_of_an_answer_it_tells_repeated_tries_false_claims_and_arithmetic(
    scratch: Any, completion: str, repeated: float, false_claims: float, arithmetic: float
) -> None:
    said = scratch.worth_of_tries([answer(completion)])
    assert said == pytest.approx({"repeated": repeated, "false_claims": false_claims, "arithmetic": arithmetic})


def test_the_patient_solver_is_told_by_its_chances_at_the_models_tries(scratch: Any) -> None:
    recipe = Recipe(model_name_or_path="builtin:scratch", max_steps=1)
    line = "20 - 3 = 17 - 2 = 15 (too low)\n"
    one, many = (scratch.patient([answer(line * tries + "</think>")] * 4, recipe) for tries in (1, 40))
    assert 0 < one["expected"] < 4 / 5
    assert many["expected"] > 4  # it would have hit long before
    assert one["success_at_tries"]["1"] == pytest.approx(one["expected"] / 4, abs=0.08)
    assert one["observed"] == many["observed"] == 0
    assert scratch.patient([answer(line * 40 + "</think>", target=99)], recipe)["expected"] == 0
    right = scratch.patient([answer(RIGHT), answer(RIGHT), answer(RIGHT, nums=(20, 3, 1), target=5)], recipe)
    assert (right["observed"], right["problems"]) == (2, 2)


def test_hub_rows_of_the_training_are_left_out_in_any_order_of_their_numbers(scratch: Any) -> None:
    rows = [Problem((1, 2, 3), 6), Problem((3, 2, 1), 7), Problem((1, 2, 4), 6)]
    assert scratch.unseen(rows, [Problem((3, 1, 2), 6)]) == (rows[1:], 1)


def test_the_hub_rows_are_two_hundred_different_problems_of_the_real_game() -> None:
    rows = read_problems(GPU / "hub_rows.jsonl")
    assert len(rows) == len({row.key for row in rows}) == 200
    assert {len(row.nums) for row in rows} == {3, 4}
    assert all(10 <= row.target <= 100 and all(1 <= n <= 99 for n in row.nums) for row in rows)


def figures(**changes: Any) -> dict[str, Any]:
    """Figures of a run that meets all bars."""
    after = {"sampled": 0.6, "ci95": [0.57, 0.63], "needs": 0.2, "signed_sums": 1.1, "random_solver": 1.2}
    after.update(changes.get("after", {}))
    before = {"sampled": 0.25, "ci95": [0.22, 0.28], "needs": 0.1, "signed_sums": 1, "random_solver": 1}
    before.update(changes.get("before", {}))
    return {
        "measured": {
            "held out": {
                when: {
                    "sampled": seen["sampled"],
                    "ci95": seen["ci95"],
                    "by_operators": {"needs_multiply_or_divide": {"sampled": seen["needs"]}},
                    "solvers": {
                        name: {"observed_over_expected_ci95": [seen[name] - 0.05, seen[name] + 0.05]}
                        for name in ("signed_sums", "random_solver")
                    },
                }
                for when, seen in (("before", before), ("after", after))
            }
        }
    }


@pytest.mark.parametrize(
    ("changes", "missed"),
    [
        pytest.param({}, [], id="all met"),
        pytest.param({"before": {"sampled": 0.149}}, ["warm start"], id="too weak a start"),
        pytest.param(
            {"before": {"sampled": 0.41, "ci95": [0.4, 0.42]}}, ["warm start", "rise"], id="too strong a start"
        ),
        pytest.param({"after": {"sampled": 0.549}}, ["after"], id="too low an end"),
        pytest.param({"before": {"ci95": [0.1, 0.58]}}, ["rise"], id="intervals overlap"),
        pytest.param({"after": {"needs": 0.149}}, ["where"], id="only sums"),
        pytest.param({"after": {"signed_sums": 1.04}}, ["above"], id="as good as signed sums"),
        pytest.param({"after": {"random_solver": 0.9}}, ["above"], id="below the random solver"),
    ],
)
def test_each_bar_of_the_scratch_run_can_be_missed(report: Any, changes: dict[str, Any], missed: list[str]) -> None:
    seen = {bar.removeprefix("held out: ").split()[0]: met for bar, met in report.scratch_bars(figures(**changes))}
    assert [bar for bar, met in seen.items() if not met] == [word.split()[0] for word in missed]
    assert len(seen) == 5


def test_bars_are_for_units_at_full_scale_alone(report: Any) -> None:
    assert report.bars({"scratch-small": figures(), "scratch-tiny": figures(), "smoke": {"output": "ok"}}) == []
    assert len(report.bars({"scratch-0": figures()})) == 5


def bench(folder: Path, units: str) -> subprocess.CompletedProcess[str]:
    """`bench/gpu/run.py` at its tiny size; results are in `folder`/out."""
    command = [
        sys.executable, GPU / "run.py", "--scale", "tiny", "--out", folder / "out", "--scratch", folder / "s",
        "--only", units, "--rounds", "1", "--limit-s", "3000",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def results_in(folder: Path) -> dict[str, Any]:
    results = {path.stem: json.loads(path.read_text()) for path in (folder / "out").glob("*.json")}
    assert all(result["complete"] and "error" not in result for result in results.values())
    return results


@pytest.mark.exhaustive
def test_a_unit_runs_at_a_tiny_size_and_is_not_run_again_when_it_is_complete(tmp_path: Path) -> None:
    """The bench reaches into the trainer and the sampler: a changed name must not be found out on a GPU."""
    bench(tmp_path, "step-time")
    results = results_in(tmp_path)
    assert list(results) == ["step-time-tiny"]
    (one_round,) = results["step-time-tiny"]["rounds"]
    assert one_round["kit"]["lengths"] == one_round["stock"]["lengths"]
    again = bench(tmp_path, "step-time")
    assert again.stderr.count(": is there\n") == 1
    assert "begins" not in again.stderr


@pytest.mark.exhaustive
@pytest.mark.real
def test_the_units_that_reach_into_the_trainer_run_at_a_tiny_size(tmp_path: Path) -> None:
    bench(tmp_path, "memory-tiny-1,trl-fixes")
    assert sorted(results_in(tmp_path)) == ["memory-tiny-1", "trl-fixes-tiny"]


@pytest.mark.exhaustive
def test_every_unit_runs_at_a_tiny_size(tmp_path: Path) -> None:
    first = bench(tmp_path, "step-time,memory,trl-fixes,scratch")
    results = results_in(tmp_path)
    assert sorted(results) == ["memory-tiny-1", "memory-tiny-4", "scratch-tiny", "step-time-tiny", "trl-fixes-tiny"]
    assert all(seen["measured"] > 0 for seen in results["memory-tiny-1"]["moments"].values())
    measured = results["scratch-tiny"]["measured"]
    assert {when: seen["problems"] for when, seen in measured["held out"].items()} == {"before": 20, "after": 20}
    assert measured["hub rows"]["after"]["problems"] + results["scratch-tiny"]["hub_rows_seen_in_training"] == 200
    again = bench(tmp_path, "step-time,memory,trl-fixes,scratch")
    assert again.stderr.count(": is there") == 5  # units print side by side
    assert "begins" not in again.stderr
    assert (tmp_path / "out" / "RESULTS.md").read_text() in first.stdout
    assert (tmp_path / "out" / "scratch-tiny.tar.gz").stat().st_size < 2**20
