"""The launcher's point: the last N devices of node 0 are vLLM's, and all others train; one GPU does both."""

from __future__ import annotations

import itertools

import pytest
from mini_r1.errors import KitError
from mini_r1.machine.devices import CONTAINER_HINT
from mini_r1.machine.roles import assign, shape


@pytest.mark.parametrize("nodes", [1, 2, 4])
@pytest.mark.parametrize("gpus", [0, 1, 3, 8])
def test_without_vllm_every_device_trains(gpus: int, nodes: int) -> None:
    given = shape(gpus, nodes)
    if gpus == 0 and nodes > 1:
        with pytest.raises(KitError):
            assign(given, use_vllm=False, on_cpu=True)
        return
    roles = assign(given, use_vllm=False, on_cpu=gpus == 0)
    assert (roles.num_processes, roles.vllm_devices, roles.shared) == (gpus * nodes if gpus else 1, (), False)
    assert [node.training_devices for node in roles.nodes] == [node.devices for node in roles.nodes]
    assert list(itertools.chain(*(node.ranks for node in roles.nodes))) == list(range(roles.num_processes))


@pytest.mark.parametrize("number", range(1, 5))
@pytest.mark.parametrize("nodes", [1, 2, 3])
@pytest.mark.parametrize("gpus", [0, 1, 2, 3, 4, 8])
def test_vllm_gets_the_last_devices_of_node_0(gpus: int, nodes: int, number: int) -> None:
    given, on_cpu = shape(gpus, nodes), bool(gpus % 2)
    shared = gpus == nodes == number == 1
    if gpus <= number and not shared:
        with pytest.raises(KitError) as refused:
            assign(given, use_vllm=True, on_cpu=on_cpu, vllm_devices=number)
        assert refused.value.exit_code == 78
        return
    roles = assign(given, use_vllm=True, on_cpu=on_cpu, vllm_devices=number)
    first = roles.nodes[0]
    last = range(gpus - number, gpus)
    assert roles.shared == shared
    assert roles.num_processes == (1 if shared else gpus * nodes - number)
    assert roles.vllm_devices == tuple("cpu" if on_cpu else f"cuda:{index}" for index in last)
    assert first.vllm_devices == tuple(map(str, last))
    assert first.training_devices == (("0",) if shared else first.devices[:-number])
    assert all(node.vllm_devices == () and node.training_devices == node.devices for node in roles.nodes[1:])
    assert all(node.workers == len(node.training_devices) for node in roles.nodes)
    assert list(itertools.chain(*(node.ranks for node in roles.nodes))) == list(range(roles.num_processes))


@pytest.mark.parametrize(
    ("devices", "number", "workers", "vllm", "names"),
    [
        ([["0", "1"], ["0", "1", "2"]], 1, [1, 3], ("1",), ("cuda:1",)),
        ([["4", "5", "6", "7"], ["0"]], 1, [3, 1], ("7",), ("cuda:3",)),  # a subset, and the last of it
        ([["4", "5", "6", "7"], ["0"]], 3, [1, 1], ("5", "6", "7"), ("cuda:1", "cuda:2", "cuda:3")),
        ([["3", "1", "0"], ["2"], ["0", "1"]], 2, [1, 1, 2], ("1", "0"), ("cuda:1", "cuda:2")),
        ([["GPU-aaaa", "GPU-bbbb"]], 1, [1], ("GPU-bbbb",), ("cuda:1",)),
        ([["GPU-aaaa"]], 1, [1], ("GPU-aaaa",), ("cuda:0",)),
    ],
)
def test_nodes_of_different_size_share_ranks_in_order(
    devices: list[list[str]], number: int, workers: list[int], vllm: tuple[str, ...], names: tuple[str, ...]
) -> None:
    roles = assign(devices, use_vllm=True, on_cpu=False, vllm_devices=number)
    assert [node.workers for node in roles.nodes] == workers
    assert [node.first_rank for node in roles.nodes] == [sum(workers[:index]) for index in range(len(workers))]
    assert (roles.nodes[0].vllm_devices, roles.vllm_devices) == (vllm, names)
    assert roles.num_processes == sum(workers)


