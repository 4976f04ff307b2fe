"""The reader of a run, on files written by hand: what each figure is, and what damaged files leave out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mini_r1.recipe.recipe_file import dump_recipe, find_recipe, load_recipe
from mini_r1.run.files import write_json, write_jsonl
from mini_r1.run.health import Health
from mini_r1.run.reader import (
    AttemptRecord,
    RunData,
    completions_file,
    count_vllm_processes,
    read_attempts,
    read_evaluations,
    read_held_out_completions,
    read_run,
)
from mini_r1.run.run_dir import RunDir

STARTED = "2026-01-02T03:04:05Z"
STARTED_S = 1767323045.0  # seconds since 1970, by `date --date 2026-01-02T03:04:05Z +%s`


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir(tmp_path / "run")
    run.evaluation.mkdir(parents=True)
    return run


def attempt(
    folder: Path, completions: list[int], *metrics: tuple[float, int], begin: float | None = 0
) -> AttemptRecord:
    """Make an attempt with completions of these steps, and with a time and a step for each row of metrics."""
    write_jsonl(folder / "completions.jsonl", ({"step": step, "text": "x"} for step in completions))
    times = ([at for at, _ in metrics], [float(step) for _, step in metrics])
    return AttemptRecord(1, folder, begin, times, {})


# --- attempts ---


@pytest.mark.parametrize(
    ("completions", "metrics", "first", "last"),
    [
        ([4, 4, 6], [(10, 5), (12, 7)], 4, 7),
        ([9], [(10, 5), (12, 7)], 9, 9),
        ([12, 3], [(10, 5)], 3, 12),
        ([], [(10, 5), (12, 7)], 5, 7),
        ([], [], None, None),
    ],
)
def test_an_attempt_trained_from_its_first_completion_to_its_last_row(
    tmp_path: Path, completions: list[int], metrics: list[tuple[float, int]], first: int | None, last: int | None
) -> None:
    made = attempt(tmp_path, completions, *metrics)
    assert (made.first_step, made.last_step) == (first, last)


def test_completions_that_are_no_file_are_not_opened(tmp_path: Path) -> None:
    (tmp_path / "completions.jsonl").mkdir()
    assert AttemptRecord(1, tmp_path, None, ([], []), {}).first_step is None


@pytest.mark.parametrize(
    ("begin", "metrics", "seconds"),
    [
        (100.0, [(110.0, 1), (120.0, 2), (150.0, 3)], 50.0),
        (100.0, [(90.0, 1)], 0.0),  # the clock was set back
        (100.0, [], None),
        (None, [(110.0, 1)], None),
    ],
)
def test_an_attempt_took_from_its_beginning_to_its_last_row(
    tmp_path: Path, begin: float | None, metrics: list[tuple[float, int]], seconds: float | None
) -> None:
    assert attempt(tmp_path, [], *metrics, begin=begin).seconds == seconds


@pytest.mark.parametrize(
    ("facts", "gpus"),
    [
        ({}, 0),
        ({"devices": "abc", "workers": 2}, 0),
        ({"devices": [], "workers": 2}, 0),
        ({"devices": ["cpu x 2 (1 threads)"], "workers": 2}, 0),
        ({"devices": ["an H100", "cpu"]}, 2),
        ({"devices": ["an H100", "an H100"], "workers": 3}, 3),
        ({"devices": ["an H100", "an H100"], "workers": 1}, 1),
        ({"devices": ["an H100", "an H100"], "workers": 0}, 2),
        ({"devices": ["an H100", "an H100"], "workers": "3"}, 2),
        ({"devices": ["an H100", "an H100"], "workers": 100_000}, 2),
        ({"devices": ["an H100", "an H100"], "workers": 99_999}, 99_999),
        ({"devices": ["an H100"], "workers": 1, "vllm_device": "1,2"}, 3),
        ({"devices": ["an H100"], "workers": 1, "vllm_device": "0", "vllm_shared": True}, 1),
        ({"devices": ["an H100"], "workers": 1, "vllm_device": "1", "vllm_shared": "yes"}, 2),
    ],
)
def test_an_attempt_held_a_gpu_for_each_worker_and_vllm_s(tmp_path: Path, facts: dict[str, Any], gpus: int) -> None:
    assert AttemptRecord(1, tmp_path, None, ([], []), facts).gpus == gpus


@pytest.mark.parametrize(
    ("device", "count"), [(None, 0), ("cpu", 1), ("3", 1), ("6,7", 2), (7, 1), ("," * 5_000, 1_001)]
)
def test_vllm_has_a_process_for_each_device(device: object, count: int) -> None:
    assert count_vllm_processes({"vllm_device": device}) == count


def test_attempts_are_those_with_a_folder_or_an_entry(run: RunDir) -> None:
    entries = [5, {"started": STARTED}, {"attempt": "1"}, {"attempt": True}, {"attempt": 1, "started": STARTED}]
    write_json(run.run_file, {"attempts": [*entries, {"attempt": 3, "started": "yesterday"}]})
    rows = [{"step": 7, "time": 20.0}, {"step": "x", "time": 30.0}, {"step": 8}, {"step": 9, "time": 40.0}]
    for index in (1, 2):
        (run.attempts / str(index)).mkdir(parents=True)
        write_jsonl(run.attempts / str(index) / "metrics.jsonl", rows)
    first, second, third = read_attempts(run)
    assert [found.number for found in (first, second, third)] == [1, 2, 3]
    assert [found.folder for found in (first, third)] == [run.attempts / "1", run.attempts / "3"]
    assert (first.begin, second.begin, third.begin) == (STARTED_S, 20.0, None)
    assert first.times == second.times == ([20.0, 40.0], [7.0, 9.0])
    assert third.times == ([], [])
    assert (first.facts, second.facts) == (entries[-1], {})


@pytest.mark.parametrize("entries", [None, {"attempt": 1}, "1"])
def test_without_a_list_of_attempts_the_folders_count(run: RunDir, entries: object) -> None:
    write_json(run.run_file, {"attempts": entries})
    (run.attempts / "4").mkdir(parents=True)
    assert [found.number for found in read_attempts(run)] == [4]


# --- held-out results ---


def test_evaluations_by_file_name_with_what_cannot_be_read(run: RunDir) -> None:
    facts = {"step": 3, "problems_sha256": "0123456789abcdef", "limit": 20}
    files = {
        "a-plan.json": {"hours": 1},  # another kind of file
        "step-3-limit-20.json": {"greedy": 0.5, "sampled": 0.25, "problems": 20, "provenance": facts},
        "step-4.json": {"sampled": 0.25, "ci95": [0.2, 0.3]},
        "step-5.json": {"greedy": 0.5, "provenance": {"step": 6}},
        "step-7.json": {"greedy": "x"},
        "step-8.json": {"greedy": 0.5, "provenance": {"step": "8"}},
        "step9.json": {"greedy": 0.5},
    }
    for name, value in files.items():
        write_json(run.evaluation / name, value)
    (run.evaluation / "step-10.json").write_text("{")
    missing: list[str] = []
    found = read_evaluations(run, missing)
    assert [(each.file, each.step, each.problems, each.series) for each in found] == [
        ("step-3-limit-20.json", 3, 20, "01234567 20 20"),
        ("step-4.json", 4, 0, " 0 None"),
        ("step-5.json", 6, 0, " 0 None"),
    ]
    assert [each.limit for each in found] == [20, None, None]
    assert found[0].figure("greedy") == 0.5
    assert found[1].figure("greedy") is None
    assert found[1].interval("ci95") == (0.2, 0.3)
    unreadable = ("step-10.json", "step-7.json", "step-8.json", "step9.json")
    assert missing == [f"{name} in evaluation/ cannot be read" for name in unreadable]


def test_an_evaluation_of_another_file_has_no_limit_in_its_name(run: RunDir) -> None:
    write_json(run.evaluation / "step-3-01234567-limit-5.json", {"greedy": 0.5})
    (found,) = read_evaluations(run, [])
    assert (found.step, found.limit) == (3, None)


def test_held_out_answers_are_those_of_each_step_s_largest_evaluation(run: RunDir) -> None:
    for name in ("step-4-limit-2", "step-4-limit-10", "step-2", "step-2-limit-99", "step-4-01234567", "step-10"):
        write_jsonl(completions_file(run.evaluation / f"{name}.json"), [{"step": 1, "by": name}, {"by": "no step"}])
    assert [row["by"] for row in read_held_out_completions(run)] == ["step-2", "step-4-limit-10", "step-10"]


# --- a whole run ---


@pytest.mark.parametrize(
    ("state", "logged", "step"),
    [({}, [], 0), ({"step": 5}, [], 5), ({"step": "5"}, [3, 7, 6], 7), ({"step": 9}, [7], 9), ({"step": -1}, [], 0)],
)
def test_the_step_is_the_highest_of_state_and_metrics(tmp_path: Path, state: Any, logged: list[int], step: int) -> None:
    data = RunData(RunDir(tmp_path), "run", state=state, rows=[{"step": each} for each in logged])
    assert data.step == step


@pytest.mark.parametrize(("steps", "planned"), [(None, None), (-1, None), (0, None), ("7", None), (1, 1), (450, 450)])
def test_the_planned_steps_are_the_recipe_s(tmp_path: Path, steps: object, planned: int | None) -> None:
    data = RunData(RunDir(tmp_path), "run", Health("finished", "", 0), recipe={"max_steps": steps})
    assert data.planned == planned
    assert data.state_sentence() == (f"finished at step 0 of {planned}" if planned else "finished at step 0")


def test_points_are_the_rows_with_a_number(tmp_path: Path) -> None:
    rows = [{"step": 1, "kl": 0.5}, {"step": 2, "kl": "x"}, {"step": 3}, {"step": 4, "kl": 1}]
    assert RunData(RunDir(tmp_path), "run", rows=rows).points("kl") == ([1.0, 4.0], [0.5, 1.0])


NO_STEP = "no step has been logged yet"
NO_CURVES = "there are no training curves"
NO_KL = "no KL: beta is 0, so the run has no reference model"
NOT_EVALUATED = "no held-out evaluation of a snapshot"
NO_ANSWERS = "no answers to held-out problems were kept"
NOT_DURING = "no held-out success during training: the recipe has no eval_steps"


def missing(run: RunDir, *overrides: str, rows: tuple[dict[str, Any], ...] = ()) -> list[str]:
    """Return what a run with a recipe and these rows of metrics is said to lack."""
    write_json(run.state_file, {"state": "finished", "step": 1})
    write_json(run.run_file, {"attempts": [{"attempt": 1}]})
    run.recipe_file.write_text(dump_recipe(load_recipe(find_recipe("demo-cpu"), list(overrides))))
    (run.attempts / "1").mkdir(parents=True, exist_ok=True)
    write_jsonl(run.attempts / "1" / "metrics.jsonl", rows)
    return read_run(run.path).missing


@pytest.mark.parametrize(("every", "clause"), [(1, ""), (2, " (the recipe logs every 2 steps)")])
def test_without_a_step_there_are_no_curves(run: RunDir, every: int, clause: str) -> None:
    said = missing(run, f"logging_steps={every}", "beta=0")
    assert f"{NO_STEP}{clause}: {NO_CURVES}" in said
    assert NO_KL not in said


def test_without_a_reference_model_there_is_no_kl(run: RunDir) -> None:
    row = {"step": 1, "loss": 0.5}
    assert NO_KL in missing(run, "beta=0", rows=(row,))
    assert NO_KL not in missing(run, "beta=0.1", rows=(row,))
    run.recipe_file.write_text("[")
    said = read_run(run.path).missing
    assert NO_KL not in said
    assert any(sentence.startswith("the recipe cannot be read: ") for sentence in said)


def test_a_run_is_read_without_its_state_and_its_record(run: RunDir) -> None:
    assert not [sentence for sentence in missing(run) if ".json cannot be read" in sentence]
    assert read_run(run.path).name == "run"
    assert read_run(run.path, "another").name == "another"
    run.state_file.unlink()
    run.run_file.unlink()
    said = read_run(run.path).missing
    assert [sentence.partition(":")[0] for sentence in said[:2]] == [
        "state.json cannot be read",
        "run.json cannot be read",
    ]


def test_held_out_results_that_are_missing(run: RunDir) -> None:
    def said(part: str) -> bool:
        return any(sentence.startswith(part) for sentence in missing(run))

    assert said(NOT_EVALUATED)
    assert not said(NO_ANSWERS)
    result = run.evaluation / "step-1.json"
    write_json(result, {"greedy": 0.5})
    assert not said(NOT_EVALUATED)
    assert said(NO_ANSWERS)
    write_jsonl(completions_file(result), [{"step": 1, "kind": "greedy"}])
    assert not said(NO_ANSWERS)


def test_success_during_training_that_is_missing(run: RunDir) -> None:
    measured = {"step": 1, "loss": 0.5, "eval_success": 0.25}
    assert NOT_DURING in missing(run, rows=({"step": 1, "loss": 0.5},))
    assert NOT_DURING not in missing(run, rows=(measured,))
    assert NOT_DURING not in missing(run, "eval_strategy=steps", "eval_steps=5", rows=({"step": 1, "loss": 0.5},))
