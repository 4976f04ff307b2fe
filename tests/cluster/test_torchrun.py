"""Workers that torchrun or `accelerate launch` started: what is refused, what they get, and the real programs."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from mini_r1.errors import ExitCode, KitError
from mini_r1.launch import torchrun
from mini_r1.launch.job import LaunchOptions
from mini_r1.launch.torchrun import accelerate_deepspeed, join_workers
from mini_r1.machine.devices import Devices
from mini_r1.machine.nodes import free_port
from mini_r1.recipe.fields import Recipe
from mini_r1.run.reader import read_metrics
from mini_r1.run.run_dir import RunDir

from tests.cluster.real_stack import ENVIRONMENT, START_S, STEPS, needs_vllm, random_model, reached, write_recipe
from tests.conftest import REPO

BIN = REPO / ".venv-vllm" / "bin"
YAML = REPO / "configs" / "accelerate" / "deepspeed_zero3.yaml"
ZERO3 = {
    "ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3",
    "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "none", "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "none",
    "ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_DYNAMO_BACKEND": "NO",
}  # fmt: skip
"""What accelerate 1.3.0 sets by deepspeed_zero3.yaml."""


def workers(count: int | str, devices: int, rank: int = 0, world: int | None = None, node: int = 0) -> dict[str, str]:
    """Return the environment of a worker whose node has slots in place of GPUs."""
    return {
        "RANK": str(rank), "LOCAL_RANK": str(0 if node else rank), "WORLD_SIZE": str(world or count),
        "LOCAL_WORLD_SIZE": str(count), "TORCHELASTIC_RUN_ID": "none", "MINI_R1_ACCELERATOR": "cpu",
        "CUDA_VISIBLE_DEVICES": ",".join(map(str, range(devices))),
    }  # fmt: skip


@pytest.fixture
def no_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchrun, "check_node", lambda job, nodes: None)


def join(
    environment: Mapping[str, str], folder: Path, vllm_devices: int = 1, **values: object
) -> tuple[dict[str, str], list[str]]:
    """Return what becomes of a worker's environment, and what it prints."""
    recipe = Recipe(**{"model_name_or_path": "Qwen/Qwen2.5-0.5B-Instruct", "max_steps": 1, **values})  # type: ignore[arg-type]
    options = LaunchOptions("qwen.yaml", deepspeed="none", vllm_devices=str(vllm_devices))
    run = RunDir(folder / "run")
    changed, said = dict(environment), list[str]()
    join_workers(options, recipe, run, None, changed, said.append)
    return changed, said


def refusal(environment: Mapping[str, str], folder: Path, vllm_devices: int = 1, **values: object) -> str:
    with pytest.raises(KitError) as refused:
        join(environment, folder, vllm_devices, **values)
    assert refused.value.exit_code == ExitCode.CONFIG
    return refused.value.message


@pytest.mark.usefixtures("no_check")
@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        pytest.param(workers(3, 3), "node 0 has 3 slots .* and 3 workers; .*: start 2 there", id="none left for vLLM"),
        pytest.param(workers(1, 4), "start 3 there: .* or set CUDA_VISIBLE_DEVICES=0,1,", id="idle devices"),
        pytest.param(workers(2, 1), "node 0 has 1 slots? .* and 2 workers; .*: start 1 there", id="two on one device"),
        pytest.param(workers(1, 1, world=3), "node 0 has 1 GPU: on several nodes vLLM needs", id="one of two nodes"),
        pytest.param(workers(2, 0), "use_vllm: true, but there is no GPU", id="no device"),
        pytest.param(workers(5, 4), "node 0 has 4 slots .* and 5 workers", id="more than there are"),
        pytest.param(workers(3, 2, rank=2, world=5, node=1), "this node has 2 slots .* and 3 workers", id="node 1"),
        pytest.param({**workers(2, 3), "RANK": "x"}, "RANK=x: torchrun and accelerate launch set", id="no number"),
        pytest.param({**workers(2, 3), "LOCAL_RANK": ""}, "with no LOCAL_RANK: torchrun", id="a PyTorchJob's pod"),
        pytest.param({**workers(2, 3), "LOCAL_WORLD_SIZE": ""}, "no LOCAL_WORLD_SIZE: torchrun", id="an own script"),
    ],
)
def test_workers_that_cannot_have_vllm(environment: dict[str, str], sentence: str, tmp_path: Path) -> None:
    assert re.search(sentence, refusal(environment, tmp_path, use_vllm=True))


