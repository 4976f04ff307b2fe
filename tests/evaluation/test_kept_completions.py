"""The answers that an evaluation keeps: what is in the file, who reads it, and who leaves it alone."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path

from mini_r1.evaluation.evaluate_run import evaluate_run_or_model
from mini_r1.evaluation.measuring import KEPT_SAMPLES
from mini_r1.generation.model import StartingPoint
from mini_r1.hub import branch_contents
from mini_r1.report.samples_browser import KINDS, collect_samples
from mini_r1.run import listing
from mini_r1.run.completions import CompletionFilter, print_completions
from mini_r1.run.files import read_jsonl
from mini_r1.run.reader import read_run
from mini_r1.run.run_dir import RunDir
from mini_r1.tasks.countdown.countdown_task import CountdownTask
from mini_r1.tasks.countdown.problem import Problem
from mini_r1.tasks.countdown.rewards import judge
from mini_r1.training.rollout import Completion
from rich.console import Console

SAMPLES = KEPT_SAMPLES + 2
EACH = 1 + KEPT_SAMPLES
TRAINERS_OWN = {"prompt", "reward", "advantage", "policy_step"}


def evaluated(run: RunDir, model: Path, limit: int | None = None) -> None:
    start = StartingPoint(str(model), None, "the tests' model")
    evaluate_run_or_model(
        str(run.path), samples=SAMPLES, limit=limit, every=True, start=start, console=Console(file=io.StringIO())
    )


def test_every_held_out_problem_at_every_step_reaches_the_report_and_the_terminal(
    run: RunDir, model_directory: Path, problems: list[Problem]
) -> None:
    evaluated(run, model_directory)

    # Written: rows as training writes them, all problems, few samples of each.
    made = Completion(problems[0], "prompt", [], [1], False, text="x", verdict=judge("x", problems[0]))
    for step in (0, 5, 10):
        rows = list(read_jsonl(run.evaluation / f"step-{step}-completions.jsonl"))
        assert [row["kind"] for row in rows] == ["greedy", *["sampled"] * KEPT_SAMPLES] * len(problems)
        assert {(tuple(row["nums"]), row["target"]) for row in rows} == {(p.nums, p.target) for p in problems}
        for row in rows:
            assert set(row) - {"kind"} == set(made.record(CountdownTask(), 1)) - TRAINERS_OWN
            assert row["step"] == step
            again = judge(row["completion"], Problem(tuple(row["nums"]), row["target"]))
            assert (row["reason"], row["rewards"]["equation"]) == (again.reason, again.right)
        figures = json.loads((run.evaluation / f"step-{step}.json").read_text())
        greedy = [row["rewards"]["equation"] for row in rows if row["kind"] == "greedy"]
        assert sum(greedy) / len(greedy) == round(figures["greedy"] * len(greedy)) / len(greedy)

    # Read by the report: one problem's answers over the steps.
    samples = collect_samples([read_run(run.path)], 20_000)
    assert len(samples) == samples.total == 3 * EACH * len(problems)
    first = samples.columns["problem"][0]
    seen = [i for i in range(len(samples)) if samples.columns["problem"][i] == first]
    assert {samples.columns["step"][i] for i in seen} == {0, 5, 10}
    kinds = [KINDS[kind] for kind in samples.columns["kind"]]
    assert kinds.count("held out, greedy") == 3 * len(problems)
    assert samples.columns["reward"] == [None] * len(samples)

    # Read by `mini-r1 samples`.
    out, said = io.StringIO(), io.StringIO()
    print_completions(
        run, CompletionFilter(steps=(5, 5)), held_out=True, limit=0, last=False, full=False, as_json=False,
        out=Console(file=out, width=80), progress=Console(file=said),
    )  # fmt: skip
    assert out.getvalue().count("step 5 | ") == EACH * len(problems)
    assert out.getvalue().count("step 5 | greedy | [") == len(problems)


def test_who_looks_for_figures_takes_none_of_it(run: RunDir, model_directory: Path) -> None:
    evaluated(run, model_directory, limit=2)
    assert sorted(branch_contents._logs(run)[0]) == [f"logs/evaluation/step-{step}-limit-2.json" for step in (0, 10, 5)]
    read = read_run(run.path)
    assert len(read.evaluations) == 3
    assert not [sentence for sentence in read.missing if "evaluation/" in sentence or "were kept" in sentence]
    assert listing.list_run(run.path, time.time()).success_from == "held out, step 10, 2 problems"
    for path in run.evaluation.glob("*-completions.jsonl"):
        path.unlink()
    (sentence,) = [text for text in read_run(run.path).missing if "were kept" in text]
    assert sentence == "no answers to held-out problems were kept: `mini-r1 evaluate --again` keeps them"
