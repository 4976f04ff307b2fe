"""The nodes of a job by Slurm, the PyTorchJob operator, an Indexed Job and flags."""

from __future__ import annotations

import random
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import pytest
from mini_r1.errors import KitError
from mini_r1.machine.nodes import MAX_NODES, PORTS, Nodes, expand_hosts, find_nodes, free_port, job_port

STEP = {
    "SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "0", "SLURM_PROCID": "1", "SLURM_NODEID": "1", "SLURM_NNODES": "2",
    "SLURM_JOB_NUM_NODES": "2", "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS": "2",
    "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_STEP_NODELIST": "n[1-2]",
}  # fmt: skip
BATCH = {
    "SLURM_JOB_ID": "4711", "SLURM_PROCID": "0", "SLURM_NODEID": "0", "SLURM_NNODES": "2", "SLURM_JOB_NUM_NODES": "2",
    "SLURM_JOB_NODELIST": "n[1-2]",
}  # fmt: skip
OPERATOR = {
    "MASTER_ADDR": "mini-r1-master-0", "MASTER_PORT": "23456", "WORLD_SIZE": "2", "RANK": "1", "PET_NODE_RANK": "1",
    "PET_NNODES": "2", "PET_NPROC_PER_NODE": "auto",
}  # fmt: skip
INDEXED = {"MINI_R1_NODES": "3", "MINI_R1_MASTER_ADDR": "mini-r1-0.mini-r1", "JOB_COMPLETION_INDEX": "2"}


def without(environment: dict[str, str], *names: str) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name not in names}


def place(nodes: Nodes) -> tuple[int, int, str]:
    return nodes.count, nodes.index, nodes.address


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (STEP, (2, 1, "n1")),
        (without(STEP, "SLURM_STEP_NODELIST", "SLURM_STEP_NUM_NODES", "SLURM_STEP_NUM_TASKS"), (2, 1, "n1")),
        # A step on some of the job's nodes: the step counts.
        (
            {**STEP, "SLURM_JOB_NUM_NODES": "4", "SLURM_JOB_NODELIST": "n[1-4]", "SLURM_STEP_NODELIST": "n[3-4]"},
            (2, 1, "n3"),
        ),
        (OPERATOR, (2, 1, "mini-r1-master-0")),
        ({**OPERATOR, "RANK": "0", "PET_NODE_RANK": "0"}, (2, 0, "mini-r1-master-0")),
        (INDEXED, (3, 2, "mini-r1-0.mini-r1")),
    ],
)
def test_nodes_of_a_scheduler(environment: dict[str, str], expected: tuple[int, int, str]) -> None:
    nodes = find_nodes(environment)
    assert place(nodes) == expected
    assert nodes.control_port == nodes.port + 1


@pytest.mark.parametrize(
    ("environment", "source", "job_id"),
    [
        (STEP, "Slurm job 4711", "4711"),
        (without(STEP, "SLURM_NODEID"), "Slurm job 4711", "4711"),
        (OPERATOR, "the PyTorchJob operator", "mini-r1-master-0"),
        (INDEXED, "an Indexed Job", "mini-r1-0.mini-r1"),
    ],
)
def test_the_source_and_the_jobs_id(environment: dict[str, str], source: str, job_id: str) -> None:
    nodes = find_nodes(environment)
    assert (nodes.source, nodes.job_id) == (source, job_id)
    assert nodes.index == (0 if "SLURM_NODEID" not in environment and "SLURM_JOB_ID" in environment else nodes.index)


@pytest.mark.parametrize(
    ("environment", "flags", "expected"),
    [
        ({}, {}, Nodes(1, 0, "127.0.0.1", 4000, "one node: no flag, no scheduler", None)),
        ({}, {"count": 1}, Nodes(1, 0, "127.0.0.1", 4000, "--nodes 1", None)),
        ({}, {"address": "gpu1"}, Nodes(1, 0, "gpu1", 4000, "one node: no flag, no scheduler", None)),
        (BATCH, {"count": 1}, Nodes(1, 0, "127.0.0.1", 4000, "--nodes 1", None)),
        ({"SLURM_JOB_ID": "7"}, {}, Nodes(1, 0, "127.0.0.1", 4000, "Slurm job 7", "7")),
        # Neither the number of nodes, nor the index, nor their names are set.
        ({"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"}, {}, Nodes(1, 0, "127.0.0.1", 4000, "Slurm job 7", "7")),
        ({"SLURM_JOB_ID": "7", "SLURM_STEPID": "0"}, {"count": 1}, Nodes(1, 0, "127.0.0.1", 4000, "Slurm job 7", "7")),
        ({"PET_NNODES": "1", "RANK": "0"}, {}, Nodes(1, 0, "127.0.0.1", 4000, "the PyTorchJob operator", None)),
        ({"MINI_R1_NODES": "1"}, {}, Nodes(1, 0, "127.0.0.1", 4000, "MINI_R1_NODES=1", None)),
    ],
)
def test_one_node_with_a_port_of_the_users(environment: dict[str, str], flags: dict[str, Any], expected: Nodes) -> None:
    assert find_nodes(environment, port=4000, **flags) == expected


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {**BATCH, "SLURM_NNODES": "1", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "n1"},
        {
            **STEP,
            "SLURM_STEP_NUM_NODES": "1",
            "SLURM_STEP_NUM_TASKS": "1",
            "SLURM_NODEID": "0",
            "SLURM_STEP_NODELIST": "n2",
        },
        {**OPERATOR, "RANK": "0", "PET_NODE_RANK": "0", "PET_NNODES": "1"},
        {"MINI_R1_NODES": "1"},
        {"JOB_COMPLETION_INDEX": "3"},  # an Indexed Job of independent pods
    ],
)
def test_a_single_node_takes_a_free_port(environment: dict[str, str]) -> None:
    nodes = find_nodes(environment)
    assert place(nodes) == (1, 0, "127.0.0.1")
    assert 1024 <= nodes.port <= 65_534


