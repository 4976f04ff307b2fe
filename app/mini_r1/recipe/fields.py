"""The recipe: WHAT to train, as one validated model with TRL's and transformers' own flat key names.

Defaults are those of TRL 0.14.0 and transformers 4.48.1 unless the docstring names another. No torch: planning, scoring
and `--help` load this on a laptop. recipe_file.py reads files, reference.py writes docs/recipe.md from the docstrings.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, BeforeValidator, Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from mini_r1.recipe import field_types as types
from mini_r1.recipe.builtin_models import BUILTIN_MODELS, DEMO_MODEL, BuiltinModel
from mini_r1.recipe.cross_checks import contradictions, warnings
from mini_r1.recipe.field_types import REWARD_NAMES
from mini_r1.recipe.nested import RECIPE_CONFIG, GeneratorRecipe, WarmStartRecipe, WatchRecipe
from mini_r1.tasks.registry import DEFAULT_TASK, find_task
from mini_r1.tasks.reward_file import short_name
from mini_r1.tasks.task_data import GENERATED

__all__ = [
    "DEMO_MODEL", "GENERATED", "REWARD_NAMES", "GeneratorRecipe", "Recipe", "WarmStartRecipe",
    "WatchRecipe",
]  # fmt: skip

NESTED: Final[dict[str, type[BaseModel]]] = {
    "generator": GeneratorRecipe, "warm_start": WarmStartRecipe, "watch": WatchRecipe,
}  # fmt: skip
"""Keys that hold a mapping with its own fields."""


class Recipe(BaseModel):
    """One training run. Lengths are in tokens, durations in seconds, batches in prompts."""

    model_config = RECIPE_CONFIG

    # Model
    model_name_or_path: types.ModelName
    """Hub id, local directory, or a small model that the kit makes itself: `builtin:demo`,
    `builtin:scratch`, and for `task: qa` `builtin:arithmetic`."""
    model_revision: types.Text = "main"
    """Branch, tag or commit on the hub. The run directory records the commit."""
    tokenizer_name_or_path: types.PathText | None = None
    """Hub id or directory of the tokenizer; null: the model's."""
    torch_dtype: Literal["auto", "bfloat16", "float16", "float32"] | None = None
    """Type of the loaded weights; null: transformers' default, float32."""
    attn_implementation: Literal["eager", "sdpa", "flash_attention_2"] | None = None
    """Attention kernel; null: transformers' choice, sdpa for the models here."""
    trust_remote_code: Annotated[
        types.Flag,
        types.only(False, "code from a model repository is never run; use a model that transformers knows"),
    ] = False
    """Must be false: the kit runs no code from a model repository."""
    output_dir: types.PathText | None = None
    """Run directory; null: `runs/` and the recipe file's name without its suffix."""

    # Data
    dataset_id_or_path: types.DataSource = "Jiayi-Pan/Countdown-Tasks-3to4"
    """Hub id, local file (.jsonl, .json, .parquet) or folder of Parquet files, or `generated` (offline). The default is
    the original's."""
    dataset_revision: types.Text | None = None
    """Branch, tag or commit of a data set on the hub; null: the newest. The run directory records the commit."""
    dataset_config: types.Text | None = None
    """Configuration (subset) of a data set on the hub or in a folder; null: `default`, or the only one."""
    dataset_split: types.Text | None = None
    """Split to train on, of a data set on the hub or in a folder; null: `train`, or the only one. The original's
    `dataset_splits` is this key, too."""
    dataset_test_split: types.Text | None = None
    """Split to hold out, all of it; null: `test_fraction` of the rows. What is like a held-out problem (`split_by`) is
    left out of training."""
    dataset_columns: types.ColumnNames = {}
    """Columns of the task's fields, if they have other names: `{nums: numbers, target: answer}`. Dots lead into nested
    columns, as in `reward_model.ground_truth.numbers`."""
    dataset_rows: Annotated[types.Whole, Field(ge=2)] | None = 50_000
    """Rows used, drawn with `dataset_seed`; null: all. The default is the original's."""
    dataset_seed: types.Seed = 42
    """Random seed of the rows and the split. Apart from `seed`, so that runs share the held-out problems."""
    test_fraction: types.Share = 0.1
    """Share of the rows held out. The default is the original's."""
    split_by: Literal["key", "numbers"] = "key"
    """What training and held-out problems never share: `key` (sorted numbers and target), or the `numbers`."""
    generator: GeneratorRecipe | None = None
    """Distribution of generated problems, for `dataset_id_or_path: generated`; null: that of the hub's data set."""

    # Task
    task: types.TaskName = DEFAULT_TASK
    """What is trained: `countdown`, or `qa`, a question and an exact final answer (docs/tasks.md)."""
    prompt_style: types.PromptStyle = "script"
    """Which of the original's two user messages to use; its published recipe used the script's. Or your own prompt: a
    YAML file next to the recipe (docs/data.md#your-own-prompt)."""
    scoring: Literal["kit", "original"] = "kit"
    """`kit`: the exact scorer. `original`: the original's, errors included. The logs have the verdicts of both."""
    rewards: types.Rewards | None = None
    """Weight of each reward in the sum; null: format 1 and equation 1, as in the original (qa: answer 1). Your own are
    `my_rewards.py:function`, a file next to the recipe, or `package.module:function` (docs/rewards.md)."""

    # Length and batch
    max_steps: types.Steps = -1
    """Optimizer steps; -1: `num_train_epochs` decides."""
    num_train_epochs: types.NonNegative = 3.0
    """Passes over the data if `max_steps` is -1."""
    per_device_train_batch_size: types.Count = 1
    """Prompts per device, times `gradient_accumulation_steps`. TRL 0.14 counts prompts, too, and 0.15 completions."""
    gradient_accumulation_steps: types.Count = 8
    """Multiplies the prompts of an optimizer step; TRL 0.14.0's default. Memory decides the number of micro-batches."""
    max_tokens_per_micro_batch: types.Count | None = None
    """Tokens of prompts, completions and padding in one forward and backward pass; null: as many as fit the device's
    memory. A longer sequence is alone. It changes speed and memory, not what is learned."""
    grad_accum_dtype: Literal["fp32"] | None = None
    """Type in which DeepSpeed adds up the gradients of the micro-batches, by its own name (`data_types`); null: the
    weights', bfloat16 with `bf16: true`. `fp32` costs 2 bytes per trained parameter, shared by the GPUs. Without
    DeepSpeed it has no effect: gradients then have the type of the loaded weights, an adapter's float32."""
    gradient_checkpointing: types.Flag = False
    """Recompute activations in the backward pass: far less memory for about a third more time."""
    gradient_checkpointing_kwargs: types.Kwargs | None = None
    """Arguments of torch's checkpoint function; the published recipe has `use_reentrant: false`."""

    # Optimizer
    learning_rate: types.Positive = 1e-6
    """Peak learning rate; TRL's default. The original has 5e-7: 1e-6 with beta 0.04 is unstable past step 150."""
    lr_scheduler_type: types.Scheduler = "linear"
    """Learning rate schedule after the warm-up."""
    lr_scheduler_kwargs: types.Kwargs | None = None
    """Arguments of the schedule, such as `min_lr` of cosine_with_min_lr."""
    warmup_ratio: Annotated[types.NonNegative, Field(le=1)] = 0.0
    """Share of all steps in which the learning rate rises from 0."""
    warmup_steps: Annotated[
        types.Whole,
        Field(ge=0),
        types.require(
            lambda value: not (isinstance(value, float) and 0 < value < 1),
            "must be a whole number: write a share of the run as warmup_ratio: {}",
            BeforeValidator,
        ),
    ] = 0
    """Number of warm-up steps; above 0 it overrides `warmup_ratio`."""
    optim: types.Optimizer = "adamw_torch"
    """Optimizer. The 8-bit and paged ones need bitsandbytes and a GPU."""
    weight_decay: types.NonNegative = 0.0
    """AdamW's decoupled weight decay."""
    adam_beta1: types.Share = 0.9
    """Decay of Adam's first moment."""
    adam_beta2: types.Share = 0.999
    """Decay of Adam's second moment."""
    adam_epsilon: types.Positive = 1e-8
    """Constant added to Adam's denominator."""
    max_grad_norm: types.NonNegative = 1.0
    """Gradients with a larger norm are scaled down to it; 0: no clipping."""
    bf16: types.Flag = False
    """Compute in bfloat16 (mixed precision)."""
    fp16: types.Flag = False
    """Compute in float16 with loss scaling, for GPUs older than compute capability 8.0."""
    tf32: types.Flag | None = None
    """TensorFloat-32 matrix products on Ampere and newer; null: torch's setting."""

    # GRPO and generation
    beta: types.NonNegative = 0.04
    """Weight of the KL term; TRL's default. The original has 0.001. 0 needs no reference model."""
    temperature: types.Positive = 0.9
    """Sampling temperature; the default of TRL 0.14.0 and of the original."""
    top_p: Annotated[types.Positive, Field(le=1)] = 1.0
    """Sample from the most likely tokens that have this share of the probability together, after `temperature` and
    `top_k`; 1: all. The loss still takes the softmax over all tokens, as in TRL; `logp_gap` counts the difference."""
    top_k: types.TopK | None = None
    """Sample from this many most likely tokens, and those as likely as the last; null: all. The loss: see `top_p`."""
    stop: types.StopStrings = []
    """Strings that end a completion, such as `</answer>`: it keeps the string and is not truncated. The token that
    completes the string stays whole, even if text follows in it. End tokens still end a completion."""
    num_generations: types.GroupSize = 8
    """Completions per prompt: the group over which advantages are computed. At least 2."""
    scale_rewards: types.Flag = True
    """Divide advantages by their group's standard deviation, as GRPO does. False is Dr. GRPO (arXiv:2503.20783), since
    the division favours problems that are almost always or almost never solved. The name is TRL 0.15's."""
    drop_zero_variance_groups: types.Flag = False
    """Leave out groups whose completions all have the same reward: they have no advantage and add only the KL term.
    DAPO's filter (arXiv:2503.14476, section 3.2) without its resampling."""
    max_prompt_length: types.Count = 512
    """Longest prompt, in tokens; TRL's default."""
    max_completion_length: types.Count = 256
    """Longest completion, in tokens; TRL's default. A longer one is cut and scored as it is."""
    use_vllm: types.Flag = False
    """Generate with vLLM, on the last device, or on the only one; false: with transformers on the training devices."""
    vllm_device: types.Device = "auto"
    """Ignored, accepted for old files: the launcher chooses the device."""
    vllm_gpu_memory_utilization: Annotated[types.Positive, Field(le=1)] | None = None
    """Share of its device's whole memory that vLLM takes; null: 0.9, TRL's default, and on one GPU, which vLLM shares
    with training, what its weights and the cache of a rollout need (`mini-r1 plan` shows it)."""
    num_scheduler_steps: types.Count = 1
    """Tokens of each sequence that vLLM samples between two turns of its scheduler; above 1 on GPUs only. A
    completion runs up to that many tokens, less one, beyond its end; they are dropped. Not run yet."""
    rollout_ahead: Annotated[types.Whole, Field(ge=0, le=1)] = 0
    """1: vLLM samples the completions of the next step while a step is trained, with the weights of one step before
    ([overlap.md](overlap.md)). 0: rollout and training take turns. Needs `use_vllm`."""
    off_policy: Literal["none", "tis", "clip"] | None = None
    """Correction in the loss for vLLM's log-probabilities that differ from the trainer's: `tis`, truncated importance
    sampling; `clip`, PPO's clipped ratio; `none`. null: `tis` with `rollout_ahead: 1`, `none` without."""
    off_policy_cap: Annotated[types.Number, Field(ge=1)] = 2.0
    """Largest weight that `off_policy` gives a token, at least 1."""
    epsilon: Annotated[types.Positive, Field(lt=1)] | None = None
    """With `off_policy: clip`: probability ratios below 1 - epsilon are clipped. PPO and TRL have 0.2."""
    epsilon_high: types.Positive | None = None
    """With `off_policy: clip`: ratios above 1 + epsilon_high are clipped; null: `epsilon`. DAPO has 0.28."""

    # Adapters (TRL's ModelConfig)
    use_peft: types.Flag = False
    """Train a LoRA adapter instead of all weights."""
    lora_r: types.Count = 16
    """Rank of the adapter."""
    lora_alpha: types.Count = 32
    """The adapter is scaled by `lora_alpha / lora_r`."""
    use_rslora: types.Flag = False
    """Scale the adapter by `lora_alpha / sqrt(lora_r)`: rank-stabilized LoRA (arXiv:2312.03732), for high ranks."""
    lora_dropout: types.Share = 0.05
    """Dropout before the adapter."""
    lora_target_modules: types.TextList | None = None
    """Modules that get an adapter, a name or a list (`all-linear`: all linear ones); null: peft's choice."""
    load_in_4bit: types.Flag = False
    """Load the frozen weights in 4 bits (QLoRA); needs bitsandbytes and a GPU."""
    load_in_8bit: types.Flag = False
    """Load the frozen weights in 8 bits; needs bitsandbytes and a GPU."""
    bnb_4bit_quant_type: Literal["fp4", "nf4"] = "nf4"
    """4-bit type: NormalFloat, made for weights (QLoRA, arXiv:2305.14314), or plain 4-bit floats."""
    use_bnb_nested_quant: types.Flag = False
    """Also quantize the 4-bit scales (QLoRA's double quantization): saves 0.37 bits per weight by the paper."""

    # Logging and saving
    logging_strategy: Annotated[Literal["steps"], types.only("steps", "the curve is read by step")] = "steps"
    """Must be `steps`: metrics are logged by optimizer step."""
    logging_steps: types.Interval = 1
    """Optimizer steps between two lines of metrics, or a share of the run (below 1), rounded up. A run has hundreds
    of steps, so transformers' 500 is too many."""
    logging_first_step: types.Flag = False
    """Also log step 1 if `logging_steps` is above 1."""
    report_to: types.Trackers = ["tensorboard"]
    """Trackers, a name or a list. TensorBoard is always on; `all` is every installed one."""
    run_name: types.Text | None = None
    """Name of the run in the trackers; null: the run directory's name."""
    save_strategy: types.SaveStrategy = "steps"
    """`no`: save only at the end and when interrupted."""
    save_steps: types.Interval = 25
    """Optimizer steps between checkpoints, or a share of the run (below 1), rounded up. 25, the original's, are
    about 20 minutes: the most a killed job loses."""
    save_minutes: types.NonNegative | None = None
    """Also save a checkpoint, without a snapshot, this many minutes after the last; null and 0: never."""

    # Evaluation during training, on the held-out problems
    eval_strategy: types.EvalStrategy = "no"
    """`steps`: measure success on held-out problems every `eval_steps`. `mini-r1 evaluate` does so after the run."""
    eval_steps: types.Interval | None = None
    """Optimizer steps between two evaluations, or a share of the run (below 1), rounded up; null: `save_steps`, so
    that each evaluation has its snapshot."""
    eval_on_start: types.Flag = False
    """Also evaluate before the first step."""
    eval_problems: types.Count | None = 200
    """Held-out problems per evaluation, always the same ones; null: all. With 200 the standard error of a success rate
    is at most 3.5 points."""

    # Run
    watch: Annotated[
        WatchRecipe,
        types.require(
            lambda value: value not in (None, False, "off"),
            "cannot be switched off as a whole; switch off single watchers, e.g. watch: {{kl: off}}",
            BeforeValidator,
        ),
    ] = WatchRecipe()
    """What a run checks during training, and whether it warns or stops."""
    seed: types.Seed = 42
    """Random seed of training: order of prompts, sampling, dropout."""
    ddp_timeout: types.Count = 1_800
    """Seconds until a collective gives up; transformers' default."""
    hang_timeout_s: Annotated[types.Whole, Field(ge=10)] = 1_200
    """Hang limit: longest time of a worker in one phase (a rollout, an update, loading the model), in seconds. Beyond
    it the launcher writes all stacks, stops the run and exits 150. With several workers it must be below `ddp_timeout`:
    a worker that waits for the one that hangs would give up first, and be blamed."""
    dataloader_num_workers: Annotated[types.Whole, Field(ge=0, le=64)] = 0
    """Loader processes per device. Rows are a few numbers, so none are needed."""

    # Hub (the token comes from HF_TOKEN only)
    push_to_hub: types.Flag = False
    """Push snapshots and logs to the hub during training."""
    hub_model_id: types.HubId | None = None
    """Repository to push to; null: the run directory's name in the user's namespace."""
    hub_strategy: Literal["end", "every_save", "checkpoint", "all_checkpoints"] = "every_save"
    """`every_save`: push in the background after a save. `end`: push all at the end. Checkpoints are never pushed."""
    hub_private_repo: types.Flag = True
    """Make a new repository private. (transformers' default is the account's, mostly public.)"""

    # Built-in models
    warm_start: WarmStartRecipe | None = None
    """Imitation training before GRPO, for a built-in model; null: the model's defaults."""

    @model_validator(mode="after")
    def _check_contradictions(self) -> Recipe:
        """Report all contradictions together, each with its keys."""
        found = [
            PydanticCustomError("cross_check", "{text}", {"text": text, "keys": tuple(keys.split())})
            for keys, text in contradictions(self)
        ]
        if found:
            errors = [InitErrorDetails(type=error, loc=(), input=None) for error in found]
            raise ValidationError.from_exception_data("Recipe", errors, hide_input=True)
        return self

    def warnings(self) -> list[str]:
        """Return one sentence for each setting that is allowed and has no effect, or an unexpected one."""
        return warnings(self)

    def save_every(self, total: int) -> int:
        """Return the optimizer steps between two checkpoints in a run of `total` steps."""
        return _steps(self.save_steps, total)

    def eval_every(self, total: int) -> int | None:
        """Return the optimizer steps between two evaluations; None without evaluation during training."""
        return None if self.eval_strategy == "no" else _steps(self.eval_steps or self.save_steps, total)

    @property
    def holds_out(self) -> bool:
        """Whether problems are held out to evaluate on."""
        return self.dataset_test_split is not None or self.test_fraction > 0

    @property
    def data_on_hub(self) -> bool:
        """Whether the data comes from the hub: a folder that exists here comes first."""
        source = self.dataset_id_or_path
        local = source == GENERATED or types.is_local_path(source) or Path(source).exists()
        return not local

    @property
    def built_in(self) -> BuiltinModel | None:
        """The recipe's built-in model, as its warm start changes it; None for any other model."""
        model = BUILTIN_MODELS.get(self.model_name_or_path)
        return (self.warm_start or WarmStartRecipe()).applied_to(model) if model else None

    @property
    def resolved_off_policy(self) -> Literal["none", "tis", "clip"]:
        """The correction of the loss, `off_policy` or its default."""
        return self.off_policy or ("tis" if self.rollout_ahead else "none")

    @property
    def longest_sequence(self) -> int:
        """Longest prompt and completion together, in tokens."""
        return self.max_prompt_length + self.max_completion_length

    def resolved_rewards(self) -> dict[str, float]:
        """Return the weights of the rewards that are summed, by their functions: `scoring: original` swaps the two.

        Code has its short name, as in logs.
        """
        defaults = find_task(self.task).default_rewards()
        weights = {short_name(name): weight for name, weight in (self.rewards or defaults).items()}
        if self.scoring == "original":
            return {f"{name}_original" if name in defaults else name: value for name, value in weights.items()}
        return weights


def _steps(interval: float, total: int) -> int:
    """Return an interval in steps; below 1 it is a share of the run, rounded up, as in transformers."""
    return math.ceil(total * interval) if interval < 1 else int(interval)
