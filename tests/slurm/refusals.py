"""What no job should try again, for the tests without Slurm and on a real one."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.conftest import REPO
from tests.slurm.cluster import SYSTEM_PATH
from tests.slurm.conftest import Checkout, Kit, a_program

VENV = {"MINI_R1_RUNTIME": "venv", "MINI_R1_VENV": str(REPO / ".venv")}
ONE, FOUR, TWO_NODES = "slurm/train_1gpu.sh", "slurm/train_4xh100.sh", "slurm/train_2x8h100.sh"
SWEEP, EVALUATE = "slurm/sweep.sh", "slurm/evaluate.sh"
THREE = ("lora-cpu", "--gpus", "3")
"""One more than a job has that got two: the launcher says how many its task sees."""
MODULES = [Path("/etc/profile.d") / f"{name}.sh" for name in ("lmod", "z00_lmod", "modules")]
"""Files that define the command `module`."""


@dataclass(frozen=True)
class Case:
    """A job that is refused.

    Attributes:
        says: in its log.
        script: what is submitted, and its arguments.
        options: of sbatch.
        given: what Slurm sets for these options; None: does not set. Each was seen on a real one.
        gpus: on the node.
        site: what site.env exports; None: there is no such file.
        lines: site.env's last.
        exports: the shell that submits.
        prepare: what else is done to the checkout.
        needs: why the case cannot be tried here, if it cannot.
        on_slurm: it is about what Slurm does, so that the tier `real` has it too.
        only_on_slurm: two nodes decide.
    """

    says: str
    script: tuple[str, ...] = (ONE,)
    options: tuple[str, ...] = ()
    given: dict[str, str | None] = field(default_factory=dict)
    gpus: int = 1
    site: dict[str, str] | None = field(default_factory=lambda: VENV)
    lines: str = ""
    exports: dict[str, str] = field(default_factory=dict)
    prepare: Callable[[Any], object] = lambda kit: None
    needs: str = ""
    on_slurm: bool = False
    only_on_slurm: bool = False

    def write(self, kit: Checkout) -> None:
        """Bring a checkout into this state."""
        site = kit.folder / "slurm" / "site.env"
        if self.site is None:
            site.unlink()
        else:
            kit.site(**self.site)
            site.write_text(site.read_text() + self.lines)
        self.prepare(kit)


def with_windows_lines(name: str) -> Callable[[Any], object]:
    def convert(kit: Checkout) -> None:
        path = kit.folder / name
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))

    return convert


def a_python_without_the_kit(kit: Checkout) -> None:
    (kit.folder / "bare" / "bin").mkdir(parents=True)
    (kit.folder / "bare" / "bin" / "python").symlink_to(Path(sys.executable).resolve())


def a_prolog_that_hides_gpus(kit: Checkout) -> None:
    """Slurm takes from a task prolog's output what it begins with `export`."""
    a_program(kit.folder.parent / "prolog", "echo export CUDA_VISIBLE_DEVICES=0")
    kit.site(**VENV, SLURM_TASK_PROLOG=str(kit.folder.parent / "prolog"))


def a_venv_that_one_node_sees(kit: Kit) -> None:
    a_program(kit.slurm.folder / "disk-of-n1" / "venv" / "bin" / "python", f"exec '{sys.executable}' \"$@\"")
    kit.site(MINI_R1_RUNTIME="venv", MINI_R1_VENV=str(kit.slurm.disk / "venv"))


