"""The batch scripts without Slurm: a script runs in the environment that Slurm would give it, its srun runs the task.

What Slurm gives a job, and what it makes of an exit code, is tested in test_refusals_on_slurm.py.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.slurm.cluster import SYSTEM_PATH
from tests.slurm.conftest import Checkout, a_program

PROGRAMS = {
    "srun": 'while [ "${1#--}" != "$1" ]; do [ "$1" != --help ] || exit 0; shift; done\nexec "$@"',
    "scontrol": 'echo "$*" >>"$STAND_IN_CALLS"\n[ "$1" != show ] || echo "JobState=RUNNING Reason=None"',
    "squeue": "",
}
"""Stand-ins. This srun starts the first node's task and has no plugins; scontrol writes down what it is asked."""


def job(gpus: int) -> dict[str, str | None]:
    """What Slurm sets for a job on one node with so many GPUs, one task and a script of this kit."""
    return {
        "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "mini-r1", "SLURM_JOB_NUM_NODES": "1", "SLURM_TASKS_PER_NODE": "1",
        "SLURM_CPUS_PER_TASK": "8", "SLURM_GPUS_ON_NODE": str(gpus), "SLURM_GPUS_PER_NODE": str(gpus),
        "CUDA_VISIBLE_DEVICES": ",".join(map(str, range(gpus))),
    }  # fmt: skip


@dataclass(frozen=True)
class Ended:
    """A batch script that has ended.

    Attributes:
        code: its exit code.
        log: its output.
        calls: of scontrol, a line each.
    """

    code: int
    log: str
    calls: list[str]


def run_script(
    kit: Checkout,
    *script: str,
    environment: Mapping[str, str | None] | None = None,
    gpus: int = 1,
    programs: Path | None = None,
) -> Ended:
    """Run a batch script and its arguments to the end.

    Args:
        kit: the checkout that it is submitted from.
        script: its path in there, and its arguments.
        environment: what else Slurm and the submitting shell set; None: not set.
        gpus: on the node.
        programs: a folder of further stand-ins, before the others on PATH.
    """
    own = kit.folder.parent / "slurm-programs"
    for name, text in PROGRAMS.items():
        a_program(own / name, text)
    calls = own / "calls"
    given = {
        "PATH": f"{programs or own}:{own}:{SYSTEM_PATH}", "HOME": str(kit.folder.parent / "home"),
        "STAND_IN_CALLS": str(calls), "SLURM_SUBMIT_DIR": str(kit.folder), **job(gpus), **(environment or {}),
    }  # fmt: skip
    done = subprocess.run(
        ["bash", *script], cwd=kit.folder, env={name: value for name, value in given.items() if value is not None},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300,
    )  # fmt: skip
    return Ended(done.returncode, done.stdout, calls.read_text().splitlines() if calls.exists() else [])
