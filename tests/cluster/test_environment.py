"""What workers are started with: on GPUs, on a CPU, on nodes of different size; and what is shown of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mini_r1.launch.worker_environment import WorkerStart, describe_starts, starts_to_dict, train_command, worker_starts
from mini_r1.machine.nodes import Nodes
from mini_r1.machine.roles import assign

TWO = Nodes(2, 0, "n1", 15_000, "a test", "7")
COMMAND = train_command(Path("my.yaml"), ["seed=7", "run_name=a b"], Path("runs/my"), "zero3")


def starts(
    node: int, devices: list[list[str]], *, vllm: bool = True, on_cpu: bool = False, **options: Any
) -> list[WorkerStart]:
    roles = assign(devices, use_vllm=vllm, on_cpu=on_cpu)
    options = {"launchers": {}, "supervisor": Path("/scratch"), **options}
    return worker_starts(roles.nodes[node], roles, TWO, COMMAND, on_cpu=on_cpu, **options)


def variables(start: WorkerStart) -> dict[str, str]:
    return {variable.name: variable.value for variable in start.variables}


def test_workers_of_uneven_nodes_have_their_place() -> None:
    devices = [["0", "1"], ["4", "5", "6"]]
    every = [*starts(0, devices), *starts(1, devices)]
    places = [[variables(start)[name] for name in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE")] for start in every]
    assert places == [["0", "0", "1"], ["1", "0", "3"], ["2", "1", "3"], ["3", "2", "3"]]
    for start in every:
        own = variables(start)
        assert (own["WORLD_SIZE"], own["MASTER_ADDR"], own["MASTER_PORT"]) == ("4", "n1", "15000")


def test_the_last_device_is_vllms_and_no_workers() -> None:
    devices = [["2", "3", "5"], ["0", "1"]]
    first, second = starts(0, devices)
    assert variables(first)["CUDA_VISIBLE_DEVICES"] == variables(second)["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert variables(first)["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert variables(first)["MINI_R1_VLLM_DEVICE"] == "5"
    assert "MINI_R1_VLLM_DEVICE" not in variables(second)
    other = starts(1, devices)
    assert all(variables(start)["CUDA_VISIBLE_DEVICES"] == "0,1" for start in other)
    assert not any("MINI_R1_VLLM_DEVICE" in variables(start) for start in other)


def test_vllm_gets_an_index_where_devices_have_uuids() -> None:
    (only,) = starts(0, [["GPU-aa", "GPU-bb"], ["0"]], vllm_device="6")
    assert variables(only)["CUDA_VISIBLE_DEVICES"] == "GPU-aa"
    assert variables(only)["MINI_R1_VLLM_DEVICE"] == "6"


def test_on_a_cpu_nothing_sees_a_gpu() -> None:
    own = variables(starts(0, [["0", "1", "2"], ["0"]], on_cpu=True)[0])
    assert own["CUDA_VISIBLE_DEVICES"] == ""
    assert (own["MINI_R1_ACCELERATOR"], own["DS_ACCELERATOR"], own["MINI_R1_VLLM_DEVICE"]) == ("cpu", "cpu", "cpu")
    assert own["LOCAL_SIZE"] == "2"


def test_what_belongs_to_other_launchers_is_taken_out_and_the_rest_stays() -> None:
    launchers = {
        "HOME": "/home/me", "ACCELERATE_USE_DEEPSPEED": "true", "TORCHELASTIC_USE_AGENT_STORE": "True", "RANK": "9",
        "PET_NNODES": "2", "MINI_R1_JOB_TOKEN": "t", "MINI_R1_VLLM_DEVICE": "3", "VLLM_USE_V1": "1", "HF_TOKEN": "hf_1",
    }  # fmt: skip
    second = starts(0, [["0", "1", "2"], ["0"]], launchers=launchers)[1].environment(launchers)
    assert second["HOME"] == "/home/me"
    assert second["HF_TOKEN"] == "hf_1"
    assert second["RANK"] == "1"
    assert not set(second) & (set(launchers) - {"HOME", "HF_TOKEN", "RANK"})


@pytest.mark.parametrize(
    ("launchers", "cores", "threads"),
    [({}, 16, "5"), ({}, 2, "1"), ({}, None, None), ({"OMP_NUM_THREADS": "4"}, 16, None)],
)
def test_cores_are_shared_unless_the_user_said_otherwise(
    launchers: dict[str, str], cores: int | None, threads: str | None
) -> None:
    first = starts(0, [["0", "1", "2", "3"], ["0"]], launchers=launchers, cores=cores)[0]
    assert variables(first).get("OMP_NUM_THREADS") == threads


def test_every_variable_has_a_reason_and_is_shown_with_it() -> None:
    devices = [["0", "1", "2"], ["0"]]
    every = [*starts(0, devices), *starts(1, devices)]
    assert all(variable.reason for start in every for variable in start.variables)
    text = describe_starts(every, {})
    for start in every:
        for variable in start.variables:
            assert f"{variable.name}=" in text
            assert f"# {variable.reason}" in text
    assert "'run_name=a b' --run-dir" in text
    assert "--deepspeed zero3" in text


def test_no_secret_and_no_escape_is_shown() -> None:
    launchers = {"HF_TOKEN": "hf_" + "s" * 30, "TORCHELASTIC_\x1b[31m": "1"}
    command = train_command(Path("my.yaml"), ["run_name=hf_" + "s" * 30, "x=\x1b[31m"], Path("runs/my"), None)
    roles = assign([["0"]], use_vllm=False, on_cpu=True)
    shown = worker_starts(
        roles.nodes[0], roles, TWO, command, on_cpu=True, supervisor=Path("/scratch"), launchers=launchers
    )  # fmt: skip
    text = describe_starts(shown, launchers)
    assert "s" * 30 not in text + str(starts_to_dict(shown, launchers))
    assert "\x1b" not in text
    assert "run_name=[redacted]" in text
