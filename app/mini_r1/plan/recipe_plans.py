"""The shipped recipes on given devices, the shape that each was made for, and the largest one that fits.

A recipe never names a GPU. The hardware it was made for is in its header, in one line that this module reads:

    # Shape: 1 node x 4 GPUs of 80 GiB
    # Shape: 1 node, no GPU
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mini_r1.errors import KitError
from mini_r1.machine.control_groups import compare_memory
from mini_r1.machine.devices import ACCELERATOR, CPU_SWITCH, given_devices
from mini_r1.machine.nvidia import list_gpus, read_driver, smallest_gpu_gib
from mini_r1.machine.roles import shape
from mini_r1.plan.device_roles import plan_devices
from mini_r1.plan.planner import AUTO, Plan
from mini_r1.recipe.fields import Recipe
from mini_r1.recipe.recipe_file import load_recipe
from mini_r1.recipe.shipped_files import shipped_files
from mini_r1.tasks.registry import DEFAULT_TASK

_SHAPE: Final = re.compile(
    r"^# Shape: ((?:(\d+) nodes? x (\d+) GPUs? of (\d+) GiB|1 node, no GPU))[ \t\r]*$", re.MULTILINE
)
HEADER_CHARACTERS: Final = 4_000  # of a recipe that are searched for its shape
VARIANTS: Final = ("mini-r1-3b-base", "mini-r1-3b-g64", "mini-r1-3b-overlap")
"""Another recipe with one thing changed, to see its effect: `find_largest_fitting` takes the one that it varies."""


@dataclass(frozen=True, slots=True)
class Hardware:
    """The devices of a plan, by node; without a GPU the nodes have none, or slots on the CPU."""

    devices: list[list[str]]
    on_cpu: bool
    gpu_memory_gib: float | None  # of the smallest GPU; None if unknown
    source: str  # what specifies these devices
    here: bool = False  # this machine has them, so that its memory can be compared with the plan

    @property
    def gpus(self) -> int:
        return 0 if self.on_cpu else sum(map(len, self.devices))


def declared_hardware(path: Path) -> Hardware | None:
    """Return the hardware that a recipe was made for, by its header."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            found = _SHAPE.search(file.read(HEADER_CHARACTERS))
    except OSError:
        return None
    if found is None:
        return None
    nodes, gpus, memory = (int(number or 0) for number in found.groups()[1:])
    source = f"the shape in the header of {path.name}: {found[1]}"
    return Hardware(shape(gpus, nodes or 1), gpus == 0, float(memory) or None, source)


def find_hardware(
    environment: Mapping[str, str],
    *,
    gpus: int | None,
    nodes: int | None,
    gpu_memory_gib: float | None,
    recipe: Path | None,
) -> Hardware:
    """Return the devices of the options, else those given to this process, else the recipe's own, else a CPU.

    `gpus` are those of each node, 0 is a CPU; `nodes` are 1 by default, or what the recipe was made for. Raises
    KitError if such devices cannot exist, or the environment names devices that don't.
    """
    made_for = declared_hardware(recipe) if recipe else None
    on_cpu = environment.get(ACCELERATOR) == "cpu"
    if gpus is not None:
        memory = gpu_memory_gib or (made_for.gpu_memory_gib if made_for else None)
        here = on_cpu or gpus == 0 or len(list_gpus() or ()) >= gpus
        source = "the options" + (f", {CPU_SWITCH}" if on_cpu else "")
        if memory and not gpu_memory_gib and gpus and not on_cpu:
            source += f"; {memory:g} GiB from the recipe's header"
        return Hardware(shape(gpus, nodes or 1), on_cpu or gpus == 0, memory, source, here)
    given = given_devices(environment)
    if given.ids or on_cpu:
        memory = gpu_memory_gib or (None if given.on_cpu else smallest_gpu_gib(read_driver(given.ids)))
        source = f"this machine's devices ({given.source})"
        return Hardware([list(given.ids)] * (nodes or 1), given.on_cpu, memory, source, here=True)
    if made_for is not None:
        devices = made_for.devices if nodes is None else [made_for.devices[0]] * nodes
        memory = gpu_memory_gib or made_for.gpu_memory_gib
        source = f"no GPU here, so {made_for.source}"
        return Hardware(devices, made_for.on_cpu, memory, source, here=made_for.on_cpu)
    source = (
        "the CPU (no GPU here)" if recipe is None else "no GPU here, and the recipe's header names no shape: the CPU"
    )
    return Hardware([[]] * (nodes or 1), True, None, source, here=True)


