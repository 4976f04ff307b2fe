"""Searches without a model, which a model is compared with: a random solver, and signs before the numbers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from .baselines import chain_results
from .generator import GeneratorSpec
from .problem import Problem
from .rewards import Verdict
from .solver import needs_multiplication_or_division, signed_sums

OPERATOR_STRATA = {"add_subtract_suffice": "+ and - suffice", "needs_multiply_or_divide": "needs × or ÷"}
"""Keys and texts of the strata by operators."""


@dataclass(frozen=True, slots=True)
class ResultSolver:
    """A search without a thought; `Solver` of the task interface."""

    draw: Callable[[Problem], Mapping[int, float] | None]  # the results and their chances, see `Solver.weights`
    signless: bool = False  # a result and its opposite are one

    def weights(self, problem: Problem) -> Mapping[int, float] | None:
        return self.draw(problem)

    def target(self, problem: Problem) -> int:
        return abs(problem.target) if self.signless else problem.target

    def results(self, verdict: Verdict) -> list[int | None]:
        return [abs(r) if self.signless and r is not None else r for r in verdict.results]

    def strata(self, problem: Problem) -> dict[str, str]:
        return operator_stratum(problem)


def operator_stratum(problem: Problem) -> dict[str, str]:
    """Return the stratum by operators, a key of OPERATOR_STRATA."""
    return {"operators": list(OPERATOR_STRATA)[needs_multiplication_or_division(problem)]}


def result_solvers(rule: GeneratorSpec) -> dict[str, ResultSolver]:
    """Return `random_solver`, chains of operations by the rule, and `signed_sums`, signs before the numbers."""
    return {
        "random_solver": ResultSolver(
            lambda problem: chain_results(problem.numbers_key, rule.operators, rule.max_intermediate)
        ),
        "signed_sums": ResultSolver(lambda problem: dict.fromkeys(signed_sums(problem.nums), 1.0), signless=True),
    }
