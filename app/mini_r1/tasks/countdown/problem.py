"""One Countdown problem, and the check that makes one of a row from outside."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mini_r1.errors import KitError
from mini_r1.values import describe_value

MAX_NUMBERS = 8
"""Most numbers in one problem; the exact solver's work grows more than tenfold with each further one."""
MAX_NUMBER = 10**6
"""The largest given number: keeps every exact result below 10**48."""
MAX_TARGET = 10**9
"""The largest absolute target."""


class DataError(KitError):
    """Error raised for wrong data from a user: the message names the place and what is wrong."""


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


def parse_json(raw: bytes, place: str, hint: str = "") -> Any:
    """Return the value of a JSON text, or raise a DataError that names `place` and ends with `hint`."""
    try:
        return json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"{place}: not valid UTF-8 ({error.reason} at byte {error.start})") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: not valid JSON ({error}){hint}") from error


def parse_problem(row: object, place: str) -> Problem:
    """Check one row and return its problem; columns other than `nums` and `target` are ignored.

    Raises:
        DataError: naming `place` (`data.jsonl:17`) and what is wrong. Nothing is converted: 3.0, "3" and true are
            refused.
    """
    if not isinstance(row, Mapping):
        raise DataError(f"{place}: expected an object with 'nums' and 'target', found {describe_value(row)}")
    for name in ("nums", "target"):
        if name not in row:
            raise DataError(f"{place}: '{name}' is missing")
    nums, target = row["nums"], row["target"]
    if not isinstance(nums, list | tuple):
        raise DataError(f"{place}: 'nums' must be a list of whole numbers, found {describe_value(nums)}")
    if not 1 <= len(nums) <= MAX_NUMBERS:
        raise DataError(f"{place}: 'nums' must hold 1 to {MAX_NUMBERS} numbers, found {len(nums)}")
    for number in nums:
        # type() and not isinstance(): a bool is an int, and true is not a number of this game.
        if type(number) is not int or not 1 <= number <= MAX_NUMBER:
            raise DataError(
                f"{place}: 'nums' must hold whole numbers from 1 to {MAX_NUMBER}, found {describe_value(number)}"
            )
    if type(target) is not int or abs(target) > MAX_TARGET:
        found = describe_value(target)
        raise DataError(f"{place}: 'target' must be a whole number from -{MAX_TARGET} to {MAX_TARGET}, found {found}")
    return Problem(tuple(nums), target)
