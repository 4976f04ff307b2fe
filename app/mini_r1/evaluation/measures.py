"""From verdicts to figures: pass@1, pass@k, intervals, by size and by operators."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from mini_r1.evaluation.statistics import Interval, pass_at_k, rate_interval
from mini_r1.tasks.registry import AnyTask
from mini_r1.tasks.task import TaskProblem, TaskVerdict

MOST_K = 64
"""Largest k of pass@k: beyond it the estimate needs more samples than anyone draws."""


@dataclass(frozen=True, slots=True)
class EvaluatedAnswer:
    """One completion of a problem, judged."""

    verdict: TaskVerdict
    tokens: int
    truncated: bool  # cut at the longest length allowed, before the model ended it

    def row(self, task: AnyTask, step: int, kind: str) -> dict[str, Any]:
        """Return the row of a file of completions."""
        row = task.record(self.verdict)
        return {"step": step, "kind": kind, **row, "tokens": self.tokens, "truncated": self.truncated}


def count_by_frequency(reasons: Iterable[str]) -> dict[str, int]:
    """Return how often each comes, most frequent first."""
    return dict(sorted(Counter(reasons).items(), key=lambda item: (-item[1], item[0])))


def success(
    task: AnyTask, problems: Sequence[TaskProblem], greedy: Sequence[float], right: Sequence[int], samples: int
) -> dict[str, Any]:
    """Return the success of greedy answers (1 or 0 for each problem) and sampled ones (`right` out of `samples`).

    The keys are those of docs/evaluation.md: `pass_at_k` has the powers of two up to `samples`, and `samples`, at most
    64. An interval is None when the problems are one cluster.
    """
    clusters = [problem.cluster for problem in problems]
    shares = [count / samples for count in right]
    most = min(samples, MOST_K)
    ks = sorted({*(2**i for i in range(most.bit_length())), most})
    strata = [task.strata(problem) for problem in problems]

    def rates(rows: Sequence[int]) -> dict[str, Any]:
        where = [clusters[i] for i in rows]
        of_greedy, of_shares = [greedy[i] for i in rows], [shares[i] for i in rows]
        return {
            "greedy": mean(of_greedy),
            "greedy_ci95": limits(rate_interval(of_greedy, 1, where)),
            "sampled": mean(of_shares),
            "ci95": limits(rate_interval(of_shares, samples, where)),
        }

    def by(keys: Sequence[str]) -> dict[str, dict[str, Any]]:
        groups = {key: [i for i, other in enumerate(keys) if other == key] for key in sorted(set(keys))}
        return {key: {"problems": len(rows), **rates(rows)} for key, rows in groups.items()}

    def at_k(k: int) -> dict[str, Any]:
        values = [pass_at_k(samples, count, k) for count in right]
        return {"value": mean(values), "ci95": limits(rate_interval(values, samples, clusters))}

    return {
        **rates(range(len(problems))),
        "pass_at_k": {str(k): at_k(k) for k in ks},
        **{f"by_{name}": by([stratum[name] for stratum in strata]) for name in strata[0]},
    }


def limits(interval: Interval | None) -> list[float] | None:
    """Return an interval as JSON has it."""
    return None if interval is None else [round(limit, 6) for limit in interval]


def mean(values: Sequence[float]) -> float:
    """Return the mean to six digits."""
    return round(sum(values) / len(values), 6)
