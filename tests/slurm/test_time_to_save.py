"""`doctor --login` reads KillWait, GraceTime and PreemptMode of a real Slurm."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.slurm.cluster import GRACE_S, KILL_WAIT_S, Slurm
from tests.slurm.conftest import Checkout

pytestmark = pytest.mark.real


def test_the_planned_stop_is_compared_with_slurms_times(slurm: Slurm, tmp_path: Path) -> None:
    checkout = Checkout(tmp_path)
    partitions = {"gpu": f"its GraceTime is {GRACE_S} s", "abrupt": "it has no GraceTime", "prio": "are not preempted"}
    environment = {**slurm.environment, "SBATCH_PARTITION": ",".join(partitions), "MINI_R1_RUNTIME": "venv"}
    done = subprocess.run(
        [sys.executable, "-m", "mini_r1", "doctor", "mini-r1-7b", "--login", "--json"],
        env=environment, cwd=checkout.folder, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    (found,) = (each for each in json.loads(done.stdout)["findings"] if each["check"] == "time to save")
    assert found["status"] == "warn", found
    assert f"KillWait is {KILL_WAIT_S} s" in found["detail"]
    assert f"jobs in gpu may be preempted (REQUEUE), and {partitions['gpu']}" in found["detail"]
    assert f"jobs in abrupt may be preempted (REQUEUE), and {partitions['abrupt']}" in found["detail"]
    assert "prio" not in found["detail"]  # it leaves time enough
    assert "a GraceTime of" in found["fix"]
