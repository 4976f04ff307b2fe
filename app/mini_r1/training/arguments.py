"""A recipe as TRL's configuration object, and DeepSpeed made ready for it."""

import copy
import dataclasses
import functools
import logging
import os
from pathlib import Path
from typing import Any

import torch
from trl import GRPOConfig

from mini_r1.errors import KitError
from mini_r1.generation.model import device
from mini_r1.machine.trackers import check_trackers
from mini_r1.recipe.deepspeed_file import DeepSpeedFile
from mini_r1.recipe.fields import Recipe
from mini_r1.training.schedule import Schedule

logger = logging.getLogger(__name__)


def grpo_config(
    recipe: Recipe,
    run_path: Path,
    schedule: Schedule,
    *,
    evaluate_first: bool,
    deepspeed: DeepSpeedFile | None,
) -> GRPOConfig:
    """Return TRL's configuration of a run; with DeepSpeed, models are loaded sharded after this call.

    Raises KitError if this machine or installation can't do what the recipe asks for.
    """
    known = {field.name for field in dataclasses.fields(GRPOConfig)}
    values = {key: value for key, value in recipe.model_dump().items() if key in known}
    cpu = device().type == "cpu"
    if deepspeed is not None:
        prepare_deepspeed(on_cpu=cpu)
    if cpu and recipe.fp16:
        raise KitError("fp16 needs a GPU: set fp16: false (bf16: true works on a CPU)")
    if cpu and recipe.tf32:
        logger.warning("tf32 is a GPU setting: it has no effect on this CPU run")
    values |= {
        "output_dir": str(run_path),
        "max_steps": schedule.steps,
        "gradient_accumulation_steps": schedule.accumulation,
        "eval_on_start": evaluate_first,
        "use_cpu": cpu,
        "use_vllm": False,  # the engine's
        "tf32": None if cpu else recipe.tf32,
        "report_to": [name for name in reporters(recipe) if name != "swanlab"],  # which brings its own callback
        "run_name": recipe.run_name or run_path.name,
        # `Attempt` decides both after each step, and also saves when asked to stop.
        "save_strategy": "no",
        "eval_strategy": "no",
        "push_to_hub": False,
        "disable_tqdm": True,  # the kit shows progress itself
        # Filtering would replace a NaN loss in the logs by an average.
        "logging_nan_inf_filter": False,
        "data_seed": recipe.seed,
        # Every trained weight is part of every loss: there is nothing for DDP to look for at each step.
        "ddp_find_unused_parameters": False,
        "deepspeed": None if deepspeed is None else deepspeed_values(recipe, deepspeed),
    }
    try:
        return GRPOConfig(**values)
    except (ImportError, ValueError, RuntimeError) as error:
        raise KitError(f"this machine cannot run the recipe: {str(error).strip()}") from error


def fill_bucket(deepspeed: DeepSpeedFile, model: torch.nn.Module) -> DeepSpeedFile:
    """Return the configuration with a bucket that holds the largest of the model's trained parameters."""
    sizes = [parameter.numel() for parameter in model.parameters() if parameter.requires_grad]
    warning = deepspeed.warn_of_bucket(max(sizes))
    if warning is not None:
        logger.warning(warning)
    return deepspeed.fill_bucket(sum(sizes), max(sizes))


def deepspeed_values(recipe: Recipe, deepspeed: DeepSpeedFile) -> dict[str, Any]:
    """Return a configuration's values with those that the recipe decides."""
    values = copy.deepcopy(deepspeed.values)
    if recipe.grad_accum_dtype is not None:
        values.setdefault("data_types", {})["grad_accum_dtype"] = recipe.grad_accum_dtype
    return values


def reporters(recipe: Recipe) -> list[str]:
    """Return the integrations that report besides TensorBoard, which the kit always writes: see `curves.Curves`."""
    return sorted(finding.check for finding in check_trackers(recipe.report_to, os.environ))


def prepare_deepspeed(*, on_cpu: bool) -> None:
    """Prepare a process before its first DeepSpeed configuration; DeepSpeed's messages go to the rank's log.

    On a CPU, over gloo, DeepSpeed would compile an all-reduce at the first step and count NUMA nodes with numactl:
    neither a compiler nor numactl has to be installed.
    """
    import deepspeed  # late: it is installed on Linux only, and slow to import

    for handler in list(deepspeed.utils.logger.handlers):  # to the standard output
        deepspeed.utils.logger.removeHandler(handler)
    deepspeed.utils.logger.propagate = True
    add_gradients_in_given_type()
    if not on_cpu:
        return
    os.environ.setdefault("LOCAL_SIZE", os.environ.get("LOCAL_WORLD_SIZE", "1"))
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    wait_for_every_gather()


@functools.cache
def add_gradients_in_given_type() -> None:
    """Make ZeRO-2 add up gradients in its `grad_accum_dtype`.

    DeepSpeed 0.15.4 passes the type to `get_flat_partition`, which uses it for padding only: the gradients stay in the
    weights' type.
    """
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    flat_partition = DeepSpeedZeroOptimizer.get_flat_partition

    def converted(*args: Any, dtype: Any, **kwargs: Any) -> Any:
        found = flat_partition(*args, dtype=dtype, **kwargs)
        return [each.to(dtype) for each in found] if isinstance(found, list) else found.to(dtype)

    DeepSpeedZeroOptimizer.get_flat_partition = converted


@functools.cache
def wait_for_every_gather() -> None:
    """Make each all-gather of DeepSpeed finish before its call returns; for ranks on the CPU.

    To gather several parameters DeepSpeed 0.15.4 starts one all-gather for each and waits for the last one only
    (`Init._allgather_params_coalesced`): NCCL finishes them in order, gloo's thread pool in any. What had not arrived
    was saved as it was in memory, and written back into the weights.
    """
    from deepspeed import comm

    gather = comm.all_gather_into_tensor

    def gathered(*args: Any, **kwargs: Any) -> Any:
        handle = gather(*args, **kwargs)
        if handle is not None:  # None if it was synchronous
            handle.wait()
        return handle

    comm.all_gather_into_tensor = gathered
