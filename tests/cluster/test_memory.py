"""Memory by the formulas, compared with DeepSpeed's own estimator and with the real code."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs
from mini_r1.generation import sampler
from mini_r1.machine.weight_block import GROUP_BYTES
from mini_r1.plan import memory
from mini_r1.plan.activations import transient_bytes
from mini_r1.plan.disk_space import (
    OFFLOAD_BUFFER,
    PROCESS_GIB,
    disk_use,
    host_memory_gib,
    shared_memory_gib,
    sync_block_gib,
)
from mini_r1.plan.memory import (
    CPU_TOKENS,
    MOST_TOKENS,
    ROLLOUT,
    STEP,
    UNKNOWN_LIMITS,
    UPDATE,
    UPDATE_SHARE,
    Memory,
    UpdateLimits,
    kv_bytes_per_token,
    micro_batch,
    training_memory,
    update_limits,
    vllm_memory,
    vllm_share,
)
from mini_r1.plan.shapes import KNOWN, builtin_shape
from mini_r1.plan.training_setup import LIVE, NO_ZERO, TrainingSetup, zero_settings
from mini_r1.recipe.builtin_models import BUILTIN_MODELS, DEMO_MODEL
from mini_r1.recipe.deepspeed_file import DeepSpeedFile, find_deepspeed
from mini_r1.recipe.fields import Recipe
from mini_r1.recipe.recipe_file import find_recipe, load_recipe
from mini_r1.recipe.shipped_files import shipped_files
from mini_r1.values import GIB

from tests.conftest import ASSETS

PUBLISHED = load_recipe(ASSETS / "recipes" / "published-3b.yaml")
SHAPE = KNOWN[PUBLISHED.model_name_or_path]
DEMO = builtin_shape(BUILTIN_MODELS[DEMO_MODEL])


STATES = {"weights", "gradients", "float32 weights", "optimizer states", "float32 gradients"}
"""Items that DeepSpeed's estimators count."""


def setup(recipe: Recipe, deepspeed: str | None = None, workers: int = 1, gib: float | None = None) -> TrainingSetup:
    zero = zero_settings(find_deepspeed(deepspeed), SHAPE) if deepspeed else NO_ZERO
    return TrainingSetup(recipe, SHAPE, workers, zero, gpu_memory_gib=gib)


def table(recipe: Recipe, deepspeed: str | None = None, workers: int = 1) -> Memory:
    return training_memory(setup(recipe, deepspeed, workers))


def gib(found: Memory) -> dict[str, float]:
    return {item.name: item.bytes / GIB for item in found.items}


def changed(**changes: Any) -> Recipe:
    return Recipe.model_validate({**PUBLISHED.model_dump(), **changes})


# --- DeepSpeed's estimator ---


@pytest.mark.parametrize("workers", [2, 3, 8])
def test_zero2_s_model_states_are_what_deepspeed_estimates(workers: int) -> None:
    """2P + 18P/N, the float32 gradients of the step included: equal to a byte in a parameter."""
    _, theirs = estimate_zero2_model_states_mem_needs(SHAPE.parameters, workers, 1, cpu_offload=False)
    ours = sum(item.bytes for item in table(PUBLISHED, "zero2", workers).items if item.name in STATES)
    assert ours == pytest.approx(theirs, rel=1e-6)


@pytest.mark.parametrize(("workers", "tolerance"), [(3, 0.01), (4, 1e-6), (15, 1e-6)])
def test_zero3_s_model_states_are_what_deepspeed_estimates_and_its_gradients(workers: int, tolerance: float) -> None:
    """Theirs is 18P/N and the largest layer, ours 20P/N: stage 3 keeps the gradients' shards in 16 bits until the
    step makes float32 of them; the estimator counts one of the two, though for stage 2 both. With three workers ours is
    a little smaller: the step takes sub_group_size weights at once."""
    _, theirs, layer = estimate_zero3_model_states_mem_needs(
        SHAPE.parameters, SHAPE.embedding_parameters, workers, 1, cpu_offload=False, cpu_offload_params=False
    )
    counted = {item.name: item.bytes for item in table(PUBLISHED, "zero3", workers).items if item.name in STATES}
    assert counted.pop("gradients") == 2 * SHAPE.parameters / workers
    assert sum(counted.values()) == pytest.approx(theirs - layer, rel=tolerance)


