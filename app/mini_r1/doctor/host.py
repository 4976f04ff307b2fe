"""Checks of the host: memory, limits that an administrator or a container sets, ports and network interfaces."""

import ctypes
import errno
import getpass
import os
import re
import resource
import socket

from mini_r1.console import printable
from mini_r1.doctor.case import Case
from mini_r1.machine import control_groups
from mini_r1.machine.findings import Finding, fail, ok, skip, warn, worst
from mini_r1.values import GIB

SHM = "/dev/shm"  # noqa: S108
DOCKER_SHM = 64 * 2**20
"""Bytes of shared memory that docker and Kubernetes' runtimes give a container by default."""
NCCL_SHM = GIB
"""Bytes that NVIDIA's NCCL guide asks for in containers (--shm-size=1g), where GPUs of a node talk through it."""
IBVERBS = "libibverbs.so.1"
"""What NCCL 2.21.5 loads to use InfiniBand."""
CAP_IPC_LOCK = 14
"""Number of the capability in linux/capability.h."""
OPEN_FILES = 4_096
"""Descriptors: sockets of every pair of ranks, shards, libraries. Linux's usual soft limit of 1024 has been reached."""
THREADS_PER_WORKER = 256
"""Assumed, with a wide margin: one worker's threads of torch, NCCL, the loader and the hub."""
INTERFACE_VARIABLES = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME")


def shared_memory(case: Case) -> Finding:
    """Shared memory is large enough for the weights' way to vLLM and for NCCL."""
    try:
        stat = os.statvfs(case.root / SHM[1:])
    except OSError as error:
        return fail(f"{SHM}: {error.strerror}", "mount a tmpfs there", "node")
    total, free = stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize
    found = f"{SHM}: {free / GIB:.2f} of {total / GIB:.2f} GiB free"
    fix = f"docker: --shm-size; compose: shm_size; Kubernetes: an emptyDir with medium: Memory at {SHM}"
    if free < case.shm_gib * GIB:
        return fail(f"{found}, the plan needs {case.shm_gib:.2f}", fix, "node")
    several = case.uses_gpus and len(case.devices.ids) > 1
    if several and total <= DOCKER_SHM:
        return fail(f"{found}: a container's default, in which NCCL fails", fix, "node")
    if several and free < NCCL_SHM:
        return warn(f"{found}: NCCL wants 1 GiB", fix)
    return ok(found)


def host_memory(case: Case) -> Finding:
    """The host, or this job's share of it, has the memory that the plan needs."""
    return control_groups.compare_memory(case.host_memory_gib, case.read)


def infiniband(case: Case) -> Finding:
    """With InfiniBand, the library by which NCCL uses it is there: without it NCCL uses TCP, and says so nowhere."""
    cards = _infiniband_cards(case)
    if not cards or not case.uses_gpus:
        return skip("no InfiniBand here" if case.uses_gpus else "no GPU in use")
    try:
        ctypes.CDLL(IBVERBS)
    except OSError:
        fix = "install libibverbs1 and ibverbs-providers (RHEL: libibverbs, rdma-core), or use the image"
        return warn(f"{cards}, but no {IBVERBS}: between nodes NCCL uses TCP, which is many times slower", fix)
    return ok(f"{cards}, and {IBVERBS}")


def locked_memory(case: Case) -> Finding:
    """With InfiniBand, memory may be locked without limit: its cards read memory directly."""
    cards = _infiniband_cards(case)
    if not cards:
        return skip("no InfiniBand here")
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft == resource.RLIM_INFINITY:
        return ok(f"unlimited, for {cards}")
    # The effective set counts: a process that is not root does not get what a pod asks for.
    effective = re.search(r"^CapEff:\s*([0-9a-f]+)$", case.read("proc/self/status") or "", re.MULTILINE)
    if effective and int(effective[1], 16) >> CAP_IPC_LOCK & 1:
        return ok(f"no limit to IPC_LOCK, for {cards}")
    return warn(
        f"{soft // 1024} KiB, with {cards}: NCCL may fail to use them, or be slow",
        "`ulimit -l unlimited`; docker: --ulimit memlock=-1; Slurm: PropagateResourceLimitsExcept=MEMLOCK; Kubernetes:"
        " LimitMEMLOCK=infinity of the nodes' container runtime, because only root gets a pod's capability IPC_LOCK",
    )


