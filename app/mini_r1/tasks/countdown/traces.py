"""Worked examples for a built-in model's warm start, written by a solver that is honest but impatient.

A model made from scratch has neither a base model's arithmetic nor its habit of trying things. The solver tries random
combinations, calculates correctly, reports truthfully how each one turned out, and gives up far too early: it answers
right about a quarter of the time. Reinforcement learning can then add persistence, which the traces hardly show.
"""

import functools
import math
import operator
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from .baselines import MOST_ENUMERATED, Chain, all_chains, chain_results, draw_chains
from .problem import Problem

SUMS = "+-"
WORKING = (
    " + ", " - ", " * ", " / ", " = ", " (too low)\n", " (too high)\n", " (yes)\n",
    "</think>\n", "<answer>", "</answer>", "<think>", "</think>",
)  # fmt: skip
"""Parts of the demonstrator's text, one token each."""
OPERATIONS: dict[str, Callable[[int, int], float]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": lambda left, right: left / right if right else math.nan,
}
DRAWS = 300
"""Draws after which a kind of try counts as exhausted, with too many numbers to list all tries. With large numbers
hardly any product is allowed, and finding the last one would take most of the time."""
IN_A_ROW = 8
"""Successive answers to one problem whose tries are listed: listing them takes longer than drawing."""


@dataclass(frozen=True, slots=True)
class Demonstrator:
    """Solver whose answers are imitated: correct, but it gives up too early."""

    operators: str
    sums: float  # share of tries that only add and subtract
    largest_value: int  # largest intermediate result of a try; a problem's own `max_intermediate` may be smaller
    give_up: float  # chance of giving up after a failed try, which GRPO has to unlearn
    max_tries: int  # tries in one answer, few enough for the recipe's `max_completion_length`
    broken_format: float = 0.3  # share of answers with broken tags, so that the format reward has something to teach


def working(chain: Chain) -> str:
    """Return a calculation as the demonstrator writes it: `8 + 2 = 10 - 3 = 7`."""
    steps = (f" {op} {n} = {v}" for op, n, v in zip(chain.ops, chain.nums[1:], chain.values, strict=True))
    return str(chain.nums[0]) + "".join(steps)


def answer(chain: Chain) -> str:
    """Return the same calculation as one expression, with the parentheses that left-to-right order needs."""
    text, additive = str(chain.nums[0]), False
    for op, number in zip(chain.ops, chain.nums[1:], strict=True):
        if op not in SUMS and additive:
            text = f"({text})"
        text, additive = f"{text} {op} {number}", op in SUMS
    return text


def draw_tries(problem: Problem, solver: Demonstrator, rng: random.Random) -> Iterator[Chain]:
    """Yield random calculations over the problem's numbers, no two with the same result.

    If the solver has a share of `sums`, that is each draw's chance to only add and subtract; a draw whose result was
    there already is repeated. When a kind has no new result, only the other one is drawn.
    """
    if not solver.sums or len(problem.nums) > MOST_ENUMERATED:
        yield from _drawn(problem, solver, rng)
        return
    kinds = _listed(problem.nums, solver.operators, solver.largest_value)
    seen: set[int] = set()
    while kinds := [(chains, results) for chains, results in kinds if not results <= seen]:
        chains, _ = kinds[-1 if len(kinds) == 1 or rng.random() < solver.sums else 0]
        chain = rng.choice(chains)
        if chain.values[-1] not in seen:
            seen.add(chain.values[-1])
            yield chain


def result_weights(problem: Problem, solver: Demonstrator) -> dict[int, float] | None:
    """Return the relative chance of each result to be the next new one of `draw_tries`; None if there are too many."""
    counts = chain_results(problem.numbers_key, solver.operators, solver.largest_value)
    sums = chain_results(problem.numbers_key, SUMS, solver.largest_value)
    if counts is None or sums is None:
        return None
    if not solver.sums:
        return {result: float(count) for result, count in counts.items()}
    others = {result: count - sums.get(result, 0) for result, count in counts.items()}
    weights = dict.fromkeys(counts, 0.0)
    for kind, share in ((others, 1 - solver.sums), (sums, solver.sums)):
        for result, count in kind.items():
            weights[result] += share * count / max(1, sum(kind.values()))
    return {result: weight for result, weight in weights.items() if weight}


def _drawn(problem: Problem, solver: Demonstrator, rng: random.Random) -> Iterator[Chain]:
    """Yield tries without listing them all: of a single kind, or over many numbers."""
    limit = solver.largest_value
    if not solver.sums:
        yield from draw_chains(problem, solver.operators, limit, rng)
        return
    mixed = draw_chains(problem, solver.operators, limit, rng, DRAWS)
    kinds = [(chain for chain in mixed if not _is_sum(chain)), draw_chains(problem, SUMS, limit, rng, DRAWS)]
    seen: set[int] = set()
    while kinds:
        kind = kinds[-1] if len(kinds) == 1 or rng.random() < solver.sums else kinds[0]
        chain = next(kind, None)
        if chain is None:
            kinds.remove(kind)
        elif chain.values[-1] not in seen:
            seen.add(chain.values[-1])
            yield chain


@functools.lru_cache(maxsize=1)  # for the answers in a row
def _listed(numbers: tuple[int, ...], operators: str, limit: int) -> list[tuple[list[Chain], frozenset[int]]]:
    """Return all products and all sums, each with their results."""
    chains = all_chains(numbers, operators, limit)
    kinds = [chain for chain in chains if not _is_sum(chain)], [chain for chain in chains if _is_sum(chain)]
    return [(kind, frozenset(chain.values[-1] for chain in kind)) for kind in kinds]


def _is_sum(chain: Chain) -> bool:
    return set(chain.ops) <= set(SUMS)


def trace(problem: Problem, solver: Demonstrator, rng: random.Random) -> str:
    """Return one completion of the impatient solver: its tries, each judged truthfully, and an answer block."""
    lines: list[str] = []
    chain: Chain | None = None
    for chain in draw_tries(problem, solver, rng):
        result = chain.values[-1]
        remark = "(yes)" if result == problem.target else "(too low)" if result < problem.target else "(too high)"
        lines.append(f"{working(chain)} {remark}\n")
        if result == problem.target or len(lines) == solver.max_tries or rng.random() < solver.give_up:
            break
    return "".join(lines) + close(answer(chain) if chain else str(problem.nums[0]), solver, rng)


def close(answer: str, solver: Demonstrator, rng: random.Random) -> str:
    """Return the end of a completion: thought closed, answer given; sometimes one tag is wrong."""
    good = f"</think>\n<answer>{answer}</answer>"
    if rng.random() >= solver.broken_format:
        return good
    return rng.choice(
        [
            f"<answer>{answer}</answer>",  # the thought is never closed
            f"</think>\n{answer}",  # no answer tags
            f"</think>\n<answer>{answer}",  # the answer is never closed
            f"</think>\n<answer>{answer}</answer>\n<answer>{answer}</answer>",  # two answers
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


def step_verdicts(text: str) -> list[bool]:
    """Return for each `value op number = value` in the working of a completion whether it is right.

    A working line is a chain, `8 + 2 = 10 - 3 = 7`, in which every value is the left operand of what follows.
    """
    verdicts = []
    for line in text.split("</think>")[0].splitlines():
        parts = line.split(" (")[0].split()
        for i in range(0, len(parts) - 4, 4):
            left, op, number, equals, value = parts[i : i + 5]
            if op not in OPERATIONS or equals != "=" or not all(map(str.isdecimal, (left, number, value))):
                break
            verdicts.append(OPERATIONS[op](int(left), int(number)) == int(value))
    return verdicts
