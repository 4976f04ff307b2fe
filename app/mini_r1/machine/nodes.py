"""The nodes that this process is one of: from flags, Slurm, the PyTorchJob operator, or an Indexed Job's manifest.

The launcher runs once on each node. It never asks a scheduler anything: what the environment says is enough.
"""

from __future__ import annotations

import hashlib
import random
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from mini_r1.console import printable
from mini_r1.errors import ExitCode, KitError

PORTS = range(15_000, 30_000)
"""Where a port derived from a job id lies: below 32768, where Linux begins to hand out ephemeral ports."""
DEFAULT_PORT = 29_500
"""torch's own; for nodes that are named by flags, where there is no job id."""
MAX_NODES = 1_024
"""More than anyone has; a typing error stops here."""

_ENTRY = re.compile(r"([^\[\],]*)(?:\[([0-9,-]+)\])?([^\[\],]*)")


@dataclass(frozen=True, slots=True)
class Nodes:
    """This node among all of the job.

    Args:
        count: nodes of the job.
        index: this one, 0 for the first.
        address: of node 0, as the others reach it.
        port: torch's rendezvous (MASTER_PORT); the launchers' own is the next one.
        source: where that was read, in words.
        job_id: the scheduler's, None without one.
    """

    count: int
    index: int
    address: str
    port: int
    source: str
    job_id: str | None

    @property
    def control_port(self) -> int:
        """Where the launchers meet."""
        return self.port + 1


def find_nodes(
    environment: Mapping[str, str],
    *,
    count: int | None = None,
    index: int | None = None,
    address: str | None = None,
    port: int | None = None,
) -> Nodes:
    """The nodes of this job, and which of them this is.

    Args:
        environment: of the process.
        count: --nodes.
        index: --node-index.
        address: --address; in place of a scheduler's too.
        port: --port; in place of a scheduler's too.

    Raises:
        KitError: what is there is not enough, contradicts itself, or was not started once a node.
    """
    _refuse_bad_flags(count, index, port)
    found = _scheduled(environment) if count is None or count > 1 else _in_one(environment)
    if found is None:
        nodes = _from_flags(count, index, address, port)
    else:
        for flag, value, theirs in (("--nodes", count, found.count), ("--node-index", index, found.index)):
            if value is not None and value != theirs:
                raise KitError(f"{flag} {value}, but {found.source} says {theirs}: leave the flag out")
        given = port or found.port
        nodes = Nodes(found.count, found.index, address or found.address, given, found.source, found.job_id)
    if nodes.count == 1 and port is None:
        return Nodes(1, 0, "127.0.0.1", free_port(), nodes.source, nodes.job_id)
    return nodes


