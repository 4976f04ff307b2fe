"""What cannot work, decided from recipe and shape before anything is queued: one sentence each, with what to do."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

from mini_r1.plan.memory import HEAD_SIZES, Memory, cached_sequences, training_memory, vllm_memory, vllm_share
from mini_r1.plan.shapes import ModelShape
from mini_r1.plan.training_setup import IN_ORDER, TrainingSetup, ZeroSettings, zero_settings
from mini_r1.recipe.builtin_models import ARITHMETIC_MODEL
from mini_r1.recipe.deepspeed_file import find_deepspeed
from mini_r1.recipe.fields import DEMO_MODEL, Recipe

LOST_BELOW: Final = 2**-9 * 0.02
"""Learning rate below which Adam's update of a typical weight, 0.02, is less than half of bfloat16's distance to the
next number (8 bits of mantissa), and rounds to nothing."""
BITSANDBYTES: Final = ("adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit", "paged_adamw_32bit")


def recipe_errors(
    recipe: Recipe, shape: ModelShape | None, deepspeed: str | None, workers: int, *, on_cpu: bool
) -> Iterator[str]:
    """Yield the contradictions between the recipe, its model, the number of workers and the kind of device."""
    if workers > 1 and recipe.hang_timeout_s >= recipe.ddp_timeout:
        yield (
            f"hang_timeout_s is {recipe.hang_timeout_s} and ddp_timeout {recipe.ddp_timeout}: a worker that waits for "
            "one that hangs would give up first, and be blamed for it: set ddp_timeout above hang_timeout_s, for "
            f"example ddp_timeout: {recipe.hang_timeout_s * 3 // 2}"
        )
    if shape is not None and recipe.longest_sequence > shape.max_positions:
        left = shape.max_positions - recipe.max_prompt_length
        lower = f"lower max_completion_length to {left} or less" if left > 0 else "lower both"
        yield (
            f"max_prompt_length {recipe.max_prompt_length} and max_completion_length {recipe.max_completion_length} "
            f"make {recipe.longest_sequence} tokens, and {shape.name} has positions for {shape.max_positions}: {lower}"
        )
    kind = "CPU" if on_cpu else "GPU"
    if shape is not None and recipe.use_vllm and shape.head_size not in HEAD_SIZES[kind]:
        sizes = ", ".join(map(str, HEAD_SIZES[kind]))
        yield (
            f"vLLM 0.7.0 cannot run {shape.name}: its attention heads have {shape.head_size} values, and vLLM's "
            f"{kind} kernels are made for {sizes}: set use_vllm: false, or take another model"
        )
    quantized = "load_in_4bit" if recipe.load_in_4bit else "load_in_8bit" if recipe.load_in_8bit else None
    if on_cpu and quantized:
        yield (
            f"{quantized} needs an NVIDIA GPU and bitsandbytes, and there is no GPU: set {quantized}: false to train "
            "the adapter on unquantized weights"
        )
    if on_cpu and recipe.attn_implementation == "flash_attention_2":
        yield "flash_attention_2 needs a GPU: set attn_implementation: sdpa (or null)"
    if on_cpu and recipe.fp16:
        yield "fp16 needs a GPU: set fp16: false (bf16: true works on a CPU)"
    if on_cpu and recipe.optim in BITSANDBYTES:
        yield f"optim: {recipe.optim} needs bitsandbytes and a GPU: set optim: adamw_torch"
    if deepspeed is not None and quantized:
        yield f"DeepSpeed cannot shard quantized weights: use --deepspeed none, or set {quantized}: false"


def plan_warnings(
    recipe: Recipe, shape: ModelShape | None, deepspeed: str | None, gpu_memory_gib: float | None, *, on_cpu: bool
) -> Iterator[str]:
    """Yield what works, but not as it seems."""
    dtype: str | None = recipe.torch_dtype
    if dtype == "auto":
        dtype = shape.dtype if shape else None
    if dtype == "bfloat16" and deepspeed is None and not recipe.use_peft and recipe.learning_rate < LOST_BELOW:
        yield (
            "torch_dtype: bfloat16 without DeepSpeed keeps the only copy of the weights in bfloat16, and most updates "
            f"of learning rate {recipe.learning_rate:g} round to nothing there: set torch_dtype: float32 with "
            "bf16: true, or use DeepSpeed, which keeps float32 weights"
        )
    if recipe.grad_accum_dtype is not None and deepspeed is None:
        yield (
            "grad_accum_dtype has no effect without DeepSpeed: gradients have the type of the loaded weights, an "
            "adapter's float32: take it out, or use --deepspeed zero2"
        )
    if on_cpu and recipe.tf32:
        yield "tf32 is a GPU setting: it has no effect on a CPU"
    if on_cpu and recipe.model_name_or_path not in (DEMO_MODEL, ARITHMETIC_MODEL):  # the second takes minutes, too
        yield "on a CPU no time is estimated: only the built-in demo model was measured there"
    if not on_cpu and gpu_memory_gib is None:
        yield "the GPUs' memory is not known, so what fits is not checked: give --gpu-memory"


def memory_errors(setup: TrainingSetup, deepspeed: str | None, memory: Memory, vllm: Memory | None) -> Iterator[str]:
    """Yield what does not fit the devices' memory, with the changes that would make it fit."""
    recipe, shape = setup.recipe, setup.shape
    if not memory.fits:
        items = [item for item in memory.items if memory.phase in item.phases]
        largest = sorted(items, key=lambda item: -item.bytes)[:3]
        yield (
            f"does not fit: a training GPU needs {memory.total_gib:.1f} GiB in the {memory.phase} phase and has "
            f"{memory.available_gib:g} (largest: {', '.join(f'{i.name} {i.bytes / 2**30:.1f}' for i in largest)}): "
            f"{_advise_changes(setup, deepspeed)}"
        )
    needed = cached_sequences(setup)
    if vllm is None or vllm.sequences is None or vllm.sequences >= needed:
        return
    length = recipe.longest_sequence
    error = f"vLLM's key-value cache cannot hold one sequence of {length} tokens"
    if setup.on_cpu:
        yield f"{error} in the memory that it has on a CPU: lower max_completion_length"
        return
    now = vllm_share(setup)
    if setup.shared_gpu:
        yield (
            f"vLLM's key-value cache holds {vllm.sequences} sequences of {length} tokens with "
            f"vllm_gpu_memory_utilization: {now:g}, and a rollout runs {needed} at once: take it out, and the plan "
            "computes it"
        )
        return
    for share in (0.8, 0.9, 0.95):
        changed = recipe.model_copy(update={"vllm_gpu_memory_utilization": share})
        if share > now and vllm_memory(replace(setup, recipe=changed)).sequences:
            yield f"{error}: raise vllm_gpu_memory_utilization from {now:g} to {share:g}"
            return
    yield f"{error}: {shape.name} leaves too little of {vllm.available_gib:g} GiB: take larger GPUs, or a smaller model"


