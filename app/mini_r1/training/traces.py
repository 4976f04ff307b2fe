"""Worked examples for the demo model's warm start, made by a solver that is honest but impatient.

A real base model already knows arithmetic and the habit of trying things; a model made from scratch knows nothing.
The warm start gives it just that much: it tries random combinations, calculates correctly, says truthfully how each
one turned out, and gives up far too early. What reinforcement learning can then add is persistence, because nothing
in these traces shows it: the demonstrator itself answers right about a quarter of the time.
"""

from __future__ import annotations

import operator
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mini_r1.countdown import task
from mini_r1.countdown.task import Problem

OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul}
GIVE_UP = 0.5
"""Chance of giving up after each failed try: the impatience that training has to unlearn."""
BROKEN_FORMAT = 0.3
"""Share of traces whose tags are broken, so that the format reward has something to teach."""
MAX_TRIES = 7
"""Tries that still fit max_completion_length 96 of the demo recipe (about 11 tokens a try)."""


@dataclass(frozen=True, slots=True)
class Try:
    """One left-to-right calculation over all numbers of a problem."""

    nums: tuple[int, ...]
    ops: tuple[str, ...]

    def values(self) -> list[int]:
        """The running values, first number excluded."""
        value, values = self.nums[0], []
        for op, number in zip(self.ops, self.nums[1:], strict=True):
            value = OPERATORS[op](value, number)
            values.append(value)
        return values

    def working(self) -> str:
        """The calculation as the demonstrator writes it: `8 + 2 = 10 - 3 = 7`."""
        steps = (f" {op} {n} = {v}" for op, n, v in zip(self.ops, self.nums[1:], self.values(), strict=True))
        return str(self.nums[0]) + "".join(steps)

    def answer(self) -> str:
        """The same calculation as one expression, with the parentheses that left-to-right order needs."""
        text, additive = str(self.nums[0]), False
        for op, number in zip(self.ops, self.nums[1:], strict=True):
            if op == "*" and additive:
                text = f"({text})"
            text, additive = f"{text} {op} {number}", op != "*"
        return text


def draw_tries(problem: Problem, max_value: int, rng: random.Random) -> Iterator[Try]:
    """Random tries over the problem's numbers with values in 0..max_value, no two with the same result."""
    for chain in task.draw_chains(problem, "".join(OPERATORS), max_value, rng):
        yield Try(chain.nums, chain.ops)


def trace(problem: Problem, max_value: int, rng: random.Random) -> str:
    """One completion of the impatient solver: its tries, each judged truthfully, and an answer block."""
    lines: list[str] = []
    last: Try | None = None
    for attempt in draw_tries(problem, max_value, rng):
        last, result = attempt, attempt.values()[-1]
        remark = "(yes)" if result == problem.target else "(too low)" if result < problem.target else "(too high)"
        lines.append(f"{attempt.working()} {remark}\n")
        if result == problem.target or len(lines) == MAX_TRIES or rng.random() < GIVE_UP:
            break
    answer = last.answer() if last else str(problem.nums[0])
    return "".join(lines) + close(answer, rng)


def close(answer: str, rng: random.Random) -> str:
    """The end of a completion: thought closed, answer given; with BROKEN_FORMAT chance one tag is wrong."""
    good = f"</think>\n<answer>{answer}</answer>"
    if rng.random() >= BROKEN_FORMAT:
        return good
    return rng.choice(
        [
            f"<answer>{answer}</answer>",  # the thought is never closed
            f"</think>\n{answer}",  # no answer tags
            f"</think>\n<answer>{answer}",  # the answer is never closed
            f"</think>\n<answer>{answer}</answer>\n<answer>{answer}</answer>",  # said twice
        ]
    )


def traces(problems: Sequence[Problem], max_value: int, count: int, seed: int) -> Iterator[tuple[Problem, str]]:
    """`count` pairs of a problem and a completion whose tries stay in 0..max_value; deterministic for a seed."""
    rng = random.Random(seed)
    for _ in range(count):
        problem = problems[rng.randrange(len(problems))]
        yield problem, trace(problem, max_value, rng)
