"""Memory of a training device and of vLLM's device, item by item.

Weights and optimizer are always there; the rollout, the update and the optimizer step each need more at another moment.
The largest of the three must fit. Formulas and sources: docs/plan.md.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from mini_r1.plan.activations import MicroBatch, activation_bytes, adapter_bytes, transient_bytes
from mini_r1.plan.shapes import ModelShape
from mini_r1.plan.training_setup import TrainingSetup
from mini_r1.values import GIB

ROLLOUT, UPDATE, STEP = "rollout", "update", "optimizer step"
PHASES: Final = (ROLLOUT, UPDATE, STEP)

CONTEXT_GIB: Final = 1.0  # CUDA context, cuBLAS workspace, NCCL's channels. An allowance, not measured here.
FRAGMENTATION: Final = 0.05
"""Share of the rest that PyTorch's allocator holds and cannot use. An allowance, not measured here."""
UPDATE_SHARE: Final = 0.8
"""Share of a GPU's memory that `update_limits` fills with an update: the formulas are not exact."""
MOST_TOKENS: Final = 16_384  # of a micro-batch: its matrix products fill a GPU long before
UNKNOWN_TOKENS: Final = 8_192  # of a micro-batch, if the memory is unknown
CPU_TOKENS: Final = 4_096  # of a micro-batch; more is not faster on a CPU (bench/update.py)
CPU_LOGITS_BYTES: Final = 1 << 31

SAMPLER_ROWS: Final = 1024  # `generation.sampler.SamplingConfig.batch_rows`; a test compares them
SAMPLER_SPARE_TOKENS: Final = 8  # `generation.sampler.COMPACT_EVERY`: spare tokens in a compacted cache

BLOCK: Final = 16  # tokens of a block of vLLM's cache: a sequence takes whole blocks (arXiv:2309.06180, section 4)
MAX_SEQUENCES: Final = 256  # sequences decoded at once: vLLM 0.7.0's default of max_num_seqs
PROFILED_TOKENS: Final = 2048
"""Least tokens of the forward pass by which vLLM 0.7.0 measures its activations (max_num_batched_tokens)."""
DEFAULT_SHARE: Final = 0.9  # of a GPU that is vLLM's alone; TRL's default of vllm_gpu_memory_utilization
GRAPHS_GIB: Final = 1.0
"""Captured CUDA graphs, outside of vllm_gpu_memory_utilization. An allowance, not measured here."""
CPU_CACHE_GIB: Final = 1.0  # size of the cache on a CPU, VLLM_CPU_KVCACHE_SPACE
HEAD_SIZES: Final = {
    "GPU": (32, 64, 80, 96, 112, 120, 128, 160, 192, 224, 256),
    "CPU": (32, 64, 80, 96, 112, 128, 192, 256),
}
"""Sizes of attention heads that vLLM 0.7.0 runs: with FlashAttention, or PagedAttention, to which it falls back; on a
CPU those that csrc/cpu/attention.cpp is compiled for."""


@dataclass(frozen=True, slots=True)
class MemoryItem:
    """One line of a memory table, with the phases in which it is there."""

    name: str
    bytes: float
    phases: Sequence[str] = PHASES


@dataclass(frozen=True, slots=True)
class Memory:
    """The memory table of a device."""

    items: tuple[MemoryItem, ...]
    available_gib: float | None
    sequences: int | None = None  # of the longest prompt and completion that vLLM's cache holds; None if unknown

    def at(self, phase: str) -> float:
        """Return the GiB needed in a phase."""
        return sum(item.bytes for item in self.items if phase in item.phases) / GIB

    @property
    def phase(self) -> str:
        return max(PHASES, key=self.at)

    @property
    def total_gib(self) -> float:
        return self.at(self.phase)

    @property
    def fits(self) -> bool:
        """Whether the device has enough; unknown memory counts as enough."""
        return self.available_gib is None or self.total_gib <= self.available_gib

    def to_dict(self) -> dict[str, object]:
        return {
            "items": {item.name: _rounded(item.bytes / GIB) for item in self.items},
            "by_phase": {phase: _rounded(self.at(phase)) for phase in PHASES},
            "peak_phase": self.phase,
            "total": _rounded(self.total_gib),
            "available": self.available_gib,
            "sequences_that_fit": self.sequences,
        }


