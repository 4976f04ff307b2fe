"""One completion of a problem, and what its text tells: what every figure of an evaluation is made from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mini_r1.tasks.countdown import task


@dataclass(frozen=True, slots=True)
class Answer:
    """One completion of a problem, judged."""

    verdict: task.Verdict
    tokens: int
    truncated: bool
    """Cut at the longest length allowed, before the model ended it."""

    @property
    def problem(self) -> task.Problem:
        """The problem that was asked."""
        return self.verdict.completion.problem

    def row(self, step: int, kind: str) -> dict[str, Any]:
        """As a file of completions has it."""
        return {
            "step": step,
            "kind": kind,
            **self.verdict.record(),
            "tokens": self.tokens,
            "truncated": self.truncated,
        }
