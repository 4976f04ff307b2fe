"""The roles of devices: over all nodes the number of GPUs minus one trains, and node 0's last device is vLLM's.

assign([["0", "1", "2", "3"]], use_vllm=True, on_cpu=False).num_processes  # 3
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mini_r1.errors import KitError
from mini_r1.machine.devices import CONTAINER_HINT


@dataclass(frozen=True, slots=True)
class NodeRoles:
    """The roles of one node's devices."""

    index: int
    devices: tuple[str, ...]
    workers: int
    first_rank: int
    training_devices: tuple[str, ...]  # one for each worker; () on a plain CPU, which has one worker as well
    vllm_device: str | None  # on node 0 only: its id there ("7", a UUID, a slot)

    @property
    def ranks(self) -> range:
        """The ranks of this node's workers."""
        return range(self.first_rank, self.first_rank + self.workers)


@dataclass(frozen=True, slots=True)
class Roles:
    """The roles of all nodes."""

    nodes: tuple[NodeRoles, ...]  # in order of their indices
    num_processes: int  # that train, over all nodes
    vllm_device: str | None  # among node 0's devices, as TRL counts: "cuda:3", or "cpu"; None without vLLM

    def describe(self) -> str:
        """Return one sentence about the roles."""
        workers = " + ".join(str(node.workers) for node in self.nodes)
        training = f"{self.num_processes} worker{'s' * (self.num_processes > 1)}"
        nodes = f" on {len(self.nodes)} nodes ({workers})" if len(self.nodes) > 1 else ""
        vllm = f", vLLM on node 0's last device ({self.vllm_device})" if self.vllm_device else ", no vLLM"
        return f"{training}{nodes}{vllm}"


def assign(devices: Sequence[Sequence[str]], *, use_vllm: bool, on_cpu: bool) -> Roles:
    """Assign a role to every device of each node, or raise KitError if node 0 has none for vLLM, or another none."""
    if not devices:
        raise KitError("no nodes to assign roles to")
    if len(devices) > 1 and not all(devices):
        found = f"node {list(map(bool, devices)).index(False)} of {len(devices)} has no GPU"
        raise KitError(f"{found}: give every node at least one, or leave the node out")
    if not devices[0] and not on_cpu:
        raise KitError("no GPU was given; without one the work runs on the CPU")
    if use_vllm and len(devices[0]) < 2:
        has = "1 GPU" if len(devices[0]) == 1 else "no GPU"
        subject, owner = ("node 0 has", "node 0") if len(devices) > 1 else ("there is", "the job")
        raise KitError(
            f"use_vllm: true, but {subject} {has}: vLLM needs a device that no worker trains on. Give {owner} 2 or"
            " more, or set use_vllm: false (--set use_vllm=false)"
            f"{'' if devices[0] else f'. {CONTAINER_HINT}'}"
        )
    nodes: list[NodeRoles] = []
    rank = 0
    for index, given in enumerate(devices):
        ids = tuple(given)
        vllm = ids[-1] if use_vllm and index == 0 else None
        training = ids[:-1] if vllm is not None else ids
        nodes.append(NodeRoles(index, ids, max(1, len(training)), rank, training, vllm))
        rank += nodes[-1].workers
    vllm_device = ("cpu" if on_cpu else f"cuda:{len(devices[0]) - 1}") if use_vllm else None
    return Roles(tuple(nodes), rank, vllm_device)


def shape(gpus: int, nodes: int) -> list[list[str]]:
    """Return the devices of nodes of the same size, ids "0" to "G-1" on each."""
    return [[str(index) for index in range(gpus)] for _ in range(nodes)]
