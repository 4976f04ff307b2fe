"""DeepSpeed configurations: the shipped ones are what the trainer wants, and a wrong one is a sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mini_r1.errors import ExitCode, KitError
from mini_r1.recipe.deepspeed_file import DeepSpeedFile, find_deepspeed
from mini_r1.recipe.shipped_files import shipped_files


@pytest.mark.parametrize(
    ("name", "stage", "offloads"), [("zero2", 2, False), ("zero3", 3, False), ("zero3-offload", 3, True)]
)
def test_the_shipped_ones(name: str, stage: int, offloads: bool) -> None:
    found = find_deepspeed(name)
    assert (found.stage, found.offloads("optimizer"), found.offloads("param")) == (stage, offloads, offloads)
    assert found.values == json.loads(shipped_files("deepspeed")[name].read_text())
    # DeepSpeed's own CPU Adam would be compiled at the first step, which needs nvcc on the node.
    assert not offloads or found.values["zero_force_ds_cpu_optimizer"] is False


def test_all_shipped_ones_are_known() -> None:
    assert list(shipped_files("deepspeed")) == ["zero2", "zero3", "zero3-offload"]


def changed(tmp_path: Path, change: Callable[[dict[str, Any]], object]) -> str:
    values = find_deepspeed("zero3").values
    change(values)
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(values))
    return str(path)


def test_one_of_the_user_s_own_is_found_by_path(tmp_path: Path) -> None:
    path = changed(tmp_path, lambda values: values["zero_optimization"].update(stage3_prefetch_bucket_size=0))
    assert find_deepspeed(path).values["zero_optimization"]["stage3_prefetch_bucket_size"] == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda v: v["zero_optimization"].update(stage=1), "zero_optimization.stage must be 2 or 3"),
        (lambda v: v.pop("zero_optimization"), "zero_optimization.stage must be 2 or 3"),
        (lambda v: v.update(train_batch_size=24), 'train_batch_size must be "auto", the recipe decides it'),
        (lambda v: v.pop("gradient_accumulation_steps"), 'gradient_accumulation_steps must be "auto"'),
        (
            lambda v: v["zero_optimization"].pop("stage3_gather_16bit_weights_on_model_save"),
            "set zero_optimization.stage3_gather_16bit_weights_on_model_save: true",
        ),
    ],
)
def test_what_the_trainer_cannot_work_with_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], said: str
) -> None:
    with pytest.raises(KitError, match="DeepSpeed configuration") as caught:
        find_deepspeed(changed(tmp_path, change))
    assert said in caught.value.message
    assert caught.value.exit_code == ExitCode.CONFIG


def bucket(**zero: Any) -> DeepSpeedFile:
    return DeepSpeedFile("mine.json", {"zero_optimization": {"stage": 2, "overlap_comm": True, **zero}})


def test_only_an_automatic_bucket_of_zero2_is_filled_in() -> None:
    def filled(file: DeepSpeedFile, trained: int, largest: int) -> Any:
        return file.fill_bucket(trained, largest).values["zero_optimization"].get("reduce_bucket_size")

    auto = bucket(reduce_bucket_size="auto")
    assert filled(auto, 3 * 10**9, 10**8) == 2 * 10**8
    assert filled(auto, 3 * 10**9, 3 * 10**8) == 3 * 10**8
    assert filled(auto, 5_000, 3_000) == 5_000  # an adapter, or a tiny model
    assert auto.values["zero_optimization"]["reduce_bucket_size"] == "auto"
    assert filled(bucket(reduce_bucket_size=1_000), 3 * 10**9, 10**8) == 1_000
    assert filled(bucket(), 3 * 10**9, 10**8) is None
    assert filled(find_deepspeed("zero3"), 3 * 10**9, 10**8) == "auto"


@pytest.mark.parametrize(
    ("zero", "warned"),
    [
        ({"reduce_bucket_size": 2e8}, "reduce_bucket_size is 200,000,000, "),
        ({"reduce_bucket_size": 544_997_375}, "reduce_bucket_size is 544,997,375, "),
        ({}, "reduce_bucket_size is 500,000,000, "),  # DeepSpeed's default
        ({"reduce_bucket_size": 544_997_376}, None),
        ({"reduce_bucket_size": "auto"}, None),
        ({"reduce_bucket_size": 2e8, "overlap_comm": False}, None),
        ({"reduce_bucket_size": 2e8, "contiguous_gradients": False}, None),
        ({"reduce_bucket_size": 2e8, "stage": 3}, None),
    ],
)
def test_a_bucket_below_the_largest_parameter_is_a_warning_with_both_numbers(
    zero: dict[str, Any], warned: str | None
) -> None:
    found = bucket(**zero).warn_of_bucket(544_997_376)
    assert (found is None) == (warned is None)
    if warned is not None:
        assert warned in str(found)
        assert "largest parameter has 544,997,376 elements" in str(found)
        assert str(found).startswith("DeepSpeed configuration mine.json: ")


def test_a_misspelt_name_is_told_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(KitError, match=r"zero33: .*did you mean 'zero3'\?.*shipped are zero2, zero3, zero3-offload"):
        find_deepspeed("zero33")


@pytest.mark.parametrize("text", ["{", "[]", "3"])
def test_what_is_no_json_object_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(KitError, match="DeepSpeed configuration"):
        find_deepspeed(str(path))
