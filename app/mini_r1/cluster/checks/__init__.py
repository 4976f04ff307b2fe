"""The light checks of a node, one topic a file: none loads torch, none leaves anything behind."""

from __future__ import annotations

from collections.abc import Callable

from mini_r1.cluster.checks import gpus, inputs, machine, network, software, storage
from mini_r1.cluster.checks.case import Case
from mini_r1.findings import Finding

CHECKS: dict[str, Callable[[Case], Finding]] = {
    "driver": gpus.driver,
    "compute capability": gpus.compute_capability,
    "GPU kinds": gpus.gpu_kinds,
    "GPU memory": gpus.gpu_memory,
    "ECC": gpus.ecc,
    "Xid": gpus.xid,
    "versions": software.versions,
    "nvcc": software.nvcc,
    "DeepSpeed configuration": software.deepspeed,
    "vLLM engine": software.vllm_engine,
    "shared memory": machine.shared_memory,
    "host memory": machine.host_memory,
    "locked memory": machine.locked_memory,
    "open files": machine.open_files,
    "processes": machine.processes,
    "user": machine.user,
    "run directory": storage.run_directory,
    "disk": storage.disk,
    "caches": storage.caches,
    "ports": network.ports,
    "interfaces": network.interfaces,
    "model": inputs.model,
    "data": inputs.data,
    "hub token": software.hub_token,
}
"""In the order of the table. docs/doctor.md says of each what it looks at."""
