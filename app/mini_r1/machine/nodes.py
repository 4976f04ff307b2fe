"""The nodes of this job and which of them this is: from flags, from Slurm, or from another platform's variables.

The launcher runs once on each node. It asks no scheduler: the environment is enough, or flags are.
"""

import hashlib
import random
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NoReturn

import hostlist

from mini_r1.console import printable
from mini_r1.errors import ExitCode, KitError
from mini_r1.machine.other_schedulers import process_variables, several_nodes

JOB_TOKEN = "MINI_R1_JOB_TOKEN"  # noqa: S105  the variable's name
"""A secret that the launchers of one job share; without it they recognize one another by the job's id."""
PORTS = range(15_000, 30_000)
"""Range of the ports derived from a job id: below 32768, where Linux's ephemeral ports begin."""
DEFAULT_PORT = 29_500
"""torch's default; for nodes that are named by flags, without a job id."""
MAX_NODES = 1_024
"""An upper bound that stops typing errors."""


@dataclass(frozen=True, slots=True)
class Nodes:
    """The nodes of a job, and this one among them."""

    count: int
    index: int  # of this node, from 0
    address: str  # of node 0, as the others reach it
    port: int  # torch's rendezvous (MASTER_PORT)
    source: str  # of the above, for people
    job_id: str | None  # the scheduler's

    @property
    def control_port(self) -> int:
        """The port on which the launchers meet."""
        return self.port + 1


@dataclass(frozen=True, slots=True)
class Platform:
    """The variables in which a platform describes a job's nodes to each of them; of several, the first that is set."""

    name: str
    count: str
    index: tuple[str, ...]  # all that are set must agree
    address: tuple[str, ...]  # of node 0
    port: tuple[str, ...]  # if none is set, the port is derived from the address


PLATFORMS = (
    Platform("Kubeflow", "PET_NNODES", ("PET_NODE_RANK", "RANK"), ("PET_MASTER_ADDR", "MASTER_ADDR"),
             ("PET_MASTER_PORT", "MASTER_PORT")),
    Platform("an Indexed Job", "MINI_R1_NODES", ("JOB_COMPLETION_INDEX",), ("MINI_R1_MASTER_ADDR",), ("MASTER_PORT",)),
    Platform("RunPod", "NUM_NODES", ("NODE_RANK",), ("MASTER_ADDR", "PRIMARY_ADDR"), ("MASTER_PORT", "PRIMARY_PORT")),
    Platform("torchrun's variables", "NNODES", ("NODE_RANK",), ("MASTER_ADDR",), ("MASTER_PORT",)),
)  # fmt: skip
"""Kubeflow: the PyTorchJob operator (training-operator 1.9), whose RANK is the index of the NODE, and Trainer v2."""
MISSING = {
    "JOB_COMPLETION_INDEX": "give the Job completionMode: Indexed, completions: {count} and parallelism: {count}",
    "MINI_R1_MASTER_ADDR": "set it to the name of the Job's first pod, JOB-0.SERVICE with a headless Service that the"
    " pods have as subdomain",
}
"""What to do about a variable that a platform should have set, before the flags."""
LOCAL_SIZES = (
    "LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "MV2_COMM_WORLD_LOCAL_SIZE", "PMI_LOCAL_SIZE",
    "PALS_LOCAL_SIZE", "JSM_NAMESPACE_LOCAL_SIZE", "HOROVOD_LOCAL_SIZE",
)  # fmt: skip
"""Numbers of processes on this node: of torchrun, Open MPI, Intel MPI, MVAPICH, MPICH, Cray, jsrun and Horovod."""


def find_nodes(
    environment: Mapping[str, str],
    count: int | None = None,  # --nodes
    index: int | None = None,  # --node-index
    address: str | None = None,  # --address; replaces a scheduler's, as --port does
    port: int | None = None,
) -> Nodes:
    """Return the nodes of this job: `count` 1, or count, index and address together, win over the environment.

    Raise KitError for incomplete or contradictory facts, for several processes on a node, and for several nodes of a
    scheduler whose variables don't tell which one this is.
    """
    _refuse_process_per_gpu(environment)
    scheduled = None
    if count != 1 and (count is None or index is None or not address):
        scheduled = _read_slurm(environment, address) or _read_platform(environment, index, address, port)
        if scheduled is None and count is None:
            _refuse_other_scheduler(environment)
    if scheduled is None:
        nodes = _from_flags(count, index, address, port)
    else:
        for flag, value, theirs in (("--nodes", count, scheduled.count), ("--node-index", index, scheduled.index)):
            if value is not None and value != theirs:
                raise KitError(
                    f"{flag} {value}, but {scheduled.source} has {theirs}: leave the flag out, or give {_flags(count)}"
                )
        nodes = replace(scheduled, port=port or scheduled.port)
    if nodes.count == 1 and port is None:
        return replace(nodes, index=0, address="127.0.0.1", port=free_port())
    return nodes


