"""The kit's scorer of one answer: a hand-written parser and exact rational arithmetic.

    answer := sum [ "=" [sign] integer ]
    sum    := term { ("+" | "-") term }
    term   := factor { ("*" | "/") factor }
    factor := { "+" | "-" } ( integer | "(" sum ")" )

Integers are ASCII digits without leading zeros; ASCII white space, newlines included, is allowed between tokens.
The parser is E. W. Dijkstra's shunting-yard algorithm: one pass, an explicit stack, no recursion.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

MAX_LENGTH = 512
"""Most characters of a stripped answer. The longest sensible one (8 numbers of 7 digits, brackets) needs about 120."""
MAX_DEPTH = 32
"""Most brackets open at once. 8 numbers need 7; an answer with more is padding."""
MAX_SHOWN_DIGITS = 24
"""Most digits of a number in a reason, so that a reason stays one short line."""

_WHITESPACE = " \t\n\r\x0b\x0c"
_TOKEN = re.compile(rf"[0-9]+|[^{_WHITESPACE}]")
_FOREIGN = re.compile(rf"[^0-9+\-*/()={_WHITESPACE}]")

NEGATE = "~"
"""The unary minus in postfix order; unary plus leaves no trace."""
COMPUTED_BEFORE = {"*": "*/~", "/": "*/~", "+": "*/~+-", "-": "*/~+-"}
"""Each binary operator, and the operators before it that are computed first."""


@dataclass(frozen=True, slots=True)
class Parsed:
    """An answer that follows the grammar; nothing is computed yet."""

    literals: tuple[int, ...]  # the integers left of `=`, in reading order
    postfix: tuple[int | str, ...]  # operands and the operators `+ - * /` and NEGATE, in postfix order
    right_hand_side: int | None  # the value claimed after `=`, when there is one


def check_answer(text: str, nums: Sequence[int], target: int) -> str | None:
    """Return what is wrong with an answer, or None when it is right. No text raises.

    The first error counts: empty or too long, characters, grammar, numbers, division by zero, right-hand side, result.
    Numbers are compared with the given ones before anything is computed, which bounds the arithmetic.
    """
    parsed = parse(text.strip(_WHITESPACE))
    if isinstance(parsed, str):
        return parsed
    if error := _numbers_error(parsed.literals, nums):
        return error
    value = _evaluate(parsed.postfix)
    if value is None:
        return "division by zero"
    numerator, denominator = value
    claimed = parsed.right_hand_side
    if claimed is not None and numerator != claimed * denominator:
        return f"right-hand side {_clipped(claimed)} is not the value {_fraction(numerator, denominator)}"
    if numerator != target * denominator:
        return f"result is {_fraction(numerator, denominator)}, not {target}"
    return None


def whole_value(text: str, nums: Sequence[int]) -> int | None:
    """Return the value of an expression that uses each number once, ignoring its right-hand side; None if not whole."""
    parsed = parse(text.strip(_WHITESPACE))
    if isinstance(parsed, str) or _numbers_error(parsed.literals, nums):
        return None
    value = _evaluate(parsed.postfix)
    return value[0] // value[1] if value and value[0] % value[1] == 0 else None


def parse(text: str) -> Parsed | str:
    """Parse a stripped answer; return a sentence if it is empty or too long, or breaks the grammar."""
    if not text:
        return "answer is empty"
    if len(text) > MAX_LENGTH:
        return f"answer is longer than {MAX_LENGTH} characters"
    foreign = _FOREIGN.search(text)
    if foreign is not None:
        # repr() escapes control characters and lone surrogates and leaves × readable.
        return f"unexpected character {foreign.group()!r}"

    literals: list[int] = []
    postfix: list[int | str] = []
    operators: list[str] = []
    depth = 0
    operand_expected = True
    tokens = _TOKEN.findall(text)
    end = len(tokens)
    for index, symbol in enumerate(tokens):
        if operand_expected:
            if symbol == "(":
                depth += 1
                if depth > MAX_DEPTH:
                    return f"brackets nest deeper than {MAX_DEPTH}"
                operators.append(symbol)
            elif symbol == "-":
                if operators[-1:] == [NEGATE]:
                    operators.pop()  # two signs in a row cancel out
                else:
                    operators.append(NEGATE)
            elif symbol in "*/)=":
                return f"unexpected {symbol!r} where a number belongs"
            elif symbol != "+":
                if symbol[0] == "0" and symbol != "0":
                    return f"number {_clipped(symbol)} has a leading zero"
                number = int(symbol)
                literals.append(number)
                postfix.append(number)
                operand_expected = False
        elif symbol in COMPUTED_BEFORE:
            while operators and operators[-1] in COMPUTED_BEFORE[symbol]:
                postfix.append(operators.pop())
            operators.append(symbol)
            operand_expected = True
        elif symbol == ")":
            if not depth:
                return "')' without '('"
            depth -= 1
            while (operator := operators.pop()) != "(":
                postfix.append(operator)
        elif symbol == "=":
            end = index
            break
        else:
            return f"operator missing before {repr(symbol) if symbol == '(' else _clipped(symbol)}"

    if operand_expected:
        return "answer ends where a number belongs"
    if depth:
        return "'(' is not closed"
    while operators:
        postfix.append(operators.pop())
    claimed = _right_hand_side(tokens[end + 1 :]) if end < len(tokens) else None
    if isinstance(claimed, str):
        return claimed
    return Parsed(tuple(literals), tuple(postfix), claimed)


def _right_hand_side(tokens: list[str]) -> int | str:
    """Return the integer after `=`, or what is wrong with it."""
    sign = -1 if tokens[:1] == ["-"] else 1
    digits = tokens[1:] if tokens[:1] in (["-"], ["+"]) else tokens
    if len(digits) != 1 or not "0" <= digits[0][0] <= "9":
        return "one whole number must follow '='"
    if digits[0][0] == "0" and digits[0] != "0":
        return f"number {_clipped(digits[0])} has a leading zero"
    return sign * int(digits[0])


def _numbers_error(literals: Sequence[int], nums: Sequence[int]) -> str | None:
    """Return how the literals differ from the given numbers as a multiset."""
    if sorted(literals) == sorted(nums):
        return None
    used, given = Counter(literals), Counter(nums)
    for number in literals:
        if number not in given:
            return f"number {_clipped(number)} is not among the numbers"
    too_often = [number for number in literals if used[number] > given[number]]
    unused = [number for number in nums if not used[number]]
    if unused and not too_often:
        return f"number {_clipped(unused[0])} not used"
    number = (too_often or [number for number in nums if used[number] < given[number]])[0]
    more = "" if given[number] == 1 else f", given {_times(given[number])}"
    return f"number {_clipped(number)} used {_times(used[number])}{more}"


def _evaluate(postfix: Sequence[int | str]) -> tuple[int, int] | None:
    """Return the exact value as (numerator, denominator), not reduced; None for a division by zero."""
    # Reducing after each step, as Fraction does, costs more than the whole rest of the scorer.
    stack: list[tuple[int, int]] = []
    for item in postfix:
        if isinstance(item, int):
            stack.append((item, 1))
            continue
        c, d = stack.pop()
        if item == NEGATE:
            stack.append((-c, d))
            continue
        a, b = stack.pop()
        if item == "/":
            if c == 0:
                return None
            c, d = d, c
        if item in "*/":
            stack.append((a * c, b * d))
        else:
            stack.append((a * d + c * b if item == "+" else a * d - c * b, b * d))
    return stack.pop()


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")


def _fraction(numerator: int, denominator: int) -> str:
    value = Fraction(numerator, denominator)
    return _clipped(value.numerator) + ("" if value.denominator == 1 else f"/{_clipped(value.denominator)}")


def _clipped(number: int | str) -> str:
    digits = str(number)
    return digits if len(digits) <= MAX_SHOWN_DIGITS else f"{digits[:MAX_SHOWN_DIGITS]}..."
