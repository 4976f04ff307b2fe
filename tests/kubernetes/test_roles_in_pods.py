"""The numbers in the manifests against the kit's own: what `mini-r1 launch` makes of the environment that a pod gets.

No pod is started here. The environment is the one of environment.py; the GPUs of a pod are a stand-in for the NVIDIA
library.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mini_r1.machine.devices import given_devices
from mini_r1.machine.nodes import Nodes, find_nodes
from mini_r1.machine.nvidia import ListedGpu
from mini_r1.machine.roles import Roles, assign
from mini_r1.plan.disk_space import host_memory_gib, shared_memory_gib
from mini_r1.plan.planner import Plan, make_plan
from mini_r1.plan.recipe_plans import Hardware, declared_hardware
from mini_r1.recipe.fields import Recipe
from mini_r1.recipe.recipe_file import load_recipe

from tests.conftest import command
from tests.kubernetes.environment import SECRET, Pod, gib, pods_of, recipe_file
from tests.kubernetes.manifests import OVERLAYS, Manifest, needs_kustomize, pods
from tests.kubernetes.manifests import overlay as overlay_of

pytestmark = [pytest.mark.real, needs_kustomize]

WITH_VLLM = {
    "job-4xh100": [4], "job-8xh100": [8], "indexed-job-2x8h100": [8, 8], "pytorchjob-2x8h100": [8, 8],
    "kueue": [8, 8], "rdma": [8, 8],
}  # fmt: skip
"""Overlays in which vLLM generates, and the GPUs of each pod."""
TRAINING = {"job-1gpu": [1], **WITH_VLLM, "demo-cpu": [0]}
"""All overlays that train."""
LAUNCHED = [name for name in TRAINING if name != "demo-cpu"]
LIKE_OTHERS = {"job-8xh100", "kueue", "rdma"}
"""Overlays made from another one of LAUNCHED: the launcher starts the same way in their pods."""
OF_A_FILESYSTEM = 0.05
"""Share of a volume that its filesystem keeps: ext4's reserve for root."""
NVML = """
'''A stand-in for the NVIDIA library: GPUs of 80 GiB, as many as STAND_IN_GPUS says. It has no other answers.'''
import os

class NVMLError(Exception):
    pass

class Memory:
    total, used = 80 * 2**30, 0

def nvmlInit():
    pass

def nvmlShutdown():
    pass

def nvmlDeviceGetCount():
    return int(os.environ["STAND_IN_GPUS"])

def nvmlDeviceGetHandleByIndex(index):
    return index

def nvmlSystemGetDriverVersion():
    return "550.54.14"

def nvmlSystemGetCudaDriverVersion_v2():
    return 12040

def nvmlDeviceGetMemoryInfo(handle):
    return Memory

def nvmlDeviceGetName(handle):
    return "a stand-in"

def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    def unknown(*args):
        raise NVMLError(name)
    return unknown
"""


@dataclass(frozen=True)
class Planned:
    """What the launchers of an overlay's pods make of it."""

    pods: list[Pod]
    nodes: list[Nodes]
    recipe: Recipe
    made_for: Hardware
    plan: Plan

    @property
    def roles(self) -> Roles:
        """Roles of every node."""
        assert self.plan.roles is not None
        return self.plan.roles


def planned(manifests: Sequence[Manifest], folder: Path, gpus: Sequence[int] | None = None) -> Planned:
    """Call what the launcher calls, with the environment of each pod's launcher.

    Args:
        manifests: of the overlay.
        folder: for the recipes.
        gpus: that the driver lists in each pod; None is what the pod asks for.
    """
    found = pods_of(manifests)
    listed = [pod.gpus for pod in found] if gpus is None else gpus
    nodes = [find_nodes(pod.environment) for pod in found]
    devices = [
        given_devices(pod.environment, driver=lambda count=count: [ListedGpu()] * count or None)  # type: ignore[misc]
        for pod, count in zip(found, listed, strict=True)
    ]
    path = recipe_file(found[0], manifests, folder)
    recipe, made_for = load_recipe(path), declared_hardware(path)
    assert made_for is not None
    on_cpu = devices[0].on_cpu
    roles = assign([given.ids for given in devices], use_vllm=recipe.use_vllm, on_cpu=on_cpu)
    plan = make_plan(recipe, roles, gpu_memory_gib=made_for.gpu_memory_gib, on_cpu=on_cpu)
    return Planned(found, nodes, recipe, made_for, plan)


