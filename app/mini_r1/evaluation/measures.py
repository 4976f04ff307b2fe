"""From right and wrong to figures: pass@1, pass@k, intervals, by size and by operators; of a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from mini_r1.evaluation.statistics import Interval, pass_at_k, rate_interval
from mini_r1.tasks.countdown import task

MOST_K = 64
"""Largest k of pass@k: beyond it the estimate needs more samples than anyone draws."""
OPERATOR_KEYS = {"+ and - suffice": "add_subtract_suffice", "needs × or ÷": "needs_multiply_or_divide"}
"""Keys of `by_operators`, for the words of `task.strata`."""

# What a verdict's reason begins with, and what that means; the first that fits.
_FAILURES = (
    ("no answer after </think>", "no answer after the thought"),
    ("result is ", "the equation is right as such, and its result is not the target"),
    ("right-hand side ", "the equation claims a result that it does not have"),
    ("one whole number must follow", "the equation claims a result that is no whole number"),
    ("division by zero", "division by zero"),
)
_UNREADABLE = "the answer is no equation that can be read"


def failure(reason: str, truncated: bool) -> str:
    """The kind of a wrong answer in words, from its verdict's reason and whether it was cut at the longest length."""
    if reason == "no </think>":
        return "cut off at the longest length while still thinking" if truncated else "the thought never ends"
    for beginning, words in _FAILURES:
        if reason.startswith(beginning):
            return words
    if reason.startswith("number ") and "leading zero" not in reason:
        return "a number is left out" if reason.endswith(" not used") else "a number that was not given, or too often"
    return _UNREADABLE


def counted(reasons: Iterable[str]) -> dict[str, int]:
    """How often each comes, most frequent first."""
    return dict(sorted(Counter(reasons).items(), key=lambda item: (-item[1], item[0])))


def success(
    problems: Sequence[task.Problem], greedy: Sequence[float], right: Sequence[int], samples: int
) -> dict[str, Any]:
    """Success of greedy and sampled answers.

    Args:
        problems: what was asked.
        greedy: of each problem 1 or 0.
        right: of each problem how many of its sampled answers are right.
        samples: sampled answers for each problem.

    Returns:
        `greedy`, `greedy_ci95`, `sampled`, `ci95`, `pass_at_k` ({"1": {"value", "ci95"}, ...}: powers of two up to
        `samples`, and `samples`, at most 64), `by_size` and `by_operators` ({key: {"problems", "sampled", "ci95",
        "greedy", "greedy_ci95"}}). An interval is None where the problems are one cluster.
    """
    clusters = [problem.numbers_key for problem in problems]
    shares = [count / samples for count in right]
    most = min(samples, MOST_K)
    ks = sorted({*(2**i for i in range(most.bit_length())), most})
    at_k = [[pass_at_k(samples, count, k) for count in right] for k in ks]
    strata = [task.strata(problem) for problem in problems]
    return {
        "greedy": mean(greedy),
        "greedy_ci95": limits(rate_interval(greedy, 1, clusters)),
        "sampled": mean(shares),
        "ci95": limits(rate_interval(shares, samples, clusters)),
        "pass_at_k": {
            str(k): {"value": mean(values), "ci95": limits(rate_interval(values, samples, clusters))}
            for k, values in zip(ks, at_k, strict=True)
        },
        "by_size": _by([stratum["numbers"] for stratum in strata], clusters, greedy, shares, samples),
        "by_operators": _by(
            [OPERATOR_KEYS[stratum["operators"]] for stratum in strata], clusters, greedy, shares, samples
        ),
    }


def _by(
    keys: Sequence[str],
    clusters: Sequence[tuple[int, ...]],
    greedy: Sequence[float],
    shares: Sequence[float],
    samples: int,
) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for key in sorted(set(keys)):
        rows = [i for i, other in enumerate(keys) if other == key]
        where = [clusters[i] for i in rows]
        of_greedy, of_shares = [greedy[i] for i in rows], [shares[i] for i in rows]
        found[key] = {
            "problems": len(rows),
            "sampled": mean(of_shares),
            "ci95": limits(rate_interval(of_shares, samples, where)),
            "greedy": mean(of_greedy),
            "greedy_ci95": limits(rate_interval(of_greedy, 1, where)),
        }
    return found


def limits(interval: Interval | None) -> list[float] | None:
    """An interval as JSON has it."""
    return None if interval is None else [round(limit, 6) for limit in interval]


def mean(values: Sequence[float]) -> float:
    """To six digits."""
    return round(sum(values) / len(values), 6)