@dataclass(frozen=True, slots=True)
class UpdateLimits:
    """How much of an update a device does at once."""

    tokens: int  # of a micro-batch, padding included; a sequence that is longer is alone
    logits_bytes: int  # float32 logits of a micro-batch that are kept for its backward pass, not calculated again


UNKNOWN_LIMITS: Final = UpdateLimits(UNKNOWN_TOKENS, 0)


def training_memory(setup: TrainingSetup, limits: UpdateLimits | None = None) -> Memory:
    """Return the memory table of one training device; on a CPU of a worker, without a CUDA context.

    `limits` are by default those of `update_limits`.
    """
    batch = micro_batch(setup, limits or update_limits(setup))
    items = [
        *(_sharded_states(setup) if setup.zero.stage else _whole_states(setup)),
        MemoryItem("activations", activation_bytes(setup.shape, batch), (UPDATE,)),
        MemoryItem("logits, later a layer's backward", transient_bytes(setup.shape, batch), (UPDATE,)),
    ]
    if not setup.recipe.use_vllm:
        items += _sampling_work(setup)
    if not setup.on_cpu:
        peak = max(sum(item.bytes for item in items if phase in item.phases) for phase in PHASES)
        items.append(MemoryItem("CUDA context and fragmentation", CONTEXT_GIB * GIB + FRAGMENTATION * peak))
        if setup.recipe.use_vllm and setup.shared_gpu:
            items.append(MemoryItem("vLLM on the same GPU", vllm_memory(setup).total_gib * GIB))
    return Memory(tuple(item for item in items if item.bytes > 0), setup.gpu_memory_gib)


def _whole_states(setup: TrainingSetup) -> list[MemoryItem]:
    """Return the model states without DeepSpeed: every worker has all of them."""
    recipe, trained, w = setup.recipe, setup.trained_parameters, setup.weight_bytes
    own = 4 if recipe.use_peft else w  # an adapter's weights are float32
    items = [
        MemoryItem("weights", setup.frozen_bytes + trained * own if recipe.use_peft else trained * w),
        MemoryItem("reference model", setup.reference_parameters * w),
        MemoryItem("gradients", trained * own, (UPDATE, STEP)),
        MemoryItem("optimizer states", trained * setup.state_bytes(own)),
        # DistributedDataParallel holds the gradients once more.
        MemoryItem("DDP's gradient buckets", trained * own if setup.workers > 1 else 0),
        # torch's AdamW updates all tensors at once and needs their size again (its `foreach` option).
        MemoryItem("optimizer's temporaries", trained * own if recipe.optim == "adamw_torch" else 0, (STEP,)),
    ]
    if setup.autocast and own == 4 and not recipe.use_peft:
        items.append(MemoryItem("16-bit copies of the weights (autocast)", trained * 2, (UPDATE,)))
    if recipe.load_in_4bit or recipe.load_in_8bit:
        largest = max(inputs * outputs for inputs, outputs in setup.shape.linears.values())
        items.append(MemoryItem("one linear layer, unpacked", largest * 2, (ROLLOUT, UPDATE)))
    return items


