"""How often do the evaluation's 95 % intervals contain the true value?

    .venv/bin/python bench/coverage.py [--rounds 1000] [--json]

Simulated evaluations with known true values: each cluster of problems has a separate probability of success (beta
distributed), each problem some samples. The bench counts the share of rounds in which the interval contains the value:

    rate          success of the samples                  `rate_interval`
    pass@2, @4    chance that one of k samples is right   `rate_interval`
    difference    success after less success before, paired by problem     `mean_interval`
    O/E           hits over expected hits of a search that stops when it hits     `ratio_interval`

To compare with the last two: bootstrap-t over clusters (Efron and Tibshirani 1993, chapter 12.5), which is not used.
Bar: each of the kit's intervals covers 93 to 99.5 %, less two standard errors of the simulation at either end.
About 4 minutes of one core.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from mini_r1.evaluation.statistics import Interval, mean_interval, pass_at_k, rate_interval, ratio_interval
from scipy.special import betaincinv, betaln

LEAST, MOST = 0.93, 0.995
SAMPLES = 4
RESAMPLES = 500
MOST_TRIES = 7
"""A search's limit of tries is drawn from 1 to this."""


class Case(NamedTuple):
    """Evaluations of one shape."""

    clusters: int
    problems: int
    """A cluster's number of problems is drawn from 1 to this."""
    before: float
    """Success, on average."""
    after: float
    correlation: float
    """Correlation of two problems of a cluster: the share of the variance between clusters."""


CASES = {
    "40 clusters, 10 %": Case(40, 1, 0.10, 0.30, 0.3),
    "5 clusters, 10 %": Case(5, 3, 0.10, 0.30, 0.2),
    "5 clusters, 30 %": Case(5, 3, 0.30, 0.50, 0.2),
    "5 clusters, 50 %": Case(5, 3, 0.50, 0.70, 0.2),
    "5 clusters of many": Case(5, 40, 0.30, 0.50, 0.05),
    "10 clusters, 30 %": Case(10, 4, 0.30, 0.50, 0.2),
    "200 problems, 2 %": Case(200, 1, 0.02, 0.05, 0.2),
    "161 clusters, 12 %": Case(161, 15, 0.12, 0.45, 0.2),
    "2,442 clusters, 35 %": Case(2442, 1, 0.35, 0.50, 0.3),
}
FEWER_ROUNDS = 1000
"""Clusters from which a case gets a fourth of the rounds."""


