"""Memory of a training device, item by item, and which moment of a step needs most.

Weights and optimizer are there all the time; the rollout, the update and the optimizer's step each need more at another
moment. What must fit is the largest of the three. Formulas and sources: docs/plan.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from mini_r1.plan.activations import MicroBatch, Pass, activation_bytes, adapter_bytes, passing_bytes
from mini_r1.plan.shapes import ModelShape
from mini_r1.plan.zero_memory import Zero
from mini_r1.recipe.fields import Recipe

GIB: Final = 2**30
ROLLOUT, UPDATE, STEP = "rollout", "update", "optimizer step"
PHASES: Final = (ROLLOUT, UPDATE, STEP)

CONTEXT_GIB: Final = 1.0
"""CUDA context, cuBLAS workspace, NCCL's channels. An allowance, not measured here."""
FRAGMENTATION: Final = 0.05
"""Share of the rest that PyTorch's allocator holds and cannot use. An allowance, not measured here."""
SAMPLER_ROWS: Final = 1024
"""`generation.sampler.SamplingConfig.batch_rows`; a test compares them."""
SAMPLER_ROOM: Final = 8
"""`generation.sampler.COMPACT_EVERY`: tokens of room that a compacted cache has."""
BLOCK_4BIT: Final = 64
"""Weights that share a float32 scale in bitsandbytes (QLoRA, arXiv:2305.14314, section 3)."""
STATE_BYTES: Final = {
    "adamw_torch": None, "adamw_torch_fused": None, "paged_adamw_32bit": 8.0,
    "adamw_8bit": 2.0, "adamw_bnb_8bit": 2.0, "paged_adamw_8bit": 2.0, "adafactor": 0.1, "sgd": 0.0,
}  # fmt: skip
"""Bytes of optimizer state for each trained parameter; None: Adam's two moments in the parameter's own type. Adafactor
keeps rows and columns of its moment (arXiv:1804.04235): small, taken as 0.1."""


@dataclass(frozen=True, slots=True)
class Item:
    """One line of a table.

    Attributes:
        name: what it is.
        bytes: how much.
        phases: the moments it is there.
        counted: whether ZeRO's own estimate of model states has it (docs/plan.md).
    """

    name: str
    bytes: float
    phases: Sequence[str] = PHASES
    counted: bool = False


@dataclass(frozen=True, slots=True)
class Memory:
    """A device's table."""

    items: tuple[Item, ...]
    available_gib: float | None

    def at(self, phase: str) -> float:
        """GiB in a phase."""
        return sum(item.bytes for item in self.items if phase in item.phases) / GIB

    @property
    def phase(self) -> str:
        """The moment that needs most."""
        return max(PHASES, key=self.at)

    @property
    def total_gib(self) -> float:
        """What must fit."""
        return self.at(self.phase)

    @property
    def fits(self) -> bool:
        """Whether it does; unknown memory counts as enough."""
        return self.available_gib is None or self.total_gib <= self.available_gib

    def to_dict(self) -> dict[str, object]:
        """For --json."""
        return {
            "items": {item.name: _rounded(item.bytes / GIB) for item in self.items},
            "by_phase": {phase: _rounded(self.at(phase)) for phase in PHASES},
            "peak_phase": self.phase,
            "total": _rounded(self.total_gib),
            "available": self.available_gib,
        }


def weight_bytes(recipe: Recipe, shape: ModelShape) -> int:
    """Bytes of a loaded weight, by `torch_dtype`."""
    dtype = shape.dtype if recipe.torch_dtype == "auto" else recipe.torch_dtype
    return 2 if dtype in ("bfloat16", "float16") else 4


def compute_bytes(recipe: Recipe, shape: ModelShape) -> int:
    """Bytes of a value inside the model: 16 bits by `bf16` or `fp16`, or because the weights are. vLLM's type too."""
    return 2 if recipe.bf16 or recipe.fp16 else weight_bytes(recipe, shape)


