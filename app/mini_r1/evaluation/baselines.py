"""What search alone achieves on the same problems, with as many tries as the model made in each of its answers."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mini_r1.countdown import task
from mini_r1.evaluation.answers import Answer
from mini_r1.evaluation.figures import success

Solves = Callable[[task.Problem, int], bool]
"""Whether a solver finds an answer to a problem in so many tries."""

SEED = 0
"""Of the random solver's draws: a baseline does not follow the model's seed."""


@dataclass(frozen=True, slots=True)
class Game:
    """What a random solver may try: the rule that the problems were made by, as far as it is known."""

    operators: str = "+-*/"
    max_value: int | None = None
    """Largest value on the way."""


def solver_baselines(
    greedy: Sequence[Answer], sampled: Sequence[Sequence[Answer]], game: Game
) -> dict[str, dict[str, Any]]:
    """`random_solver` and `signed_sums`, each as `figures.success` says: an answer of theirs for each of the model's.

    An answer without a calculation in its thought counts as one try: the answer is one.

    Args:
        greedy: the model's, one for each problem.
        sampled: as many for each problem, in the same order.
        game: what the random solver may try.
    """
    rng = random.Random(SEED)

    def draws(problem: task.Problem, tries: int) -> bool:
        return task.random_solves(problem, tries, game.operators, game.max_value, rng)

    def solved(solves: Solves) -> dict[str, Any]:
        return success(
            [answer.problem for answer in greedy],
            [float(_hits([answer], solves)) for answer in greedy],
            [_hits(answers, solves) for answers in sampled],
            len(sampled[0]),
        )

    return {"random_solver": solved(draws), "signed_sums": solved(task.signed_sum_solves)}


def _hits(answers: Sequence[Answer], solves: Solves) -> int:
    return sum(solves(answer.problem, max(1, answer.tries)) for answer in answers)
