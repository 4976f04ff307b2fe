"""The GPUs: driver, compute capability, memory in use, faults."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator

from mini_r1.doctor.case import GIB, Case
from mini_r1.findings import Finding, fail, ok, skip, warn, worst
from mini_r1.machine.devices import CONTAINER_HINT
from mini_r1.machine.nvidia import Gpu
from mini_r1.recipe.fields import Recipe

CUDA = (12, 4)
"""Of the pinned torch, `torch.version.cuda`."""
DRIVER = (550, 54, 14)
"""The driver that came with CUDA 12.4 (NVIDIA's CUDA 12.4 release notes, toolkit driver versions)."""
DRIVER_OF_FAMILY = (525, 60, 13)
"""The oldest that runs programs of CUDA 12.x at all (NVIDIA's CUDA Compatibility, minor version compatibility)."""
NEWEST = 9
"""Major compute capability that torch 2.5.1 has kernels for: its `torch.cuda.get_arch_list()` ends at sm_90."""
IN_USE_WARN, IN_USE_FAIL = 0.05, 0.20
"""Shares of a GPU's memory that others may hold. An idle driver takes about half a GiB."""
HARDWARE_XIDS = frozenset({48, 62, 63, 64, 74, 79, 92, 94, 95, 119, 120, 121, 140, 143, 145})
"""Faults of memory, links, firmware or the GPU itself in NVIDIA's XID catalogue; others are mostly a program's own."""
_XID = re.compile(r"NVRM: Xid \(PCI:([0-9a-fA-F:.]{4,20})\): ([0-9]{1,4})")


def driver(case: Case) -> Finding:
    """The NVIDIA driver is there, answers for every device, and is new enough for the pinned torch."""
    reason = needs_gpu(case.recipe) if case.recipe else None
    if not case.gpus_wanted:
        if reason:
            return fail(
                f"{reason}, and this node trains on the CPU ({case.devices.source})",
                "run it where there is a GPU, or change that key of the recipe",
                "recipe",
            )
        if case.driver is None:
            return ok("no NVIDIA driver: this node trains on the CPU")
        return ok(f"driver {case.driver.version}, not used: {case.devices.source}")
    if case.driver is None:
        return fail(
            f"GPUs were given ({case.devices.source}), but no NVIDIA driver answers",
            f"see whether nvidia-smi works here. {CONTAINER_HINT}",
            "node",
        )
    if case.driver.silent:
        which = ", ".join(f"{id} ({error})" for id, error in case.driver.silent.items())
        return fail(f"the driver does not answer for {which}", "take the node out of service: nvidia-smi -q", "node")
    version = tuple(int(part) for part in re.findall(r"\d+", case.driver.version)[:3])
    made_for = ".".join(map(str, case.driver.cuda))
    found = f"driver {case.driver.version}, made for CUDA {made_for}"
    if case.driver.cuda >= CUDA:  # a compatibility package in the container counts: the library in use is its own
        return ok(found)
    if version < DRIVER_OF_FAMILY:
        return fail(
            f"{found}: too old for torch's CUDA 12.4",
            "update the driver to 550.54.14 or newer (a data-centre GPU can use the cuda-compat-12-4 package instead)",
            "node",
        )
    if version < DRIVER:
        return warn(
            f"{found}: runs CUDA 12.4 by minor version compatibility, without code that is compiled at run time",
            "update the driver to 550.54.14 or newer",
        )
    return ok(found)


def needs_gpu(recipe: Recipe) -> str | None:
    """The key of a recipe that only a GPU can serve; None if a CPU will do."""
    wants = {
        "load_in_4bit: true": recipe.load_in_4bit,
        "load_in_8bit: true": recipe.load_in_8bit,
        f"optim: {recipe.optim}": "8bit" in recipe.optim or recipe.optim.startswith("paged"),
        "attn_implementation: flash_attention_2": recipe.attn_implementation == "flash_attention_2",
        "fp16: true": recipe.fp16,
        "tf32: true": bool(recipe.tf32),
    }
    found = [key for key, wanted in wants.items() if wanted]
    return f"{', '.join(found)} needs a GPU" if found else None


def compute_capability(case: Case) -> Finding:
    """The pinned torch has kernels for each GPU, and each can do what the recipe asks."""
    return _each(case, lambda gpu: _capability(case, gpu))


def _capability(case: Case, gpu: Gpu) -> Finding:
    if gpu.capability is None:
        return skip(f"{_named(gpu)}: the driver does not say")
    major, minor = gpu.capability
    found = f"{_named(gpu)} has compute capability {major}.{minor}"
    if major > NEWEST:
        return fail(
            f"{found}: torch 2.5.1 knows nothing above 9.0",
            "use a GPU of an earlier generation (Hopper, Ada, Ampere)",
            "recipe",
        )
    wants = _wants(case.recipe) if case.recipe else {}
    missing = [words for words, least in wants.items() if gpu.capability < least]
    if missing:
        return fail(
            f"{found}, too little for {', '.join(missing)}",
            "on GPUs before Ampere: bf16: false, fp16: true, torch_dtype: float32, attn_implementation: sdpa",
            "recipe",
        )
    return ok(found)


def _wants(recipe: Recipe) -> dict[str, tuple[int, int]]:
    """The recipe's keys and the compute capability each needs."""
    return {
        words: least
        for words, wanted, least in (
            ("bf16: true", recipe.bf16, (8, 0)),
            ("torch_dtype: bfloat16", recipe.torch_dtype == "bfloat16", (8, 0)),
            ("attn_implementation: flash_attention_2", recipe.attn_implementation == "flash_attention_2", (8, 0)),
            ("tf32: true", bool(recipe.tf32), (8, 0)),
            ("use_vllm: true", recipe.use_vllm, (7, 0)),
        )
        if wanted
    }


def gpu_kinds(case: Case) -> Finding:
    """All GPUs of the node are of one kind."""
    if not case.gpus_wanted or case.driver is None:
        return skip("no GPU in use")
    names = dict.fromkeys(gpu.name for gpu in case.driver.gpus)
    if len(names) > 1:
        return warn(
            f"GPUs of several kinds: {', '.join(names)}",
            "the slowest sets the pace and the smallest the memory: give the job GPUs of one kind",
        )
    return ok(f"{len(case.driver.gpus)} × {next(iter(names), 'none')}")


def gpu_memory(case: Case) -> Finding:
    """Nobody else holds the GPUs' memory."""
    return _each(case, _memory)


def _memory(gpu: Gpu) -> Finding:
    share = gpu.used / gpu.total if gpu.total else 0.0
    others = [str(pid) for pid in gpu.processes if pid != os.getpid()]
    whose = f" by process {', '.join(others)}" if others else ""
    found = f"{_named(gpu)}: {gpu.used / GIB:.1f} of {gpu.total / GIB:.1f} GiB in use{whose}"
    fix = f"end what uses it ({f'ps -p {others[0]}' if others else 'nvidia-smi'}), or take another GPU"
    if share > IN_USE_FAIL:
        return fail(found, fix, "node")
    return warn(found, fix) if share > IN_USE_WARN else ok(found)


def ecc(case: Case) -> Finding:
    """No memory error that ECC could not correct, and no faulty memory waiting to be replaced."""
    return _each(case, _ecc)


def _ecc(gpu: Gpu) -> Finding:
    if gpu.remap_failed:
        return fail(f"{_named(gpu)}: no spare memory row is left for a faulty one", "have the GPU replaced", "node")
    if gpu.remap_pending:
        return fail(f"{_named(gpu)}: faulty memory is replaced at the next reset", "have the GPU reset", "node")
    if gpu.uncorrected is None:
        return skip(f"{_named(gpu)}: no ECC, or switched off")
    if gpu.uncorrected:
        return fail(
            f"{_named(gpu)}: {gpu.uncorrected} memory errors since the driver was loaded that ECC could not correct",
            "have the GPU reset; if they come back, replaced",
            "node",
        )
    return ok(f"{_named(gpu)}: none uncorrected")


def xid(case: Case) -> Finding:
    """The kernel's log tells of no hardware fault of these GPUs. The driver itself keeps no history of them."""
    if not case.gpus_wanted or case.driver is None:
        return skip("no GPU in use")
    log, source = kernel_log(case)
    if log is None:
        return skip("the kernel's log cannot be read here; as root on the node: dmesg | grep Xid")
    buses = {gpu.bus: gpu.id for gpu in case.driver.gpus}
    seen: dict[tuple[str, int], int] = {}
    for bus, number in _XID.findall(log):
        id = buses.get(bus.lower().partition(".")[0])
        if id is not None and int(number) in HARDWARE_XIDS:
            seen[id, int(number)] = seen.get((id, int(number)), 0) + 1
    if seen:
        told = ", ".join(f"GPU {id}: Xid {number} ({count} times)" for (id, number), count in sorted(seen.items()))
        return warn(
            f"{source} tells of hardware faults since the node was started: {told}",
            "look the number up in NVIDIA's XID catalogue; if the GPU was not reset since, have it reset",
        )
    return ok(f"no hardware fault in {source}")


def kernel_log(case: Case) -> tuple[str | None, str]:
    """The kernel's messages since the start, as far as this user may read them, and where they were read."""
    for path in ("var/log/kern.log", "var/log/messages"):
        text = case.read(path)
        if text is not None:
            return text, f"/{path}"
    try:
        device = os.open(case.root / "dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return None, ""
    try:
        return "\n".join(_records(device)), "/dev/kmsg"
    finally:
        os.close(device)


def _records(device: int) -> Iterator[str]:
    """One message a read; at the end reading would block. A message that was overwritten meanwhile is passed over."""
    while True:
        try:
            record = os.read(device, 8192)
        except BrokenPipeError:
            continue
        except OSError:
            return
        if not record:
            return
        yield record.decode(errors="replace")


def _each(case: Case, check: Callable[[Gpu], Finding]) -> Finding:
    if not case.gpus_wanted or case.driver is None:
        return skip("no GPU in use")
    if not case.driver.gpus:
        return skip("no GPU answers")
    return worst(check(gpu) for gpu in case.driver.gpus)


def _named(gpu: Gpu) -> str:
    return f"GPU {gpu.id} ({gpu.name})"
