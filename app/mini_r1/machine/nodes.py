"""The nodes of this job and which of them this is: from flags, Slurm, the PyTorchJob operator, or an Indexed Job.

The launcher runs once on each node. It asks no scheduler: the environment is enough.
"""

import hashlib
import random
import socket
from collections.abc import Mapping
from dataclasses import dataclass, replace

import hostlist

from mini_r1.console import printable
from mini_r1.errors import ExitCode, KitError

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


def find_nodes(
    environment: Mapping[str, str],
    count: int | None = None,  # --nodes
    index: int | None = None,  # --node-index
    address: str | None = None,  # --address; replaces a scheduler's, as --port does
    port: int | None = None,
) -> Nodes:
    """Return the nodes of this job, or raise KitError for incomplete or contradictory facts, or two tasks on a node."""
    # A shell in an allocation of several nodes is no step on any of them, so it may run a job of one node.
    in_shell = "SLURM_JOB_ID" in environment and not _in_step(environment)
    scheduled = None
    if count != 1 or not in_shell:
        scheduled = _read_slurm(environment) or _read_operator(environment) or _read_indexed_job(environment)
    if scheduled is None:
        nodes = _from_flags(count, index, address, port)
    else:
        for flag, value, theirs in (("--nodes", count, scheduled.count), ("--node-index", index, scheduled.index)):
            if value is not None and value != theirs:
                raise KitError(f"{flag} {value}, but {scheduled.source} has {theirs}: leave the flag out")
        nodes = replace(scheduled, address=address or scheduled.address, port=port or scheduled.port)
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
            raise KitError(f"--node-index {index} without --nodes: add the number of nodes")
        source = "--nodes 1" if count else "one node: no flag, no scheduler"
        return Nodes(1, 0, address or "127.0.0.1", port or DEFAULT_PORT, source, None)
    if index is None or not address:
        raise KitError(
            f"--nodes {count} needs --node-index (0 to {count - 1}) and --address (of node 0, the same on all nodes)"
        )
    return Nodes(count, _check_index(index, count, "--node-index"), address, port or DEFAULT_PORT, "flags", None)


def _in_step(environment: Mapping[str, str]) -> bool:
    """Return whether srun started this. A batch shell has SLURM_NODEID and SLURM_PROCID too, but no step."""
    return "SLURM_STEP_ID" in environment or "SLURM_STEPID" in environment


