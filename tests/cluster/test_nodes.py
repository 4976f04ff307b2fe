"""The nodes of a job by Slurm, Kubeflow, an Indexed Job, RunPod and flags; what other schedulers say; wrong advice."""

from __future__ import annotations

import random
import re
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from mini_r1.errors import KitError
from mini_r1.machine.nodes import MAX_NODES, PORTS, Nodes, expand_hosts, find_nodes, free_port, job_port
from mini_r1.machine.other_schedulers import several_nodes

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
TRAIN_JOB = {
    "PET_NNODES": "2", "PET_NPROC_PER_NODE": "4", "PET_NODE_RANK": "1", "PET_MASTER_ADDR": "job-node-0-0.job",
    "PET_MASTER_PORT": "29400", "JOB_COMPLETION_INDEX": "1",
}  # fmt: skip
RUNPOD = {
    "NUM_NODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "192.0.2.2", "MASTER_PORT": "29400", "NUM_TRAINERS": "8",
    "WORLD_SIZE": "16", "PRIMARY_ADDR": "192.0.2.2", "PRIMARY_PORT": "29400", "NODE_ADDR": "192.0.2.3",
}  # fmt: skip
TORCHRUN = {"NNODES": "2", "NODE_RANK": "0", "MASTER_ADDR": "gpu1", "MASTER_PORT": "29500", "WORLD_SIZE": "8"}
RACKS = {**STEP, "SLURM_NODEID": "3", "SLURM_STEP_NUM_NODES": "4", "SLURM_STEP_NUM_TASKS": "4",
         "SLURM_STEP_NODELIST": "r[0-1]n[0-1]"}  # fmt: skip