def test_all_nodes_of_a_job_take_the_same_port_below_the_ephemeral_ones() -> None:
    first, second = find_nodes({**STEP, "SLURM_NODEID": "0"}), find_nodes(STEP)
    assert first.port == second.port == job_port("4711")
    assert first.job_id == second.job_id == "4711"
    ports = {job_port(str(job)) for job in range(3000)}
    assert all(port in PORTS and port + 1 in PORTS and port % 2 == 0 for port in ports)
    assert len(ports) > 2000  # ports of neighbouring jobs seldom collide
    assert find_nodes(OPERATOR).port == 23456
    assert find_nodes(INDEXED).port == job_port("mini-r1-0.mini-r1")
    assert find_nodes({**INDEXED, "MASTER_PORT": "23456"}).port == 23456


def test_nodes_with_other_versions_of_the_kit_take_the_same_port() -> None:
    assert (PORTS[0], PORTS[-1]) == (15_000, 29_999)
    assert [job_port(job) for job in ("4711", "mini-r1-0.mini-r1")] == [23_620, 22_984]


def test_a_free_port_is_one_of_two_adjacent_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    def listen(port: int) -> None:
        taken.enter_context(socket.socket()).bind(("", port))

    asked: list[tuple[Sequence[int], int]] = []

    def sample(population: Sequence[int], count: int) -> list[int]:
        asked.append((population, count))
        return candidates

    with ExitStack() as taken:
        listen(first := free_port())
        listen((second := free_port()) + 1)
        candidates = [first, second, third := free_port()]
        monkeypatch.setattr(random, "sample", sample)
        assert free_port() == third
        candidates.pop()
        with pytest.raises(KitError) as refused:
            free_port()
    assert asked == [(range(15_000, 29_999), 100)] * 2
    assert (refused.value.exit_code, "--port" in refused.value.message) == (150, True)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"count": 2, "index": 1, "address": "10.0.0.1"}, (2, 1, "10.0.0.1", 29500)),
        ({"count": 2, "index": 0, "address": "gpu1", "port": 4000}, (2, 0, "gpu1", 4000)),
        ({"count": 1, "port": 4000}, (1, 0, "127.0.0.1", 4000)),
        ({"port": 4000}, (1, 0, "127.0.0.1", 4000)),
        ({"port": 1024}, (1, 0, "127.0.0.1", 1024)),
        ({"port": 65_534}, (1, 0, "127.0.0.1", 65_534)),
        ({"count": 1024, "index": 1023, "address": "gpu1"}, (1024, 1023, "gpu1", 29500)),
    ],
)
def test_flags_name_nodes_without_a_scheduler(flags: dict[str, Any], expected: tuple[Any, ...]) -> None:
    nodes = find_nodes({}, **flags)
    assert (*place(nodes), nodes.port) == expected


def test_address_and_port_may_be_given_in_place_of_the_schedulers() -> None:
    nodes = find_nodes(STEP, count=2, index=1, address="ib-n1", port=5000)
    assert (*place(nodes), nodes.port) == (2, 1, "ib-n1", 5000)


def test_a_shell_in_an_allocation_may_run_a_job_of_one_node() -> None:
    assert place(find_nodes(BATCH, count=1)) == (1, 0, "127.0.0.1")


@pytest.mark.parametrize(
    "environment",
    [
        {**OPERATOR, "PET_NNODES": "1024"},
        {**INDEXED, "MINI_R1_NODES": "1024"},
        {**STEP, "SLURM_STEP_NUM_NODES": "1024", "SLURM_STEP_NUM_TASKS": "1024", "SLURM_STEP_NODELIST": "n[1-1024]"},
    ],
)
def test_as_many_nodes_as_there_may_be(environment: dict[str, str]) -> None:
    assert find_nodes(environment).count == MAX_NODES == 1024


