"""The launcher's point: over all nodes GPUs minus one train, and the last one of node 0 generates."""

from __future__ import annotations

import itertools

import pytest
from mini_r1.errors import KitError
from mini_r1.machine.devices import CONTAINER_HINT
from mini_r1.machine.roles import assign, shape


@pytest.mark.parametrize("vllm", [True, False])
@pytest.mark.parametrize("nodes", range(1, 5))
@pytest.mark.parametrize("gpus", range(9))
def test_processes_are_all_gpus_but_vllms(gpus: int, nodes: int, vllm: bool) -> None:
    given = shape(gpus, nodes)
    if (vllm and gpus < 2) or (gpus == 0 and nodes > 1):
        with pytest.raises(KitError):
            assign(given, use_vllm=vllm, on_cpu=gpus == 0)
        return
    roles = assign(given, use_vllm=vllm, on_cpu=gpus == 0)
    assert roles.num_processes == (gpus * nodes - vllm if gpus else 1)
    assert roles.vllm_device == (f"cuda:{gpus - 1}" if vllm else None)
    assert [node.vllm_device for node in roles.nodes] == [str(gpus - 1) if vllm else None] + [None] * (nodes - 1)
    assert list(itertools.chain(*(node.ranks for node in roles.nodes))) == list(range(roles.num_processes))
    for node in roles.nodes:
        assert node.workers == max(1, len(node.training_devices))
        assert set(node.training_devices) | {node.vllm_device} - {None} == set(node.devices)
        assert node.vllm_device not in node.training_devices


@pytest.mark.parametrize(
    ("devices", "workers", "vllm"),
    [
        ([["0", "1"], ["0", "1", "2"]], [1, 3], "1"),
        ([["4", "5", "6", "7"], ["0"]], [3, 1], "7"),  # a subset, and the last of it
        ([["3", "1"], ["2"], ["0", "1"]], [1, 1, 2], "1"),
        ([["GPU-aaaa", "GPU-bbbb"]], [1], "GPU-bbbb"),
    ],
)
def test_nodes_of_different_size_share_ranks_in_order(devices: list[list[str]], workers: list[int], vllm: str) -> None:
    roles = assign(devices, use_vllm=True, on_cpu=False)
    assert [node.workers for node in roles.nodes] == workers
    assert [node.first_rank for node in roles.nodes] == [sum(workers[:index]) for index in range(len(workers))]
    assert roles.nodes[0].vllm_device == vllm
    assert roles.vllm_device == f"cuda:{len(devices[0]) - 1}"
    assert roles.num_processes == sum(map(len, devices)) - 1


def test_slots_of_the_cpu_have_the_same_roles() -> None:
    roles = assign(shape(3, 1), use_vllm=True, on_cpu=True)
    assert (roles.num_processes, roles.vllm_device, roles.nodes[0].training_devices) == (2, "cpu", ("0", "1"))


@pytest.mark.parametrize(
    ("devices", "vllm", "sentence"),
    [
        ([["0"]], False, "1 worker, no vLLM"),
        ([["0", "1"]], False, "2 workers, no vLLM"),
        ([["0", "1"]], True, "1 worker, vLLM on node 0's last device (cuda:1)"),
        ([["0", "1"], ["0", "1", "2"]], True, "4 workers on 2 nodes (1 + 3), vLLM on node 0's last device (cuda:1)"),
    ],
)
def test_roles_in_one_sentence(devices: list[list[str]], vllm: bool, sentence: str) -> None:
    assert assign(devices, use_vllm=vllm, on_cpu=False).describe() == sentence


SPARE = "vLLM needs a device that no worker trains on"
OR_NOT = "2 or more, or set use_vllm: false (--set use_vllm=false)"


@pytest.mark.parametrize(
    ("devices", "vllm", "message"),
    [
        ([["0"]], True, f"use_vllm: true, but there is 1 GPU: {SPARE}. Give the job {OR_NOT}"),
        ([[]], True, "there is no GPU"),
        ([[]], True, f"{OR_NOT}. {CONTAINER_HINT}"),
        ([["0"], ["0", "1"]], True, f"use_vllm: true, but node 0 has 1 GPU: {SPARE}. Give node 0 {OR_NOT}"),
        ([["0", "1"], []], True, "node 1 of 2 has no GPU"),
        ([[], ["0"]], False, "node 0 of 2 has no GPU"),
        ([], False, "no nodes"),
    ],
)
def test_an_impossible_shape_is_refused_with_what_to_do(devices: list[list[str]], vllm: bool, message: str) -> None:
    with pytest.raises(KitError) as refused:
        assign(devices, use_vllm=vllm, on_cpu=True)
    assert message in refused.value.message
    assert (CONTAINER_HINT in refused.value.message) == (devices == [[]])
    assert refused.value.exit_code == 78


def test_no_gpu_and_no_cpu_is_refused() -> None:
    with pytest.raises(KitError):
        assign([[]], use_vllm=False, on_cpu=False)