@pytest.mark.usefixtures("no_check")
@pytest.mark.parametrize(("count", "devices"), [(1, 4), (3, 3), (5, 4), (4, 2)])
def test_each_number_in_the_error_works(count: int, devices: int, tmp_path: Path) -> None:
    text = refusal(workers(count, devices), tmp_path, use_vllm=True)
    number = re.search("--nproc-per-node ([0-9]+)", text)
    assert number is not None
    assert join(workers(int(number[1]), devices), tmp_path, use_vllm=True)[0]["MINI_R1_VLLM_DEVICE"] == "cpu"
    fewer = re.search("set CUDA_VISIBLE_DEVICES=([0-9,]+)", text)
    assert (fewer is not None) == (count < devices)
    if fewer is not None:
        shown = {**workers(count, devices), "CUDA_VISIBLE_DEVICES": fewer[1].rstrip(",")}
        assert "MINI_R1_VLLM_DEVICE" in join(shown, tmp_path, use_vllm=True)[0]
    if "use_vllm: false" in text and count <= devices:
        assert "MINI_R1_VLLM_DEVICE" not in join(workers(count, devices), tmp_path)[0]


@pytest.mark.usefixtures("no_check")
@pytest.mark.parametrize(("count", "devices"), [(2, 3), (3, 3), (2, 0), (1, 3)])
def test_without_vllm_there_may_be_fewer_workers(count: int, devices: int, tmp_path: Path) -> None:
    environment = workers(count, devices)
    assert "no vLLM" in join(environment, tmp_path)[1][-1]
    del environment["LOCAL_WORLD_SIZE"]
    join(environment, tmp_path)
    assert "one for each" in refusal(workers(4, 3), tmp_path)


@pytest.mark.usefixtures("no_check")
def test_a_worker_s_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = Devices(("4", "5", "7"), on_cpu=False, source="the test")
    monkeypatch.setattr(torchrun, "given_devices", lambda environment: gpus)
    monkeypatch.setattr(torchrun, "read_driver", lambda ids: None)
    given = {**ZERO3, **workers(2, 3), "MINI_R1_ACCELERATOR": "", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    first, said = join(given, tmp_path, use_vllm=True, gradient_accumulation_steps=4)
    second, nothing = join({**given, "RANK": "1", "LOCAL_RANK": "1"}, tmp_path, use_vllm=True)
    other, _ = join({**given, "RANK": "2", "WORLD_SIZE": "4"}, tmp_path, use_vllm=True)  # the first of node 1
    assert [worker["CUDA_VISIBLE_DEVICES"] for worker in (first, second, other)] == ["4,5", "4,5", "4,5,7"]
    assert [worker.get("MINI_R1_VLLM_DEVICE") for worker in (first, second, other)] == ["7", None, None]
    assert first["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert first["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"
    mine = {**given, "RANK": "1", "LOCAL_RANK": "1", "PYTORCH_CUDA_ALLOC_CONF": ""}
    assert join(mine, tmp_path, use_vllm=True)[0]["PYTORCH_CUDA_ALLOC_CONF"] == ""
    assert "TORCHELASTIC_USE_AGENT_STORE" in first  # env:// needs it
    assert not any(name.startswith("ACCELERATE_") for name in (*first, *second))
    assert nothing == []
    assert "2 workers, started by torchrun, vLLM on node 0's last device (cuda:2)" in said[-1]
    assert any("mixed_precision" in line and "bf16" in line for line in said)
    assert not any("mixed" in line for line in join(given, tmp_path, use_vllm=True, bf16=True)[1])


@pytest.mark.usefixtures("no_check")
def test_several_devices_of_vllm_and_one_shared(tmp_path: Path) -> None:
    first, said = join(workers(2, 4), tmp_path, vllm_devices=2, use_vllm=True)
    assert (first["MINI_R1_VLLM_DEVICE"], "MINI_R1_VLLM_SHARED" in first) == ("cpu,cpu", False)
    assert "2 workers, started by torchrun, vLLM on node 0's last 2 devices (cpu, cpu)" in said[-1]
    only, said = join(workers(1, 1), tmp_path, use_vllm=True)
    assert (only["MINI_R1_VLLM_DEVICE"], only["MINI_R1_VLLM_SHARED"]) == ("cpu", "1")
    assert "1 worker, started by torchrun, vLLM on the same device (cpu)" in said[-1]
    wrong = refusal(workers(3, 4), tmp_path, vllm_devices=2, use_vllm=True)
    assert "use_vllm: true takes the last 2, and each of the others needs a worker: start 2 there" in wrong
    assert "give --vllm-devices 1, or" in wrong
    assert "--vllm-devices 4, but there are 4 GPUs" in refusal(workers(1, 4), tmp_path, vllm_devices=4, use_vllm=True)
    assert "but use_vllm is false" in refusal(workers(1, 4), tmp_path, vllm_devices=2)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "zero3"),
        ({"ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}, "zero2"),
        ({"ACCELERATE_DEEPSPEED_ZERO_STAGE": None}, "zero2"),  # accelerate's default
        ({"ACCELERATE_DEEPSPEED_CONFIG_FILE": "own/Zero.json"}, "own/Zero.json"),
        ({"ACCELERATE_USE_DEEPSPEED": "false"}, None),
        ({"ACCELERATE_USE_DEEPSPEED": None}, None),
        (
            {f"ACCELERATE_DEEPSPEED_OFFLOAD_{what}_DEVICE": "cpu" for what in ("OPTIMIZER", "PARAM")},
            "zero3-offload",
        ),
    ],
)
def test_deepspeed_by_accelerate(changes: dict[str, str | None], expected: str | None) -> None:
    environment = {name: value for name, value in {**ZERO3, **changes}.items() if value is not None}
    assert accelerate_deepspeed(environment) == expected


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"ACCELERATE_DEEPSPEED_ZERO_STAGE": "1"}, "ZeRO stage 1 "),
        ({"ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "nvme"}, "parameters to nvme"),
        ({"ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu"}, "optimizer offloaded to cpu"),
        ({"ACCELERATE_USE_FSDP": "true"}, "configured for FSDP"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "configured for MEGATRON_LM"),
    ],
)
def test_what_the_kit_does_not_shard_by(changes: dict[str, str], sentence: str) -> None:
    with pytest.raises(KitError, match=sentence) as refused:
        accelerate_deepspeed({**ZERO3, **changes})
    assert "configs/accelerate/deepspeed_zero3.yaml" in refused.value.message


