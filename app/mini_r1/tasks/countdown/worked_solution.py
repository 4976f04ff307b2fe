"""A right or wrong answer worked out for a reader, one operation at a time; the verdict itself is `expression`'s."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from .expression import NEGATE, parse
from .parsed_completion import last_answer

MAX_SHOWN = 16
"""Operations worked out, and numbers told apart: 8 numbers need 7 operations; what is longer is no answer."""
MAX_BITS = 160
"""Of a value: numbers of a problem stay below 10**48; an answer that uses others may not blow the page up."""


@dataclass(frozen=True, slots=True)
class Working:
    """What an answer computes."""

    answer: str | None
    """The text of the last answer block; None where there is none."""
    steps: list[str]
    """`8 + 2 = 10`, one for each operation, in the order they are computed; stops at a division by zero."""
    value: str | None
    """The value of the whole expression, exactly: `24` or `5/2`; None where it has none."""
    missing: list[int]
    """Given numbers that the answer leaves out, as often as it does."""
    extra: list[int]
    """Numbers it uses that were not given, or too often."""


def work_out(completion: str, nums: Sequence[int]) -> Working:
    """Work out the last answer of a completion; an answer outside the grammar has no steps.

    Args:
        completion: the model's text after the prefill.
        nums: the given numbers.
    """
    text, _ = last_answer(completion)
    parsed = parse(text.strip(" \t\n\r\x0b\x0c")) if text is not None else ""
    if isinstance(parsed, str):
        return Working(text, [], None, [], [])
    used, given = Counter(parsed.literals), Counter(nums)
    missing, extra = sorted((given - used).elements()), sorted((used - given).elements())[:MAX_SHOWN]
    if len(parsed.literals) > MAX_SHOWN or any(number.bit_length() > MAX_BITS for number in extra):
        return Working(text, [], None, missing, [number for number in extra if number.bit_length() <= MAX_BITS])
    steps, value = _steps(parsed.postfix)
    return Working(text, steps, None if value is None else str(value), missing, extra)


def _steps(postfix: Sequence[int | str]) -> tuple[list[str], Fraction | None]:
    stack: list[Fraction] = []
    steps: list[str] = []
    for item in postfix:
        if isinstance(item, int):
            stack.append(Fraction(item))
            continue
        right = stack.pop()
        if item == NEGATE:
            stack.append(-right)
            continue
        left = stack.pop()
        shown = f"{_operand(left)} {_SIGNS[item]} {_operand(right)}"
        if item == "/" and not right:
            return [*steps, f"{shown}: division by zero"], None
        value = {"+": left + right, "-": left - right, "*": left * right}.get(item) if item != "/" else left / right
        assert value is not None
        if value.numerator.bit_length() > MAX_BITS or value.denominator.bit_length() > MAX_BITS:
            return [*steps, f"{shown} = a number too long to show"], None
        steps.append(f"{shown} = {value}")
        stack.append(value)
    return steps, stack.pop()


_SIGNS = {"+": "+", "-": "−", "*": "×", "/": "÷"}


def _operand(value: Fraction) -> str:
    return str(value) if value >= 0 and value.denominator == 1 else f"({value})"
