"""Keys of TRL, transformers, open-r1 and verl: each is a key of the recipe, or has a true answer."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from mini_r1.recipe.fields import Recipe
from mini_r1.recipe.keys import did_you_mean, foreign_keys
from mini_r1.recipe.recipe_file import RecipeError, load_recipe

LATER_TRL = """
    entropy_coef use_adaptive_entropy vespo_k_neg off_policy_mask_threshold multi_objective_aggregation
    use_bias_correction_kl max_tool_calling_iterations vllm_importance_sampling_clip_max vllm_enable_sleep_mode
    router_aux_loss_coef pad_to_multiple_of ignore_bias_buffers lora_target_parameters
    bnb_4bit_quant_storage disable_dropout use_transformers_continuous_batching cast_lm_head_to_fp32
    top_entropy_quantile
""".split()
"""Some of TRL 1.16.0's own names."""


def answer(tmp_path: Path, text: str, *overrides: str) -> str:
    file = tmp_path / "x.yaml"
    file.write_text(f"model_name_or_path: builtin:demo\n{text}\n")
    with pytest.raises(RecipeError) as refused:
        load_recipe(file, overrides)
    return str(refused.value)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        # TRL's scripts
        ("dataset_name: a/b", "key 'dataset_name' is called 'dataset_id_or_path' here"),
        ("dataset_train_split: train", "key 'dataset_train_split' is called 'dataset_split' here"),
        ("test_split_size: 0.1", "key 'test_split_size' is called 'test_fraction' here"),
        ("dtype: bfloat16", "key 'dtype' is called 'torch_dtype' here"),
        ("dataset_streaming: true", "a data set is read whole: dataset_rows"),
        ("reward_funcs: [format, equation]", "as in `rewards: {format: 1, own.py:closeness: 0.2}`"),
        ("reward_weights: [1.0, 1.0]", "as in `rewards: {format: 1, own.py:closeness: 0.2}`"),
        ("env: {NCCL_P2P_DISABLE: '1'}", "set environment variables outside of the recipe"),
        # newer GRPOConfig
        ("chat_template: '{{ messages }}'", "name another tokenizer with tokenizer_name_or_path"),
        ("vllm_max_model_length: 1280", "vLLM takes max_prompt_length + max_completion_length tokens"),
        ("vllm_devices: 2", "a recipe says what to train, not where: write `mini-r1 launch RECIPE --vllm-devices N`"),
        ("vllm_tensor_parallel_size: 2", "each vLLM process has one device"),
        ("vllm_mode: colocate", "vLLM runs in its own process on the last device"),
        ("num_iterations: 2", "each rollout is used for one update"),
        ("loss_type: dapo", "the loss has one form: off_policy changes it"),
        ("vllm_importance_sampling_cap: 2.0", "is called 'off_policy_cap' here"),
        ("vllm_importance_sampling_correction: true", "write off_policy, none or tis"),
        ("min_p: 0.1", "write temperature, top_p, top_k or stop"),
        ("log_completions: true", "`mini-r1 samples RUN`"),
        ("generation_batch_size: 64", "per_device_train_batch_size and gradient_accumulation_steps"),
        # transformers
        ("stop_strings: [x]", "is called 'stop' here"),
        ("evaluation_strategy: steps", "is called 'eval_strategy' here"),
        ("use_cpu: true", "MINI_R1_ACCELERATOR=cpu"),
        ("fsdp: full_shard", "`mini-r1 launch --deepspeed zero3`"),
        ("lora_modules_to_save: [lm_head]", "an adapter alone is trained and saved; write lora_target_modules"),
        ("torch_compile: true", "is an argument of transformers that this kit does not use"),
        ("trackio_space_id: a/b", "is an argument of a newer transformers that this kit does not use"),
        # open-r1
        ("system_prompt: Think.", "write it into a prompt file, and its name as prompt_style"),
        ("wandb_project: r1", "set the environment variable WANDB_PROJECT"),
        ("benchmarks: [math_500]", "`mini-r1 evaluate RUN`"),
        ("cosine_max_len: 1000", "is an argument of open-r1 that this kit does not use"),
        # verl
        ("trainer: {total_epochs: 3}", "trainer.total_epochs is 'num_train_epochs' here"),
        ("actor_rollout_ref: {rollout: {n: 8, top_p: 1}}", "actor_rollout_ref.rollout.n is 'num_generations' here"),
        ("data: {x: 1}", "key 'data' is a group of verl's, and a recipe is flat"),
        ("critic: {optim: {lr: 1}}", "key 'critic' is a group of verl's, and a recipe is flat"),
        ("max_response_length: 1024", "it is called 'max_completion_length' here"),
        ("actor_rollout_ref: {rollout: {top_p: 1}}", "actor_rollout_ref.rollout.top_p is 'top_p' here"),
        ("lr: 1e-6", "it is called 'learning_rate' here"),
        ("kl_loss_coef: 0.001", "it is called 'beta' here"),
        # values
        ("report_to: [wandb, trackio]", "'trackio' is not accepted: transformers 4.48.1 has no callback for it"),
        ("scale_rewards: group", "'group' is called true here"),
        ("scale_rewards: batch", "'batch' is not accepted: advantages are scaled by group"),
        ("save_strategy: epoch", "'epoch' is not accepted"),
        ("save_strategy: best", "every save leaves a snapshot"),
        ("rewards: [format, equation]", "must be a mapping of names to weights, such as {format: 1, equation: 1}"),
        ("rewards: {accuracy: 1}", "'accuracy' is called 'equation' here"),
    ],
)  # fmt: skip
def test_a_known_key_has_its_answer(tmp_path: Path, line: str, said: str) -> None:
    found = answer(tmp_path, line)
    assert found.startswith(f"{tmp_path}/x.yaml:2: ")
    assert said in found
    assert "did you mean" not in found


