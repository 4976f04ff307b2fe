"""pass@k against enumeration, intervals against closed forms and simulation."""

from __future__ import annotations

import math
import random
from collections import Counter
from itertools import combinations
from math import comb

import numpy as np
import pytest
from mini_r1.evaluation.statistics import mean_interval, pass_at_k, rate_interval, ratio_interval
from scipy.stats import beta, t


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


def test_pass_at_k_does_not_overflow() -> None:
    assert pass_at_k(100_000, 1, 1) == pytest.approx(1e-5)
    assert pass_at_k(100_000, 50_000, 64) == pytest.approx(1.0)
    assert pass_at_k(100_000, 10, 50_000) == pytest.approx(1 - 0.5**10, abs=1e-4)


@pytest.mark.parametrize(("n", "c", "k"), [(4, 5, 1), (4, -1, 1), (4, 2, 0), (4, 2, 5), (0, 0, 1)])
def test_pass_at_k_refuses_what_has_no_meaning(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match="samples"):
        pass_at_k(n, c, k)


def test_an_interval_of_free_samples_is_clopper_and_pearsons() -> None:
    """12 of 40, each its own cluster: 0.1656 to 0.4653, and with 39 degrees of freedom on both sides no correction."""
    assert rate_interval([1.0] * 12 + [0.0] * 28, 1, range(40)) == pytest.approx((0.1656, 0.4653), abs=5e-3)


def test_equal_values_in_a_cluster_count_as_one_observation() -> None:
    """10 copies of each of 100 values: as wide as the 100 alone, and sqrt(10) times wider than 1,000 free ones."""
    rng = random.Random(1)
    single = [float(rng.random() < 0.5) for _ in range(100)]
    alone = rate_interval(single, 1, range(100))
    copied = rate_interval([v for v in single for _ in range(10)], 1, [i for i in range(100) for _ in range(10)])
    free = rate_interval([v for v in single for _ in range(10)], 1, range(1000))
    assert alone is not None
    assert copied is not None
    assert free is not None
    assert copied == pytest.approx(alone, abs=0.003)  # 999 degrees of freedom against 99
    assert (copied[1] - copied[0]) / (free[1] - free[0]) == pytest.approx(10**0.5, rel=0.05)