def test_zero3_s_gathered_weights_are_more_than_deepspeed_s_one_layer_and_less_than_its_limit() -> None:
    """The estimator counts the largest layer's weights and gradients; DeepSpeed keeps max_live_parameters whole."""
    _, offloaded, layer = estimate_zero3_model_states_mem_needs(
        SHAPE.parameters, SHAPE.embedding_parameters, 3, 1, cpu_offload=True, cpu_offload_params=True
    )
    assert offloaded == layer == 4 * SHAPE.embedding_parameters
    ours = gib(table(PUBLISHED, "zero3-offload", 3))
    assert not {"weights", "optimizer states", "float32 weights", "gradients"} & set(ours)
    whole = (ours["gathered weights"] + ours["largest gradient"]) * GIB
    assert layer < whole < layer + 2 * LIVE * 1.01


def test_offloaded_states_are_in_the_host_s_memory_as_deepspeed_estimates() -> None:
    """18 bytes per parameter, times its factor for buffers."""
    theirs, *_ = estimate_zero3_model_states_mem_needs(
        SHAPE.parameters, SHAPE.embedding_parameters, 8, 1, cpu_offload=True, cpu_offload_params=True,
        additional_buffer_factor=OFFLOAD_BUFFER,
    )  # fmt: skip
    recipe = changed(beta=0.0, use_vllm=False)
    at = {name: host_memory_gib(setup(recipe, name, workers=8), workers=8) for name in ("zero3", "zero3-offload")}
    base = 8 * 3.0 + SHAPE.parameters * 2 / GIB
    assert at["zero3-offload"] - base == pytest.approx(theirs / GIB, rel=0.01)


@pytest.mark.parametrize("deepspeed", ["zero2", "zero3"])
def test_gradients_added_up_in_float32_take_two_bytes_more_of_each_parameter(deepspeed: str) -> None:
    plain, precise = table(PUBLISHED, deepspeed, 3), table(changed(grad_accum_dtype="fp32"), deepspeed, 3)
    before, after = gib(plain), gib(precise)
    assert (after.pop("gradients") - before.pop("gradients")) * GIB == pytest.approx(2 * SHAPE.parameters / 3)
    fragmentation = "CUDA context and fragmentation"
    assert after.pop(fragmentation) >= before.pop(fragmentation)
    assert after == before


def test_the_user_s_own_file_may_say_so_too() -> None:
    file = find_deepspeed("zero2")
    own = DeepSpeedFile("own.json", {**file.values, "data_types": {"grad_accum_dtype": "fp32"}})
    assert zero_settings(own, SHAPE).float32_gradients
    assert not zero_settings(file, SHAPE).float32_gradients


def test_zero2_collects_a_micro_batch_s_gradients_apart_from_those_of_the_others() -> None:
    name = "gradients of one micro-batch"
    assert gib(table(PUBLISHED, "zero2", 3))[name] * GIB == pytest.approx(2 * SHAPE.parameters / 3)
    assert name not in gib(table(changed(gradient_accumulation_steps=1), "zero2", 3))
    assert name not in gib(table(PUBLISHED, "zero3", 3))


# --- without DeepSpeed ---


def test_float32_weights_take_sixteen_bytes_and_bfloat16_ones_eight() -> None:
    for dtype, each in (("float32", 4), ("bfloat16", 2)):
        found = gib(table(changed(torch_dtype=dtype, bf16=False, attn_implementation="sdpa", beta=0.0)))
        states = found["weights"] + found["gradients"] + found["optimizer states"]
        assert states == pytest.approx(4 * each * SHAPE.parameters / GIB)
        assert "reference model" not in found


def test_autocast_keeps_sixteen_bit_copies_of_float32_weights() -> None:
    assert gib(table(changed(torch_dtype="float32")))["16-bit copies of the weights (autocast)"] == pytest.approx(
        5.75, abs=0.01
    )
    assert "16-bit copies of the weights (autocast)" not in gib(table(PUBLISHED))


def test_several_workers_have_the_gradients_twice() -> None:
    one, two = gib(table(PUBLISHED)), gib(table(PUBLISHED, workers=2))
    assert "DDP's gradient buckets" not in one
    assert two["DDP's gradient buckets"] == two["gradients"]


@pytest.mark.parametrize(
    ("optimizer", "each"), [("adamw_torch", 4), ("adamw_8bit", 2), ("paged_adamw_32bit", 8), ("sgd", 0)]
)
def test_optimizers_differ_in_their_states(optimizer: str, each: float) -> None:
    found = gib(table(changed(optim=optimizer)))
    assert found.get("optimizer states", 0.0) == pytest.approx(each * SHAPE.parameters / GIB)


