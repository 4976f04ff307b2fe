"""The solver against plain enumeration, and its answers against the scorer."""

from __future__ import annotations

from fractions import Fraction
from itertools import product
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mini_r1.tasks.countdown.expression import check_answer
from mini_r1.tasks.countdown.generator_rule import OutOfWork, Work, solvable_by_generator_rule, splits
from mini_r1.tasks.countdown.problem import Problem
from mini_r1.tasks.countdown.solver import (
    MAX_STEPS,
    needs_multiplication_or_division,
    solvable,
    solve,
)

SMALL = st.lists(st.integers(1, 12), min_size=1, max_size=4)


def enumerate_values(
    values: list[Fraction], rule: str, operators: str = "+-*/", limit: int | None = None
) -> set[Fraction]:
    """Every value by joining any two numbers until one is left; `rule` is `rational` or `generator`."""
    if len(values) == 1:
        return {values[0]}
    found: set[Fraction] = set()
    for i, j in product(range(len(values)), repeat=2):
        if i == j:
            continue
        a, b = values[i], values[j]
        others = [value for k, value in enumerate(values) if k not in (i, j)]
        joined = []
        for operator in operators:
            if operator == "/" and b == 0:
                continue
            value = {"+": a + b, "-": a - b, "*": a * b, "/": a / (b or 1)}[operator]
            last = not others
            if rule == "generator" and (value < 0 or value.denominator != 1):
                continue
            if limit is not None and not last and value > limit:
                continue
            joined.append(value)
        for value in joined:
            found |= enumerate_values([value, *others], rule, operators, limit)
    return found


@given(SMALL.filter(lambda nums: len(nums) < 4), st.integers(-30, 60))
@settings(max_examples=200)
def test_the_solver_is_complete_and_right(nums: list[int], target: int) -> None:
    values = enumerate_values([Fraction(number) for number in nums], "rational")
    expected = target in values or -target in values
    answer = solve(nums, target)
    assert (answer is not None) == expected == solvable(Problem(tuple(nums), target))
    if answer is not None:
        assert check_answer(answer, nums, target) is None


@pytest.mark.parametrize("nums", [[3, 3, 8, 8], [1, 5, 5, 5], [2, 7, 7, 11], [1, 1, 1, 1], [4, 4, 10, 10]])
def test_four_numbers_against_enumeration(nums: list[int]) -> None:
    values = enumerate_values([Fraction(number) for number in nums], "rational")
    for target in range(-60, 120):
        answer = solve(nums, target)
        assert (answer is not None) == (target in values or -target in values)
        assert answer is None or check_answer(answer, nums, target) is None


@given(
    SMALL,
    st.integers(0, 40),
    st.sampled_from(["+-*/", "+-", "*/", "/", "-", "+*", "-/"]),
    st.sampled_from([None, 5, 20]),
)
@settings(max_examples=150)
def test_the_generators_rule_against_enumeration(
    nums: list[int], target: int, operators: str, limit: int | None
) -> None:
    values = enumerate_values([Fraction(number) for number in nums], "generator", operators, limit)
    assert solvable_by_generator_rule(nums, target, operators, limit) == (target in values)


@given(st.lists(st.integers(1, 99), min_size=1, max_size=6), st.integers(-200, 300))
def test_signed_sums_by_all_choices(nums: list[int], target: int) -> None:
    sums = {
        sum(sign * number for sign, number in zip(signs, nums, strict=True))
        for signs in product((1, -1), repeat=len(nums))
    }
    assert needs_multiplication_or_division(Problem(tuple(nums), target)) == (target not in sums)


@pytest.mark.parametrize("count", range(1, 7))
def test_each_way_to_part_a_set_in_two_comes_once(count: int) -> None:
    items = tuple("abcdef"[:count])
    found = splits(items)
    assert all(left and len(left) <= len(right) and sorted(left + right) == list(items) for left, right in found)
    assert all(part == tuple(sorted(part)) for pair in found for part in pair)
    assert all(items[0] in left for left, right in found if len(left) == len(right))
    assert len({frozenset(map(frozenset, pair)) for pair in found}) == len(found) == 2 ** (count - 1) - 1


