"""Which device does what: over all nodes the number of GPUs minus one trains, and vLLM has the last one of node 0.

assign([["0", "1", "2", "3"]], use_vllm=True, on_cpu=False).num_processes  # 3
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mini_r1.errors import KitError
from mini_r1.machine.devices import CONTAINER_HINT


@dataclass(frozen=True, slots=True)
class NodeRoles:
    """What one node does.

    Args:
        index: of the node, 0 for the first.
        devices: all that it was given.
        workers: training processes.
        first_rank: of its first worker; the others follow.
        training_devices: one for each worker; () on a plain CPU, which has one worker all the same.
        vllm_device: the id of the device that generates, on node 0 only.
    """

    index: int
    devices: tuple[str, ...]
    workers: int
    first_rank: int
    training_devices: tuple[str, ...]
    vllm_device: str | None

    @property
    def ranks(self) -> range:
        """The ranks of this node's workers."""
        return range(self.first_rank, self.first_rank + self.workers)


@dataclass(frozen=True, slots=True)
class Roles:
    """What every node does.

    Args:
        nodes: in order of their indices.
        num_processes: training processes over all nodes.
        vllm_device: "cuda:N" with N counted among node 0's devices, "cpu", or None without vLLM.
    """

    nodes: tuple[NodeRoles, ...]
    num_processes: int
    vllm_device: str | None

    def describe(self) -> str:
        """One sentence of it."""
        workers = " + ".join(str(node.workers) for node in self.nodes)
        training = f"{self.num_processes} worker{'s' * (self.num_processes > 1)}"
        where = f" on {len(self.nodes)} nodes ({workers})" if len(self.nodes) > 1 else ""
        vllm = f", vLLM on node 0's last device ({self.vllm_device})" if self.vllm_device else ", no vLLM"
        return f"{training}{where}{vllm}"


def assign(devices: Sequence[Sequence[str]], *, use_vllm: bool, on_cpu: bool) -> Roles:
    """Give every device its role.

    Args:
        devices: of each node, in order.
        use_vllm: whether vLLM generates; then node 0's last device is its own.
        on_cpu: whether devices are slots whose work runs on the CPU.

    Raises:
        KitError: node 0 cannot spare a device for vLLM, or one of several nodes has none.
    """
    if not devices:
        raise KitError("no nodes to give roles to")
    for index, given in enumerate(devices):
        if not given and len(devices) > 1:
            raise KitError(
                f"node {index} of {len(devices)} has no GPU: give every node at least one, or leave the node out"
            )
        if not given and not on_cpu:
            raise KitError("no GPU was given; without one the work runs on the CPU")
    if use_vllm and len(devices[0]) < 2:
        has = "1 GPU" if len(devices[0]) == 1 else "no GPU"
        where = "node 0 has" if len(devices) > 1 else "there is"
        raise KitError(
            f"use_vllm: true, but {where} {has}: vLLM takes a device of its own beside at least one that trains. Give"
            f" {'node 0' if len(devices) > 1 else 'the job'} 2 or more, or set use_vllm: false (--set use_vllm=false)"
            f"{'' if devices[0] else f'. {CONTAINER_HINT}'}"
        )
    nodes: list[NodeRoles] = []
    rank = 0
    for index, given in enumerate(devices):
        ids = tuple(given)
        vllm = ids[-1] if use_vllm and index == 0 else None
        training = ids[:-1] if vllm is not None else ids
        workers = max(1, len(training))
        nodes.append(NodeRoles(index, ids, workers, rank, training, vllm))
        rank += workers
    vllm_device = None
    if use_vllm:
        vllm_device = "cpu" if on_cpu else f"cuda:{len(devices[0]) - 1}"
    return Roles(tuple(nodes), rank, vllm_device)


def shape(gpus: int, nodes: int) -> list[list[str]]:
    """Nodes of the same size: device ids "0" to "G-1" on each.

    Args:
        gpus: on each node.
        nodes: how many.

    Raises:
        KitError: there is no such shape.
    """
    if gpus < 0 or nodes < 1:
        raise KitError(f"{gpus} GPUs on each of {nodes} nodes: GPUs must be 0 or more, nodes 1 or more")
    return [[str(index) for index in range(gpus)] for _ in range(nodes)]
