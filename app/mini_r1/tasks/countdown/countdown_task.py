"""Countdown behind the interface of a task."""

import re
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, ClassVar

from mini_r1.tasks.answer_tags import THINK, classify_missing_answer
from mini_r1.tasks.task import CardText, Explanation, Progress, Task

from . import data, solver, typed_problem
from .generator import GeneratorSpec, generate
from .generator_rule import OutOfWork, Work
from .problem import COLUMNS, Problem, parse_problem
from .prompt import PREFILL, PROMPTS, SYSTEM_MESSAGE, USER_MESSAGES
from .result_solvers import OPERATOR_STRATA, ResultSolver, operator_stratum, result_solvers
from .rewards import REWARDS, Verdict, judge
from .traces import WORKING, Demonstrator, step_verdicts, traces
from .worked_solution import explain

_FAILURES = (
    ("result is ", "the equation is right as such, and its result is not the target"),
    ("right-hand side ", "the equation claims a result that it does not have"),
    ("one whole number must follow", "the equation claims a result that is no whole number"),
    ("division by zero", "division by zero"),
)
"""How a verdict's reason begins, and what that means; the first that fits."""
_UNREADABLE = "the answer is no equation that can be read"


class CountdownTask(Task[Problem]):
    """Reach the target with each of the numbers exactly once."""

    name = "countdown"
    title = "Countdown"
    columns: ClassVar = {"nums": "numbers", "target": "target"}
    fields = COLUMNS
    success = "equation"
    rewards = REWARDS
    prompts = PROMPTS
    placeholders = COLUMNS.names
    example = Problem((44, 19, 35), 98)  # the first of the hub's data set
    arrow = r"->|=>|=|→|\bto\b"
    typed_example = "3 5 9 -> 1"

    def parse(self, row: object, place: str) -> Problem:
        return parse_problem(row, place)

    def row(self, problem: Problem) -> dict[str, Any]:
        return {"nums": list(problem.nums), "target": problem.target}

    def file_row(self, problem: Problem) -> dict[str, Any]:
        return {"target": problem.target, "nums": list(problem.nums)}  # the order of the hub's data set

    def generate(self, rows: int, seed: int, settings: Mapping[str, Any] | None) -> Iterator[Problem]:
        return generate(rows, seed, _spec(settings))

    def generator(self, settings: Mapping[str, Any] | None) -> dict[str, Any]:
        return asdict(_spec(settings))

    def split_key(self, problem: Problem, by: str) -> Hashable:
        return problem.numbers_key if by == "numbers" else problem.key

    def solvable(self, problem: Problem) -> bool | None:
        return solver.solvable(problem)

    def inspect(self, problems: Sequence[Problem], progress: Progress) -> dict[str, object]:
        return data.inspect(problems, progress)

    def judge(self, completion: str, problem: Problem, names: Iterable[str] = (), prefill: str = THINK) -> Verdict:
        return judge(completion, problem, names, prefill)

    def classify_failure(self, reason: str, *, truncated: bool) -> str:
        if missing := classify_missing_answer(reason, truncated=truncated):
            return missing
        for beginning, kind in _FAILURES:
            if reason.startswith(beginning):
                return kind
        if reason.startswith("number ") and "leading zero" not in reason:
            left_out = reason.endswith(" not used")
            return "a number is left out" if left_out else "a number that was not given, or too often"
        return _UNREADABLE

    def strata(self, problem: Problem) -> dict[str, str]:
        return {"size": str(len(problem.nums)), **operator_stratum(problem)}

    def describe_stratum(self, name: str, key: str) -> str:
        return f"{key} numbers" if name == "size" else OPERATOR_STRATA.get(key, key)

    def metrics(self, records: Sequence[dict[str, Any]]) -> dict[str, float]:
        by_size: dict[int, list[float]] = {}
        for record in records:
            by_size.setdefault(len(record["nums"]), []).append(record["rewards"][self.success])
        return {
            "tries": _mean([record["tries"] for record in records]),
            "frac_enumerating": _mean([record["style"] == "enumerating" for record in records]),
            "frac_wordy": _mean([record["style"] == "wordy" for record in records]),
            **{f"success/{size}_numbers": _mean(by_size[size]) for size in sorted(by_size)},
        }

    def answer_figures(self, verdicts: Sequence[Verdict]) -> dict[str, float]:
        return {"tries": round(_mean([verdict.tries for verdict in verdicts]), 6)}

    def solvers(self, settings: Mapping[str, Any] | None) -> dict[str, ResultSolver]:
        return result_solvers(_spec(settings))

    def solver_settings(self, settings: Mapping[str, Any] | None) -> dict[str, Any]:
        spec = _spec(settings)
        return {"random_solver": {"operators": spec.operators, "max_intermediate": spec.max_intermediate}}

    def heading(self, problem: Problem) -> str:
        return f"{', '.join(map(str, problem.nums))} → {problem.target}"

    def explain(self, completion: str, problem: Problem, prefill: str = THINK) -> Explanation:
        return explain(completion, problem, prefill)

    def card(self, generator: Mapping[str, Any] | None, *, measured: bool) -> CardText:
        numbers = "some numbers"
        if generator is not None:
            *others, last = [str(size) for size in sorted(set(_spec(generator).sizes))]
            numbers = f"{', '.join(others)}{' or ' if others else ''}{last} numbers"
        return CardText(
            f"the Countdown game: given {numbers} and a target, it writes its reasoning, then an equation that uses "
            "each number once",
            "a correct format and a correct equation, equally",
            "other numbers and another target",
            [
                f"It was trained on one game, with {numbers}. Don't expect it to be better at mathematics in general; "
                "it may be worse at everything else than the model it was made from.",
                "Trying sums in order solves many problems for which + and - suffice"
                + (": see the row 'needs × or ÷'." if measured else ", without any reasoning."),
            ],
        )

    def read_typed(self, *texts: str) -> Problem:
        return typed_problem.read_problem(*texts)

    def solution(self, problem: Problem) -> tuple[dict[str, Any], str]:
        solvable = solver.solvable(problem)
        try:
            found = solver.solve(problem.nums, problem.target, Work(solver.MAX_STEPS))
        except OutOfWork:
            found = None
        shown = f"{found} = {problem.target}"
        if found is None:
            shown = "no solution found; the search was stopped" if solvable is None else "there is no solution"
        return {"solution": found, "solvable": solvable}, f"exact solver: {shown}"

    def fixed_texts(self) -> tuple[list[str], list[str]]:
        parts = [part for template in USER_MESSAGES.values() for part in re.split(r"\{nums\}|\{target\}", template)]
        return [SYSTEM_MESSAGE, PREFILL, ", ", *parts], list(WORKING)

    def traces(
        self, problems: Sequence[Problem], solver: Demonstrator, count: int, seed: int
    ) -> Iterator[tuple[Problem, str]]:
        return traces(problems, solver, count, seed)

    def step_verdicts(self, text: str) -> list[bool]:
        return step_verdicts(text)


def _spec(settings: Mapping[str, Any] | None) -> GeneratorSpec:
    return GeneratorSpec(**(settings or {}))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
