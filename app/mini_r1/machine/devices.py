"""The devices that this process was given: GPUs, or slots whose work runs on the CPU.

They come from CUDA_VISIBLE_DEVICES, else from Slurm's grant, else from the NVIDIA library, whose indices they have.
nvitop's parser is not used: it takes invalid and repeated entries for none, and starts a Python process to read one.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mini_r1.console import printable
from mini_r1.errors import ExitCode, KitError
from mini_r1.machine.nvidia import driver_devices

VISIBLE = "CUDA_VISIBLE_DEVICES"
GRANTED = "SLURM_GPUS_ON_NODE"
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


@dataclass(frozen=True, slots=True)
class Devices:
    """What this process was given; () is one plain process on the CPU."""

    ids: tuple[str, ...]  # as in CUDA_VISIBLE_DEVICES: indices, UUIDs, or one MIG slice; "0", "1", ... on the CPU
    on_cpu: bool  # there is no GPU, or MINI_R1_ACCELERATOR=cpu
    source: str  # of the above, for people


def given_devices(
    environment: Mapping[str, str],
    count: int | None = None,
    driver: Callable[[], list[str]] = driver_devices,  # what the NVIDIA library sees
) -> Devices:
    """Return the first `count` devices of this process, None for all; on a CPU without a grant, `count` slots.

    Raise KitError for an invalid or repeated entry, several MIG slices, or more asked for than given.
    """
    accelerator = environment.get(ACCELERATOR, "")
    if accelerator not in ("", "cpu", "cuda"):
        raise KitError(f"{ACCELERATOR}={printable(accelerator)}: must be cpu, cuda, or not set")
    if accelerator == "cpu":
        granted, source = _read_grant(environment)
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


def _find_gpus(environment: Mapping[str, str], seen: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """Return the GPUs, and where they were read."""
    granted, source = _read_grant(environment)
    has_mig = any(device.startswith("MIG-") for device in seen)
    if granted is None:
        granted, source = list(seen), "the NVIDIA library" if seen else "the NVIDIA library sees none"
    elif seen and not has_mig:
        for position, entry in enumerate(granted):
            if entry.isdecimal() and int(entry) >= len(seen):  # CUDA stops reading there, too
                granted = granted[:position]
                source = f"{source}, read up to {entry}: there are {len(seen)} here"
                break
    # The index of a GPU with MIG means a slice, and CUDA shows a process only one slice.
    if len(granted) > 1 and (has_mig or any(device.startswith("MIG-") for device in granted)):
        raise KitError(
            f"{', '.join(granted)} ({source}): a process can use one MIG slice and no other device, so slices cannot"
            f" work together; set {VISIBLE} to one of them, or give the job whole GPUs"
        )
    return tuple(granted), source


def _read_grant(environment: Mapping[str, str]) -> tuple[list[str] | None, str]:
    """Return the devices that the environment names, None if it names none; and the variable."""
    if VISIBLE in environment:
        text = environment[VISIBLE]
        return _read_visible(text), f"{VISIBLE}={printable(text)}"
    text = environment.get(GRANTED, "")
    if not text:
        return None, ""
    parts = [_GRANT.fullmatch(part.strip()) for part in text.split(",")]
    if not all(parts):
        raise KitError(f"{GRANTED}={printable(text)}: not a number of GPUs; set {VISIBLE} to the devices to use")
    return [str(index) for index in range(sum(int(part[1]) for part in parts if part))], f"{GRANTED}={printable(text)}"


def _read_visible(text: str) -> list[str]:
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
