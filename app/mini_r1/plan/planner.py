"""What a recipe means on given devices: roles, batch, memory, disk, time, and everything that cannot work.

plan = make_plan(recipe, assign(shape(4, 1), use_vllm=True, on_cpu=False), gpu_memory_gib=80)
plan.num_processes, plan.deepspeed, plan.errors  # (3, "zero2", [])
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Final

from mini_r1.errors import KitError
from mini_r1.machine.roles import Roles
from mini_r1.plan.disk_space import DiskUse, disk_use, host_memory_gib, shared_memory_gib
from mini_r1.plan.memory import Memory, training_memory
from mini_r1.plan.plan_errors import faults, misfits, remarks
from mini_r1.plan.shapes import Found, ModelShape, builtin_shape, find_shape
from mini_r1.plan.timing import Timing, demo_timing, gpu_timing
from mini_r1.plan.vllm_memory import VllmMemory, vllm_memory
from mini_r1.plan.zero_memory import IN_ORDER, NO_ZERO, Zero, zero_of
from mini_r1.recipe.deepspeed_file import find_deepspeed
from mini_r1.recipe.fields import GENERATED, Recipe

AUTO: Final = "auto"
HUB_SET, HUB_ROWS = "Jiayi-Pan/Countdown-Tasks-3to4", 490_364
"""The original's data set and how many rows it has."""
ASSUMED_GIB: Final = 80.0
"""Memory of a GPU by which DeepSpeed is chosen where nobody says how much there is."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A recipe on given devices. Memory, disk and time are None where the model's shape is not known."""

    recipe: Recipe
    roles: Roles | None
    on_cpu: bool
    gpu_memory_gib: float | None
    deepspeed: str | None
    """None, the name of a shipped configuration, or a path."""
    shape: ModelShape | None = None
    steps: int | None = None
    memory: Memory | None = None
    vllm: VllmMemory | None = None
    host_memory_gib: float | None = None
    shm_gib: float | None = None
    disk: DiskUse | None = None
    timing: Timing | None = None
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def num_processes(self) -> int:
        """Training workers over all nodes; 0 where the roles cannot be given."""
        return self.roles.num_processes if self.roles else 0

    @property
    def vllm_device(self) -> str | None:
        """As `Roles.vllm_device`."""
        return self.roles.vllm_device if self.roles else None

    @property
    def prompts_per_step(self) -> int:
        """Of an optimizer step, over all workers."""
        each = self.recipe.per_device_train_batch_size * self.recipe.gradient_accumulation_steps
        return each * self.num_processes

    @property
    def completions_per_step(self) -> int:
        """Prompts times num_generations."""
        return self.prompts_per_step * self.recipe.num_generations

    @property
    def tokens_per_step(self) -> int:
        """Generated at most, in an optimizer step."""
        return self.completions_per_step * self.recipe.max_completion_length

    def to_dict(self) -> dict[str, Any]:
        """The --json of `mini-r1 plan`."""
        steps = self.steps
        nodes = self.roles.nodes if self.roles else ()
        return {
            "num_processes": self.num_processes,
            "vllm_device": self.vllm_device,
            "nodes": [
                {
                    "workers": node.workers,
                    "devices": list(node.devices),
                    "training_devices": list(node.training_devices),
                    "vllm_device": node.vllm_device,
                    "first_rank": node.first_rank,
                }
                for node in nodes
            ],
            "on_cpu": self.on_cpu,
            "gpu_memory_gib": self.gpu_memory_gib,
            "deepspeed": self.deepspeed,
            "model": self.recipe.model_name_or_path,
            "parameters": self.shape.parameters if self.shape else None,
            "steps": steps,
            "prompts_per_step": self.prompts_per_step,
            "completions_per_step": self.completions_per_step,
            "max_tokens_per_step": self.tokens_per_step,
            "prompts": None if steps is None else steps * self.prompts_per_step,
            "completions": None if steps is None else steps * self.completions_per_step,
            "max_tokens": None if steps is None else steps * self.tokens_per_step,
            "memory_gib": {
                "training_device": self.memory.to_dict() if self.memory else None,
                "vllm_device": self.vllm.to_dict() if self.vllm else None,
            },
            "host_memory_gib": _rounded(self.host_memory_gib),
            "shm_gib": _rounded(self.shm_gib),
            "disk_gib": self.disk.to_dict() if self.disk else None,
            "time": self.timing.to_dict() if self.timing else None,
            "errors": self.errors,
            "warnings": self.warnings,
        }


def make_plan(
    recipe: Recipe, roles: Roles, *, gpu_memory_gib: float | None, deepspeed: str = AUTO, on_cpu: bool | None = None
) -> Plan:
    """Plan a recipe; a plan that cannot work comes back with its errors in it, nothing is raised.

    Args:
        recipe: what to train.
        roles: who does what.
        gpu_memory_gib: of the smallest GPU; None where it is not known.
        deepspeed: `auto`, `none`, the name of a shipped configuration, or a path.
        on_cpu: whether the devices are slots of a CPU; None reads it off the roles (no device, or vLLM on "cpu").
    """
    if on_cpu is None:
        on_cpu = roles.vllm_device == "cpu" or not roles.nodes[0].devices
    if recipe.built_in:
        found = Found(builtin_shape(recipe.built_in))
    else:
        found = find_shape(recipe.model_name_or_path, recipe.model_revision)
    return _planned(recipe, roles, found, None if on_cpu else gpu_memory_gib, deepspeed, on_cpu)


