"""A recipe as TRL's configuration object."""

from __future__ import annotations

import copy
import dataclasses
import logging
from pathlib import Path

from trl import GRPOConfig

from mini_r1.errors import KitError
from mini_r1.generation.model import device
from mini_r1.recipe.deepspeed_file import DeepSpeedFile
from mini_r1.recipe.fields import Recipe
from mini_r1.training import deepspeed_patches
from mini_r1.training.schedule import Schedule

logger = logging.getLogger(__name__)

OURS = frozenset(
    {
        "output_dir", "use_vllm", "vllm_device", "vllm_gpu_memory_utilization",  # the launcher's and the engine's
        "push_to_hub", "hub_model_id", "hub_strategy", "hub_private_repo",  # the kit publishes by itself
        "save_strategy", "save_steps", "num_train_epochs", "max_steps", "tf32", "report_to",
        "eval_strategy", "eval_steps", "eval_on_start", "gradient_accumulation_steps",
    }
)  # fmt: skip
"""Recipe keys that GRPOConfig has too, but that are not passed on unchanged."""


def grpo_config(
    recipe: Recipe,
    run_path: Path,
    schedule: Schedule,
    *,
    evaluate_first: bool,
    deepspeed: DeepSpeedFile | None,
) -> GRPOConfig:
    """Return TRL's configuration of a run; with DeepSpeed, models are loaded sharded after this call.

    Args:
        recipe: what to train.
        run_path: the run directory.
        schedule: steps and accumulation of the whole run.
        evaluate_first: whether an evaluation comes before the first step of this attempt.
        deepspeed: how to shard.

    Raises:
        KitError: this machine or installation can't do what the recipe asks for.
    """
    known = {field.name for field in dataclasses.fields(GRPOConfig)}
    values = {key: value for key, value in recipe.model_dump().items() if key in known - OURS}
    cpu = device().type == "cpu"
    if deepspeed is not None:
        deepspeed_patches.prepare(on_cpu=cpu)
    if cpu and recipe.fp16:
        raise KitError("fp16 needs a GPU: set fp16: false (bf16: true works on a CPU)")
    if cpu and recipe.tf32:
        logger.warning("tf32 is a GPU setting: it has no effect on this CPU run")
    try:
        return GRPOConfig(
            **values,
            output_dir=str(run_path),
            max_steps=schedule.steps,
            gradient_accumulation_steps=schedule.accumulation,
            eval_on_start=evaluate_first,
            use_cpu=cpu,
            tf32=None if cpu else recipe.tf32,
            report_to=reporters(recipe),
            # `Attempt` decides both after each step, and also saves when asked to stop.
            save_strategy="no",
            eval_strategy="no",
            push_to_hub=False,
            disable_tqdm=True,  # the kit shows progress itself
            # Filtering would replace a NaN loss in the logs by an average.
            logging_nan_inf_filter=False,
            data_seed=recipe.seed,
            # Every trained weight is part of every loss: there is nothing for DDP to look for at each step.
            ddp_find_unused_parameters=False,
            deepspeed=None if deepspeed is None else copy.deepcopy(deepspeed.values),
        )
    except (ImportError, ValueError, RuntimeError) as error:
        raise KitError(f"this machine cannot run the recipe: {str(error).strip()}") from error


def reporters(recipe: Recipe) -> list[str]:
    """Return the integrations that report besides TensorBoard, which the kit always writes: see `curves.Curves`.

    Raises:
        KitError: one that the recipe names is not installed.
    """
    from transformers.integrations import get_available_reporting_integrations

    installed = get_available_reporting_integrations()
    wanted = [recipe.report_to] if isinstance(recipe.report_to, str) else list(recipe.report_to)
    if "all" in wanted:
        wanted = installed
    missing = [name for name in wanted if name not in installed and name not in ("none", "all")]
    if missing:
        raise KitError(f"report_to: {', '.join(missing)} is not installed: install it, or remove it from the list")
    return sorted({name for name in wanted if name not in ("none", "all", "tensorboard")})