@pytest.mark.parametrize("key", LATER_TRL)
def test_a_key_of_a_later_trl_is_known(tmp_path: Path, key: str) -> None:
    assert "argument of TRL 0.15 or later that this kit does not use" in answer(tmp_path, f"{key}: 1")


@pytest.mark.parametrize("key", ["name", "path"])  # of several of verl's groups, with other meanings
def test_an_ambiguous_name_is_not_guessed(tmp_path: Path, key: str) -> None:
    assert answer(tmp_path, f"{key}: x") == f"{tmp_path}/x.yaml:2: unknown key '{key}'"


def test_a_dotted_override_of_verl_is_answered(tmp_path: Path) -> None:
    said = answer(tmp_path, "", "actor_rollout_ref.actor.optim.lr=1e-6")
    assert "actor_rollout_ref.actor.optim.lr is 'learning_rate' here" in said


def test_the_data_file_names_keys_of_the_recipe_and_no_key_twice() -> None:
    foreign = foreign_keys()
    ours = set(Recipe.model_fields)
    assert {*foreign["renamed"].values(), *foreign["verl"].values()} <= ours
    assert set(foreign["values"]) <= ours
    listed = [*foreign["renamed"], *foreign["answers"], *(key for keys in foreign["unused"].values() for key in keys)]
    assert sorted(listed) == sorted(set(listed))
    assert not ours & {*listed, *foreign["verl_groups"]}
    assert {path.partition(".")[0] for path in foreign["verl"]} <= set(foreign["verl_groups"])


@pytest.mark.parametrize("key", sorted(foreign_keys()["answers"]))
def test_an_answer_names_keys_that_exist(key: str) -> None:
    found = set(re.findall(r"\b[a-z]+(?:_[a-z0-9]+)+\b", foreign_keys()["answers"][key]))
    assert found <= {*Recipe.model_fields, "use_reentrant", "frac_truncated", "embed_tokens", "lm_head"}


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("num_generation", "num_generations"),
        ("lerning_rate", "learning_rate"),
        ("gradient_acumulation_step", "gradient_accumulation_steps"),
        ("max_completion_lenght", "max_completion_length"),
        ("temprature", "temperature"),
        ("dataset_nam", None),
        ("swanlab", None),
        ("vllm_max_length", None),
        ("max_tokens", None),
        ("epochs", None),
        ("lr", None),
    ],
)
def test_a_suggestion_is_a_typo_away(written: str, meant: str | None) -> None:
    known = [*Recipe.model_fields, "wandb", "tensorboard"]
    assert did_you_mean(written, known) == (f"; did you mean '{meant}'?" if meant else "")