def _sharded_states(setup: TrainingSetup) -> list[MemoryItem]:
    """Return the model states under ZeRO-2 and ZeRO-3 (arXiv:1910.02054, section 5; DeepSpeed 0.15.4's runtime/zero).

    With P parameters in 16 bits over N workers: 2P or 2P/N weights, 2P/N gradients (4P/N with grad_accum_dtype: fp32),
    12P/N float32 weights and Adam's moments, and at the step 4P/N float32 gradients.
    """
    recipe, shape, zero = setup.recipe, setup.shape, setup.zero
    trained, w = setup.trained_parameters, setup.compute_bytes
    part = trained / setup.workers
    group = min(part, zero.sub_group) if zero.stage == 3 else part
    on_gpu = 0 if zero.offload_optimizer else 1
    weights: float = (trained + (shape.parameters if recipe.use_peft else 0)) * w
    reference: float = setup.reference_parameters * w
    if zero.stage == 3:
        shard = 0 if zero.offload_weights else 1 / setup.workers
        weights, reference = weights * shard, reference * shard
    largest = shape.embedding_parameters if not recipe.use_peft else 0
    separate = zero.stage == 2 and (recipe.gradient_accumulation_steps > 1 or setup.gradient_bytes > w)
    items = [
        MemoryItem("weights", weights),
        MemoryItem("reference model", reference),
        MemoryItem("gradients", part * setup.gradient_bytes * on_gpu, (UPDATE, STEP)),
        # Stage 2 collects each micro-batch's own before it adds them (stage_1_and_2.py, copy_grads_in_partition).
        MemoryItem("gradients of one micro-batch", part * w * on_gpu if separate else 0, (UPDATE,)),
        MemoryItem("float32 weights", part * 4 * on_gpu),
        MemoryItem("optimizer states", part * setup.state_bytes(4) * on_gpu),
        MemoryItem("float32 gradients", group * 4 * on_gpu, (STEP,)),
        MemoryItem("optimizer's temporaries", group * 4 * on_gpu if recipe.optim == "adamw_torch" else 0, (STEP,)),
        MemoryItem("communication buckets", min(zero.bucket, trained) * zero.buckets * w, (UPDATE,)),
        # Whole until it is reduced; the embedding, which is also the output layer, is the largest.
        MemoryItem("largest gradient", largest * w, (UPDATE,)),
    ]
    if zero.stage == 3:
        # Transformers' own generation has them all gathered; otherwise as many as DeepSpeed keeps alive.
        live = max(min(shape.parameters, zero.live), shape.embedding_parameters) * w
        items.append(MemoryItem("gathered weights", live, (UPDATE,)))
        if not recipe.use_vllm:
            items.append(MemoryItem("weights gathered to generate", shape.parameters * w, (ROLLOUT,)))
    return items


def update_limits(setup: TrainingSetup) -> UpdateLimits:
    """Return the recipe's tokens of a micro-batch, else as many as fit with their logits, and the logits that fit."""
    recipe, longest, gib = setup.recipe, setup.recipe.longest_sequence, setup.gpu_memory_gib
    tokens = recipe.max_tokens_per_micro_batch
    if setup.on_cpu:
        return UpdateLimits(tokens or CPU_TOKENS, CPU_LOGITS_BYTES)
    if gib is None:
        return UpdateLimits(tokens or UNKNOWN_TOKENS, 0)

    def spare(tokens: int, logits_bytes: int) -> float:
        return UPDATE_SHARE * gib - training_memory(setup, UpdateLimits(tokens, logits_bytes)).at(UPDATE)

    each = 4 * setup.shape.vocabulary
    if tokens is None:
        sizes = range(longest + 1, max(MOST_TOKENS, longest) + 1)
        tokens = longest + bisect_left(sizes, True, key=lambda size: spare(size, size * each) < 0)
    if spare(tokens, tokens * each) >= 0:
        return UpdateLimits(tokens, tokens * each)
    return UpdateLimits(tokens, max(0, int(spare(tokens, 0) / (1 + FRAGMENTATION) * GIB)))


def micro_batch(setup: TrainingSetup, limits: UpdateLimits) -> MicroBatch:
    """Return the update's micro-batch at its largest; the reference's forward pass keeps nothing and is smaller."""
    recipe = setup.recipe
    adapters = 0.0
    if recipe.use_peft:
        adapters = adapter_bytes(setup.shape, recipe.lora_target_modules, 2 if setup.autocast else 4)
    return MicroBatch(
        max(1, min(limits.tokens / recipe.longest_sequence, setup.completions_per_worker)),
        recipe.max_prompt_length,
        recipe.max_completion_length,
        recipe.attn_implementation or "sdpa",
        setup.compute_bytes if setup.zero.stage else setup.weight_bytes,
        setup.compute_bytes,
        recipe.gradient_checkpointing,
        adapters,
        limits.logits_bytes,
    )


def kv_bytes_per_token(shape: ModelShape, each: int) -> int:
    """Return 2 * layers * kv heads * head size * bytes: keys and values (vLLM, arXiv:2309.06180, section 3)."""
    return 2 * shape.layers * shape.kv_width * each


