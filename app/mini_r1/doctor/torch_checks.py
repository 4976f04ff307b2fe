"""The checks that need torch: `mini_r1.training.probe` in a separate process, because the doctor imports none."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from mini_r1.findings import Finding, fail, from_dict
from mini_r1.machine.devices import Devices
from mini_r1.machine.redact import redact

TIMEOUT_S = 600.0
"""Seconds. Imports take some 20 on a busy machine with cold caches; beyond this a disk or a driver hangs."""
LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Taken out of the environment: the process is alone."""


def run_torch_checks(
    recipe: Path,
    overrides: Sequence[str],
    *,
    deepspeed: str | None,
    devices: Devices,
    environment: Mapping[str, str],
    python: str = sys.executable,
    timeout_s: float = TIMEOUT_S,
) -> list[Finding]:
    """Return what a process with torch finds out about these devices and the recipe.

    `deepspeed` is the plan's choice; `python` is the interpreter that the workers will run in.
    """
    command = [python, "-m", "mini_r1.training.probe", str(recipe), "--deepspeed", deepspeed or "none"]
    for override in overrides:
        command += ["--set", override]
    variables = {name: value for name, value in environment.items() if name not in LAUNCHER_VARIABLES}
    if devices.on_cpu:
        variables |= {"MINI_R1_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    else:
        variables |= {"CUDA_VISIBLE_DEVICES": ",".join(devices.ids), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    try:
        done = subprocess.run(  # noqa: S603
            command,
            env=variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired:
        finding = fail(
            f"importing torch and loading the data took more than {timeout_s:.0f} s",
            "check the disk of the installation, and the driver with `nvidia-smi`",
            "node",
        )
        return [finding.named("probe")]
    try:
        return [from_dict(finding) for finding in json.loads(done.stdout)["findings"]]
    except (ValueError, KeyError, TypeError):
        pass
    last = " / ".join(line.strip() for line in done.stderr.strip().splitlines()[-3:])
    output = f"its last output: {redact(last, environment) or 'none'}"
    if done.returncode < 0:  # the kernel is short of memory, or native code crashed
        detail = f"the process that imports torch was killed by signal {-done.returncode}; {output}"
        finding = fail(detail, "see the kernel's log (`dmesg`) for lack of memory; else `make install`", "node")
    else:
        detail = f"the process that imports torch ended with exit code {done.returncode}; {output}"
        finding = fail(detail, "install the locked packages: `make install`, or use the image", "recipe")
    return [finding.named("probe")]
