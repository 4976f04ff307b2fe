"""Which completions are on a page, and how they are packed."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import pytest
from mini_r1.report.samples_browser import FORMAT, ORIGINAL, RIGHT, SAYS_WAIT, Samples, collect_samples
from mini_r1.run.files import AppendFile
from mini_r1.run.reader import read_completions, read_run

from tests.report.made_run import HOSTILE, make_run


def of_steps(samples: Samples) -> dict[int, int]:
    steps = samples.columns["step"]
    return {step: steps.count(step) for step in sorted(set(steps))}


def test_all_completions_are_shown_if_they_fit(run_path: Path) -> None:
    run = read_run(run_path)
    samples = collect_samples([run], 20_000)
    rows = list(read_completions(run.run))
    assert len(samples) == samples.total == len(rows)
    assert [len(column) for column in samples.columns.values()] == [len(rows)] * len(samples.columns)
    for i, row in enumerate(rows):
        assert bool(samples.columns["flags"][i] & RIGHT) == bool(row["rewards"]["equation"])
        assert bool(samples.columns["flags"][i] & FORMAT) == bool(row["rewards"]["format"])
        assert bool(samples.columns["flags"][i] & ORIGINAL) == bool(row["rewards"]["equation_original"])
        assert samples.values("reasons")[samples.columns["reason"][i]]
        numbers, _, target = samples.values("problems")[samples.columns["problem"][i]].partition(" → ")
        assert (sorted(map(int, numbers.split(", "))), int(target)) == (sorted(row["nums"]), row["target"])


def test_too_many_are_thinned_evenly_over_the_steps(run_path: Path) -> None:
    samples = collect_samples([read_run(run_path)], 600)
    assert len(samples) == 600
    counts = of_steps(samples)
    assert set(counts) == set(range(1, 61))
    assert min(counts.values()) >= 3
    few = collect_samples([read_run(run_path)], 20)
    assert len(few) == 20


def test_the_first_of_each_story_survives_thinning(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=40, per_step=40)
    row = next(r for r in read_completions(run) if r["rewards"]["equation"])
    row |= {"step": 3, "completion": "Wait, the only one.\n</think>\n<answer>1</answer>", "reflections": 1}
    others = [r for r in read_completions(run) if "wait" not in r["completion"].lower()]
    path = run.attempts / "1" / "completions.jsonl"
    path.unlink()
    rows = sorted([*others, row], key=lambda r: r["step"])
    with closing(AppendFile(path)) as lines:
        lines.write_rows(*rows)
    samples = collect_samples([read_run(run.path)], 400)
    assert len(samples) == 400
    assert sum("the only one" in text for text in samples.columns["text"]) == 1


@pytest.mark.parametrize(
    ("thought", "waits"),
    [("Wait, no.", True), ("so\nWAIT", True), ("I can't\nwait to try", False), ("a waiter", False), ("hm", False)],
)
def test_a_wait_interrupts_the_thought(tmp_path: Path, thought: str, waits: bool) -> None:
    run = make_run(tmp_path / "run", steps=1, per_step=1, extra=(f"{thought}\n</think>\n<answer>wait</answer>",))
    samples = collect_samples([read_run(run.path)], 20_000)
    assert bool(samples.columns["flags"][-1] & SAYS_WAIT) == waits


def test_a_long_run_gets_the_space_that_a_short_one_leaves(run_path: Path, tmp_path: Path) -> None:
    make_run(tmp_path / "short", steps=2, per_step=10)
    samples = collect_samples([read_run(run_path), read_run(tmp_path / "short")], 1_000)
    assert len(samples) == 1_000
    assert samples.columns["run"].count(1) == 20


def test_a_limit_of_0_takes_nothing(run_path: Path) -> None:
    assert len(collect_samples([read_run(run_path)], 0)) == 0


def test_long_text_is_cut_in_the_middle(run_path: Path) -> None:
    samples = collect_samples([read_run(run_path)], 20_000)
    longest = max(range(len(samples)), key=lambda i: samples.columns["clipped"][i])
    assert samples.columns["clipped"][longest] == 980_000
    assert len(samples.columns["text"][longest]) < 20_100


def test_hostile_text_is_packed_unchanged(run_path: Path) -> None:
    samples = collect_samples([read_run(run_path)], 20_000)
    again = json.loads(json.dumps(samples.to_json()))
    for text in HOSTILE.values():
        assert text in again["text"]


def test_kept_answers_to_held_out_problems_are_shown(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=4, evaluate_every=2)
    problem = next(iter(read_completions(run)))
    for step in (0, 2, 4):
        with closing(AppendFile(run.evaluation / f"step-{step}-completions.jsonl")) as lines:
            lines.write_rows({**problem, "step": step, "kind": "greedy"}, {**problem, "step": step, "kind": "sampled"})
    samples = collect_samples([read_run(run.path)], 20_000)
    assert samples.columns["kind"].count(1) == samples.columns["kind"].count(2) == 3


def test_unreadable_rows_are_counted(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=2)
    with closing(AppendFile(run.attempts / "1" / "completions.jsonl")) as lines:
        good = next(iter(read_completions(run)))
        lines.write_rows({"step": 2}, {**good, "nums": "many"}, {**good, "completion": 7}, {**good, "target": 10**30})
        lines.write_rows({**good, "rewards": None, "reason": None, "tokens": "x", "style": ["wordy"], "tries": -3})
    samples = collect_samples([read_run(run.path)], 20_000)
    assert samples.unreadable == 4
    assert samples.values("reasons")[samples.columns["reason"][-1]] == "no reason was logged"