# As Slurm 22.05 set them: the list is sorted, but the first component's node is node 0.
COMPONENTS = {
    "SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "0", "SLURM_NODEID": "1", "SLURM_STEP_NUM_NODES": "3",
    "SLURM_STEP_NUM_TASKS": "3", "SLURM_STEP_NODELIST": "n[1-3]", "SLURM_HET_SIZE": "2", "SLURMD_NODENAME": "n1",
    "SLURM_JOB_NODELIST_HET_GROUP_0": "n3", "SLURM_JOB_NODELIST_HET_GROUP_1": "n[1-2]",
    "SLURM_STEP_TASKS_PER_NODE": "1(x3)",
}  # fmt: skip
FLAGS = {"count": 2, "index": 1, "address": "192.0.2.9"}
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
        (TRAIN_JOB, (2, 1, "job-node-0-0.job")),
        (RUNPOD, (2, 1, "192.0.2.2")),
        (without(RUNPOD, "MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE"), (2, 1, "192.0.2.2")),
        (TORCHRUN, (2, 0, "gpu1")),
        ({**STEP, "NUM_NODES": "9", "NODE_RANK": "7", "SKYPILOT_NUM_NODES": "9"}, (2, 1, "n1")),  # a batch script's own
        (RACKS, (4, 3, "r0n0")),
        (COMPONENTS, (3, 1, "n3")),
        (
            {**{name.replace("HET_GROUP", "PACK_GROUP"): value for name, value in COMPONENTS.items()}},
            (3, 1, "n3"),
        ),
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
        (OPERATOR, "Kubeflow", "mini-r1-master-0"),
        (RUNPOD, "RunPod", "192.0.2.2"),
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
        ({"SLURM_JOB_ID": "7", "SLURM_STEPID": "0"}, {"count": 1}, Nodes(1, 0, "127.0.0.1", 4000, "--nodes 1", None)),
        ({"PET_NNODES": "1", "RANK": "0"}, {}, Nodes(1, 0, "127.0.0.1", 4000, "Kubeflow", None)),
        ({"MINI_R1_NODES": "1"}, {}, Nodes(1, 0, "127.0.0.1", 4000, "an Indexed Job", None)),
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
    assert [find_nodes(platform).port for platform in (TRAIN_JOB, RUNPOD, TORCHRUN)] == [29400, 29400, 29500]
    assert find_nodes(without(OPERATOR, "MASTER_PORT")).port == job_port("mini-r1-master-0")
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
        ({**OPERATOR, "PET_NNODES": ""}, {}, "WORLD_SIZE=2"),
        ({**OPERATOR, "PET_NNODES": "0"}, {}, "PET_NNODES=0: must be between 1 and 1024"),
        ({**OPERATOR, "MASTER_PORT": "80"}, {}, "PORT 80: must be between 1024 and 65534"),
        ({**RUNPOD, "MASTER_PORT": "70000"}, {}, "MASTER_PORT 70000: must be between 1024 and 65534"),
        (without(OPERATOR, "RANK", "PET_NODE_RANK"), {}, "PET_NNODES=2 without PET_NODE_RANK: give --nodes 2"),
        (without(RUNPOD, "NODE_RANK"), {}, "NUM_NODES=2 without NODE_RANK: give --nodes 2, --node-index (0 to 1)"),
        ({**RUNPOD, "NUM_NODES": "two"}, {}, "NUM_NODES=two: must be a whole number"),
        ({**INDEXED, "MINI_R1_NODES": "1025"}, {}, "MINI_R1_NODES=1025: must be between 1 and 1024"),
        ({**INDEXED, "MINI_R1_NODES": ""}, {}, "set MINI_R1_NODES to the Job's completions"),
        ({}, {"count": 2}, "--nodes 2 needs --node-index (0 to 1) and --address"),
        ({**STEP, "SLURM_STEP_NUM_TASKS": "8"}, {}, "8 tasks on 2 nodes"),
        ({**STEP, "SLURM_NODEID": "2"}, {}, "SLURM_NODEID 2"),
        ({**STEP, "SLURM_NODEID": "one"}, {}, "must be a whole number"),
        ({**STEP, "SLURM_STEP_NODELIST": "n1"}, {}, "lists 1"),
        ({**STEP, "SLURM_STEP_NODELIST": "n[1-"}, {}, "--address"),
        (STEP, {"count": 4}, "--nodes 4, but Slurm job 4711 has 2"),
        ({**STEP, "SLURM_STEP_TASKS_PER_NODE": "4(x2)", "SLURM_STEP_NUM_TASKS": "8"}, FLAGS, "4(x2) tasks on a node"),
        ({**STEP, "SLURMD_NODENAME": "n1"}, {}, "lists n2 as node 1, but this is n1: name node 0 with --address"),
        ({**RUNPOD, "LOCAL_RANK": "0"}, FLAGS, "env -u LOCAL_RANK -u WORLD_SIZE mini-r1 launch"),
        ({"LOCAL_WORLD_SIZE": "4"}, {"count": 1}, "LOCAL_WORLD_SIZE=4"),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "2", "OMPI_COMM_WORLD_SIZE": "2"}, {}, "torchrun -m mini_r1 train"),
        ({"MPI_LOCALNRANKS": "8"}, FLAGS, "MPI_LOCALNRANKS=8"),
        (STEP, {"index": 0}, "--node-index 0, but"),
        ({**OPERATOR, "PET_NNODES": "1:4"}, {}, "elastic"),
        ({"PET_RDZV_ENDPOINT": "job-worker-0:29400", "PET_RDZV_BACKEND": "c10d"}, {}, "elastic"),
        ({**OPERATOR, "PET_NODE_RANK": "0"}, {}, "PET_NODE_RANK"),
        ({**OPERATOR, "RANK": "5", "PET_NODE_RANK": "5"}, {}, "RANK 5: there are 2"),
        (without(OPERATOR, "MASTER_ADDR"), {}, "MASTER_ADDR"),
        (without(OPERATOR, "PET_NNODES", "PET_NODE_RANK"), {}, "--nodes N, --node-index (0 to N-1) and --address"),
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
        ({}, {"count": 1, "index": 1}, "there is 1 node, counted from 0"),
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


@pytest.mark.parametrize("environment", [STEP, BATCH, OPERATOR, TRAIN_JOB, RUNPOD, TORCHRUN, INDEXED, COMPONENTS])
def test_flags_win_over_every_environment(environment: dict[str, str]) -> None:
    assert find_nodes(environment, **FLAGS) == Nodes(2, 1, "192.0.2.9", 29500, "flags", None)
    assert place(find_nodes(environment, count=1)) == (1, 0, "127.0.0.1")
    damaged = {**environment, "SLURM_STEP_NODELIST": "n[1-", "SLURM_NODEID": "9", "PET_NNODES": "1:2", "RANK": "x"}
    assert find_nodes(damaged, **FLAGS).source == "flags"


