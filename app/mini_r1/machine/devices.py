"""The devices that this process was given: GPUs, or slots whose work runs on the CPU.

CUDA_VISIBLE_DEVICES counts where it is set, then what Slurm says it granted, then what the NVIDIA library sees. Indices
are those of the NVIDIA library and of nvidia-smi: workers are started with CUDA_DEVICE_ORDER=PCI_BUS_ID.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mini_r1.console import printable
from mini_r1.errors import ExitCode, KitError

VISIBLE = "CUDA_VISIBLE_DEVICES"
GRANTED = "SLURM_GPUS_ON_NODE"
ACCELERATOR = "MINI_R1_ACCELERATOR"
CPU_SWITCH = f"{ACCELERATOR}=cpu"
CONTAINER_HINT = (
    "A container has the GPUs that it is started with: docker run --gpus all; Kubernetes: nvidia.com/gpu in"
    " resources.limits, and runtimeClassName: nvidia where that is not the node's default"
)

_INDEX = re.compile(r"[0-9]{1,4}")
_GPU_UUID = re.compile(r"GPU-[0-9A-Fa-f][0-9A-Fa-f-]*")  # CUDA takes a beginning of it too
_MIG_UUID = re.compile(r"MIG-[0-9A-Za-z/-]+")  # with the parent's UUID and two numbers in it before driver 470
_GRANT = re.compile(r"(?:[^:,]+:)*(\d+)(?:\([^)]*\))?")  # 4, h100:4, gpu:h100:4


@dataclass(frozen=True, slots=True)
class Devices:
    """What this process was given.

    Args:
        ids: as CUDA_VISIBLE_DEVICES names them: indices, UUIDs, or one MIG slice; on a CPU slots "0", "1", ... Nothing
            is one plain process on the CPU.
        on_cpu: no GPU, or told by MINI_R1_ACCELERATOR=cpu that the slots' work runs on the CPU.
        source: where that was read, in words.
    """

    ids: tuple[str, ...]
    on_cpu: bool
    source: str


def driver_devices() -> list[str]:
    """What the NVIDIA library sees: the index of each GPU, the UUIDs of a divided one's MIG slices; [] without it."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:  # no driver on this machine, or one that does not answer
        return []
    try:
        found: list[str] = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            gpu = pynvml.nvmlDeviceGetHandleByIndex(index)
            found.extend(_mig_slices(gpu) if _is_divided(gpu) else [str(index)])
        return found
    except pynvml.NVMLError:
        return []
    finally:
        pynvml.nvmlShutdown()


def given_devices(
    environment: Mapping[str, str],
    count: int | None = None,
    driver: Callable[[], list[str]] = driver_devices,
) -> Devices:
    """The devices of this process.

    Args:
        environment: of the process.
        count: use only the first so many of them; on a CPU without any grant, so many slots. None is all.
        driver: what the NVIDIA library sees; asked only where it counts.

    Raises:
        KitError: entries that mean nothing, the same device twice, several MIG slices, more asked for than given.
    """
    if count is not None and count < 0:
        raise KitError(f"--gpus {count}: must be 0 or more")
    accelerator = environment.get(ACCELERATOR, "")
    if accelerator not in ("", "cpu", "cuda"):
        raise KitError(f"{ACCELERATOR}={printable(accelerator)}: must be cpu, cuda, or not set")
    if accelerator == "cpu":
        return _slots(environment, count)
    ids, source = _gpus(environment, driver())
    if count is not None and count > len(ids):
        here = f"only {len(ids)} given ({source})" if ids else f"no GPU here ({source})"
        raise KitError(f"--gpus {count}: {here}; ask for fewer, or set {CPU_SWITCH} for {count} slots on the CPU")
    ids = ids if count is None else ids[:count]
    if accelerator == "cuda" and not ids:
        raise KitError(f"{ACCELERATOR}=cuda, but no GPU was given ({source}). {CONTAINER_HINT}", ExitCode.RETRY)
    return Devices(ids, on_cpu=not ids, source=source)


def device_index(device: str) -> str:
    """The index of a GPU that was named by its UUID: vLLM 0.7.0 reads CUDA_VISIBLE_DEVICES as numbers.

    Raises:
        KitError: the NVIDIA library knows no such GPU.
    """
    if device.isdecimal():
        return device
    import pynvml

    try:
        pynvml.nvmlInit()
        try:
            for index in range(pynvml.nvmlDeviceGetCount()):
                if _uuid(pynvml.nvmlDeviceGetHandleByIndex(index)).startswith(device):
                    return str(index)
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        raise KitError(f"the NVIDIA library does not answer ({error}): see nvidia-smi", ExitCode.RETRY) from error
    raise KitError(f"no GPU {device} here: compare {VISIBLE} with `nvidia-smi -L`", ExitCode.RETRY)


