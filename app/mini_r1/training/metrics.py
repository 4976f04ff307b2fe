"""Figures of a set of completions: those of one rollout, or of the held-out problems. docs/metrics.md explains them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


def summary(records: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Means over completions, under TRL's names where it has one.

    Args:
        records: rows of completions.jsonl (`rollout.Completion.record`), at least one.
    """
    figures = {
        "reward": _mean(r["reward"] for r in records),
        "success": _mean(r["rewards"]["equation"] for r in records),
        "completion_length": _mean(r["tokens"] for r in records),
        "frac_truncated": _mean(r["truncated"] for r in records),
        "tries": _mean(r["tries"] for r in records),
        "reflections": _mean(r["reflections"] for r in records),
        "frac_enumerating": _mean(r["style"] == "enumerating" for r in records),
        "frac_wordy": _mean(r["style"] == "wordy" for r in records),
    }
    for name in records[0]["rewards"]:
        figures[f"rewards/{name}"] = _mean(r["rewards"][name] for r in records)
    for size in sorted({len(r["nums"]) for r in records}):
        of_size = [r for r in records if len(r["nums"]) == size]
        figures[f"success/{size}_numbers"] = _mean(r["rewards"]["equation"] for r in of_size)
    return figures


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)
