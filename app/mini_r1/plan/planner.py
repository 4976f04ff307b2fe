"""What a recipe means on given devices: roles, batch, memory, disk, time, and everything that cannot work.

roles = assign(shape(4, 1), use_vllm=True, on_cpu=False)
plan = make_plan(recipe, roles, gpu_memory_gib=80, on_cpu=False)
plan.num_processes, plan.deepspeed, plan.errors  # (3, "zero2", [])
"""

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

from mini_r1.errors import KitError
from mini_r1.machine.roles import Roles
from mini_r1.plan.disk_space import DiskUse, disk_use, host_memory_gib, shared_memory_gib
from mini_r1.plan.memory import Memory, training_memory, vllm_memory, vllm_share
from mini_r1.plan.plan_errors import memory_errors, plan_warnings, recipe_errors
from mini_r1.plan.shapes import UnknownShape, recipe_shape
from mini_r1.plan.timing import Timing, demo_timing, gpu_timing
from mini_r1.plan.training_setup import IN_ORDER, NO_ZERO, TrainingSetup, zero_settings
from mini_r1.recipe.deepspeed_file import find_deepspeed
from mini_r1.recipe.fields import GENERATED, Recipe

AUTO: Final = "auto"
HUB_SET, HUB_ROWS = "Jiayi-Pan/Countdown-Tasks-3to4", 490_364  # the data set of the original and its number of rows
ASSUMED_GIB: Final = 80.0  # GPU memory by which DeepSpeed is chosen if it is unknown


@dataclass(slots=True)
class Plan:
    """A recipe on given devices. Setup, memory, disk and time are None if the model's shape is unknown."""

    recipe: Recipe
    roles: Roles | None  # None if none can be assigned
    on_cpu: bool
    gpu_memory_gib: float | None
    deepspeed: str | None = None  # name of a shipped configuration, or a path
    setup: TrainingSetup | None = None
    steps: int | None = None
    memory: Memory | None = None
    vllm: Memory | None = None
    host_memory_gib: float | None = None
    host_memory_here: str | None = None  # what this machine has of it; None: not compared
    shm_gib: float | None = None
    disk: DiskUse | None = None
    timing: Timing | None = None
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def num_processes(self) -> int:
        """Training workers over all nodes; 0 without roles."""
        return self.roles.num_processes if self.roles else 0

    @property
    def vllm_devices(self) -> tuple[str, ...]:
        return self.roles.vllm_devices if self.roles else ()

    @property
    def prompts_per_step(self) -> int:
        """Prompts of an optimizer step, over all workers."""
        return _prompts_per_step(self.recipe, self.num_processes)

    @property
    def completions_per_step(self) -> int:
        return self.prompts_per_step * self.recipe.num_generations

    @property
    def tokens_per_step(self) -> int:
        """Most tokens generated in an optimizer step."""
        return self.completions_per_step * self.recipe.max_completion_length

    def to_dict(self) -> dict[str, Any]:
        """Return the --json of `mini-r1 plan`."""
        each_step = {
            "prompts": self.prompts_per_step,
            "completions": self.completions_per_step,
            "max_tokens": self.tokens_per_step,
        }
        memory = {"training_device": self.memory, "vllm_device": self.vllm}
        known = self.setup is not None and self.vllm is not None and self.vllm.sequences is not None
        return {
            "num_processes": self.num_processes,
            "vllm_devices": self.vllm_devices,
            "vllm_shares_gpu": self.roles is not None and self.roles.shared,
            "nodes": [asdict(node) for node in self.roles.nodes] if self.roles else [],
            "on_cpu": self.on_cpu,
            "gpu_memory_gib": self.gpu_memory_gib,
            "vllm_gpu_memory_utilization": vllm_share(self.setup) if known and self.setup else None,
            "deepspeed": self.deepspeed,
            "model": self.recipe.model_name_or_path,
            "parameters": self.setup.shape.parameters if self.setup else None,
            "largest_parameter": self.setup.shape.largest_parameter if self.setup else None,
            "gradient_bucket": self.setup.zero.bucket if self.setup and self.setup.zero.stage else None,
            "steps": self.steps,
            **{f"{name}_per_step": value for name, value in each_step.items()},
            **{name: None if self.steps is None else self.steps * value for name, value in each_step.items()},
            "memory_gib": {device: table.to_dict() if table else None for device, table in memory.items()},
            "host_memory_gib": None if self.host_memory_gib is None else round(self.host_memory_gib, 2),
            "host_memory_here": self.host_memory_here,
            "shm_gib": None if self.shm_gib is None else round(self.shm_gib, 2),
            "disk_gib": self.disk.to_dict() if self.disk else None,
            "time": self.timing.to_dict() if self.timing else None,
            "errors": self.errors,
            "warnings": self.warnings,
        }


