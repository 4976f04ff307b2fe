"""pass@k against enumeration, the bootstrap against closed forms and simulation."""

from __future__ import annotations

import random
from itertools import combinations
from math import comb

import numpy as np
import pytest
from mini_r1.evaluation.statistics import cluster_bootstrap, cluster_bootstraps, pass_at_k


@pytest.mark.parametrize("n", range(1, 8))
def test_pass_at_k_is_the_share_of_all_draws_with_a_right_one(n: int) -> None:
    for c in range(n + 1):
        right = [True] * c + [False] * (n - c)
        for k in range(1, n + 1):
            draws = list(combinations(right, k))
            assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, draws)) / len(draws), abs=1e-12)


@pytest.mark.parametrize(("n", "k", "rate"), [(4, 2, 0.3), (16, 8, 0.05), (64, 64, 0.01), (100, 64, 0.02)])
def test_pass_at_k_is_unbiased(n: int, k: int, rate: float) -> None:
    """Its mean over the binomial distribution of right samples is 1 - (1 - rate)^k, to rounding; no simulation."""
    expected = sum(comb(n, c) * rate**c * (1 - rate) ** (n - c) * pass_at_k(n, c, k) for c in range(n + 1))
    assert expected == pytest.approx(1 - (1 - rate) ** k, abs=1e-12)
    plug_in = sum(comb(n, c) * rate**c * (1 - rate) ** (n - c) * (1 - (1 - c / n) ** k) for c in range(n + 1))
    assert plug_in < 1 - (1 - rate) ** k - 1e-3  # the obvious estimator is too low


@pytest.mark.parametrize("k", [1, 4])
def test_the_interval_of_pass_at_k_holds_the_truth_19_times_in_20(k: int) -> None:
    """150 problems whose chances differ, 8 samples each; the truth is the mean of 1 - (1 - chance)^k: 1/3 and 2/3.

    Of a chance with the distribution Beta(1, 2), 1 - E(1 - chance)^k is 1 - 2 / (2 + k): simulation against it.
    """
    rng = np.random.default_rng(3)
    truth, rounds, inside = 1 - 2 / (2 + k), 300, 0
    for seed in range(rounds):
        right = rng.binomial(8, rng.beta(1, 2, size=150))
        values = [pass_at_k(8, int(c), k) for c in right]
        low, high = cluster_bootstrap(values, range(150), resamples=400, seed=seed)
        inside += low <= truth <= high
    assert 0.91 <= inside / rounds <= 0.98


def test_pass_at_k_does_not_overflow() -> None:
    assert pass_at_k(100_000, 1, 1) == pytest.approx(1e-5)
    assert pass_at_k(100_000, 50_000, 64) == pytest.approx(1.0)
    assert pass_at_k(100_000, 10, 50_000) == pytest.approx(1 - 0.5**10, abs=1e-4)


@pytest.mark.parametrize(("n", "c", "k"), [(4, 5, 1), (4, -1, 1), (4, 2, 0), (4, 2, 5), (0, 0, 1)])
def test_pass_at_k_refuses_what_has_no_meaning(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match="samples"):
        pass_at_k(n, c, k)


def test_single_clusters_give_the_binomial_interval() -> None:
    """120 of 400, every one its own cluster: the normal approximation is 0.3 ± 1.96 sqrt(0.3 · 0.7 / 400)."""
    values = [1.0] * 120 + [0.0] * 280
    low, high = cluster_bootstrap(values, range(400), resamples=4000)
    half = 1.96 * (0.3 * 0.7 / 400) ** 0.5
    assert low == pytest.approx(0.3 - half, abs=0.006)
    assert high == pytest.approx(0.3 + half, abs=0.006)


def test_equal_values_in_a_cluster_count_as_one_observation() -> None:
    """10 copies of each of 100 values: as wide as the 100 alone, and sqrt(10) times wider than 1,000 free ones."""
    rng = random.Random(1)
    single = [float(rng.random() < 0.5) for _ in range(100)]
    alone = cluster_bootstrap(single, range(100))
    copied = cluster_bootstrap([v for v in single for _ in range(10)], [i for i in range(100) for _ in range(10)])
    free = cluster_bootstrap([v for v in single for _ in range(10)], range(1000))
    assert copied == pytest.approx(alone)
    assert (copied[1] - copied[0]) / (free[1] - free[0]) == pytest.approx(10**0.5, rel=0.15)