@pytest.fixture
def of(tmp_path: Path) -> Callable[[str], Planned]:
    """The plan of an overlay."""
    return lambda overlay: planned(overlay_of(overlay), tmp_path)


def together(nodes: Sequence[Nodes]) -> bool:
    """Whether these nodes find one another, and none is there twice."""
    agreed = {(node.count, node.address, node.port, node.job_id) for node in nodes}
    return len(agreed) == 1 and [node.index for node in nodes] == list(range(nodes[0].count))


# --- roles ---


def test_no_overlay_that_trains_is_left_out() -> None:
    training = []
    for name in OVERLAYS:
        words = {pod.spec["containers"][0].get("args", [""])[0] for pod in pods(overlay_of(name))}
        training += [name] if words & {"launch", "demo"} else []
    assert sorted(training) == sorted(TRAINING)


@pytest.mark.parametrize("overlay", TRAINING)
def test_each_overlay_asks_for_the_gpus_its_recipe_was_made_for(of: Callable[[str], Planned], overlay: str) -> None:
    found = of(overlay)
    assert [pod.gpus for pod in found.pods] == TRAINING[overlay]
    assert [len(node) for node in found.made_for.devices] == TRAINING[overlay]
    assert found.made_for.gpu_memory_gib == {"demo-cpu": None, "job-1gpu": 24.0}.get(overlay, 80.0)


@pytest.mark.parametrize("overlay", WITH_VLLM)
def test_all_gpus_but_one_train_and_vllm_has_the_last_of_node_0(of: Callable[[str], Planned], overlay: str) -> None:
    found, gpus = of(overlay), WITH_VLLM[overlay]
    assert found.recipe.use_vllm
    assert found.plan.errors == []
    assert found.plan.num_processes == sum(gpus) - 1
    assert [node.workers for node in found.roles.nodes] == [gpus[0] - 1, *gpus[1:]]
    assert found.plan.vllm_devices == (f"cuda:{gpus[0] - 1}",)
    assert [node.vllm_devices for node in found.roles.nodes] == [(str(gpus[0] - 1),), *[()] * (len(gpus) - 1)]


def test_one_gpu_trains_and_runs_vllm_too(of: Callable[[str], Planned]) -> None:
    found = of("job-1gpu")
    assert found.recipe.use_vllm
    assert found.roles.shared
    assert (found.plan.errors, found.plan.num_processes, found.plan.vllm_devices) == ([], 1, ("cuda:0",))


def test_the_demo_needs_no_gpu(of: Callable[[str], Planned]) -> None:
    found = of("demo-cpu")
    assert (found.plan.errors, found.plan.num_processes, found.plan.vllm_devices) == ([], 1, ())
    assert found.plan.on_cpu


@pytest.mark.parametrize("overlay", TRAINING)
def test_the_pods_of_an_overlay_get_the_same_job(of: Callable[[str], Planned], overlay: str) -> None:
    found = of(overlay)
    assert len(found.nodes) == len(TRAINING[overlay])
    assert together(found.nodes)


def test_the_pods_of_an_indexed_job_have_the_name_that_they_look_for() -> None:
    manifests = overlay_of("indexed-job-2x8h100")
    pod = pods_of(manifests)[0]
    job, service = pod.of.of["metadata"]["name"], pod.of.spec["subdomain"]
    assert find_nodes(pod.environment).address == f"{job}-0.{service}"
    [headless] = [one for one in manifests if one["kind"] == "Service"]
    assert headless["metadata"]["name"] == service
    assert headless["spec"]["clusterIP"] == "None"
    assert headless["spec"]["publishNotReadyAddresses"] is True


