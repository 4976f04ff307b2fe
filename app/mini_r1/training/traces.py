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
from typing import NamedTuple

from mini_r1.recipe.builtin_models import Demonstrator
from mini_r1.tasks.countdown import task
from mini_r1.tasks.countdown.task import Chain, Problem

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

    Where the solver has a share of `sums`, each draw only adds and subtracts with that chance, and else does not; one
    whose result was there already is drawn anew. Where a kind has no new result, the other is drawn from alone.
    """
    if not solver.sums or len(problem.nums) > task.MOST_ENUMERATED:
        yield from _drawn(problem, solver, rng)
        return
    kinds = list(zip(_listed(problem.nums, solver.operators, solver.largest_value), _shares(solver), strict=True))
    seen: set[int] = set()
    while kinds := [(chains, share) for chains, share in kinds if not chains.results <= seen]:
        chains = kinds[-1 if len(kinds) == 1 or rng.random() < kinds[-1][1] else 0][0]
        chain = rng.choice(chains.chains)
        if chain.values[-1] not in seen:
            seen.add(chain.values[-1])
            yield chain


def result_weights(problem: Problem, solver: Demonstrator) -> dict[int, float] | None:
    """How likely each result is, relative to the others, to be the next one of `draw_tries` that is new.

    Returns:
        None where there are too many to count.
    """
    counts = task.chain_results(problem.numbers_key, solver.operators, solver.largest_value)
    sums = task.chain_results(problem.numbers_key, SUMS, solver.largest_value)
    if counts is None or sums is None:
        return None
    if not solver.sums:
        return {result: float(count) for result, count in counts.items()}
    others = {result: count - sums.get(result, 0) for result, count in counts.items()}
    weights = dict.fromkeys(counts, 0.0)
    for kind, share in zip((others, sums), _shares(solver), strict=True):
        for result, count in kind.items():
            weights[result] += share * count / max(1, sum(kind.values()))
    return {result: weight for result, weight in weights.items() if weight}


def _shares(solver: Demonstrator) -> tuple[float, float]:
    """Of products and of sums."""
    return 1 - solver.sums, solver.sums


def _drawn(problem: Problem, solver: Demonstrator, rng: random.Random) -> Iterator[Chain]:
    """Tries that are not listed: of one kind alone, or of more numbers than are listed."""
    limit = solver.largest_value
    if not solver.sums:
        yield from task.draw_chains(problem, solver.operators, limit, rng)
        return
    mixed = task.draw_chains(problem, solver.operators, limit, rng, DRAWS)
    kinds = [(chain for chain in mixed if not _is_sum(chain)), task.draw_chains(problem, SUMS, limit, rng, DRAWS)]
    seen: set[int] = set()
    while kinds:
        kind = kinds[-1] if len(kinds) == 1 or rng.random() < solver.sums else kinds[0]
        chain = next(kind, None)
        if chain is None:
            kinds.remove(kind)
        elif chain.values[-1] not in seen:
            seen.add(chain.values[-1])
            yield chain


class _Chains(NamedTuple):
    """All calculations of one kind."""

    chains: list[Chain]
    results: frozenset[int]


@functools.lru_cache(maxsize=1)  # for the answers in a row
def _listed(numbers: tuple[int, ...], operators: str, limit: int) -> tuple[_Chains, _Chains]:
    """Products, and sums."""
    chains = task.all_chains(numbers, operators, limit)
    kinds = [chain for chain in chains if not _is_sum(chain)], [chain for chain in chains if _is_sum(chain)]
    products, sums = (_Chains(kind, frozenset(chain.values[-1] for chain in kind)) for kind in kinds)
    return products, sums


def _is_sum(chain: Chain) -> bool:
    return set(chain.ops) <= set(SUMS)


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
