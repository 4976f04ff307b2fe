"""What the NVIDIA library (NVML) reports about this node's GPUs. It needs the driver only: no CUDA, no torch.

pynvml is used directly, not nvitop: nvitop reads neither remapped rows nor pages waiting to be retired, takes no
beginning of a UUID, and answers N/A both for a GPU that lacks a feature and for one that is lost.
"""

import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pynvml as nvml

NO_P2P = ("NCCL_P2P_DISABLE", "NCCL_IB_DISABLE")
"""Variables that GPUs need where `lacks_p2p`, with the value 1."""
ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
"""Variable and value with which PyTorch's allocator grows its blocks instead of reserving others: on an H100, 1.1 to
6.6 GiB were reserved and not in use without it (docs/plan.md)."""
PCI_ORDER = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
"""Variable with which CUDA numbers GPUs as NVML and nvidia-smi do; by default the fastest one is 0."""
P2P_DRIVER = (550, 40, 7)
"""The driver from which on the RTX 40 series needs no setting (accelerate 1.3.0, check_cuda_p2p_ib_support)."""
SMI_TIMEOUT_S = 30.0
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


class ListedGpu(NamedTuple):
    """A GPU in the driver's list."""

    uuid: str = ""  # "" if it does not answer
    slices: tuple[str, ...] | None = None  # the UUIDs of its MIG slices; None without MIG


def list_gpus() -> list[ListedGpu] | None:
    """Return the GPUs that the library sees, in order of their indices; None without a driver."""
    with suppress(nvml.NVMLError), _open():
        return [_list_gpu(index) for index in range(nvml.nvmlDeviceGetCount())]
    return None


def _list_gpu(index: int) -> ListedGpu:
    with suppress(nvml.NVMLError):
        gpu = nvml.nvmlDeviceGetHandleByIndex(index)
        mig = _ask(nvml.nvmlDeviceGetMigMode, gpu)  # now, and after the next reset
        has_mig = mig and mig[0] == nvml.NVML_DEVICE_MIG_ENABLE
        uuid = _text(_ask(nvml.nvmlDeviceGetUUID, gpu) or "")
        return ListedGpu(uuid, tuple(_mig_slices(gpu)) if has_mig else None)
    return ListedGpu()


def device_index(device: str) -> str:
    """Return a GPU's index from its UUID, which vLLM 0.7.0 cannot read; an index and an unknown name as they are."""
    gpus = [] if device.isdecimal() else list_gpus() or []
    return next((str(index) for index, gpu in enumerate(gpus) if gpu.uuid.startswith(device)), device)


def lacks_p2p() -> bool:
    """Return whether accelerate refuses to train without NO_P2P, by the same rule.

    It asks nvidia-smi about all GPUs of the machine: there are several, one of the RTX 40 series, and an old driver.
    """
    names = _ask_smi("count,name")
    if len(names) < 2 or not any("RTX 40" in name for name in names):
        return False
    return tuple(map(int, re.findall(r"\d+", " ".join(_ask_smi("driver_version")[:1])))) < P2P_DRIVER


def _ask_smi(query: str) -> list[str]:
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SMI_TIMEOUT_S)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return []
    return done.stdout.split("\n")[:-1] if done.returncode == 0 else []


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
