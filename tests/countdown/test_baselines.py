"""The two solvers that a model is compared with: what they may try, and how often they hit."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mini_r1.tasks.countdown.baselines import all_chains, chain_results, draw_chains
from mini_r1.tasks.countdown.expression import check_answer
from mini_r1.tasks.countdown.problem import Problem
from mini_r1.tasks.countdown.solver import needs_multiplication_or_division, signed_sums

NUMBERS = st.lists(st.integers(1, 99), min_size=1, max_size=5)


@given(nums=NUMBERS, limit=st.one_of(st.none(), st.integers(1, 200)), seed=st.integers(0, 99))
def test_a_chain_is_a_right_calculation_within_the_limit_and_no_result_comes_twice(
    nums: list[int], limit: int | None, seed: int
) -> None:
    problem = Problem(tuple(nums), 1)
    results = []
    for chain in itertools.islice(draw_chains(problem, "+-*/", limit, random.Random(seed)), 30):
        assert sorted(chain.nums) == sorted(nums)
        text = str(chain.nums[0])
        for op, number, value in zip(chain.ops, chain.nums[1:], chain.values, strict=len(nums) > 1):
            text = f"({text}) {op} {number}"
            assert 0 <= value <= (limit or value)
        assert check_answer(text, nums, chain.values[-1]) is None
        results.append(chain.values[-1])
    assert len(set(results)) == len(results)


def test_all_chains_are_those_that_are_drawn_each_as_often() -> None:
    numbers, limit, draws = (2, 3, 5), 20, 20_000
    chains = all_chains(numbers, "+-*/", limit)
    rng = random.Random(0)
    drawn = Counter(next(draw_chains(Problem(numbers, 1), "+-*/", limit, rng)) for _ in range(draws))
    assert set(chains) == drawn.keys()
    assert len(chains) == len(set(chains)) > 20
    share = draws / len(chains)
    assert all(abs(count - share) < 5 * math.sqrt(share) for count in drawn.values())
    assert [(chain.nums, chain.ops, chain.values) for chain in all_chains((7,), "+", None)] == [((7,), (), (7,))]


def test_only_the_operators_that_are_allowed() -> None:
    chains = draw_chains(Problem((8, 4, 2), 1), "+*", None, random.Random(0))
    assert {op for chain in chains for op in chain.ops} == {"+", "*"}


@pytest.mark.parametrize(
    ("nums", "operators", "limit"),
    [
        ((2, 3, 5), "+-*/", None),
        ((4, 4, 6), "+-*/", 30),
        ((7, 5, 9, 2), "+-*", 100),
        ((7,), "+", None),
        ((7, 2), "/", 9),
    ],
)
def test_results_are_counted_as_all_chains_have_them(nums: tuple[int, ...], operators: str, limit: int | None) -> None:
    """The one goes through subsets of the numbers, the other chain by chain."""
    counted = Counter(chain.values[-1] for chain in all_chains(nums, operators, limit))
    assert chain_results(nums, operators, limit) == counted
    assert chain_results(nums[::-1], operators, limit) == counted


def test_too_many_results_are_not_counted() -> None:
    assert chain_results((3, 7, 25, 50, 75, 100, 9, 81), "+-*/", None) is None
    few = chain_results((3, 7, 25, 50, 75, 100, 9, 81), "+-*/", 100)
    assert few is not None
    assert max(few) <= 100


@pytest.mark.parametrize(("nums", "limit"), [((2, 3), None), ((7, 5, 9), 30), ((97, 83, 61, 12), 100)])
def test_a_search_ends_when_every_result_has_come_and_not_before(nums: tuple[int, ...], limit: int | None) -> None:
    """Few chains of large numbers stay below the limit, and the last result takes thousands of draws."""
    for seed in range(5):
        drawn = [chain.values[-1] for chain in draw_chains(Problem(nums, 1), "+-*/", limit, random.Random(seed))]
        assert sorted(drawn) == sorted(chain_results(nums, "+-*/", limit) or ())


def test_a_number_of_draws_ends_it_sooner() -> None:
    drawn = list(draw_chains(Problem((7, 5, 9, 2), 1), "+-*/", None, random.Random(0), draws=20))
    assert 0 < len(drawn) <= 20
    assert len(drawn) < len(chain_results((2, 5, 7, 9), "+-*/", None) or ())


@given(nums=NUMBERS, target=st.integers(-300, 300))
def test_all_signed_sums_solve_exactly_what_needs_no_multiplication(nums: list[int], target: int) -> None:
    solved = abs(target) in signed_sums(nums)
    assert solved is not needs_multiplication_or_division(Problem(tuple(nums), target))


@given(nums=NUMBERS)
def test_signed_sums_are_the_sums_over_all_signs_each_once(nums: list[int]) -> None:
    brute = {
        abs(sum(s * n for s, n in zip(signs, nums, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(nums))
    }
    sums = signed_sums(nums)
    assert set(sums) == brute
    assert len(sums) == len(brute) <= 2 ** (len(nums) - 1)
    assert sums[0] == sum(nums)


def test_a_sum_and_its_opposite_are_one() -> None:
    assert sorted(signed_sums((10, 3, 2))) == [5, 9, 11, 15]
    assert check_answer("-10 + 3 + 2", (10, 3, 2), -5) is None  # so the opposite is an answer too


def test_a_quotient_that_is_not_exact_is_no_try() -> None:
    for chain in draw_chains(Problem((7, 2, 3), 1), "/", None, random.Random(0)):
        value = Fraction(chain.nums[0])
        for number in chain.nums[1:]:
            value /= number
        assert value == chain.values[-1]
    assert not list(draw_chains(Problem((7, 2), 1), "/", None, random.Random(0)))