def _infiniband_cards(case: Case) -> str:
    try:
        return ", ".join(sorted(path.name for path in (case.root / "sys/class/infiniband").iterdir()))
    except OSError:
        return ""


def open_files(case: Case) -> Finding:
    """A process may open enough files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= OPEN_FILES:
        return ok("unlimited" if soft == resource.RLIM_INFINITY else f"{soft}")
    allowed = hard == resource.RLIM_INFINITY or hard >= OPEN_FILES
    fix = f"`ulimit -n {OPEN_FILES}`" if allowed else f"have the hard limit raised, it is {hard}"
    return warn(f"at most {soft} at once; long runs with several ranks want {OPEN_FILES}", fix)


def processes(case: Case) -> Finding:
    """This user, and this job's control group, may start enough processes and threads."""
    need = THREADS_PER_WORKER * case.workers
    left = [limit - used for limit, used in control_groups.limits(case.read, "pids")]
    soft, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if soft != resource.RLIM_INFINITY and os.geteuid() != 0:  # the limit does not hold for root
        left.append(soft)
    if not left:
        return ok("no limit")
    found = f"{min(left):.0f} more processes and threads; {case.workers} workers may want {need}"
    if min(left) < need:
        return warn(found, "docker: --pids-limit; Kubernetes: the kubelet's podPidsLimit; elsewhere `ulimit -u`")
    return ok(found)


def user(case: Case) -> Finding:
    """This user has a name: torch's compiler asks for it, and fails without."""
    try:
        return ok(getpass.getuser())
    except (KeyError, OSError):
        fix = "set USER (and HOME) in the container: any name"
        return warn(f"user {os.getuid()} has no name here, and torch's compiler asks for one", fix)


def ports(case: Case) -> Finding:
    """No process listens on the ports that node 0 needs."""
    return worst(map(_check_port, case.ports)) if case.ports else skip("this node listens on none")


def _check_port(port: int) -> Finding:
    try:
        with socket.socket() as probe:
            # As a server binds: lingering connections of an earlier job (TIME_WAIT) do no harm.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("", port))
            probe.listen(1)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            return fail(f"port {port}: {error.strerror}", "choose another with --port", "node")
        fix = f"find the process with `ss -ltnp 'sport = :{port}'`, or choose another with --port"
        return fail(f"port {port} is taken", fix, "node")
    return ok(f"port {port} is free")


def interfaces(case: Case) -> Finding:
    """The network interfaces that variables name are there."""
    given = {name: case.environment[name] for name in INTERFACE_VARIABLES if case.environment.get(name)}
    if not given:
        return ok("left to NCCL and gloo")
    there = sorted(os.listdir(case.root / "sys/class/net"))
    return worst(_check_interface(name, value, there) for name, value in given.items())


def _check_interface(variable: str, value: str, there: list[str]) -> Finding:
    """NCCL takes beginnings of names, `=` for whole names, `^` for all but these; gloo takes whole names."""
    shown = f"{variable}={printable(value)}"
    exact = value.startswith("=") or variable.startswith("GLOO")
    names = value.lstrip("=").split(",")
    if value.startswith("^") or any(own == name if exact else own.startswith(name) for name in names for own in there):
        return ok(shown)
    fix = f"unset {variable}: NCCL and gloo find one; nodes may name theirs differently"
    return fail(f"{shown}: there is no such interface here, but {', '.join(there)}", fix, "node")
