"""What each worker is started with: its command, and each variable with the reason for it."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mini_r1.console import printable
from mini_r1.launch.channel import interface_addresses
from mini_r1.launch.job import Job
from mini_r1.machine.control_groups import usable_cores
from mini_r1.machine.lifeline import SUPERVISOR, VLLM_DEVICE, VLLM_SHARED
from mini_r1.machine.nodes import JOB_TOKEN
from mini_r1.machine.nvidia import ALLOCATOR, NO_P2P, PCI_ORDER, device_index
from mini_r1.machine.redact import redact
from mini_r1.machine.roles import Roles
from mini_r1.recipe.builtin_models import SMALL_MODEL_THREADS

OVERRIDING = ("ACCELERATE_", "FSDP_")
"""Prefixes of `accelerate launch`'s settings."""
TAKEN_OUT = {
    **dict.fromkeys(OVERRIDING, "settings of `accelerate launch`, which would override the recipe's"),
    "TORCHELASTIC_": "torchrun's: workers would look for its agent",
    "PET_": "torchrun's, set by Kubeflow",
    "GROUP_": "torchrun's",
    "ROLE_": "torchrun's",
    VLLM_DEVICE: "for rank 0 only, and computed",
    VLLM_SHARED: "for rank 0 only, and computed",
    "VLLM_USE_V1": "vLLM 0.7.0's other engine, whose worker the kit cannot load weights into",
    JOB_TOKEN: "between launchers only",
}
"""Prefixes of variables that no worker gets, and why."""


class Variable(NamedTuple):
    """A variable of a worker's environment, and why the worker gets it."""

    name: str
    value: str
    reason: str


TOKENIZERS = Variable("TOKENIZERS_PARALLELISM", "false", "its threads do not survive the fork of a loader process")
EXPANDABLE_SEGMENTS = Variable(*ALLOCATOR, "PyTorch's allocator reserves less memory that it cannot use")


@dataclass(frozen=True, slots=True)
class WorkerStart:
    """How one worker is started: its rank over all nodes, its node, and what is added to the launcher's environment."""

    rank: int
    node: int
    command: tuple[str, ...]
    variables: tuple[Variable, ...]

    def environment(self, launchers: Mapping[str, str]) -> dict[str, str]:
        """Return the whole environment of the worker, from the launcher's."""
        kept = {name: value for name, value in launchers.items() if not name.startswith(tuple(TAKEN_OUT))}
        return {**kept, **{variable.name: variable.value for variable in self.variables}}


