"""A login node for tests: stand-ins for Slurm's programs, which print what a real Slurm 22.05.8 printed."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest
from mini_r1.doctor.case import Case
from mini_r1.doctor.login_checks import examine_login_node
from mini_r1.doctor.node_checks import Report
from mini_r1.doctor.slurm import LoginNode
from mini_r1.machine.devices import Devices
from mini_r1.machine.findings import Finding

# --- what Slurm 22.05.8 printed ---

DOWN = "slurm_load_partitions: Unable to contact slurm controller (connect failure)\n"
NO_CONFIGURATION = """sinfo: error: resolve_ctls_from_dns_srv: res_nsearch error: Unknown host
sinfo: error: fetch_config: DNS SRV lookup failed
sinfo: error: _establish_config_source: failed to fetch config
sinfo: fatal: Could not establish a configuration source
"""
PARTITIONS = """gpu*|up|1-00:00:00|2|gpu:h100:4|idle
cpu|up|infinite|1|(null)|idle
mixed|up|2:00:00|1|gpu:a100:8|inval
mixed|up|2:00:00|1|(null)|idle
mixed|up|2:00:00|2|gpu:h100:4|idle
closed|down|infinite|2|gpu:h100:4|idle
drainp|drain|infinite|2|gpu:h100:4|idle
inact|inactive|infinite|2|gpu:h100:4|idle
empty|up|infinite|0|(null)|n/a
priv|up|infinite|2|gpu:h100:4|idle
"""
DRAINED = """gpu*|up|1-00:00:00|1|gpu:h100:4|draining
gpu*|up|1-00:00:00|1|gpu:h100:4|drained
"""
SILENT = "mixed|up|2:00:00|1|gpu:a100:8|unknown*\n"
ACCEPTED = "sbatch: Job 1 to start at 2026-11-26T08:55:19 using 1 processors on nodes n1 in partition gpu\n"
NO_PARTITION = (
    "sbatch: error: invalid partition specified: nope\nallocation failure: Invalid partition name specified\n"
)
NO_ACCOUNT = "allocation failure: Invalid account or account/partition combination specified\n"
NO_NODES = "allocation failure: Requested node configuration is not available\n"
NO_CONTROLLER = "allocation failure: Unable to contact slurm controller (connect failure)\n"
CRLF = r"""sbatch: error: Batch script contains DOS line breaks (\r\n)
sbatch: error: instead of expected UNIX line breaks (\n).
"""
NOT_A_SCRIPT = """sbatch: error: This does not look like a batch script.  The first
sbatch: error: line must start with #! followed by the path to an interpreter.
sbatch: error: For instance: #!/bin/sh
"""

SCRIPT = """#!/bin/bash
#SBATCH --job-name=mini-r1
#SBATCH --gpus-per-node=4
#SBATCH --time=12:00:00
#SBATCH --output=%x-%j.log

#SBATCH --signal=B:USR1@600
train mini-r1-3b
#SBATCH --time=9-00
"""

SIF = b"#!/usr/bin/env run-singularity\n\0SIF_MAGIC\x0001\0"  # how such a file begins
SQUASHFS = b"hsqs" + bytes(92)


class Cluster:
    """A login node: the kit's folder, stand-ins for Slurm's programs, a virtual environment, a shared disk."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kit, self.bin, self.root = folder / "kit", folder / "bin", folder / "root"
        self.disk = folder
        self.script = self.kit / "slurm" / "train_4xh100.sh"
        self.script.parent.mkdir(parents=True)
        self.script.write_text(SCRIPT)
        self.program("sbatch", err=ACCEPTED)
        self.program("sinfo", PARTITIONS)
        self.program("scontrol")
        python = self.kit / ".venv" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.touch(0o755)
        self.mount("nfs4")
        self.environment = {"PATH": str(self.bin), "HOME": str(folder), "MINI_R1_RUNTIME": "venv"}
        monkeypatch.chdir(self.kit)

    def program(self, name: str, out: str = "", err: str = "", code: int = 0) -> None:
        """Make a program that prints this, exits so, and logs its arguments."""
        program = self.bin / name
        program.parent.mkdir(exist_ok=True)
        output = f"printf %s {shlex.quote(out)}\nprintf %s {shlex.quote(err)} >&2"
        program.write_text(f'#!/bin/sh\necho "$*" >>{shlex.quote(f"{program}.asked")}\n{output}\nexit {code}\n')
        program.chmod(0o755)

    def mount(self, kind: str, at: Path | None = None) -> None:
        """Put everything, or a folder besides, on a filesystem of this type."""
        file = self.root / "proc/self/mounts"
        file.parent.mkdir(parents=True, exist_ok=True)
        before = file.read_text() if at else "/dev/sda / ext4 rw 0 0\n"
        place = os.path.realpath(at or self.disk)
        file.write_text(f"{before}server:/export {place} {kind} rw 0 0\n")

    def asked(self, name: str) -> list[str]:
        """The arguments of each start of a program."""
        log = self.bin / f"{name}.asked"
        return log.read_text().splitlines() if log.exists() else []

    def report(self, recipe: Path | None = None, script: Path | None = None, **environment: str | None) -> Report:
        given = {name: value for name, value in {**self.environment, **environment}.items() if value is not None}
        return examine_login_node(recipe, script=script, environment=given, root=self.root)

    def found(self, check: str, recipe: Path | None = None, **environment: str | None) -> Finding:
        (finding,) = (f for f in self.report(recipe, **environment).findings if f.check == check)
        return finding

    def login(self) -> LoginNode:
        case = Case(self.environment, Devices((), True, "a test"), None, root=self.root)
        return LoginNode(self.environment, self.kit, self.kit, self.script, case)


def is_failure(finding: Finding, cause: str) -> bool:
    return (finding.status, finding.cause) == ("fail", cause)


def statuses(report: Report) -> dict[str, str]:
    return {finding.check: finding.status for finding in report.findings}