def test_samples_never_count_for_more_than_there_are() -> None:
    """Clusters that are alike by luck: no narrower than as many free samples; here 30 of 60."""
    alike = rate_interval([0.5] * 30, 2, [i // 2 for i in range(30)])
    assert alike == pytest.approx(rate_interval([1.0, 0.0] * 30, 1, range(60)), abs=2e-3)


def test_clusters_differ_by_equality_and_keep_their_sizes() -> None:
    """Order does not matter, and a large cluster weighs by its size: 1 of 1 and 0 of 9 average to 0.1, not 0.5."""
    values, clusters = [1.0] + [0.0] * 9, [(1, 2)] + [(3, 4)] * 9
    ours = mean_interval(values, clusters)
    assert ours is not None
    assert sum(ours) / 2 == pytest.approx(0.1)
    assert ours == pytest.approx(mean_interval(values[::-1], clusters[::-1]))


def test_the_effective_samples_are_korn_and_graubard_s() -> None:
    """Sums 0.75, 1.25, 0.25, 1 over clusters of 2, 2, 1, 1 problems with 4 samples each: n* is 6.5, far below 24."""
    shares, clusters = [0.25, 0.5, 0.5, 0.75, 0.25, 1.0], "aabbcd"
    p, sums, sizes = 3.25 / 6, (0.75, 1.25, 0.25, 1.0), (2, 2, 1, 1)
    between = 4 / 3 * sum((total - p * size) ** 2 for total, size in zip(sums, sizes, strict=True)) / 36
    n = p * (1 - p) / between * (t.ppf(0.975, 23) / t.ppf(0.975, 3)) ** 2
    assert 6 < n < 7
    expected = beta.ppf(0.025, p * n, (1 - p) * n + 1), beta.ppf(0.975, p * n + 1, (1 - p) * n)
    assert rate_interval(shares, 4, clusters) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("values", "clusters", "freedom"),
    [
        ([1.0] * 8 + [3.0, 9.0], "aaaaaaaaab", 1),  # 100 / 82 - 1, and no less than 1
        ([1.0, 2.0, 4.0, 3.0, 9.0, 8.0], "aabbbc", 36 / 14 - 1),
    ],
)
def test_the_degrees_of_freedom_are_kish_s(values: list[float], clusters: str, freedom: float) -> None:
    mean, names = sum(values) / len(values), sorted(set(clusters))
    rests = [sum(v - mean for v, c in zip(values, clusters, strict=True) if c == name) for name in names]
    error = math.sqrt(len(names) / (len(names) - 1) * sum(rest**2 for rest in rests)) / len(values)
    half = t.ppf(0.975, freedom) * error
    assert mean_interval(values, clusters) == pytest.approx((mean - half, mean + half))


@pytest.mark.parametrize(
    ("middle", "distance", "differ"),
    [(0.0, 1.5e-12, True), (0.0, 1e-12, False), (0.0, 5e-13, False), (1e6, 1e-7, False), (1e6, 1e-4, True)],
)
def test_rounding_is_no_difference(middle: float, distance: float, differ: bool) -> None:
    assert (mean_interval([middle - distance, middle + distance], "ab") is not None) == differ


def test_the_interval_of_a_mean_is_student_s() -> None:
    """Differences 1, 2, 3, 4, 5: 3 ± 2.7764 · sqrt(2.5 / 5)."""
    half = 2.776445 * 0.5**0.5
    assert mean_interval([1.0, 2.0, 3.0, 4.0, 5.0], range(5)) == pytest.approx((3 - half, 3 + half))


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
    mean = totals.sum() / sizes.sum()
    half = 1.97 * float(np.sqrt(((totals - mean * sizes) ** 2).sum())) / float(sizes.sum())
    for limits in (rate_interval(values, 1, clusters), mean_interval(values, clusters)):
        assert limits == pytest.approx((mean - half, mean + half), abs=0.05 * half)
    assert (totals / sizes).mean() < mean - half  # the mean over clusters


def test_the_interval_of_a_ratio_is_symmetric_on_a_logarithm() -> None:
    above, below = [2.0, 0.0, 3.0, 1.0], [1.5, 1.0, 2.0, 0.5]
    limits = ratio_interval(above, below, range(4))
    assert limits is not None
    assert math.log(limits[0]) + math.log(limits[1]) == pytest.approx(2 * math.log(6 / 5))
    assert ratio_interval([2 * v for v in above], below, range(4)) == pytest.approx([2 * v for v in limits])
    assert ratio_interval([0.25, 0.125], [0.125, 0.25], range(2)) is not None
    for above, below in (([0.0, 0.0], [1.0, 1.0]), ([1.0, 1.0], [0.0, 0.0]), ([1.0, 1.0], [0.0, -0.5])):
        with pytest.raises(ValueError, match="not positive"):
            ratio_interval(above, below, range(2))


@pytest.mark.parametrize(
    ("values", "clusters"), [([1.0, 0.0, 1.0], ["a"] * 3), ([0.5] * 7, ["a"] * 3 + ["b"] * 4)], ids=["one", "alike"]
)
def test_where_nothing_tells_the_spread_there_is_no_interval(values: list[float], clusters: list[str]) -> None:
    assert mean_interval(values, clusters) is None
    assert ratio_interval(values, [1.0] * len(values), clusters) is None
    assert (rate_interval(values, 1, clusters) is None) is (len(set(clusters)) == 1)


def test_intervals_cover_the_truth_of_related_problems_19_times_in_20() -> None:
    """60 clusters of 4 problems with their own success rate, 2 samples each; bench/coverage.py has more cases.

    Problem by problem, as if they were independent, they do not: which is why clusters matter.
    """
    rng = np.random.default_rng(7)
    rounds, inside = 400, Counter[str]()
    clusters = [i // 4 for i in range(240)]
    for _ in range(rounds):
        rates = np.repeat(rng.beta(0.5, 1.5, size=60), 4)  # mean 1/4; of 1 - (1 - rate)^2: 0.375
        right = rng.binomial(2, rates)
        shares, at_2 = (right / 2).tolist(), [pass_at_k(2, int(c), 2) for c in right]
        found = {
            "rate": (0.25, rate_interval(shares, 2, clusters)),
            "pass@2": (0.375, rate_interval(at_2, 2, clusters)),
            "mean": (0.25, mean_interval(shares, clusters)),
            "ratio": (0.25, ratio_interval(shares, [1.0] * 240, clusters)),
            "naive": (0.25, rate_interval(shares, 2, range(240))),
        }
        inside.update(name for name, (truth, limits) in found.items() if limits and limits[0] <= truth <= limits[1])
    shares_inside = {name: inside[name] / rounds for name in ("rate", "pass@2", "mean", "ratio", "naive")}
    naive = shares_inside.pop("naive")
    assert all(0.92 <= share <= 0.99 for share in shares_inside.values()), shares_inside
    assert naive < 0.88


def test_values_and_clusters_must_fit() -> None:
    for interval in (mean_interval, lambda values, clusters: rate_interval(values, 1, clusters)):
        with pytest.raises(ValueError, match="at least one"):
            interval([], [])
        with pytest.raises(ValueError, match="3 values and 2 clusters"):
            interval([1.0, 0.0, 1.0], [1, 2])


@pytest.mark.parametrize(("value", "expected"), [(0.0, (0.0, 0.3085)), (1.0, (0.6915, 1.0))])
def test_all_wrong_or_all_right_is_no_certainty(value: float, expected: tuple[float, float]) -> None:
    """Clopper-Pearson's limits for 0 and 10 of 10, as printed in tables: each of the ten clusters is one sample."""
    assert rate_interval([value] * 30, 4, [i % 10 for i in range(30)]) == pytest.approx(expected, abs=1e-4)
