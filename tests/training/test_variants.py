"""What a recipe may switch on, each through two real steps."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mini_r1.cli.training_commands import train
from mini_r1.errors import ExitCode
from mini_r1.run.reader import read_completions, read_metrics
from mini_r1.run.run_dir import RunDir

from tests.conftest import ASSETS


@pytest.mark.parametrize(
    "changes",
    [
        {"scoring": "original", "rewards": {"format": 1.0, "equation": 1.0, "random": 1.0}},
        {"rewards": {"words": 0.5, "length": 0.5, "random": 1.0}},
        {"prompt_style": "notebook"},
        {"bf16": True},
        {"torch_dtype": "bfloat16"},
        {"attn_implementation": "eager"},
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}},
        {"beta": 0.0},
        {"logging_steps": 2},
        {"max_steps": -1, "num_train_epochs": 0.3},
        {"top_p": 0.95, "top_k": 100, "stop": list("BDEFGHJKOPQRVWXZ")},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_two_steps(small_recipe: Callable[..., Path], tmp_path: Path, changes: dict[str, Any]) -> None:
    run = RunDir(tmp_path / "run")
    assert train(str(small_recipe(**{"max_steps": 2, "save_steps": 1, **changes})), [], run.path) == ExitCode.FINISHED
    metrics = read_metrics(run)
    assert metrics[-1]["step"] == 2
    for row in metrics:
        assert all(math.isfinite(row[key]) for key in ("loss", "grad_norm", "reward", "completion_length"))
        assert row["grad_norm"] > 0
    record = next(iter(read_completions(run)))
    assert {"format", "equation", "format_original", "equation_original"} <= set(record["rewards"])
    if changes.get("scoring") == "original":
        chosen = ("format_original", "equation_original", "random")
        assert record["reward"] == sum(record["rewards"][name] for name in chosen)
    if changes.get("prompt_style") == "notebook":
        assert "(1 + 2) / 3 = 1 </answer>" in record["prompt"]
    if "torch_dtype" in changes or "attn_implementation" in changes:
        model = run.read_record()["attempts"][0]["model"]
        assert model["dtype"] == changes.get("torch_dtype", "float32")
        assert model["attention"] == changes.get("attn_implementation", "sdpa")
    if "stop" in changes:
        ended = 0
        for each in read_completions(run):
            stopped = each["completion"].endswith(tuple(changes["stop"]))
            assert stopped == any(letter in each["completion"] for letter in changes["stop"])
            assert each["tokens"] == 24 or stopped or not each["truncated"]
            assert not (stopped and each["truncated"])
            ended += stopped
        assert ended > 5
    assert ("kl" in metrics[-1]) == (changes.get("beta") != 0.0)


def test_shares_of_the_run_and_a_test_split(small_recipe: Callable[..., Path], tmp_path: Path) -> None:
    data = tmp_path / "set"
    data.mkdir()
    lines = (ASSETS / "countdown_rows.jsonl").read_text().splitlines(keepends=True)
    (data / "train.jsonl").write_text("".join(lines[:16]))
    (data / "test.jsonl").write_text("".join(lines[16:]))
    run = RunDir(tmp_path / "run")
    recipe = small_recipe(
        max_steps=4, save_steps=0.5, logging_steps=0.5, dataset_id_or_path=str(data), dataset_test_split="test"
    )
    assert train(str(recipe), [], run.path) == ExitCode.FINISHED
    assert [row["step"] for row in read_metrics(run)] == [2, 4]
    assert [saved.step for saved in run.complete_snapshots()] == [4, 2]
    held_out = sorted(json.loads(line)["target"] for line in run.held_out_file.read_text().splitlines())
    assert held_out == sorted(json.loads(line)["target"] for line in lines[16:])