def plan_for(recipe: Recipe, hardware: Hardware, deepspeed: str = AUTO, vllm_devices: str = "1") -> Plan:
    """Plan a recipe on these devices; a plan without roles has the reason in its errors.

    On this machine's devices, host memory is compared as `mini-r1 launch` compares it.
    """
    memory, on_cpu = hardware.gpu_memory_gib, hardware.on_cpu
    try:
        plan = plan_devices(
            recipe,
            hardware.devices,
            on_cpu=on_cpu,
            gpu_memory_gib=memory,
            deepspeed=deepspeed,
            vllm_devices=vllm_devices,
        )
    except KitError as error:
        return Plan(recipe, None, on_cpu, memory, errors=[error.message])
    if hardware.here and plan.host_memory_gib is not None:
        found = compare_memory(plan.host_memory_gib)
        plan.host_memory_here = found.detail
        if found.fix:
            kind = plan.errors if found.status == "fail" else plan.warnings
            kind.append(f"host memory: {found.detail}: {found.fix}")
    return plan


def shipped_plans(hardware: Hardware) -> list[tuple[Path, Hardware, Plan]]:
    """Plan every shipped recipe on these devices, and return each with the hardware that it was made for."""
    plans = []
    for path in shipped_files("recipes").values():
        recipe, made_for = load_recipe(path), declared_hardware(path)
        if made_for is None:
            raise KitError(f"{path}: its header has no line `# Shape:`")
        plan = plan_for(recipe, hardware)
        if hardware.on_cpu and not made_for.on_cpu:
            plan.errors = ["made for GPUs, and there is none"]
        plans.append((path, made_for, plan))
    return plans


def recipe_rows(hardware: Hardware, *, as_made: bool) -> list[dict[str, Any]]:
    """Return the --json of `mini-r1 recipes`: what fits these devices, with time and disk there.

    With `as_made`, devices, time and disk are of what each recipe was made for.
    """
    rows = []
    for path, made_for, fitting in shipped_plans(hardware):
        devices = made_for if as_made else hardware
        plan = plan_for(fitting.recipe, made_for) if as_made else fitting
        rows.append(
            {
                "name": path.stem,
                "model": plan.recipe.model_name_or_path,
                "adapter": plan.recipe.use_peft,
                "made_for": made_for.source.split(": ", 1)[1],
                "devices": [len(node) for node in devices.devices],
                "gpu_memory_gib": plan.gpu_memory_gib,
                "deepspeed": plan.deepspeed,
                "fits": not fitting.errors,
                "fits_on": hardware.source,
                "errors": fitting.errors,
                "hours": round(plan.timing.hours, 2) if plan.timing and plan.timing.hours is not None else None,
                "disk_gib": round(plan.disk.total, 1) if plan.disk else None,
                "completions_per_step": plan.completions_per_step,
            }
        )
    return rows


def find_largest_fitting(hardware: Hardware) -> tuple[Path, str]:
    """Return the shipped recipe that `launch auto` takes, and a sentence with the reason.

    It is one whose plan has no errors and that was made for no more GPUs than there are, or for a CPU if there is none:
    the one that trains most parameters; at equal size all weights before an adapter, then the one made for most GPUs,
    then the one with most completions a step. VARIANTS and other tasks are left out. Raises KitError if none fits.
    """
    fitting = []
    for path, made_for, plan in shipped_plans(hardware):
        if plan.errors or plan.setup is None or path.stem in VARIANTS or plan.recipe.task != DEFAULT_TASK:
            continue
        if made_for.gpus <= hardware.gpus and made_for.on_cpu == hardware.on_cpu:
            size = (plan.setup.shape.parameters, not plan.recipe.use_peft, made_for.gpus, plan.completions_per_step)
            fitting.append((size, path, plan))
    if not fitting:
        raise KitError(
            f"no shipped recipe fits {hardware.source}: see `mini-r1 recipes` for the reasons; name a recipe, and "
            "change it with --set"
        )
    _, path, plan = max(fitting, key=lambda one: one[0])
    trained = "an adapter of" if plan.recipe.use_peft else "all weights of"
    return path, (
        f"{path.stem} is the largest shipped recipe that fits ({hardware.source}): it trains {trained} "
        f"{plan.recipe.model_name_or_path}, {plan.completions_per_step} completions a step"
    )
