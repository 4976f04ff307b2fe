"""The true result of each calculation of a thought, by the scorer's rules."""

import re
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction

from .calculations import Equation
from .expression import MAX_LENGTH, parse, value_of

_FRACTION = re.compile(r"\\[dt]?frac\{([^{}]{1,60})\}\s?\{([^{}]{1,60})\}")
_COMMAND = re.compile(r"\\(?:([A-Za-z]+)|[()\[\],;:! ])")
_LATEX_SIGNS = {"times": "*", "cdot": "*", "div": "/"}
_MARKUP = re.compile(r"[$&_`]|\*\*")
_SIGNS = str.maketrans("×·xX÷−[]{}", "****/-()()")


def true_result(equations: Sequence[Equation], nums: Sequence[int]) -> int | None:
    """Return the true result of one try, given its equations.

    The model's arithmetic does not count: `8 + 2 = 11 - 3 = 8` is 7. A line that calculates with its own result is one
    expression: `8 + 2 = 10 - 3 = 7` is (8 + 2) - 3. It ends when all numbers are used: `6 * 4 - 5 = 24 - 5 = 19` is
    6 * 4 - 5. Of several expressions on one line, the first that uses all numbers counts. None for a calculation that
    doesn't use each number exactly once, or has no whole result: it can hit no target.
    """
    given, written, claimed = Counter(nums), "", ""
    for equation in equations:
        part = _plain(equation.expression)
        continues = bool(claimed) and part.startswith(claimed)
        written = f"({written}){part.removeprefix(claimed)}" if continues else part
        parsed = parse(written)
        if not isinstance(parsed, str) and Counter(parsed.literals) == given:
            break
        claimed = _plain(equation.result)
    return whole_value(written, nums)


def whole_value(text: str, nums: Sequence[int]) -> int | None:
    """Return the value of an expression that uses each number once; None when it isn't one, or not whole."""
    value: Fraction | None = value_of(text, nums)
    return value.numerator if value is not None and value.denominator == 1 else None


def _plain(text: str) -> str:
    """Return the text in the scorer's signs; a text that is too long is no calculation of the game."""
    if len(text) > MAX_LENGTH:
        return ""
    text = _FRACTION.sub(r"(\1/\2)", text)
    text = _COMMAND.sub(lambda found: _LATEX_SIGNS.get(found[1] or "", " "), text)
    return _MARKUP.sub("", text.replace("\\*", "*")).translate(_SIGNS).strip()