def test_an_adapter_needs_no_reference_and_little_optimizer() -> None:
    found = gib(table(changed(use_vllm=False, use_peft=True, lora_target_modules="all-linear")))
    assert "reference model" not in found
    assert found["weights"] == pytest.approx(5.86, abs=0.01)
    assert found["optimizer states"] < 0.3


@pytest.mark.parametrize(("nested", "bits"), [(False, 4.5), (True, 4.127)])
def test_four_bit_weights_take_the_bits_of_the_qlora_paper(nested: bool, bits: float) -> None:
    recipe = changed(use_vllm=False, use_peft=True, load_in_4bit=True, use_bnb_nested_quant=nested)
    rest = (SHAPE.parameters - SHAPE.linear_parameters) * 4
    expected = SHAPE.linear_parameters * bits / 8 + rest
    assert setup(recipe).frozen_bytes == pytest.approx(expected)


def test_every_phase_has_a_sum_and_the_largest_counts() -> None:
    found = table(changed(use_vllm=False))
    assert found.total_gib == max(found.at(phase) for phase in (ROLLOUT, UPDATE, STEP)) == found.at(found.phase)
    assert "key-value cache" in gib(found)
    assert "key-value cache" not in gib(table(PUBLISHED))
    crowded = table(changed(num_generations=64, gradient_checkpointing=False))
    assert crowded.phase == UPDATE
    assert not replace(crowded, available_gib=crowded.total_gib - 0.1).fits
    assert replace(crowded, available_gib=crowded.total_gib + 0.1).fits


@pytest.mark.parametrize("checkpointing", [True, False])
def test_a_micro_batch_has_the_tokens_that_fit(checkpointing: bool) -> None:
    tokens = {}
    for memory_gib in (24, 30, 40, 80, 640):
        here = setup(changed(gradient_checkpointing=checkpointing), "zero3", workers=3, gib=memory_gib)
        limits = update_limits(here)
        tokens[memory_gib] = limits.tokens
        assert here.recipe.longest_sequence <= limits.tokens <= MOST_TOKENS
        share = UPDATE_SHARE * memory_gib
        if limits.tokens > here.recipe.longest_sequence:
            assert training_memory(here).at(UPDATE) <= share * 1.001
        if limits.tokens < MOST_TOKENS:
            one_more = UpdateLimits(limits.tokens + 1, 10**12)  # with all its logits
            assert training_memory(here, one_more).at(UPDATE) > share
    assert list(tokens.values()) == sorted(tokens.values())
    assert tokens[640] == MOST_TOKENS
    assert checkpointing or tokens[24] == 1280 < tokens[40] < tokens[80] < MOST_TOKENS


def test_the_recipe_s_tokens_count_and_the_memory_that_is_left_keeps_logits() -> None:
    few = setup(changed(max_tokens_per_micro_batch=2000), "zero3", workers=3, gib=80)
    many = replace(few, recipe=changed(max_tokens_per_micro_batch=100_000, gradient_checkpointing=False))
    assert (update_limits(few).tokens, update_limits(many).tokens) == (2000, 100_000)
    assert update_limits(few).logits_bytes > update_limits(many).logits_bytes == 0
    # No more than a micro-batch has, which is one of 1,280 and a part of another.
    kept = transient_bytes(SHAPE, micro_batch(few, update_limits(few)))
    none = transient_bytes(SHAPE, micro_batch(few, UpdateLimits(2000, 0)))
    assert kept - none == pytest.approx(2000 / 1280 * 1024 * SHAPE.vocabulary * 4)


def test_limits_without_known_memory() -> None:
    assert update_limits(setup(PUBLISHED)) == UNKNOWN_LIMITS
    assert update_limits(replace(setup(PUBLISHED), on_cpu=True)).tokens == CPU_TOKENS
    named = changed(max_tokens_per_micro_batch=500)
    assert update_limits(setup(named)).tokens == update_limits(replace(setup(named), on_cpu=True)).tokens == 500


def test_checkpointing_saves_most_of_the_activations() -> None:
    with_it, without = (gib(table(changed(gradient_checkpointing=on)))["activations"] for on in (True, False))
    assert 5 * with_it < without


# --- generation ---


def test_the_plan_has_the_sampler_s_own_numbers() -> None:
    assert sampler.SamplingConfig(1, 1.0).batch_rows == memory.SAMPLER_ROWS
    assert sampler.COMPACT_EVERY == memory.SAMPLER_SPARE_TOKENS


