"""The light checks of a node, one topic a file: none loads torch, none leaves anything behind."""

from __future__ import annotations

from collections.abc import Callable

from mini_r1.doctor import gpus, host, inputs, local_storage, network, software
from mini_r1.doctor.case import Case
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
    "shared memory": host.shared_memory,
    "host memory": host.host_memory,
    "locked memory": host.locked_memory,
    "open files": host.open_files,
    "processes": host.processes,
    "user": host.user,
    "run directory": local_storage.run_directory,
    "disk": local_storage.disk,
    "caches": local_storage.caches,
    "ports": network.ports,
    "interfaces": network.interfaces,
    "model": inputs.model,
    "data": inputs.data,
    "hub token": software.hub_token,
}
"""In the order of the table. docs/doctor.md says of each what it looks at."""
