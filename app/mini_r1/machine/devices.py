"""The devices that this process was given: GPUs, or slots whose work runs on the CPU.

They come from CUDA_VISIBLE_DEVICES, else from Slurm's grant, else from the NVIDIA library, whose indices they have.
nvitop's parser is not used: it takes invalid and repeated entries for none, and starts a Python process to read one.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mini_r1.console import printable
from mini_r1.errors import ExitCode, KitError
from mini_r1.machine.nvidia import ListedGpu, list_gpus

VISIBLE = "CUDA_VISIBLE_DEVICES"
GRANTED = "SLURM_GPUS_ON_NODE"
GRANTED_INDICES = ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS")
"""Indices on the node of the GPUs that Slurm granted; with device cgroups the driver counts these alone, from 0."""
ACCELERATOR = "MINI_R1_ACCELERATOR"
CPU_SWITCH = f"{ACCELERATOR}=cpu"
CONTAINER_HINT = (
    "A container has the GPUs that it is started with: docker run --gpus all; Kubernetes: nvidia.com/gpu in"
    " resources.limits, and runtimeClassName: nvidia unless that is the node's default"
)

_DEVICE = re.compile(
    r"""[0-9]{1,4}                           # an index
    | GPU-[0-9A-Fa-f][0-9A-Fa-f-]*           # a GPU's UUID or the beginning of one
    | MIG-[0-9A-Za-z/-]+                     # a slice; before driver 470 with the GPU's UUID and two numbers""",
    re.VERBOSE,
)
_GRANT = re.compile(r"(?:[^:,]+:)*(\d+)(?:\([^)]*\))?")  # 4, h100:4, gpu:h100:4
_RANGE = re.compile(r"(?:^|,)(\d{1,4})(?:-(\d{1,4}))?(?=,|$)")  # 2,3 or 4-7


@dataclass(frozen=True, slots=True)
class Devices:
    """What this process was given; () is one plain process on the CPU."""

    ids: tuple[str, ...]  # as in CUDA_VISIBLE_DEVICES: indices, UUIDs, or one MIG slice; "0", "1", ... on the CPU
    on_cpu: bool  # there is no GPU, or MINI_R1_ACCELERATOR=cpu
    source: str  # of the above, for people


def given_devices(
    environment: Mapping[str, str],
    count: int | None = None,
    driver: Callable[[], list[ListedGpu] | None] = list_gpus,
) -> Devices:
    """Return the first `count` devices of this process, None for all; on a CPU without a grant, `count` slots.

    Raise KitError for an invalid or repeated entry, several MIG slices, or more asked for than given; with exit code
    150 if a device was given that the driver does not have.
    """
    accelerator = environment.get(ACCELERATOR, "")
    if accelerator not in ("", "cpu", "cuda"):
        raise KitError(f"{ACCELERATOR}={printable(accelerator)}: must be cpu, cuda, or not set")
    if accelerator == "cpu":
        granted, source = _read_grant(environment, 0)
        ids = tuple(map(str, range(len(granted or ()) or count or 0)))
        source = f"{CPU_SWITCH} and {source if granted else f'--gpus {count}'}" if ids else CPU_SWITCH
    else:
        ids, source = _find_gpus(environment, driver())
    if count is not None and count > len(ids):
        here = f"only {len(ids)} given ({source})" if ids else f"no GPU here ({source})"
        slots = "" if accelerator == "cpu" else f", or set {CPU_SWITCH} for {count} slots on the CPU"
        raise KitError(f"--gpus {count}: {here}; ask for fewer{slots}")
    ids = ids[:count]
    if accelerator == "cuda" and not ids:
        raise KitError(f"{ACCELERATOR}=cuda, but no GPU was given ({source}). {CONTAINER_HINT}", ExitCode.RETRY)
    return Devices(ids, on_cpu=accelerator == "cpu" or not ids, source=source)


