"""What each calculation of a thought truly comes to: its tries, computed anew by the scorer's rules."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction

from .calculations import Equation, calculations
from .expression import MAX_LENGTH, parse, value_of
from .markup import final_answer

_FRACTION = re.compile(r"\\[dt]?frac\{([^{}]{1,60})\}\s?\{([^{}]{1,60})\}")
_COMMAND = re.compile(r"\\(?:([A-Za-z]+)|[()\[\],;:! ])")
_LATEX_SIGNS = {"times": "*", "cdot": "*", "div": "/"}
_MARKUP = re.compile(r"[$&_`]|\*\*")
_SIGNS = str.maketrans("×·xX÷−[]{}", "****/-()()")


def tried_results(completion: str, nums: Sequence[int]) -> list[int | None]:
    """Return the true result of each calculation in the thought, in their order.

    The arithmetic of the model does not count: `8 + 2 = 11 - 3 = 8` is 7. A line that
    calculates with its own result is one expression: `8 + 2 = 10 - 3 = 7` is (8 + 2) - 3. It ends when all numbers are
    used: `6 * 4 - 5 = 24 - 5 = 19` is 6 * 4 - 5. Of several expressions on one line, the first that uses all numbers
    counts.

    Args:
        completion: the model's text after the prefill.
        nums: the given numbers.

    Returns:
        As many as `style.tries` counts. None where a calculation does not use each number exactly once, or comes to
        no whole number: it can hit no target.
    """
    return [_result(equations, nums) for equations in calculations(completion)]


def answered_result(completion: str, nums: Sequence[int]) -> int | None:
    """Return the value of the last answer; None as in `tried_results`, and where there is no answer."""
    text, _ = final_answer(completion)
    return None if text is None else _whole(value_of(text, nums))


def _result(equations: Sequence[Equation], nums: Sequence[int]) -> int | None:
    given, written, claimed = Counter(nums), "", ""
    for equation in equations:
        part = _plain(equation.expression)
        goes_on = bool(claimed) and part.startswith(claimed)
        written = f"({written}){part.removeprefix(claimed)}" if goes_on else part
        if _numbers(written) == given:
            break
        claimed = _plain(equation.result)
    return _whole(value_of(written, nums))


def _plain(text: str) -> str:
    """In the scorer's signs; too long a text is no calculation of the game."""
    if len(text) > MAX_LENGTH:
        return ""
    text = _FRACTION.sub(r"(\1/\2)", text)
    text = _COMMAND.sub(lambda found: _LATEX_SIGNS.get(found[1] or "", " "), text)
    return _MARKUP.sub("", text.replace("\\*", "*")).translate(_SIGNS).strip()


def _whole(value: Fraction | None) -> int | None:
    return value.numerator if value is not None and value.denominator == 1 else None


def _numbers(text: str) -> Counter[int]:
    parsed = parse(text)
    return Counter() if isinstance(parsed, str) else Counter(parsed.literals)