def frozen_bytes(recipe: Recipe, shape: ModelShape) -> float:
    """Of all weights below an adapter.

    Quantized are the linear layers; 4 bits have a float32 scale for each 64 weights, which double quantization makes
    0.127 bits a weight instead of 0.5 (QLoRA, section 3). peft keeps the rest in float32
    (`prepare_model_for_kbit_training`).
    """
    if not (recipe.load_in_4bit or recipe.load_in_8bit):
        return shape.parameters * weight_bytes(recipe, shape)
    scale = 0.127 / 8 if recipe.use_bnb_nested_quant else 4 / BLOCK_4BIT
    each = 0.5 + scale if recipe.load_in_4bit else 1.0
    return shape.linear_parameters * each + (shape.parameters - shape.linear_parameters) * 4


def trained_parameters(recipe: Recipe, shape: ModelShape) -> int:
    """How many there are to train: the adapter's, or all."""
    if recipe.use_peft:
        return shape.adapter_parameters(recipe.lora_r, recipe.lora_target_modules)
    return shape.parameters


def micro_batch(recipe: Recipe) -> MicroBatch:
    """The recipe's, at its longest."""
    sequences = recipe.per_device_train_batch_size * recipe.num_generations
    return MicroBatch(sequences, recipe.max_prompt_length, recipe.max_completion_length)


def training_memory(
    recipe: Recipe, shape: ModelShape, zero: Zero, workers: int, *, available_gib: float | None, on_cpu: bool
) -> Memory:
    """The table of one training device.

    Args:
        recipe: what is trained.
        shape: of its model.
        zero: DeepSpeed's settings, stage 0 without it.
        workers: training devices over all nodes, N.
        available_gib: the device's memory; None where it is not known.
        on_cpu: then it is a worker's part of the host's memory, and there is no CUDA context.
    """
    states = _sharded(recipe, shape, zero, workers) if zero.stage else _whole(recipe, shape, workers)
    items = [*states, *_working(recipe, shape, zero)]
    if not recipe.use_vllm:
        items += _sampling(recipe, shape, compute_bytes(recipe, shape))
    if not on_cpu:
        # Fragmentation is a share of the fullest moment, whichever that is.
        peak = max(sum(item.bytes for item in items if phase in item.phases) for phase in PHASES)
        items.append(Item("CUDA context and fragmentation", CONTEXT_GIB * GIB + FRAGMENTATION * peak))
    return Memory(tuple(item for item in items if item.bytes > 0), available_gib)


# --- states ---


def _whole(recipe: Recipe, shape: ModelShape, workers: int) -> list[Item]:
    """Every worker has everything; DDP's buckets hold the gradients once more."""
    trained, w = trained_parameters(recipe, shape), weight_bytes(recipe, shape)
    own = 4 if recipe.use_peft else w  # an adapter's weights are float32
    state = STATE_BYTES[recipe.optim]
    moments = trained * (2 * own if state is None else state)
    weights = frozen_bytes(recipe, shape) if recipe.use_peft else trained * w
    items = [
        Item("weights", weights + (trained * own if recipe.use_peft else 0)),
        Item("reference model", shape.parameters * w if recipe.beta and not recipe.use_peft else 0),
        Item("gradients", trained * own, (UPDATE, STEP)),
        Item("optimizer states", moments),
        Item("DDP's gradient buckets", trained * own if workers > 1 else 0),
        # torch's AdamW updates all tensors at once and needs their size again (its `foreach` option).
        Item("optimizer's temporaries", trained * own if recipe.optim == "adamw_torch" else 0, (STEP,)),
    ]
    if (recipe.bf16 or recipe.fp16) and own == 4 and not recipe.use_peft:
        items.append(Item("16-bit copies of the weights (autocast)", trained * 2, (UPDATE,)))
    if recipe.load_in_4bit or recipe.load_in_8bit:
        largest = max(inputs * outputs for inputs, outputs in shape.linears.values())
        items.append(Item("one linear layer, unpacked", largest * 2, (ROLLOUT, UPDATE)))
    return items


