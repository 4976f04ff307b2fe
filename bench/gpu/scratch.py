"""The recipe scratch-1gpu with one seed: warm start, GRPO, and held-out success before and after. See run.py.

Success is measured on held-out problems of the run, and on rows of the hub data set (`hub_rows.jsonl`, its
first 200) without those that share numbers and target with a training problem. At the deadline the run saves;
called again on the same machine it resumes.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import _common as common
from mini_r1.cli.demo import seconds_of_steps
from mini_r1.evaluation.measures import EvaluatedAnswer
from mini_r1.evaluation.search import compare
from mini_r1.recipe.fields import Recipe
from mini_r1.recipe.recipe_file import load_recipe
from mini_r1.run.files import read_jsonl, write_json
from mini_r1.run.reader import completions_file, read_metrics
from mini_r1.run.run_dir import RunDir
from mini_r1.tasks.countdown.data import read_problems
from mini_r1.tasks.countdown.problem import Problem
from mini_r1.tasks.countdown.result_solvers import ResultSolver
from mini_r1.tasks.countdown.rewards import judge
from mini_r1.tasks.countdown.traces import result_weights, step_verdicts
from mini_r1.training import prepare
from mini_r1.training.warm_start import making, of_recipe

RECIPE = "scratch-1gpu"
SCALES: dict[str, dict[str, Any]] = {
    "full": {"overrides": (), "problems": 1000, "samples": 4},
    "small": {
        "overrides": (
            "warm_start.layers=4", "warm_start.hidden_size=128", "warm_start.batch=64", "warm_start.traces=60000",
            "warm_start.learning_rate=2e-3", "warm_start.min_accuracy=0.9", "per_device_train_batch_size=8",
            "gradient_accumulation_steps=4", "learning_rate=1.5e-4",
        ),
        "problems": 1000, "samples": 2,
    },
    "tiny": {
        "overrides": (
            "warm_start.layers=2", "warm_start.hidden_size=64", "warm_start.steps=40", "warm_start.traces=3000",
            "warm_start.min_accuracy=0", "dataset_rows=400", "max_steps=2", "warmup_steps=1",
            "per_device_train_batch_size=2", "gradient_accumulation_steps=2", "eval_problems=8",
            "max_completion_length=96",
        ),
        "problems": 20, "samples": 2,
    },
}  # fmt: skip
"""For a CPU: `small` learns in one to two hours of two cores, with 0.9 million parameters and a quarter of the
completions; `tiny` shows that the bench works, and measures nothing."""
KEPT = ("problems", "greedy", "greedy_ci95", "sampled", "ci95", "by_size", "by_operators", "format", "tries",
        "completion_tokens", "truncated", "failures")  # fmt: skip
"""Figures of an evaluation."""
CURVE = ("step", "reward", "success", "rewards/format", "completion_length", "frac_truncated", "tries", "kl", "entropy",
         "eval_success", "eval_tries")  # fmt: skip
"""Figures of a row of metrics, if it has them."""


class Stopped(Exception):
    """The deadline came; what is there is saved."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--scale", choices=SCALES, default="full")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--deadline", type=float, default=float("inf"), help="in seconds since 1970")
    parser.add_argument("--set", action="append", default=[], dest="overrides", help="key=value, besides the scale's")
    given = parser.parse_args()
    try:
        measure(given, given.scratch / given.out.stem)
    except Stopped as stopped:
        print(stopped)
    return 0


def measure(given: argparse.Namespace, folder: Path) -> None:
    """Train, measure on both sets of problems, write all of it."""
    scale, deadline = SCALES[given.scale], given.deadline
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["MINI_R1_CACHE"] = str(folder / "cache")
    run = RunDir(folder / "run")
    sets = [f"seed={given.seed}", f"warm_start.seed={given.seed}", *scale["overrides"], *given.overrides]
    began = time.perf_counter()
    mini_r1(deadline, "train", RECIPE, "--run-dir", run.path, *(word for one in sets for word in ("--set", one)))
    seconds = {"train, this call": time.perf_counter() - began, "GRPO": seconds_of_steps(run)}
    recipe = load_recipe(run.recipe_file)
    data = prepare.load_task_data(recipe)
    made = making(of_recipe(recipe, data.train).directory())
    seconds["warm start"] = made["seconds"]
    hub, shared = unseen(read_problems(common.HUB_ROWS), data.train)
    (folder / "hub.jsonl").write_text("".join(json.dumps({"nums": p.nums, "target": p.target}) + "\n" for p in hub))
    measured = {}
    for name, problems in (
        ("held out", ("--limit", scale["problems"])),
        ("hub rows", ("--problems", folder / "hub.jsonl")),
    ):
        began = time.perf_counter()
        measured[name] = {
            when: figures(deadline, run, *step, *problems, "--samples", scale["samples"])
            for when, step in (("before", ("--step", 0)), ("after", ("--newest",)))
        }
        seconds[f"evaluation, {name}"] = time.perf_counter() - began
    write_json(given.out, {
        "seed": given.seed, "sets": sets[2:], "seconds": seconds, "arithmetic": made["arithmetic_accuracy"],
        "hub_rows_seen_in_training": shared, "steps": recipe.max_steps, "measured": measured,
        "curve": [{key: row[key] for key in CURVE if key in row} for row in read_metrics(run)], "complete": True,
    })  # fmt: skip
    keep(run, given.out.with_suffix(".tar.gz"))


