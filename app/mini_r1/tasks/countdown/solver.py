"""Exact answers: whether a problem can be solved at all, by rational arithmetic, and one solution of it.

Backward search as in `generator_rule`, over the rationals: complete, because every expression is a last operation on
the values of two parts, up to signs, and signs can be moved to the front of the whole expression.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import combinations
from math import gcd

from .generator_rule import OutOfWork, Work, solvable_by_generator_rule, splits
from .problem import Problem

Rational = tuple[int, int]
"""(numerator, denominator) in lowest terms, denominator > 0; several times faster here than Fraction."""
MAX_STEPS = 50_000
"""Steps of a search that must not take long: 0.4 s at most. 5 numbers need 8,000 at most, 6 without a solution 410,000,
and 7 or 8 with a solution some hundreds, unless it is by fractions."""


def solvable(problem: Problem, max_steps: int = MAX_STEPS) -> bool | None:
    """Return whether some answer passes `check_answer`; None when the search takes more than `max_steps`."""
    nums, target = problem.nums, problem.target
    if not needs_multiplication_or_division(problem):
        return True
    work = Work(max_steps)
    try:  # the generator's rule is far cheaper than the search and settles most problems
        return solvable_by_generator_rule(nums, target, work=work) or solve(nums, target, work) is not None
    except OutOfWork:
        return None


def solve(nums: Sequence[int], target: int, work: Work | None = None) -> str | None:
    """Return an expression with the value `target` that uses each number exactly once, fully bracketed, or None.

    Deterministic; the order of the numbers does not matter. Up to 5 numbers take at most some 0.1 s, 6 without a
    solution 3 s, and each further number about thirty times as long.

    Raises:
        OutOfWork: the search takes more than `work`, one step for each value of a part.
    """
    ordered, work = tuple(sorted(nums)), work or Work()
    found = _search(ordered, (target, 1), work)
    if found is None:
        found = _search(ordered, (-target, 1), work)
        return None if found is None else f"-{found}"
    # The outermost brackets add nothing.
    return found[1:-1] if found.startswith("(") else found


def signed_sums(nums: Sequence[int]) -> list[int]:
    """Return the distinct sums of the numbers with a sign before each, up to the sum's sign: 2**(n - 1) at most."""
    first, *others = nums
    sums: dict[int, None] = {}
    for count in range(len(others) + 1):
        for minus in combinations(range(len(others)), count):
            total = first + sum(-n if i in minus else n for i, n in enumerate(others))
            sums[abs(total)] = None
    return list(sums)


def needs_multiplication_or_division(problem: Problem) -> bool:
    """Return whether addition and subtraction alone do not reach the target."""
    return abs(problem.target) not in signed_sums(problem.nums)


def _search(nums: tuple[int, ...], target: Rational, work: Work) -> str | None:
    """Return an expression over all of `nums` (sorted) with this value, in brackets unless it is a number."""
    if len(nums) == 1:
        return str(nums[0]) if target == (nums[0], 1) else None
    if len(nums) == 2:
        return _values(nums).get(target)
    for left, right in splits(nums):
        for x, left_text in _values(left).items():
            work.spend()
            for y, pattern in _partners(x, target):
                right_text = _search(right, y, work)
                if right_text is not None:
                    return pattern.format(left_text, right_text)
            if x[0] == target[0] == 0:
                # 0 * anything: the sum of the other part always exists.
                return f"({left_text} * ({' + '.join(map(str, right))}))"
    return None


def _partners(x: Rational, target: Rational) -> Iterator[tuple[Rational, str]]:
    """Yield each y for which one operation on x and y gives the target, with the pattern of that operation."""
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
    """Return every value of all of `nums` (sorted), up to a sign in front, each with one expression for it."""
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