def chances(rng: np.random.Generator, case: Case) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cluster of each problem, and its chance before and after: both grow with the same draw of its cluster."""
    sizes = rng.integers(1, case.problems + 1, case.clusters)
    draw = rng.random(case.clusters)
    scale = 1 / case.correlation - 1
    before, after = (betaincinv(p * scale, (1 - p) * scale, draw) for p in (case.before, case.after))
    cluster = np.repeat(np.arange(case.clusters), sizes)
    return cluster, before[cluster], after[cluster]


def true_pass_at_k(case: Case, k: int) -> float:
    """1 - E(1 - chance)^k of the beta distribution."""
    scale = 1 / case.correlation - 1
    a, b = case.before * scale, (1 - case.before) * scale
    return float(1 - np.exp(betaln(a, b + k) - betaln(a, b)))


def search(rng: np.random.Generator, chance: float) -> tuple[float, float]:
    """Hits, and the sum of the chances of its tries, of SAMPLES searches that stop when they hit."""
    hits = expected = 0.0
    for most in rng.integers(1, MOST_TRIES + 1, SAMPLES):
        hit = int(rng.geometric(chance)) if chance > 1e-9 else MOST_TRIES + 1
        hits += hit <= most
        expected += chance * min(hit, int(most))
    return hits, expected


def bootstrap_t(
    above: Sequence[float], below: Sequence[float], clusters: np.ndarray, rng: np.random.Generator
) -> Interval | None:
    """The interval of sum(above) / sum(below) by bootstrap-t over clusters."""
    number = int(clusters.max()) + 1
    top, bottom = (np.bincount(clusters, weights=np.asarray(values), minlength=number) for values in (above, below))

    def estimate(tops: np.ndarray, bottoms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        ratio = tops.sum(-1) / bottoms.sum(-1)
        residuals = tops - ratio[..., None] * bottoms
        return ratio, np.sqrt(number / (number - 1) * (residuals**2).sum(-1)) / bottoms.sum(-1)

    ratio, error = estimate(top, bottom)
    if not error:
        return None
    drawn = rng.integers(0, number, size=(RESAMPLES, number))
    ratios, errors = estimate(top[drawn], bottom[drawn])
    usable = errors > 1e-9
    low, high = np.quantile((ratios - ratio)[usable] / errors[usable], [0.025, 0.975])
    return float(ratio - high * error), float(ratio - low * error)


def simulate(case: Case, rounds: int, seed: int) -> dict[str, dict[str, float]]:
    """For each figure, the share of rounds that cover, and the median width."""
    rng = np.random.default_rng(seed)
    found: dict[str, list[tuple[bool, float]]] = {}

    def note(name: str, truth: float, interval: Interval | None) -> None:
        if interval is not None:
            found.setdefault(name, []).append((interval[0] <= truth <= interval[1], interval[1] - interval[0]))

    for _ in range(rounds):
        cluster, first, last = chances(rng, case)
        ones = [1.0] * len(cluster)
        right, then = rng.binomial(SAMPLES, first), rng.binomial(SAMPLES, last)
        note("rate", case.before, rate_interval((right / SAMPLES).tolist(), SAMPLES, cluster.tolist()))
        for k in (2, 4):
            values = [pass_at_k(SAMPLES, int(count), k) for count in right]
            note(f"pass@{k}", true_pass_at_k(case, k), rate_interval(values, SAMPLES, cluster.tolist()))
        differences, truth = ((then - right) / SAMPLES).tolist(), case.after - case.before
        note("difference", truth, mean_interval(differences, cluster.tolist()))
        note("difference, bootstrap-t", truth, bootstrap_t(differences, ones, cluster, rng))
        hits, expected = (list(part) for part in zip(*(search(rng, chance) for chance in first), strict=True))
        if sum(hits):
            note("O/E", 1.0, ratio_interval(hits, expected, cluster.tolist()))
            note("O/E, bootstrap-t", 1.0, bootstrap_t(hits, expected, cluster, rng))
    return {
        name: {
            "coverage": sum(covers for covers, _ in seen) / len(seen),
            "width": statistics.median(width for _, width in seen),
            "rounds": len(seen),
        }
        for name, seen in found.items()
    }


def holds(seen: dict[str, float]) -> bool:
    """Return whether a coverage is within the bar, given the number of rounds."""
    error = 2 * math.sqrt(LEAST * (1 - LEAST) / seen["rounds"])
    return LEAST - error <= seen["coverage"] <= min(1.0, MOST + error)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    for seed, (name, case) in enumerate(CASES.items()):
        rounds = arguments.rounds // 4 if case.clusters >= FEWER_ROUNDS else arguments.rounds
        results[name] = simulate(case, rounds, seed)
        if not arguments.json:
            if not seed:
                print(f"{'coverage (width)':22}" + "".join(f"{figure:>26}" for figure in results[name]))
            cells = (f"{seen['coverage']:.1%} ({seen['width']:.3f})" for seen in results[name].values())
            print(f"{name:22}" + "".join(f"{cell:>26}" for cell in cells), flush=True)
    ours = [
        (name, figure, seen) for name, of in results.items() for figure, seen in of.items() if "bootstrap" not in figure
    ]
    missed = [f"{name}: {figure} {seen['coverage']:.1%}" for name, figure, seen in ours if not holds(seen)]
    bar = f"each of the kit's intervals covers {LEAST:.0%} to {MOST:.1%}"
    if arguments.json:
        print(json.dumps({"results": results, "bars": {bar: not missed}}))
    else:
        print(f"bar: {bar}: {'MISSED: ' + ', '.join(missed) if missed else 'met'}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
