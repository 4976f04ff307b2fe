"""Search baselines on the same problems: success after fixed numbers of tries, and in place of the model.

docs/evaluation.md has the reason for these two: a solver that gets the model's number of tries is underestimated.
"""

import random
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mini_r1.evaluation.measures import EvaluatedAnswer, limits, mean
from mini_r1.evaluation.statistics import rate_interval, ratio_interval
from mini_r1.tasks.task import Solver

BUDGETS = (1, 2, 4, 8, 16, 32, 64)
"""Numbers of tries that a solver's success is given for."""
DRAWS = 256
"""Searches that a problem's success is averaged over: exact to a few thousandths over 500 problems."""
SEED = 0
"""Random seed of the solvers' draws, independent of the model's."""

Weights = Mapping[int, float]
"""Each result that a solver may get from a problem's numbers, and its relative chance to be the next among those that
are left: no result comes twice."""


def compare(sampled: Sequence[Sequence[EvaluatedAnswer]], solver: Solver) -> dict[str, Any] | None:
    """Compare the model's answers to each problem with one solver; None when no problem can be counted.

    The keys are those of docs/evaluation.md; `observed_over_expected` is None when nothing is expected, its interval
    also when the spread is unknown.
    """
    rng = random.Random(SEED)
    draws = np.random.default_rng(SEED)
    rows: list[_Row] = []
    for answers in sampled:
        problem = answers[0].verdict.problem
        weights = solver.weights(problem)
        if weights is None:
            continue
        target = solver.target(problem)
        expected = 0.0
        for answer in answers:
            expected += expected_hits(weights, target, solver.results(answer.verdict), rng)
        rows.append(
            _Row(
                problem.cluster,
                solver.strata(problem),
                len(answers),
                sum(answer.verdict.right for answer in answers),
                expected,
                success_at_tries(weights, target, draws),
            )
        )
    if not rows:
        return None
    found = _sum_up(rows)
    for name in rows[0].strata:
        keys = sorted({row.strata[name] for row in rows})
        found[f"by_{name}"] = {key: _sum_up([row for row in rows if row.strata[name] == key]) for key in keys}
    return found


def expected_hits(weights: Weights, target: int, tries: Sequence[int | None], rng: random.Random) -> float:
    """Return the sum over tries, through the first that hits, of the solver's chance to hit there if it has not yet.

    At each try the solver has made the model's earlier tries. For one that it would never have made (a result that it
    can't get, or had already) it draws a result that misses. So a model that is this solver is expected to hit exactly
    as often as it does, on average, by any stopping rule: the sum compensates its hits (their difference is a
    martingale). It is 0 when the solver can't reach the target, and above 1 for a model that tries long without a hit.
    """
    aim = weights.get(target, 0.0)
    if not aim:
        return 0.0
    left, total, expected = dict(weights), sum(weights.values()), 0.0
    order: list[int] | None = None
    for result in tries:
        expected += aim / total
        if result == target or len(left) == 1:  # the only one left: the solver would have hit
            break
        if result is None or result not in left:
            if order is None:
                keys = {other: rng.expovariate(weight) for other, weight in weights.items() if other != target}
                order = sorted(keys, key=keys.__getitem__, reverse=True)
            result = next(other for other in iter(order.pop, None) if other in left)
        total -= left.pop(result)
    return expected


def success_at_tries(weights: Weights, target: int, rng: np.random.Generator) -> dict[str, float]:
    """Return the solver's chance to hit within each of BUDGETS tries, from DRAWS searches; `all`: after all of them.

    Drawing without repetition in proportion to weights is a race: result i arrives after an exponential time of rate
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
    """The counts of one problem."""

    cluster: Hashable
    strata: Mapping[str, str]
    answers: int
    observed: int
    expected: float
    at_tries: Mapping[str, float]


def _sum_up(rows: Sequence[_Row]) -> dict[str, Any]:
    observed, expected = sum(row.observed for row in rows), sum(row.expected for row in rows)
    clusters, ends = [row.cluster for row in rows], None
    if expected and observed:
        ends = ratio_interval([row.observed for row in rows], [row.expected for row in rows], clusters)
    elif expected and (none := rate_interval([0.0] * len(rows), rows[0].answers, clusters)):
        # The interval of no success in all answers, divided by the expected hits of one answer.
        ends = 0.0, none[1] * sum(row.answers for row in rows) / expected
    return {
        "problems": len(rows),
        "success_at_tries": {key: mean([row.at_tries[key] for row in rows]) for key in rows[0].at_tries},
        "observed": observed,
        "expected": round(expected, 3),
        "observed_over_expected": round(observed / expected, 6) if expected else None,
        "observed_over_expected_ci95": limits(ends),
    }


def search_baselines(
    sampled: Sequence[Sequence[EvaluatedAnswer]], solvers: Mapping[str, Solver]
) -> dict[str, dict[str, Any]]:
    """Compare the model with every solver that can be counted."""
    found = {name: compare(sampled, solver) for name, solver in solvers.items()}
    return {name: figures for name, figures in found.items() if figures is not None}
