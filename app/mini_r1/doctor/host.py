"""The host: memory, shared memory, and the limits that an administrator or a container sets."""

from __future__ import annotations

import getpass
import os
import re
import resource

from mini_r1.doctor.case import GIB, Case
from mini_r1.findings import Finding, fail, ok, skip, warn
from mini_r1.machine import control_groups

SHM = "/dev/shm"  # noqa: S108
DOCKER_SHM = 64 * 2**20
"""Bytes of shared memory in a container that nobody gave more: docker's default, and Kubernetes' runtimes'."""
NCCL_SHM = GIB
"""Bytes that NVIDIA's NCCL guide asks for in containers (--shm-size=1g), where GPUs of a node talk through it."""
CAP_IPC_LOCK = 14
"""Number of the capability in linux/capability.h."""
OPEN_FILES = 4_096
"""Descriptors: sockets of every pair of ranks, shards, libraries. Linux's usual soft limit of 1024 is known to end."""
THREADS_PER_WORKER = 256
"""Assumed: torch's, NCCL's, the loader's and the Hub's threads of one worker, with a wide margin."""


def shared_memory(case: Case) -> Finding:
    """Shared memory holds what the weights' way to vLLM and NCCL need."""
    try:
        stat = os.statvfs(case.root / SHM[1:])
    except OSError as error:
        return fail(f"{SHM}: {error.strerror}", "mount a tmpfs there", "node")
    total, free = stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize
    found = f"{SHM}: {free / GIB:.2f} of {total / GIB:.2f} GiB free"
    fix = "docker: --shm-size; compose: shm_size; Kubernetes: an emptyDir with medium: Memory at " + SHM
    need = case.needs.shared_memory * GIB if case.needs else 0.0
    if free < need:
        return fail(f"{found}, the plan needs {need / GIB:.2f}", fix, "node")
    several = case.gpus_wanted and len(case.devices.ids) > 1
    if several and total <= DOCKER_SHM:
        return fail(f"{found}: a container's default, in which NCCL fails", fix, "node")
    if several and free < NCCL_SHM:
        return warn(f"{found}: NCCL wants 1 GiB", fix)
    return ok(found)


def host_memory(case: Case) -> Finding:
    """The host, or this job's share of it, has the memory that the plan needs."""
    limit, free, source = _memory(case)
    if limit is None or free is None:
        return skip("/proc/meminfo cannot be read")
    found = f"{free / GIB:.1f} of {limit / GIB:.1f} GiB free ({source})"
    if case.needs is None:
        return ok(found)
    need = case.needs.host_memory * GIB
    if limit < need:
        fix = "give the job more memory (--mem, resources.limits.memory)"
        return fail(f"{found}, the plan needs {need / GIB:.1f}", fix, "node")
    if free < need:
        return warn(f"{found}, the plan needs {need / GIB:.1f}", "see what else uses the node's memory")
    return ok(found)


def _memory(case: Case) -> tuple[float | None, float | None, str]:
    """Bytes in all, bytes free, and who sets the limit: the machine, or a control group around this process."""
    lines = (line.split(":") for line in (case.read("proc/meminfo") or "").splitlines() if ":" in line)
    meminfo = {name: float(rest.split()[0]) * 1024 for name, rest in lines if rest.split()}
    limit, free = meminfo.get("MemTotal"), meminfo.get("MemAvailable")
    if limit is None or free is None:
        return None, None, ""
    source = "the machine"
    for group_limit, used in control_groups.limits(case.read, "memory", control_groups.MEMORY):
        if group_limit < limit:
            limit, source = group_limit, "this job's control group"
        free = min(free, max(group_limit - used, 0))
    return limit, free, source


def locked_memory(case: Case) -> Finding:
    """Where there is InfiniBand, memory may be locked without limit: its cards read it directly."""
    try:
        cards = sorted(path.name for path in (case.root / "sys/class/infiniband").iterdir())
    except OSError:
        cards = []
    if not cards:
        return skip("no InfiniBand here")
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft == resource.RLIM_INFINITY:
        return ok(f"unlimited, for {', '.join(cards)}")
    if _may_lock_all(case):
        return ok(f"no limit to IPC_LOCK, for {', '.join(cards)}")
    return warn(
        f"{soft // 1024} KiB, with {', '.join(cards)}: NCCL may fail to use them, or be slow",
        "ulimit -l unlimited; docker: --ulimit memlock=-1; Slurm: PropagateResourceLimitsExcept=MEMLOCK; Kubernetes:"
        " LimitMEMLOCK=infinity of the nodes' container runtime, because a pod's capability IPC_LOCK is root's alone",
    )


def _may_lock_all(case: Case) -> bool:
    """Whether this process has the capability IPC_LOCK in effect: who is not root has not, whatever a pod asks for."""
    match = re.search(r"^CapEff:\s*([0-9a-f]+)$", case.read("proc/self/status") or "", re.MULTILINE)
    return bool(match and int(match[1], 16) >> CAP_IPC_LOCK & 1)


def open_files(case: Case) -> Finding:
    """A process may open enough files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= OPEN_FILES:
        return ok("unlimited" if soft == resource.RLIM_INFINITY else f"{soft}")
    possible = hard == resource.RLIM_INFINITY or hard >= OPEN_FILES
    fix = f"ulimit -n {OPEN_FILES}" if possible else f"have the hard limit raised, it is {hard}"
    return warn(f"{soft} files at once; long runs with several ranks want {OPEN_FILES}", fix)


def processes(case: Case) -> Finding:
    """This user, and this job's control group, may start enough processes and threads."""
    need = THREADS_PER_WORKER * case.workers
    room = [limit - used for limit, used in control_groups.limits(case.read, "pids", control_groups.PROCESSES)]
    soft, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if soft != resource.RLIM_INFINITY and os.geteuid() != 0:  # root is not held to it
        room.append(soft)
    if not room:
        return ok("no limit")
    found = f"{min(room):.0f} more processes and threads; {case.workers} workers may want {need}"
    if min(room) < need:
        return warn(found, "docker: --pids-limit; Kubernetes: the kubelet's podPidsLimit; elsewhere ulimit -u")
    return ok(found)


def user(case: Case) -> Finding:
    """This user has a name: torch's compiler asks for it, and dies without."""
    try:
        return ok(getpass.getuser())
    except (KeyError, OSError):
        return warn(
            f"user {os.getuid()} has no name here, which torch's compiler asks for",
            "set USER (and HOME) in the container: any name",
        )