def test_a_token_of_the_cache_takes_keys_and_values_of_all_layers(untrained: Path) -> None:
    """Compared with the cache that transformers fills."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(untrained)
    cache = model(torch.zeros((1, 10), dtype=torch.long), use_cache=True).past_key_values
    real = sum(t.numel() * t.element_size() for pair in cache for t in pair)
    assert real == 10 * kv_bytes_per_token(DEMO, 4)
    assert kv_bytes_per_token(SHAPE, 2) == 36_864


def test_vllm_fills_its_share_with_the_cache() -> None:
    found = vllm_memory(setup(PUBLISHED, gib=80))
    graphs = next(item.bytes for item in found.items if item.name == "CUDA graphs") / GIB
    assert found.total_gib - graphs == pytest.approx(0.5 * 80)
    cache = next(item.bytes for item in found.items if item.name == "key-value cache")
    assert found.sequences == int(cache // (1280 * 36_864))
    assert vllm_memory(setup(PUBLISHED, gib=12)).sequences == 0
    assert vllm_memory(setup(PUBLISHED, gib=None)).sequences is None
    odd = changed(max_completion_length=1025)  # the last block is taken whole
    assert (vllm_memory(setup(odd, gib=80)).sequences or 0) == int(cache // (1296 * 36_864))


def test_the_host_holds_the_block_that_weights_go_to_vllm_through() -> None:
    largest = 151_936 * 2_048 * 2 / GIB
    without = host_memory_gib(setup(changed(use_vllm=False)), workers=1)
    assert host_memory_gib(setup(PUBLISHED), workers=1) - without == pytest.approx(PROCESS_GIB + largest)
    assert sync_block_gib(setup(changed(torch_dtype="float32"))) == pytest.approx(2 * largest)
    assert sync_block_gib(setup(changed(use_peft=True, load_in_4bit=True))) == pytest.approx(2 * largest)
    assert shared_memory_gib(setup(PUBLISHED), workers=1) == 0  # the block is not in /dev/shm
    assert shared_memory_gib(setup(PUBLISHED, workers=2), workers=2) == 0.5


def test_a_small_model_s_block_holds_two_groups() -> None:
    small = replace(SHAPE, vocabulary=1_000)
    assert sync_block_gib(replace(setup(PUBLISHED), shape=small)) == 2 * GROUP_BYTES / GIB


# --- one GPU for training and vLLM ---


LORA = load_recipe(find_recipe("lora-1.5b")).model_copy(update={"use_vllm": True})


def shared(gib: float | None = 24, **changes: Any) -> TrainingSetup:
    recipe = LORA.model_copy(update=changes)
    return TrainingSetup(recipe, KNOWN[recipe.model_name_or_path], gpu_memory_gib=gib, shared_gpu=True)


def test_a_shared_gpu_s_memory_is_divided() -> None:
    """vLLM gets what its weights, in 16 bits and whole, and the cache of a rollout need; training keeps the rest."""
    setup = shared()
    vllm, training = vllm_memory(setup), training_memory(setup, UNKNOWN_LIMITS)
    weights = 2 * setup.shape.parameters / GIB
    cache = 64 * 1280 * kv_bytes_per_token(setup.shape, 2) / GIB
    assert gib(vllm)["weights"] == pytest.approx(weights)
    assert weights + cache + 1 < vllm_share(setup) * 24 < 1.2 * (weights + cache + 2)
    assert vllm.sequences is not None
    assert vllm.sequences >= setup.rollout_rows == 64
    # CUDA graphs are outside of vLLM's share.
    assert gib(training)["vLLM on the same GPU"] == pytest.approx(vllm_share(setup) * 24 + 1)
    without = replace(setup, recipe=setup.recipe.model_copy(update={"use_vllm": False}))
    alone = training_memory(without, UNKNOWN_LIMITS)
    assert training.at(UPDATE) == pytest.approx(alone.at(UPDATE) + vllm.total_gib, rel=0.02)
    assert training.fits


def test_a_quantized_base_is_whole_in_vllm() -> None:
    assert gib(vllm_memory(shared(load_in_4bit=True)))["weights"] == gib(vllm_memory(shared()))["weights"]


def test_more_than_vllm_runs_at_once_need_no_cache() -> None:
    assert (
        vllm_share(shared(80, num_generations=64))
        == vllm_share(shared(80, num_generations=128))
        > vllm_share(shared(80))
    )


def test_the_share_of_a_gpu_is_the_recipe_s_or_the_default() -> None:
    assert vllm_share(shared(vllm_gpu_memory_utilization=0.4)) == 0.4
    assert vllm_share(replace(shared(), shared_gpu=False)) == 0.9
    assert vllm_share(setup(PUBLISHED, gib=80)) == 0.5


def test_a_shared_gpu_of_unknown_memory_has_no_share() -> None:
    with pytest.raises(ValueError, match="memory is not known"):
        vllm_share(shared(None))
    assert training_memory(shared(None)).fits
    assert vllm_memory(shared(None)).sequences is None


def test_vllm_s_processes_share_the_prompts() -> None:
    four = replace(setup(PUBLISHED, workers=4), vllm_devices=3)  # 32 prompts of 8
    assert four.rollout_rows == 11 * 8
    assert replace(four, vllm_devices=1).rollout_rows == 32 * 8
    assert setup(changed(use_vllm=False), workers=4).rollout_rows == 64
    one, two = (host_memory_gib(replace(four, vllm_devices=n), 4) for n in (1, 2))
    assert two - one == pytest.approx(3)


# --- disk ---


def test_a_checkpoint_under_zero3_takes_43_gb_as_the_original_s_without_its_second_copy_of_the_weights() -> None:
    """Its 18 checkpoints took about 780 GB."""
    found = disk_use(setup(PUBLISHED, "zero3", workers=3), 450)
    assert (found.checkpoint * GIB + 2 * SHAPE.parameters) / 1e9 == pytest.approx(43, abs=0.5)
    zero2 = disk_use(setup(PUBLISHED, "zero2", workers=3), 450)
    assert (zero2.checkpoint - found.checkpoint) * GIB == pytest.approx(2 * SHAPE.parameters)
    assert found.checkpoints == 3 * found.checkpoint
    assert found.snapshots == 18 * found.snapshot
    assert found.snapshot * GIB == 2 * SHAPE.parameters


def test_a_checkpoint_and_a_snapshot_have_the_planned_size(tmp_path: Path, small_recipe: Any) -> None:
    from mini_r1.cli.training_commands import train
    from mini_r1.run.run_dir import RunDir

    path = small_recipe(max_steps=2)
    run = RunDir(tmp_path / "run")
    train(str(path), [], run.path)
    found = disk_use(TrainingSetup(load_recipe(path), DEMO), 2)
    for saved, expected in (
        (run.complete_checkpoints()[0], found.checkpoint),
        (run.complete_snapshots()[0], found.snapshot),
    ):
        weights = [p for p in saved.path.iterdir() if p.suffix in (".safetensors", ".pt")]
        real = sum(p.stat().st_size for p in weights)
        assert real == pytest.approx(expected * GIB, rel=0.05)


# --- DeepSpeed's settings ---


def test_auto_is_filled_in_as_transformers_does() -> None:
    zero = zero_settings(find_deepspeed("zero3"), SHAPE)
    assert (zero.stage, zero.bucket, zero.buckets) == (3, 2048**2, 2)
    assert zero.live == LIVE + int(0.9 * 2048**2)
    assert not zero.offload_optimizer
    assert zero_settings(find_deepspeed("zero3-offload"), SHAPE).offload_weights
    assert zero_settings(find_deepspeed("zero2"), SHAPE).live == 0


@pytest.mark.parametrize("name", sorted(shipped_files("recipes")))
def test_zero2_s_bucket_holds_the_largest_parameter_of_every_shipped_recipe(name: str) -> None:
    recipe = load_recipe(shipped_files("recipes")[name])
    shape = builtin_shape(recipe.built_in) if recipe.built_in else KNOWN[recipe.model_name_or_path]
    zero = zero_settings(find_deepspeed("zero2"), shape)
    assert (zero.stage, zero.buckets) == (2, 2)
    assert min(shape.parameters, 2 * 10**8) <= zero.bucket >= shape.largest_parameter


def test_a_larger_bucket_is_in_the_memory() -> None:
    shape = KNOWN["Qwen/Qwen2.5-7B-Instruct"]
    zero = zero_settings(find_deepspeed("zero2"), shape)
    assert zero.bucket == 544_997_376
    found = training_memory(TrainingSetup(PUBLISHED, shape, 8, zero))
    assert gib(found)["communication buckets"] == 2 * 544_997_376 * 2 / GIB


def test_an_empty_file_has_deepspeed_s_defaults() -> None:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    theirs = DeepSpeedZeroConfig(stage=3)
    zero = zero_settings(DeepSpeedFile("x", {"zero_optimization": {"stage": 3}}), SHAPE)
    assert zero.bucket == theirs.reduce_bucket_size
    assert zero.live == theirs.max_live_parameters + theirs.prefetch_bucket_size
    assert zero.sub_group == theirs.sub_group_size
    assert (zero.buckets == 2) == theirs.overlap_comm
