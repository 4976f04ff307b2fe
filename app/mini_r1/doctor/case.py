"""What the doctor examines: one node, and what a recipe needs of it."""

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mini_r1.machine.control_groups import read_kernel_file
from mini_r1.machine.devices import Devices
from mini_r1.machine.nvidia import Driver
from mini_r1.recipe.fields import Recipe


@dataclass(frozen=True, slots=True)
class Case:
    """One node and what is to run on it; without a recipe, the node alone."""

    environment: Mapping[str, str]
    devices: Devices
    driver: Driver | None
    recipe: Recipe | None = None
    disk_gib: float | None = None  # the plan's, for a whole run; None without a plan
    host_memory_gib: float = 0.0  # the plan's, of this node's processes together
    shm_gib: float = 0.0
    workers: int = 1  # training processes of this node
    run_dir: Path | None = None
    deepspeed: str | None = None  # the plan's choice: a name or a file
    ports: tuple[int, ...] = ()  # that this node has to listen on
    first_node: bool = True  # whether rank 0 of all nodes is here, which alone reports to trackers
    root: Path = Path("/")  # of /proc, /sys and /dev: another one in tests

    def read(self, path: str) -> str | None:
        """Return the text of a kernel file, e.g. `proc/meminfo`; None if it cannot be read."""
        return read_kernel_file(path, self.root)

    @property
    def uses_gpus(self) -> bool:
        """Whether the work is to run on GPUs."""
        return not self.devices.on_cpu


def run_program(
    command: Sequence[str], environment: Mapping[str, str], timeout_s: float, folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program without input; its output may hold any bytes. Raises OSError and TimeoutExpired."""
    return subprocess.run(  # noqa: S603
        command, env=dict(environment), cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, errors="replace",
        timeout=timeout_s,
    )  # fmt: skip
