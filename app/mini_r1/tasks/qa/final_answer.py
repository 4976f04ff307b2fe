"""Exact final answers: how one is found in a column, and when two are the same."""

import re
from fractions import Fraction

MARK = "####"
"""What GSM8K writes between a worked solution and its final answer."""
MAX_ANSWER = 100
"""Most characters of a final answer; numbers below 10**100 are compared in microseconds."""

_NUMBER = re.compile(r"([-+−]?)\$?([0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(\.[0-9]+)?(?:/([0-9]+))?%?")


def same_answer(left: str, right: str) -> bool:
    """Return whether two answers are the same: as numbers if both are, else as text.

    `1,000`, `$1000` and `1000.00` are one number; case, spaces and a full stop at the end don't count in a text.
    """
    return _normal(left) == _normal(right)


def is_number(answer: str) -> bool:
    """Return whether an answer is read as a number."""
    return isinstance(_normal(answer), Fraction)


def _normal(answer: str) -> Fraction | str:
    text = " ".join(answer.split()).removesuffix(".").strip()
    found = _NUMBER.fullmatch(text)
    if found is None:
        return text.casefold()
    sign, whole, decimals, divisor = found.groups()
    divisor = int(divisor or 1)
    if not divisor:
        return text
    value = Fraction(whole.replace(",", "") + (decimals or "")) / divisor
    return -value if sign in ("-", "−") else value