@pytest.mark.parametrize(
    ("devices", "vllm", "number", "sentence"),
    [
        ([["0"]], False, 1, "1 worker, no vLLM"),
        ([["0"]], True, 1, "1 worker, vLLM on the same device (cuda:0)"),
        ([["0", "1"]], False, 1, "2 workers, no vLLM"),
        ([["0", "1"]], True, 1, "1 worker, vLLM on node 0's last device (cuda:1)"),
        ([["0", "1", "2"]], True, 2, "1 worker, vLLM on node 0's last 2 devices (cuda:1, cuda:2)"),
        ([["0", "1"], ["0", "1", "2"]], True, 1, "4 workers on 2 nodes (1 + 3), vLLM on node 0's last device (cuda:1)"),
    ],
)
def test_roles_in_one_sentence(devices: list[list[str]], vllm: bool, number: int, sentence: str) -> None:
    assert assign(devices, use_vllm=vllm, on_cpu=False, vllm_devices=number).describe() == sentence


OR_NOT = "or set use_vllm: false (--set use_vllm=false)"


@pytest.mark.parametrize(
    ("devices", "vllm", "number", "message"),
    [
        ([[]], True, 1, f"use_vllm: true, but there is no GPU. Give the job at least one, {OR_NOT}. {CONTAINER_HINT}"),
        ([["0"], ["0", "1"]], True, 1, "node 0 has 1 GPU: on several nodes vLLM needs a device that no worker trains"),
        ([["0"], ["0", "1"]], True, 1, f"Give node 0 2 or more, {OR_NOT}"),
        ([["MIG-1"]], True, 1, f"the only device is a MIG slice, which vLLM 0.7.0 can't use: use a GPU, {OR_NOT}"),
        (
            [["0"]],
            True,
            2,
            "--vllm-devices 2, but there is 1 GPU, and a worker needs one that is not vLLM's. To fix it, leave",
        ),
        (
            [["0", "1"]],
            True,
            2,
            "there are 2 GPUs, and a worker needs one that is not vLLM's. To fix it, ask for 1 or fewer, or give the",
        ),
        (
            [["0", "1"], ["0"]],
            True,
            2,
            "node 0 has 2 GPUs, and a worker needs one that is not vLLM's. To fix it, ask for 1",
        ),
        ([list("0123")], True, 4, "ask for 3 or fewer, or give the job 5 or more"),
        ([list("0123")], True, 9, "ask for 3 or fewer, or give the job 10 or more"),
        ([list("0123")], True, 0, "--vllm-devices 0: must be 1 or more; for no vLLM set use_vllm: false"),
        ([list("0123")], False, 0, "--vllm-devices 0: must be 1 or more"),
        ([list("0123")], False, 2, "--vllm-devices 2, but use_vllm is false: set use_vllm: true, or leave it out"),
        ([["0", "1"], []], True, 1, "node 1 of 2 has no GPU"),
        ([[], ["0"]], False, 1, "node 0 of 2 has no GPU"),
        ([], False, 1, "no nodes"),
    ],
)
def test_an_impossible_shape_is_refused_with_what_to_do(
    devices: list[list[str]], vllm: bool, number: int, message: str
) -> None:
    with pytest.raises(KitError) as refused:
        assign(devices, use_vllm=vllm, on_cpu=True, vllm_devices=number)
    assert message in refused.value.message
    assert (CONTAINER_HINT in refused.value.message) == (devices == [[]])
    assert refused.value.exit_code == 78


def test_no_gpu_and_no_cpu_is_refused() -> None:
    with pytest.raises(KitError):
        assign([[]], use_vllm=False, on_cpu=False)
