"""Checks of the GPUs: driver, compute capability, memory in use, hardware errors."""

import os
import re
import subprocess
from collections import Counter
from collections.abc import Callable
from functools import wraps

from mini_r1.doctor.case import Case, run_program
from mini_r1.machine.devices import CONTAINER_HINT
from mini_r1.machine.findings import Finding, fail, ok, skip, warn, worst
from mini_r1.machine.nvidia import Gpu, lacks_p2p
from mini_r1.values import GIB

CUDA = (12, 4)
"""`torch.version.cuda` of the pinned torch."""
DRIVER = (550, 54, 14)
"""The driver that came with CUDA 12.4 (NVIDIA's CUDA 12.4 release notes, toolkit driver versions)."""
OLDEST_DRIVER = (525, 60, 13)
"""The oldest that runs programs of CUDA 12.x (NVIDIA's CUDA Compatibility, minor version compatibility)."""
NEWEST = 9
"""Major compute capability that torch 2.5.1 has kernels for: its `torch.cuda.get_arch_list()` ends at sm_90."""
IN_USE_WARN, IN_USE_FAIL = 0.05, 0.20
"""Shares of a GPU's memory that other processes may hold. An idle driver takes about half a GiB."""
DEMANDS = (
    ("tf32", True, (8, 0)),
    ("attn_implementation", "flash_attention_2", (8, 0)),
    ("bf16", True, (8, 0)),
    ("torch_dtype", "bfloat16", (8, 0)),
    ("use_vllm", True, (7, 0)),
)
"""Keys and values of a recipe, and the compute capability that each needs."""
HARDWARE_XIDS = frozenset({48, 62, 63, 64, 74, 79, 92, 94, 95, 119, 120, 121, 140, 143, 145})
"""Errors of memory, links, firmware or the GPU itself in NVIDIA's XID catalogue; others mostly come from a program."""
DMESG_TIMEOUT_S = 20.0
_XID = re.compile(r"NVRM: Xid \(PCI:([0-9a-fA-F:.]{4,20})\): ([0-9]{1,4})")


def driver(case: Case) -> Finding:
    """The NVIDIA driver is there, answers for every device, and is new enough for the pinned torch."""
    if not case.uses_gpus:
        if case.driver is None:
            return ok("no NVIDIA driver: this node trains on the CPU")
        return ok(f"driver {case.driver.version}, not used: {case.devices.source}")
    if case.driver is None:
        fix = f"check whether `nvidia-smi` works here. {CONTAINER_HINT}"
        return fail(f"GPUs were given ({case.devices.source}), but no NVIDIA driver answers", fix, "node")
    if case.driver.silent:
        silent = ", ".join(f"{id} ({error})" for id, error in case.driver.silent.items())
        return fail(f"the driver does not answer for {silent}", "take the node out of service: `nvidia-smi -q`", "node")
    version = tuple(int(part) for part in re.findall(r"\d+", case.driver.version)[:3])
    found = f"driver {case.driver.version}, made for CUDA {'.'.join(map(str, case.driver.cuda))}"
    if case.driver.cuda >= CUDA or version >= DRIVER:  # the first also by a compatibility package in the container
        return ok(found)
    if version < OLDEST_DRIVER:
        fix = "update the driver to 550.54.14 or newer (a data-centre GPU can use the cuda-compat-12-4 package instead)"
        return fail(f"{found}: too old for torch's CUDA 12.4", fix, "node")
    detail = f"{found}: runs CUDA 12.4 by minor version compatibility, without code that is compiled at run time"
    return warn(detail, "update the driver to 550.54.14 or newer")


def _for_each_gpu(check: Callable[[Case, Gpu], Finding]) -> Callable[[Case], Finding]:
    @wraps(check)
    def check_all(case: Case) -> Finding:
        if not case.uses_gpus or case.driver is None:
            return skip("no GPU in use")
        return worst(check(case, gpu) for gpu in case.driver.gpus) if case.driver.gpus else skip("no GPU answers")

    return check_all


@_for_each_gpu
def compute_capability(case: Case, gpu: Gpu) -> Finding:
    """The pinned torch has kernels for each GPU, and each supports what the recipe asks for."""
    if gpu.capability is None:
        return skip(f"{_label(gpu)}: the driver does not report it")
    found = f"{_label(gpu)} has compute capability {'.'.join(map(str, gpu.capability))}"
    if gpu.capability[0] > NEWEST:
        fix = "use a GPU of an earlier generation (Hopper, Ada, Ampere)"
        return fail(f"{found}: torch 2.5.1 knows nothing above 9.0", fix, "recipe")
    missing = [
        f"{key}: {str(value).lower()}"
        for key, value, least in DEMANDS
        if getattr(case.recipe, key, None) == value and gpu.capability < least
    ]
    if missing:
        fix = "on GPUs before Ampere: bf16: false, fp16: true, torch_dtype: float32, attn_implementation: sdpa"
        return fail(f"{found}, too little for {', '.join(missing)}", fix, "recipe")
    return ok(found)


