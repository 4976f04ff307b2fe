"""The heavy checks: `mini_r1.training.probe` in a process of its own, because this one does without torch."""

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
ANOTHER_LAUNCHERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""The process is alone, whatever a scheduler says of this node."""


def probe(
    recipe: Path,
    overrides: Sequence[str],
    *,
    deepspeed: str | None,
    devices: Devices,
    environment: Mapping[str, str],
    python: str = sys.executable,
    timeout_s: float = TIMEOUT_S,
) -> list[Finding]:
    """What a process with torch says of this environment and the recipe.

    Args:
        recipe: the file.
        overrides: of --set.
        deepspeed: what the plan chose; None is none.
        devices: that the process may see.
        environment: of this process.
        python: the interpreter that the workers will run in.
        timeout_s: seconds until it is given up.
    """
    command = [python, "-m", "mini_r1.training.probe", str(recipe), "--deepspeed", deepspeed or "none"]
    for override in overrides:
        command += ["--set", override]
    try:
        done = subprocess.run(  # noqa: S603
            command,
            env=_environment(devices, environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired:
        return [
            fail(
                f"importing torch and loading the data took more than {timeout_s:.0f} s",
                "see whether the disk of the installation or the driver hangs (nvidia-smi)",
                "node",
            ).named("probe")
        ]
    try:
        return [from_dict(finding) for finding in json.loads(done.stdout)["findings"]]
    except (ValueError, KeyError, TypeError):
        return [_died(done, environment)]


def _environment(devices: Devices, environment: Mapping[str, str]) -> dict[str, str]:
    """As a worker's, but for being alone; see `cluster.launching.environment`."""
    changed = {name: value for name, value in environment.items() if name not in ANOTHER_LAUNCHERS}
    if devices.on_cpu:
        return {**changed, "MINI_R1_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    return {**changed, "CUDA_VISIBLE_DEVICES": ",".join(devices.ids), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def _died(done: subprocess.CompletedProcess[str], environment: Mapping[str, str]) -> Finding:
    last = " / ".join(line.strip() for line in done.stderr.strip().splitlines()[-3:])
    words = redact(last, environment) or "nothing"
    if done.returncode < 0:  # a signal: the kernel short of memory, or native code that crashed
        return fail(
            f"the process that imports torch was killed by signal {-done.returncode}; its last words: {words}",
            "see the kernel's log (dmesg) for memory that ran out; else install the lock",
            "node",
        ).named("probe")
    return fail(
        f"the process that imports torch ended with exit code {done.returncode}; its last words: {words}",
        "install the lock: make install, or use the image",
        "recipe",
    ).named("probe")
