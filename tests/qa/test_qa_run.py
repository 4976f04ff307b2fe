"""A run of the second task, end to end: warm start, training, evaluation, report, samples and play."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mini_r1.run.files import read_jsonl
from mini_r1.run.reader import read_metrics
from mini_r1.run.run_dir import RunDir

from tests.training.workers import run_forked

SMALL = (
    "max_steps=2", "warmup_steps=0", "per_device_train_batch_size=4", "gradient_accumulation_steps=1",
    "num_generations=4", "max_completion_length=24", "warm_start.steps=20", "warm_start.traces=64",
    "warm_start.min_accuracy=0", "warm_start.hidden_size=32", "warm_start.layers=1", "dataset_rows=60",
    "eval_strategy=steps", "eval_problems=4", "save_steps=2", "rewards={format: 1, answer: 1, random: 1}",
)  # fmt: skip


def test_a_run_of_questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINI_R1_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "run"

    def kit(*arguments: str | Path) -> str:
        done = run_forked(*arguments, folder=tmp_path / "logs")
        assert done.code == 0, done.errors
        return done.output

    kit("train", "qa-cpu", "--run-dir", path, *(f"--set={each}" for each in SMALL))
    run = RunDir(path)
    row = read_metrics(run)[0]
    assert {"success", "reflections", "rewards/answer", "rewards/random"} <= set(row)
    assert any(name.startswith("success/") and name.endswith("_digits") for name in row)
    assert "tries" not in row
    completions = list(read_jsonl(path / "attempts" / "1" / "completions.jsonl"))
    assert {each["task"] for each in completions} == {"qa"}
    assert {"question", "answer", "completion", "reason"} <= set(completions[0])
    assert len(list(read_jsonl(run.held_out_file))) == 6
    assert "question" in (run.completion_samples / "completion_samples.txt").read_text()

    result = json.loads(kit("evaluate", path, "--newest", "--samples", "1", "--json"))
    assert result["provenance"]["task"] == "qa"
    assert set(result["by_digits"]) <= {"2", "3"}
    assert sum(figures["problems"] for figures in result["by_operators"].values()) == 6
    assert set(result["baselines"]) <= {"untrained"}
    table = kit("evaluate", path, "--newest", "--samples", "1")
    assert "digits" in table
    assert "tries" not in table
    assert "What is" in kit("samples", path, "--limit", "2")
    kit("report", path, "--markdown", tmp_path / "pages")
    page, markdown = (path / "report.html").read_text(), (tmp_path / "pages" / "report.md").read_text()
    assert "2 digits" in page
    for text in (page, markdown):
        assert "Truncated completions" in text
        for of_countdown in (
            "Compared with the original",
            "The original's figures",
            "Tries per answer",
            "same numbers",
        ):
            assert of_countdown not in text
    played = json.loads(kit("play", path, "--question", "What is 34 + 25?", "--answer", "59", "--json"))
    assert played["solution"] == "59"
    assert "tries" not in played["answers"]["trained"]
