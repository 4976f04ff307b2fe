"""Does safe scoring cost throughput? The kit's scorer against a plain eval scorer, on the same completions.

    .venv/bin/python bench/scorer.py [--json]

20,000 completions made by this script (seeded: 50 % right, 30 % with a wrong answer, 20 % with a broken format, each
after a thought of 1,100-1,500 characters, which is 300-400 tokens) are scored by three scorers in turn, several rounds:

    eval            format + equation as the original's functions judge them, by regular expression and eval
    kit             the kit's format + equation: the two rewards that train a run
    kit, all four   rewards.judge: the verdicts logged for every completion, the original's included

Each figure is the best round of a scorer. Bar: kit at least 0.8 times eval's completions per second; exit code 1 below.
First the baseline is checked: its verdicts are those of the kit's original scoring on every completion.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import time
from collections.abc import Callable

from mini_r1.tasks.countdown.generator import generate
from mini_r1.tasks.countdown.parsed_completion import parse_completion
from mini_r1.tasks.countdown.problem import Problem
from mini_r1.tasks.countdown.rewards import equation_reward, format_reward, judge
from mini_r1.tasks.countdown.solver import solve

COMPLETIONS = 20_000
PROBLEMS = 2_000
ROUNDS = 7
BAR = 0.8
"""Smallest ratio of throughputs, kit / eval, that issue 2 allows."""

Row = tuple[str, Problem]

# --- the baseline: the original's semantics in our own words. ---

FORMAT = re.compile(r"^<think>([^<]*(?:<(?!/?think>)[^<]*)*)</think>\n<answer>([\s\S]*?)</answer>$")
ANSWER = re.compile(r"<answer>(.*?)</answer>")
ARITHMETIC = re.compile(r"[\d+\-*/().\s]+")


def eval_format(completion: str) -> float:
    """The original's format rule: one regular expression over the prefilled tag and the completion."""
    return float(FORMAT.search("<think>" + completion) is not None)


def eval_equation(completion: str, problem: Problem) -> float:
    """The original's equation rule: the first answer's numbers as a multiset, its characters, then Python's value."""
    try:
        match = ANSWER.search("<think>" + completion)
        if match is None:
            return 0.0
        equation = match.group(1).strip()
        if sorted(int(digits) for digits in re.findall(r"\d+", equation)) != sorted(problem.nums):
            return 0.0
        if not ARITHMETIC.fullmatch(equation):
            return 0.0
        # eval is what is measured here, on text that this script made itself. The kit never does this: a model's
        # `9**9**9` would stall a rank until the collective times out.
        value = eval(equation, {"__builtins__": None}, {})
        return float(abs(float(value) - float(problem.target)) < 1e-5)
    except Exception:
        return 0.0


# --- the completions ---


def completions(seed: int = 0) -> list[Row]:
    """The mix: 50 % right, 30 % wrong (value, numbers, grammar), 20 % broken in format or cut off."""
    rng = random.Random(seed)
    problems = list(generate(PROBLEMS, seed))
    solutions = [solve(problem.nums, problem.target) for problem in problems]
    rows = []
    for i in range(COMPLETIONS):
        problem, solution = problems[i % PROBLEMS], solutions[i % PROBLEMS]
        assert solution is not None
        rows.append((completion(problem, solution, rng), problem))
    return rows


def completion(problem: Problem, solution: str, rng: random.Random) -> str:
    """One completion: a thought of real length, and an end drawn from the mix."""
    thought = thinking(problem, rng)
    kind = rng.random()
    if kind < 0.5:
        return f"{thought}</think>\n<answer>{rng.choice(['', ' '])}{solution}</answer>"
    if kind < 0.8:
        return f"{thought}</think>\n<answer>{wrong(problem, solution, rng)}</answer>"
    return rng.choice(
        [
            thought,  # cut at the length limit
            f"{thought}</think>\n<answer>{solution}</answer>\nI hope this helps.",
            f"{thought}</think>\n\n<answer>{solution}</answer>",
            f"{thought}</think>\n{solution}",
            f"{thought}<answer>{solution}</answer>",
        ]
    )