SEVERAL: list[tuple[dict[str, str], str, int | None]] = [
    ({"SM_HOSTS": '["algo-1","algo-2"]', "SM_CURRENT_HOST": "algo-2", "SM_NUM_GPUS": "4"}, "SM_HOSTS", 2),
    ({"SM_RESOURCE_CONFIG": '{"current_host": "algo-2", "hosts": ["algo-1", "algo-2"]}'}, "SM_RESOURCE_CONFIG", 2),
    ({"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "0"}, "SKYPILOT_NUM_NODES=2", 2),
    ({"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2"}, "SKYPILOT_NODE_IPS", 2),
    ({"LSB_JOBID": "7", "LSB_HOSTS": "a a a b b"}, "LSB_HOSTS=a a a b b", 2),
    ({"LSB_MCPU_HOSTS": "a 4 b 4 c 4 "}, "LSB_MCPU_HOSTS", 3),
    ({"PBS_JOBID": "7", "PBS_NODEFILE": "NODEFILE"}, "PBS_NODEFILE", 2),
    ({"PBS_NODEFILE": "/var/spool/pbs/aux/7"}, "PBS_NODEFILE=/var/spool/pbs/aux/7", None),
    ({"PBS_NUM_NODES": "2"}, "PBS_NUM_NODES=2", 2),
    ({"NHOSTS": "3", "PE_HOSTFILE": "/no/such/file"}, "NHOSTS=3", 3),
    ({"FLUX_JOB_NNODES": "2", "FLUX_JOB_SIZE": "2"}, "FLUX_JOB_NNODES=2", 2),
    ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, "OMPI_COMM_WORLD_SIZE=2", None),
    ({"PMI_SIZE": "4", "PMI_RANK": "1"}, "PMI_SIZE=4", None),
    ({"AZ_BATCH_NODE_LIST": "10.0.0.4;10.0.0.5", "AZ_BATCH_MASTER_NODE": "10.0.0.4:6000"}, "AZ_BATCH_NODE_LIST", 2),
    ({"AZUREML_NODE_COUNT": "2"}, "AZUREML_NODE_COUNT=2", 2),
    ({"CLUSTER_SPEC": '{"cluster":{"workerpool0":["a:1"],"workerpool1":["b:1","c:1"]},"task":{"type":"workerpool1"}}'},
     "CLUSTER_SPEC", 3),
    ({"TF_CONFIG": '{"cluster": {"chief": ["a:1"], "worker": ["b:1"]}, "task": {"index": 0}}'}, "TF_CONFIG", 2),
    ({"TF_CONFIG": "{"}, "TF_CONFIG={", None),
    ({"VC_MASTER_NUM": "1", "VC_WORKER_NUM": "2", "VC_TASK_INDEX": "0"}, "VC_*_NUM=3", 3),
    ({"VC_MASTER_HOSTS": "a", "VC_WORKER_HOSTS": "b,c"}, "VC_*_HOSTS=3", 3),
    ({"LEPTON_JOB_TOTAL_WORKERS": "2", "LEPTON_JOB_WORKER_INDEX": "1"}, "LEPTON_JOB_TOTAL_WORKERS=2", 2),
    ({"AWS_BATCH_JOB_NUM_NODES": "2", "AWS_BATCH_JOB_NODE_INDEX": "0"}, "AWS_BATCH_JOB_NUM_NODES=2", 2),
    ({"BATCH_NODE_COUNT": "2"}, "BATCH_NODE_COUNT=2", 2),
    ({"DSTACK_NODES_NUM": "2", "DSTACK_NODE_RANK": "0"}, "DSTACK_NODES_NUM=2", 2),
    ({"BEAKER_REPLICA_COUNT": "2"}, "BEAKER_REPLICA_COUNT=2", 2),
    ({"LWS_GROUP_SIZE": "2"}, "LWS_GROUP_SIZE=2", 2),
    ({"MA_NUM_HOSTS": "2"}, "MA_NUM_HOSTS=2", 2),
    ({"DET_NUM_NODES": "2"}, "DET_NUM_NODES=2", 2),
    ({"ACME_NUM_NODES": "2"}, "ACME_NUM_NODES=2", 2),  # of an unknown scheduler
    ({"SLURM_NNODES": "2"}, "SLURM_NNODES=2", 2),  # in a container that gets a part of the variables
    ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "a"}, "WORLD_SIZE=2", None),  # nodes or processes
    ({"HOROVOD_WORLD_SIZE": "2"}, "HOROVOD_WORLD_SIZE=2", None),
    ({"NODE_RANK": "1"}, "NODE_RANK=1", None),
    ({"VC_TASK_INDEX": "1"}, "VC_TASK_INDEX=1", None),
    ({"OMPI_MCA_orte_default_hostfile": "NODEFILE"}, "OMPI_MCA_orte_default_hostfile", 2),
    ({"NODE_RANK": "0", "MASTER_ADDR": "192.0.2.2"}, "NODE_RANK=0", None),
]  # fmt: skip