def impossible(recipe: Recipe, error: str, *, gpu_memory_gib: float | None, on_cpu: bool) -> Plan:
    """The plan where no roles can be given at all."""
    return Plan(recipe, None, on_cpu, gpu_memory_gib, None, errors=[error])


def _planned(
    recipe: Recipe, roles: Roles, found: Found, gpu_memory_gib: float | None, deepspeed: str, on_cpu: bool
) -> Plan:
    shape, workers = found.shape, roles.num_processes
    errors, warnings = list(found.errors), [*recipe.warnings(), *found.warnings]
    chosen: str | None = None
    zero = NO_ZERO
    try:
        chosen = _named(deepspeed) if deepspeed != AUTO else choose_deepspeed(
            recipe, shape, workers, gpu_memory_gib=gpu_memory_gib, on_cpu=on_cpu
        )  # fmt: skip
        if chosen is not None:
            file = find_deepspeed(chosen)
            zero = zero_of(file, shape) if shape else Zero(stage=file.stage)
    except KitError as error:
        errors.append(error.message)
    errors += faults(recipe, shape, chosen, on_cpu=on_cpu)
    warnings += remarks(recipe, shape, chosen, on_cpu=on_cpu, gpu_memory_gib=gpu_memory_gib)
    steps = steps_of(recipe, workers)
    if steps is None:
        warnings.append("how many steps the run has is told by its data, which is not read here: set max_steps")
    if shape is None:
        return Plan(recipe, roles, on_cpu, gpu_memory_gib, chosen, steps=steps, errors=errors, warnings=warnings)
    memory = training_memory(recipe, shape, zero, workers, available_gib=gpu_memory_gib, on_cpu=on_cpu)
    vllm = vllm_memory(recipe, shape, available_gib=gpu_memory_gib, on_cpu=on_cpu) if recipe.use_vllm else None
    errors += misfits(recipe, shape, zero, chosen, workers, memory, vllm, on_cpu=on_cpu)
    per_step = workers * recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps
    storage = disk_use(recipe, shape, zero, steps, per_step * recipe.num_generations)
    if on_cpu:
        timing = demo_timing(recipe, steps)
    else:
        timing = gpu_timing(
            recipe, shape, workers, steps=steps, storage=storage, offloaded=zero.offload_optimizer,
            gpu_memory_gib=gpu_memory_gib,
        )  # fmt: skip
    first = roles.nodes[0].workers
    return Plan(
        recipe,
        roles,
        on_cpu,
        gpu_memory_gib,
        chosen,
        shape=shape,
        steps=steps,
        memory=memory,
        vllm=vllm,
        host_memory_gib=host_memory_gib(
            recipe, shape, zero, workers=first, all_workers=workers, training_gib=memory.total_gib if on_cpu else None
        ),
        shm_gib=shared_memory_gib(recipe, shape, workers=first, on_cpu=on_cpu),
        disk=storage,
        timing=timing,
        errors=errors,
        warnings=warnings,
    )


def choose_deepspeed(
    recipe: Recipe, shape: ModelShape | None, workers: int, *, gpu_memory_gib: float | None, on_cpu: bool
) -> str | None:
    """The DeepSpeed configuration of `auto`.

    None on a CPU and with an adapter, whose optimizer is small. None for one worker whose float32 weights fit. Else the
    first of IN_ORDER that fits: with 16-bit weights also for one worker, because ZeRO keeps them in float32 as well,
    and a learning rate of 5e-7 is lost in bfloat16's rounding without.

    Args:
        recipe: what is trained.
        shape: of its model; of one that is not known, the one that needs least of the GPUs.
        workers: training devices.
        gpu_memory_gib: of the smallest; None counts as ASSUMED_GIB.
        on_cpu: no GPU.
    """
    if on_cpu or recipe.use_peft:
        return None
    if shape is None:
        return "zero3"
    available = ASSUMED_GIB if gpu_memory_gib is None else gpu_memory_gib

    def fits(zero: Zero) -> bool:
        return training_memory(recipe, shape, zero, workers, available_gib=available, on_cpu=False).fits

    float32 = recipe.torch_dtype in (None, "float32")
    if workers == 1 and float32 and fits(NO_ZERO):
        return None
    for name in IN_ORDER:
        if fits(zero_of(find_deepspeed(name), shape)):
            return name
    return IN_ORDER[-1]


def steps_of(recipe: Recipe, workers: int) -> int | None:
    """Optimizer steps of the run; None where only the data can tell: a file, or a hub set other than the original's.

    Counted by epochs it is `training.schedule.total_steps` of the rows that are not held out; the split keeps the rows
    of one problem together, so it can be a step or two more or less.
    """
    if recipe.max_steps > 0:
        return recipe.max_steps
    rows = recipe.dataset_rows
    if recipe.dataset_id_or_path == HUB_SET:
        rows = min(rows or HUB_ROWS, HUB_ROWS)
    elif recipe.dataset_id_or_path != GENERATED:
        return None
    if rows is None:
        return None
    prompts = workers * recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps
    return max(1, math.ceil(recipe.num_train_epochs * rows * (1 - recipe.test_fraction) / prompts))


def _named(deepspeed: str) -> str | None:
    return None if deepspeed == "none" else deepspeed


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)