def _read_slurm(environment: Mapping[str, str]) -> Nodes | None:
    job_id = environment.get("SLURM_JOB_ID")
    if not job_id:
        return None
    source, in_step = f"Slurm job {printable(job_id)}", _in_step(environment)
    names = ("SLURM_STEP_NUM_NODES",) * in_step + ("SLURM_NNODES", "SLURM_JOB_NUM_NODES")
    count = _read_number(environment, *names) or 1
    if not in_step:
        if count > 1:
            raise KitError(
                f"this Slurm job has {count} nodes, but mini-r1 launch was not started on each of them: start it with"
                " `srun --ntasks-per-node=1 mini-r1 launch ...`, or on this node alone with --nodes 1"
            )
        return Nodes(1, 0, "127.0.0.1", job_port(job_id), source, job_id)
    tasks = _read_number(environment, "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS") or count
    if tasks != count:
        raise KitError(
            f"srun started {tasks} tasks on {count} node{'s' * (count > 1)}: mini-r1 launch runs once on each node and"
            " starts the workers itself; use `srun --ntasks-per-node=1`"
        )
    index = _check_index(_read_number(environment, "SLURM_NODEID") or 0, count, "SLURM_NODEID")
    hosts = expand_hosts(environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST") or "")
    if count > 1 and len(hosts) != count:
        raise KitError(f"Slurm reports {count} nodes, but lists {len(hosts)}: name node 0 with --address")
    return Nodes(count, index, hosts[0] if hosts else "127.0.0.1", job_port(job_id), source, job_id)


def _read_operator(environment: Mapping[str, str]) -> Nodes | None:
    """Return the nodes of the PyTorchJob operator (training-operator 1.9), whose RANK is the index of the NODE."""
    if "PET_RDZV_ENDPOINT" in environment or ":" in environment.get("PET_NNODES", ""):
        raise KitError(
            "this PyTorchJob is elastic (Worker replicas only, or elasticPolicy): mini-r1 launch needs a Master replica"
            " and a fixed number of nodes; take out elasticPolicy and make one replica the Master"
        )
    if "PET_NNODES" not in environment:
        others = [name for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE") if name in environment]
        if others:
            raise KitError(
                f"{', '.join(others)} set in the environment: mini-r1 launch starts the workers itself. Start it once"
                " on each node, not under torchrun or accelerate launch, or unset these"
            )
        return None
    count = _read_count(environment, "PET_NNODES")
    ranks = {_read_number(environment, name) for name in ("RANK", "PET_NODE_RANK") if name in environment}
    if len(ranks) != 1:
        raise KitError(
            "RANK and PET_NODE_RANK must both be the index of this node, as the PyTorchJob operator sets them"
        )
    index = _check_index(ranks.pop() or 0, count, "RANK")
    address, port = environment.get("MASTER_ADDR", ""), _read_number(environment, "MASTER_PORT")
    if count > 1 and (not address or port is None):
        raise KitError("PET_NNODES without MASTER_ADDR and MASTER_PORT: was this started by the PyTorchJob operator?")
    job_id = address or None
    return Nodes(count, index, address or "127.0.0.1", port or DEFAULT_PORT, "the PyTorchJob operator", job_id)


def _read_indexed_job(environment: Mapping[str, str]) -> Nodes | None:
    """Return the nodes of an Indexed Job: Kubernetes sets the index, the manifest the rest."""
    address = environment.get("MINI_R1_MASTER_ADDR", "")
    if "MINI_R1_NODES" not in environment:
        if address:  # each pod would be a separate job, all in one run directory
            raise KitError("MINI_R1_MASTER_ADDR without MINI_R1_NODES: set MINI_R1_NODES to the Job's completions")
        return None
    count = _read_count(environment, "MINI_R1_NODES")
    if count == 1:
        return Nodes(1, 0, "127.0.0.1", DEFAULT_PORT, "MINI_R1_NODES=1", None)
    index = _read_number(environment, "JOB_COMPLETION_INDEX")
    if index is None:
        raise KitError(
            f"MINI_R1_NODES={count} without JOB_COMPLETION_INDEX, which an Indexed Job sets: give the Job"
            f" completionMode: Indexed, completions: {count} and parallelism: {count}"
        )
    if not address:
        raise KitError(
            f"MINI_R1_NODES={count} without MINI_R1_MASTER_ADDR: set it to the name of the Job's first pod,"
            " JOB-0.SERVICE with a headless Service that the pods have as subdomain"
        )
    if index >= count:
        raise KitError(f"JOB_COMPLETION_INDEX {index}, but MINI_R1_NODES={count}: set it to the Job's completions")
    port = _read_number(environment, "MASTER_PORT") or job_port(address)
    return Nodes(count, index, address, port, "an Indexed Job", address)


def _read_number(environment: Mapping[str, str], *names: str) -> int | None:
    """Return the value of the first of these variables that is set."""
    for name in names:
        text = environment.get(name, "").strip()
        if text:
            if not (text.isascii() and text.isdecimal() and len(text) < 10):
                raise KitError(f"{name}={printable(text)}: must be a whole number")
            return int(text)
    return None


def _read_count(environment: Mapping[str, str], name: str) -> int:
    count = _read_number(environment, name) or 0
    if not 1 <= count <= MAX_NODES:
        raise KitError(f"{name}={count}: must be between 1 and {MAX_NODES}")
    return count


def _check_index(index: int, count: int, name: str) -> int:
    if index >= count:
        raise KitError(f"{name} {index}: there are {count} nodes, counted from 0")
    return index
