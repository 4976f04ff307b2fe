"""One completion of a problem, and what its text tells: what every figure of an evaluation is made from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mini_r1.tasks.countdown import task


@dataclass(frozen=True, slots=True)
class Answer:
    """One completion of a problem, judged."""

    problem: task.Problem
    text: str
    tokens: int
    truncated: bool
    """Cut at the longest length allowed, before the model ended it."""
    verdict: task.Verdict
    results: tuple[int | None, ...]
    """True results of the calculations in its thought; see `task.tried_results`."""
    answered: int | None
    """The value of its answer, where that uses each number once and is whole."""

    @property
    def tries(self) -> int:
        """Calculations in its thought."""
        return len(self.results)

    def row(self, step: int, kind: str) -> dict[str, Any]:
        """As a file of completions has it."""
        return {
            "step": step,
            "kind": kind,
            **task.record(self.problem, self.text, self.verdict),
            "tokens": self.tokens,
            "truncated": self.truncated,
        }


def judged(problem: task.Problem, text: str, tokens: int, truncated: bool) -> Answer:
    """A completion with all that its text tells."""
    results = tuple(task.tried_results(text, problem.nums))
    answered = task.answered_result(text, problem.nums)
    return Answer(problem, text, tokens, truncated, task.judge(text, problem), results, answered)
