"""The estimate of time: compared with the published run, and what it depends on."""

from __future__ import annotations

import re
from typing import Any

import pytest
from mini_r1.machine.roles import assign, shape
from mini_r1.plan.disk_space import disk_use
from mini_r1.plan.memory import kv_bytes_per_token
from mini_r1.plan.planner import make_plan
from mini_r1.plan.shapes import KNOWN
from mini_r1.plan.timing import (
    BANDWIDTH_SHARE,
    DISK_BYTES_S,
    GPU_CLASSES,
    PREFILL_SHARE,
    Timing,
    describe_ahead,
    gpu_class,
    gpu_timing,
    rollout_s,
)
from mini_r1.plan.training_setup import TrainingSetup, zero_settings
from mini_r1.recipe.deepspeed_file import find_deepspeed
from mini_r1.recipe.fields import Recipe
from mini_r1.recipe.recipe_file import find_recipe, load_recipe

from tests.conftest import ASSETS

PUBLISHED = load_recipe(ASSETS / "recipes" / "published-3b.yaml")
SHAPE = KNOWN[PUBLISHED.model_name_or_path]
PUBLISHED_STEP_S = (45, 60)
"""Seconds of a step on 4 H100, as published; 450 steps took about 6 h."""


def timing(recipe: Recipe = PUBLISHED, workers: int = 3, *, gib: float = 80) -> Timing:
    setup = TrainingSetup(recipe, SHAPE, workers, zero_settings(find_deepspeed("zero3"), SHAPE), gib)
    return gpu_timing(setup, 450, disk_use(setup, 450))


def changed(**changes: Any) -> Recipe:
    return PUBLISHED.model_copy(update=changes)


def as_the_original_ran() -> float:
    """Seconds of a step of the published run.

    Stock TRL 0.14.0 calls vLLM once for each of 8 micro steps, with the completions of one prompt of each worker, and
    under DeepSpeed writes the weights twice.
    """
    assert PUBLISHED.gradient_accumulation_steps == 8
    one_call = timing(changed(gradient_accumulation_steps=1))
    second_copy = 2 * SHAPE.parameters / DISK_BYTES_S / PUBLISHED.save_every(450)
    one = timing()
    return one.step_s - one.rollout + 8 * one_call.rollout + second_copy


def test_the_published_run_is_estimated_within_a_third() -> None:
    shortest, longest = PUBLISHED_STEP_S
    assert shortest / 1.33 < as_the_original_ran() < longest * 1.33


def test_one_rollout_for_all_micro_steps_saves_time() -> None:
    assert timing().rollout < 8 * timing(changed(gradient_accumulation_steps=1)).rollout / 2


def test_a_step_is_the_sum_of_its_phases() -> None:
    one = timing()
    assert list(one.phases) == ["sync", "rollout", "broadcast", "score", "reference", "update", "save"]
    assert all(seconds > 0 for seconds in one.phases.values())
    assert one.step_s == pytest.approx(sum(one.phases.values()))
    printed = one.to_dict()
    assert {name: printed[name] for name in one.phases} == {n: round(s, 2) for n, s in one.phases.items()}
    alone = timing(changed(use_vllm=False))
    assert (alone.sync, alone.broadcast) == (0, 0)


def test_a_rollout_ahead_takes_place_during_the_training() -> None:
    before, ahead = timing(), timing(changed(rollout_ahead=1))
    assert ahead.phases == before.phases
    training = before.score + before.reference + before.update + before.save
    assert before.rollout > training
    assert ahead.step_s == pytest.approx(before.sync + before.broadcast + before.rollout)
    assert ahead.step_s == before.ahead_step_s == ahead.ahead_step_s
    assert (before.bound, timing(changed(max_completion_length=64)).bound) == ("rollout", "update")
    assert ahead.hours == pytest.approx(450 * ahead.step_s / 3600)
    assert ahead.stop_s == before.stop_s  # the wait for the rollout is given up first
    assert ahead.step_s < 0.8 * (before.step_s - before.save)
    setup = TrainingSetup(changed(rollout_ahead=1), SHAPE, 1, gpu_memory_gib=80, shared_gpu=True)
    shared = gpu_timing(setup, 450, disk_use(setup, 450))
    assert shared.step_s == pytest.approx(sum(shared.phases.values()))