def job_port(job_id: str) -> int:
    """A port for a job, the same on all its nodes and, most likely, another one than that of the job beside it."""
    digest = int.from_bytes(hashlib.sha256(job_id.encode()).digest()[:8], "big")
    return PORTS[2 * (digest % (len(PORTS) // 2))]  # even: the next one is the launchers'


def free_port() -> int:
    """A port of this machine that nobody listens on, and neither on the next.

    Of PORTS: an ephemeral one may be another connection's by the time that rank 0 has imported its packages.
    """
    for port in random.sample(PORTS[:-1], 100):
        with socket.socket() as first, socket.socket() as second:
            try:
                first.bind(("", port))
                second.bind(("", port + 1))
            except OSError:
                continue
            return port
    raise KitError("no two free ports beside each other on this machine: name one with --port", ExitCode.RETRY)


def expand_hosts(text: str) -> list[str]:
    """Slurm's list of hosts as names: "n[1-2,5],gpu07" is n1, n2, n5, gpu07.

    Raises:
        KitError: it is no such list.
    """
    hosts: list[str] = []
    position = 0
    while position < len(text):
        match = _ENTRY.match(text, position)
        end = match.end() if match else position
        if match is None or end == position or (end < len(text) and text[end] != ","):
            raise KitError(f"cannot read Slurm's list of hosts '{printable(text)}': name node 0 with --address")
        before, ranges, after = match.groups()
        hosts.extend(f"{before}{number}{after}" for number in (_numbers(ranges) if ranges else [""]))
        position = end + 1
    return hosts


def _numbers(ranges: str) -> list[str]:
    numbers: list[str] = []
    for part in ranges.split(","):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise KitError(f"cannot read '[{printable(ranges)}]' in Slurm's list of hosts: name node 0 with --address")
        end = int(last) if dash else int(first)
        if end - int(first) >= MAX_NODES:
            raise KitError(f"'[{printable(ranges)}]' in Slurm's list of hosts is too long to be one")
        numbers.extend(str(number).zfill(len(first)) for number in range(int(first), end + 1))
    return numbers


# --- where nodes are read ---


def _refuse_bad_flags(count: int | None, index: int | None, port: int | None) -> None:
    if count is not None and not 1 <= count <= MAX_NODES:
        raise KitError(f"--nodes {count}: must be between 1 and {MAX_NODES}")
    if index is not None and index < 0:
        raise KitError(f"--node-index {index}: nodes are counted from 0")
    if port is not None and not 1_024 <= port <= 65_534:
        raise KitError(f"--port {port}: must be between 1024 and 65534 (the next one is used too)")


def _scheduled(environment: Mapping[str, str]) -> Nodes | None:
    """What a scheduler says, None without one."""
    for read in (_slurm, _operator, _indexed_job):
        nodes = read(environment)
        if nodes is not None:
            return nodes
    return None


def _in_one(environment: Mapping[str, str]) -> Nodes | None:
    """What a scheduler says to a process that was told to be the only node.

    A shell in an allocation of several nodes is in none of them as a step, so it may run a job of one node.
    """
    if "SLURM_JOB_ID" in environment and not _in_step(environment):
        return None
    return _scheduled(environment)


def _from_flags(count: int | None, index: int | None, address: str | None, port: int | None) -> Nodes:
    if count is None or count == 1:
        if index:
            raise KitError(f"--node-index {index} without --nodes: say how many there are")
        source = "--nodes 1" if count else "one node: no flag, no scheduler"
        return Nodes(1, 0, address or "127.0.0.1", port or DEFAULT_PORT, source, None)
    if index is None or not address:
        raise KitError(
            f"--nodes {count} needs --node-index (0 to {count - 1}) and --address (of node 0, the same on all nodes)"
        )
    return Nodes(count, _checked(index, count, "--node-index"), address, port or DEFAULT_PORT, "flags", None)


def _in_step(environment: Mapping[str, str]) -> bool:
    """Whether srun started this. A batch shell has SLURM_NODEID and SLURM_PROCID too, but no step."""
    return "SLURM_STEP_ID" in environment or "SLURM_STEPID" in environment


def _slurm(environment: Mapping[str, str]) -> Nodes | None:
    job_id = environment.get("SLURM_JOB_ID")
    if not job_id:
        return None
    in_step = _in_step(environment)
    names = ("SLURM_STEP_NUM_NODES",) * in_step + ("SLURM_NNODES", "SLURM_JOB_NUM_NODES")
    count = _number(environment, *names) or 1
    if not in_step:
        if count > 1:
            raise KitError(
                f"this Slurm job has {count} nodes, but mini-r1 launch was not started on each of them: start it with"
                " `srun --ntasks-per-node=1 mini-r1 launch ...`, or on this node alone with --nodes 1"
            )
        return Nodes(1, 0, "127.0.0.1", job_port(job_id), f"Slurm job {printable(job_id)}", job_id)
    tasks = _number(environment, "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS") or count
    if tasks != count:
        raise KitError(
            f"srun started {tasks} tasks on {count} node{'s' * (count > 1)}: mini-r1 launch runs once on each node and"
            " starts the workers itself; use `srun --ntasks-per-node=1`"
        )
    index = _checked(_number(environment, "SLURM_NODEID") or 0, count, "SLURM_NODEID")
    hosts = expand_hosts(environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST") or "")
    if count > 1 and len(hosts) != count:
        raise KitError(f"Slurm speaks of {count} nodes, but lists {len(hosts)}: name node 0 with --address")
    address = hosts[0] if hosts else "127.0.0.1"
    return Nodes(count, index, address, job_port(job_id), f"Slurm job {printable(job_id)}", job_id)


def _operator(environment: Mapping[str, str]) -> Nodes | None:
    """The PyTorchJob operator's (training-operator 1.9): RANK is the index of the NODE."""
    if "PET_RDZV_ENDPOINT" in environment or ":" in environment.get("PET_NNODES", ""):
        raise KitError(
            "this PyTorchJob is elastic (Worker replicas only, or elasticPolicy): mini-r1 launch needs a Master replica"
            " and a fixed number of nodes; take out elasticPolicy and make one replica the Master"
        )
    if "PET_NNODES" not in environment:
        strays = [name for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE") if name in environment]
        if strays:
            raise KitError(
                f"{', '.join(strays)} set in the environment: mini-r1 launch starts the workers itself. Start it once"
                " on each node, not under torchrun or accelerate launch, or unset these"
            )
        return None
    count = _number(environment, "PET_NNODES") or 0
    if not 1 <= count <= MAX_NODES:
        raise KitError(f"PET_NNODES={count}: must be between 1 and {MAX_NODES}")
    ranks = {_number(environment, name) for name in ("RANK", "PET_NODE_RANK") if name in environment}
    if len(ranks) != 1:
        raise KitError(
            "RANK and PET_NODE_RANK must both be the index of this node, as the PyTorchJob operator sets them"
        )
    index = _checked(ranks.pop() or 0, count, "RANK")
    address, port = environment.get("MASTER_ADDR", ""), _number(environment, "MASTER_PORT")
    if count > 1 and (not address or port is None):
        raise KitError("PET_NNODES without MASTER_ADDR and MASTER_PORT: was this started by the PyTorchJob operator?")
    job_id = address or None
    return Nodes(count, index, address or "127.0.0.1", port or DEFAULT_PORT, "the PyTorchJob operator", job_id)


def _indexed_job(environment: Mapping[str, str]) -> Nodes | None:
    """An Indexed Job's: the index comes from Kubernetes, the rest from the manifest."""
    address = environment.get("MINI_R1_MASTER_ADDR", "")
    if "MINI_R1_NODES" not in environment:
        if address:  # each pod would be a job of its own, all in one run directory
            raise KitError("MINI_R1_MASTER_ADDR without MINI_R1_NODES: set MINI_R1_NODES to the Job's completions")
        return None
    count = _number(environment, "MINI_R1_NODES") or 0
    if not 1 <= count <= MAX_NODES:
        raise KitError(f"MINI_R1_NODES={count}: must be between 1 and {MAX_NODES}")
    if count == 1:
        return Nodes(1, 0, "127.0.0.1", DEFAULT_PORT, "MINI_R1_NODES=1", None)
    index = _number(environment, "JOB_COMPLETION_INDEX")
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
    port = _number(environment, "MASTER_PORT") or job_port(address)
    return Nodes(count, index, address, port, "an Indexed Job", address)


def _number(environment: Mapping[str, str], *names: str) -> int | None:
    """The first of these variables that is set.

    Raises:
        KitError: it is no whole number.
    """
    for name in names:
        text = environment.get(name, "").strip()
        if text:
            if not (text.isascii() and text.isdecimal() and len(text) < 10):
                raise KitError(f"{name}={printable(text)}: must be a whole number")
            return int(text)
    return None


def _checked(index: int, count: int, name: str) -> int:
    if index >= count:
        raise KitError(f"{name} {index}: there are {count} nodes, counted from 0")
    return index