@pytest.mark.parametrize(("environment", "seen", "count"), SEVERAL)
def test_several_nodes_of_another_scheduler_are_refused_with_the_flags_to_give(
    environment: dict[str, str], seen: str, count: int | None, tmp_path: Path
) -> None:
    (tmp_path / "nodes").write_text("a.cluster slots=4\na.cluster slots=4\nb.cluster slots=4\n")
    environment = {name: value.replace("NODEFILE", str(tmp_path / "nodes")) for name, value in environment.items()}
    with pytest.raises(KitError) as refused:
        find_nodes(environment)
    message = refused.value.message
    assert message.startswith(seen)
    assert message.isprintable()
    assert refused.value.exit_code == 78
    assert f"--nodes {count or 'N'}, --node-index (0 to {count - 1 if count else 'N-1'}) and --address" in message
    # Each piece of advice, followed.
    assert find_nodes(environment, **FLAGS).source == "flags"
    assert find_nodes(environment, count=1).count == 1


def test_a_long_value_is_cut_and_a_number_too_large_for_nodes_is_passed_over() -> None:
    fits = "a," + 58 * "b"
    assert several_nodes({"SKYPILOT_NODE_IPS": fits}) == (f"SKYPILOT_NODE_IPS={fits}", 2)
    assert several_nodes({"SKYPILOT_NODE_IPS": f"{fits}b"}) == (f"SKYPILOT_NODE_IPS={fits}...", 2)
    assert several_nodes({"NUM_NODES": 9 * "1"}) == ("NUM_NODES=111111111", 111111111)
    assert several_nodes({"NUM_NODES": 10 * "1"}) is None


@pytest.mark.parametrize(
    "environment",
    [
        {"SM_HOSTS": '["algo-1"]', "SM_CURRENT_HOST": "algo-1"},
        {"SKYPILOT_NUM_NODES": "1", "SKYPILOT_NODE_RANK": "0", "SKYPILOT_NODE_IPS": "10.0.0.1", "WORLD_SIZE": "8"},
        {"LSB_HOSTS": "a a a a", "LSB_MCPU_HOSTS": "a 4", "LSB_DJOB_HOSTFILE": "/not/mounted/here"},
        {"NUM_NODES": "1", "NODE_RANK": "0", "MASTER_ADDR": "192.0.2.2", "WORLD_SIZE": "8"},
        {"PET_NNODES": "1", "PET_NODE_RANK": "0", "PET_NPROC_PER_NODE": "4"},
        {"AZ_BATCH_NODE_LIST": "10.0.0.4"},
        {"CLUSTER_SPEC": '{"cluster":{"workerpool0":["a:2222"]},"task":{"type":"workerpool0","index":0}}'},
        {"VC_WORKER_NUM": "1", "VC_WORKER_HOSTS": "a"},
        {"AWS_BATCH_JOB_NUM_NODES": "1"},
        {"WORLD_SIZE": "1", "RANK": "0", "MASTER_ADDR": "job-master-0", "LOCAL_WORLD_SIZE": "1"},
        {"NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1"},
        {"MASTER_ADDR": "192.0.2.2", "MASTER_PORT": "29500"},
        {"NUM_WORKERS": "4", "GROUP_SIZE": "8", "NUM_NODES": "", "SM_HOSTS": "", "OMP_NUM_THREADS": "8"},
    ],
)
def test_one_node_of_another_scheduler_passes(environment: dict[str, str]) -> None:
    assert place(find_nodes(environment)) == (1, 0, "127.0.0.1")


