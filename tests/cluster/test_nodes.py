"""Which node of which job this is, as Slurm, the PyTorchJob operator, an Indexed Job and flags say it."""

from __future__ import annotations

from typing import Any

import pytest
from mini_r1.cluster.nodes import PORTS, Nodes, expand_hosts, job_port, nodes_of
from mini_r1.errors import KitError

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
        # A step on part of the job's nodes: the step counts.
        (
            {**STEP, "SLURM_JOB_NUM_NODES": "4", "SLURM_JOB_NODELIST": "n[1-4]", "SLURM_STEP_NODELIST": "n[3-4]"},
            (2, 1, "n3"),
        ),
        (OPERATOR, (2, 1, "mini-r1-master-0")),
        ({**OPERATOR, "RANK": "0", "PET_NODE_RANK": "0"}, (2, 0, "mini-r1-master-0")),
        (INDEXED, (3, 2, "mini-r1-0.mini-r1")),
    ],
)
def test_what_a_scheduler_says(environment: dict[str, str], expected: tuple[int, int, str]) -> None:
    nodes = nodes_of(environment)
    assert place(nodes) == expected
    assert nodes.control_port == nodes.port + 1


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
def test_one_node_meets_nobody_and_takes_a_free_port(environment: dict[str, str]) -> None:
    nodes = nodes_of(environment)
    assert place(nodes) == (1, 0, "127.0.0.1")
    assert 1024 <= nodes.port <= 65_534


def test_all_nodes_of_a_job_take_the_same_port_below_the_ephemeral_ones() -> None:
    first, second = nodes_of({**STEP, "SLURM_NODEID": "0"}), nodes_of(STEP)
    assert first.port == second.port == job_port("4711")
    assert first.job_id == second.job_id == "4711"
    ports = {job_port(str(job)) for job in range(3000)}
    assert all(port in PORTS and port + 1 in PORTS and port % 2 == 0 for port in ports)
    assert len(ports) > 2000  # jobs beside each other seldom meet
    assert nodes_of(OPERATOR).port == 23456


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"count": 2, "index": 1, "address": "10.0.0.1"}, (2, 1, "10.0.0.1", 29500)),
        ({"count": 2, "index": 0, "address": "gpu1", "port": 4000}, (2, 0, "gpu1", 4000)),
        ({"count": 1, "port": 4000}, (1, 0, "127.0.0.1", 4000)),
        ({"port": 4000}, (1, 0, "127.0.0.1", 4000)),
    ],
)
def test_flags_name_nodes_where_no_scheduler_does(flags: dict[str, Any], expected: tuple[Any, ...]) -> None:
    nodes = nodes_of({}, **flags)
    assert (*place(nodes), nodes.port) == expected


def test_address_and_port_may_be_given_in_place_of_the_schedulers() -> None:
    nodes = nodes_of(STEP, count=2, index=1, address="ib-n1", port=5000)
    assert (*place(nodes), nodes.port) == (2, 1, "ib-n1", 5000)


def test_a_shell_in_an_allocation_may_run_a_job_of_one_node() -> None:
    assert place(nodes_of(BATCH, count=1)) == (1, 0, "127.0.0.1")


@pytest.mark.parametrize(
    ("environment", "flags", "words"),
    [
        (BATCH, {}, "srun --ntasks-per-node=1"),
        ({**STEP, "SLURM_STEP_NUM_TASKS": "8"}, {}, "8 tasks on 2 nodes"),
        ({**STEP, "SLURM_NODEID": "2"}, {}, "SLURM_NODEID 2"),
        ({**STEP, "SLURM_NODEID": "one"}, {}, "must be a whole number"),
        ({**STEP, "SLURM_STEP_NODELIST": "n1"}, {}, "lists 1"),
        ({**STEP, "SLURM_STEP_NODELIST": "n[1-"}, {}, "--address"),
        (STEP, {"count": 4}, "--nodes 4, but Slurm job 4711 says 2"),
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
        # each pod would be a job of its own, all in one run directory
        (without(INDEXED, "MINI_R1_NODES"), {}, "MINI_R1_NODES to the Job's completions"),
        ({**INDEXED, "JOB_COMPLETION_INDEX": "3"}, {}, "MINI_R1_NODES=3: set it to the Job's completions"),
        ({"MINI_R1_NODES": "0"}, {}, "MINI_R1_NODES=0"),
        ({"MINI_R1_NODES": "\x1b[2J"}, {}, r"\x1b"),
        ({}, {"count": 2}, "--node-index"),
        ({}, {"count": 2, "index": 0}, "--address"),
        ({}, {"count": 2, "index": 2, "address": "n1"}, "there are 2 nodes"),
        ({}, {"index": 1}, "without --nodes"),
        ({}, {"count": 0}, "between 1 and"),
        ({}, {"index": -1}, "counted from 0"),
        ({}, {"port": 80}, "between 1024 and 65534"),
        ({}, {"port": 65535}, "between 1024 and 65534"),
    ],
)
def test_what_is_not_enough_or_contradicts_itself_is_refused(
    environment: dict[str, str], flags: dict[str, Any], words: str
) -> None:
    with pytest.raises(KitError) as refused:
        nodes_of(environment, **flags)
    assert words in refused.value.message
    assert refused.value.message.isprintable()
    assert refused.value.exit_code == 78


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("n1", ["n1"]),
        ("n[1-2,5]", ["n1", "n2", "n5"]),
        ("n[08-11]", ["n08", "n09", "n10", "n11"]),
        ("gpu07,n[1-2]-ib,login", ["gpu07", "n1-ib", "n2-ib", "login"]),
        ("", []),
    ],
)
def test_slurms_list_of_hosts(text: str, hosts: list[str]) -> None:
    assert expand_hosts(text) == hosts


@pytest.mark.parametrize("text", ["n[1-", "n]1[", ",", "n[a-b]", "n[1-2]]", "n[1-99999999]", "n[1--2]"])
def test_no_list_of_hosts(text: str) -> None:
    with pytest.raises(KitError):
        expand_hosts(text)
