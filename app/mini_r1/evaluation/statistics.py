"""The estimators behind every figure of an evaluation: pass@k, and intervals that respect related problems."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

RESAMPLES_AT_ONCE = 200
"""Resamples drawn in one array: 5,000 clusters take 8 MB of indices."""


def pass_at_k(n: int, c: int, k: int) -> float:
    """Chance that at least one of k completions is right, from n samples of which c are: 1 - C(n-c, k) / C(n, k).

    Unbiased, unlike 1 - (1 - c/n)^k, which is too low. As a product, because the binomials overflow. Source: Chen et
    al. 2021, "Evaluating Large Language Models Trained on Code", arXiv:2107.03374, equation 1 and figure 3.

    Raises:
        ValueError: unless 0 <= c <= n and 1 <= k <= n.
    """
    if not 0 <= c <= n:
        raise ValueError(f"{c} of {n} samples cannot be right")
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} cannot be estimated from {n} samples")
    if n - c < k:
        return 1.0
    all_wrong = 1.0
    for i in range(n - c + 1, n + 1):
        all_wrong *= 1.0 - k / i
    return 1.0 - all_wrong


def cluster_bootstrap(
    values: Sequence[float],
    clusters: Sequence[Hashable],
    *,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile interval of the mean of `values`, resampling whole clusters; the same arguments, the same interval.

    Problems over the same numbers succeed and fail together: resampling them one by one would give an interval that is
    too narrow. Where everything failed or everything succeeded no resample differs, and the interval is the exact
    binomial one of that many clusters instead (Clopper and Pearson 1934): 0 of 500 is not certainty.

    Args:
        values: one for each problem, e.g. its share of right completions.
        clusters: what problem i belongs to; any hashable.
        resamples: how many; 2000 fix a 95 % limit to about a twentieth of the interval's width.
        seed: of this call's own random generator.
        level: coverage aimed at, between 0 and 1.

    Raises:
        ValueError: no values, or not one cluster for each.
    """
    return cluster_bootstraps([values], clusters, resamples=resamples, seed=seed, level=level)[0]


def cluster_bootstraps(
    columns: Sequence[Sequence[float]],
    clusters: Sequence[Hashable],
    *,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> list[tuple[float, float]]:
    """`cluster_bootstrap` of several figures of the same problems, by the same resamples: those are most of the work.

    Args:
        columns: the values of each figure.
        clusters: this and what follows: see `cluster_bootstrap`.
        resamples: how many.
        seed: of the draws.
        level: coverage aimed at.

    Raises:
        ValueError: as `cluster_bootstrap`.
    """
    for values in columns:
        if not values or len(values) != len(clusters):
            raise ValueError(f"{len(values)} values and {len(clusters)} clusters: need as many, and at least one")
    numbers: dict[Hashable, int] = {}
    index = np.array([numbers.setdefault(cluster, len(numbers)) for cluster in clusters])
    count = len(numbers)
    # A resample's mean is a ratio, sum by size: clusters are of different sizes, and both change with the draw.
    parts = [np.bincount(index, weights=np.asarray(values, dtype=np.float64), minlength=count) for values in columns]
    totals = np.stack([*parts, np.bincount(index, minlength=count)], axis=1)
    rng = np.random.default_rng(seed)
    means = []
    for start in range(0, resamples, RESAMPLES_AT_ONCE):
        rows = min(RESAMPLES_AT_ONCE, resamples - start)
        drawn = rng.integers(0, count, size=(rows, count)) + count * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count)
        sums = times @ totals
        means.append(sums[:, :-1] / sums[:, -1:])
    limits = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2], axis=0)
    found = []
    for values, low, high in zip(columns, *limits.tolist(), strict=True):
        if len(set(values)) == 1 and values[0] in (0.0, 1.0):
            margin = 1 - ((1 - level) / 2) ** (1 / count)
            low, high = (0.0, margin) if values[0] == 0.0 else (1.0 - margin, 1.0)
        found.append((low, high))
    return found
