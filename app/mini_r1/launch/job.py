"""What is to be launched here: the command line, and what this node knows before it has met the others."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mini_r1.machine.devices import Devices, given_devices
from mini_r1.machine.nodes import Nodes, find_nodes
from mini_r1.machine.nvidia import read_driver, smallest_gpu_gib
from mini_r1.plan.planner import AUTO
from mini_r1.plan.recipe_plans import Hardware, find_largest_fitting
from mini_r1.recipe.fields import Recipe
from mini_r1.recipe.recipe_file import effective_output_dir, find_recipe, load_recipe
from mini_r1.run.run_dir import RunDir

Say = Callable[[str], None]
"""Takes a line for the user."""


@dataclass(frozen=True, slots=True)
class LaunchOptions:
    """What was asked for on the command line.

    Args:
        recipe: a file, the name of a shipped one, or `auto`: the largest shipped one that fits.
        overrides: of --set.
        run_dir: None is the recipe's own.
        gpus: of this node to use; None is all that were given.
        nodes: how many; None is what the scheduler says.
        node_index: of this one.
        address: of node 0.
        port: of the rendezvous.
        deepspeed: auto, none, the name of a shipped configuration, or a file.
        gpu_memory_gib: of a GPU; None asks the driver.
    """

    recipe: str
    overrides: Sequence[str] = ()
    run_dir: Path | None = None
    gpus: int | None = None
    nodes: int | None = None
    node_index: int | None = None
    address: str | None = None
    port: int | None = None
    deepspeed: str = "auto"
    gpu_memory_gib: float | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """What this node knows before it has met the others."""

    order: LaunchOptions
    path: Path
    recipe: Recipe
    run: RunDir
    devices: Devices
    nodes: Nodes
    gpu_memory_gib: float | None
    environment: Mapping[str, str]

    @property
    def words(self) -> str:
        """This node's words for itself."""
        return f"node {self.nodes.index} ({socket.gethostname()})"


def read_job(order: LaunchOptions, environment: Mapping[str, str], say: Say) -> Job:
    """What is to run here.

    Raises:
        KitError: recipe, devices or nodes cannot be made sense of.
    """
    devices = given_devices(environment, order.gpus)
    nodes = find_nodes(environment, count=order.nodes, index=order.node_index, address=order.address, port=order.port)
    memory = order.gpu_memory_gib
    if memory is None and not devices.on_cpu:
        memory = smallest_gpu_gib(read_driver(devices.ids))
    if order.recipe == AUTO:
        place = Hardware([list(devices.ids)] * nodes.count, devices.on_cpu, memory, devices.source)
        path, reason = find_largest_fitting(place)
        say(reason)
    else:
        path = find_recipe(order.recipe)
    recipe = load_recipe(path, order.overrides)
    run = RunDir((order.run_dir or effective_output_dir(recipe, path)).absolute())
    return Job(order, path, recipe, run, devices, nodes, memory, environment)
