"""One Countdown problem, and the check that makes one of a row from outside."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from mini_r1.tasks.columns import Columns, Field
from mini_r1.tasks.data_errors import DataError, refuse_missing
from mini_r1.values import describe_value

MAX_NUMBERS = 8
"""Most numbers in one problem; the exact solver's work grows more than tenfold with each further one."""
MAX_NUMBER = 10**6
"""The largest given number: keeps every exact result below 10**48."""
MAX_TARGET = 10**9
"""The largest absolute target."""

_WHOLE = re.compile(r"\s*([+-]?[0-9]{1,30})(?:\.0*)?\s*")
_BETWEEN = re.compile(r"\s*[,;]\s*|\s+")


@dataclass(frozen=True, slots=True)
class Problem:
    """Reach `target` with each of `nums` exactly once."""

    nums: tuple[int, ...]  # the given numbers in the order the prompt shows them, 1 to 8 of them
    target: int

    @property
    def key(self) -> tuple[tuple[int, ...], int]:
        """(sorted numbers, target): equal for problems that differ only in the order of the numbers."""
        return self.numbers_key, self.target

    @property
    def numbers_key(self) -> tuple[int, ...]:
        """The sorted numbers alone: equal also for problems that differ in the target."""
        return tuple(sorted(self.nums))

    @property
    def cluster(self) -> tuple[int, ...]:
        """The sorted numbers, which decide how hard a problem is for any target."""
        return self.numbers_key


def parse_problem(row: object, place: str) -> Problem:
    """Check one row and return its problem; columns other than `nums` and `target` are ignored.

    Whole numbers may be written as 3, 3.0 and "3", several of them as a list or as text: "[1, 2]", "1 2", "1,2".

    Raises:
        DataError: naming `place` (`data.jsonl:17`) and what is wrong.
    """
    if not isinstance(row, Mapping):
        raise DataError(f"{place}: expected an object with 'nums' and 'target', found {describe_value(row)}")
    refuse_missing(row, COLUMNS.names, place)
    nums, target = _as_list(row["nums"]), _as_whole(row["target"])
    if not isinstance(nums, list | tuple):
        raise DataError(f"{place}: 'nums' must be a list of whole numbers, found {describe_value(nums)}")
    if not 1 <= len(nums) <= MAX_NUMBERS:
        raise DataError(f"{place}: 'nums' must hold 1 to {MAX_NUMBERS} numbers, found {len(nums)}")
    known = [_as_whole(number) for number in nums]
    for number, given in zip(known, nums, strict=True):
        if number is None or not 1 <= number <= MAX_NUMBER:
            raise DataError(
                f"{place}: 'nums' must hold whole numbers from 1 to {MAX_NUMBER}, found {describe_value(given)}"
            )
    if target is None or abs(target) > MAX_TARGET:
        found = describe_value(row["target"])
        raise DataError(f"{place}: 'target' must be a whole number from -{MAX_TARGET} to {MAX_TARGET}, found {found}")
    return Problem(tuple(number for number in known if number is not None), target)


def _as_whole(value: object) -> int | None:
    """Return a whole number, however it is written; None for another value. A bool is no number."""
    if isinstance(value, str) and (found := _WHOLE.fullmatch(value)):
        return int(found[1])
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if type(value) is int else None


def _as_list(value: object) -> object:
    """Return the numbers in a text such as "[1, 2]", "1 2" or "1,2" as a list of texts; another value as it is."""
    if not isinstance(value, str):
        return value
    inner = value.strip()
    inner = inner[1:-1].strip() if inner[:1] + inner[-1:] in ("[]", "()") else inner
    return [number.strip("'\"") for number in _BETWEEN.split(inner)] if inner else []


def _are_nums(value: object) -> bool:
    numbers = _as_list(value)
    return isinstance(numbers, list | tuple) and bool(numbers) and None not in map(_as_whole, numbers)


COLUMNS = Columns((
    Field("nums", ("numbers", "digits", "input"), _are_nums),
    Field("target", ("answer", "goal", "result"), lambda value: _as_whole(value) is not None),
))  # fmt: skip
"""Columns of a row; others are ignored."""