def test_pods_with_different_jobs_are_noticed() -> None:
    manifests = overlay_of("indexed-job-2x8h100")
    first, second = (find_nodes(pod.environment) for pod in pods_of(manifests))
    assert together([first, second])
    assert not together([first, first])
    moved = find_nodes({**pods_of(manifests)[1].environment, "MINI_R1_MASTER_ADDR": "another-0.another"})
    assert not together([first, moved])


# --- nodes of different size ---


def test_a_pytorchjob_may_have_nodes_of_different_size(tmp_path: Path) -> None:
    manifests = overlay_of("pytorchjob-2x8h100")
    [job] = [one for one in manifests if one["kind"] == "PyTorchJob"]
    resources = job["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["containers"][0]["resources"]
    for part in ("requests", "limits"):
        resources[part]["nvidia.com/gpu"] = 4
    found = planned(manifests, tmp_path)
    assert [pod.gpus for pod in found.pods] == [8, 4]
    assert (found.plan.errors, found.plan.num_processes, found.plan.vllm_devices) == ([], 11, ("cuda:7",))
    assert [node.workers for node in found.roles.nodes] == [7, 4]
    assert together(found.nodes)


@pytest.mark.parametrize(
    ("gpus", "workers", "vllm"), [([8, 4], [7, 4], "cuda:7"), ([2, 8], [1, 8], "cuda:1"), ([4, 1], [3, 1], "cuda:3")]
)
def test_an_indexed_job_whose_nodes_list_different_numbers_of_gpus(
    tmp_path: Path, gpus: list[int], workers: list[int], vllm: str
) -> None:
    found = planned(overlay_of("indexed-job-2x8h100"), tmp_path, gpus)
    assert [node.workers for node in found.roles.nodes] == workers
    assert (found.plan.num_processes, found.plan.vllm_devices) == (sum(gpus) - 1, (vllm,))


# --- memory and disk ---


@pytest.mark.parametrize("overlay", TRAINING)
def test_every_pod_has_the_memory_of_the_plan_and_of_its_volumes(of: Callable[[str], Planned], overlay: str) -> None:
    found = of(overlay)
    plan = found.plan
    assert plan.setup is not None
    for pod, node in zip(found.pods, found.roles.nodes, strict=True):
        # The plan's own figure is node 0's; another node has a worker more, and no vLLM.
        need = host_memory_gib(plan.setup, node.workers)
        assert need == plan.host_memory_gib or pod.index > 0
        assert need + pod.in_memory_gib <= pod.memory_gib, pod.of.where


@pytest.mark.parametrize("overlay", TRAINING)
def test_shared_memory_is_enough_for_the_plan_and_nccl(of: Callable[[str], Planned], overlay: str) -> None:
    found = of(overlay)
    assert found.plan.setup is not None
    for pod, node in zip(found.pods, found.roles.nodes, strict=True):
        volume = pod.volume("/dev/shm")["emptyDir"]
        assert volume["medium"] == "Memory"
        need = shared_memory_gib(found.plan.setup, node.workers)
        assert gib(volume["sizeLimit"]) >= max(need, 1.0)  # 1 GiB: below it the doctor warns


@pytest.mark.parametrize("overlay", TRAINING)
def test_the_claim_holds_a_whole_run(of: Callable[[str], Planned], overlay: str) -> None:
    found = of(overlay)
    assert found.plan.disk is not None
    name = found.pods[0].volume("/workspace/runs")["persistentVolumeClaim"]["claimName"]
    [claim] = [
        one for one in overlay_of("setup") if one["kind"] == "PersistentVolumeClaim" and one["metadata"]["name"] == name
    ]
    capacity_gib = gib(claim["spec"]["resources"]["requests"]["storage"]) * (1 - OF_A_FILESYSTEM)
    assert found.plan.disk.total <= capacity_gib


@pytest.mark.parametrize("overlay", TRAINING)
def test_a_pod_that_is_asked_to_stop_has_twice_the_time_of_a_step_and_a_save(
    of: Callable[[str], Planned], overlay: str
) -> None:
    found = of(overlay)
    timing = found.plan.timing
    assert timing is not None
    # The plan's `save` is a step's share of one.
    one_save = timing.save * found.recipe.save_steps
    need = 2 * (timing.step_s - timing.save + one_save)
    for pod in found.pods:
        assert pod.of.spec["terminationGracePeriodSeconds"] >= need


# --- the command itself ---


def dry_run(pod: Pod, manifests: Sequence[Manifest], folder: Path) -> Any:
    """`launch --dry-run --json` as the pod starts it, with a stand-in for the NVIDIA library: what it prints."""
    recipe_file(pod, manifests, folder)
    (folder / "stand-in").mkdir()
    (folder / "stand-in" / "pynvml.py").write_text(NVML)
    mine = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    stand_in = {"PYTHONPATH": str(folder / "stand-in"), "STAND_IN_GPUS": str(pod.gpus)}
    done = subprocess.run(
        [*command(), *pod.arguments, "--dry-run", "--json"],
        cwd=folder, env={**mine, **pod.environment, **stand_in}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert SECRET not in done.stdout + done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("overlay", "index"),
    [
        pytest.param(overlay, index, marks=pytest.mark.exhaustive if overlay in LIKE_OTHERS else ())
        for overlay in LAUNCHED
        for index in range(len(TRAINING[overlay]))
    ],
)
def test_the_command_of_a_pod_starts_the_workers_that_the_plan_has(tmp_path: Path, overlay: str, index: int) -> None:
    manifests, gpus = overlay_of(overlay), TRAINING[overlay]
    pod = pods_of(manifests)[index]
    printed = dry_run(pod, manifests, tmp_path)
    node_0 = find_nodes(pods_of(manifests)[0].environment)
    spared = 1 if overlay in WITH_VLLM else 0  # job-1gpu's only GPU is shared
    vllm = str(gpus[0] - 1)
    assert printed["num_processes"] == len(printed["workers"]) == sum(gpus) - spared
    assert printed["vllm_devices"] == [f"cuda:{vllm}"]
    assert printed["devices"] == "the NVIDIA library"
    assert printed["run_dir"] == str(tmp_path / "runs" / Path(pod.arguments[1]).stem)
    counted = [sum(worker["node"] == node for worker in printed["workers"]) for node in range(len(gpus))]
    assert counted == [gpus[0] - spared, *gpus[1:]]
    for rank, worker in enumerate(printed["workers"]):
        environment = worker["environment"]
        assert (environment["RANK"], environment["WORLD_SIZE"]) == (str(rank), str(sum(gpus) - spared))
        assert environment["MASTER_ADDR"] == node_0.address
        if len(gpus) > 1:  # a node alone takes any free one
            assert environment["MASTER_PORT"] == str(node_0.port)
        devices = range(gpus[worker["node"]] - (spared if worker["node"] == 0 else 0))
        assert environment["CUDA_VISIBLE_DEVICES"] == ",".join(map(str, devices))
        assert environment.get("MINI_R1_VLLM_DEVICE") == (vllm if rank == 0 else None)


def test_the_stand_in_is_what_the_command_asks(tmp_path: Path) -> None:
    """Without it the tests above would count the GPUs of the machine that they run on."""
    (tmp_path / "pynvml.py").write_text(NVML)
    code = "from mini_r1.machine.devices import given_devices; print(given_devices({}).ids)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(tmp_path), "STAND_IN_GPUS": "3"},
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "('0', '1', '2')"