def _find_gpus(environment: Mapping[str, str], driver: Sequence[ListedGpu] | None) -> tuple[tuple[str, ...], str]:
    """Return the GPUs, and where they were read."""
    listed = [(str(index),) if gpu.slices is None else gpu.slices for index, gpu in enumerate(driver or ())]
    seen = [name for names in listed for name in names]
    has_mig = any(gpu.slices is not None for gpu in driver or ())
    granted, source = _read_grant(environment, 0 if has_mig else len(seen))
    if granted is None:
        granted, source = seen, "the NVIDIA library" if seen else "the NVIDIA library sees none"
    # The index of a GPU with MIG means a slice, and CUDA shows a process only one slice.
    if len(granted) > 1 and (has_mig or any(device.startswith("MIG-") for device in granted)):
        raise KitError(
            f"{', '.join(granted)} ({source}): a process can use one MIG slice and no other device, so slices cannot"
            f" work together; set {VISIBLE} to one of them, or give the job whole GPUs"
        )
    if granted and driver is None:
        source += ", not checked: no NVIDIA driver here"
    missing = [entry for entry in granted if driver is not None and not _has(driver, entry)]
    if missing:
        raise KitError(
            f"{source}, but the driver has no {', '.join(missing)}, only {', '.join(seen) or 'no GPU at all'}: compare"
            " with `nvidia-smi -L`, and name devices of this node",
            ExitCode.RETRY,
        )
    return tuple(granted), source


def _has(driver: Sequence[ListedGpu], entry: str) -> bool:
    """Return whether the driver has a device: an index, or the beginning of a UUID."""
    if entry.isdecimal():
        return int(entry) < len(driver)
    gpu = re.fullmatch(r"MIG-(GPU-[^/]+)/.*", entry)
    beginning = gpu[1] if gpu else entry
    return any(name.startswith(beginning) for gpu in driver for name in (gpu.uuid, *(gpu.slices or ())))


def _read_grant(environment: Mapping[str, str], seen: int) -> tuple[list[str] | None, str]:
    """Return the devices that the environment names, None if it names none; and the variable."""
    if VISIBLE in environment:
        text = environment[VISIBLE]
        return read_visible(text), f"{VISIBLE}={printable(text)}"
    indices, variable = next(((environment[name], name) for name in GRANTED_INDICES if environment.get(name)), ("", ""))
    named = [
        str(index) for first, last in _RANGE.findall(indices) for index in range(int(first), int(last or first) + 1)
    ]
    text = environment.get(GRANTED, "")
    if not text and not named:
        return None, ""
    parts = [_GRANT.fullmatch(part.strip()) for part in text.split(",")] if text else []
    if not all(parts):
        raise KitError(f"{GRANTED}={printable(text)}: not a number of GPUs; set {VISIBLE} to the devices to use")
    count = sum(int(part[1]) for part in parts if part) if text else len(named)
    if named and seen > count:
        return named[:count], f"{variable}={printable(indices)}"
    return list(map(str, range(count))), f"{GRANTED}={printable(text)}" if text else f"{variable}={printable(indices)}"


def read_visible(text: str) -> list[str]:
    """Return the entries that CUDA takes: it stops reading at the first one that it cannot use, such as -1."""
    entries: list[str] = []
    for entry in (part.strip() for part in text.split(",")):
        if entry in ("", "-1", "NoDevFiles"):  # Slurm writes NoDevFiles for a job without GPUs
            break
        if not _DEVICE.fullmatch(entry):
            raise KitError(
                f"{VISIBLE}={printable(text)}: '{printable(entry)}' is no device; write indices (0,1), the UUIDs that"
                " `nvidia-smi -L` prints, or one MIG slice"
            )
        entry = str(int(entry)) if entry.isdecimal() else entry
        if entry in entries:
            raise KitError(f"{VISIBLE}={printable(text)}: {entry} appears twice, and CUDA would see no device at all")
        entries.append(entry)
    return entries