class Agent:
    """A program that starts workers, with the real vLLM and slots in place of GPUs; killed with its workers if left."""

    def __init__(self, program: str, *args: str | Path, slots: int, log: Path) -> None:
        self._log = log
        command = (
            [BIN / "accelerate", "launch", "--config_file", YAML] if program == "accelerate" else [BIN / "torchrun"]
        )
        given = {**os.environ, **ENVIRONMENT, "CUDA_VISIBLE_DEVICES": ",".join(map(str, range(slots)))}
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [*map(str, command), *map(str, args)],
                env=given, cwd=REPO, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip

    def __enter__(self) -> Agent:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def wait(self) -> int:
        return self.process.wait(START_S)

    @property
    def said(self) -> str:
        return self._log.read_text(errors="replace")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("torchrun")
    return write_recipe(folder / "recipe.yaml", random_model(folder / "model"), gradient_accumulation_steps=1)


def assert_finished(run: RunDir, workers: int, zero_stage: int) -> None:
    """Assert that all steps were taken, by this number of workers, with new weights in vLLM for each."""
    state, attempt = run.read_state(), run.read_record()["attempts"][-1]
    assert (state["state"], state["step"]) == ("finished", STEPS)
    assert (attempt["workers"], attempt["vllm_device"]) == (workers, "cpu")
    assert run.complete_checkpoints()[0].facts["zero_stage"] == zero_stage
    synced = read_metrics(run)
    assert [row["sync/equal"] for row in synced] == [1.0] * STEPS
    assert any(row.get("sync/changed") for row in synced)


@pytest.mark.exhaustive
@needs_vllm
@pytest.mark.real
def test_torchrun_on_one_node_stopped_and_resumed(recipe: Path, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    command = ("--nproc-per-node", "2", "-m", "mini_r1", "train", recipe, "--run-dir", run.path)
    with Agent("torchrun", *command, slots=3, log=tmp_path / "1.txt") as agent:
        done = reached(run, 1)
        deadline = time.monotonic() + START_S
        while not done():
            assert agent.process.poll() is None, agent.said
            assert time.monotonic() < deadline, agent.said
            time.sleep(0.05)
        os.killpg(agent.process.pid, signal.SIGTERM)  # as a scheduler: the workers get it twice, also from torchrun
        assert agent.wait() != 0
    assert run.read_state()["state"] == "interrupted", agent.said
    with Agent("torchrun", *command, slots=3, log=tmp_path / "2.txt") as agent:
        assert agent.wait() == 0, agent.said
    assert "resuming after step" in agent.said
    assert_finished(run, 2, 0)


@needs_vllm
@pytest.mark.real
def test_the_original_s_command_on_one_node(recipe: Path, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    command = ("-m", "mini_r1", "train", "--config", recipe, "--run-dir", run.path)
    with Agent("accelerate", "--num_processes", "2", *command, slots=3, log=tmp_path / "1.txt") as agent:
        assert agent.wait() == 0, agent.said
    assert_finished(run, 2, 3)


@needs_vllm
@pytest.mark.real
def test_two_uneven_nodes_one_by_accelerate_one_by_torchrun(recipe: Path, tmp_path: Path) -> None:
    """Both use torch's rendezvous: node 0 has one worker and vLLM, node 1 two workers."""
    run, port = RunDir(tmp_path / "run"), str(free_port())
    train = ("-m", "mini_r1", "train", recipe, "--run-dir", run.path)
    first = ("--num_machines", "2", "--machine_rank", "0", "--num_processes", "2", "--main_process_ip", "127.0.0.1")
    second = ("--nnodes", "2", "--node-rank", "1", "--nproc-per-node", "2", "--master-addr", "127.0.0.1")
    zero3 = ("--deepspeed", "zero3")
    with (
        Agent("accelerate", *first, "--main_process_port", port, *train, slots=2, log=tmp_path / "0.txt") as zero,
        Agent("torchrun", *second, "--master-port", port, *train, *zero3, slots=2, log=tmp_path / "1.txt") as one,
    ):
        assert (zero.wait(), one.wait()) == (0, 0), zero.said + one.said
    assert_finished(run, 3, 3)
