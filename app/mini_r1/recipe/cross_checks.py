"""Checks of a recipe's keys against each other: contradictions, which are refused, and settings without an effect."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from mini_r1.errors import KitError
from mini_r1.recipe.builtin_models import BUILTIN_MODELS
from mini_r1.recipe.keys import did_you_mean
from mini_r1.recipe.named_files import named_files, reward_code
from mini_r1.tasks.answer_tags import THINK
from mini_r1.tasks.data_errors import DataError
from mini_r1.tasks.problem_files import SUFFIXES
from mini_r1.tasks.prompt_file import is_prompt_file
from mini_r1.tasks.registry import DEFAULT_TASK, AnyTask, find_task
from mini_r1.tasks.reward_file import SUFFIX, check_source, short_name
from mini_r1.tasks.task_data import GENERATED
from mini_r1.values import describe_value

if TYPE_CHECKING:
    from mini_r1.recipe.fields import Recipe

REQUIRED_ARGUMENTS: Final = {
    "cosine_with_min_lr": ({"min_lr"}, {"min_lr_rate"}),
    "warmup_stable_decay": ({"num_stable_steps", "num_decay_steps"},),
}
"""Arguments that a schedule needs, one of the sets."""

NEEDS_THOUGHT: Final = ("format", "format_original")
"""Rewards that no text without `<think>` gets."""


def contradictions(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Yield keys that contradict each other, and the error with what to do."""
    if recipe.max_steps == -1 and recipe.num_train_epochs == 0:
        yield "max_steps num_train_epochs", "nothing to train: set max_steps, or num_train_epochs above 0"
    if recipe.bf16 and recipe.fp16:
        yield "fp16 bf16", "bf16 and fp16 are both true: set one of them false"
    if recipe.fp16 and recipe.torch_dtype == "float16" and not recipe.use_peft:
        yield "fp16 torch_dtype use_peft", "loss scaling needs float32 weights: set torch_dtype: float32"
    full_precision = not (recipe.bf16 or recipe.fp16) and recipe.torch_dtype in (None, "float32")
    if recipe.attn_implementation == "flash_attention_2" and full_precision:
        text = "flash_attention_2 computes in 16 bits only: set bf16: true or torch_dtype: bfloat16, or sdpa"
        yield "attn_implementation torch_dtype bf16 fp16", text
    if recipe.push_to_hub and recipe.hub_strategy in ("checkpoint", "all_checkpoints"):
        yield "hub_strategy push_to_hub", "pickled checkpoints are not published: set every_save or end"
    if recipe.lr_scheduler_type == "reduce_lr_on_plateau":
        yield "lr_scheduler_type", "GRPO has no held-out loss for reduce_lr_on_plateau: choose cosine"
    needed = REQUIRED_ARGUMENTS.get(recipe.lr_scheduler_type, ())
    if needed and not any(names <= set(recipe.lr_scheduler_kwargs or {}) for names in needed):
        names = " or ".join(" and ".join(sorted(names)) for names in needed)
        text = f"{recipe.lr_scheduler_type} needs {names} in lr_scheduler_kwargs"
        yield "lr_scheduler_kwargs lr_scheduler_type", text
    if 0 < recipe.max_steps < recipe.warmup_steps:
        yield "warmup_steps max_steps", f"the warm-up is longer than the run: at most {recipe.max_steps} steps"
    yield from _task_contradictions(recipe)
    if recipe.generator and recipe.dataset_id_or_path != GENERATED:
        yield "generator dataset_id_or_path", f"needs dataset_id_or_path: {GENERATED}: set that, or take it out"
    if recipe.dataset_id_or_path == GENERATED and recipe.dataset_rows is None:
        yield "dataset_rows dataset_id_or_path", "generated data has no end: set the number of rows"
    if recipe.dataset_columns and recipe.dataset_id_or_path == GENERATED:
        yield "dataset_columns dataset_id_or_path", "generated problems have no columns to map: take it out"
    if recipe.dataset_test_split and recipe.dataset_test_split == (recipe.dataset_split or "train"):
        yield "dataset_test_split dataset_split", "the split to hold out is the split to train on: name another"
    one_file = recipe.dataset_id_or_path == GENERATED or recipe.dataset_id_or_path.endswith(SUFFIXES)
    for key in ("dataset_config", "dataset_split", "dataset_test_split") if one_file else ():
        if getattr(recipe, key) not in (None, "train", "default"):  # the part that a file has
            text = "selects from a data set on the hub or in a folder, and this data has one part: take it out"
            yield f"{key} dataset_id_or_path", text
    if recipe.eval_strategy == "steps" and not recipe.holds_out:
        text = "test_fraction is 0, so nothing is held out to evaluate on: set it above 0, or eval_strategy: no"
        yield "eval_strategy test_fraction", text
    if recipe.load_in_4bit and recipe.load_in_8bit:
        yield "load_in_8bit load_in_4bit", "load_in_4bit and load_in_8bit are both true: set one of them false"
    elif (recipe.load_in_4bit or recipe.load_in_8bit) and not recipe.use_peft:
        key = "load_in_4bit" if recipe.load_in_4bit else "load_in_8bit"
        yield f"{key} use_peft", "quantized weights cannot be trained themselves: set use_peft: true"
    if recipe.warm_start and recipe.built_in is None:
        yield "warm_start model_name_or_path", f"is for {', '.join(BUILTIN_MODELS)} only: take it out"
    yield from _off_policy_contradictions(recipe)
    for name in find_task(recipe.task).default_rewards() if recipe.scoring == "original" else ():
        if {name, f"{name}_original"} <= set(recipe.rewards or {}):
            text = f"under scoring: original '{name}' means '{name}_original': name one of the two"
            yield "rewards scoring", text


