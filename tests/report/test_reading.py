"""A run directory in any state is read, and what is missing is listed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from mini_r1.console import text
from mini_r1.errors import KitError
from mini_r1.report.plots import main_series, make_plots, wilson
from mini_r1.report.summary import attempt_rows, evaluation_rows, summarise
from mini_r1.run.files import write_json
from mini_r1.run.reader import read_run
from mini_r1.values import interval, number

from tests.report.made_run import START, make_run

DAMAGED = (b"", b"{", b"[1]", b"\xff\xfe", b'{"attempts": 5, "step": "x"}', b"[" * 9000)


def test_a_whole_run_is_read(run_path: Path) -> None:
    run = read_run(run_path)
    assert (run.name, run.health.state, run.step, run.planned) == ("first", "finished", 60, 60)
    assert run.points("success")[0] == [float(step) for step in range(1, 61)]
    assert [(a.first_step, a.last_step) for a in run.attempts] == [(1, 34), (30, 60)]
    assert make_plots([run])[0].restarts == [30]
    assert attempt_rows(run)[0][2] == "1 to 34 (repeated from 30 on)"
    assert [e.step for e in main_series(run)] == [0, 20, 40, 60]


def test_gpu_hours_count_every_start_and_every_gpu(run_path: Path) -> None:
    run = read_run(run_path)
    seconds = sum(a.seconds or 0 for a in run.attempts)
    assert [a.gpus for a in run.attempts] == [4, 4]
    made = summarise(run, 2.5)
    assert made.gpu_hours == pytest.approx(seconds * 4 / 3600)
    assert made.cost == pytest.approx(made.gpu_hours * 2.5)
    assert any(tile.label == "GPU-hours" and "at 2.5 a GPU-hour" in tile.detail for tile in made.tiles)
    assert summarise(run, None).cost is None


@pytest.mark.parametrize(
    ("facts", "gpus", "line"),
    [
        ({"workers": 1, "vllm_device": None}, 1, "NVIDIA H100 80GB HBM3"),
        ({"workers": 1, "vllm_device": "0", "vllm_shared": True}, 1, "NVIDIA H100 80GB HBM3; vLLM on the same"),
        ({"workers": 3, "vllm_device": "3"}, 4, "NVIDIA H100 80GB HBM3; 3 workers; vLLM on one more"),
        (
            {"workers": 6, "vllm_device": "6,7", "vllm_shared": False},
            8,
            "NVIDIA H100 80GB HBM3; 6 workers; vLLM on 2 more",
        ),
    ],
)
def test_vllm_s_devices_count_unless_they_are_a_worker_s(
    tmp_path: Path, facts: dict[str, Any], gpus: int, line: str
) -> None:
    run = make_run(tmp_path / "run", steps=2)
    record = run.read_record()
    record["attempts"][0].update(facts)
    write_json(run.run_file, record)
    data = read_run(run.path)
    assert data.attempts[0].gpus == gpus
    assert attempt_rows(data)[0][-1] == line


def test_a_cpu_costs_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=2)
    record = run.read_record()
    record["attempts"][0].update(devices=["cpu x 2 (1 threads)"], vllm_device=None, workers=1)
    write_json(run.run_file, record)
    made = summarise(read_run(run.path), 10.0)
    assert made.gpu_hours == 0
    assert [tile.detail for tile in made.tiles if tile.label == "Time"] == ["on the CPU, no GPU"]


def test_a_folder_without_any_part_of_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KitError, match="holds no run"):
        read_run(tmp_path)
    with pytest.raises(KitError, match="holds no run"):
        read_run(tmp_path / "nowhere")


def test_half_a_run_lists_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "attempts" / "1").mkdir(parents=True)
    run = read_run(tmp_path)
    said = " ".join(run.missing)
    for word in ("state.json", "run.json", "recipe", "no step has been logged", "no held-out evaluation"):
        assert word in said
    assert run.state_sentence() == "not started at step 0"
    assert summarise(run, 1.0).sentence == "Its success is not known yet."


@pytest.mark.parametrize("name", ["state.json", "run.json", "recipe.yaml", "evaluation/step-20.json"])
@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b"\xff\xfe", b'{"attempts": 5, "step": "x"}', b"[" * 9000], ids=range(6)
)
def test_a_damaged_file_loses_only_its_own_content(tmp_path: Path, name: str, content: bytes) -> None:
    run = make_run(tmp_path / "run", steps=3, evaluate_every=20)
    (run.path / name).write_bytes(content)
    read = read_run(run.path)
    assert len(read.points("success")[0]) == 3
    assert summarise(read, 1.0).tiles


@pytest.mark.parametrize(
    "row",
    [
        {"step": "4"},
        {"step": None},
        {"step": -1, "success": 1},
        {"success": 0.5},
        {"step": 2, "success": "high", "kl": [1], "trouble": "no mapping", "time": "noon"},
        {"step": 2, "success": 10**400},
        {"step": 10**30},
    ],
)
def test_an_invalid_row_is_skipped(tmp_path: Path, row: dict[str, Any]) -> None:
    run = make_run(tmp_path / "run", steps=3)
    for name in ("metrics.jsonl", "completions.jsonl"):
        with (run.attempts / "1" / name).open("ab") as file:
            file.write(json.dumps(row).encode() + b'\n\xff\xfe\n{"step": 3, "succ')
    read = read_run(run.path)
    assert summarise(read, None).tiles
    assert read.step == 3
    assert all(number(value) is not None for value in read.points("success")[1])


def test_pipes_devices_and_folders_count_as_missing(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=3, evaluate_every=2)
    attempt = run.attempts / "2"
    attempt.mkdir()
    os.mkfifo(attempt / "metrics.jsonl")
    (attempt / "completions.jsonl").symlink_to("/dev/zero")
    (run.evaluation / "step-4.json").symlink_to("/dev/zero")
    (run.evaluation / "step-6.json").mkdir()
    run.recipe_file.unlink()
    os.mkfifo(run.recipe_file)
    read = read_run(run.path)
    assert len(read.points("success")[0]) == 3
    said = " ".join(read.missing)
    for words in ("recipe.yaml is not there", "step-4.json in evaluation/ cannot", "step-6.json in evaluation/ cannot"):
        assert words in said


def test_figures_that_overflow_count_as_absent(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=3, evaluate_every=2)
    huge = {"step": 3, "reward": 1.7e308, "loss": -1.7e308, "time/rollout": 1.7e308, "time/update": 1.7e308}
    with (run.attempts / "1" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({**huge, "time": 1.7e308}) + "\n")
    limits = {"sampled": 0.5, "ci95": [0, 1.7e308], "pass_at_k": {"9" * 5000: {"value": 0.5}, "2": {"value": 0.6}}}
    write_json(run.evaluation / "step-2.json", {**limits, "problems": 9, "provenance": {"step": 2}})
    read = read_run(run.path)
    assert read.points("reward")[0] == [1.0, 2.0]
    assert [e.interval("ci95") for e in read.evaluations if e.step == 2] == [None]
    assert [row[4] for row in evaluation_rows(read) if row[0] == "2"] == ["@2 60 %"]


def test_a_rollout_ahead_counts_in_a_step_only_as_long_as_it_is_waited_for(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=3)
    before = next(plot for plot in make_plots([read_run(run.path)]) if plot.name == "seconds")
    assert [curve.label for curve in before.curves][:2] == ["rollout", "update"]
    file = run.attempts / "1" / "metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps({**row, "time/rollout": 20.0, "time/wait": 1.5}) + "\n" for row in rows))
    read = read_run(run.path)
    after = next(plot for plot in make_plots([read]) if plot.name == "seconds")
    assert [curve.label for curve in after.curves] == ["wait for the rollout", *(c.label for c in before.curves[1:])]
    assert after.curves[0].points[1] == [1.5] * 3
    assert "Meanwhile vLLM samples the next step, 20.0 s on average." in after.note
    (both, _) = next(plot for plot in make_plots([read, read]) if plot.name == "seconds").curves
    assert both.points[1] == pytest.approx([sum(c.points[1][i] for c in after.curves) for i in range(3)])


def test_a_run_without_a_heartbeat_is_called_killed(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=3, state="running")
    state = {**run.read_state(), "phase": "rollout", "hang_timeout_s": 600}
    write_json(run.state_file, state)
    assert read_run(run.path).state_sentence().startswith("running at step 3 of 3: phase rollout for ")
    write_json(run.state_file, {**state, "heartbeat": START})
    assert read_run(run.path).state_sentence().startswith("dead at step 3 of 3: phase rollout began ")


def test_warnings_are_listed(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=3)
    with (run.attempts / "1" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 3, "trouble": {"kl": "KL is\x1b[31m 7"}, "time": START}) + "\n")
    assert read_run(run.path).troubles == [(3, "KL is\\x1b[31m 7")]


def test_values_from_files_are_checked() -> None:
    assert [number(v) for v in (1, 0.5, True, "1", None, float("nan"), float("inf"), 10**400)] == [1, 0.5] + [None] * 6
    assert interval([0.1, 0.2]) == (0.1, 0.2)
    assert [interval(v) for v in ([0.2, 0.1], [1], "ab", None, [0.1, float("nan")])] == [None] * 5
    assert text("a\n\tb\x00") == "a b\\x00"
    assert len(text("x" * 10_000)) == 400
    assert text(10**5000)


def test_the_interval_of_a_share_is_wilsons() -> None:
    # Newcombe 1998, table I: 81 of 263 gives 0.2553 to 0.3662.
    low, high = wilson(81 / 263, 263) or (0, 0)
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)
    assert wilson(0.5, 0) is None


def test_the_headline_has_the_success_of_random_search(tmp_path: Path) -> None:
    """After the tries of one answer, or the next number that was measured: 1.7 tries here, so 4."""
    run = read_run(make_run(tmp_path / "run", steps=20, evaluate_every=10).path)
    assert main_series(run)[-1].figure("tries") == pytest.approx(1.68, abs=0.01)
    said = summarise(run, None).sentence
    assert "A random solver solves 17 % of them in 4 tries" in said
    for evaluated in run.evaluations:
        del evaluated.values["baselines"]
    assert "andom solver" not in summarise(run, None).sentence
