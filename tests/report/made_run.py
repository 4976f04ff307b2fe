"""A run directory written without training: figures and texts are made up, the files are as the trainer writes them.

`make_run(path)` is a run of Mini-R1's own shape whose answers get better, with a restart and evaluations; the page is
tried on it where a real run of that length would take hours.
"""

from __future__ import annotations

import json
import random
from contextlib import closing
from pathlib import Path
from typing import Any

from mini_r1.recipe.recipe_file import dump_recipe, find_recipe, load_recipe
from mini_r1.run.files import AppendFile, write_json, write_text
from mini_r1.run.run_dir import RunDir
from mini_r1.tasks.countdown.problem import Problem
from mini_r1.tasks.countdown.rewards import judge

START = 1_738_000_000.0
HOSTILE = {
    "script": "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>",
    "closing": "</script></style></template><script>window.hacked = 1</script>",
    "comment": "<!-- <script> -->]]>",
    "terminal": "\x1b[31mred\x1b[0m \x1b]0;title\x07",
    "nul": "a\x00b",
    "lone surrogate": "half \ud83d of a pair",
    "line separators": "one\u2028two\u2029three",
    "right to left": "abc\u202edef",
    "template": "{{ 7 * 7 }} {% raw %} ${window.hacked = 1}",
}
"""What a model may write; none of it may do anything."""
REFLECTIONS = (
    "Wait, that does not use all the numbers.",
    "Let me try again.",
    "Alternatively, take the largest first.",
)


