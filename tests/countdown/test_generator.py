"""The generator: deterministic, every row solvable, distributed like the hub data set."""

from __future__ import annotations

from hashlib import sha256
from itertools import islice
from pathlib import Path

import pytest
from mini_r1.tasks.countdown.data import inspect, read_problems
from mini_r1.tasks.countdown.generator import GeneratorSpec, generate
from mini_r1.tasks.countdown.generator_rule import solvable_by_generator_rule
from mini_r1.tasks.countdown.problem import Problem
from mini_r1.tasks.countdown.solver import solve
from mini_r1.tasks.data_errors import DataError

ASSETS = Path(__file__).parents[1] / "assets"


@pytest.fixture(scope="module")
def rows() -> list[Problem]:
    return list(generate(3000, seed=42))


def test_a_seed_is_a_data_set(rows: list[Problem]) -> None:
    assert list(generate(200, seed=42)) == rows[:200]
    assert list(islice(generate(10**9, seed=42), 50)) == rows[:50]
    assert list(generate(200, seed=43)) != rows[:200]
    # The same on every supported Python version: this figure was made on 3.11.
    assert sha256(repr(rows[:100]).encode()).hexdigest()[:16] == "5bfe542b3f05b49f"


def test_every_row_is_distinct_and_solvable(rows: list[Problem]) -> None:
    assert len(set(rows)) == len(rows)
    for problem in rows:
        assert solvable_by_generator_rule(problem.nums, problem.target)
    for problem in rows[:300]:
        assert solve(problem.nums, problem.target) is not None


def test_the_distribution_is_the_hub_sets(rows: list[Problem]) -> None:
    ours, hub = inspect(rows), inspect(read_problems(ASSETS / "countdown_rows.jsonl"))
    assert hub["solvable_share"] == ours["solvable_share"] == 1.0
    assert ours["target"] == {"min": 10, "max": 100}
    assert ours["number"] == {"min": 1, "max": 99}
    three, four = ours["by_size"]["3"], ours["by_size"]["4"]  # type: ignore[index]
    # Known of the whole hub set: half of each size, and addition and subtraction solve 71 % and 34 %.
    # Four standard errors at 1,500 rows are 5 points.
    assert abs(three["share"] - 0.5) < 0.04
    assert abs(1 - three["needs_mul_div_share"] - 0.71) < 0.05
    assert abs(1 - four["needs_mul_div_share"] - 0.34) < 0.05
    mean_target = sum(problem.target for problem in rows) / len(rows)
    assert abs(mean_target - 55) < 2


def test_a_small_specification() -> None:
    spec = GeneratorSpec(sizes=(2, 3), low=1, high=9, target_low=1, target_high=20, operators="+-", max_intermediate=15)
    problems = list(generate(300, seed=1, spec=spec))
    assert len(problems) == 300
    for problem in problems:
        assert len(problem.nums) in (2, 3)
        assert all(1 <= number <= 9 for number in problem.nums)
        assert 1 <= problem.target <= 20
        assert solvable_by_generator_rule(problem.nums, problem.target, "+-", 15)


def test_too_few_distinct_problems_are_an_error_after_the_rows_before() -> None:
    spec = GeneratorSpec(sizes=(2,), low=1, high=3, target_low=2, target_high=100, operators="+")
    stream = generate(100, seed=1, spec=spec)
    found = []
    with pytest.raises(DataError, match="only 9 distinct problems"):
        found.extend(stream)
    stream = generate(100, seed=1, spec=spec)
    assert len(set(islice(stream, 9))) == 9