@pytest.mark.parametrize(
    ("environment", "flags", "message"),
    [
        (BATCH, {}, "srun --ntasks-per-node=1"),
        (BATCH, {"count": 2}, "srun --ntasks-per-node=1"),
        ({**STEP, "SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NUM_TASKS": "2"}, {}, "2 tasks on 1 node: mini-r1"),
        ({**STEP, "SLURM_NODEID": "1000000000"}, {}, "SLURM_NODEID=1000000000: must be a whole number"),
        ({**STEP, "SLURM_NODEID": "100000000"}, {}, "SLURM_NODEID 100000000: there are 2"),
        ({**OPERATOR, "PET_NNODES": "1025"}, {}, "PET_NNODES=1025: must be between 1 and 1024"),
        ({**OPERATOR, "PET_NNODES": ""}, {}, "PET_NNODES=0: must be between 1 and 1024"),
        ({**OPERATOR, "PET_NNODES": "0"}, {}, "PET_NNODES=0: must be between 1 and 1024"),
        (without(OPERATOR, "MASTER_PORT"), {}, "MASTER_PORT"),
        (without(OPERATOR, "RANK", "PET_NODE_RANK"), {}, "RANK and PET_NODE_RANK"),
        ({**INDEXED, "MINI_R1_NODES": "1025"}, {}, "MINI_R1_NODES=1025: must be between 1 and 1024"),
        ({**INDEXED, "MINI_R1_NODES": ""}, {}, "MINI_R1_NODES=0: must be between 1 and 1024"),
        ({}, {"count": 2}, "--nodes 2 needs --node-index (0 to 1) and --address"),
        ({**STEP, "SLURM_STEP_NUM_TASKS": "8"}, {}, "8 tasks on 2 nodes"),
        ({**STEP, "SLURM_NODEID": "2"}, {}, "SLURM_NODEID 2"),
        ({**STEP, "SLURM_NODEID": "one"}, {}, "must be a whole number"),
        ({**STEP, "SLURM_STEP_NODELIST": "n1"}, {}, "lists 1"),
        ({**STEP, "SLURM_STEP_NODELIST": "n[1-"}, {}, "--address"),
        (STEP, {"count": 4}, "--nodes 4, but Slurm job 4711 has 2"),
        (STEP, {"count": 1}, "--nodes 1, but"),
        (STEP, {"index": 0}, "--node-index 0, but"),
        ({**OPERATOR, "PET_NNODES": "1:4"}, {}, "elastic"),
        ({"PET_RDZV_ENDPOINT": "job-worker-0:29400", "PET_RDZV_BACKEND": "c10d"}, {}, "elastic"),
        ({**OPERATOR, "PET_NODE_RANK": "0"}, {}, "PET_NODE_RANK"),
        ({**OPERATOR, "RANK": "5", "PET_NODE_RANK": "5"}, {}, "RANK 5: there are 2"),
        (without(OPERATOR, "MASTER_ADDR"), {}, "MASTER_ADDR"),
        (without(OPERATOR, "PET_NNODES", "PET_NODE_RANK"), {}, "torchrun"),
        ({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}, {}, "starts the workers itself"),
        (without(INDEXED, "JOB_COMPLETION_INDEX"), {}, "completionMode: Indexed, completions: 3 and parallelism: 3"),
        (without(INDEXED, "MINI_R1_MASTER_ADDR"), {}, "MINI_R1_MASTER_ADDR: set it to the name of the Job's first pod"),
        # each pod would be a separate job, all in one run directory
        (without(INDEXED, "MINI_R1_NODES"), {}, "MINI_R1_NODES to the Job's completions"),
        ({**INDEXED, "JOB_COMPLETION_INDEX": "3"}, {}, "MINI_R1_NODES=3: set it to the Job's completions"),
        ({"MINI_R1_NODES": "0"}, {}, "MINI_R1_NODES=0"),
        ({"MINI_R1_NODES": "\x1b[2J"}, {}, r"\x1b"),
        ({}, {"count": 2}, "--node-index"),
        ({}, {"count": 2, "index": 0}, "--address"),
        ({}, {"count": 2, "index": 2, "address": "n1"}, "there are 2 nodes"),
        ({}, {"index": 1}, "without --nodes"),
    ],
)
def test_incomplete_and_contradictory_values_are_refused(
    environment: dict[str, str], flags: dict[str, Any], message: str
) -> None:
    with pytest.raises(KitError) as refused:
        find_nodes(environment, **flags)
    assert message in refused.value.message
    assert refused.value.message.isprintable()
    assert refused.value.exit_code == 78


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("n1", ["n1"]),
        ("n[1-2,5]", ["n1", "n2", "n5"]),
        ("n[08-11]", ["n08", "n09", "n10", "n11"]),
        ("gpu07,n[1-2]-ib,login", ["gpu07", "n1-ib", "n2-ib", "login"]),
        ("n[1023]", ["n1023"]),
        ("n[600-1000]", [f"n{number}" for number in range(600, 1001)]),
        ("n[1-1024]", [f"n{number}" for number in range(1, 1025)]),
        ("", []),
    ],
)
def test_slurms_list_of_hosts(text: str, hosts: list[str]) -> None:
    assert expand_hosts(text) == hosts


@pytest.mark.parametrize("text", ["n[1-", "n]1[", ",", "n[a-b]", "n[1-2]]", "n[1-99999999]", "n[1-1025]", "n[1--2]"])
def test_no_list_of_hosts(text: str) -> None:
    with pytest.raises(KitError):
        expand_hosts(text)
