"""What search alone achieves on the same problems, with as many tries as the model made in each of its answers."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mini_r1.countdown import task
from mini_r1.evaluation.figures import success

if TYPE_CHECKING:
    from mini_r1.evaluation.evaluate import Answer, Evaluation

SEED = 0
"""Of the random solver's draws: a baseline does not follow the model's seed."""


@dataclass(frozen=True, slots=True)
class Game:
    """What a random solver may try: the rule that the problems were made by, as far as it is known."""

    operators: str = "+-*/"
    max_value: int | None = None
    """Largest value on the way."""


def solver_baselines(evaluation: Evaluation, game: Game) -> dict[str, Any]:
    """`random_solver` and `signed_sums`, each as `figures.success` says: an answer of theirs for each of the model's.

    An answer without a calculation in its thought counts as one try: the answer is one.
    """
    rng = random.Random(SEED)

    def draws(problem: task.Problem, tries: int) -> bool:
        return task.random_solves(problem, tries, game.operators, game.max_value, rng)

    return {"random_solver": _solved(evaluation, draws), "signed_sums": _solved(evaluation, task.signed_sum_solves)}


def _solved(evaluation: Evaluation, solves: Callable[[task.Problem, int], bool]) -> dict[str, Any]:
    greedy, right = [], []
    for of_greedy, of_sampled in zip(evaluation.greedy, evaluation.sampled, strict=True):
        greedy.append(float(_hits([of_greedy], solves)))
        right.append(_hits(of_sampled, solves))
    problems = [answer.problem for answer in evaluation.greedy]
    return success(problems, greedy, right, len(evaluation.sampled[0]))


def _hits(answers: Sequence[Answer], solves: Callable[[task.Problem, int], bool]) -> int:
    return sum(solves(answer.problem, max(1, answer.tries)) for answer in answers)
