"""What search alone achieves on the same problems: at fixed numbers of tries, and in the place of the model.

A search stops when it hits, so how often it tries depends on how lucky it was: to give a solver as many tries as the
model made would understate it. Two comparisons have no such flaw. A solver's success after 1, 2, 4, ... tries is a
property of the solver and the problem. And at each try that the model makes, the solver in its place would hit with a
known chance; the sum E of these chances is what the model's successes O would be on average if its tries were the
solver's, whenever it stops.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mini_r1.evaluation.answers import Answer
from mini_r1.evaluation.measures import OPERATOR_KEYS, limits, mean
from mini_r1.evaluation.statistics import rate_interval, ratio_interval
from mini_r1.tasks.countdown import task

BUDGETS = (1, 2, 4, 8, 16, 32, 64)
"""Tries that a solver's success is told for."""
DRAWS = 256
"""Searches of one problem that its success is averaged over: of 500 problems to a few thousandths."""
SEED = 0
"""Seed of the solvers' draws; the same whatever the seed of the model is."""

Weights = Mapping[int, float]
"""Each result that a solver may get from a problem's numbers, and how likely it is, relative to the others, to be next
among those that are left: it never gets one twice."""


@dataclass(frozen=True, slots=True)
class Solver:
    """A search without a thought.

    Attributes:
        weights: of a problem; None where there are too many results to count.
        signless: a result and its opposite are one.
    """

    weights: Callable[[task.Problem], Weights | None]
    signless: bool = False


@dataclass(frozen=True, slots=True)
class Game:
    """What a random solver may try: the rule by which the problems were made, if it is known."""

    operators: str = "+-*/"
    max_value: int | None = None
    """Largest value on the way."""


def solvers(game: Game) -> dict[str, Solver]:
    """`random_solver`: chains of operations by the game's rule; `signed_sums`: signs before the numbers."""
    return {
        "random_solver": Solver(
            lambda problem: task.chain_results(problem.numbers_key, game.operators, game.max_value)
        ),
        "signed_sums": Solver(lambda problem: dict.fromkeys(task.signed_sums(problem.nums), 1.0), signless=True),
    }


def compared(sampled: Sequence[Sequence[Answer]], solver: Solver) -> dict[str, Any] | None:
    """One solver on the problems of the model's sampled answers, and in the model's place.

    Args:
        sampled: of each problem the model's answers.
        solver: what they are held against.

    Returns:
        `problems` (without those that have too many results to count), `success_at_tries` ({"1": share, "2": ...,
        "all": the share that it can reach at all}), `observed` (the model's right answers), `expected` (what they would
        be on average if its tries were the solver's; this is no success rate and may exceed the number of answers),
        `observed_over_expected` and `observed_over_expected_ci95` (None where nothing is expected, or tells its
        spread), and `by_operators` ({key: the same of these problems}). None where no problem can be counted.
    """
    counted = [(answers, weights) for answers in sampled if (weights := solver.weights(answers[0].problem)) is not None]
    if not counted:
        return None
    rng = random.Random(SEED)
    draws = np.random.default_rng(SEED)
    kinds, rows = [], []
    for answers, weights in counted:
        problem = answers[0].problem
        target = abs(problem.target) if solver.signless else problem.target
        expected = 0.0
        for answer in answers:
            tries = [abs(r) if solver.signless and r is not None else r for r in answer.verdict.results]
            expected += expected_hits(weights, target, tries, rng)
        kinds.append(OPERATOR_KEYS[task.strata(problem)["operators"]])
        rows.append(
            _Row(
                problem.numbers_key,
                len(answers),
                sum(answer.verdict.equation for answer in answers),
                expected,
                success_at_tries(weights, target, draws),
            )
        )
    by = {
        key: _summed([row for row, kind in zip(rows, kinds, strict=True) if kind == key]) for key in sorted(set(kinds))
    }
    return {**_summed(rows), "by_operators": by}