ADVICE: list[tuple[dict[str, str], dict[str, Any], str, dict[str, str], dict[str, Any]]] = [
    ({**RACKS, "SLURM_STEP_NODELIST": "r[0-1"}, {}, "name node 0 with --address", {}, {"address": "r0n0"}),
    ({**RACKS, "SLURM_STEP_NODELIST": "r0n0"}, {}, "name node 0 with --address", {}, {"address": "r0n0"}),
    (without(COMPONENTS, "SLURM_JOB_NODELIST_HET_GROUP_0"), {}, "name node 0 with --address", {}, {"address": "n3"}),
    (STEP, {"count": 4}, "leave the flag out", {}, {"count": None}),
    (STEP, {"index": 0}, "or give --nodes N, --node-index (0 to N-1) and --address", {}, {**FLAGS}),
    ({**COMPONENTS, "SLURM_NNODES": "5"}, {}, "give --nodes N, --node-index (0 to N-1) and --address", {}, FLAGS),
    ({**COMPONENTS, "SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NUM_TASKS": "1", "SLURM_NODEID": "1"}, {},
     "SLURM_NODEID 1: there are 1 nodes, and 1 in this step; give --nodes N", {}, FLAGS),
    ({"SLURM_JOB_ID": "7", "SLURM_NNODES": "1", "SLURM_HET_SIZE": "2"}, {},
     "has 2 nodes or more, but mini-r1 launch was not started on each of them", {}, {"count": 1}),
    (BATCH, {}, "on this node alone with --nodes 1", {}, {"count": 1}),
    (BATCH, {}, "`srun --ntasks-per-node=1 mini-r1 launch ...`", STEP, {}),
    ({**STEP, "SLURM_STEP_NUM_TASKS": "8"}, {}, "`srun --ntasks-per-node=1`", {"SLURM_STEP_NUM_TASKS": "2"}, {}),
    ({**OPERATOR, "PET_NNODES": "1:4"}, {}, "or give --nodes N, --node-index (0 to N-1) and --address", {}, FLAGS),
    ({**OPERATOR, "PET_NODE_RANK": "0"}, {}, "give --nodes 2, --node-index (0 to 1) and --address", {}, FLAGS),
    (without(TRAIN_JOB, "PET_MASTER_ADDR"), {}, "give --nodes 2, --node-index (0 to 1) and --address", {}, FLAGS),
    (without(RUNPOD, "NODE_RANK"), {}, "give --nodes 2, --node-index (0 to 1) and --address", {}, FLAGS),
    (without(RUNPOD, "NODE_RANK"), {}, "--node-index (0 to 1)", {}, {"index": 1}),
    ({**RUNPOD, "MASTER_PORT": "80"}, {}, "or give --port", {}, {"port": 4000}),
    ({**RUNPOD, "MASTER_PORT": "x"}, {}, "must be a whole number", {}, {"port": 4000}),
    (without(INDEXED, "JOB_COMPLETION_INDEX"), {}, "completionMode: Indexed", {"JOB_COMPLETION_INDEX": "0"}, {}),
    (without(INDEXED, "JOB_COMPLETION_INDEX"), {}, "or give --nodes 3", {}, {**FLAGS, "count": 3}),
    (without(INDEXED, "MINI_R1_MASTER_ADDR"), {}, "JOB-0.SERVICE", {"MINI_R1_MASTER_ADDR": "job-0.service"}, {}),
    (without(INDEXED, "MINI_R1_NODES"), {}, "set MINI_R1_NODES to the Job's completions", {"MINI_R1_NODES": "3"}, {}),
    ({**INDEXED, "JOB_COMPLETION_INDEX": "3"}, {}, "set it to the Job's completions", {"MINI_R1_NODES": "4"}, {}),
    ({}, {"count": 2}, "needs --node-index (0 to 1) and --address", {}, FLAGS),
    ({}, {"index": 1}, "leave it out", {}, {"index": None}),
    ({}, {"index": 1}, "or give --nodes N, --node-index (0 to N-1) and --address", {}, FLAGS),
]  # fmt: skip


@pytest.mark.parametrize(
    "environment",
    [
        {"LOCAL_RANK": "1"},
        {"LOCAL_WORLD_SIZE": "8", "WORLD_SIZE": "8"},
        # torchrun's own
        {
            "LOCAL_RANK": "1", "RANK": "1", "GROUP_RANK": "0", "ROLE_RANK": "1", "LOCAL_WORLD_SIZE": "4",
            "WORLD_SIZE": "4", "GROUP_WORLD_SIZE": "1", "ROLE_WORLD_SIZE": "4", "MASTER_ADDR": "gpu1",
        },
        {"OMPI_COMM_WORLD_LOCAL_SIZE": "4", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "2"},
        {"MPI_LOCALNRANKS": "2", "PMI_SIZE": "2", "PMI_RANK": "1"},
    ],
)  # fmt: skip
def test_without_the_variables_that_the_error_names_the_launcher_starts(environment: dict[str, str]) -> None:
    for flags in ({}, FLAGS, {"count": 1}):
        with pytest.raises(KitError, match=r"`torchrun -m mini_r1 train`") as refused:
            find_nodes(environment, **flags)
        named = re.findall(r"-u (\w+)", refused.value.message)
        assert find_nodes(without(environment, *named), **flags).count == flags.get("count", 1)


@pytest.mark.parametrize(("environment", "flags", "advice", "changed", "given"), ADVICE)
def test_advice_that_is_followed_leads_to_another_result(
    environment: dict[str, str], flags: dict[str, Any], advice: str, changed: dict[str, str], given: dict[str, Any]
) -> None:
    with pytest.raises(KitError, match=re.escape(advice)):
        find_nodes(environment, **flags)
    nodes = find_nodes({**environment, **changed}, **{**flags, **given})
    assert given.get("address", nodes.address) == nodes.address


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("n1", ["n1"]),
        ("r[0-1]n[0-1]", ["r0n0", "r0n1", "r1n0", "r1n1"]),
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
