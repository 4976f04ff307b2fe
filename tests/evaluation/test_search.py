"""Search baselines: a solver in place of the model is expected to hit as often as it does, however it stops."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from mini_r1.evaluation.measures import EvaluatedAnswer
from mini_r1.evaluation.search import (
    Weights,
    compare,
    expected_hits,
    search_baselines,
    success_at_tries,
)
from mini_r1.recipe.builtin_models import BUILTIN_MODELS, SCRATCH_MODEL
from mini_r1.tasks.countdown.baselines import draw_chains
from mini_r1.tasks.countdown.countdown_task import CountdownTask
from mini_r1.tasks.countdown.generator import GeneratorSpec, generate
from mini_r1.tasks.countdown.problem import Problem
from mini_r1.tasks.countdown.result_solvers import ResultSolver, result_solvers
from mini_r1.tasks.countdown.rewards import judge
from mini_r1.tasks.countdown.solver import signed_sums
from mini_r1.tasks.countdown.traces import answer as expression
from mini_r1.tasks.countdown.traces import draw_tries, result_weights, working

DEMONSTRATOR = BUILTIN_MODELS[SCRATCH_MODEL].demonstrator
GAME = GeneratorSpec(max_intermediate=100)
PROBLEMS = list(generate(250, 5, GeneratorSpec()))
SAMPLES = 4

Stops = Callable[[list[int]], bool]
"""Whether a search gives up, by the results that it had."""
Try = tuple[str, str, int]
"""A calculation as a thought has it, the same as an answer, and its result."""


def chains(problem: Problem, rng: random.Random) -> Iterator[Try]:
    for chain in draw_chains(problem, GAME.operators, GAME.max_intermediate, rng):
        yield working(chain), expression(chain), chain.values[-1]


def patient(problem: Problem, rng: random.Random) -> Iterator[Try]:
    for chain in draw_tries(problem, DEMONSTRATOR, rng):
        yield working(chain), expression(chain), chain.values[-1]


def sums(problem: Problem, rng: random.Random) -> Iterator[Try]:
    first, *others = problem.nums
    texts = {}
    for chosen in itertools.product("+-", repeat=len(others)):
        text = str(first) + "".join(f" {sign} {n}" for sign, n in zip(chosen, others, strict=True))
        result = first + sum(n if sign == "+" else -n for sign, n in zip(chosen, others, strict=True))
        texts[abs(result)] = text, text if result != -problem.target else f"-({text})"
    for result in rng.sample(signed_sums(problem.nums), len(texts)):
        text, answer = texts[result]
        yield f"{text} = {result}", answer, result


SOLVERS: dict[str, tuple[Callable[[Problem, random.Random], Iterator[Try]], ResultSolver]] = {
    "random": (chains, result_solvers(GAME)["random_solver"]),
    "patient": (patient, ResultSolver(lambda problem: result_weights(problem, DEMONSTRATOR))),
    "signed sums": (sums, result_solvers(GAME)["signed_sums"]),
}
STOPPING = random.Random(9)
STOPS: dict[str, Stops] = {
    "after one": lambda seen: True,
    "after five": lambda seen: len(seen) == 5,
    "by chance": lambda seen: STOPPING.random() < 0.3,
    "after a multiple of 3": lambda seen: seen[-1] % 3 == 0,
    "after a small one": lambda seen: seen[-1] < 10,
    "after two that rise": lambda seen: len(seen) > 1 and seen[-1] > seen[-2],
    "never": lambda seen: False,
}


def search(problem: Problem, tries: Iterator[Try], stops: Stops) -> EvaluatedAnswer:
    """What a model writes that is this search: honest, and it answers with its last try."""
    lines: list[str] = []
    seen: list[int] = []
    answer = ""
    for line, expression_of_it, result in tries:
        answer = expression_of_it
        lines.append(line)
        seen.append(result)
        if result == problem.target or stops(seen):
            break
    text = "\n".join(lines)
    return EvaluatedAnswer(judge(f"{text}</think>\n<answer>{answer}</answer>", problem), 9, False)


@pytest.mark.parametrize("stops", STOPS)
@pytest.mark.parametrize("name", SOLVERS)
def test_a_solver_in_the_place_of_the_model_has_a_ratio_of_one(name: str, stops: str) -> None:
    makes, solver = SOLVERS[name]
    rng = random.Random(1)
    problems = PROBLEMS[:120] if name == "random" else PROBLEMS  # it draws slowly
    sampled = [[search(p, makes(p, rng), STOPS[stops]) for _ in range(SAMPLES)] for p in problems]
    found = compare(sampled, solver)
    assert found is not None
    assert found["observed"] > 30
    low, high = found["observed_over_expected_ci95"]  # two standard errors each way
    assert low <= 1 <= high, found


def test_success_at_a_number_of_tries_is_that_of_a_search_that_is_capped_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mini_r1.evaluation.search.BUDGETS", (5, 10))
    rng, draws = random.Random(2), np.random.default_rng(0)
    solver, problems = result_solvers(GAME)["random_solver"], PROBLEMS[:100]
    levels = [success_at_tries(solver.weights(p) or {}, p.target, draws) for p in problems]
    searches = [
        [p.target in [result for _, _, result in itertools.islice(chains(p, rng), cap)] for cap in (5, 10)]
        for p in problems
        for _ in range(8)
    ]
    for at, cap in enumerate(("5", "10")):
        found = sum(hits[at] for hits in searches) / len(searches)
        assert 0.3 < found < 0.8
        assert np.mean([level[cap] for level in levels]) == pytest.approx(found, abs=0.035)  # two standard errors


def test_a_model_that_never_hits_has_a_ratio_of_zero_and_an_upper_limit() -> None:
    text = "1 + 1 = 2\n" * 30 + "</think>\n<answer>1</answer>"
    wrong = [[EvaluatedAnswer(judge(text, p), 9, False)] * 2 for p in PROBLEMS[:50]]
    found = search_baselines(wrong, result_solvers(GAME))
    for figures in found.values():
        assert figures["observed"] == 0
        assert figures["observed_over_expected"] == 0
        assert figures["expected"] > 10
        low, high = figures["observed_over_expected_ci95"]
        assert low == 0
        assert 0 < high < 1
    # It continues long after a search would have hit, so this sum is no success rate.
    assert found["signed_sums"]["expected"] > sum(
        CountdownTask().strata(answers[0].verdict.problem)["operators"] == "add_subtract_suffice"
        for answers in wrong
        for _ in answers
    )


WEIGHTS = {1: 2.0, 2: 1.0, 5: 3.0, 9: 2.0}
TARGET = 9


def orders() -> Iterator[tuple[float, tuple[int, ...]]]:
    """Every order of the results, with its chance."""
    for order in itertools.permutations(WEIGHTS):
        chance, left = 1.0, sum(WEIGHTS.values())
        for result in order:
            chance *= WEIGHTS[result] / left
            left -= WEIGHTS[result]
        yield chance, order


@pytest.mark.parametrize(
    "stops",
    [lambda seen: False, lambda seen: len(seen) == 2, lambda seen: seen[-1] == 5, lambda seen: sum(seen) > 5],
    ids=["never", "after two", "after 5", "by the sum"],
)
def test_over_all_orders_hits_and_expected_hits_are_the_same(stops: Stops) -> None:
    """No simulation: of every history that the solver may have, by its chance."""
    hits = expected = 0.0
    for chance, order in orders():
        made: list[int] = []
        for result in order:
            made.append(result)
            if result == TARGET or stops(made):
                break
        hits += chance * (made[-1] == TARGET)
        expected += chance * expected_hits(WEIGHTS, TARGET, made, random.Random(0))
    assert hits > 0.2
    assert expected == pytest.approx(hits, abs=1e-12)


def test_success_at_tries_is_that_of_all_orders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mini_r1.evaluation.search.DRAWS", 200_000)
    found = success_at_tries(WEIGHTS, TARGET, np.random.default_rng(0))
    for budget in (1, 2, 4):
        exact = sum(chance for chance, order in orders() if TARGET in order[:budget])
        assert found[str(budget)] == pytest.approx(exact, abs=0.005)
    assert found["all"] == 1
    assert set(success_at_tries(WEIGHTS, 7, np.random.default_rng(0)).values()) == {0.0}


def test_a_try_that_the_solver_would_not_make_is_replaced_by_one_of_its_own() -> None:
    """After three wasted tries it has had the other three results; then it would have hit, and is expected nothing."""
    weights: Weights = {1: 1.0, 2: 1.0, 3: 1.0, 4: 1.0}
    chances = [1 / 4, 1 / 3, 1 / 2, 1.0, 0.0, 0.0]
    for count in range(1, 7):
        assert expected_hits(weights, 4, [None] * count, random.Random(0)) == pytest.approx(sum(chances[:count]))
    assert expected_hits(weights, 4, [1, 1, 1], random.Random(0)) == pytest.approx(sum(chances[:3]))  # a repetition
    assert expected_hits(weights, 4, [4, 1, 2], random.Random(0)) == 1 / 4  # through the first that hits
    assert expected_hits(weights, 9, [1, 9], random.Random(0)) == 0  # out of its reach


@pytest.mark.parametrize(
    ("text", "tries"),
    [
        ("8 + 2 = 10 - 3 = 7\n</think>\n<answer>8 + 2 - 3</answer>", [7]),
        ("8 + 2 = 10 - 3 = 8 (yes)\n</think>\n<answer>8 + 2 - 3</answer>", [7]),  # its arithmetic does not count
        ("8 + 2 = 10 - 3 = 7\n</think>\n<answer>8 * 2 - 3</answer>", [7, 13]),  # the answer is one more guess
        ("8 + 2 = 10 - 3 = 7\n</think>\n<answer>7</answer>", [7]),
        ("8 + 2 = 10 - 3 = 7", [7]),
        ("8 * 2 = 16\n</think>\n<answer>8 * 2 - 3</answer>", [None, 13]),
        ("so it is</think>\n<answer>8 * 2 - 3</answer>", [13]),
        ("so it is</think>\n<answer>what?</answer>", [None]),
        ("2 - 3 - 8 = -9", [-9]),
    ],
)
def test_what_counts_as_a_try(text: str, tries: list[int | None]) -> None:
    assert judge(text, Problem((8, 2, 3), 9)).results == tries


def test_problems_with_too_many_results_are_left_out_and_counted() -> None:
    large = Problem((3, 7, 25, 50, 75, 100, 9, 81), 1)
    small = PROBLEMS[0]
    rows = [[EvaluatedAnswer(judge("</think>", problem), 9, False)] for problem in (small, large)]
    solvers = CountdownTask().solvers(None)
    assert search_baselines(rows, solvers)["random_solver"]["problems"] == 1
    assert set(search_baselines(rows[1:], solvers)) == {"signed_sums"}
