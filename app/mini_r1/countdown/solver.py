"""Exact answers: whether a problem can be solved at all, by rational arithmetic, and one solution of it.

Backward search as in `generator_rule`, over the rationals: complete, because every expression is a last operation on
the values of two parts, up to signs, and signs can be moved to the front of the whole expression.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from math import gcd

from .generator_rule import solvable_by_generator_rule
from .splits import splits

__all__ = ["needs_multiplication_or_division", "solvable", "solvable_by_generator_rule", "solve"]

Rational = tuple[int, int]
"""(numerator, denominator) in lowest terms, denominator > 0; several times faster here than Fraction."""


def solvable(nums: Sequence[int], target: int) -> bool:
    """Whether some answer passes `check_answer`: each number exactly once, `+ - * /`, exact rationals.

    Complete. About 0.05 ms for most problems of 3 or 4 numbers, about 1 ms for 4 numbers without a solution; the
    worst case grows about thirtyfold with each further number (6 numbers: seconds).
    """
    # Both of these are far cheaper than the search and settle most problems.
    if not needs_multiplication_or_division(nums, target) or solvable_by_generator_rule(nums, target):
        return True
    return solve(nums, target) is not None


def solve(nums: Sequence[int], target: int) -> str | None:
    """An expression with the value `target` that uses each number exactly once, fully bracketed; None if none exists.

    Deterministic; the order of the numbers does not matter. Time: see `solvable`.
    """
    ordered = tuple(sorted(nums))
    found = _search(ordered, (target, 1))
    if found is None:
        found = _search(ordered, (-target, 1))
        return None if found is None else f"-{found}"
    # The outermost brackets add nothing.
    return found[1:-1] if found.startswith("(") else found


def needs_multiplication_or_division(nums: Sequence[int], target: int) -> bool:
    """Whether no signed sum of the numbers equals the target: addition and subtraction alone do not solve it.

    Tries 2**(n-1) sign choices: the first number counts positive, and the sum is compared up to its sign.
    """
    first, *others = nums
    sums = {first}
    for number in others:
        sums = {total + number for total in sums} | {total - number for total in sums}
    return target not in sums and -target not in sums


def _search(nums: tuple[int, ...], target: Rational) -> str | None:
    """An expression over all of `nums` (sorted) with this value, in brackets unless it is a number."""
    if len(nums) == 1:
        return str(nums[0]) if target == (nums[0], 1) else None
    if len(nums) == 2:
        return _values(nums).get(target)
    for left, right in splits(nums):
        for x, left_text in _values(left).items():
            for y, pattern in _partners(x, target):
                right_text = _search(right, y)
                if right_text is not None:
                    return pattern.format(left_text, right_text)
            if x[0] == target[0] == 0:
                # 0 * anything; the sum of the other part is always there.
                return f"({left_text} * ({' + '.join(map(str, right))}))"
    return None


def _partners(x: Rational, target: Rational) -> Iterator[tuple[Rational, str]]:
    """The y for which one operation on x and y gives the target, with the pattern of that operation."""
    (a, b), (t, u) = x, target
    yield _reduced(t * b - a * u, b * u), "({0} + {1})"
    yield _reduced(a * u - t * b, b * u), "({0} - {1})"
    yield _reduced(t * b + a * u, b * u), "({1} - {0})"
    if a:
        yield _reduced(t * b, u * a), "({0} * {1})"
        yield _reduced(t * a, u * b), "({1} / {0})"
        if t:
            yield _reduced(a * u, b * t), "({0} / {1})"


@lru_cache(maxsize=1 << 12)
def _values(nums: tuple[int, ...]) -> dict[Rational, str]:
    """Every value of all of `nums` (sorted), up to a sign in front, each with one expression for it."""
    if len(nums) == 1:
        return {(nums[0], 1): str(nums[0])}
    found: dict[Rational, str] = {}
    for left, right in splits(nums):
        for (a, b), left_text in _values(left).items():
            for (c, d), right_text in _values(right).items():
                found.setdefault(_reduced(a * d + c * b, b * d), f"({left_text} + {right_text})")
                found.setdefault(_reduced(a * d - c * b, b * d), f"({left_text} - {right_text})")
                found.setdefault(_reduced(c * b - a * d, b * d), f"({right_text} - {left_text})")
                found.setdefault(_reduced(a * c, b * d), f"({left_text} * {right_text})")
                if c:
                    found.setdefault(_reduced(a * d, b * c), f"({left_text} / {right_text})")
                if a:
                    found.setdefault(_reduced(c * b, d * a), f"({right_text} / {left_text})")
    return found


def _reduced(numerator: int, denominator: int) -> Rational:
    divisor = gcd(numerator, denominator)
    if denominator < 0:
        divisor = -divisor
    return numerator // divisor, denominator // divisor
