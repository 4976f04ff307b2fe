"""Evaluation during training: on held-out problems, periodically, and without an effect on training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from mini_r1.cli.training_commands import train
from mini_r1.errors import ExitCode, KitError
from mini_r1.run.reader import read_metrics
from mini_r1.run.run_dir import RunDir
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

Recipe = Callable[..., Path]


def test_stock_crashes_when_it_evaluates(untrained: Path, tmp_path: Path) -> None:
    """Row 5 (open-r1#216)."""
    rows = datasets.Dataset.from_list([{"prompt": "1 2 3"}] * 2)
    trainer = GRPOTrainer(
        AutoModelForCausalLM.from_pretrained(untrained),
        reward_funcs=lambda prompts, completions: [0.0] * len(completions),
        args=GRPOConfig(
            str(tmp_path), max_steps=1, eval_strategy="steps", eval_steps=1, per_device_train_batch_size=2,
            gradient_accumulation_steps=1, num_generations=2, max_completion_length=4, report_to=[], use_cpu=True,
        ),  # fmt: skip
        train_dataset=rows, eval_dataset=rows, processing_class=AutoTokenizer.from_pretrained(untrained),
    )  # fmt: skip
    with pytest.raises(AttributeError, match="'list' object has no attribute 'get'"):
        trainer.train()


def run_of(small_recipe: Recipe, folder: Path, **changes: Any) -> RunDir:
    assert train(str(small_recipe(**changes)), [], folder) == ExitCode.FINISHED
    return RunDir(folder)


def test_the_kit_evaluates_periodically_and_trains_the_same(small_recipe: Recipe, tmp_path: Path) -> None:
    plain = run_of(small_recipe, tmp_path / "plain", max_steps=5)
    evaluated = run_of(
        small_recipe, tmp_path / "evaluated", max_steps=5, eval_strategy="steps", eval_steps=2, eval_on_start=True
    )
    rows = {row["step"]: row for row in read_metrics(evaluated)}
    assert [step for step, row in rows.items() if "eval_success" in row] == [0, 2, 4, 5]  # the last step always
    for step in (0, 2, 4, 5):
        assert rows[step]["eval_problems"] == 6
        assert 0 <= rows[step]["eval_success"] <= 1
        assert {"eval_reward", "eval_rewards/format", "eval_completion_length", "eval_success/3_numbers"} <= set(
            rows[step]
        )
    assert {row["loss"] for row in read_metrics(plain)} == {rows[step]["loss"] for step in range(1, 6)}
    weights = load_file(plain.checkpoints / "step-5" / "model.safetensors")
    for name, tensor in load_file(evaluated.checkpoints / "step-5" / "model.safetensors").items():
        assert tensor.equal(weights[name]), name


def test_at_most_eval_problems_are_evaluated(small_recipe: Recipe, tmp_path: Path) -> None:
    run = run_of(small_recipe, tmp_path / "run", max_steps=1, eval_strategy="steps", eval_problems=4)
    assert read_metrics(run)[0]["eval_problems"] == 4


def test_evaluation_without_held_out_problems_is_refused(small_recipe: Recipe, tmp_path: Path) -> None:
    """Two rows with one key cannot be parted."""
    data = tmp_path / "rows.jsonl"
    data.write_text('{"nums": [1, 2, 3], "target": 6}\n' * 2)
    recipe = small_recipe(eval_strategy="steps", dataset_id_or_path=str(data))
    with pytest.raises(KitError, match=r"of 2 problems test_fraction 0\.25 holds out none"):
        train(str(recipe), [], tmp_path / "run")
