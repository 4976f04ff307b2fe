"""What does search alone solve, and does the comparison with it treat a searcher fairly?

    .venv/bin/python bench/search.py [--json]

First the success of three solvers after 1, 2, 4, ... tries: on the demo's problems, on 1,000 generated problems
like the hub data set's, and on 200 rows of that set. `patient` is the solver that `builtin:scratch` imitates, without
giving up.

Then a model that is the random solver itself, with a limited number of tries, on the first two sets: its success, what
a comparison with "as many tries as the model made" would give the solver, and O/E (docs/evaluation.md). Bar: O/E
has 1 within its 95 % interval, every time. About 1 minute.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
from mini_r1.evaluation.measures import EvaluatedAnswer
from mini_r1.evaluation.search import compare, success_at_tries
from mini_r1.recipe.builtin_models import BUILTIN_MODELS, SCRATCH_MODEL
from mini_r1.recipe.recipe_file import find_recipe, load_recipe
from mini_r1.tasks.countdown.baselines import draw_chains
from mini_r1.tasks.countdown.data import read_problems
from mini_r1.tasks.countdown.generator import GeneratorSpec, generate
from mini_r1.tasks.countdown.problem import Problem
from mini_r1.tasks.countdown.result_solvers import ResultSolver, result_solvers
from mini_r1.tasks.countdown.rewards import judge
from mini_r1.tasks.countdown.traces import answer, result_weights, working
from mini_r1.training.prepare import load_task_data

HUB_ROWS = Path(__file__).parent / "gpu" / "hub_rows.jsonl"
CAPS = {"demo": (5, 10), "generated": (30,)}
SAMPLES = 2


def sets() -> dict[str, tuple[list[Problem], GeneratorSpec]]:
    """Problems, and what the random solver may try on them."""
    recipe = load_recipe(find_recipe("demo-cpu"))
    rule = recipe.generator
    assert rule is not None
    held_out = list({problem.key: problem for problem in load_task_data(recipe).held_out}.values())
    return {
        "demo": (held_out, GeneratorSpec(operators=rule.operators, max_intermediate=rule.max_intermediate)),
        "generated": (list(generate(1000, 0, GeneratorSpec())), GeneratorSpec()),
        "hub rows": (read_problems(HUB_ROWS), GeneratorSpec()),
    }


def levels(problems: list[Problem], solver: ResultSolver) -> dict[str, float]:
    """Return the success after each number of tries."""
    rng = np.random.default_rng(0)
    found = [
        success_at_tries(solver.weights(p) or {}, abs(p.target) if solver.signless else p.target, rng) for p in problems
    ]
    return {key: sum(level[key] for level in found) / len(found) for key in found[0]}


def as_a_model(problems: list[Problem], game: GeneratorSpec, cap: int) -> dict[str, Any]:
    """The random solver in the place of the model, with at most `cap` tries."""
    rng, sampled, matched = random.Random(1), [], 0
    for problem in problems:
        answers = []
        for _ in range(SAMPLES):
            lines, last = [], None
            for last in draw_chains(problem, game.operators, game.max_intermediate, rng):
                lines.append(working(last))
                if last.values[-1] == problem.target or len(lines) == cap:
                    break
            text = answer(last) if last else ""
            thought = "\n".join(lines)
            verdict = judge(f"{thought}\n</think>\n<answer>{text}</answer>", problem)
            answers.append(EvaluatedAnswer(verdict, 0, False))
            other = draw_chains(problem, game.operators, game.max_intermediate, rng)
            matched += any(chain.values[-1] == problem.target for chain, _ in zip(other, lines, strict=False))
        sampled.append(answers)
    found = compare(sampled, result_solvers(game)["random_solver"])
    assert found is not None
    count = len(problems) * SAMPLES
    return {
        "success": found["observed"] / count,
        "as many tries": matched / count,
        "ratio": found["observed_over_expected"],
        "ci95": found["observed_over_expected_ci95"],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    teacher = BUILTIN_MODELS[SCRATCH_MODEL].demonstrator
    alone: dict[str, Any] = {}
    models: dict[str, Any] = {}
    for name, (problems, game) in sets().items():
        searches = result_solvers(game)
        if name != "demo":
            searches["patient"] = ResultSolver(lambda problem: result_weights(problem, teacher))
        alone[f"{name}, {len(problems)} problems"] = {key: levels(problems, solver) for key, solver in searches.items()}
        models |= {f"{name}, at most {cap} tries": as_a_model(problems, game, cap) for cap in CAPS.get(name, ())}
    fair = all(of["ci95"][0] <= 1 <= of["ci95"][1] for of in models.values())
    bar = "a model that is the solver has an O/E of 1"
    if arguments.json:
        print(json.dumps({"alone": alone, "as a model": models, "bars": {bar: fair}}))
        return 0 if fair else 1
    for name, of in alone.items():
        print(f"{name}: success by number of tries")
        print(f"{'':15}" + "".join(f"{tries:>8}" for tries in next(iter(of.values()))))
        for solver, found in of.items():
            print(f"{solver:15}" + "".join(f"{share:8.1%}" for share in found.values()))
    print(f"{'the random solver as the model':32} success  as many tries  O/E")
    for name, seen in models.items():
        low, high = seen["ci95"]
        print(
            f"{name:32}{seen['success']:8.1%}{seen['as many tries']:15.1%}  {seen['ratio']:.2f} ({low:.2f}-{high:.2f})"
        )
    print(f"bar: {bar}: {'met' if fair else 'MISSED'}")
    return 0 if fair else 1


if __name__ == "__main__":
    sys.exit(main())
