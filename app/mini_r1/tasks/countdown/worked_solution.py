"""An answer worked out for a reader, one operation at a time; `expression` decides whether it is right."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from operator import add, mul, sub, truediv

from mini_r1.tasks.answer_tags import THINK, last_answer
from mini_r1.tasks.task import Explanation

from .expression import NEGATE, parse
from .problem import Problem

MAX_SHOWN = 16
"""Most operations worked out and numbers compared: 8 numbers need 7 operations."""
SHOWN_DIGITS = 24
"""Digits of a number that was not given."""
MAX_BITS = 160
"""Most bits of a value shown: numbers of a problem stay below 10**48, but an answer may use others."""


@dataclass(frozen=True, slots=True)
class Working:
    """The computation of an answer."""

    answer: str | None  # the text of the last answer block; None when there is none
    steps: list[str]
    """`8 + 2 = 10`, one for each operation in the order of computation; ends at a division by zero."""
    value: str | None  # the exact value of the expression, `24` or `5/2`; None when it has none
    missing: list[int]  # given numbers that the answer leaves out, with repetitions
    extra: list[int]  # numbers it uses that were not given, or too often


def work_out(completion: str, nums: Sequence[int], prefill: str = THINK) -> Working:
    """Work out the last answer of a completion; one outside the grammar has no steps."""
    text, _ = last_answer(completion, prefill)
    parsed = parse(text.strip(" \t\n\r\x0b\x0c")) if text is not None else ""
    if isinstance(parsed, str):
        return Working(text, [], None, [], [])
    used, given = Counter(parsed.literals), Counter(nums)
    missing, extra = sorted((given - used).elements()), sorted((used - given).elements())[:MAX_SHOWN]
    if len(parsed.literals) > MAX_SHOWN or any(number.bit_length() > MAX_BITS for number in extra):
        return Working(text, [], None, missing, [number for number in extra if number.bit_length() <= MAX_BITS])
    steps, value = _steps(parsed.postfix)
    return Working(text, steps, None if value is None else str(value), missing, extra)


def explain(completion: str, problem: Problem, prefill: str = THINK) -> Explanation:
    """Return the working of an answer as the samples page shows it, with a remark for each number."""
    found, chips = work_out(completion, problem.nums, prefill), list[tuple[str, bool | None]]()
    if found.answer is None:
        return Explanation(None, [], None, [])
    left = list(found.missing)
    for number in problem.nums:
        if found.value is None and not found.steps and not found.missing:
            chips.append((str(number), None))
        elif number in left:
            left.remove(number)
            chips.append((f"{number} left out", False))
        else:
            chips.append((f"{number} ✓", True))
    for extra in map(str, found.extra):
        chips.append((f"{extra if len(extra) <= SHOWN_DIGITS else extra[:SHOWN_DIGITS] + '…'} not given", False))
    result = None
    if found.value is not None:
        hits = found.value == str(problem.target)
        about = "is the target ✓" if hits else f"and the target is {problem.target} ✗"
        result = f"{found.value}{' ' if hits else ', '}{about}", hits
    return Explanation(found.answer, found.steps, result, chips)


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
        sign, operation = _OPERATIONS[item]
        shown = f"{_operand(left)} {sign} {_operand(right)}"
        if item == "/" and not right:
            return [*steps, f"{shown}: division by zero"], None
        value: Fraction = operation(left, right)
        if value.numerator.bit_length() > MAX_BITS or value.denominator.bit_length() > MAX_BITS:
            return [*steps, f"{shown} = a number too long to show"], None
        steps.append(f"{shown} = {value}")
        stack.append(value)
    return steps, stack.pop()


_OPERATIONS = {"+": ("+", add), "-": ("−", sub), "*": ("×", mul), "/": ("÷", truediv)}


def _operand(value: Fraction) -> str:
    return str(value) if value >= 0 and value.denominator == 1 else f"({value})"
