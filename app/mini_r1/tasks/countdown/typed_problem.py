"""A problem that a person typed, or the error in it. No torch."""

import re

from mini_r1.errors import KitError

from .problem import Problem, parse_problem

MOST_NUMBERS = 6  # the exact solver runs last, and takes seconds for six numbers, minutes for seven
MOST_DIGITS = 10  # more than the largest target has

_SEPARATOR = re.compile(r"[\s,;]+")
_INTEGER = re.compile(r"[-+−]?[0-9]+")


def read_problem(numbers: str, target: str) -> Problem:
    """Return the problem of two texts, such as `3, 5, 9` and `1`; KitError describes what is wrong with them."""
    nums = [_integer(word, "number") for word in _SEPARATOR.split(numbers.strip().strip("[]()")) if word]
    if not 2 <= len(nums) <= MOST_NUMBERS:
        raise KitError(f"give 2 to {MOST_NUMBERS} numbers, such as 3, 5, 9; found {len(nums)}")
    return parse_problem({"nums": nums, "target": _integer(target.strip(), "target")}, "this problem")


def _integer(word: str, what: str) -> int:
    if _INTEGER.fullmatch(word) is None:
        found = f"{word[:40]!a}{'...' if len(word) > 40 else ''}" if word else "nothing"
        raise KitError(f"a {what} is a whole number, such as 7; found {found}")
    if len(word) > MOST_DIGITS:
        raise KitError(f"that {what} is too large: it has {len(word)} digits")
    return int(word.replace("−", "-"))