def _advise_changes(setup: TrainingSetup, deepspeed: str | None) -> str:
    """Return the changes, each alone, after which the plan fits; else all together, if that is enough."""

    def fits(changed: Recipe, zero: ZeroSettings = setup.zero) -> bool:
        return training_memory(replace(setup, recipe=changed, zero=zero)).fits

    recipe, changes = setup.recipe, list(_smaller(setup.recipe))
    if setup.shared_gpu and recipe.vllm_gpu_memory_utilization is not None:
        changes.append({"vllm_gpu_memory_utilization": None})
    names = [] if recipe.use_peft else [name for name in IN_ORDER if name != deepspeed]
    others = {name: zero_settings(find_deepspeed(name), setup.shape) for name in names}
    enough = [_as_yaml(change) for change in changes if fits(recipe.model_copy(update=change))]
    if setup.shared_gpu and recipe.use_vllm and fits(recipe.model_copy(update={"use_vllm": False})):
        enough.append("use_vllm: false")
    enough += [f"--deepspeed {name}" for name, zero in others.items() if fits(recipe, zero)][:1]
    if enough:
        return "it fits with " + ", or with ".join(enough)
    listed = ", ".join(map(_as_yaml, changes))
    together = recipe.model_copy(update={key: value for change in changes for key, value in change.items()})
    for option, zero in [("", setup.zero), *((f"--deepspeed {name} and ", zero) for name, zero in others.items())]:
        if fits(together, zero):
            return f"it fits with {option}{listed} together"
    adapter = "" if recipe.use_peft else ", use_peft: true"
    return f"take more or larger GPUs, or a smaller model{adapter}"


def _smaller(recipe: Recipe) -> Iterator[dict[str, Any]]:
    """Yield changes that need less memory, ordered by how little they change what is learned."""
    if not recipe.gradient_checkpointing:
        yield {"gradient_checkpointing": True}
    if recipe.attn_implementation == "eager":
        yield {"attn_implementation": "sdpa"}
    if recipe.max_tokens_per_micro_batch is not None:
        yield {"max_tokens_per_micro_batch": None}
    if recipe.num_generations > 8:
        yield {"num_generations": 8}
    if recipe.max_completion_length > 512:
        yield {"max_completion_length": recipe.max_completion_length // 2}
    if recipe.beta and not recipe.use_peft:
        yield {"beta": 0.0}


def _as_yaml(change: dict[str, Any]) -> str:
    return " and ".join(f"{key}: {'null' if value is None else str(value).lower()}" for key, value in change.items())
