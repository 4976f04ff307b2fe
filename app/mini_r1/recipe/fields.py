"""The recipe: WHAT to train, as one validated model with TRL's and transformers' own flat key names.

Defaults are those of TRL 0.14.0 and transformers 4.48.1 unless a field says otherwise. No torch: planning, scoring
and `--help` load this on a laptop. Reading a file, with its line numbers, is recipe_file.py's job.

    Recipe(model_name_or_path="builtin:demo", max_steps=10)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from mini_r1.recipe.builtin_models import BUILTIN_MODELS, DEMO_MODEL, BuiltinModel
from mini_r1.recipe.field_types import (
    DEFAULT_REWARDS,
    GENERATED,
    LOCAL_ENDINGS,
    REWARD_NAMES,
    Count,
    Flag,
    Kwargs,
    Number,
    Optimizer,
    RewardName,
    Scheduler,
    Seed,
    Share,
    Text,
    Whole,
    data_source,
    device_name,
    evaluation_strategy,
    group_size,
    hub_name,
    model_name,
    only,
    report_names,
    reward_weights,
    scoring_name,
    steps_or_epochs,
    text_list,
    watch_mapping,
    yaml_no,
)
from mini_r1.recipe.nested import RECIPE_CONFIG, GeneratorRecipe, WarmStartRecipe, WatchRecipe

__all__ = [
    "DEFAULT_REWARDS", "DEMO_MODEL", "GENERATED", "REWARD_NAMES", "GeneratorRecipe", "Recipe", "WarmStartRecipe",
    "WatchRecipe",
]  # fmt: skip


NESTED: Final[dict[str, type[BaseModel]]] = {
    "generator": GeneratorRecipe, "warm_start": WarmStartRecipe, "watch": WatchRecipe,
}  # fmt: skip
"""Keys that hold a mapping with fields of its own."""


class Recipe(BaseModel):
    """One training run. Lengths are in tokens, durations in seconds, batches in prompts."""

    model_config = RECIPE_CONFIG

    # Model
    model_name_or_path: Annotated[Text, AfterValidator(model_name)]
    """Hub id, local directory, or `builtin:demo` and `builtin:scratch`, which are made on the spot. Required."""
    model_revision: Text = "main"
    """Branch, tag or commit on the hub; what it resolved to is recorded in the run directory."""
    tokenizer_name_or_path: Text | None = None
    """Where the tokenizer comes from; null is the model's own."""
    torch_dtype: Literal["auto", "bfloat16", "float16", "float32"] | None = None
    """Type of the loaded weights; null is transformers' own choice, float32."""
    attn_implementation: Literal["eager", "sdpa", "flash_attention_2"] | None = None
    """Attention kernel; null lets transformers choose, which is sdpa for the models here."""
    trust_remote_code: Annotated[
        Flag, only(False, "code from a model repository is never run; use a model that transformers knows")
    ] = False
    """Only false: the kit runs no code that comes with a model."""
    output_dir: Text | None = None
    """The run directory; null is `runs/` and the recipe file's name without its ending."""

    # Data
    dataset_id_or_path: Annotated[Text, AfterValidator(data_source)] = "Jiayi-Pan/Countdown-Tasks-3to4"
    """Hub id, local .jsonl or .parquet file, or `generated` (offline). The default is the original's."""
    dataset_revision: Text | None = None
    """Branch, tag or commit of the hub set; null is the newest, and what it was is recorded."""
    dataset_splits: Annotated[Literal["train"], only("train", "the set has this split only")] = "train"
    """The hub set's split; a key of the original's script, with one possible value."""
    dataset_rows: Annotated[Whole, Field(ge=2)] | None = 50_000
    """Rows used, drawn by `dataset_seed`; null is all. The default is the original's."""
    dataset_seed: Seed = 42
    """Of choice and split; apart from `seed`, so that runs with other seeds share the held-out part."""
    test_fraction: Share = 0.1
    """Share of the rows held out; the original's 90/10."""
    split_by: Literal["key", "numbers"] = "key"
    """What never stands in both parts: the key (sorted numbers, target), or the numbers with any target."""
    generator: GeneratorRecipe | None = None
    """The distribution of generated problems; only with `dataset_id_or_path: generated`. Null is the hub set's."""

    # Task
    prompt_style: Literal["script", "notebook"] = "script"
    """Which of the original's two user messages is asked; its published recipe ran with the script's."""
    scoring: Annotated[Literal["kit", "original"], BeforeValidator(scoring_name)] = "kit"
    """`kit` is the exact scorer, `original` that of the original, errors included. All four are logged either way."""
    rewards: Annotated[dict[RewardName, Number], AfterValidator(reward_weights)] | None = None
    """Weight of each reward in the sum; null is format 1 and equation 1, as in the original."""

    # Length and batch
    max_steps: Annotated[Whole, AfterValidator(steps_or_epochs)] = -1
    """Optimizer steps; -1 counts `num_train_epochs`."""
    num_train_epochs: Annotated[Number, Field(ge=0)] = 3.0
    """Passes over the data, when `max_steps` is -1."""
    per_device_train_batch_size: Count = 1
    """PROMPTS per device and micro step: TRL 0.14 counts prompts, 0.15 and later completions."""
    gradient_accumulation_steps: Count = 8
    """Micro steps per optimizer step; TRL 0.14.0's default."""
    gradient_checkpointing: Flag = False
    """Recompute activations in the backward pass: about a third more time for far less memory."""
    gradient_checkpointing_kwargs: Kwargs | None = None
    """Arguments of torch's checkpoint; `use_reentrant: false` in the published recipe."""

    # Optimizer
    learning_rate: Annotated[Number, Field(gt=0)] = 1e-6
    """Peak learning rate; TRL's default. The original has 5e-7: 1e-6 with beta 0.04 is unstable past step 150."""
    lr_scheduler_type: Scheduler = "linear"
    """Course of the learning rate after the warm-up."""
    lr_scheduler_kwargs: Kwargs | None = None
    """Arguments of the schedule, e.g. `min_lr` of cosine_with_min_lr."""
    warmup_ratio: Annotated[Number, Field(ge=0, le=1)] = 0.0
    """Share of all steps over which the learning rate rises from 0."""
    warmup_steps: Annotated[Whole, Field(ge=0)] = 0
    """The same as a number of steps; above 0 it overrides `warmup_ratio`."""
    optim: Optimizer = "adamw_torch"
    """Optimizer; the 8-bit and paged ones need bitsandbytes and a GPU."""
    weight_decay: Annotated[Number, Field(ge=0)] = 0.0
    """AdamW's decoupled weight decay."""
    adam_beta1: Share = 0.9
    """Decay of Adam's first moment."""
    adam_beta2: Share = 0.999
    """Decay of Adam's second moment."""
    adam_epsilon: Annotated[Number, Field(gt=0)] = 1e-8
    """Added to Adam's denominator."""
    max_grad_norm: Annotated[Number, Field(ge=0)] = 1.0
    """Gradients above this norm are scaled down to it; 0 switches clipping off."""
    bf16: Flag = False
    """Compute in bfloat16 (mixed precision)."""
    fp16: Flag = False
    """Compute in float16 with loss scaling, for GPUs older than compute capability 8.0."""
    tf32: Flag | None = None
    """TensorFloat-32 matrix products on Ampere and newer; null leaves torch's setting."""

    # GRPO and generation
    beta: Annotated[Number, Field(ge=0)] = 0.04
    """Weight of the KL term; TRL's default, the original has 0.001. 0 needs no reference model."""
    temperature: Annotated[Number, Field(gt=0)] = 0.9
    """Sampling temperature; TRL 0.14.0's default, and the original's."""
    num_generations: Annotated[Whole, AfterValidator(group_size)] = 8
    """Completions per prompt, the group that advantages are taken over; at least 2."""
    scale_rewards: Flag = True
    """Divide advantages by their group's standard deviation, as GRPO does; TRL 0.15's name. False is Dr. GRPO's
    way (arXiv:2503.20783): the division favours problems that are almost always or almost never solved."""
    drop_zero_variance_groups: Flag = False
    """Groups whose completions all have the same reward leave the update: they have no advantage and would add only
    the KL term. DAPO's filter (arXiv:2503.14476, section 3.2) without its resampling."""
    max_prompt_length: Count = 512
    """Tokens a prompt may have; TRL's default."""
    max_completion_length: Count = 256
    """Tokens a completion may have; TRL's default. A longer one is cut and scored as it is."""
    use_vllm: Flag = False
    """Generate with vLLM on the last device; false generates with transformers on the training devices."""
    vllm_device: Annotated[Text, BeforeValidator(device_name)] = "auto"
    """Read for old files and ignored: the launcher computes the device (a number becomes `cuda:N`)."""
    vllm_gpu_memory_utilization: Annotated[Number, Field(gt=0, le=1)] = 0.9
    """Share of its device's memory that vLLM takes; TRL's default."""

    # Adapters (TRL's ModelConfig)
    use_peft: Flag = False
    """Train a LoRA adapter instead of all weights."""
    lora_r: Count = 16
    """Rank of the adapter."""
    lora_alpha: Count = 32
    """The adapter is scaled by `lora_alpha / lora_r`."""
    lora_dropout: Share = 0.05
    """Dropout before the adapter."""
    lora_target_modules: Annotated[list[Text], Field(min_length=1), BeforeValidator(text_list)] | None = None
    """Modules that get an adapter, a name or a list (`all-linear` is peft's word for all); null is peft's choice."""
    load_in_4bit: Flag = False
    """Load the frozen weights in 4 bits (QLoRA); needs bitsandbytes and a GPU."""
    load_in_8bit: Flag = False
    """Load the frozen weights in 8 bits; needs bitsandbytes and a GPU."""
    bnb_4bit_quant_type: Literal["fp4", "nf4"] = "nf4"
    """The 4-bit type: NormalFloat, made for weights (QLoRA, arXiv:2305.14314), or plain 4-bit floats."""
    use_bnb_nested_quant: Flag = False
    """Quantize the 4-bit scales too (QLoRA's double quantization): saves 0.37 bits per weight by the paper."""

    # Logging and saving
    logging_strategy: Annotated[Literal["steps"], only("steps", "the curve is read by step")] = "steps"
    """Metrics are logged by optimizer step; the only choice."""
    logging_steps: Count = 1
    """Optimizer steps between two lines. transformers' 500 would print nothing in 450 steps of a minute each."""
    logging_first_step: Flag = False
    """Log step 1 too when `logging_steps` is above 1."""
    report_to: Annotated[list[str], BeforeValidator(report_names)] = ["tensorboard"]
    """Trackers, a name or a list; TensorBoard is always among them. `all` is every one that is installed."""
    run_name: Text | None = None
    """Name shown by the trackers; null is the run directory's."""
    save_strategy: Annotated[Literal["steps", "no"], BeforeValidator(yaml_no)] = "steps"
    """`no` saves at the end and when interrupted only."""
    save_steps: Count = 25
    """Optimizer steps between checkpoints; the original's 25 are about 20 minutes, what a killed job loses at most."""
    save_minutes: Annotated[Number, Field(ge=0)] | None = None
    """A checkpoint, without a snapshot, also when this many minutes have passed since the last; null and 0: never."""

    # Evaluation while training, on the held-out problems
    eval_strategy: Annotated[Literal["no", "steps"], BeforeValidator(evaluation_strategy)] = "no"
    """`steps` measures success on held-out problems every `eval_steps`; `mini-r1 evaluate` does it afterwards."""
    eval_steps: Count | None = None
    """Optimizer steps between two evaluations; null is `save_steps`, so that each stands beside a snapshot."""
    eval_on_start: Flag = False
    """Evaluate before the first step too."""
    eval_problems: Annotated[Whole, Field(ge=1)] | None = 200
    """Held-out problems per evaluation, the same ones each time; null is all. 200 tell a success rate to a
    standard error of 3.5 points at worst."""

    # Trouble
    watch: Annotated[WatchRecipe, BeforeValidator(watch_mapping)] = WatchRecipe()
    """What the run watches itself for, and whether it warns or stops."""

    # Run
    seed: Seed = 42
    """Of everything random in training: order of prompts, sampling, dropout."""
    ddp_timeout: Count = 1_800
    """Seconds before a collective gives up; transformers' default."""
    hang_timeout_s: Annotated[Whole, Field(ge=10)] = 1_200
    """Seconds that a worker may spend in one phase (a rollout, an update, loading the model) before the launcher takes
    it for hung: it has the stacks written, stops the run and exits 150. Below `ddp_timeout`, so that the stacks show
    the collective that waits, and not what became of it."""
    dataloader_num_workers: Annotated[Whole, Field(ge=0, le=64)] = 0
    """Loader processes per device; rows are a few numbers, so none are needed."""

    # Hub (the token comes from HF_TOKEN only)
    push_to_hub: Flag = False
    """Push snapshots and logs to the hub while training; nothing leaves the machine unless this says so."""
    hub_model_id: Annotated[Text, AfterValidator(hub_name)] | None = None
    """Repository to publish to; null is the run directory's name in the user's own space."""
    hub_strategy: Literal["end", "every_save", "checkpoint", "all_checkpoints"] = "every_save"
    """When: `every_save`, in the background, or all at the `end`; checkpoints are pickles and never pushed."""
    hub_private_repo: Flag = True
    """Make a new repository private: the safe side; transformers leaves it to the account, mostly public."""

    # Demo
    warm_start: WarmStartRecipe | None = None
    """Imitation before GRPO; only with a built-in model."""

    @model_validator(mode="after")
    def _cross_checks(self) -> Recipe:
        """All faults at once, each at the keys it is about."""
        faults: list[InitErrorDetails] = [
            {
                "type": PydanticCustomError("cross_check", "{text}", {"text": text, "keys": keys}),
                "loc": (),
                "input": None,
            }
            for keys, text in self._faults()
        ]
        if faults:
            raise ValidationError.from_exception_data("Recipe", faults, hide_input=True)
        return self

    def _faults(self) -> Iterator[tuple[tuple[str, ...], str]]:
        """Contradictions between keys: the keys, and one sentence with what to do."""
        if self.max_steps == -1 and self.num_train_epochs == 0:
            yield ("max_steps", "num_train_epochs"), "nothing to train: set max_steps, or num_train_epochs above 0"
        if self.bf16 and self.fp16:
            yield ("fp16", "bf16"), "bf16 and fp16 are both true: set one of them false"
        if self.fp16 and self.torch_dtype == "float16" and not self.use_peft:
            yield ("fp16", "torch_dtype", "use_peft"), "loss scaling needs float32 weights: set torch_dtype: float32"
        if self.attn_implementation == "flash_attention_2" and not (self.bf16 or self.fp16):  # noqa: SIM102
            if self.torch_dtype in (None, "float32"):
                yield (
                    ("attn_implementation", "torch_dtype", "bf16", "fp16"),
                    "flash_attention_2 computes in 16 bits only: set bf16: true or torch_dtype: bfloat16, or sdpa",
                )
        if self.push_to_hub and self.hub_strategy in ("checkpoint", "all_checkpoints"):
            yield (
                ("hub_strategy", "push_to_hub"),
                "checkpoints are pickles for this run alone and are not published: set hub_strategy to every_save or "
                "end",
            )
        if self.lr_scheduler_type == "reduce_lr_on_plateau":
            yield (
                ("lr_scheduler_type",),
                "reduce_lr_on_plateau follows a loss on held-out data, which GRPO does not have: choose cosine",
            )
        wanted = {
            "cosine_with_min_lr": ({"min_lr"}, {"min_lr_rate"}),
            "warmup_stable_decay": ({"num_stable_steps", "num_decay_steps"},),
        }.get(self.lr_scheduler_type, ())
        if wanted and not any(names <= set(self.lr_scheduler_kwargs or {}) for names in wanted):
            names = " or ".join(" and ".join(sorted(names)) for names in wanted)
            yield (
                ("lr_scheduler_kwargs", "lr_scheduler_type"),
                f"{self.lr_scheduler_type} needs {names} in lr_scheduler_kwargs",
            )
        if 0 < self.max_steps < self.warmup_steps:
            yield ("warmup_steps", "max_steps"), f"the warm-up is longer than the run: at most {self.max_steps} steps"
        if self.generator and self.dataset_id_or_path != GENERATED:
            yield (
                ("generator", "dataset_id_or_path"),
                f"a generator is used with dataset_id_or_path: {GENERATED} only: write that, or take it out",
            )
        if self.dataset_id_or_path == GENERATED and self.dataset_rows is None:
            yield ("dataset_rows", "dataset_id_or_path"), "generated data has no end: say how many rows"
        if self.eval_strategy == "steps" and self.test_fraction == 0:
            yield (
                ("eval_strategy", "test_fraction"),
                "test_fraction is 0, so nothing is held out to evaluate on: set it above 0, or eval_strategy: no",
            )
        if self.use_vllm and self.use_peft:
            yield (
                ("use_peft", "use_vllm"),
                "an adapter cannot be generated with through vLLM, there is no merge and TRL 0.14.0 loads wrong names:"
                " set use_vllm or use_peft false",
            )
        if self.load_in_4bit and self.load_in_8bit:
            yield ("load_in_8bit", "load_in_4bit"), "load_in_4bit and load_in_8bit are both true: set one of them false"
        elif (self.load_in_4bit or self.load_in_8bit) and not self.use_peft:
            key = "load_in_4bit" if self.load_in_4bit else "load_in_8bit"
            yield (key, "use_peft"), "quantized weights cannot be trained themselves: set use_peft: true"
        if self.warm_start and self.built_in is None:
            yield (
                ("warm_start", "model_name_or_path"),
                f"a warm start is for {' and '.join(BUILTIN_MODELS)} only: take it out",
            )
        if self.scoring == "original" and self.rewards:
            for name in ("format", "equation"):
                if name in self.rewards and f"{name}_original" in self.rewards:
                    yield (
                        ("rewards", "scoring"),
                        f"under scoring: original '{name}' means '{name}_original': name one of the two",
                    )

    def warnings(self) -> list[str]:
        """What is allowed and has no effect, or not the expected one; one sentence each."""
        changed = {name for name, field in type(self).model_fields.items() if getattr(self, name) != field.default}
        found = []
        if "vllm_device" in changed:
            found.append("vllm_device is ignored: the launcher gives vLLM the last device")
        idle = sorted(name for name in changed if name.startswith("lora_"))
        if idle and not self.use_peft:
            found.append(f"{', '.join(idle)}: no effect without use_peft: true")
        idle = sorted(changed & {"bnb_4bit_quant_type", "use_bnb_nested_quant"})
        if idle and not self.load_in_4bit:
            found.append(f"{', '.join(idle)}: no effect without load_in_4bit: true")
        if self.save_minutes and self.save_strategy == "no":
            found.append("save_minutes: no effect without save_strategy: steps")
        idle = sorted(changed & {"eval_steps", "eval_on_start", "eval_problems"})
        if idle and self.eval_strategy == "no":
            found.append(f"{', '.join(idle)}: no effect without eval_strategy: steps")
        idle = sorted(changed & {"hub_model_id", "hub_strategy", "hub_private_repo"})
        if idle and not self.push_to_hub:
            found.append(f"{', '.join(idle)}: no effect without push_to_hub: true")
        if self.gradient_checkpointing_kwargs and not self.gradient_checkpointing:
            found.append("gradient_checkpointing_kwargs: no effect without gradient_checkpointing: true")
        if self.warmup_steps and self.warmup_ratio:
            found.append("warmup_ratio: no effect, warmup_steps overrides it")
        if self.dataset_revision and not self.data_on_hub:
            found.append("dataset_revision: no effect, the data does not come from the hub")
        if self.test_fraction == 0:
            found.append("test_fraction is 0: nothing is held out to evaluate on")
        return found

    @property
    def eval_every(self) -> int | None:
        """Optimizer steps between two evaluations; None when there is none while training."""
        return None if self.eval_strategy == "no" else self.eval_steps or self.save_steps

    @property
    def data_on_hub(self) -> bool:
        """Whether the data comes from the hub, rather than a file or the generator."""
        return self.dataset_id_or_path != GENERATED and not self.dataset_id_or_path.endswith(LOCAL_ENDINGS)

    @property
    def built_in(self) -> BuiltinModel | None:
        """The built-in model that the recipe names, as its warm start changes it; None for any other model."""
        model = BUILTIN_MODELS.get(self.model_name_or_path)
        return (self.warm_start or WarmStartRecipe()).applied_to(model) if model else None

    @property
    def longest_sequence(self) -> int:
        """Tokens of the longest prompt and completion together."""
        return self.max_prompt_length + self.max_completion_length

    def resolved_rewards(self) -> dict[str, float]:
        """The rewards that are summed, by the name of the function: under `scoring: original` the original's two."""
        weights: dict[str, float] = {str(name): weight for name, weight in (self.rewards or DEFAULT_REWARDS).items()}
        if self.scoring == "original":
            return {f"{name}_original" if name in DEFAULT_REWARDS else name: value for name, value in weights.items()}
        return weights