def make_run(
    path: Path,
    *,
    steps: int = 60,
    per_step: int = 24,
    overrides: tuple[str, ...] = (),
    extra: tuple[str, ...] = (),
    restart_at: int | None = None,
    evaluate_every: int | None = None,
    gpus: int = 4,
    seed: int = 1,
    state: str = "finished",
) -> RunDir:
    """Write a run.

    Args:
        path: where.
        steps: optimizer steps done.
        per_step: completions of each.
        overrides: of the recipe mini-r1-3b.
        extra: completions that are put into the first step.
        restart_at: the step that a second attempt begins with.
        evaluate_every: steps between two evaluation files.
        gpus: of the node, vLLM's included.
        seed: of the random texts and figures.
        state: in state.json; none writes no file.
    """
    rng = random.Random(seed)
    run = RunDir(path)
    path.mkdir(parents=True)
    recipe = load_recipe(find_recipe("mini-r1-3b"), [f"max_steps={steps}", *overrides])
    write_text(run.recipe_file, dump_recipe(recipe))
    attempts = [_attempt(1, gpus)] + ([_attempt(2, gpus)] if restart_at else [])
    write_json(run.run_file, {"run_id": "made", "model_name_or_path": recipe.model_name_or_path, "attempts": attempts})
    if state != "none":
        run.write_state(state, step=steps, reason=state, exit_code=0, attempt=len(attempts))
    problems = [_problem(rng) for _ in range(max(12, steps * per_step // 40))]
    last_of_first = min(steps, restart_at + 4) if restart_at else steps
    spans = [(1, 1, last_of_first)] + ([(2, restart_at, steps)] if restart_at else [])
    for number, first, last in spans:
        folder = run.attempts / str(number)
        folder.mkdir(parents=True)
        with (
            closing(AppendFile(folder / "completions.jsonl")) as completions,
            closing(AppendFile(folder / "metrics.jsonl")) as metrics,
        ):
            for step in range(first, last + 1):
                progress = step / max(steps, 450)
                texts = [(rng.choice(problems), None) for _ in range(per_step)]
                if step == 1:
                    texts += [(rng.choice(problems), text) for text in extra]
                rows = [_row(rng, step, problem, text, progress) for problem, text in texts]
                completions.write_rows(*rows)
                metrics.write_rows(_metrics(rng, rows, step, number))
    if evaluate_every:
        run.evaluation.mkdir()
        for step in range(0, steps + 1, evaluate_every):
            write_json(run.evaluation / f"step-{step}.json", _evaluation(rng, step, max(steps, 450)))
    return run


def _problem(rng: random.Random) -> Problem:
    while True:
        nums = tuple(rng.randint(1, 99) for _ in range(rng.choice((3, 4))))
        a, b, *rest = nums
        target = a * b - sum(rest) if rng.random() < 0.4 else a + b - sum(rest)
        if 10 <= target <= 100:
            return Problem(nums, target)


def _row(rng: random.Random, step: int, problem: Problem, text: str | None, progress: float) -> dict[str, Any]:
    completion = text if text is not None else _completion(rng, problem, progress)
    verdict = judge(completion, problem)
    return {
        "step": step, "task": "countdown", **verdict.record(), "prompt": "made up",
        "reward": float(verdict.format + verdict.right), "advantage": 0.0,
        "tokens": max(1, len(completion) // 4), "truncated": False,
    }  # fmt: skip


def _completion(rng: random.Random, problem: Problem, progress: float) -> str:
    a, b, *rest = problem.nums
    sums = " - ".join(map(str, (f"{a} + {b}", *rest)))
    product = " - ".join(map(str, (f"{a} * {b}", *rest)))
    right = rng.random() < 0.08 + 0.9 * progress**0.6
    verdicts = {e: judge(f"</think>\n<answer>{e}</answer>", problem).right for e in (sums, product)}
    answer = next((e for e, verdict in verdicts.items() if bool(verdict) == right), sums)
    lines = [f" To find an equation that equals {problem.target}, I need each of the numbers once and only once."]
    wordy = rng.random() > progress * 1.6
    for _ in range(rng.randint(1, 3 if wordy else 9)):
        x, y = rng.sample(problem.nums, 2)
        sign = rng.choice("+-*")
        value = {"+": x + y, "-": x - y, "*": x * y}[sign]
        if wordy:
            lines.append(f"If I take {x} and {y} first, I could combine them, but how would the others then fit?")
        else:
            lines.append(f"- {x} {sign} {y} = {value} (not {problem.target})")
    if rng.random() < 0.1 + 0.3 * progress:
        lines.append(rng.choice(REFLECTIONS))
    lines.append(f"So the equation is {answer}.")
    end = "</answer>" if rng.random() < min(1.0, 0.2 + step_share(progress)) else ""
    return "\n".join(lines) + f"\n</think>\n<answer>{answer}{end}"


def step_share(progress: float) -> float:
    """How much of the format is learned: all of it after some 50 of 450 steps."""
    return progress * 8


def _metrics(rng: random.Random, rows: list[dict[str, Any]], step: int, attempt: int) -> dict[str, Any]:
    def mean(values: Any) -> float:
        known = [float(v) for v in values]
        return sum(known) / len(known)

    kl = 0.0004 * step + rng.random() * 0.01
    return {
        "loss": kl * 0.001, "grad_norm": 0.2, "learning_rate": 5e-7, "kl": kl, "entropy": 1.2 / (1 + step / 150),
        "reward": mean(r["reward"] for r in rows), "success": mean(r["rewards"]["equation"] for r in rows),
        **{f"rewards/{n}": mean(r["rewards"][n] for r in rows) for n in rows[0]["rewards"]},
        "completion_length": mean(r["tokens"] for r in rows), "frac_truncated": 0.02 / (1 + step / 40),
        "tries": mean(r["tries"] for r in rows), "reflections": mean(r["reflections"] for r in rows),
        "frac_enumerating": mean(r["style"] == "enumerating" for r in rows),
        "frac_wordy": mean(r["style"] == "wordy" for r in rows), "frac_groups_all_equal": 0.5 - 0.2 * rng.random(),
        "tokens_per_second": 9_000 + 800 * rng.random(), "time/rollout": 18 + 2 * rng.random(),
        "time/update": 22 + rng.random(), "time/reference": 4.0, "time/score": 0.1, "time/sync": 1.1, "step": step,
        "time": START + 50 * step + (5_400 if attempt > 1 else 0),
    }  # fmt: skip


def _evaluation(rng: random.Random, step: int, of: int) -> dict[str, Any]:
    share = 0.05 + 0.5 * (step / of) ** 0.6
    return {
        "problems": 500, "samples": 4, "temperature": 0.9, "greedy": share + 0.03,
        "greedy_ci95": [share - 0.01, share + 0.07], "sampled": share, "ci95": [share - 0.03, share + 0.03],
        "pass_at_k": {"1": {"value": share, "ci95": [0, 1]}, "4": {"value": min(1.0, share * 1.6), "ci95": [0, 1]}},
        "format": min(1.0, 0.3 + step / 60), "tries": 1.5 + 4 * step / of, "completion_tokens": 400, "truncated": 0.01,
        "by_size": {"3": _group(share + 0.15), "4": _group(share - 0.1)},
        "by_operators": {"add_subtract_suffice": _group(share + 0.1), "needs_multiply_or_divide": _group(share / 3)},
        "baselines": {"random_solver": {"success_at_tries": {"1": 0.05, "4": 0.17, "8": 0.31, "16": 0.4, "all": 0.7},
                                        "observed_over_expected": 1.2}},
        "failures": {"result is N, not N": 300}, "seconds": 60.0,
        "provenance": {"step": step, "problems_sha256": "ab" * 32, "limit": None},
    }  # fmt: skip


def _group(share: float) -> dict[str, Any]:
    known = min(1.0, max(0.0, share))
    return {"problems": 250, "greedy": known, "greedy_ci95": [known, known], "sampled": known, "ci95": [known, known]}


def _attempt(number: int, gpus: int) -> dict[str, Any]:
    started = "2025-01-27T17:46:00Z" if number == 1 else "2025-01-27T20:40:00Z"
    return {
        "attempt": number, "started": started, "command": ["mini-r1", "train", "mini-r1-3b"], "host": "node7",
        "python": "3.11.7", "versions": {"torch": "2.5.1", "trl": "0.14.0", "vllm": "0.7.0"}, "kit": "0.1.0",
        "code_revision": "0" * 40, "devices": ["NVIDIA H100 80GB HBM3"], "workers": gpus - 1, "deepspeed": "zero3",
        "vllm_device": str(gpus - 1), "model": {"class": "Qwen2ForCausalLM", "parameters": 3_085_938_688},
    }  # fmt: skip


if __name__ == "__main__":
    import sys

    made = make_run(
        Path(sys.argv[1]), steps=int(sys.argv[2]), per_step=int(sys.argv[3]), restart_at=int(sys.argv[2]) // 2,
        evaluate_every=25, extra=tuple(HOSTILE.values()),
    )  # fmt: skip
    print(json.dumps({"run": str(made.path)}))
