"""What memory, disk and time are calculated from: recipe, model's shape, DeepSpeed's settings and devices."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from mini_r1.plan.shapes import ModelShape
from mini_r1.recipe.deepspeed_file import DEFAULT_BUCKET, DeepSpeedFile
from mini_r1.recipe.fields import Recipe

LIVE, SUB_GROUP, PREFETCH = 10**9, 10**9, 5 * 10**7
"""Elements; DeepSpeed 0.15.4's defaults of stage3_max_live_parameters, sub_group_size and stage3_prefetch_bucket_size
(runtime/zero/config.py)."""
IN_ORDER: Final = ("zero2", "zero3", "zero3-offload")
"""The shipped configurations, fastest first: each one shards more than the one before, and sends more."""
BLOCK_4BIT: Final = 64
"""Weights that share a float32 scale in bitsandbytes (QLoRA, arXiv:2305.14314, section 3)."""
STATE_BYTES: Final = {
    "adamw_torch": None, "adamw_torch_fused": None, "paged_adamw_32bit": 8.0,
    "adamw_8bit": 2.0, "adamw_bnb_8bit": 2.0, "paged_adamw_8bit": 2.0, "adafactor": 0.1, "sgd": 0.0,
}  # fmt: skip
"""Bytes of optimizer state per trained parameter; None: Adam's two moments in the parameter's own type. Adafactor keeps
rows and columns of its moment (arXiv:1804.04235): small, taken as 0.1."""


@dataclass(frozen=True, slots=True)
class ZeroSettings:
    """Settings of ZeRO (arXiv:1910.02054, section 5); sizes in elements."""

    stage: int = 0  # 0 without DeepSpeed; 2 shards gradients and optimizer, 3 the weights too
    offload_optimizer: bool = False  # optimizer states and float32 weights are in the host's memory
    offload_weights: bool = False  # the shards of the weights are there too
    bucket: int = 0  # gradients reduced at once
    buckets: int = 1  # at a time: two if reducing overlaps with the backward pass
    live: int = 0  # most weights of stage 3 that are kept whole, prefetched ones included
    sub_group: int = SUB_GROUP  # weights of stage 3 that the optimizer updates at once
    float32_gradients: bool = False  # the file's data_types.grad_accum_dtype, which the recipe's adds to


NO_ZERO = ZeroSettings()


@dataclass(frozen=True, slots=True)
class TrainingSetup:
    """A recipe with a model of known shape on given devices."""

    recipe: Recipe
    shape: ModelShape
    workers: int = 1  # over all nodes, N
    zero: ZeroSettings = NO_ZERO
    gpu_memory_gib: float | None = None  # of the smallest GPU; None if unknown
    on_cpu: bool = False
    vllm_devices: int = 1  # with vLLM: its processes, each on one device
    shared_gpu: bool = False  # vLLM's process is on the only worker's GPU

    @property
    def autocast(self) -> bool:
        """Whether layers calculate in 16 bits."""
        return self.recipe.bf16 or self.recipe.fp16

    @property
    def weight_bytes(self) -> int:
        """Bytes of a loaded weight, by `torch_dtype`."""
        dtype = self.shape.dtype if self.recipe.torch_dtype == "auto" else self.recipe.torch_dtype
        return 2 if dtype in ("bfloat16", "float16") else 4

    @property
    def compute_bytes(self) -> int:
        """Bytes of a value inside the model, in vLLM too; under ZeRO also of a weight."""
        return 2 if self.autocast else self.weight_bytes

    @property
    def gradient_bytes(self) -> int:
        """Bytes of an accumulated gradient under ZeRO."""
        return 4 if self.zero.float32_gradients or self.recipe.grad_accum_dtype == "fp32" else self.compute_bytes

    @property
    def trained_parameters(self) -> int:
        """Number of parameters to train: the adapter's, or all."""
        if self.recipe.use_peft:
            return self.shape.adapter_parameters(self.recipe.lora_r, self.recipe.lora_target_modules)
        return self.shape.parameters

    @property
    def reference_parameters(self) -> int:
        """Number of parameters of the reference model; an adapter's is the model without it."""
        return self.shape.parameters if self.recipe.beta and not self.recipe.use_peft else 0

    @property
    def frozen_bytes(self) -> float:
        """Bytes of all weights below an adapter.

        Linear layers are quantized; 4 bits have a float32 scale for each 64 weights, which double quantization makes
        0.127 bits a weight instead of 0.5 (QLoRA, section 3). peft keeps the rest in float32
        (`prepare_model_for_kbit_training`).
        """
        recipe, shape = self.recipe, self.shape
        if not (recipe.load_in_4bit or recipe.load_in_8bit):
            return shape.parameters * self.weight_bytes
        scale = 0.127 / 8 if recipe.use_bnb_nested_quant else 4 / BLOCK_4BIT
        each = 0.5 + scale if recipe.load_in_4bit else 1.0
        return shape.linear_parameters * each + (shape.parameters - shape.linear_parameters) * 4

    def state_bytes(self, own: int) -> float:
        """Return the bytes of optimizer state per trained parameter of `own` bytes."""
        state = STATE_BYTES[self.recipe.optim]
        return 2 * own if state is None else state

    @property
    def completions_per_worker(self) -> int:
        """Completions of an optimizer step on one worker."""
        recipe = self.recipe
        return recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps * recipe.num_generations

    @property
    def rollout_rows(self) -> int:
        """Most completions of a step that one vLLM process samples, or a worker without vLLM."""
        if not self.recipe.use_vllm:
            return self.completions_per_worker
        prompts = self.workers * self.completions_per_worker // self.recipe.num_generations
        return -(-prompts // self.vllm_devices) * self.recipe.num_generations


def zero_settings(file: DeepSpeedFile, shape: ModelShape) -> ZeroSettings:
    """Return the settings of a configuration; "auto" as the kit and transformers 4.48.1 fill it in."""
    values = file.fill_bucket(shape.parameters, shape.largest_parameter).values["zero_optimization"]
    square = shape.hidden**2  # HfTrainerDeepSpeedConfig.trainer_config_finalize
    live = _size(values, "stage3_max_live_parameters", LIVE, LIVE)
    prefetch = _size(values, "stage3_prefetch_bucket_size", PREFETCH, int(0.9 * square))
    return ZeroSettings(
        stage=file.stage,
        offload_optimizer=file.offloads("optimizer"),
        offload_weights=file.offloads("param"),
        bucket=_size(values, "reduce_bucket_size", DEFAULT_BUCKET, square),
        buckets=2 if values.get("overlap_comm", file.stage == 3) else 1,
        live=live + prefetch if file.stage == 3 else 0,
        sub_group=_size(values, "sub_group_size", SUB_GROUP, SUB_GROUP),
        float32_gradients=(file.values.get("data_types") or {}).get("grad_accum_dtype") in ("fp32", "float32"),
    )


def _size(values: Mapping[str, Any], key: str, default: int, auto: int) -> int:
    value = values.get(key, default)
    if value == "auto":
        return auto
    return int(value) if isinstance(value, int | float) and not isinstance(value, bool) else default
