"""What the NVIDIA library (NVML) reports about this node's GPUs. It needs the driver only: no CUDA, no torch.

pynvml is used directly, not nvitop: nvitop reads neither remapped rows nor pages waiting to be retired, takes no
beginning of a UUID, and answers N/A both for a GPU that lacks a feature and for one that is lost.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

UNCORRECTED, VOLATILE = 1, 0
"""NVML_MEMORY_ERROR_TYPE_UNCORRECTED and NVML_VOLATILE_ECC of nvml.h: errors since the driver was loaded."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU, or one MIG slice.

    Args:
        id: as it was given.
        name: of the product.
        capability: compute capability; None if the driver does not report it.
        total: bytes of memory.
        used: bytes of memory in use.
        processes: ids of the processes that use it; the driver shows none in most containers.
        uncorrected: memory errors since the driver was loaded that ECC could not correct; None without ECC.
        remap_pending: whether a memory row or page is to be replaced at the next reset.
        remap_failed: whether no spare is left to replace one with.
        bus: PCI address as the kernel's log writes it, e.g. `0000:3b:00`.
    """

    id: str
    name: str
    capability: tuple[int, int] | None
    total: int
    used: int
    processes: tuple[int, ...] = ()
    uncorrected: int | None = None
    remap_pending: bool = False
    remap_failed: bool = False
    bus: str = ""


@dataclass(frozen=True, slots=True)
class Driver:
    """The driver and the GPUs that were given.

    Args:
        version: of the driver, e.g. `550.54.14`.
        cuda: the newest CUDA it was made for, e.g. (12, 4).
        gpus: those that answered.
        silent: ids of the others, with the driver's error.
    """

    version: str
    cuda: tuple[int, int]
    gpus: tuple[Gpu, ...] = ()
    silent: dict[str, str] = field(default_factory=dict)


def read_driver(ids: Sequence[str], nvml: Any = None) -> Driver | None:
    """Return what the driver reports about these devices; None if no driver answers.

    Args:
        ids: indices, UUIDs or the beginnings of UUIDs.
        nvml: the NVIDIA library's module, another one in tests.
    """
    if nvml is None:
        import pynvml

        nvml = pynvml
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return None
    try:
        version = _text(nvml.nvmlSystemGetDriverVersion())
        number = nvml.nvmlSystemGetCudaDriverVersion_v2()
        gpus, silent = [], {}
        for id in ids:
            try:
                gpus.append(_read_gpu(id, nvml))
            except nvml.NVMLError as error:
                silent[id] = str(error)
        return Driver(version, (number // 1000, number % 1000 // 10), tuple(gpus), silent)
    except nvml.NVMLError:
        return None
    finally:
        with contextlib.suppress(nvml.NVMLError):
            nvml.nvmlShutdown()


def smallest_gpu_gib(driver: Driver | None) -> float | None:
    """Return the memory of the smallest of the given GPUs in GiB; None if the driver shows none."""
    return min((gpu.total / 2**30 for gpu in driver.gpus), default=None) if driver else None


def _read_gpu(id: str, nvml: Any) -> Gpu:
    """Raise NVMLError if the device does not answer; leave out what it does not support."""
    handle = _find_handle(id, nvml)
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    # The whole GPU answers for a MIG slice, except for memory and processes.
    whole = _ask(nvml, nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle, handle) if id.startswith("MIG-") else handle
    rows = _ask(nvml, nvml.nvmlDeviceGetRemappedRows, whole)  # since Ampere; before it, retired pages
    pending = bool(rows[2]) if rows else bool(_ask(nvml, nvml.nvmlDeviceGetRetiredPagesPendingStatus, whole))
    processes = _ask(nvml, nvml.nvmlDeviceGetComputeRunningProcesses, handle) or []
    pci = _ask(nvml, nvml.nvmlDeviceGetPciInfo, whole)
    return Gpu(
        id=id,
        name=_text(nvml.nvmlDeviceGetName(whole)),
        capability=_ask(nvml, nvml.nvmlDeviceGetCudaComputeCapability, whole),
        total=int(memory.total),
        used=int(memory.used),
        processes=tuple(int(process.pid) for process in processes),
        uncorrected=_ask(nvml, nvml.nvmlDeviceGetTotalEccErrors, whole, UNCORRECTED, VOLATILE),
        remap_pending=pending,
        remap_failed=bool(rows and rows[3]),
        # NVML has `00000000:3B:00.0` where the kernel's log has `0000:3b:00`.
        bus=_text(pci.busId)[-12:].partition(".")[0].lower() if pci else "",
    )


def _find_handle(id: str, nvml: Any) -> Any:
    if id.isdecimal():
        return nvml.nvmlDeviceGetHandleByIndex(int(id))
    if id.startswith("GPU-"):  # CUDA takes the beginning of a UUID, the library does not
        for index in range(nvml.nvmlDeviceGetCount()):
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            if _text(nvml.nvmlDeviceGetUUID(handle)).startswith(id):
                return handle
    return nvml.nvmlDeviceGetHandleByUUID(id)


def _ask(nvml: Any, question: Callable[..., Any], *arguments: Any) -> Any:
    """Return an answer, or None from a GPU that has no such feature. An error of a lost GPU is raised."""
    try:
        return question(*arguments)
    except nvml.NVMLError as error:
        if getattr(error, "value", None) == nvml.NVML_ERROR_GPU_IS_LOST:
            raise
        return None


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