def array_row(row: int) -> dict[str, str | None]:
    """What Slurm sets for a task of an array."""
    return {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": str(row)}


FIRST: dict[str, Any] = {"gpus": 4, "options": ("--array=0",), "given": array_row(0)}
TWO_GPUS: dict[str, str | None] = {"SLURM_GPUS_ON_NODE": "2", "CUDA_VISIBLE_DEVICES": "0,1"}
CASES = {
    # What Slurm gives and how
    "no GPU": Case(
        "no GPU was allocated: sbatch --gpus-per-node=N", options=("--gpus-per-node=0",), on_slurm=True,
        given={"SLURM_GPUS_ON_NODE": None, "SLURM_GPUS_PER_NODE": "0", "CUDA_VISIBLE_DEVICES": None},
    ),
    "four tasks": Case(
        "Slurm would start 4 tasks per node: leave out --ntasks", (FOUR,), gpus=4, on_slurm=True,
        options=("--ntasks-per-node=4", "--gpus-per-task=1"), given={"SLURM_TASKS_PER_NODE": "4"},
    ),
    "a GPU a task, left over from the shell that submits": Case(
        "--gpus-per-task and --gpu-bind hide GPUs from the task of a node, which needs all", (FOUR,), gpus=4,
        exports={"SLURM_GPUS_PER_TASK": "1"},
    ),
    "GPUs are bound": Case(
        "--gpus-per-task and --gpu-bind hide GPUs", (FOUR,), gpus=4, on_slurm=True,
        options=("--gpu-bind=map_gpu:0",), given={"SLURM_GPU_BIND": "map_gpu:0"},
    ),
    # A recipe that would train on one as well.
    "a task sees fewer": Case(
        "sees only GPU 0 of the 4 that the job has there", (FOUR, "lora-cpu"), gpus=4, on_slurm=True,
        given={"CUDA_VISIBLE_DEVICES": "0"}, prepare=a_prolog_that_hides_gpus,
    ),
    "another number, as --gres": Case(
        "--gpus 3: only 2 given", (FOUR, *THREE), options=("--gres=gpu:2",), on_slurm=True,
        given={**TWO_GPUS, "SLURM_GPUS_PER_NODE": "4"},
    ),
    "another number, with a type": Case(
        "--gpus 3: only 2 given", (FOUR, *THREE), options=("--gpus-per-node=h100:2",),
        given={**TWO_GPUS, "SLURM_GPUS_PER_NODE": "h100:2"},
    ),
    "no binding": Case(
        "--gpus 3: only 2 given", (FOUR, *THREE), options=("--gpus-per-node=2", "--gpu-bind=none"),
        given={**TWO_GPUS, "SLURM_GPUS_PER_NODE": "2", "SLURM_GPU_BIND": "none"},
    ),
    # site.env
    "no site.env": Case("no runtime chosen: cp slurm/site.env.example slurm/site.env", site=None),
    "nothing exported and no runtime in site.env": Case(
        "no runtime chosen", options=("--export=NONE",), site={}, exports={"MINI_R1_RUNTIME": "venv"}, on_slurm=True,
        given={"MINI_R1_RUNTIME": None},
    ),
    "unknown runtime": Case(
        "MINI_R1_RUNTIME=docker: must be venv, apptainer or pyxis", site={"MINI_R1_RUNTIME": "docker"}
    ),
    "bound that is no number": Case(
        "MINI_R1_MAX_FAILURES=few: must be a number from 0", site={**VENV, "MINI_R1_MAX_FAILURES": "few"}
    ),
    "site.env from Windows": Case(
        "site.env has Windows line ends (CRLF)", prepare=with_windows_lines("slurm/site.env")
    ),
    "site.env is no shell": Case("site.env is not valid shell", lines="if true; then\n"),
    # Modules; the first is a stand-in for the command
    "a module that does not load": Case(
        "module load cuda/99 failed", lines="export MINI_R1_MODULES=cuda/99\nmodule() { echo none >&2; return 1; }\n"
    ),
    "no modules here": Case(
        "this node has no 'module' command", site={**VENV, "MINI_R1_MODULES": "cuda"},
        needs="this machine has modules" if any(path.exists() for path in MODULES) else "",
    ),
    # Runtimes
    "no venv": Case("no Python with the kit at /nowhere/bin/python", site={**VENV, "MINI_R1_VENV": "/nowhere"}),
    "a venv without the kit": Case(
        "bare/bin/python: set MINI_R1_VENV in", site={**VENV, "MINI_R1_VENV": "bare"}, prepare=a_python_without_the_kit
    ),
    "a venv that one node of two sees": Case(
        "the kit does not start in the runtime venv on every node", (TWO_NODES,),
        options=("--gpus-per-node=1", "--nodelist=n[1-2]"), prepare=a_venv_that_one_node_sees, on_slurm=True,
        only_on_slurm=True,
    ),
    "no apptainer": Case(
        "no apptainer on ", site={"MINI_R1_RUNTIME": "apptainer"},
        needs="this machine has apptainer" if shutil.which("apptainer", path=SYSTEM_PATH) else "",
    ),
    "no pyxis": Case(
        "no pyxis (srun does not know --container-image)", site={"MINI_R1_RUNTIME": "pyxis"},
        on_slurm=True,
    ),
    # Recipes and options
    "unknown key": Case("learning_rat", (ONE, "lora-cpu", "--set", "learning_rat=1")),
    "unknown recipe": Case("no-such-recipe", (ONE, "no-such-recipe")),
    # Sweeps
    # The script sets its own --array.
    "a sweep without an array": Case(
        "no array: sbatch --array=0-3", (SWEEP,), gpus=4,
        options=("--gpus-per-node=4", "--wrap=bash slurm/sweep.sh", "--output=%x-%j.log"),
    ),
    "no table": Case("cannot read the table my.txt from", (SWEEP, "my.txt"), **FIRST),
    "a row beyond the table": Case(
        "no row 9 in ", (SWEEP,), gpus=4, options=("--array=9",), given=array_row(9), on_slurm=True
    ),
    "a row that would leave its folder": Case(
        "'../up' names a run directory: use only letters, digits and . _ -", (SWEEP, "my.txt"), **FIRST,
        prepare=lambda kit: (kit.folder / "my.txt").write_text("../up beta=0\n"),
    ),
    "a table from Windows": Case(
        "sweep.txt has Windows line ends (CRLF)", (SWEEP,), **FIRST, prepare=with_windows_lines("slurm/sweep.txt")
    ),
    # Evaluation
    "evaluate nothing": Case("no run given: sbatch slurm/evaluate.sh runs/mini-r1-3b", (EVALUATE,)),
    "evaluate an option": Case("no run given", (EVALUATE, "--samples", "8")),
    "evaluate no run": Case("no run directory runs/gone in ", (EVALUATE, "runs/gone"), on_slurm=True),
}  # fmt: skip
