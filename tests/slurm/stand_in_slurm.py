"""The batch scripts without Slurm: a script runs in the environment that Slurm would give it, its srun runs the task.

What Slurm gives a job, and what it makes of an exit code, is tested in test_refusals_on_slurm.py.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Mapping

from tests.slurm.cluster import SYSTEM_PATH
from tests.slurm.conftest import Checkout, a_program

TIMEOUT_S = 300
PROGRAMS = {
    "srun": (
        '{ printf "%s " srun $*; echo; } >>"$STAND_IN_CALLS"\n'
        'while [ "${1#--}" != "$1" ]; do [ "$1" != --help ] || exit 0; shift; done\nexec "$@"'
    ),
    "scontrol": 'echo "$*" >>"$STAND_IN_CALLS"\n[ "$1" != show ] || echo "JobId=7 $STAND_IN_JOB"',
    "squeue": "",
}
"""Stand-ins. This srun starts the first node's task and has no plugins; both write down what they are asked."""


def job(gpus: int) -> dict[str, str | None]:
    """Return what Slurm sets for a job on one node with this number of GPUs, one task and a script of this kit."""
    return {
        "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "mini-r1", "SLURM_JOB_NUM_NODES": "1", "SLURM_TASKS_PER_NODE": "1",
        "SLURM_CPUS_PER_TASK": "8", "SLURM_GPUS_ON_NODE": str(gpus), "SLURM_GPUS_PER_NODE": str(gpus),
        "CUDA_VISIBLE_DEVICES": ",".join(map(str, range(gpus))),
    }  # fmt: skip


class Script:
    """A batch script and its arguments, started.

    Args:
        kit: the checkout that it is submitted from.
        script: its path in there, and its arguments.
        environment: what else Slurm and the submitting shell set; None: not set.
        gpus: on the node.
        shown: of the job, by scontrol.
    """

    def __init__(
        self,
        kit: Checkout,
        *script: str,
        environment: Mapping[str, str | None] | None = None,
        gpus: int = 1,
        shown: str = "JobState=RUNNING Reason=None",
    ) -> None:
        programs = kit.folder.parent / "slurm-programs"
        for name, text in PROGRAMS.items():
            a_program(programs / name, text)
        self._calls, self._log = programs / "calls", kit.folder / "mini-r1-7.log"
        given = {
            "PATH": f"{programs}:{SYSTEM_PATH}", "HOME": str(kit.folder.parent / "home"), "STAND_IN_JOB": shown,
            "STAND_IN_CALLS": str(self._calls), "SLURM_SUBMIT_DIR": str(kit.folder), **job(gpus), **(environment or {}),
        }  # fmt: skip
        variables = {name: value for name, value in given.items() if value is not None}
        with self._log.open("wb") as output:
            self.process = subprocess.Popen(
                ["bash", *script], cwd=kit.folder, env=variables,
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            )  # fmt: skip

    @property
    def log(self) -> str:
        """Its output so far."""
        return self._log.read_text(errors="replace")

    @property
    def calls(self) -> list[str]:
        """What scontrol and srun were asked so far, a line each."""
        return self._calls.read_text().splitlines() if self._calls.exists() else []

    def wait_for(self, done: Callable[[], bool]) -> None:
        """Wait until something has happened; the script must not end before."""
        deadline = time.monotonic() + TIMEOUT_S
        while not done():
            assert self.process.poll() is None, f"ended with {self.process.returncode}:\n{self.log}"
            assert time.monotonic() < deadline, f"not there after {TIMEOUT_S} s:\n{self.log}"
            time.sleep(0.05)

    def wait(self) -> int:
        """Wait for its end; its exit code."""
        return self.process.wait(TIMEOUT_S)
