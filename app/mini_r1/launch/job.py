"""What this node launches: the command line, and what the node knows before it has met the others."""

import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mini_r1.machine.devices import ACCELERATOR, Devices, given_devices
from mini_r1.machine.nodes import Nodes, find_nodes
from mini_r1.machine.nvidia import lacks_p2p, read_driver, smallest_gpu_gib
from mini_r1.plan.planner import AUTO
from mini_r1.plan.recipe_plans import Hardware, find_hardware, find_largest_fitting
from mini_r1.recipe.fields import Recipe
from mini_r1.recipe.named_files import check_code
from mini_r1.recipe.recipe_file import effective_output_dir, find_recipe, load_recipe
from mini_r1.run.run_dir import RunDir

Say = Callable[[str], None]  # takes a line for the user


@dataclass(frozen=True, slots=True)
class LaunchOptions:
    """The command line of `mini-r1 launch`; None is the recipe's own value, or what scheduler and driver report."""

    recipe: str  # a file, the name of a shipped recipe, or `auto`: the largest shipped one that fits
    overrides: Sequence[str] = ()
    run_dir: Path | None = None
    gpus: int | None = None
    nodes: int | None = None
    node_index: int | None = None
    address: str | None = None
    port: int | None = None
    deepspeed: str = "auto"
    gpu_memory_gib: float | None = None
    vllm_devices: str = "1"  # a number, or `auto`

    def find_nodes(self, environment: Mapping[str, str]) -> Nodes:
        return find_nodes(environment, self.nodes, self.node_index, self.address, self.port)


@dataclass(frozen=True, slots=True)
class Job:
    """What this node knows before it has met the others."""

    options: LaunchOptions
    path: Path
    recipe: Recipe
    run: RunDir
    devices: Devices
    nodes: Nodes
    gpu_memory_gib: float | None
    environment: Mapping[str, str]
    say: Say
    lacks_p2p: bool = False  # GPUs of the RTX 40 series with an old driver

    @property
    def node(self) -> str:
        return f"node {self.nodes.index} ({socket.gethostname()})"


def read_job(
    options: LaunchOptions,
    environment: Mapping[str, str],
    say: Say,
    begin: Callable[[RunDir, Nodes], None] = lambda run, nodes: None,
    *,
    as_if: bool = False,
) -> Job:
    """Find recipe, devices and nodes, or raise KitError.

    `begin` is called once the run directory is known. `as_if` takes --gpus for GPUs that need not be here.
    """
    nodes = options.find_nodes(environment)
    named = run = None
    if options.recipe != AUTO:  # first: an error of the devices counts as an attempt of the run
        path = named = find_recipe(options.recipe)
        recipe, run = _read_run(options, path, environment)
        begin(run, nodes)
    wanted, on_cpu = options.gpus or 0, environment.get(ACCELERATOR) == "cpu"
    memory = options.gpu_memory_gib
    if as_if and not on_cpu and wanted > len(given_devices(environment).ids):
        assumed = find_hardware(environment, gpus=wanted, nodes=1, gpu_memory_gib=memory, recipe=named)
        devices = Devices(tuple(assumed.devices[0]), False, f"{assumed.source}, as if they were here")
        memory, here = assumed.gpu_memory_gib, False
    else:
        devices, here = given_devices(environment, options.gpus), True
    if memory is None and not devices.on_cpu and here:
        memory = smallest_gpu_gib(read_driver(devices.ids))
    if run is None:
        hardware = Hardware([list(devices.ids)] * nodes.count, devices.on_cpu, memory, devices.source, here)
        path, reason = find_largest_fitting(hardware)
        say(reason)
        recipe, run = _read_run(options, path, environment)
        begin(run, nodes)
    no_p2p = not devices.on_cpu and lacks_p2p()
    return Job(options, path, recipe, run, devices, nodes, memory, environment, say, no_p2p)


def _read_run(options: LaunchOptions, path: Path, environment: Mapping[str, str]) -> tuple[Recipe, RunDir]:
    recipe = load_recipe(path, options.overrides)
    check_code(recipe, environment)
    return recipe, RunDir((options.run_dir or effective_output_dir(recipe, path)).absolute())