def _sharded(recipe: Recipe, shape: ModelShape, zero: Zero, workers: int) -> list[Item]:
    """ZeRO-2 and ZeRO-3 (arXiv:1910.02054, section 5; numbers of DeepSpeed 0.15.4's runtime/zero).

    With P parameters in 16 bits over N workers: 2P or 2P/N weights, 2P/N gradients, 12P/N float32 weights and Adam's
    moments, and at the step 4P/N float32 gradients.
    """
    trained = trained_parameters(recipe, shape)
    frozen = shape.parameters if recipe.use_peft else 0
    w = 2 if recipe.bf16 or recipe.fp16 else weight_bytes(recipe, shape)
    part = trained / workers
    group = min(part, zero.sub_group) if zero.stage == 3 else part
    state = STATE_BYTES[recipe.optim]
    on_gpu = 0 if zero.offload_optimizer else 1
    all_weights = (trained + frozen) * w
    sharded_weights = 0 if zero.offload_weights else all_weights / workers
    reference: float = shape.parameters * w if recipe.beta and not recipe.use_peft else 0
    if zero.stage == 3:
        reference = 0 if zero.offload_weights else reference / workers
    largest = shape.embedding_parameters if not recipe.use_peft else 0
    items = [
        Item("weights", sharded_weights if zero.stage == 3 else all_weights, counted=True),
        Item("reference model", reference),
        Item("gradients", part * w * on_gpu, (UPDATE, STEP), counted=True),
        Item("float32 weights", part * 4 * on_gpu, counted=True),
        Item("optimizer states", part * (8.0 if state is None else state) * on_gpu, counted=True),
        Item("float32 gradients", group * 4 * on_gpu, (STEP,), counted=True),
        Item("optimizer's temporaries", group * 4 * on_gpu if recipe.optim == "adamw_torch" else 0, (STEP,)),
        Item("communication buckets", min(zero.bucket, trained) * zero.buckets * w, (UPDATE,)),
        # Whole until it is reduced; the embedding, which is also the output layer, is the largest.
        Item("largest gradient", largest * w, (UPDATE,)),
    ]
    if zero.stage == 3:
        # Transformers' own generation has them all gathered; otherwise as many as DeepSpeed keeps alive.
        live = max(min(shape.parameters, zero.live), shape.embedding_parameters) * w
        items.append(Item("gathered weights", live, (UPDATE,)))
        if not recipe.use_vllm:
            items.append(Item("weights gathered to generate", shape.parameters * w, (ROLLOUT,)))
    return items


# --- work ---


def _working(recipe: Recipe, shape: ModelShape, zero: Zero) -> list[Item]:
    """The forward and backward pass of a micro-batch; the reference's forward pass keeps nothing and is smaller."""
    batch, compute = micro_batch(recipe), compute_bytes(recipe, shape)
    residual = 2 if zero.stage and (recipe.bf16 or recipe.fp16) else weight_bytes(recipe, shape)
    autocast = recipe.bf16 or recipe.fp16
    extra = adapter_bytes(shape, recipe.lora_target_modules, 2 if autocast else 4) if recipe.use_peft else 0.0
    how = Pass(recipe.attn_implementation or "sdpa", residual, compute, recipe.gradient_checkpointing, extra)
    return [
        Item("activations", activation_bytes(shape, batch, how), (UPDATE,)),
        Item("logits, later a layer's backward", passing_bytes(shape, batch, how), (UPDATE,)),
    ]


def kv_bytes_per_token(shape: ModelShape, each: int) -> int:
    """Keys and values of all layers: 2 * layers * kv heads * head size * bytes (vLLM, arXiv:2309.06180, section 3)."""
    return 2 * shape.layers * shape.kv_width * each


def _sampling(recipe: Recipe, shape: ModelShape, compute: int) -> list[Item]:
    """Transformers' own generation: the cache of a batch at its longest, and the logits of one token of each row."""
    prompts = recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps
    at_once = min(prompts, max(1, SAMPLER_ROWS // recipe.num_generations))
    rows = at_once * recipe.num_generations
    length = recipe.max_prompt_length + recipe.max_completion_length + SAMPLER_ROOM
    # One layer's keys and values are there twice while finished rows leave.
    cache = rows * length * kv_bytes_per_token(shape, compute) * (1 + 1 / shape.layers)
    return [
        Item("key-value cache", cache, (ROLLOUT,)),
        # In float32: logits divided by the temperature, their softmax, and what the draw makes of it.
        Item("logits of a decoding step", rows * shape.vocabulary * 12, (ROLLOUT,)),
    ]


def _rounded(value: float) -> float:
    return round(value, 2 if value >= 0.1 else 5)
