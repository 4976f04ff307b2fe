"""The solver against plain enumeration, and its answers against the scorer."""

from __future__ import annotations

from fractions import Fraction
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mini_r1.countdown.expression import check_answer
from mini_r1.countdown.solver import (
    needs_multiplication_or_division,
    solvable,
    solvable_by_generator_rule,
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
@settings(max_examples=200, deadline=None)
def test_the_solver_is_complete_and_right(nums: list[int], target: int) -> None:
    values = enumerate_values([Fraction(number) for number in nums], "rational")
    expected = target in values or -target in values
    answer = solve(nums, target)
    assert (answer is not None) == expected == solvable(nums, target)
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
@settings(max_examples=150, deadline=None)
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
    assert needs_multiplication_or_division(nums, target) == (target not in sums)


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
    assert solvable([3, 3, 8, 8], 24)
