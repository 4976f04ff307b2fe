"""What cannot work, decided from recipe and shape before anything is queued: one sentence each, with what to do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from mini_r1.plan.memory import Memory, training_memory
from mini_r1.plan.shapes import ModelShape
from mini_r1.plan.vllm_memory import VllmMemory, head_sizes, vllm_memory
from mini_r1.plan.zero_memory import IN_ORDER, Zero, zero_of
from mini_r1.recipe.deepspeed_file import find_deepspeed
from mini_r1.recipe.fields import DEMO_MODEL, Recipe

LOST_BELOW: Final = 2**-9 * 0.02
"""Learning rate below which Adam's update of a typical weight, 0.02, is less than half of bfloat16's distance to the
next number (8 bits of mantissa), and rounds to nothing."""
BITSANDBYTES: Final = ("adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit", "paged_adamw_32bit")


def faults(recipe: Recipe, shape: ModelShape | None, deepspeed: str | None, *, on_cpu: bool) -> list[str]:
    """Contradictions between the recipe, its model and the kind of device."""
    return [*_of_the_model(recipe, shape, on_cpu), *(_of_a_cpu(recipe) if on_cpu else ()), *_of_zero(recipe, deepspeed)]


def remarks(
    recipe: Recipe, shape: ModelShape | None, deepspeed: str | None, *, on_cpu: bool, gpu_memory_gib: float | None
) -> list[str]:
    """What works and is not what it looks like."""
    found = []
    dtype = recipe.torch_dtype
    if dtype == "auto":
        dtype = shape.dtype if shape else None  # type: ignore[assignment]
    if dtype == "bfloat16" and deepspeed is None and not recipe.use_peft and recipe.learning_rate < LOST_BELOW:
        found.append(
            "torch_dtype: bfloat16 without DeepSpeed keeps the only copy of the weights in bfloat16, and most updates "
            f"of learning rate {recipe.learning_rate:g} round to nothing there: set torch_dtype: float32 with "
            "bf16: true, or take DeepSpeed, which keeps float32 weights"
        )
    if on_cpu and recipe.tf32:
        found.append("tf32 is a GPU setting: it has no effect on a CPU")
    if on_cpu and recipe.model_name_or_path != DEMO_MODEL:
        found.append("on a CPU no time is estimated: only the built-in demo model was measured there")
    if not on_cpu and gpu_memory_gib is None:
        found.append("how much memory the GPUs have is not known, so what fits is not checked: give --gpu-memory")
    return found


def misfits(
    recipe: Recipe,
    shape: ModelShape,
    zero: Zero,
    deepspeed: str | None,
    workers: int,
    memory: Memory,
    vllm: VllmMemory | None,
    *,
    on_cpu: bool,
) -> list[str]:
    """What does not fit the devices' memory, and the changes that would make it fit."""
    found = []
    if not memory.fits:
        largest = sorted((i for i in memory.items if memory.phase in i.phases), key=lambda item: -item.bytes)[:3]
        names = ", ".join(f"{item.name} {item.bytes / 2**30:.1f}" for item in largest)
        remedy = _remedy(recipe, shape, zero, deepspeed, workers, memory.available_gib)
        found.append(
            f"does not fit: a training GPU needs {memory.total_gib:.1f} GiB in the {memory.phase} phase and has "
            f"{memory.available_gib:g} (largest: {names}): {remedy}"
        )
    if vllm is not None and vllm.sequences == 0:
        found.append(_too_small_a_cache(recipe, shape, vllm, on_cpu))
    return found


# --- faults ---


def _of_the_model(recipe: Recipe, shape: ModelShape | None, on_cpu: bool) -> Iterator[str]:
    if shape is None:
        return
    length = recipe.longest_sequence
    if length > shape.max_positions:
        room = shape.max_positions - recipe.max_prompt_length
        lower = f"lower max_completion_length to {room} or less" if room > 0 else "lower both"
        yield (
            f"max_prompt_length {recipe.max_prompt_length} and max_completion_length {recipe.max_completion_length} "
            f"make {length} tokens, and {shape.name} has positions for {shape.max_positions}: {lower}"
        )
    if recipe.use_vllm and shape.head_size not in head_sizes(on_cpu):
        sizes = ", ".join(map(str, head_sizes(on_cpu)))
        yield (
            f"vLLM 0.7.0 cannot run {shape.name}: its attention heads have {shape.head_size} values, and vLLM's "
            f"{'CPU' if on_cpu else 'GPU'} kernels are made for {sizes}: set use_vllm: false, or take another model"
        )