def _task_contradictions(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Yield what the recipe's task does not have."""
    task = find_task(recipe.task)
    yield from _prompt_contradictions(recipe, task)
    try:
        task.fields.mapped(recipe.dataset_columns)
    except DataError as error:
        yield "dataset_columns task", error.message
    code = reward_code(recipe)
    if recipe.rewards and (unknown := [name for name in recipe.rewards if name not in {*task.rewards, *code}]):
        text = f"the task {task.name} has no reward '{unknown[0]}': choose from {', '.join(task.rewards)}"
        yield "rewards task", text
    try:
        named_files(recipe, modules=False)  # a module of a run need not be where its report is made
        for name in code:
            if name.rpartition(":")[0].endswith(SUFFIX):
                check_source(name)
    except KitError as error:
        yield "rewards task", error.message
    if recipe.built_in and recipe.built_in.task != task.name:
        fit = [model.name for model in BUILTIN_MODELS.values() if model.task == task.name]
        text = f"{recipe.model_name_or_path} is made for the task {recipe.built_in.task}: " + (
            f"name {' or '.join(fit)}" if fit else "name a model from the hub"
        )
        yield "model_name_or_path task", text
    if task.name != DEFAULT_TASK and recipe.warm_start and recipe.warm_start.sums is not None:
        yield "warm_start task", f"sums is for task: {DEFAULT_TASK} only: take it out"
    if task.name != DEFAULT_TASK:
        for key in ("generator", "scoring", "split_by"):
            if getattr(recipe, key) != type(recipe).model_fields[key].default:
                yield f"{key} task", f"is for task: {DEFAULT_TASK} only: take it out"


def _prompt_contradictions(recipe: Recipe, task: AnyTask) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with the prompt, or does not go with it."""
    style = recipe.prompt_style
    if style not in task.prompts and not is_prompt_file(style):
        guess = did_you_mean(style[:60], task.prompts)
        text = f"the task {task.name} has the prompt styles {', '.join(task.styles)}: name one, or a .yaml file{guess}"
        yield "prompt_style task", text
        return
    try:
        prompt = task.prompt(style)
    except DataError as error:
        yield "prompt_style task", error.message
        return
    for text in recipe.stop if prompt.prefill else ():
        if prompt.prefill.endswith(text) or text.endswith(prompt.prefill):
            what = f"{describe_value(text)} is what every prompt ends with"
            yield "stop prompt_style", f"{what}: write a string that an answer ends with"
    asking = [name for name, weight in recipe.resolved_rewards().items() if weight and name in NEEDS_THOUGHT]
    if asking and not prompt.names_thought:
        yield (
            "prompt_style rewards",
            f"the prompt has no <think>, which the reward {asking[0]} asks for: add it to the prompt, or name other "
            "rewards, such as rewards: {equation: 1, my_rewards.py:my_format: 1}",
        )
    if recipe.built_in and not prompt.prefill.endswith(THINK):
        text = f"{recipe.model_name_or_path} is made to continue a thought: end the prefill of the prompt with <think>"
        yield "prompt_style model_name_or_path", text


def _off_policy_contradictions(recipe: Recipe) -> Iterator[tuple[str, str]]:
    if recipe.rollout_ahead and not recipe.use_vllm:
        text = "the trainer cannot sample while it trains, vLLM can: set use_vllm: true, or rollout_ahead: 0"
        yield "rollout_ahead use_vllm", text
    elif recipe.resolved_off_policy != "none" and not recipe.use_vllm:
        text = "only vLLM's log-probabilities are corrected: set use_vllm: true, or off_policy: none"
        yield "off_policy use_vllm", text
    elif recipe.resolved_off_policy != "none" and (recipe.top_k or recipe.top_p < 1):
        text = (
            "the loss corrects by vLLM's log-probabilities, which top_p and top_k change: take them out, or set "
            "off_policy: none"
        )
        yield "off_policy top_p top_k rollout_ahead", text
    if recipe.off_policy == "clip" and recipe.epsilon is None:
        yield (
            "off_policy epsilon",
            "clip needs epsilon, the distance from 1 at which a ratio is clipped: set epsilon: 0.2",
        )


def warnings(recipe: Recipe) -> list[str]:
    """Return one sentence for each setting that is allowed and has no effect, or an unexpected one."""
    changed = {name for name, field in type(recipe).model_fields.items() if getattr(recipe, name) != field.default}
    depending = (
        (recipe.use_peft, "use_peft: true", "lora_alpha lora_dropout lora_r lora_target_modules use_rslora"),
        (recipe.load_in_4bit, "load_in_4bit: true", "bnb_4bit_quant_type use_bnb_nested_quant"),
        (recipe.save_strategy == "steps", "save_strategy: steps", "save_minutes"),
        (recipe.eval_strategy == "steps", "eval_strategy: steps", "eval_on_start eval_problems eval_steps"),
        (recipe.push_to_hub, "push_to_hub: true", "hub_model_id hub_private_repo hub_strategy"),
        (recipe.use_vllm, "use_vllm: true", "num_scheduler_steps"),
        (recipe.resolved_off_policy != "none", "off_policy: tis or clip", "off_policy_cap"),
        (recipe.off_policy == "clip", "off_policy: clip", "epsilon epsilon_high"),
        (recipe.gradient_checkpointing, "gradient_checkpointing: true", "gradient_checkpointing_kwargs"),
    )
    idle = [
        f"{', '.join(names)}: no effect without {setting}"
        for active, setting, keys in depending
        if not active and (names := [name for name in keys.split() if name in changed])
    ]
    found = ["vllm_device is ignored: the launcher gives vLLM the last device"] * ("vllm_device" in changed) + idle
    if code := reward_code(recipe):
        named = ", ".join(map(short_name, code))
        found.append(f"rewards: {named} is code that the recipe names; a run executes it with this user's rights")
    if recipe.warmup_steps and recipe.warmup_ratio:
        found.append("warmup_ratio: no effect, warmup_steps overrides it")
    if recipe.use_vllm and (recipe.top_k or recipe.top_p < 1) and recipe.watch.logp_gap != "off":
        cut_off = "logp_gap also counts the probability that top_p and top_k cut off"
        found.append(f"{cut_off}: raise watch.max_logp_gap, or set watch: {{logp_gap: off}}")
    if recipe.rollout_ahead and recipe.off_policy == "none":
        found.append("off_policy: none, so with rollout_ahead: 1 the loss takes older weights' completions for its own")
    if recipe.dataset_revision and not recipe.data_on_hub:
        found.append("dataset_revision: no effect, the data does not come from the hub")
    if not recipe.holds_out:
        found.append("test_fraction is 0: nothing is held out to evaluate on")
    if recipe.dataset_test_split and "test_fraction" in changed:
        found.append("test_fraction: no effect, dataset_test_split is held out")
    return found
