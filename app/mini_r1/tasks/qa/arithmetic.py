"""Generated arithmetic with a written solution, column by column from the right, for a model that is made here.

The demonstrator calculates correctly and gives up too early: after each column it may answer with the digits that it
has. Reinforcement learning can then add persistence, which longer imitation does not.
"""

import operator
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from mini_r1.tasks.data_errors import DataError

from .question import Question

DIGITS: Final = (2, 3)
"""Digits of the first operand, each number equally likely; `+` and `-` have a second one as long, `*` has one digit."""
OPERATORS: Final = "+-*"
WORKING = (" + ", " - ", " * ", " = ", "</think>\n", "<answer>", "</answer>", "<think>", "</think>")
"""Parts of a written solution, one token each in a built-in model."""
DRAWS_FOR_ONE_ROW = 10_000
"""Questions drawn since the last new one before they are exhausted."""

_QUESTION = re.compile(r"What is ([0-9]{1,9}) ([-+*]) ([0-9]{1,9})\?")
_LINE = re.compile(r"([0-9]{1,3}) ([-+*]) ([0-9]{1,3}) ([-+]) ([0-9]{1,3}) = ([0-9]{1,4})")
_OPERATIONS: Final[dict[str, Callable[[int, int], int]]] = {"+": operator.add, "-": operator.sub, "*": operator.mul}


@dataclass(frozen=True, slots=True)
class ColumnDemonstrator:
    """Solver whose answers are imitated."""

    give_up: float  # chance of giving up after a column that is not the last
    broken_format: float  # share of answers with broken tags, so that the format reward has something to teach


def generate_questions(rows: int, seed: int) -> Iterator[Question]:
    """Yield distinct questions, the same for a seed on every machine; a DataError if there are too few."""
    rng, seen, draws = random.Random(seed), set[str](), 0
    while len(seen) < rows:
        digits, sign = DIGITS[rng.randrange(len(DIGITS))], OPERATORS[rng.randrange(len(OPERATORS))]
        low, high = 10 ** (digits - 1), 10**digits
        left = rng.randrange(2 * low if sign == "-" else low, high)
        # No difference has fewer digits than the operands.
        last = {"+": high, "-": left - low + 1, "*": 10}[sign]
        right = rng.randrange(2 if sign == "*" else low, last)
        question, draws = f"What is {left} {sign} {right}?", draws + 1
        if question not in seen:
            seen.add(question)
            draws = 0
            yield Question(question, str(_OPERATIONS[sign](left, right)))
        elif draws == DRAWS_FOR_ONE_ROW:
            raise DataError(f"there are only about {len(seen):,} generated questions: set dataset_rows to fewer")


def operands(question: str) -> tuple[int, str, int] | None:
    """Return the operands and the operator of a generated question; None for any other."""
    found = _QUESTION.fullmatch(question)
    return (int(found[1]), found[2], int(found[3])) if found else None


def written_columns(left: int, sign: str, right: int) -> list[tuple[str, int]]:
    """Return a line for each column from the right, and the digits of the result that it adds (the last may add 2).

    `4 + 8 + 1 = 13`: the two digits, what is carried over, and two digits of the result, always: a small model finds
    its place in lines of one length far sooner.
    """
    columns: list[tuple[str, int]] = []
    carry = 0
    others = f"{right}"[::-1] if sign != "*" else f"{right}" * len(f"{left}")
    for place, (a, b) in enumerate(zip(f"{left}"[::-1], others, strict=True), start=1):
        top, last = int(a), place == len(f"{left}")
        if sign == "-" and top < int(b) + carry:
            top += 10
        shown = f"{top:02}" if sign == "-" else top  # it may borrow 10
        text = f"{shown} {sign} {b} {'-' if sign == '-' else '+'} {carry}"
        value = _OPERATIONS[sign](top, int(b)) + (-carry if sign == "-" else carry)
        carry = int(top >= 10) if sign == "-" else value // 10
        columns.append((f"{text} = {value:02}\n", value if last else value % 10))
    return columns


def question_traces(
    problems: Sequence[Question], solver: ColumnDemonstrator, count: int, seed: int
) -> Iterator[tuple[Question, str]]:
    """Yield `count` pairs of a question and a completion; deterministic for a seed."""
    rng = random.Random(seed)
    for _ in range(count):
        problem = problems[rng.randrange(len(problems))]
        asked = operands(problem.question)
        if asked is None:
            raise DataError(f"{problem.question[:80]!a} is not a generated question: a built-in model knows no other")
        text = digits = ""
        columns = written_columns(*asked)
        for place, (line, value) in enumerate(columns, start=1):
            text, digits = text + line, f"{value}{digits}"
            if place < len(columns) and rng.random() < solver.give_up:
                break
        yield problem, text + _close(digits, solver, rng)


def _close(answer: str, solver: ColumnDemonstrator, rng: random.Random) -> str:
    """Return the end of a completion: thought closed, answer given; sometimes one tag is wrong."""
    if rng.random() >= solver.broken_format:
        return f"</think>\n<answer>{answer}</answer>"
    return rng.choice([f"<answer>{answer}</answer>", f"</think>\n{answer}", f"</think>\n<answer>{answer}"])


def column_verdicts(text: str) -> list[bool]:
    """Return for each written column of a completion whether it is calculated right."""
    verdicts = []
    for line in text.partition("</think>")[0].splitlines():
        if found := _LINE.fullmatch(line):
            left, sign, right, second, carry, result = found.groups()
            value = _OPERATIONS[second](_OPERATIONS[sign](int(left), int(right)), int(carry))
            verdicts.append(value == int(result))
    return verdicts
