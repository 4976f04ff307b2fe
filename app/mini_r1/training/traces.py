"""Worked examples for a built-in model's warm start, made by a solver that is honest but impatient.

A real base model already knows arithmetic and the habit of trying things; a model made from scratch knows nothing.
The warm start gives it just that much: it tries random combinations, calculates correctly, says truthfully how each
one turned out, and gives up far too early. What reinforcement learning can then add is persistence, because these
traces hardly show it: the demonstrator itself answers right about a quarter of the time.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator, Sequence

from mini_r1.builtin_models import Demonstrator
from mini_r1.countdown import task
from mini_r1.countdown.task import Chain, Problem

SUMS = "+-"
DRAWS = 300
"""Draws after which a kind of try counts as exhausted, with more numbers than are listed. Of large ones hardly any
product is allowed, and to look for the last one takes most of the time: an impatient solver would not."""
IN_A_ROW = 8
"""Answers to one problem, one after another, where its tries are listed: to list them takes longer than to draw."""


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
    kinds = _kinds(problem, solver, rng)
    seen: set[int] = set()
    while kinds:
        kind = kinds[-1] if len(kinds) == 1 or rng.random() < solver.sums else kinds[0]
        chain = next(kind, None)
        if chain is None:
            kinds.remove(kind)
        elif chain.values[-1] not in seen:
            seen.add(chain.values[-1])
            yield chain


def _kinds(problem: Problem, solver: Demonstrator, rng: random.Random) -> list[Iterator[Chain]]:
    """Where tries are drawn from: products and sums, or all of them together."""
    limit = solver.largest_value
    if not solver.sums:
        return [task.draw_chains(problem, solver.operators, limit, rng)]
    if len(problem.nums) <= task.MOST_ENUMERATED:
        return [_in_random_order(chains, rng) for chains in _listed(problem.nums, solver.operators, limit)]
    mixed = task.draw_chains(problem, solver.operators, limit, rng, DRAWS)
    return [(chain for chain in mixed if not _is_sum(chain)), task.draw_chains(problem, SUMS, limit, rng, DRAWS)]


@functools.lru_cache(maxsize=1)  # for the answers in a row
def _listed(numbers: tuple[int, ...], operators: str, limit: int) -> tuple[list[Chain], list[Chain]]:
    chains = task.all_chains(numbers, operators, limit)
    return [chain for chain in chains if not _is_sum(chain)], [chain for chain in chains if _is_sum(chain)]


def _is_sum(chain: Chain) -> bool:
    return set(chain.ops) <= set(SUMS)


def _in_random_order(chains: Sequence[Chain], rng: random.Random) -> Iterator[Chain]:
    left = list(chains)
    while left:
        i = rng.randrange(len(left))
        left[i], left[-1] = left[-1], left[i]
        yield left.pop()


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
    """Yield `count` pairs of a problem and a completion; deterministic for a seed."""
    rng = random.Random(seed)
    in_a_row = IN_A_ROW if solver.sums else 1
    for i in range(count):
        if i % in_a_row == 0:
            problem = problems[rng.randrange(len(problems))]
        yield problem, trace(problem, solver, rng)