# --- where devices are read ---


def _slots(environment: Mapping[str, str], count: int | None) -> Devices:
    """Slots on the CPU: as many as were granted; where nothing was, as many as asked for."""
    granted, source = _granted(environment)
    if granted is None or not granted:
        slots, source = count or 0, f"{CPU_SWITCH} and --gpus {count}" if count else CPU_SWITCH
    elif count is not None and count > len(granted):
        raise KitError(f"--gpus {count}: only {len(granted)} given ({source}); ask for fewer")
    else:
        slots, source = len(granted) if count is None else count, f"{CPU_SWITCH} and {source}"
    return Devices(tuple(map(str, range(slots))), on_cpu=True, source=source)


def _gpus(environment: Mapping[str, str], seen: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """The GPUs, and where they were read."""
    granted, source = _granted(environment)
    divided = any(device.startswith("MIG-") for device in seen)
    if granted is None:
        granted, source = list(seen), "the NVIDIA library" if seen else "the NVIDIA library sees none"
    elif not divided:
        granted, source = _known(granted, source, seen)
    # Of a divided GPU its plain index means a slice, and CUDA shows a process one slice only.
    if len(granted) > 1 and (divided or any(device.startswith("MIG-") for device in granted)):
        raise KitError(
            f"{', '.join(granted)} ({source}): a process can use one MIG slice and nothing beside it, so slices cannot"
            f" work together; set {VISIBLE} to one of them, or give the job whole GPUs"
        )
    return tuple(granted), source


def _granted(environment: Mapping[str, str]) -> tuple[list[str] | None, str]:
    """What the environment says, None if it says nothing; and where."""
    if VISIBLE in environment:
        text = environment[VISIBLE]
        return _visible(text), f"{VISIBLE}={printable(text)}"
    if environment.get(GRANTED):
        text = environment[GRANTED]
        return [str(index) for index in range(_grant(text))], f"{GRANTED}={printable(text)}"
    return None, ""


def _visible(text: str) -> list[str]:
    """The entries that CUDA takes: it stops reading at the first one that it cannot use, -1 for example.

    Raises:
        KitError: an entry that is no device's name, or a device twice.
    """
    entries: list[str] = []
    for entry in (part.strip() for part in text.split(",")):
        if entry in ("", "-1", "NoDevFiles"):  # Slurm writes NoDevFiles where a job has no GPU
            break
        if not (_INDEX.fullmatch(entry) or _GPU_UUID.fullmatch(entry) or _MIG_UUID.fullmatch(entry)):
            raise KitError(
                f"{VISIBLE}={printable(text)}: '{printable(entry)}' is no device; write indices (0,1), the UUIDs that"
                " `nvidia-smi -L` prints, or one MIG slice"
            )
        entry = str(int(entry)) if entry.isdecimal() else entry
        if entry in entries:
            raise KitError(f"{VISIBLE}={printable(text)}: {entry} stands there twice, CUDA would see no device at all")
        entries.append(entry)
    return entries


def _known(granted: list[str], source: str, seen: Sequence[str]) -> tuple[list[str], str]:
    """Without the entries from the first one on that is no GPU of this machine; CUDA reads no further either."""
    for position, entry in enumerate(granted):
        if seen and entry.isdecimal() and int(entry) >= len(seen):
            return granted[:position], f"{source}, read up to {entry}: there are {len(seen)} here"
    return granted, source


def _grant(text: str) -> int:
    """The number of GPUs in Slurm's words, types summed."""
    parts = [_GRANT.fullmatch(part.strip()) for part in text.split(",")]
    if not all(parts):
        raise KitError(f"{GRANTED}={printable(text)}: is no number of GPUs; set {VISIBLE} to the devices to use")
    return sum(int(part[1]) for part in parts if part)


# --- the NVIDIA library ---


def _is_divided(gpu: object) -> bool:
    import pynvml

    try:
        current, _ = pynvml.nvmlDeviceGetMigMode(gpu)
    except pynvml.NVMLError:  # a GPU that cannot be divided
        return False
    return bool(current == pynvml.NVML_DEVICE_MIG_ENABLE)


def _mig_slices(gpu: object) -> list[str]:
    import pynvml

    found = []
    for number in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(gpu)):
        try:
            found.append(_uuid(pynvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, number)))
        except pynvml.NVMLError:  # no slice was made there
            continue
    return found


def _uuid(handle: object) -> str:
    import pynvml

    uuid = pynvml.nvmlDeviceGetUUID(handle)
    return uuid.decode() if isinstance(uuid, bytes) else str(uuid)
