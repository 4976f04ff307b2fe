"""What the NVIDIA library (NVML) reports about this node's GPUs. It needs the driver only: no CUDA, no torch.

pynvml is used directly, not nvitop: nvitop reads neither remapped rows nor pages waiting to be retired, takes no
beginning of a UUID, and answers N/A both for a GPU that lacks a feature and for one that is lost.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import pynvml as nvml

from mini_r1.errors import ExitCode, KitError

UNCORRECTED, VOLATILE = 1, 0
"""NVML_MEMORY_ERROR_TYPE_UNCORRECTED and NVML_VOLATILE_ECC of nvml.h: errors since the driver was loaded."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU, or one MIG slice. Memory is in bytes."""

    id: str  # as it was given
    name: str
    capability: tuple[int, int] | None  # None if the driver does not report it
    total: int
    used: int
    processes: tuple[int, ...] = ()  # ids; the driver shows none in most containers
    uncorrected: int | None = None  # memory errors since the driver was loaded; None without ECC
    remap_pending: bool = False  # the next reset replaces a memory row or page
    remap_failed: bool = False  # no spare is left to replace one with
    bus: str = ""  # PCI address as the kernel's log writes it, e.g. `0000:3b:00`


@dataclass(frozen=True, slots=True)
class Driver:
    """The driver and the GPUs that were given."""

    version: str  # e.g. `550.54.14`
    cuda: tuple[int, int]  # the newest CUDA it was made for, e.g. (12, 4)
    gpus: tuple[Gpu, ...] = ()  # those that answered
    silent: dict[str, str] = field(default_factory=dict)  # ids of the others, with the driver's error


def read_driver(ids: Sequence[str]) -> Driver | None:
    """Return the driver's report of these devices (indices, UUIDs or their beginnings); None without a driver."""
    with suppress(nvml.NVMLError), _open():
        version = _text(nvml.nvmlSystemGetDriverVersion())
        number = nvml.nvmlSystemGetCudaDriverVersion_v2()
        gpus, silent = [], {}
        for id in ids:
            try:
                gpus.append(_read_gpu(id))
            except nvml.NVMLError as error:
                silent[id] = str(error)
        return Driver(version, (number // 1000, number % 1000 // 10), tuple(gpus), silent)
    return None


def driver_devices() -> list[str]:
    """Return the index of each GPU that the library sees, or its MIG slices' UUIDs; [] without a driver."""
    with suppress(nvml.NVMLError), _open():
        found: list[str] = []
        for index in range(nvml.nvmlDeviceGetCount()):
            gpu = nvml.nvmlDeviceGetHandleByIndex(index)
            mig = _ask(nvml.nvmlDeviceGetMigMode, gpu)  # now, and after the next reset
            has_mig = mig and mig[0] == nvml.NVML_DEVICE_MIG_ENABLE
            found.extend(_mig_slices(gpu) if has_mig else [str(index)])
        return found
    return []


def device_index(device: str) -> str:
    """Return a GPU's index from its UUID, or raise KitError: vLLM 0.7.0 reads CUDA_VISIBLE_DEVICES as numbers."""
    if device.isdecimal():
        return device
    try:
        with _open():
            index = _find_index(device)
    except nvml.NVMLError as error:
        raise KitError(f"the NVIDIA library does not answer ({error}): see `nvidia-smi`", ExitCode.RETRY) from error
    if index is None:
        raise KitError(f"no GPU {device} here: compare CUDA_VISIBLE_DEVICES with `nvidia-smi -L`", ExitCode.RETRY)
    return str(index)


def smallest_gpu_gib(driver: Driver | None) -> float | None:
    """Return the memory of the smallest of the given GPUs in GiB; None if the driver shows none."""
    return min((gpu.total / 2**30 for gpu in driver.gpus), default=None) if driver else None


def _read_gpu(id: str) -> Gpu:
    """Raise NVMLError if the device does not answer; leave out what it does not support."""
    handle = _find_handle(id)
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    # The whole GPU answers for a MIG slice, except for memory and processes.
    whole = _ask(nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle, handle) if id.startswith("MIG-") else handle
    rows = _ask(nvml.nvmlDeviceGetRemappedRows, whole)  # since Ampere; before it, retired pages
    pending = bool(rows[2]) if rows else bool(_ask(nvml.nvmlDeviceGetRetiredPagesPendingStatus, whole))
    processes = _ask(nvml.nvmlDeviceGetComputeRunningProcesses, handle) or []
    pci = _ask(nvml.nvmlDeviceGetPciInfo, whole)
    return Gpu(
        id=id,
        name=_text(nvml.nvmlDeviceGetName(whole)),
        capability=_ask(nvml.nvmlDeviceGetCudaComputeCapability, whole),
        total=int(memory.total),
        used=int(memory.used),
        processes=tuple(int(process.pid) for process in processes),
        uncorrected=_ask(nvml.nvmlDeviceGetTotalEccErrors, whole, UNCORRECTED, VOLATILE),
        remap_pending=pending,
        remap_failed=bool(rows and rows[3]),
        # NVML has `00000000:3B:00.0` where the kernel's log has `0000:3b:00`.
        bus=_text(pci.busId)[-12:].partition(".")[0].lower() if pci else "",
    )


def _find_handle(id: str) -> Any:
    index = int(id) if id.isdecimal() else _find_index(id) if id.startswith("GPU-") else None
    return nvml.nvmlDeviceGetHandleByUUID(id) if index is None else nvml.nvmlDeviceGetHandleByIndex(index)


def _find_index(uuid: str) -> int | None:
    """Return the index of the GPU with this beginning of a UUID: CUDA takes one, the library does not."""
    for index in range(nvml.nvmlDeviceGetCount()):
        if _text(nvml.nvmlDeviceGetUUID(nvml.nvmlDeviceGetHandleByIndex(index))).startswith(uuid):
            return index
    return None


def _mig_slices(gpu: object) -> Iterator[str]:
    for number in range(nvml.nvmlDeviceGetMaxMigDeviceCount(gpu)):
        handle = _ask(nvml.nvmlDeviceGetMigDeviceHandleByIndex, gpu, number)
        if handle is not None:  # a slice was made there
            yield _text(nvml.nvmlDeviceGetUUID(handle))


@contextmanager
def _open() -> Iterator[None]:
    nvml.nvmlInit()
    try:
        yield
    finally:
        with suppress(nvml.NVMLError):
            nvml.nvmlShutdown()


def _ask(question: Callable[..., Any], *arguments: Any) -> Any:
    """Return an answer, or None from a GPU that has no such feature. An error of a lost GPU is raised."""
    try:
        return question(*arguments)
    except nvml.NVMLError as error:
        if getattr(error, "value", None) == nvml.NVML_ERROR_GPU_IS_LOST:
            raise
        return None


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