def worker_starts(
    job: Job, roles: Roles, index: int, deepspeed: str | None, scratch: Path, interface: str | None = None
) -> list[WorkerStart]:
    """Return how the workers of a node are started, in order of their ranks; paths are absolute.

    `scratch` is a directory shared by launcher and workers, `interface` the network interface between the nodes.
    """
    node, nodes, on_cpu = roles.nodes[index], job.nodes, job.devices.on_cpu
    sets = [part for override in job.options.overrides for part in ("--set", override)]
    zero = ["--deepspeed", deepspeed] if deepspeed else []
    train = ["train", str(job.path.absolute()), *sets, "--run-dir", str(job.run.path), *zero]
    command = (sys.executable, "-m", "mini_r1", *train)
    cores = usable_cores()
    if job.recipe.built_in:
        cores = min(cores, SMALL_MODEL_THREADS * node.workers)
    plural = "s" * (roles.num_processes > 1)
    spared = ": all devices except vLLM's" if roles.vllm_devices and not roles.shared else ""
    shared = [
        Variable("WORLD_SIZE", str(roles.num_processes), f"{roles.num_processes} worker{plural}{spared}"),
        Variable("LOCAL_WORLD_SIZE", str(node.workers), f"workers of node {index}; nodes may differ"),
        Variable("MASTER_ADDR", nodes.address, "where rank 0 listens"),
        Variable("MASTER_PORT", str(nodes.port), "from the job, so that two jobs on one machine do not meet"),
        Variable(SUPERVISOR, str(scratch), "folder for heartbeats, stacks and the request to stop"),
    ]
    vllm = () if roles.shared else node.vllm_devices
    shared += device_variables(node.training_devices, node.workers, on_cpu=on_cpu, vllm_devices=vllm)
    defaults = [
        Variable("PYTHONUNBUFFERED", "1", "the last output of a worker is there when it is killed"),
        Variable("PYTHONFAULTHANDLER", "1", "a crash in native code leaves a stack"),
        Variable("PYTHONSAFEPATH", "1", "a folder named like a package is not imported in its place"),
        TOKENIZERS,
        Variable("OMP_NUM_THREADS", str(max(1, cores // node.workers)), f"{cores} cores / {node.workers} workers"),
    ]
    if interface is not None:
        # Debian and Ubuntu give a machine's own name the address 127.0.1.1, where no other node finds it.
        reason = "the launchers met over it; gloo would use the address of this host's name"
        defaults.append(Variable("GLOO_SOCKET_IFNAME", interface, reason))
        # NCCL takes ib*, else the first interface but docker* and lo: a server's usb0 or a bridge of virtual machines.
        if not on_cpu and not any(name.startswith("ib") for name in interface_addresses()):
            reason = "as for gloo, by exactly this name; this node has no ib*, which NCCL would prefer"
            defaults.append(Variable("NCCL_SOCKET_IFNAME", f"={interface}", reason))
    if not on_cpu:
        defaults.append(EXPANDABLE_SEGMENTS)
    if job.lacks_p2p:
        reason = "the RTX 40 series with this driver has no such transport; accelerate refuses to train without it"
        defaults += [Variable(name, "1", reason) for name in NO_P2P]
    shared += [variable for variable in defaults if variable.name not in job.environment]
    starts = []
    for rank in node.ranks:
        own = [
            Variable("RANK", str(rank), "this worker among all"),
            Variable("LOCAL_RANK", str(rank - node.first_rank), f"this worker among those of node {index}"),
        ]
        if rank == 0:
            own += vllm_variables(roles, on_cpu=on_cpu, here=index == nodes.index)
        starts.append(WorkerStart(rank, index, command, (*own, *shared)))
    return starts


def vllm_variables(roles: Roles, *, on_cpu: bool, here: bool = True) -> list[Variable]:
    """Return what tells rank 0 where vLLM runs; only `here`, on node 0, can its UUIDs be looked up."""
    devices = roles.nodes[0].vllm_devices
    if not devices:
        return []
    ids = ["cpu" if on_cpu else device_index(device) if here else device for device in devices]
    each = "the devices of the processes that generate, one each"
    found = [Variable(VLLM_DEVICE, ",".join(ids), each if len(ids) > 1 else "the device of the process that generates")]
    if roles.shared:
        found.append(
            Variable(VLLM_SHARED, "1", "vLLM starts before this worker uses the device, and measures its memory")
        )
    return found


def device_variables(
    training: Sequence[str], workers: int, *, on_cpu: bool, vllm_devices: Sequence[str] = ()
) -> list[Variable]:
    """Return what gives a node's workers the devices that train; `vllm_devices` are only named in the reason."""
    if on_cpu:
        return [
            Variable("MINI_R1_ACCELERATOR", "cpu", "the work runs on the CPU"),
            Variable("CUDA_VISIBLE_DEVICES", "", "no GPU, even if there is one"),
            Variable("DS_ACCELERATOR", "cpu", "DeepSpeed guesses otherwise"),
            Variable("LOCAL_SIZE", str(workers), "DeepSpeed's collectives on a CPU ask for it"),
        ]
    are = "are" if len(vllm_devices) > 1 else "is"
    without = f", without {', '.join(vllm_devices)}, which {are} vLLM's" if vllm_devices else ""
    return [
        Variable("CUDA_VISIBLE_DEVICES", ",".join(training), f"devices that train{without}"),
        *(Variable(*order, "indices as in nvidia-smi, for GPUs of any kind") for order in PCI_ORDER.items()),
    ]


def describe_starts(starts: Sequence[WorkerStart], launchers: Mapping[str, str]) -> str:
    """Describe commands and environments; what all workers of a node share is listed once."""
    blocks = []
    for node in dict.fromkeys(start.node for start in starts):
        here = [start for start in starts if start.node == node]
        common = [variable for variable in here[0].variables if all(variable in start.variables for start in here)]
        lines = [f"node {node}: {len(here)} worker{'s' * (len(here) > 1)}", *_describe_variables(common, launchers)]
        for start in here:
            own = [variable for variable in start.variables if variable not in common]
            lines += [f"  rank {start.rank}", *_describe_variables(own, launchers)]
        command = " ".join(map(shlex.quote, here[0].command))
        blocks.append("\n".join([*lines, "  each runs", f"    {printable(redact(command, launchers))}"]))
    out = _taken_out(launchers)
    if out:
        blocks.append("\n".join(["taken out of the environment", *(f"  {name}  # {why}" for name, why in out.items())]))
    return "\n\n".join(blocks)


def starts_to_dict(starts: Sequence[WorkerStart], launchers: Mapping[str, str]) -> dict[str, Any]:
    """Return commands and environments for --json, with the reasons."""
    return {
        "workers": [
            {
                "rank": start.rank,
                "node": start.node,
                "command": [redact(part, launchers) for part in start.command],
                "environment": {variable.name: redact(variable.value, launchers) for variable in start.variables},
                "reasons": {variable.name: variable.reason for variable in start.variables},
            }
            for start in starts
        ],
        "taken_out": _taken_out(launchers),
    }


def _describe_variables(variables: Sequence[Variable], launchers: Mapping[str, str]) -> list[str]:
    return [
        f"    {name}={printable(redact(shlex.quote(value) if value else '', launchers))}  # {reason}"
        for name, value, reason in variables
    ]


def _taken_out(launchers: Mapping[str, str]) -> dict[str, str]:
    return {
        printable(name): why
        for name in sorted(launchers)
        for prefix, why in TAKEN_OUT.items()
        if name.startswith(prefix)
    }