def mini_r1(deadline: float, *arguments: Any) -> str:
    """The command's standard output.

    Raises:
        Stopped: the deadline came before its end.
        subprocess.CalledProcessError: it failed.
    """
    command = [sys.executable, "-m", "mini_r1", *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            output, _ = process.communicate(timeout=min(deadline - time.time(), threading.TIMEOUT_MAX))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
            process.communicate()
            raise Stopped(f"stopped at the deadline: {arguments[0]}") from None
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return output


def unseen(problems: Iterable[Problem], trained: Iterable[Problem]) -> tuple[list[Problem], int]:
    """The problems whose numbers and target no training problem has, in any order; and how many others there were."""
    keys, problems = {problem.key for problem in trained}, list(problems)
    kept = [problem for problem in problems if problem.key not in keys]
    return kept, len(problems) - len(kept)


def figures(deadline: float, run: RunDir, *arguments: Any) -> dict[str, Any]:
    """Figures of one snapshot on one set of problems, and how its answers search."""
    facts = json.loads(mini_r1(deadline, "evaluate", run.path, *arguments, "--json"))
    written = Path(facts["provenance"]["written_to"])
    rows = [row for row in read_jsonl(completions_file(written)) if row["kind"] == "sampled"]
    solvers = {name: facts["baselines"][name] for name in ("signed_sums", "random_solver")}
    return {
        **{key: facts[key] for key in KEPT},
        "solvers": {**solvers, "patient": patient(rows, load_recipe(run.recipe_file))},
        **worth_of_tries(rows),
    }


def worth_of_tries(rows: Iterable[dict[str, Any]]) -> dict[str, float]:
    """Return for sampled answers what their tries are worth.

    Returns:
        `repeated`: share of tries with a result that the same answer had before; `false_claims`: share of answers that
        say "(yes)" of a calculation that is wrong or misses the target; `arithmetic`: share of right steps.
    """
    tries = repeated = answers = false = right = steps = 0
    for row in rows:
        answers += 1
        seen: set[str] = set()
        claims = False
        for line, result in calculations(row["completion"]):
            verdicts = step_verdicts(line)
            right, steps = right + sum(verdicts), steps + len(verdicts)
            tries, repeated = tries + 1, repeated + (result in seen)
            seen.add(result)
            claims |= line.endswith("(yes)") and not (all(verdicts) and result == str(row["target"]))
        false += claims
    return {
        "repeated": repeated / max(1, tries),
        "false_claims": false / max(1, answers),
        "arithmetic": right / max(1, steps),
    }


def patient(rows: Iterable[dict[str, Any]], recipe: Recipe) -> dict[str, Any] | None:
    """The imitated solver, if it did not give up: its success, and its chances at the model's tries.

    A model that does no better at its tries has learned to keep trying, and not to search better.
    """
    teacher = of_recipe(recipe, ()).model.demonstrator
    sampled = [
        [EvaluatedAnswer(judge(row["completion"], problem), row["tokens"], row["truncated"]) for row in of_problem]
        for problem, of_problem in itertools.groupby(rows, lambda row: Problem(tuple(row["nums"]), row["target"]))
    ]
    return compare(sampled, ResultSolver(lambda problem: result_weights(problem, teacher)))


def calculations(completion: str) -> Iterator[tuple[str, str]]:
    """Lines of the thought that calculate, each with its result as written."""
    for line in completion.split("</think>")[0].splitlines():
        working = line.split(" (")[0]
        if " = " in working:
            yield line, working.rpartition(" = ")[2]


def keep(run: RunDir, path: Path) -> None:
    """The run directory without weights and completions, for `mini-r1 report` elsewhere."""
    with tarfile.open(path, "w:gz") as archive:
        for file in sorted(run.path.rglob("*")):
            name = file.relative_to(run.path)
            heavy = name.parts[0] in ("checkpoints", "snapshots") or "completions" in file.name
            if file.is_file() and not heavy and file.suffix in (".json", ".jsonl", ".yaml"):
                info = tarfile.TarInfo(str(Path("run") / name))
                content = file.read_bytes()
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


if __name__ == "__main__":
    sys.exit(main())
