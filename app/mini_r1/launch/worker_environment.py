"""What each worker is started with: its command, and each variable with the reason for it.

What the launcher itself was started with is passed on, but for what belongs to another launcher.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mini_r1.console import printable
from mini_r1.machine.nodes import Nodes
from mini_r1.machine.redact import redact
from mini_r1.machine.roles import NodeRoles, Roles

JOB_TOKEN = "MINI_R1_JOB_TOKEN"  # noqa: S105  the variable's name
"""A secret that the launchers of one job share; without it they know one another by the job's id."""

TAKEN_OUT = {
    "ACCELERATE_": "settings of `accelerate launch`, which would override the recipe's",
    "FSDP_": "settings of `accelerate launch`, which would override the recipe's",
    "TORCHELASTIC_": "torchrun's: workers would look for its agent",
    "PET_": "torchrun's, set by the PyTorchJob operator",
    "GROUP_RANK": "torchrun's",
    "GROUP_WORLD_SIZE": "torchrun's",
    "ROLE_": "torchrun's",
    "MINI_R1_VLLM_DEVICE": "rank 0's alone, and computed",
    "VLLM_USE_V1": "vLLM 0.7.0's other engine, whose worker the kit cannot load weights into",
    JOB_TOKEN: "between launchers only",
}
"""Beginnings of names that no worker gets, and why."""


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable of a worker's environment.

    Args:
        name: of the variable.
        value: its text; may be empty.
        reason: why the worker gets it.
    """

    name: str
    value: str
    reason: str


@dataclass(frozen=True, slots=True)
class Start:
    """How one worker is started.

    Args:
        rank: over all nodes.
        node: that it runs on.
        command: program and arguments.
        variables: in place of, or beside, those of the launcher.
    """

    rank: int
    node: int
    command: tuple[str, ...]
    variables: tuple[Variable, ...]

    def environment(self, launchers: Mapping[str, str]) -> dict[str, str]:
        """The whole environment: the launcher's without what is taken out, and the worker's own."""
        kept = {name: value for name, value in launchers.items() if not name.startswith(tuple(TAKEN_OUT))}
        return {**kept, **{variable.name: variable.value for variable in self.variables}}


def train_command(recipe: Path, overrides: Sequence[str], run_dir: Path, deepspeed: str | None) -> tuple[str, ...]:
    """What every worker runs. Paths are absolute: the same on every node."""
    sets = [part for override in overrides for part in ("--set", override)]
    zero = ["--deepspeed", deepspeed] if deepspeed else []
    train = ["train", str(recipe.absolute()), *sets, "--run-dir", str(run_dir.absolute()), *zero]
    return (sys.executable, "-m", "mini_r1", *train)


def starts_of(
    node: NodeRoles,
    roles: Roles,
    nodes: Nodes,
    command: Sequence[str],
    *,
    on_cpu: bool,
    supervisor: Path,
    launchers: Mapping[str, str],
    vllm_device: str | None = None,
    cores: int | None = None,
    interface: str | None = None,
) -> list[Start]:
    """How the workers of a node are started, in order of their ranks.

    Args:
        node: whose workers.
        roles: of all nodes.
        nodes: where they meet.
        command: what each of them runs.
        on_cpu: whether the work runs on the CPU.
        supervisor: the scratch directory that launcher and workers share.
        launchers: the launcher's environment; what the user has set there stays where the kit only has a default.
        vllm_device: index of the device for vLLM, where it is named otherwise than in `node`.
        cores: that the workers share; None leaves the number of threads to them.
        interface: of this node, over which the nodes reach one another; None leaves it to gloo to find.
    """
    vllm = None if node.vllm_device is None else "cpu" if on_cpu else vllm_device or node.vllm_device
    return [
        Start(
            rank=rank,
            node=node.index,
            command=tuple(command),
            variables=(
                *_place(rank, node, roles, nodes),
                *(_cpu(node) if on_cpu else _gpu(node)),
                *([_vllm(vllm)] if vllm is not None and rank == 0 else []),
                Variable("MINI_R1_SUPERVISOR", str(supervisor), "heartbeats, stacks and the request to stop go here"),
                *_defaults(node, launchers, cores, interface),
            ),
        )
        for rank in node.ranks
    ]


def _place(rank: int, node: NodeRoles, roles: Roles, nodes: Nodes) -> list[Variable]:
    devices = f"{roles.num_processes} workers" if roles.num_processes > 1 else "1 worker"
    spared = ": all devices but vLLM's" if roles.vllm_device else ""
    return [
        Variable("RANK", str(rank), "this worker among all"),
        Variable("LOCAL_RANK", str(rank - node.first_rank), f"this worker among those of node {node.index}"),
        Variable("WORLD_SIZE", str(roles.num_processes), f"{devices}{spared}"),
        Variable("LOCAL_WORLD_SIZE", str(node.workers), f"workers of node {node.index}; nodes may differ"),
        Variable("MASTER_ADDR", nodes.address, "where rank 0 listens"),
        Variable("MASTER_PORT", str(nodes.port), "from the job, so that two jobs on one machine do not meet"),
    ]


def _gpu(node: NodeRoles) -> list[Variable]:
    spared = f", without {node.vllm_device}, which is vLLM's" if node.vllm_device else ""
    return [
        Variable("CUDA_VISIBLE_DEVICES", ",".join(node.training_devices), f"devices that train{spared}"),
        Variable("CUDA_DEVICE_ORDER", "PCI_BUS_ID", "indices are nvidia-smi's, whatever the GPUs are"),
    ]


def _cpu(node: NodeRoles) -> list[Variable]:
    return [
        Variable("MINI_R1_ACCELERATOR", "cpu", "the work runs on the CPU"),
        Variable("CUDA_VISIBLE_DEVICES", "", "no GPU, should there be one"),
        Variable("DS_ACCELERATOR", "cpu", "DeepSpeed guesses otherwise"),
        Variable("LOCAL_SIZE", str(node.workers), "DeepSpeed's collectives on a CPU ask for it"),
    ]


def _vllm(device: str) -> Variable:
    return Variable("MINI_R1_VLLM_DEVICE", device, "the child process that generates gets this device, and no other")


def _defaults(
    node: NodeRoles, launchers: Mapping[str, str], cores: int | None, interface: str | None
) -> list[Variable]:
    """What a user may have set otherwise."""
    wanted = [
        Variable("PYTHONUNBUFFERED", "1", "what a worker said last is there when it is killed"),
        Variable("PYTHONFAULTHANDLER", "1", "a crash in native code leaves a stack"),
        Variable("PYTHONSAFEPATH", "1", "a folder that is called like a package is not imported for it"),
        Variable("TOKENIZERS_PARALLELISM", "false", "its threads do not survive the fork of a loader process"),
    ]
    if cores is not None:
        threads = max(1, cores // node.workers)
        wanted.append(
            Variable("OMP_NUM_THREADS", str(threads), f"{cores} cores for {node.workers} workers; each would take all")
        )
    if interface is not None:
        # Debian and Ubuntu give a machine's own name the address 127.0.1.1, where no other node finds it.
        reason = "the launchers met over it; gloo would go by this host's name"
        wanted.append(Variable("GLOO_SOCKET_IFNAME", interface, reason))
    return [variable for variable in wanted if variable.name not in launchers]


# --- shown ---


def starts_as_text(starts: Sequence[Start], launchers: Mapping[str, str]) -> str:
    """Commands and environments for a person; what is the same for all workers of a node stands once."""
    blocks = []
    for node in dict.fromkeys(start.node for start in starts):
        here = [start for start in starts if start.node == node]
        common = [variable for variable in here[0].variables if all(variable in start.variables for start in here)]
        lines = [f"node {node}: {len(here)} worker{'s' * (len(here) > 1)}", *_told(common, launchers)]
        for start in here:
            lines.append(f"  rank {start.rank}")
            lines.extend(_told([variable for variable in start.variables if variable not in common], launchers))
        lines += ["  each runs", "    " + _shown(" ".join(map(_quoted, here[0].command)), launchers)]
        blocks.append("\n".join(lines))
    out = _taken_out(launchers)
    if out:
        blocks.append("\n".join(["taken out of the environment", *(f"  {name}  # {why}" for name, why in out.items())]))
    return "\n\n".join(blocks)


def starts_as_json(starts: Sequence[Start], launchers: Mapping[str, str]) -> dict[str, Any]:
    """The same for a program: `workers` with their variables and reasons, `taken_out` with reasons."""
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


def _told(variables: Sequence[Variable], launchers: Mapping[str, str]) -> list[str]:
    return [
        f"    {variable.name}={_shown(_quoted(variable.value), launchers)}  # {variable.reason}"
        for variable in variables
    ]


def _taken_out(launchers: Mapping[str, str]) -> dict[str, str]:
    return {
        printable(name): why
        for name in sorted(launchers)
        for beginning, why in TAKEN_OUT.items()
        if name.startswith(beginning)
    }


def _shown(text: str, launchers: Mapping[str, str]) -> str:
    return printable(redact(text, launchers))


def _quoted(text: str) -> str:
    return shlex.quote(text) if text else ""
