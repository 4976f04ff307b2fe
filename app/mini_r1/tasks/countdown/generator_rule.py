"""Targets that can be reached by the rule of the generator behind the hub data set (Stream of Search, 2024):
all numbers, every step a non-negative integer, division only where it is exact.

The search runs backwards: for each split of the numbers and each value x of the smaller part, invert the last operation
and ask whether the larger part reaches one of the at most five values that would do. The value sets of small parts are
cached, because a generator asks about the same pairs again and again.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import TypeVar

T = TypeVar("T")


class OutOfWork(Exception):
    """Error raised when a search has taken all its steps: its answer is not known."""


@dataclass
class Work:
    """Steps that a search may take. Steps, not seconds: the same limit on every machine."""

    left: float = math.inf

    def spend(self, steps: int = 1) -> None:
        """Take steps, or raise OutOfWork."""
        self.left -= steps
        if self.left < 0:
            raise OutOfWork


def solvable_by_generator_rule(
    nums: Sequence[int],
    target: int,
    operators: str = "+-*/",
    max_intermediate: int | None = None,
    work: Work | None = None,
) -> bool:
    """Return whether the numbers reach the target with all of them, by non-negative integers and exact division only.

    `max_intermediate` is the largest result of a step before the last one; None is no limit.

    Raises:
        OutOfWork: it takes more than `work`, one step for each value that is looked for.
    """
    if target < 0:
        return False
    ordered = tuple(sorted(nums))
    if work is None:
        return _reaches_one(ordered, target, operators, max_intermediate)
    return _reaches(ordered, frozenset((target,)), operators, max_intermediate, work)


def splits(items: tuple[T, ...]) -> list[tuple[tuple[T, ...], tuple[T, ...]]]:
    """Return every unordered pair of non-empty parts, the smaller one first: 2**(n-1) - 1 pairs, items in order."""
    return [
        (tuple([items[i] for i in left]), tuple([items[i] for i in right]))
        for left, right in _split_indices(len(items))
    ]


@lru_cache(maxsize=16)
def _split_indices(count: int) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]:
    return tuple(
        (left, tuple(i for i in range(count) if i not in left))
        for size in range(1, count // 2 + 1)
        for left in combinations(range(count), size)
        # Two halves of equal size would come twice.
        if 2 * size < count or left[0] == 0
    )


# Three small numbers and a target come again and again: nine of ten questions of the demo's generator.
@lru_cache(maxsize=1 << 14)
def _reaches_one(nums: tuple[int, ...], target: int, operators: str, limit: int | None) -> bool:
    return _reaches(nums, frozenset((target,)), operators, limit, Work())


def _reaches(nums: tuple[int, ...], targets: frozenset[int], operators: str, limit: int | None, work: Work) -> bool:
    """Return whether all of `nums` (sorted) give one of the targets (>= 0); the last step has no limit."""
    if len(nums) == 1:
        return nums[0] in targets
    for left, right in splits(nums):
        values = _values(right, operators, limit) if len(right) <= 2 else None
        for x in _values(left, operators, limit):
            if values is not None:
                for target in targets:
                    if _joins(x, values, target, operators):
                        return True
            else:
                wanted = {y for target in targets for y in _partners(x, target, operators)}
                if limit is not None:
                    wanted = {y for y in wanted if y <= limit}
                work.spend(len(wanted))
                if _reaches(right, frozenset(wanted), operators, limit, work):
                    return True
    return False


def _joins(x: int, values: frozenset[int], target: int, operators: str) -> bool:
    """Return whether one operation on x and a value of the other part, in either order, gives the target."""
    # The generator spends its time here, so single look-ups replace `_partners`, which builds a set.
    if "+" in operators and target - x in values:
        return True
    if "-" in operators and (target + x in values or x - target in values):
        return True
    if not x:
        return False  # 0 * y and 0 / y are 0; another split of the numbers reaches 0 too
    if "*" in operators and target % x == 0 and target // x in values:
        return True
    return "/" in operators and (target * x in values or (target > 0 and x % target == 0 and x // target in values))


@lru_cache(maxsize=1 << 14)
def _partners(x: int, target: int, operators: str) -> frozenset[int]:
    """Return the y >= 0 for which one operation on x and y gives the target; 0 * y and 0 / y are left out."""
    partners = []
    if "+" in operators and x <= target:
        partners.append(target - x)
    if "-" in operators:
        partners.append(target + x)
        if x >= target:
            partners.append(x - target)
    if x:
        if "*" in operators and target % x == 0:
            partners.append(target // x)
        if "/" in operators:
            partners.append(target * x)
            if target and x % target == 0:
                partners.append(x // target)
    return frozenset(partners)


# 99 numbers and 4,950 pairs of 1..99: every small part of the default generator stays cached.
@lru_cache(maxsize=1 << 13)
def _values(nums: tuple[int, ...], operators: str, limit: int | None) -> frozenset[int]:
    """Return every value of all of `nums` (sorted) by the rule; the limit doesn't hold for a given number."""
    if len(nums) == 1:
        return frozenset(nums)
    found = set()
    for left, right in splits(nums):
        for x in _values(left, operators, limit):
            for y in _values(right, operators, limit):
                small, large = (x, y) if x <= y else (y, x)
                if "+" in operators:
                    found.add(large + small)
                if "-" in operators:
                    found.add(large - small)
                if "*" in operators:
                    found.add(large * small)
                if "/" in operators:
                    if small and large % small == 0:
                        found.add(large // small)
                    if large and not small:
                        found.add(0)
    return frozenset(found if limit is None else (value for value in found if value <= limit))