def gpu_kinds(case: Case) -> Finding:
    """All GPUs of the node are of one kind."""
    if not case.uses_gpus or case.driver is None:
        return skip("no GPU in use")
    names = dict.fromkeys(gpu.name for gpu in case.driver.gpus)
    if len(names) > 1:
        fix = "the slowest sets the pace and the smallest the memory: give the job GPUs of one kind"
        return warn(f"GPUs of several kinds: {', '.join(names)}", fix)
    return ok(f"{len(case.driver.gpus)} × {next(iter(names), 'none')}")


def p2p(case: Case) -> Finding:
    """NCCL needs no setting for these GPUs, or gets the one that accelerate wants."""
    if not case.uses_gpus:
        return skip("no GPU in use")
    if not lacks_p2p():
        return skip("for several GPUs of the RTX 40 series only")
    detail = "GPUs of the RTX 40 series with a driver before 550.40.07: the launcher sets NCCL_P2P_DISABLE=1 and"
    return warn(f"{detail} NCCL_IB_DISABLE=1, unless you set them", "update the driver; a newer one needs neither")


@_for_each_gpu
def gpu_memory(_: Case, gpu: Gpu) -> Finding:
    """No other process holds the GPUs' memory."""
    share = gpu.used / gpu.total if gpu.total else 0.0
    others = [str(pid) for pid in gpu.processes if pid != os.getpid()]
    owners = f" by process {', '.join(others)}" if others else ""
    found = f"{_label(gpu)}: {gpu.used / GIB:.1f} of {gpu.total / GIB:.1f} GiB in use{owners}"
    fix = f"end what uses it (`{f'ps -p {others[0]}' if others else 'nvidia-smi'}`), or take another GPU"
    if share > IN_USE_FAIL:
        return fail(found, fix, "node")
    return warn(found, fix) if share > IN_USE_WARN else ok(found)


@_for_each_gpu
def ecc(_: Case, gpu: Gpu) -> Finding:
    """There is no memory error that ECC could not correct, and no broken memory waiting to be replaced."""
    if gpu.remap_failed:
        return fail(f"{_label(gpu)}: no spare memory row is left for a broken one", "have the GPU replaced", "node")
    if gpu.remap_pending:
        return fail(f"{_label(gpu)}: broken memory is replaced at the next reset", "have the GPU reset", "node")
    if gpu.uncorrected is None:
        return skip(f"{_label(gpu)}: no ECC, or switched off")
    if gpu.uncorrected:
        detail = f"{gpu.uncorrected} memory errors since the driver was loaded that ECC could not correct"
        return fail(f"{_label(gpu)}: {detail}", "have the GPU reset; if they come back, replaced", "node")
    return ok(f"{_label(gpu)}: none uncorrected")


def xid(case: Case) -> Finding:
    """The kernel's log has no hardware error of these GPUs. The driver itself keeps no history."""
    if not case.uses_gpus or case.driver is None:
        return skip("no GPU in use")
    log, source = read_kernel_log(case)
    if log is None:
        return skip("the kernel's log cannot be read here; as root on the node: `dmesg | grep Xid`")
    ids = {gpu.bus: gpu.id for gpu in case.driver.gpus}
    found = ((ids.get(bus.lower().partition(".")[0]), int(number)) for bus, number in _XID.findall(log))
    seen = Counter((id, number) for id, number in found if id is not None and number in HARDWARE_XIDS)
    if seen:
        listed = ", ".join(f"GPU {id}: Xid {number} ({count} times)" for (id, number), count in sorted(seen.items()))
        fix = "look the number up in NVIDIA's XID catalogue; if the GPU was not reset since, have it reset"
        return warn(f"{source} has hardware errors since the node was started: {listed}", fix)
    return ok(f"no hardware error in {source}")


def read_kernel_log(case: Case) -> tuple[str | None, str]:
    """Return the kernel's messages since the start and their source; None and "" if this user may read none."""
    for path in ("var/log/kern.log", "var/log/messages"):
        text = case.read(path)
        if text is not None:
            return text, f"/{path}"
    try:
        done = run_program(["dmesg"], case.environment, DMESG_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return None, ""
    return (None, "") if done.returncode else (done.stdout, "`dmesg`")


def _label(gpu: Gpu) -> str:
    return f"GPU {gpu.id} ({gpu.name})"
