"""The estimators behind every figure of an evaluation: pass@k, and intervals that respect related problems.

Problems over the same numbers succeed and fail together, and so do the samples of one problem: they are one cluster.
`bench/coverage.py` measures how often the intervals cover the true value. All intervals raise a ValueError for no
problems, or unless there is one cluster for each, and are None for one cluster, whose spread is unknown.
"""

import math
from collections.abc import Hashable, Sequence

import numpy as np
import numpy.typing as npt

LEVEL = 0.95
"""Nominal coverage of all intervals."""
TAIL = (1 - LEVEL) / 2

Interval = tuple[float, float]
Floats = npt.NDArray[np.float64]


def pass_at_k(n: int, c: int, k: int) -> float:
    """Return the chance that one of k completions is right, from n samples of which c are: 1 - C(n-c, k) / C(n, k).

    Unbiased, unlike 1 - (1 - c/n)^k, which is too low. As a product, because the binomials overflow. Source: Chen et
    al. 2021, "Evaluating Large Language Models Trained on Code", arXiv:2107.03374, equation 1 and figure 3.
    """
    if not 0 <= c <= n:
        raise ValueError(f"{c} of {n} samples cannot be right")
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} cannot be estimated from {n} samples")
    all_wrong = 1.0
    for i in range(n - c + 1, n + 1):
        all_wrong *= 1.0 - k / i
    return 1.0 - all_wrong


def rate_interval(shares: Sequence[float], samples: int, clusters: Sequence[Hashable]) -> Interval | None:
    """Return the 95 % interval of a mean of shares: Clopper and Pearson's for the effective number of samples.

    It is n* = p (1 - p) / v, with p the mean and v its variance between clusters, times
    (t(n - 1) / t(clusters - 1))^2 because v is estimated, and at most the n that were drawn. When all shares are 0 or
    all are 1, v is 0, and each cluster counts as one sample. Source: Korn and Graubard 1998,
    "Confidence intervals for proportions with small expected number of positive counts estimated from survey data",
    Survey Methodology 24.

    `shares` are the share of right completions of each problem, or another value from 0 to 1, such as its pass@k;
    `samples` the completions that each was made from.
    """
    from scipy.special import betaincinv, stdtrit  # takes 0.3 s of CPU

    sums, sizes = _totals([shares, [1.0] * len(shares)], clusters)
    number, drawn = len(sums), len(shares) * samples
    if number == 1:
        return None
    mean = float(sums.sum() / sizes.sum())
    variance = _variance(sums, sizes, mean)
    if mean in (0.0, 1.0):
        worth = float(number)
    elif variance == 0.0:
        worth = float(drawn)
    else:
        t_samples, t_clusters = stdtrit([drawn - 1, number - 1], 1 - TAIL)
        worth = min(drawn, mean * (1 - mean) / variance * float(t_samples / t_clusters) ** 2)
    right, wrong = mean * worth, (1 - mean) * worth
    low = float(betaincinv(right, wrong + 1, TAIL)) if right else 0.0
    high = float(betaincinv(right + 1, wrong, 1 - TAIL)) if wrong else 1.0
    return low, high


def mean_interval(values: Sequence[float], clusters: Sequence[Hashable]) -> Interval | None:
    """Return the 95 % interval of a mean of values of any size, such as differences: Student's t over clusters.

    With (sum of sizes)^2 / sum of sizes^2 - 1 degrees of freedom (Kish 1965, "Survey Sampling"). Bootstrap-t covers
    less and is wider with few clusters (`bench/coverage.py`). None also when all clusters are alike.
    """
    tops, sizes = _totals([values, [1.0] * len(values)], clusters)
    mean = float(tops.sum() / sizes.sum())
    margin = _margin(tops, sizes, mean)
    return None if margin is None else (mean - margin, mean + margin)


def ratio_interval(above: Sequence[float], below: Sequence[float], clusters: Sequence[Hashable]) -> Interval | None:
    """Return the 95 % interval of sum(above) / sum(below), both positive: as `mean_interval`, of its logarithm.

    The variance is that of a ratio estimate (Cochran 1977, "Sampling Techniques", equation 6.13), carried over to the
    logarithm by the delta method. A sum that is not positive is a ValueError.
    """
    tops, bottoms = _totals([above, below], clusters)
    if tops.sum() <= 0 or bottoms.sum() <= 0:
        raise ValueError("the ratio of two sums that are not positive has no logarithm")
    ratio = float(tops.sum() / bottoms.sum())
    margin = _margin(tops, bottoms, ratio)
    if margin is None:
        return None
    return ratio * math.exp(-margin / ratio), ratio * math.exp(margin / ratio)


def _margin(above: Floats, below: Floats, ratio: float) -> float | None:
    """Return half a t interval's width; None when the clusters do not differ."""
    from scipy.special import stdtrit

    error = math.sqrt(_variance(above, below, ratio))
    if error <= 1e-12 * max(1.0, abs(ratio)):  # no more than rounding
        return None
    effective = float(below.sum() ** 2 / np.sum(below**2))
    return error * float(stdtrit(max(1.0, effective - 1), 1 - TAIL))


def _totals(columns: Sequence[Sequence[float]], clusters: Sequence[Hashable]) -> list[Floats]:
    """Return the sums of each column by cluster."""
    for values in columns:
        if not values or len(values) != len(clusters):
            raise ValueError(f"{len(values)} values and {len(clusters)} clusters: need as many, and at least one")
    numbers: dict[Hashable, int] = {}
    index = np.array([numbers.setdefault(cluster, len(numbers)) for cluster in clusters])
    totals = np.zeros((len(columns), len(numbers)))
    for total, values in zip(totals, columns, strict=True):
        np.add.at(total, index, values)
    return list(totals)


def _variance(above: Floats, below: Floats, ratio: float) -> float:
    """Return the variance of the ratio of two sums over clusters; 0 if there is one cluster."""
    number = len(above)
    return float(number / max(1, number - 1) * np.sum((above - ratio * below) ** 2) / np.sum(below) ** 2)
