"""Check with torch that the assigned GPUs can be used: all of them for the doctor, its own for a worker."""

import os
from collections.abc import Iterable

import torch

from mini_r1.errors import first_line
from mini_r1.machine.devices import read_visible
from mini_r1.machine.findings import Finding, as_error, fail, ok, worst
from mini_r1.machine.heavy_imports import INSTALL


def check_gpus(indices: Iterable[int] | None = None) -> Finding:
    """Return whether torch sees every GPU in CUDA_VISIBLE_DEVICES and calculates correctly on those of `indices`."""
    version = f"torch {torch.__version__}"
    given = read_visible(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    on_cpu = os.environ.get("MINI_R1_ACCELERATOR") == "cpu"
    if on_cpu or (not given and not torch.cuda.is_available()):
        return ok(f"{version}, on the CPU")
    if torch.version.cuda is None:
        return fail(f"{version} was built without CUDA, and GPUs were given", INSTALL, "recipe")
    if not torch.cuda.is_available() or torch.cuda.device_count() < len(given):
        return fail(
            f"{version} sees {torch.cuda.device_count()} of {len(given)} GPUs",
            "see whether nvidia-smi lists them; on a node with NVSwitch its fabric manager must be running",
            "node",
        )
    return worst(_calculate(index) for index in (range(torch.cuda.device_count()) if indices is None else indices))


def refuse_broken_gpu() -> None:
    """Check the GPU that LOCAL_RANK names; raise KitError: 150 if the node is the cause, 78 if the installation is."""
    found = check_gpus([int(os.environ.get("LOCAL_RANK", "0"))])
    if found.status == "fail":
        raise as_error([found])


def _calculate(index: int) -> Finding:
    name = torch.cuda.get_device_name(index)
    try:
        ones = torch.ones(16, 16, device=f"cuda:{index}")
        right = float((ones @ ones).sum()) == 16.0**3
    except RuntimeError as error:
        if "no kernel image" in str(error):
            return fail(f"{name}: torch {torch.__version__} has no code for it", "use a GPU of another kind", "recipe")
        detail = f"{name} cannot be used: {first_line(error)}"
        return fail(detail, "take the node out of service: nvidia-smi -q", "node")
    if not right:
        return fail(f"{name} calculates wrong", "take the node out of service", "node")
    return ok(f"torch {torch.__version__} calculates on {name}")