@pytest.mark.parametrize(
    ("nums", "target", "operators", "limit", "reached"),
    [
        ([5, 5, 7], 0, "-*", None, True),  # (5 - 5) * 7
        ([5, 5, 7], 0, "-/", None, True),  # (5 - 5) / 7
        ([5, 5, 7], 0, "-+", None, False),
        ([5, 5, 7], 7, "-+", None, True),
        ([5, 5, 7], 1, "-/", None, False),  # 7 / (5 - 5) is nothing
        ([5, 5, 6, 6], 0, "-/", None, True),
        ([5, 5, 6, 8], 1, "-*", None, False),
        ([24, 1, 1, 4], 4, "/+", None, True),  # 24 / (1 + 1 + 4)
        ([2, 3, 7, 8], 36, "+*", 18, True),
        ([4, 5, 7, 9], 3, "+/", None, True),
        ([4, 4, 6, 9], 60, "+-", 25, False),
        ([1, 2, 3, 5, 5], 0, "-/", 4, True),  # 0 by the others
        ([1, 2, 3, 5, 5], 0, "-/", None, True),
        ([6, 6, 9, 13], 1, "-/", None, False),
        ([5, 5, 6, 7], 0, "/", None, False),
        ([1, 2, 3, 4, 4], 0, "-*", None, True),  # (4 - 4) * what the others make
        ([1, 2, 3, 4, 4], 0, "-/", None, True),
        ([3, 1, 1, 1, 1, 1], 0, "*-", 1, True),  # (1 - 1) * ..., with any value of the others
        ([4, 4, 8, 8, 16, 16], 0, "/", None, False),
        ([6, 7], 42, "*", 41, True),  # the limit is for what comes before the last step
        ([2, 3, 7], 42, "*", 41, True),
        ([2, 3, 7], 42, "*", 5, False),
        ([2, 3, 7], 42, "*", 6, True),
        ([9], 9, "+", 5, True),
        ([9], 9, "+", None, True),
        ([9], 8, "+", None, False),
        ([9, 9], -1, "-", None, False),
        ([8, 9], 1, "-", None, True),
        ([8, 9], -1, "-", None, False),
    ],
)
def test_the_generators_rule_at_its_edges(
    nums: list[int], target: int, operators: str, limit: int | None, reached: bool
) -> None:
    assert solvable_by_generator_rule(nums, target, operators, limit) == reached
    if target >= 0 and len(nums) <= 4:
        values = enumerate_values([Fraction(number) for number in nums], "generator", operators, limit)
        assert (target in values) == reached


HARD = [((71, 73, 79, 83, 89, 97, 41, 43), 999_999_937), ((3, 7, 13, 29, 31, 97, 11), -99_991)]
"""Problems of 8 and 7 numbers without a solution: their whole search takes minutes."""


@pytest.mark.parametrize(("nums", "target"), HARD)
@pytest.mark.parametrize("steps", [0, 10, MAX_STEPS])
def test_a_search_takes_no_more_steps_than_it_may(nums: tuple[int, ...], target: int, steps: int) -> None:
    assert solvable(Problem(nums, target), steps) is None
    work = Work(steps)
    with pytest.raises(OutOfWork):
        solve(nums, target, work)
    with pytest.raises(OutOfWork):
        solvable_by_generator_rule(nums, abs(target), work=Work(min(steps, 1_000)))


def test_every_problem_of_five_numbers_is_decided_within_the_limit() -> None:
    rng = Random(5)
    for _ in range(6):
        nums = [rng.randrange(1, 100) for _ in range(5)]
        target = rng.choice([rng.randrange(10, 1000), 999_983])
        found = solvable(Problem(tuple(nums), target))
        assert found is not None
        assert found == (solve(nums, target) is not None)


def test_long_problems_that_are_like_those_of_the_data_are_decided_within_the_limit() -> None:
    rng = Random(8)
    for _ in range(20):
        nums = [rng.randrange(1, 100) for _ in range(rng.choice([7, 8]))]
        assert solvable(Problem(tuple(nums), rng.randrange(10, 1000))) is True


def test_more_numbers_and_zeros() -> None:
    for nums, target in [
        ([1, 2, 3, 4, 5], 96),
        ([7, 7, 13, 29, 31, 97], 1001),
        ([5, 5, 5, 5, 5], 0),
        ([2, 2, 3, 3, 9], 0),
    ]:
        answer = solve(nums, target)
        assert answer is not None
        assert check_answer(answer, nums, target) is None
    assert solve([5], 5) == "5"
    assert solve([5], -5) == "-5"
    assert solve([5], 6) is None
    assert solve([1, 1, 1, 1, 1], 1000) is None
    assert not solvable_by_generator_rule([3, 3, 8, 8], 24)
    assert solvable(Problem((3, 3, 8, 8), 24))