def expected_hits(weights: Weights, target: int, tries: Sequence[int | None], rng: random.Random) -> float:
    """The sum over tries, through the first that hits, of the solver's chance to hit there if it has not yet.

    What the solver has behind it at a try are the model's tries before it. For one that the solver would never have
    made (a result that it cannot get, one that it had already) it draws a result that misses. So a model that is
    this solver is expected to hit exactly as often as it does, on average, by whatever rule it stops: the sum
    compensates its hits (it makes their difference a martingale).

    Args:
        weights: of this problem.
        target: what hits.
        tries: results in the model's order.
        rng: of the solver's own draws.

    Returns:
        0 where the solver cannot reach the target; above 1 where a model goes on for long without a hit.
    """
    aim = weights.get(target, 0.0)
    if not aim:
        return 0.0
    left, total, expected = dict(weights), sum(weights.values()), 0.0
    order: list[int] | None = None
    for result in tries:
        expected += aim / total
        if result == target or len(left) == 1:  # it is the only one left: the solver would have hit
            break
        if result is None or result not in left:
            if order is None:
                keys = {other: rng.expovariate(weight) for other, weight in weights.items() if other != target}
                order = sorted(keys, key=keys.__getitem__, reverse=True)
            result = next(other for other in iter(order.pop, None) if other in left)
        total -= left.pop(result)
    return expected


def success_at_tries(weights: Weights, target: int, rng: np.random.Generator) -> dict[str, float]:
    """The solver's chance to have hit within each of BUDGETS tries, from DRAWS searches; `all`: after all of them.

    A draw without repetition in proportion to weights is a race: result i arrives after an exponential time of rate
    w_i. Given the target's time, the number of results before it is a sum of independent draws, and results of equal
    weight are one binomial draw.
    """
    aim = weights.get(target, 0.0)
    if not aim:
        return {**{str(budget): 0.0 for budget in BUDGETS}, "all": 0.0}
    values, counts = np.unique([weight for result, weight in weights.items() if result != target], return_counts=True)
    arrival = rng.exponential(1 / aim, size=(DRAWS, 1))
    before = rng.binomial(counts, 1 - np.exp(-values * arrival)).sum(axis=1)
    return {**{str(budget): float(np.mean(before < budget)) for budget in BUDGETS}, "all": 1.0}


@dataclass(frozen=True, slots=True)
class _Row:
    """One problem's part."""

    cluster: tuple[int, ...]
    answers: int
    observed: int
    expected: float
    at_tries: Mapping[str, float]


def _summed(rows: Sequence[_Row]) -> dict[str, Any]:
    observed, expected = sum(row.observed for row in rows), sum(row.expected for row in rows)
    return {
        "problems": len(rows),
        "success_at_tries": {key: mean([row.at_tries[key] for row in rows]) for key in rows[0].at_tries},
        "observed": observed,
        "expected": round(expected, 3),
        "observed_over_expected": round(observed / expected, 6) if expected else None,
        "observed_over_expected_ci95": _ratio_limits(rows, observed, expected),
    }


def _ratio_limits(rows: Sequence[_Row], observed: int, expected: float) -> list[float] | None:
    clusters = [row.cluster for row in rows]
    if not expected:
        return None
    if observed:
        return limits(ratio_interval([row.observed for row in rows], [row.expected for row in rows], clusters))
    # The interval of no success in all answers, divided by the expected hits of one answer.
    none = rate_interval([0.0] * len(rows), rows[0].answers, clusters)
    return None if none is None else limits((0.0, none[1] * sum(row.answers for row in rows) / expected))


def search_baselines(sampled: Sequence[Sequence[Answer]], game: Game) -> dict[str, dict[str, Any]]:
    """`compared` of every solver of `solvers`, without those that have no problem that can be counted."""
    found = {name: compared(sampled, solver) for name, solver in solvers(game).items()}
    return {name: figures for name, figures in found.items() if figures is not None}
