"""The two solvers that a model is held against: what they may try, and how often they hit."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mini_r1.countdown.baselines import (
    all_chains,
    draw_chains,
    random_solves,
    random_success,
    signed_sum_solves,
    signed_sums,
)
from mini_r1.countdown.expression import check_answer
from mini_r1.countdown.problem import Problem
from mini_r1.countdown.solver import needs_multiplication_or_division

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


def test_the_random_solver_hits_as_often_as_counting_says() -> None:
    """2 and 3 by + and *: results 5 and 6, each as likely first; - gives 1 and a negative one, which is drawn anew."""
    problem = Problem((2, 3), 6)
    rate = random_success([(problem, 1)] * 4000, None, seed=0, operators="+*")
    assert rate == pytest.approx(0.5, abs=0.03)
    rate = random_success([(problem, 1)] * 4000, None, seed=0, operators="+-*")
    assert rate == pytest.approx(2 / 5, abs=0.03)  # of six draws five count, two of them are 6
    assert random_success([(problem, 3)] * 10, None, seed=0, operators="+-*") == 1.0
    assert not random_solves(problem, 0, "+-*", None, random.Random(0))


@pytest.mark.parametrize(
    ("nums", "target", "tries", "operators", "limit"),
    [
        ((2, 3), 6, 1, "+-*", None),
        ((4, 4, 6), 14, 2, "+-*/", None),  # equal numbers: some results come by more chains than others
        ((3, 5, 9), 17, 5, "+-*", 30),
        ((7, 5, 9, 2), 24, 6, "+-*/", 100),
        ((7, 5, 9, 2, 3), 24, 8, "+-*", None),
    ],
)
def test_the_random_solver_draws_as_often_what_chain_by_chain_is_drawn(
    nums: tuple[int, ...], target: int, tries: int, operators: str, limit: int | None
) -> None:
    """The one lists the chains of few numbers and draws results, the other makes each chain: two ways to one share."""
    problem, rng, times = Problem(nums, target), random.Random(1), 4000
    listed = sum(random_solves(problem, tries, operators, limit, rng) for _ in range(times)) / times
    drawn = random_success([(problem, tries)] * times, limit, seed=2, operators=operators)
    assert 0.02 < drawn < 0.98
    assert listed == pytest.approx(drawn, abs=0.035)  # over three standard errors of the difference


def test_the_random_solver_knows_what_it_cannot_reach() -> None:
    assert not random_solves(Problem((2, 3), 7), 10**9, "+-*", None, random.Random(0))
    assert not random_solves(Problem((7, 2), 1), 10**9, "/", None, random.Random(0))
    assert not random_solves(Problem((5, 9), 45), 10**9, "+-*", 30, random.Random(0))
    assert random_solves(Problem((5, 9), 45), 10**9, "+-*", 45, random.Random(0))


def test_more_tries_never_lose_a_hit() -> None:
    problem = Problem((7, 5, 9, 2), 24)
    for seed in range(30):
        hits = [random_solves(problem, tries, "+-*/", None, random.Random(seed)) for tries in (1, 4, 16, 64)]
        assert hits == sorted(hits)


@given(nums=NUMBERS, target=st.integers(-300, 300))
def test_all_signed_sums_solve_exactly_what_needs_no_multiplication(nums: list[int], target: int) -> None:
    problem = Problem(tuple(nums), target)
    assert signed_sum_solves(problem, 2 ** len(nums)) is not needs_multiplication_or_division(nums, target)


@given(nums=NUMBERS)
def test_signed_sums_are_the_sums_over_all_signs_each_once(nums: list[int]) -> None:
    brute = {
        abs(sum(s * n for s, n in zip(signs, nums, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(nums))
    }
    sums = signed_sums(Problem(tuple(nums), 1))
    assert set(sums) == brute
    assert len(sums) == len(brute) <= 2 ** (len(nums) - 1)
    assert sums[0] == sum(nums)


def test_signed_sums_in_their_order() -> None:
    assert signed_sums(Problem((10, 3, 2), 1)) == [15, 9, 11, 5]
    assert [signed_sum_solves(Problem((10, 3, 2), 9), tries) for tries in (0, 1, 2)] == [False, False, True]
    assert signed_sum_solves(Problem((10, 3, 2), -5), 4)
    assert check_answer("-10 + 3 + 2", (10, 3, 2), -5) is None  # so the opposite is an answer too


def test_a_quotient_that_is_not_exact_is_no_try() -> None:
    for chain in draw_chains(Problem((7, 2, 3), 1), "/", None, random.Random(0)):
        value = Fraction(chain.nums[0])
        for number in chain.nums[1:]:
            value /= number
        assert value == chain.values[-1]
    assert not list(draw_chains(Problem((7, 2), 1), "/", None, random.Random(0)))
