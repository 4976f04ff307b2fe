"""Solvers that search without a thought, to hold a model's success against: with as many tries as the model made.

Both calculate without mistakes and never try a result twice. Neither knows the target while it searches, so what a
model has above them is more than search.
"""

from __future__ import annotations

import functools
import itertools
import operator
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from .problem import Problem

OPERATORS = "+-*/"
"""What a problem allows that says nothing else."""
DRAWS = {3: 200}
"""Draws before a problem counts as exhausted, by how many numbers it has: three make at most 36 tries by `+ - *`."""
DRAWS_OF_MORE = 2_000
"""With four numbers or more; four make 1,536 by `+ - * /`."""
MOST_ENUMERATED = 4
"""Numbers of which all chains are listed: 1,536 of four; five would be 30,720, which takes longer than drawing."""


def _exact_quotient(left: int, right: int) -> int:
    """The quotient where it is exact, else -1, which no try may reach."""
    return left // right if right and left % right == 0 else -1


_OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": _exact_quotient,
}


@dataclass(frozen=True, slots=True)
class Chain:
    """One calculation over all numbers of a problem, from left to right."""

    nums: tuple[int, ...]
    ops: tuple[str, ...]
    values: tuple[int, ...]
    """The running values, first number excluded; the last one is the result."""


def draw_chains(
    problem: Problem, operators: str, max_value: int | None, rng: random.Random, draws: int | None = None
) -> Iterator[Chain]:
    """Random chains by the rule of the hub's data set: non-negative whole numbers, exact division. No result twice.

    On the demo's held-out problems random trees (any two values joined, until one is left) hit as often with as many
    tries, to a percent.

    Args:
        problem: its numbers are used once each; its target is not looked at.
        operators: allowed ones, out of `+-*/`.
        max_value: largest value on the way; None is no limit.
        rng: the draws.
        draws: after so many the problem counts as exhausted; None is enough for four operators.
    """
    seen: set[int] = set()
    nums = list(problem.nums)
    for _ in range(draws or DRAWS.get(max(len(nums), 3), DRAWS_OF_MORE)):
        order = nums.copy()
        rng.shuffle(order)
        ops = tuple(rng.choice(operators) for _ in order[1:])
        values = _values(order, ops)
        if all(_allowed(value, max_value) for value in values):
            result = values[-1] if values else order[0]
            if result not in seen:
                seen.add(result)
                yield Chain(tuple(order), ops, values or (result,))


def random_solves(problem: Problem, tries: int, operators: str, max_value: int | None, rng: random.Random) -> bool:
    """Whether one of the first `tries` random chains reaches the target.

    By the same rule as `draw_chains`, and without end: the chains of few numbers are all known beforehand, so that a
    draw takes one of their results.
    """
    if len(problem.nums) > MOST_ENUMERATED:
        drawn = itertools.islice(draw_chains(problem, operators, max_value, rng), tries)
        return any(chain.values[-1] == problem.target for chain in drawn)
    results, different = _results(problem.numbers_key, operators, max_value)
    if problem.target not in different or tries >= len(different):
        return problem.target in different and tries > 0
    seen: set[int] = set()
    while len(seen) < tries:
        result = results[int(rng.random() * len(results))]
        if result == problem.target:
            return True
        seen.add(result)
    return False


def random_success(
    tries: Sequence[tuple[Problem, int]], max_value: int | None, seed: int, operators: str = "+-*"
) -> float:
    """Success of a solver that draws as many different results as the given number of tries, one after another.

    As `random_solves` says it, drawn chain by chain: slow, and simple enough to check that one against.

    Args:
        tries: problem and number of tries, one pair for each answer to be compared with.
        max_value: largest value a try may reach; None is no limit.
        seed: of the draws.
        operators: those it draws from.
    """
    rng = random.Random(seed)
    hits = 0
    for problem, count in tries:
        drawn = itertools.islice(draw_chains(problem, operators, max_value, rng), count)
        hits += any(chain.values[-1] == problem.target for chain in drawn)
    return round(hits / len(tries), 6)


def signed_sums(problem: Problem) -> list[int]:
    """The different sums of the numbers with signs before them, in the order they are tried; none is negative.

    First all plus, then one minus, then two. A sum and its opposite are one try. At most 2**(n - 1): 8 of four numbers.
    """
    first, *others = problem.nums
    sums: dict[int, None] = {}
    for count in range(len(others) + 1):
        for minus in itertools.combinations(range(len(others)), count):
            total = first + sum(-n if i in minus else n for i, n in enumerate(others))
            sums[abs(total)] = None
    return list(sums)


def signed_sum_solves(problem: Problem, tries: int) -> bool:
    """Whether one of the first `tries` signed sums is the target or its opposite."""
    return abs(problem.target) in signed_sums(problem)[:tries]


def all_chains(numbers: tuple[int, ...], operators: str, max_value: int | None) -> list[Chain]:
    """All chains that `draw_chains` may draw, each of them as likely; of more than MOST_ENUMERATED numbers too many."""
    found: list[Chain] = []

    def go_on(nums: tuple[int, ...], ops: tuple[str, ...], values: tuple[int, ...], left: tuple[int, ...]) -> None:
        if not left:
            found.append(Chain(nums, ops, values or nums))
        for i, number in enumerate(left):
            for op in operators:
                after = _OPERATIONS[op](values[-1] if values else nums[0], number)
                if _allowed(after, max_value):
                    go_on((*nums, number), (*ops, op), (*values, after), left[:i] + left[i + 1 :])

    for i, number in enumerate(numbers):
        go_on((number,), (), (), numbers[:i] + numbers[i + 1 :])
    return found


@functools.lru_cache(maxsize=1024)
def _results(numbers: tuple[int, ...], operators: str, max_value: int | None) -> tuple[tuple[int, ...], frozenset[int]]:
    """The results of all chains: one for each chain, and each once."""
    results = tuple(chain.values[-1] for chain in all_chains(numbers, operators, max_value))
    return results, frozenset(results)


def _allowed(value: int, max_value: int | None) -> bool:
    return value >= 0 and (max_value is None or value <= max_value)


def _values(nums: Sequence[int], ops: Sequence[str]) -> tuple[int, ...]:
    value, values = nums[0], []
    for op, number in zip(ops, nums[1:], strict=True):
        value = _OPERATIONS[op](value, number)
        if value < 0:
            return (-1,)
        values.append(value)
    return tuple(values)