def _of_a_cpu(recipe: Recipe) -> Iterator[str]:
    if recipe.load_in_4bit or recipe.load_in_8bit:
        key = "load_in_4bit" if recipe.load_in_4bit else "load_in_8bit"
        yield (
            f"{key} needs an NVIDIA GPU and bitsandbytes, and there is no GPU: set {key}: false to train the adapter "
            "on unquantized weights"
        )
    if recipe.attn_implementation == "flash_attention_2":
        yield "flash_attention_2 needs a GPU: set attn_implementation: sdpa (or null)"
    if recipe.fp16:
        yield "fp16 needs a GPU: set fp16: false (bf16: true works on a CPU)"
    if recipe.optim in BITSANDBYTES:
        yield f"optim: {recipe.optim} needs bitsandbytes and a GPU: set optim: adamw_torch"


def _of_zero(recipe: Recipe, deepspeed: str | None) -> Iterator[str]:
    if deepspeed is not None and (recipe.load_in_4bit or recipe.load_in_8bit):
        key = "load_in_4bit" if recipe.load_in_4bit else "load_in_8bit"
        yield f"DeepSpeed cannot shard quantized weights: take --deepspeed none, or set {key}: false"


# --- remedies ---


def _remedy(
    recipe: Recipe, shape: ModelShape, zero: Zero, deepspeed: str | None, workers: int, available: float | None
) -> str:
    """The changes, each alone, after which it fits; else all together, if that is enough."""

    def fits(changed: Recipe, with_zero: Zero) -> bool:
        return training_memory(changed, shape, with_zero, workers, available_gib=available, on_cpu=False).fits

    enough, together = [], recipe
    for change in _smaller(recipe):
        if fits(recipe.model_copy(update=change), zero):
            enough.append(_written(change))
        together = together.model_copy(update=change)
    others = {} if recipe.use_peft else {name: zero_of(find_deepspeed(name), shape) for name in IN_ORDER}
    others.pop(deepspeed or "", None)
    enough += [f"--deepspeed {name}" for name, other in others.items() if fits(recipe, other)][:1]
    if enough:
        return "it fits with " + ", or with ".join(enough)
    changes = ", ".join(_written(change) for change in _smaller(recipe))
    if fits(together, zero):
        return f"it fits with {changes} together"
    for name, other in others.items():
        if fits(together, other):
            return f"it fits with --deepspeed {name} and {changes} together"
    adapter = "" if recipe.use_peft else ", use_peft: true"
    return f"take more or larger GPUs, or a smaller model{adapter}"


def _smaller(recipe: Recipe) -> list[dict[str, Any]]:
    """Changes that need less memory, the one that changes least of what is learned first."""
    changes: list[dict[str, Any]] = []
    if not recipe.gradient_checkpointing:
        changes.append({"gradient_checkpointing": True})
    if recipe.attn_implementation == "eager":
        changes.append({"attn_implementation": "sdpa"})
    batch, accumulation = recipe.per_device_train_batch_size, recipe.gradient_accumulation_steps
    if batch > 1:
        changes.append({"per_device_train_batch_size": 1, "gradient_accumulation_steps": accumulation * batch})
    if recipe.num_generations > 8:
        changes.append({"num_generations": 8})
    if recipe.max_completion_length > 512:
        changes.append({"max_completion_length": recipe.max_completion_length // 2})
    if recipe.beta and not recipe.use_peft:
        changes.append({"beta": 0.0})
    return changes


def _written(change: dict[str, Any]) -> str:
    """As it stands in a recipe."""
    return " and ".join(f"{key}: {str(value).lower() if value is True else value}" for key, value in change.items())


def _too_small_a_cache(recipe: Recipe, shape: ModelShape, vllm: VllmMemory, on_cpu: bool) -> str:
    length = recipe.max_prompt_length + recipe.max_completion_length
    head = f"vLLM's key-value cache cannot hold one sequence of {length} tokens"
    if on_cpu:
        return f"{head} in the memory that it has on a CPU: lower max_completion_length"
    for share in (0.8, 0.9, 0.95):
        if share <= recipe.vllm_gpu_memory_utilization:
            continue
        higher = recipe.model_copy(update={"vllm_gpu_memory_utilization": share})
        if vllm_memory(higher, shape, available_gib=vllm.available_gib, on_cpu=False).sequences:
            return f"{head}: raise vllm_gpu_memory_utilization from {recipe.vllm_gpu_memory_utilization:g} to {share:g}"
    return f"{head}: {shape.name} leaves too little of {vllm.available_gib:g} GiB: take larger GPUs, or a smaller model"
