"""Keys of the pinned libraries and of newer ones, and the error for each.

They are listed because the recipe must load without torch; tests/test_recipe.py compares them with the libraries.
"""

import difflib
from collections.abc import Iterable
from typing import Final

REPORT_INTEGRATIONS: Final = (
    "azure_ml", "clearml", "codecarbon", "comet_ml", "dagshub", "dvclive",
    "flyte", "mlflow", "neptune", "tensorboard", "wandb",
)  # fmt: skip
"""Trackers with a callback in transformers 4.48.1 (`INTEGRATION_TO_CALLBACK`)."""

REFUSED_KEYS: Final = {
    "hub_token": "tokens come from the environment variable HF_TOKEN only; take it out of the recipe",
    "push_to_hub_token": "tokens come from the environment variable HF_TOKEN only; take it out of the recipe",
    "model_init_kwargs": "write model_revision, torch_dtype and attn_implementation as separate keys",
    "resume_from_checkpoint": "a run resumes by itself from its run directory; run the same command again",
    "overwrite_output_dir": "a run directory is never overwritten; give another output_dir",
    "save_total_limit": "the kit decides which checkpoints are kept (docs/checkpoints.md); leave it out",
    "deepspeed": "a recipe doesn't depend on devices; give it to the launcher: `mini-r1 launch --deepspeed`",
    "evaluation_strategy": "it is called eval_strategy, 'no' or 'steps'",
}
"""Keys of the pinned libraries with their own error."""

LATER_TRL_KEYS: Final = frozenset({
    "cache_implementation", "cast_lm_head_to_fp32", "chat_template_kwargs", "chat_template_path", "delta",
    "disable_dropout", "ds3_gather_for_generation", "epsilon", "epsilon_high", "generation_batch_size",
    "generation_kwargs", "importance_sampling_level", "log_completions", "log_unique_prompts", "loss_type",
    "mask_truncated_completions", "min_p", "num_completions_to_print", "num_iterations", "repetition_penalty",
    "reward_weights", "shuffle_dataset", "steps_per_generation", "sync_ref_model", "top_entropy_quantile", "top_k",
    "top_p", "use_liger_loss", "use_transformers_paged", "vllm_dtype", "vllm_enable_prefix_caching",
    "vllm_guided_decoding_regex", "vllm_importance_sampling_cap", "vllm_importance_sampling_correction",
    "vllm_max_model_len", "vllm_mode", "vllm_model_impl", "vllm_tensor_parallel_size", "wandb_log_unique_prompts",
})  # fmt: skip
"""GRPOConfig keys that TRL 0.14.0 does not have; newer tutorials use them."""

LATER_TRL_PREFIXES: Final = ("ref_model_", "vllm_server_")  # prefixes of such keys

UNUSED_KEYS: Final = frozenset({
    "accelerator_config", "adafactor", "auto_find_batch_size", "average_tokens_across_devices", "batch_eval_metrics",
    "bf16_full_eval", "data_seed", "dataloader_drop_last", "dataloader_persistent_workers", "dataloader_pin_memory",
    "dataloader_prefetch_factor", "ddp_backend", "ddp_broadcast_buffers", "ddp_bucket_cap_mb",
    "ddp_find_unused_parameters", "debug", "disable_tqdm", "dispatch_batches", "do_eval", "do_predict", "do_train",
    "eval_accumulation_steps", "eval_delay", "eval_do_concat_batches", "eval_use_gather_object", "fp16_backend",
    "fp16_full_eval", "fp16_opt_level", "fsdp", "fsdp_config", "fsdp_min_num_params",
    "fsdp_transformer_layer_cls_to_wrap", "full_determinism", "greater_is_better", "group_by_length",
    "half_precision_backend", "hub_always_push", "ignore_data_skip", "include_for_metrics",
    "include_inputs_for_metrics", "include_num_input_tokens_seen", "include_tokens_per_second", "jit_mode_eval",
    "label_names", "label_smoothing_factor", "length_column_name", "load_best_model_at_end", "local_rank", "log_level",
    "log_level_replica", "log_on_each_node", "logging_dir", "logging_nan_inf_filter", "metric_for_best_model",
    "mp_parameters", "neftune_noise_alpha", "no_cuda", "optim_args", "optim_target_modules", "past_index",
    "per_device_eval_batch_size", "per_gpu_eval_batch_size", "per_gpu_train_batch_size", "prediction_loss_only",
    "push_to_hub_model_id", "push_to_hub_organization", "ray_scope", "remove_unused_columns",
    "restore_callback_states_from_checkpoint", "save_on_each_node", "save_only_model", "save_safetensors",
    "skip_memory_metrics", "split_batches", "torch_compile", "torch_compile_backend", "torch_compile_mode",
    "torch_empty_cache_steps", "torchdynamo", "tpu_metrics_debug", "tpu_num_cores", "use_cpu", "use_ipex",
    "use_legacy_prediction_loop", "use_liger_kernel", "use_mps_device",
})  # fmt: skip
"""`TrainingArguments` fields of transformers 4.48.1 that the kit sets itself or does not need."""

UNUSED_TRL_KEYS: Final = frozenset({"lora_modules_to_save", "lora_task_type", "use_rslora"})
"""`ModelConfig` fields of TRL 0.14.0 that the kit does not need."""

HARMLESS_KEYS: Final = frozenset({
    "output_dir", "run_name", "report_to",  # where results go
    "logging_strategy", "logging_steps", "logging_first_step", "save_strategy", "save_steps", "save_minutes",
    "eval_strategy", "eval_steps", "eval_on_start", "eval_problems",  # measuring draws nothing from training's stream
    "watch",
    "push_to_hub", "hub_model_id", "hub_strategy", "hub_private_repo",
    "gradient_checkpointing", "gradient_checkpointing_kwargs",  # memory against time, the same gradients
    "vllm_device", "vllm_gpu_memory_utilization",  # depend on the machine
    "ddp_timeout", "hang_timeout_s", "dataloader_num_workers",
})  # fmt: skip
"""Keys that may change between two attempts of a run, since they don't change what is learned."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a suggestion to append to a message, empty if nothing is close."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def unknown_key(name: str, known: Iterable[str], inside: str = "") -> str:
    """Return the error for a key that the recipe, or its mapping `inside`, does not have."""
    if not inside:
        if name in REFUSED_KEYS:
            return f"key '{name}' is not accepted: {REFUSED_KEYS[name]}"
        if name in LATER_TRL_KEYS or name.startswith(LATER_TRL_PREFIXES):
            hint = "; write weights under 'rewards'" if name == "reward_weights" else ""
            return f"unknown key '{name}': TRL 0.15 or later has it, the pinned TRL is 0.14.0{hint}"
        for library, names in (("transformers", UNUSED_KEYS), ("TRL", UNUSED_TRL_KEYS)):
            if name in names:
                return f"key '{name}' is a {library} argument that this kit does not use"
    place = f" in '{inside}'" if inside else ""
    shown = name if len(name) <= 60 else name[:57] + "..."
    return f"unknown key '{shown}'{place}{did_you_mean(name, known)}"
