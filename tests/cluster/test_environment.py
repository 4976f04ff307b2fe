"""Commands and environments of workers: on GPUs, on a CPU, on nodes of different size; and their description."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from mini_r1.launch import worker_environment
from mini_r1.launch.job import Job, LaunchOptions
from mini_r1.launch.worker_environment import WorkerStart, describe_starts, starts_to_dict, worker_starts
from mini_r1.machine.devices import Devices
from mini_r1.machine.nodes import Nodes
from mini_r1.machine.roles import assign
from mini_r1.recipe.recipe_file import find_recipe, load_recipe
from mini_r1.run.run_dir import RunDir

RECIPE = load_recipe(find_recipe("mini-r1-3b"))


def job(node: int, *overrides: str, on_cpu: bool = False, environment: Mapping[str, str] | None = None) -> Job:
    """Return a job of two nodes, on one of them."""
    return Job(
        LaunchOptions("my.yaml", overrides), Path("my.yaml"), RECIPE, RunDir(Path("/runs/my")),
        Devices((), on_cpu, "a test"), Nodes(2, node, "n1", 15_000, "a test", "7"), None, environment or {}, print,
    )  # fmt: skip


def starts(
    node: int,
    devices: list[list[str]],
    *,
    here: int | None = None,
    on_cpu: bool = False,
    environment: Mapping[str, str] | None = None,
    vllm_devices: int = 1,
) -> list[WorkerStart]:
    """Return the starts of a node's workers, as its own launcher or that of node `here` computes them."""
    made = job(node if here is None else here, "seed=7", "run_name=a b", on_cpu=on_cpu, environment=environment)
    roles = assign(devices, use_vllm=True, on_cpu=on_cpu, vllm_devices=vllm_devices)
    return worker_starts(made, roles, node, "zero3", Path("/scratch"))


def variables(start: WorkerStart) -> dict[str, str]:
    return {variable.name: variable.value for variable in start.variables}