def test_clusters_are_told_apart_by_equality_and_keep_their_sizes() -> None:
    """Order does not matter, and a large cluster weighs by its size: 1 of 1 and 0 of 9 average to 0.1, not 0.5."""
    values, clusters = [1.0] + [0.0] * 9, [(1, 2)] + [(3, 4)] * 9
    assert cluster_bootstrap(values, clusters) == (0.0, 1.0)  # one cluster drawn twice has its own mean
    assert cluster_bootstrap([0.5] * 7, ["a"] * 3 + ["b"] * 4) == (0.5, 0.5)


def test_the_same_arguments_the_same_interval() -> None:
    values, clusters = [i * 0.37 % 1 for i in range(50)], [i // 2 for i in range(50)]
    assert cluster_bootstrap(values, clusters, seed=3) == cluster_bootstrap(values, clusters, seed=3)
    assert cluster_bootstrap(values, clusters, seed=3) != cluster_bootstrap(values, clusters, seed=4)
    wide, narrow = cluster_bootstrap(values, clusters), cluster_bootstrap(values, clusters, level=0.5)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_coverage_with_correlated_problems() -> None:
    """60 clusters of 4 with success rates of their own: the interval holds the truth about 19 times in 20.

    Resampling problem by problem, as if they were independent, it does not: that is why clusters are drawn.
    """
    rng = np.random.default_rng(7)
    rounds, inside, inside_naive = 300, 0, 0
    clusters = [i // 4 for i in range(240)]
    for seed in range(rounds):
        rates = rng.beta(0.5, 0.5, size=60)  # mean 0.5
        values = (rng.random(240) < np.repeat(rates, 4)).astype(float).tolist()
        low, high = cluster_bootstrap(values, clusters, resamples=400, seed=seed)
        inside += low <= 0.5 <= high
        low, high = cluster_bootstrap(values, range(240), resamples=400, seed=seed)
        inside_naive += low <= 0.5 <= high
    assert 0.91 <= inside / rounds <= 0.98
    assert inside_naive / rounds < 0.85


def test_clusters_of_unequal_sizes_give_the_interval_of_a_ratio() -> None:
    """Large clusters are right more often: the figure is the mean over problems, not over clusters.

    Closed form: the standard error of a ratio estimator by linearisation (Cochran 1977, Sampling Techniques, 6.3),
    sqrt(sum (total - mean * size)^2) / problems.
    """
    rng = np.random.default_rng(5)
    sizes = rng.integers(1, 10, size=400)
    rates = sizes / 10
    totals = rng.binomial(sizes, rates)
    values = [1.0 if i < right else 0.0 for right, size in zip(totals, sizes, strict=True) for i in range(size)]
    clusters = np.repeat(np.arange(400), sizes).tolist()
    low, high = cluster_bootstrap(values, clusters, resamples=4000)
    mean = totals.sum() / sizes.sum()
    half = 1.96 * float(np.sqrt(((totals - mean * sizes) ** 2).sum())) / float(sizes.sum())
    assert low == pytest.approx(mean - half, abs=0.1 * half)
    assert high == pytest.approx(mean + half, abs=0.1 * half)
    assert (totals / sizes).mean() < low  # what the mean over clusters would be told as


def test_several_figures_at_once_have_the_intervals_they_have_alone() -> None:
    rng = np.random.default_rng(2)
    clusters = [i // 3 for i in range(60)]
    columns = [rng.random(60).tolist(), [0.0] * 60, rng.integers(0, 2, 60).astype(float).tolist(), [1.0] * 60]
    assert cluster_bootstraps(columns, clusters) == [
        pytest.approx(cluster_bootstrap(values, clusters), abs=1e-12) for values in columns
    ]


def test_values_and_clusters_must_fit() -> None:
    with pytest.raises(ValueError, match="at least one"):
        cluster_bootstrap([], [])
    with pytest.raises(ValueError, match="3 values and 2 clusters"):
        cluster_bootstrap([1.0, 0.0, 1.0], [1, 2])


@pytest.mark.parametrize(("value", "expected"), [(0.0, (0.0, 0.3085)), (1.0, (0.6915, 1.0))])
def test_all_wrong_or_all_right_is_no_certainty(value: float, expected: tuple[float, float]) -> None:
    """Clopper-Pearson's limits for 0 and 10 of 10, as printed in tables."""
    assert cluster_bootstrap([value] * 30, [i % 10 for i in range(30)]) == pytest.approx(expected, abs=1e-4)
