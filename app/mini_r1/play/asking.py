"""What a person types, as a problem, or what is wrong with it in a sentence. No torch."""

from __future__ import annotations

import re

from mini_r1.errors import KitError
from mini_r1.tasks.countdown.problem import DataError, Problem, parse_problem

MOST_NUMBERS = 6
"""The exact solver answers last, and takes seconds for six numbers, minutes for seven."""
MOST_DIGITS = 10
"""Of anything typed: more than the largest target has."""

_ARROW = re.compile(r"->|=>|=|→|\bto\b")
_SEPARATOR = re.compile(r"[\s,;]+")
_WHOLE = re.compile(r"[-+−]?[0-9]+")


def problem_of(numbers: str, target: str) -> Problem:
    """A problem from two texts, such as `3, 5, 9` and `1`.

    Raises:
        KitError: what is wrong with them, in a sentence.
    """
    words = [word for word in _SEPARATOR.split(numbers.strip().strip("[]()")) if word]
    nums = [_whole(word, "number") for word in words]
    if not 2 <= len(nums) <= MOST_NUMBERS:
        raise KitError(f"give 2 to {MOST_NUMBERS} numbers, such as 3, 5, 9; found {len(nums)}")
    try:
        return parse_problem({"nums": nums, "target": _whole(target.strip(), "target")}, "this problem")
    except DataError as error:
        raise KitError(str(error)) from error


def in_one_line(line: str) -> tuple[str, str | None]:
    """Numbers and target of a line such as `3 5 9 -> 1`; None: the target is still to be asked for."""
    parts = _ARROW.split(line)
    if len(parts) == 1:
        return line, None
    if len(parts) > 2:
        raise KitError("one arrow stands between the numbers and the target, such as 3 5 9 -> 1")
    return parts[0], parts[1]


def _whole(word: str, what: str) -> int:
    if _WHOLE.fullmatch(word) is None:
        raise KitError(f"a {what} is a whole number, such as 7; found {_shown(word)}")
    if len(word) > MOST_DIGITS:
        raise KitError(f"that {what} is too large: it has {len(word)} digits")
    return int(word.replace("−", "-"))


def _shown(word: str) -> str:
    return f"{word[:40]!a}" + ("..." if len(word) > 40 else "") if word else "nothing"