def make_plan(
    recipe: Recipe, roles: Roles, *, gpu_memory_gib: float | None, on_cpu: bool, deepspeed: str = AUTO
) -> Plan:
    """Plan a recipe; a plan that cannot work has errors, nothing is raised.

    `gpu_memory_gib` is the smallest GPU's memory, None if unknown; `deepspeed` is `auto`, `none`, the name of a shipped
    configuration, or a path.
    """
    workers, gpu_memory_gib = roles.num_processes, None if on_cpu else gpu_memory_gib
    plan = Plan(recipe, roles, on_cpu, gpu_memory_gib, steps=count_steps(recipe, workers), warnings=recipe.warnings())
    shape, setup = None, None
    try:
        shape = recipe_shape(recipe)
        number = max(1, len(roles.vllm_devices))
        setup = TrainingSetup(recipe, shape, workers, NO_ZERO, gpu_memory_gib, on_cpu, number, roles.shared)
    except UnknownShape as warning:
        plan.warnings.append(str(warning))
    except KitError as error:
        plan.errors.append(error.message)
    try:
        if deepspeed == AUTO:
            plan.deepspeed = choose_deepspeed(recipe, setup, on_cpu=on_cpu)
        elif deepspeed != "none":
            plan.deepspeed = deepspeed
        if plan.deepspeed is not None:
            file = find_deepspeed(plan.deepspeed)
            if setup is not None:
                setup = replace(setup, zero=zero_settings(file, setup.shape))
                if not recipe.use_peft:  # an adapter's tensors are small
                    plan.warnings += filter(None, [file.warn_of_bucket(setup.shape.largest_parameter)])
    except KitError as error:
        plan.errors.append(error.message)
    if roles.shared and not on_cpu and setup is None and recipe.vllm_gpu_memory_utilization is None:
        plan.errors.append(
            "training and vLLM share one GPU, and its memory can't be divided without the shape of the model: set "
            "vllm_gpu_memory_utilization, or use_vllm: false"
        )
    plan.errors += recipe_errors(recipe, shape, plan.deepspeed, workers, on_cpu=on_cpu)
    plan.warnings += plan_warnings(recipe, shape, plan.deepspeed, gpu_memory_gib, on_cpu=on_cpu)
    if plan.steps is None:
        plan.warnings.append("the number of steps depends on the data, which is not read here: set max_steps")
    if setup is None:
        return plan
    first_node = roles.nodes[0].workers
    plan.setup = setup
    plan.memory = training_memory(setup)
    plan.vllm = vllm_memory(setup) if recipe.use_vllm else None
    plan.errors += memory_errors(setup, plan.deepspeed, plan.memory, plan.vllm)
    plan.disk = disk_use(setup, plan.steps)
    plan.host_memory_gib = host_memory_gib(setup, first_node)
    plan.shm_gib = shared_memory_gib(setup, first_node)
    plan.timing = demo_timing(setup, plan.steps) if on_cpu else gpu_timing(setup, plan.steps, plan.disk)
    return plan


def choose_deepspeed(recipe: Recipe, setup: TrainingSetup | None, *, on_cpu: bool) -> str | None:
    """Return the DeepSpeed configuration of `auto`; `setup` is None for a model of unknown shape.

    None on a CPU and with an adapter, whose optimizer is small. None for one worker whose float32 weights fit. Else the
    first of IN_ORDER that fits: with 16-bit weights also for one worker, because ZeRO keeps them in float32 as well,
    and a learning rate of 5e-7 is lost in bfloat16's rounding without.
    """
    if on_cpu or recipe.use_peft:
        return None
    if setup is None:
        return "zero3"
    setup = replace(setup, gpu_memory_gib=setup.gpu_memory_gib or ASSUMED_GIB)
    if setup.workers == 1 and recipe.torch_dtype in (None, "float32") and training_memory(setup).fits:
        return None
    for name in IN_ORDER:
        if training_memory(replace(setup, zero=zero_settings(find_deepspeed(name), setup.shape))).fits:
            return name
    return IN_ORDER[-1]


def count_steps(recipe: Recipe, workers: int) -> int | None:
    """Return the optimizer steps of the run; None if they depend on data that is not known here.

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
    trained_rows = rows * (1 - recipe.test_fraction)
    return max(1, math.ceil(recipe.num_train_epochs * trained_rows / _prompts_per_step(recipe, workers)))


def _prompts_per_step(recipe: Recipe, workers: int) -> int:
    return workers * recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps
