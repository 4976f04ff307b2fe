"""The roles of devices: the last N devices of node 0 are vLLM's, one by default, and all others train.

assign([["0", "1", "2", "3"]], use_vllm=True, on_cpu=False).num_processes  # 3
assign([["0"]], use_vllm=True, on_cpu=False).shared  # True: on one GPU vLLM's process and the worker share it
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mini_r1.errors import KitError
from mini_r1.machine.devices import CONTAINER_HINT

OR_NOT = "or set use_vllm: false (--set use_vllm=false)"


@dataclass(frozen=True, slots=True)
class NodeRoles:
    """The roles of one node's devices."""

    index: int
    devices: tuple[str, ...]
    workers: int
    first_rank: int
    training_devices: tuple[str, ...]  # one for each worker; () on a plain CPU, which has one worker as well
    vllm_devices: tuple[str, ...]  # on node 0 only: their ids there ("7", a UUID, a slot), one for each vLLM process

    @property
    def ranks(self) -> range:
        """The ranks of this node's workers."""
        return range(self.first_rank, self.first_rank + self.workers)


@dataclass(frozen=True, slots=True)
class Roles:
    """The roles of all nodes."""

    nodes: tuple[NodeRoles, ...]  # in order of their indices
    num_processes: int  # that train, over all nodes
    vllm_devices: tuple[str, ...]  # among node 0's devices, as TRL counts: "cuda:3", or "cpu"; () without vLLM

    @property
    def shared(self) -> bool:
        """Whether vLLM's process and the only worker have one device together."""
        return bool(self.vllm_devices) and self.nodes[0].vllm_devices == self.nodes[0].training_devices

    def describe(self) -> str:
        """Return one sentence about the roles."""
        workers = " + ".join(str(node.workers) for node in self.nodes)
        training = f"{self.num_processes} worker{'s' * (self.num_processes > 1)}"
        nodes = f" on {len(self.nodes)} nodes ({workers})" if len(self.nodes) > 1 else ""
        return f"{training}{nodes}, {self.describe_vllm()}"

    def describe_vllm(self) -> str:
        """Return where vLLM's processes run."""
        if self.shared:
            return f"vLLM on the same device ({self.vllm_devices[0]})"
        count, names = len(self.vllm_devices), ", ".join(self.vllm_devices)
        several = f"{count} devices" if count > 1 else "device"
        return f"vLLM on node 0's last {several} ({names})" if count else "no vLLM"


def assign(devices: Sequence[Sequence[str]], *, use_vllm: bool, on_cpu: bool, vllm_devices: int = 1) -> Roles:
    """Assign a role to every device of each node: with vLLM the last `vllm_devices` of node 0 are vLLM's.

    One device alone is shared by vLLM and a worker. Raise KitError if a node has no device, or node 0 too few.
    """
    if not devices:
        raise KitError("no nodes to assign roles to")
    if len(devices) > 1 and not all(devices):
        found = f"node {list(map(bool, devices)).index(False)} of {len(devices)} has no GPU"
        raise KitError(f"{found}: give every node at least one, or leave the node out")
    if not devices[0] and not on_cpu:
        raise KitError("no GPU was given; without one the work runs on the CPU")
    _refuse_number(devices, vllm_devices, use_vllm=use_vllm)
    shared = use_vllm and len(devices) == len(devices[0]) == 1
    nodes: list[NodeRoles] = []
    rank = 0
    for index, given in enumerate(devices):
        ids = tuple(given)
        first = len(ids) - vllm_devices * (use_vllm and index == 0)
        training = ids if shared else ids[:first]
        nodes.append(NodeRoles(index, ids, max(1, len(training)), rank, training, ids[first:]))
        rank += nodes[-1].workers
    names = tuple("cpu" if on_cpu else f"cuda:{index}" for index in range(len(devices[0])))
    return Roles(tuple(nodes), rank, names[len(names) - vllm_devices :] if use_vllm else ())


def _refuse_number(devices: Sequence[Sequence[str]], wanted: int, *, use_vllm: bool) -> None:
    """Raise KitError if node 0 can't give vLLM this number of devices and train on one."""
    if wanted < 1:
        raise KitError(f"--vllm-devices {wanted}: must be 1 or more; for no vLLM set use_vllm: false")
    if not use_vllm:
        if wanted > 1:
            raise KitError(f"--vllm-devices {wanted}, but use_vllm is false: set use_vllm: true, or leave it out")
        return
    count, several_nodes = len(devices[0]), len(devices) > 1
    if count == wanted == 1 and not several_nodes:
        if devices[0][0].startswith("MIG-"):  # its platform code reads an integer
            raise KitError(
                f"use_vllm: true, but the only device is a MIG slice, which vLLM 0.7.0 can't use: use a GPU, {OR_NOT}"
            )
        return
    if count > wanted:
        return
    subject, owner = (
        ("node 0 has", "node 0") if several_nodes else ("there is" if count < 2 else "there are", "the job")
    )
    has = f"{count} GPUs" if count > 1 else "1 GPU" if count else "no GPU"
    if not count:
        raise KitError(f"use_vllm: true, but {subject} {has}. Give {owner} at least one, {OR_NOT}. {CONTAINER_HINT}")
    if wanted == 1:  # node 0 of several
        raise KitError(
            f"use_vllm: true, but {subject} {has}: on several nodes vLLM needs a device that no worker trains on. Give"
            f" {owner} 2 or more, {OR_NOT}"
        )
    fix = f"ask for {count - 1} or fewer" if count > 1 else "leave the option out: vLLM then shares the GPU"
    raise KitError(
        f"--vllm-devices {wanted}, but {subject} {has}, and a worker needs one that is not vLLM's. To fix it, {fix}, or"
        f" give {owner} {wanted + 1} or more"
    )


def shape(gpus: int, nodes: int) -> list[list[str]]:
    """Return the devices of nodes of the same size, ids "0" to "G-1" on each."""
    return [[str(index) for index in range(gpus)] for _ in range(nodes)]