def wrong(problem: Problem, solution: str, rng: random.Random) -> str:
    """An answer that does not reach the target, or breaks a rule."""
    nums = list(problem.nums)
    rng.shuffle(nums)
    free = "".join(f" {rng.choice('+-*')} {n}" for n in nums[1:])
    return rng.choice(
        [
            f"{nums[0]}{free}",  # mostly another value
            f"({nums[0]}{free})",
            " + ".join(map(str, nums[:-1])),  # a number left out
            f"{solution} + {nums[0]} - {nums[0]}",  # a number used three times
            f"{solution} = {problem.target + 1}",
            solution.replace("*", "×").replace("+", "plus"),
            f"{nums[0]} +",
        ]
    )


def thinking(problem: Problem, rng: random.Random) -> str:
    """Prose and attempts, as the models write them, until 1,100-1,500 characters are reached."""
    length = rng.randrange(1_100, 1_500)
    lines = [f" We need an equation with the numbers {list(problem.nums)} that equals {problem.target}. "]
    size = len(lines[0])
    while size < length:
        a, b = rng.sample(problem.nums, 2)
        line = rng.choice(
            [
                f"Let me try {a} + {b} = {a + b}, which leaves {problem.target - a - b} to be made from the rest.\n",
                f"- {a} * {b} = {a * b} (too large)\n",
                f"Now {a} - {b} = {a - b}; that is not helpful, so another combination is worth a look.\n",
                "Wait, each number can only be used once, so that does not work. Let me start again.\n",
            ]
        )
        lines.append(line)
        size += len(line)
    return "".join(lines)


# --- measuring ---


def check_baseline(rows: list[Row]) -> None:
    """The baseline gives the original's verdicts, so it is the right thing to compare with.

    Raises:
        SystemExit: it does not.
    """
    for text, problem in rows:
        verdict = judge(text, problem)
        if (eval_format(text), eval_equation(text, problem)) != (
            verdict.rewards["format_original"],
            verdict.rewards["equation_original"],
        ):
            sys.exit(f"the baseline and original_scoring disagree on {text[-200:]!r} {problem}")


def scored_by_eval(rows: list[Row]) -> float:
    return sum(eval_format(text) + eval_equation(text, problem) for text, problem in rows)


def scored_by_kit(rows: list[Row]) -> float:
    parsed = (parse_completion(text, problem) for text, problem in rows)
    return sum(format_reward(completion) + equation_reward(completion) for completion in parsed)


def scored_by_kit_judge(rows: list[Row]) -> float:
    return sum(judge(text, problem).right for text, problem in rows)


SCORERS: dict[str, Callable[[list[Row]], float]] = {
    "eval": scored_by_eval,
    "kit": scored_by_kit,
    "kit, all four": scored_by_kit_judge,
}


def measure(rows: list[Row], rounds: int = ROUNDS) -> dict[str, float]:
    """Completions per second of every scorer, best of `rounds`; the scorers take turns, so that load hits all alike."""
    best = dict.fromkeys(SCORERS, float("inf"))
    for _ in range(rounds):
        for name, scorer in SCORERS.items():
            started = time.perf_counter()
            scorer(rows)
            best[name] = min(best[name], time.perf_counter() - started)
    return {name: len(rows) / seconds for name, seconds in best.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    rows = completions()
    check_baseline(rows)
    per_second = measure(rows)
    right = sum(judge(text, problem).right for text, problem in rows) / len(rows)
    ratio = per_second["kit"] / per_second["eval"]
    passed = ratio >= BAR
    if arguments.json:
        rounded = {name: round(value) for name, value in per_second.items()}
        print(
            json.dumps(
                {
                    "completions": len(rows),
                    "right_equation": right,
                    "per_second": rounded,
                    "ratio": round(ratio, 3),
                    "bar": BAR,
                    "passed": passed,
                }
            )
        )
    else:
        characters = sum(len(text) for text, _ in rows) / len(rows)
        print(f"{len(rows):,} completions of {characters:.0f} characters on average, {right:.0%} with a right equation")
        for name, value in per_second.items():
            print(f"{name:15} {value:10,.0f} completions/s  {value / per_second['eval']:.2f} x eval")
        print(f"bar: kit >= {BAR} x eval: {'met' if passed else 'MISSED'} ({ratio:.2f} x)")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