def _sampling_work(setup: TrainingSetup) -> list[MemoryItem]:
    """Return the work of transformers' own generation: the cache of a batch at its longest, and one token's logits."""
    recipe, shape = setup.recipe, setup.shape
    prompts = recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps
    rows = min(prompts, max(1, SAMPLER_ROWS // recipe.num_generations)) * recipe.num_generations
    length = recipe.longest_sequence + SAMPLER_SPARE_TOKENS
    # One layer's keys and values are there twice while finished rows leave.
    cache = rows * length * kv_bytes_per_token(shape, setup.compute_bytes) * (1 + 1 / shape.layers)
    return [
        MemoryItem("key-value cache", cache, (ROLLOUT,)),
        # In float32: logits divided by the temperature, their softmax, and what the draw makes of it.
        MemoryItem("logits of a decoding step", rows * shape.vocabulary * 12, (ROLLOUT,)),
    ]


def vllm_share(setup: TrainingSetup) -> float:
    """Return the share of its whole GPU that vLLM 0.7.0 may take (gpu_memory_utilization), CUDA graphs not included.

    The recipe's; else DEFAULT_SHARE of a GPU that is vLLM's alone, and of one that training shares what its weights and
    the cache of a rollout need. Raises ValueError if the memory of a shared GPU is unknown.
    """
    if setup.recipe.vllm_gpu_memory_utilization is not None:
        return setup.recipe.vllm_gpu_memory_utilization
    if not setup.shared_gpu or setup.on_cpu:
        return DEFAULT_SHARE
    if setup.gpu_memory_gib is None:
        raise ValueError("the GPU's memory is not known")
    needed = sum(item.bytes for item in _vllm_items(setup)) + cached_sequences(setup) * _sequence_bytes(setup)
    needed *= 1 + FRAGMENTATION  # what vLLM measures may differ from this estimate
    return math.ceil(100 * needed / (setup.gpu_memory_gib * GIB)) / 100


def cached_sequences(setup: TrainingSetup) -> int:
    """Return the sequences that vLLM's cache has to hold: on a shared GPU those of a rollout that run at once."""
    return min(setup.rollout_rows, MAX_SEQUENCES) if setup.shared_gpu and not setup.on_cpu else 1


def vllm_memory(setup: TrainingSetup) -> Memory:
    """Return the memory table of vLLM's device; with unknown memory the items lack the cache.

    vLLM takes `vllm_share` of the device; what weights and activations leave of that is its cache.
    """
    items, available = _vllm_items(setup), setup.gpu_memory_gib
    cache: float = CPU_CACHE_GIB * GIB
    if not setup.on_cpu:
        graphs = MemoryItem("CUDA graphs", GRAPHS_GIB * GIB)
        if available is None:
            return Memory((*items, graphs), None)
        cache = max(0.0, vllm_share(setup) * available * GIB - sum(item.bytes for item in items))
        items.append(graphs)
    items.append(MemoryItem("key-value cache", cache))
    return Memory(tuple(items), available, int(cache // _sequence_bytes(setup)))


def _vllm_items(setup: TrainingSetup) -> list[MemoryItem]:
    """Return what is in vLLM's share besides its cache.

    The weights are those of the whole model in 16 or 32 bits, also of an adapter (merged) and of a quantized base.
    """
    shape, each = setup.shape, setup.compute_bytes
    tokens = max(PROFILED_TOKENS, setup.recipe.longest_sequence)
    # The forward pass that it profiles: gate, up and product, residual and norm; logits of every sequence in float32.
    activations = tokens * each * (3 * shape.intermediate + 4 * shape.hidden) + MAX_SEQUENCES * shape.vocabulary * 12
    items = [MemoryItem("weights", shape.parameters * each), MemoryItem("activations", activations)]
    if not setup.on_cpu:
        items.append(MemoryItem("CUDA context", CONTEXT_GIB * GIB))
    return items


def _sequence_bytes(setup: TrainingSetup) -> int:
    """Return what the longest prompt and completion take of vLLM's cache: whole blocks."""
    whole_blocks = -(-setup.recipe.longest_sequence // BLOCK) * BLOCK
    return whole_blocks * kv_bytes_per_token(setup.shape, setup.compute_bytes)


def _rounded(value: float) -> float:
    return round(value, 2 if value >= 0.1 else 5)