def test_workers_of_uneven_nodes_have_consecutive_ranks() -> None:
    devices = [["0", "1"], ["4", "5", "6"]]
    every = [*starts(0, devices), *starts(1, devices)]
    places = [[variables(start)[name] for name in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE")] for start in every]
    assert places == [["0", "0", "1"], ["1", "0", "3"], ["2", "1", "3"], ["3", "2", "3"]]
    for start in every:
        own = variables(start)
        assert (own["WORLD_SIZE"], own["MASTER_ADDR"], own["MASTER_PORT"]) == ("4", "n1", "15000")


def test_vllm_gets_the_last_device() -> None:
    devices = [["2", "3", "5"], ["0", "1"]]
    first, second = starts(0, devices)
    assert variables(first)["CUDA_VISIBLE_DEVICES"] == variables(second)["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert variables(first)["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert variables(first)["MINI_R1_VLLM_DEVICE"] == "5"
    assert "MINI_R1_VLLM_DEVICE" not in variables(second)
    other = starts(1, devices)
    assert all(variables(start)["CUDA_VISIBLE_DEVICES"] == "0,1" for start in other)
    assert not any("MINI_R1_VLLM_DEVICE" in variables(start) for start in other)


@pytest.mark.parametrize(("on_cpu", "devices"), [(False, "5,7"), (True, "cpu,cpu")])
def test_each_vllm_process_gets_one_of_the_last_devices(on_cpu: bool, devices: str) -> None:
    (only,) = starts(0, [["2", "5", "7"], ["0", "1"]], vllm_devices=2, on_cpu=on_cpu)
    own = variables(only)
    assert (own["MINI_R1_VLLM_DEVICE"], own["WORLD_SIZE"], own["LOCAL_WORLD_SIZE"]) == (devices, "3", "1")
    assert own["CUDA_VISIBLE_DEVICES"] == ("" if on_cpu else "2")
    assert "MINI_R1_VLLM_SHARED" not in own
    reason = next(variable.reason for variable in only.variables if variable.name == "CUDA_VISIBLE_DEVICES")
    assert on_cpu or reason == "devices that train, without 5, 7, which are vLLM's"


@pytest.mark.parametrize(("on_cpu", "device"), [(False, "3"), (True, "cpu")])
def test_one_device_is_the_workers_and_vllms(on_cpu: bool, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_environment, "device_index", lambda _: "3")
    (only,) = starts(0, [["GPU-aa"]], on_cpu=on_cpu)
    own = variables(only)
    assert own["CUDA_VISIBLE_DEVICES"] == ("" if on_cpu else "GPU-aa")
    assert (own["MINI_R1_VLLM_DEVICE"], own["MINI_R1_VLLM_SHARED"], own["WORLD_SIZE"]) == (device, "1", "1")
    reasons = {variable.name: variable.reason for variable in only.variables}
    assert (reasons["WORLD_SIZE"], on_cpu or reasons["CUDA_VISIBLE_DEVICES"]) == (
        "1 worker",
        on_cpu or "devices that train",
    )


def test_vllm_gets_an_index_in_place_of_a_uuid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_environment, "device_index", {"GPU-bb": "6"}.__getitem__)
    devices = [["GPU-aa", "GPU-bb"], ["0"]]
    (only,) = starts(0, devices)
    assert variables(only)["CUDA_VISIBLE_DEVICES"] == "GPU-aa"
    assert variables(only)["MINI_R1_VLLM_DEVICE"] == "6"
    (shown,) = starts(0, devices, here=1)  # a dry run on the other node
    assert variables(shown)["MINI_R1_VLLM_DEVICE"] == "GPU-bb"


def test_on_a_cpu_nothing_sees_a_gpu() -> None:
    own = variables(starts(0, [["0", "1", "2"], ["0"]], on_cpu=True)[0])
    assert own["CUDA_VISIBLE_DEVICES"] == ""
    assert (own["MINI_R1_ACCELERATOR"], own["DS_ACCELERATOR"], own["MINI_R1_VLLM_DEVICE"]) == ("cpu", "cpu", "cpu")
    assert own["LOCAL_SIZE"] == "2"


def test_variables_of_other_launchers_are_taken_out_and_the_rest_stays() -> None:
    launchers = {
        "HOME": "/home/me", "ACCELERATE_USE_DEEPSPEED": "true", "TORCHELASTIC_USE_AGENT_STORE": "True", "RANK": "9",
        "PET_NNODES": "2", "MINI_R1_JOB_TOKEN": "t", "MINI_R1_VLLM_DEVICE": "3", "MINI_R1_VLLM_SHARED": "1",
        "VLLM_USE_V1": "1", "HF_TOKEN": "hf_1",
    }  # fmt: skip
    second = starts(0, [["0", "1", "2"], ["0"]], environment=launchers)[1].environment(launchers)
    assert second["HOME"] == "/home/me"
    assert second["HF_TOKEN"] == "hf_1"
    assert second["RANK"] == "1"
    assert not set(second) & (set(launchers) - {"HOME", "HF_TOKEN", "RANK"})


@pytest.mark.parametrize(
    ("environment", "cores", "threads"), [({}, 16, "5"), ({}, 2, "1"), ({"OMP_NUM_THREADS": "4"}, 16, None)]
)
def test_workers_share_the_cores_unless_the_user_set_the_threads(
    environment: dict[str, str], cores: int, threads: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_environment, "usable_cores", lambda: cores)
    first = starts(0, [["0", "1", "2", "3"], ["0"]], environment=environment)[0]
    assert variables(first).get("OMP_NUM_THREADS") == threads


def test_nccl_does_without_the_transports_that_the_gpus_lack() -> None:
    mine = {"NCCL_IB_DISABLE": "0"}  # the user's, which stays
    for lacks_p2p, expected in ((True, {"NCCL_P2P_DISABLE": "1"}), (False, {})):
        made = replace(job(0, environment=mine), lacks_p2p=lacks_p2p)
        start = worker_starts(made, assign([["0", "1"]], use_vllm=True, on_cpu=False), 0, None, Path("/scratch"))[0]
        assert {name: value for name, value in variables(start).items() if name.startswith("NCCL_")} == expected
        assert start.environment(mine)["NCCL_IB_DISABLE"] == "0"


INTERFACES = {"lo": ["127.0.0.1"], "usb0": ["169.254.3.1"], "eth1": ["10.0.0.7"]}


@pytest.mark.parametrize(
    ("interfaces", "on_cpu", "environment", "nccl"),
    [
        (INTERFACES, False, {}, "=eth1"),
        ({**INTERFACES, "ib0": ["10.1.0.7"]}, False, {}, None),  # NCCL prefers it
        (INTERFACES, False, {"NCCL_SOCKET_IFNAME": "eth0"}, None),  # the user's stays
        (INTERFACES, True, {}, None),
    ],
)
def test_on_several_nodes_nccl_gets_the_interface_over_which_they_met(
    interfaces: dict[str, list[str]],
    on_cpu: bool,
    environment: dict[str, str],
    nccl: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker_environment, "interface_addresses", lambda: interfaces)
    roles = assign([["0", "1"], ["0"]], use_vllm=True, on_cpu=on_cpu)
    made = job(1, on_cpu=on_cpu, environment=environment)
    own = variables(worker_starts(made, roles, 1, None, Path("/scratch"), "eth1")[0])
    assert own["GLOO_SOCKET_IFNAME"] == "eth1"
    assert own.get("NCCL_SOCKET_IFNAME") == nccl
    met_nobody = variables(worker_starts(made, roles, 1, None, Path("/scratch"))[0])
    assert not {"GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"} & set(met_nobody)


@pytest.mark.parametrize(
    ("environment", "on_cpu", "expected"),
    [({}, False, "expandable_segments:True"), ({"PYTORCH_CUDA_ALLOC_CONF": ""}, False, None), ({}, True, None)],
)
def test_on_gpus_the_allocator_grows_its_blocks_unless_the_user_set_it(
    environment: dict[str, str], on_cpu: bool, expected: str | None
) -> None:
    own = variables(starts(0, [["0", "1"], ["0"]], on_cpu=on_cpu, environment=environment)[0])
    assert own.get("PYTORCH_CUDA_ALLOC_CONF") == expected


def test_every_variable_is_shown_with_a_reason() -> None:
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
    made = job(0, "run_name=hf_" + "s" * 30, "x=\x1b[31m", on_cpu=True, environment=launchers)
    shown = worker_starts(made, assign([["0"]], use_vllm=False, on_cpu=True), 0, None, Path("/scratch"))
    text = describe_starts(shown, launchers)
    assert "s" * 30 not in text + str(starts_to_dict(shown, launchers))
    assert "\x1b" not in text
    assert "run_name=[redacted]" in text
