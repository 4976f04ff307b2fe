"""A login node for tests: stand-ins for Slurm's programs, which print what a real Slurm 22.05.8 was seen to print.

Stand-ins too: the virtual environment's interpreter and the list of mounts.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest
from mini_r1 import __version__
from mini_r1.doctor.case import Case
from mini_r1.doctor.login_checks import examine
from mini_r1.doctor.node_checks import Report
from mini_r1.doctor.site_file import Site
from mini_r1.findings import Finding
from mini_r1.machine.devices import Devices

# --- what Slurm 22.05.8 printed ---

VERSION = "slurm-wlm 22.05.8\n"
UP = "Slurmctld(primary) at vm is UP\n"
DOWN = f"""Slurmctld(primary) at vm is DOWN
{"*" * 41}
** RESTORE SLURMCTLD DAEMON TO SERVICE **
{"*" * 41}
"""
NO_CONFIGURATION = """scontrol: error: resolve_ctls_from_dns_srv: res_nsearch error: Unknown host
scontrol: error: fetch_config: DNS SRV lookup failed
scontrol: error: _establish_config_source: failed to fetch config
scontrol: fatal: Could not establish a configuration source
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
TAKEN = "sbatch: Job 1 to start at 2026-11-26T08:55:19 using 1 processors on nodes n1 in partition gpu\n"
NO_PARTITION = (
    "sbatch: error: invalid partition specified: nope\nallocation failure: Invalid partition name specified\n"
)
NO_ACCOUNT = "allocation failure: Invalid account or account/partition combination specified\n"
NO_NODES = "allocation failure: Requested node configuration is not available\n"
NO_CONTROLLER = "allocation failure: Unable to contact slurm controller (connect failure)\n"
NOT_A_SCRIPT = """sbatch: error: This does not look like a batch script.  The first
sbatch: error: line must start with #! followed by the path to an interpreter.
sbatch: error: For instance: #!/bin/sh
"""
SRUN_HELP = "      --container             Path to OCI container bundle\n"
PYXIS_HELP = "      --container-image=[USER@][REGISTRY#]IMAGE[:TAG]|PATH\n"  # of pyxis' README: none was here to ask

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


def stand_in(program: Path, out: str = "", err: str = "", code: int = 0) -> Path:
    """A program that prints this and ends so, and writes down what it was asked."""
    program.parent.mkdir(parents=True, exist_ok=True)
    log = shlex.quote(f"{program}.asked")
    say = f"printf %s {shlex.quote(out)}\nprintf %s {shlex.quote(err)} >&2"
    program.write_text(f'#!/bin/sh\necho "$*" >>{log}\n{say}\nexit {code}\n')
    program.chmod(0o755)
    return program


class Cluster:
    """A login node: the kit's folder, Slurm's programs (stand-ins), a virtual environment (one too), a shared disk."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kit, self.bin, self.root = folder / "kit", folder / "bin", folder / "root"
        self.disk = folder
        self.script = self.kit / "slurm" / "train_4xh100.sh"
        self.script.parent.mkdir(parents=True)
        self.script.write_text(SCRIPT)
        self.sbatch(err=TAKEN)
        self.program("scontrol", UP)
        self.program("sinfo", PARTITIONS)
        self.program("srun", SRUN_HELP)
        stand_in(self.kit / ".venv" / "bin" / "python", f"{__version__}\n")
        self.mount("nfs4")
        self.environment = {"PATH": str(self.bin), "HOME": str(folder), "MINI_R1_RUNTIME": "venv"}
        monkeypatch.chdir(self.kit)

    def program(self, name: str, out: str = "", err: str = "", code: int = 0) -> None:
        stand_in(self.bin / name, out, err, code)

    def sbatch(self, err: str, code: int = 0) -> None:
        """What --test-only says; --version is answered as ever."""
        program = stand_in(self.bin / "sbatch", err=err, code=code)
        answer = f'[ "$1" != --version ] || {{ printf %s {shlex.quote(VERSION)}; exit 0; }}'
        first, rest = program.read_text().split("\n", 1)
        program.write_text(f"{first}\n{answer}\n{rest}")

    def mount(self, kind: str, at: Path | None = None) -> None:
        """What everything is on; or what a folder is on, besides."""
        file = self.root / "proc/self/mountinfo"
        file.parent.mkdir(parents=True, exist_ok=True)
        before = file.read_text() if at else "1 0 0:1 / / rw - ext4 /dev/sda rw\n"
        where = os.path.realpath(at or self.disk)
        file.write_text(f"{before}2 1 0:2 / {where} rw - {kind} server:/export rw\n")

    def asked(self, name: str) -> list[str]:
        return (self.bin / f"{name}.asked").read_text().splitlines()

    def report(self, recipe: Path | None = None, script: Path | None = None, **environment: str | None) -> Report:
        given = {name: value for name, value in {**self.environment, **environment}.items() if value is not None}
        return examine(recipe, script=script, environment=given, root=self.root)

    def found(self, check: str, recipe: Path | None = None, **environment: str | None) -> Finding:
        (finding,) = (f for f in self.report(recipe, **environment).findings if f.check == check)
        return finding

    def site(self) -> Site:
        """For a check's parts."""
        case = Case(self.environment, Devices((), True, "a test"), None, root=self.root)
        return Site(self.environment, self.kit, self.kit, self.script, case, self.environment)


def is_failure(finding: Finding, fault: str) -> bool:
    return (finding.status, finding.cause) == ("fail", fault)


def statuses(report: Report) -> dict[str, str]:
    return {finding.check: finding.status for finding in report.findings}
