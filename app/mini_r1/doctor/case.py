"""What is examined: one node, and what a recipe wants of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mini_r1.machine.control_groups import kernel_file
from mini_r1.machine.devices import Devices
from mini_r1.machine.nodes import Nodes
from mini_r1.machine.nvidia import Driver
from mini_r1.recipe.fields import Recipe

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Needs:
    """What the plan expects of a node, in GiB.

    Args:
        disk: free where the run directory is, for a whole run.
        host_memory: of this node's processes together.
        shared_memory: in /dev/shm.
    """

    disk: float
    host_memory: float
    shared_memory: float


@dataclass(frozen=True, slots=True)
class Case:
    """One node and what is to run on it.

    Args:
        environment: of the process.
        devices: that it was given.
        driver: what the NVIDIA library says; None without one.
        nodes: of the job; None where nobody asked.
        recipe: None for the node alone.
        needs: None where there is no plan.
        workers: training processes of this node.
        run_dir: where the run will be; None without a recipe.
        deepspeed: the plan's answer: None, a name or a file.
        ports: that this node must be able to listen on.
        root: of /proc, /sys and /dev: another one in tests.
    """

    environment: Mapping[str, str]
    devices: Devices
    driver: Driver | None
    nodes: Nodes | None = None
    recipe: Recipe | None = None
    needs: Needs | None = None
    workers: int = 1
    run_dir: Path | None = None
    deepspeed: str | None = None
    ports: tuple[int, ...] = ()
    root: Path = Path("/")

    def read(self, path: str) -> str | None:
        """A file of the kernel's, e.g. `proc/meminfo`; None where there is none that can be read."""
        return kernel_file(path, self.root)

    @property
    def gpus_wanted(self) -> bool:
        """Whether GPUs were given and their work is to run on them."""
        return not self.devices.on_cpu
