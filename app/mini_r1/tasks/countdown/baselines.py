"""A random solver, to compare a model's success with.

It calculates without mistakes and never tries a result twice. It doesn't know the target while it searches, so what a
model achieves beyond it is more than search.
"""

import functools
import operator
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from .problem import Problem

DRAWS = 2_000
"""Draws after which a problem with too many results to count is exhausted."""
MOST_ENUMERATED = 4
"""Most numbers for which all chains are listed: 1,536 of four; the 30,720 of five take longer than drawing."""
MOST_COUNTED = 500_000
"""Most intermediate values counted, about a second of work; six numbers have fewer by `+ - * /` up to a hundred."""

_OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    # -1, which no try may reach, unless the quotient is exact.
    "/": lambda left, right: left // right if right and left % right == 0 else -1,
}


@dataclass(frozen=True, slots=True)
class Chain:
    """One calculation over all numbers of a problem, from left to right."""

    nums: tuple[int, ...]
    ops: tuple[str, ...]
    values: tuple[int, ...]  # the running values without the first number; the last one is the result


def draw_chains(
    problem: Problem, operators: str, max_value: int | None, rng: random.Random, draws: int | None = None
) -> Iterator[Chain]:
    """Yield random chains by the hub data set's rule: non-negative whole numbers, exact division. No result twice.

    The target is ignored. `draws` is the most random chains to try; None ends when every result has come. `max_value`
    is the largest intermediate value; None is no limit.
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
    """Return the results of all chains that `draw_chains` may draw, and how many chains give each.

    Counted by which numbers are used up, not chain by chain: six numbers have 737,280 chains by four operators.
    None for more than MOST_COUNTED intermediate values. The results are cached, so sort the numbers.
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


def all_chains(numbers: tuple[int, ...], operators: str, max_value: int | None) -> list[Chain]:
    """Return all chains that `draw_chains` may draw, each of them as likely; for at most MOST_ENUMERATED numbers."""
    found: list[Chain] = []

    def extend(nums: tuple[int, ...], ops: tuple[str, ...], values: tuple[int, ...], left: tuple[int, ...]) -> None:
        if not left:
            found.append(Chain(nums, ops, values or nums))
        for i, number in enumerate(left):
            for op in operators:
                after = _OPERATIONS[op](values[-1] if values else nums[0], number)
                if _allowed(after, max_value):
                    extend((*nums, number), (*ops, op), (*values, after), left[:i] + left[i + 1 :])

    for i, number in enumerate(numbers):
        extend((number,), (), (), numbers[:i] + numbers[i + 1 :])
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