def test_a_plan_names_rollout_ahead_where_it_helps() -> None:
    saved = describe_ahead(timing())
    assert saved is not None
    assert re.fullmatch(r"rollout_ahead: 1 would take \d+\.\d s a step \(-\d+%\), bounded by the rollout: .*", saved)
    used = describe_ahead(timing(changed(rollout_ahead=1)))
    assert used is not None
    assert re.fullmatch(r"rollout_ahead: \d+\.\d s a step, without it \d+\.\d; the rollout bounds it", used)
    assert describe_ahead(timing(changed(use_vllm=False))) is None
    shared = TrainingSetup(PUBLISHED, SHAPE, 1, gpu_memory_gib=80, shared_gpu=True)
    assert describe_ahead(gpu_timing(shared, 450, disk_use(shared, 450))) is None


def test_weights_are_sent_in_the_type_that_the_model_has() -> None:
    plain = TrainingSetup(changed(torch_dtype="float32"), SHAPE, 1, gpu_memory_gib=80)
    assert gpu_timing(plain, 450, disk_use(plain, 450)).sync == pytest.approx(2 * timing().sync)


def test_vllm_reads_a_prompt_for_each_completion_and_the_sampler_once_for_its_group() -> None:
    def prefill(**changes: Any) -> float:
        """Seconds of 150 tokens more to read, of at most 300."""
        recipe = changed(max_prompt_length=300, **changes)
        setup = TrainingSetup(recipe, SHAPE, 3, zero_settings(find_deepspeed("zero3"), SHAPE), 80)
        gpu = gpu_class(80)
        cache = 0.4 * setup.completions_per_worker * (3 if recipe.use_vllm else 1) * 150 * kv_bytes_per_token(SHAPE, 2)
        decoding = 1024 * cache / (gpu.bandwidth * BANDWIDTH_SHARE)
        return rollout_s(setup, gpu, 300) - rollout_s(setup, gpu, 150) - decoding

    one = 2 * SHAPE.parameters * 150 / (989e12 * PREFILL_SHARE)
    assert prefill() == pytest.approx(192 * one)
    assert prefill(use_vllm=False) == pytest.approx(8 * one)


def test_more_gpus_share_the_step_of_as_many_prompts() -> None:
    half = changed(gradient_accumulation_steps=4)
    assert timing(half, 6).update == pytest.approx(timing().update / 2)
    assert timing(half, 6).rollout == pytest.approx(timing().rollout)


def test_flops_are_six_per_parameter_and_token_and_eight_with_checkpointing() -> None:
    """Two of them are the reference's whole forward pass."""
    plain = timing(changed(gradient_checkpointing=False))
    assert plain.update == pytest.approx(3 * plain.reference)
    assert timing().update == pytest.approx(4 * timing().reference)
    assert timing(changed(beta=0.0)).reference == 0


def test_below_an_adapter_no_gradient_of_a_weight_is_calculated() -> None:
    adapter = timing(changed(use_vllm=False, use_peft=True))
    assert adapter.update == pytest.approx(3 * adapter.reference)


def test_the_memory_decides_the_class_of_gpu() -> None:
    assert [gpu_class(gib).name for gib in (141, 80, 79.6, 40, 24, None)] == [
        "H100 SXM", "H100 SXM", "H100 SXM", "A100 40 GB", "A10", "H100 SXM",
    ]  # fmt: skip
    assert GPU_CLASSES[0].name in " ".join(timing().assumptions)
    assert timing(gib=24).step_s > 3 * timing().step_s


def test_more_sequences_than_vllm_runs_at_once_wait() -> None:
    assert timing(changed(num_generations=64)).rollout > 4 * timing().rollout


def test_on_a_cpu_only_the_demo_has_a_time() -> None:
    demo = load_recipe(find_recipe("demo-cpu"))
    plain = assign(shape(0, 1), use_vllm=False, on_cpu=True)
    found = make_plan(demo, plain, gpu_memory_gib=None, on_cpu=True).timing
    assert found is not None
    assert found.hours is not None
    # On one core 85 steps took 116 s (bench/RESULTS.md).
    assert found.hours * 3600 == pytest.approx(116 * demo.max_steps / 85, rel=0.05)
    other = make_plan(changed(use_vllm=False), plain, gpu_memory_gib=None, on_cpu=True)
    assert other.timing is None
    assert any("on a CPU no time is estimated" in warning for warning in other.warnings)
