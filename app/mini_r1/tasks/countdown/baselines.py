"""Solvers that search without a thought, to hold a model's success against.

They calculate without mistakes and never try a result twice. None knows the target while it searches, so what a model
has above them is more than search.
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
DRAWS = 2_000
"""Draws before a problem counts as exhausted that has too many results to count."""
MOST_ENUMERATED = 4
"""Numbers of which all chains are listed: 1,536 of four; five would be 30,720, which takes longer than drawing."""
MOST_COUNTED = 500_000
"""Values on the way, about a second of work: more than six numbers have by `+ - * /` up to a hundred."""


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

    Args:
        problem: its numbers are used once each; its target is not looked at.
        operators: allowed ones, out of `+-*/`.
        max_value: largest value on the way; None is no limit.
        rng: the draws.
        draws: how many random chains to try at most; None ends when every result has come.
    """
    counts = None if draws else chain_results(problem.numbers_key, operators, max_value)
    seen: set[int] = set()
    nums, drawn = list(problem.nums), 0
    while drawn < (draws or DRAWS) if counts is None else len(seen) < len(counts):
        drawn += 1
        order = nums.copy()
        rng.shuffle(order)
        ops = tuple(rng.choice(operators) for _ in order[1:])
        values = _values(order, ops)
        if all(_allowed(value, max_value) for value in values):
            result = values[-1] if values else order[0]
            if result not in seen:
                seen.add(result)
                yield Chain(tuple(order), ops, values or (result,))


@functools.lru_cache(maxsize=4096)
def chain_results(numbers: tuple[int, ...], operators: str, max_value: int | None) -> dict[int, int] | None:
    """The results of all chains that `draw_chains` may draw, and how many chains give each.

    Counted by which numbers are used up, not chain by chain: six numbers have 737,280 chains by four operators.

    Args:
        numbers: in any order, which is best that of `Problem.numbers_key`: the last few thousand are kept.
        operators: allowed ones.
        max_value: largest value on the way; None is no limit.

    Returns:
        None where there are more than MOST_COUNTED values on the way: counting them takes too long.
    """
    every = (1 << len(numbers)) - 1
    reached: dict[int, dict[int, int]] = {1 << i: {number: 1} for i, number in enumerate(numbers)}
    total = 0
    for used in range(1, every):
        values = reached.get(used, {})
        total += len(values)
        if total > MOST_COUNTED:
            return None
        for i, number in enumerate(numbers):
            if used & (1 << i):
                continue
            after = reached.setdefault(used | 1 << i, {})
            for value, count in values.items():
                for op in operators:
                    result = _OPERATIONS[op](value, number)
                    if _allowed(result, max_value):
                        after[result] = after.get(result, 0) + count
    return reached.get(every, {})


def signed_sums(problem: Problem) -> list[int]:
    """The different sums of the numbers with signs before them; a sum and its opposite are one, and not negative.

    At most 2**(n - 1): 8 of four numbers.
    """
    first, *others = problem.nums
    sums: dict[int, None] = {}
    for count in range(len(others) + 1):
        for minus in itertools.combinations(range(len(others)), count):
            total = first + sum(-n if i in minus else n for i, n in enumerate(others))
            sums[abs(total)] = None
    return list(sums)


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
