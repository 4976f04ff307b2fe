"""Worked examples for a built-in model's warm start, made by a solver that is honest but impatient.

A real base model already knows arithmetic and the habit of trying things; a model made from scratch knows nothing.
The warm start gives it just that much: it tries random combinations, calculates correctly, says truthfully how each
one turned out, and gives up far too early. What reinforcement learning can then add is persistence, because these
traces hardly show it: the demonstrator itself answers right about a quarter of the time.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from mini_r1.builtin_models import Demonstrator
from mini_r1.countdown import task
from mini_r1.countdown.task import Chain, Problem

SUMS = "+-"
DRAWS = 300
"""Draws after which a kind of try counts as exhausted. Of large numbers hardly any product is allowed, and to look for
the last one takes most of the time: an impatient solver would not."""


def working(chain: Chain) -> str:
    """A calculation as the demonstrator writes it: `8 + 2 = 10 - 3 = 7`."""
    steps = (f" {op} {n} = {v}" for op, n, v in zip(chain.ops, chain.nums[1:], chain.values, strict=True))
    return str(chain.nums[0]) + "".join(steps)


def answer(chain: Chain) -> str:
    """The same calculation as one expression, with the parentheses that left-to-right order needs."""
    text, additive = str(chain.nums[0]), False
    for op, number in zip(chain.ops, chain.nums[1:], strict=True):
        if op not in SUMS and additive:
            text = f"({text})"
        text, additive = f"{text} {op} {number}", op in SUMS
    return text


def draw_tries(problem: Problem, solver: Demonstrator, rng: random.Random) -> Iterator[Chain]:
    """Random calculations over the problem's numbers, no two with the same result.

    Where the solver has a share of `sums`, the next one only adds and subtracts with that chance, and else does not;
    where none of a kind is left, the other is drawn from alone.
    """
    limit = solver.largest_value
    if solver.sums:
        mixed = task.draw_chains(problem, solver.operators, limit, rng, DRAWS)
        products = (chain for chain in mixed if not set(chain.ops) <= set(SUMS))
        kinds: list[Iterator[Chain]] = [products, task.draw_chains(problem, SUMS, limit, rng, DRAWS)]
    else:
        kinds = [task.draw_chains(problem, solver.operators, limit, rng)]
    seen: set[int] = set()
    while kinds:
        kind = kinds[-1] if len(kinds) == 1 or rng.random() < solver.sums else kinds[0]
        chain = next(kind, None)
        if chain is None:
            kinds.remove(kind)
        elif chain.values[-1] not in seen:
            seen.add(chain.values[-1])
            yield chain


def trace(problem: Problem, solver: Demonstrator, rng: random.Random) -> str:
    """One completion of the impatient solver: its tries, each judged truthfully, and an answer block."""
    lines: list[str] = []
    last: Chain | None = None
    for attempt in draw_tries(problem, solver, rng):
        last, result = attempt, attempt.values[-1]
        remark = "(yes)" if result == problem.target else "(too low)" if result < problem.target else "(too high)"
        lines.append(f"{working(attempt)} {remark}\n")
        if result == problem.target or len(lines) == solver.max_tries or rng.random() < solver.give_up:
            break
    return "".join(lines) + close(answer(last) if last else str(problem.nums[0]), solver, rng)


def close(answer: str, solver: Demonstrator, rng: random.Random) -> str:
    """The end of a completion: thought closed, answer given; some of the time one tag is wrong."""
    good = f"</think>\n<answer>{answer}</answer>"
    if rng.random() >= solver.broken_format:
        return good
    return rng.choice(
        [
            f"<answer>{answer}</answer>",  # the thought is never closed
            f"</think>\n{answer}",  # no answer tags
            f"</think>\n<answer>{answer}",  # the answer is never closed
            f"</think>\n<answer>{answer}</answer>\n<answer>{answer}</answer>",  # said twice
        ]
    )


def traces(problems: Sequence[Problem], solver: Demonstrator, count: int, seed: int) -> Iterator[tuple[Problem, str]]:
    """`count` pairs of a problem and a completion; deterministic for a seed."""
    rng = random.Random(seed)
    for _ in range(count):
        problem = problems[rng.randrange(len(problems))]
        yield problem, trace(problem, solver, rng)