def job_port(job_id: str) -> int:
    """Return a port for a job: the same on all its nodes and, most likely, not that of another job."""
    digest = int.from_bytes(hashlib.sha256(job_id.encode()).digest()[:8], "big")
    return PORTS[2 * (digest % (len(PORTS) // 2))]  # even: the next one is the launchers'


def free_port() -> int:
    """Return a port of this machine that is free, and so is the next."""
    # An ephemeral one may be another connection's by the time that rank 0 has imported its packages.
    for port in random.sample(PORTS[:-1], 100):
        with socket.socket() as first, socket.socket() as second:
            try:
                first.bind(("", port))
                second.bind(("", port + 1))
            except OSError:
                continue
            return port
    raise KitError("no two adjacent ports are free on this machine: name one with --port", ExitCode.RETRY)


def expand_hosts(text: str) -> list[str]:
    """Return the names in Slurm's list of hosts, at most MAX_NODES: "n[1-2,5],gpu07" is n1, n2, n5, gpu07."""
    try:
        hosts: list[str] = hostlist.expand_hostlist(text, allow_duplicates=True)
        problem = None if len(hosts) <= MAX_NODES and (hosts or not text) else f"{len(hosts)} names"
    except hostlist.BadHostlist as error:
        problem = str(error)
    if problem:
        raise KitError(f"cannot read Slurm's list of hosts '{printable(text)}' ({problem}): name node 0 with --address")
    return hosts


# --- where nodes are read ---


def _from_flags(count: int | None, index: int | None, address: str | None, port: int | None) -> Nodes:
    if count is None or count == 1:
        if index:
            fix = f"there is 1 node, counted from 0; leave it out, or give {_flags(None)}"
            raise KitError(f"--node-index {index}{' without --nodes' if count is None else ''}: {fix}")
        source = "--nodes 1" if count else "one node: no flag, no scheduler"
        return Nodes(1, 0, address or "127.0.0.1", port or DEFAULT_PORT, source, None)
    if index is None or not address:
        raise KitError(
            f"--nodes {count} needs --node-index (0 to {count - 1}) and --address (of node 0, the same on all)"
        )
    return Nodes(count, _check_index(index, count, "--node-index"), address, port or DEFAULT_PORT, "flags", None)


def _flags(count: int | None) -> str:
    """Describe the flags that replace what the environment says."""
    return f"--nodes {count or 'N'}, --node-index (0 to {count - 1 if count else 'N-1'}) and --address (of node 0)"


def _refuse_process_per_gpu(environment: Mapping[str, str]) -> None:
    seen = ["LOCAL_RANK"] if environment.get("LOCAL_RANK") else []
    seen += [name for name in LOCAL_SIZES if re.fullmatch(r"0*([2-9]|[1-9]\d+)", environment.get(name, "").strip())]
    if seen:
        values = ", ".join(f"{name}={printable(environment[name])}" for name in seen)
        without = " ".join(f"-u {name}" for name in dict.fromkeys([*seen, *process_variables(environment)]))
        raise KitError(
            f"{values}: something starts one process per GPU here, but mini-r1 launch runs once on each node and starts"
            " the workers itself. Start workers with `torchrun -m mini_r1 train` (docs/launch.md), or start mini-r1"
            f" launch once on each node with `env {without} mini-r1 launch ...`"
        )
    tasks = [
        int(number) for number in re.findall(r"(?:^|,)(\d{1,9})", environment.get("SLURM_STEP_TASKS_PER_NODE", ""))
    ]
    if _in_step(environment) and max(tasks, default=1) > 1:
        _refuse_tasks(environment["SLURM_STEP_TASKS_PER_NODE"] + " tasks on a node")


def _refuse_tasks(tasks: str) -> NoReturn:
    raise KitError(
        f"srun started {tasks}: mini-r1 launch runs once on each node and starts the workers itself; use"
        " `srun --ntasks-per-node=1`, or start workers with `torchrun -m mini_r1 train` (docs/launch.md)"
    )


def _refuse_other_scheduler(environment: Mapping[str, str]) -> None:
    found = several_nodes(environment)
    if found:
        seen, count = found
        raise KitError(
            f"{seen}: there seem to be several nodes, and mini-r1 launch does not read which of them this is. Start it"
            f" once on each node with {_flags(count)}, or on this node alone with --nodes 1"
        )


def _in_step(environment: Mapping[str, str]) -> bool:
    """Return whether srun started this. A batch shell has SLURM_NODEID and SLURM_PROCID too, but no step."""
    return "SLURM_STEP_ID" in environment or "SLURM_STEPID" in environment


def _read_slurm(environment: Mapping[str, str], address: str | None) -> Nodes | None:
    job_id = environment.get("SLURM_JOB_ID")
    if not job_id:
        return None
    source, in_step = f"Slurm job {printable(job_id)}", _in_step(environment)
    names = ("SLURM_STEP_NUM_NODES",) * in_step + ("SLURM_NNODES", "SLURM_JOB_NUM_NODES")
    count = _read_number(environment, *names) or 1
    components = min(_read_number(environment, "SLURM_HET_SIZE") or 1, MAX_NODES)
    if not in_step:
        count = max(count, components)
        if count > 1:
            more = " or more" * (components > 1)
            raise KitError(
                f"this Slurm job has {count} nodes{more}, but mini-r1 launch was not started on each of them: start it"
                " with `srun --ntasks-per-node=1 mini-r1 launch ...`, or on this node alone with --nodes 1"
            )
        return Nodes(1, 0, "127.0.0.1", job_port(job_id), source, job_id)
    tasks = _read_number(environment, "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS") or count
    if tasks != count:
        _refuse_tasks(f"{tasks} tasks on {count} node{'s' * (count > 1)}")
    index, all_nodes = _read_number(environment, "SLURM_NODEID") or 0, _read_number(environment, "SLURM_NNODES")
    if index >= count or (components > 1 and all_nodes not in (None, count)):
        raise KitError(
            f"SLURM_NODEID {index}: there are {all_nodes or count} nodes, and {count} in this step; give {_flags(None)}"
        )
    hosts = [] if address or count == 1 else _step_hosts(environment, count, index, components)
    return Nodes(count, index, address or (hosts[0] if hosts else "127.0.0.1"), job_port(job_id), source, job_id)


def _step_hosts(environment: Mapping[str, str], count: int, index: int, components: int) -> list[str]:
    """Return the hosts of this step by their indices, of which SLURM_NODEID is one."""
    hosts = expand_hosts(environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST") or "")
    # Slurm sorts the list, but numbers the nodes of a heterogeneous job by component (seen with 22.05).
    for part in reversed(range(components)):
        for name in ("HET", "PACK"):  # srun with components, and no allocation around it, sets the latter only
            component = expand_hosts(environment.get(f"SLURM_JOB_NODELIST_{name}_GROUP_{part}", ""))
            hosts.sort(key=lambda host: host not in component)
    if len(hosts) != count:
        raise KitError(f"Slurm reports {count} nodes, but lists {len(hosts)}: name node 0 with --address")
    own = environment.get("SLURMD_NODENAME", hosts[index])
    if own in hosts and own != hosts[index]:
        raise KitError(f"Slurm lists {hosts[index]} as node {index}, but this is {own}: name node 0 with --address")
    return hosts


def _read_platform(
    environment: Mapping[str, str], index: int | None, address: str | None, port: int | None
) -> Nodes | None:
    """Return the nodes of a platform, with what flags give and it does not; None without one."""
    if "PET_RDZV_ENDPOINT" in environment or ":" in environment.get("PET_NNODES", ""):
        raise KitError(
            "this PyTorchJob is elastic (Worker replicas only, or elasticPolicy): mini-r1 launch needs a Master replica"
            " and a fixed number of nodes; take out elasticPolicy and make one replica the Master, or give"
            f" {_flags(None)}"
        )
    if environment.get("MINI_R1_MASTER_ADDR") and not environment.get("MINI_R1_NODES"):
        # Each pod would be a separate job, all in one run directory.
        raise KitError("MINI_R1_MASTER_ADDR without MINI_R1_NODES: set MINI_R1_NODES to the Job's completions")
    platform = next((platform for platform in PLATFORMS if environment.get(platform.count)), None)
    if platform is None:
        return None
    count = _read_number(environment, platform.count) or 0
    if not 1 <= count <= MAX_NODES:
        raise KitError(f"{platform.count}={count}: must be between 1 and {MAX_NODES}")
    if count == 1:
        return Nodes(1, 0, "127.0.0.1", DEFAULT_PORT, platform.name, None)
    address = address or next((environment[name] for name in platform.address if environment.get(name)), "")
    indices = {name: number for name in platform.index if (number := _read_number(environment, name)) is not None}
    if index is not None and not indices:
        indices = {"--node-index": index}
    if not indices or not address:
        name = platform.address[0] if indices else platform.index[0]
        fix = f"{MISSING[name].format(count=count)}, or " if name in MISSING else ""
        raise KitError(f"{platform.count}={count} without {name}: {fix}give {_flags(count)}")
    if len(set(indices.values())) > 1:
        values = " and ".join(f"{name}={number}" for name, number in indices.items())
        raise KitError(f"{values} differ, but both must be the index of this node: give {_flags(count)}")
    name, index = next(iter(indices.items()))
    if index >= count and platform.count == "MINI_R1_NODES":
        raise KitError(f"{name} {index}, but MINI_R1_NODES={count}: set it to the Job's completions")
    if port is None:
        port = _read_number(environment, *platform.port) or job_port(address)
        if not 1_024 <= port <= 65_534:
            name = next(name for name in platform.port if environment.get(name))
            raise KitError(f"{name} {port}: must be between 1024 and 65534 (the next one is used too); or give --port")
    return Nodes(count, _check_index(index, count, name), address, port, platform.name, address)


def _read_number(environment: Mapping[str, str], *names: str) -> int | None:
    """Return the value of the first of these variables that is set."""
    for name in names:
        text = environment.get(name, "").strip()
        if text:
            if not (text.isascii() and text.isdecimal() and len(text) < 10):
                raise KitError(f"{name}={printable(text)}: must be a whole number")
            return int(text)
    return None


def _check_index(index: int, count: int, name: str) -> int:
    if index >= count:
        raise KitError(f"{name} {index}: there are {count} nodes, counted from 0")
    return index
