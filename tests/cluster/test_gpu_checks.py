"""The doctor's checks of GPUs and driver, with a stand-in for the NVIDIA library."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pynvml
import pytest
from mini_r1.doctor import gpus
from mini_r1.doctor.case import Case
from mini_r1.machine import nvidia
from mini_r1.machine.devices import Devices
from mini_r1.recipe.fields import Recipe
from mini_r1.values import GIB

H100 = "NVIDIA H100 80GB HBM3"


@dataclass
class StandInGpu:
    """The stand-in's answers about one GPU; None is 'not supported'."""

    name: str = H100
    capability: tuple[int, int] = (9, 0)
    used: int = GIB // 2
    pids: tuple[int, ...] = ()
    uncorrected: int | None = 0
    rows: tuple[int, int, int, int] | None = (0, 0, 0, 0)
    retired_pending: int | None = None
    bus: str = "00000000:3B:00.0"
    lost: bool = False


@dataclass
class StandInNvml:
    """The NVIDIA library's functions that the kit calls, answering from a list of made-up GPUs."""

    gpus: list[StandInGpu] = field(default_factory=lambda: [StandInGpu()])
    version: str | bytes = "550.54.15"
    cuda: int = 12040
    NVMLError = pynvml.NVMLError
    NVML_ERROR_GPU_IS_LOST = pynvml.NVML_ERROR_GPU_IS_LOST

    def nvmlInit(self) -> None:
        pass

    def nvmlShutdown(self) -> None:
        pass

    def nvmlSystemGetDriverVersion(self) -> str | bytes:
        return self.version

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:
        return self.cuda

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> StandInGpu:
        if index >= len(self.gpus):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return self.gpus[index]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> StandInGpu:
        if not uuid.startswith("MIG-"):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return self.gpus[0]

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, gpu: StandInGpu) -> StandInGpu:
        return gpu

    def nvmlDeviceGetUUID(self, gpu: StandInGpu) -> bytes:
        return f"GPU-{self.gpus.index(gpu):08d}-0000".encode()

    def nvmlDeviceGetName(self, gpu: StandInGpu) -> str:
        return gpu.name

    def nvmlDeviceGetMemoryInfo(self, gpu: StandInGpu) -> Any:
        if gpu.lost:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        return SimpleNamespace(total=80 * GIB, used=gpu.used)

    def nvmlDeviceGetCudaComputeCapability(self, gpu: StandInGpu) -> tuple[int, int]:
        return gpu.capability

    def nvmlDeviceGetComputeRunningProcesses(self, gpu: StandInGpu) -> list[Any]:
        return [SimpleNamespace(pid=pid) for pid in gpu.pids]

    def nvmlDeviceGetTotalEccErrors(self, gpu: StandInGpu, kind: int, counter: int) -> int:
        assert (kind, counter) == (pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC)
        return _supported(gpu.uncorrected)

    def nvmlDeviceGetRemappedRows(self, gpu: StandInGpu) -> tuple[int, int, int, int]:
        return _supported(gpu.rows)

    def nvmlDeviceGetRetiredPagesPendingStatus(self, gpu: StandInGpu) -> int:
        return _supported(gpu.retired_pending)

    def nvmlDeviceGetPciInfo(self, gpu: StandInGpu) -> Any:
        return SimpleNamespace(busId=gpu.bus.encode())


def _supported(value: Any) -> Any:
    if value is None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
    return value


def read_driver(ids: Sequence[str], library: StandInNvml) -> nvidia.Driver | None:
    with mock.patch.object(nvidia, "nvml", library):
        return nvidia.read_driver(ids)


def case(*given: StandInGpu, ids: tuple[str, ...] | None = None, recipe: dict[str, Any] | None = None,
         root: Path = Path("/nowhere"), **library: Any) -> Case:  # fmt: skip
    nvml = StandInNvml(list(given) or [StandInGpu()], **library)
    ids = ids or tuple(str(index) for index in range(len(nvml.gpus)))
    subject = Recipe(model_name_or_path="builtin:demo", max_steps=1, **recipe) if recipe is not None else None
    return Case({}, Devices(ids, False, "a test"), read_driver(ids, nvml), recipe=subject, root=root)


def on_cpu(**recipe: Any) -> Case:
    subject = Recipe(model_name_or_path="builtin:demo", max_steps=1, **recipe)
    return Case({}, Devices((), True, "the NVIDIA library sees none"), None, recipe=subject)


# --- driver ---


@pytest.mark.parametrize(
    ("version", "cuda", "status"),
    [
        ("550.54.14", 12040, "ok"),
        (b"570.86.10", 12080, "ok"),
        ("535.183.01", 12020, "warn"),
        ("525.60.13", 12000, "warn"),
        ("525.60.11", 12000, "fail"),
        ("470.256.02", 11040, "fail"),
        ("470.256.02", 12040, "ok"),  # with the compatibility package in the container
    ],
)
def test_the_driver_must_run_cuda_12_4(version: str | bytes, cuda: int, status: str) -> None:
    finding = gpus.driver(case(version=version, cuda=cuda))
    assert (finding.status, finding.cause) == (status, "node" if status == "fail" else None)
    assert ("550.54.14" in finding.fix) == (status != "ok")


def test_gpus_without_a_driver_are_a_failure_of_the_node() -> None:
    finding = gpus.driver(Case({}, Devices(("0",), False, "CUDA_VISIBLE_DEVICES=0"), None))
    assert (finding.status, finding.cause) == ("fail", "node")
    assert "CUDA_VISIBLE_DEVICES=0" in finding.detail


def test_a_gpu_that_fell_off_the_bus_is_named() -> None:
    finding = gpus.driver(case(StandInGpu(), StandInGpu(lost=True)))
    assert (finding.status, finding.cause) == ("fail", "node")
    assert "for 1 (" in finding.detail


def test_without_a_gpu_a_recipe_trains_on_the_cpu() -> None:
    """What needs a GPU is in the plan's errors: tests/cluster/test_plan.py."""
    assert gpus.driver(on_cpu()).detail == "no NVIDIA driver: this node trains on the CPU"


@pytest.mark.parametrize(
    "check", [gpus.compute_capability, gpus.gpu_kinds, gpus.p2p, gpus.gpu_memory, gpus.ecc, gpus.xid]
)
def test_without_a_gpu_the_other_checks_are_skipped(check: Any) -> None:
    assert check(on_cpu()).status == "skip"


# --- what a GPU can do ---


@pytest.mark.parametrize(
    ("capability", "recipe", "message"),
    [
        ((9, 0), {"bf16": True, "attn_implementation": "flash_attention_2"}, None),
        ((8, 9), {"bf16": True}, None),
        ((7, 5), {"fp16": True}, None),
        ((7, 5), {"bf16": True}, "bf16: true"),
        ((7, 0), {"torch_dtype": "bfloat16"}, "torch_dtype: bfloat16"),
        ((7, 5), {"attn_implementation": "flash_attention_2", "fp16": True}, "flash_attention_2"),
        ((6, 1), {"use_vllm": True}, "use_vllm: true"),
        ((10, 0), {}, "nothing above 9.0"),
        ((12, 0), None, "nothing above 9.0"),
    ],
)
def test_compute_capability_against_the_recipe(
    capability: tuple[int, int], recipe: dict[str, Any] | None, message: str | None
) -> None:
    finding = gpus.compute_capability(case(StandInGpu(), StandInGpu(capability=capability), recipe=recipe))
    if message is None:
        assert finding.status == "ok"
    else:
        assert (finding.status, finding.cause) == ("fail", "recipe")
        assert message in finding.detail
        assert "GPU 1" in finding.detail
        assert "GPU 0" not in finding.detail


# --- the RTX 40 series ---

CARDS = [
    (["NVIDIA GeForce RTX 4090"] * 2, "535.183.01", True),
    (["NVIDIA GeForce RTX 4080 SUPER", H100], "550.40.06", True),
    (["NVIDIA GeForce RTX 4090"] * 2, "550.40.07", False),
    (["NVIDIA GeForce RTX 4090"] * 4, "570.86.10", False),
    (["NVIDIA GeForce RTX 4090"], "535.183.01", False),
    (["NVIDIA GeForce RTX 3090"] * 2, "535.183.01", False),
    ([H100] * 8, "535.183.01", False),
    ([], "", False),
]


@pytest.fixture
def cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str], str], None]:
    """Return a function that puts an nvidia-smi with these GPUs first on PATH; without GPUs it fails."""

    def install(names: list[str], version: str) -> None:
        rows = [f"{len(names)}, {name}" for name in names]
        answers = {"count,name": "\n".join(rows), "driver_version": "\n".join([version] * len(names))}
        arms = "".join(f"*{query}*) printf '{text}\\n';;\n" for query, text in answers.items())
        program = tmp_path / "nvidia-smi"
        program.write_text(f'#!/bin/sh\ncase "$*" in\n{arms}esac\nexit {int(not names)}\n')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    return install


@pytest.mark.parametrize(("names", "version", "lacking"), CARDS)
def test_which_gpus_lack_p2p(
    names: list[str], version: str, lacking: bool, cards: Callable[[list[str], str], None]
) -> None:
    cards(names, version)
    assert nvidia.lacks_p2p() == lacking
    finding = gpus.p2p(case())
    assert finding.status == ("warn" if lacking else "skip")
    assert ("NCCL_P2P_DISABLE=1 and NCCL_IB_DISABLE=1" in finding.detail) == lacking


def test_accelerate_follows_the_same_rule(cards: Callable[[list[str], str], None]) -> None:
    from accelerate.utils.environment import check_cuda_p2p_ib_support

    for names, version, lacking in CARDS:
        cards(names, version)
        assert check_cuda_p2p_ib_support() == (not lacking)


def test_without_nvidia_smi_nothing_is_switched_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not nvidia.lacks_p2p()


def test_gpus_of_several_kinds_are_a_warning() -> None:
    assert gpus.gpu_kinds(case(StandInGpu(), StandInGpu())).detail == f"2 × {H100}"
    finding = gpus.gpu_kinds(case(StandInGpu(), StandInGpu(name="NVIDIA A100")))
    assert finding.status == "warn"
    assert "A100" in finding.detail


@pytest.mark.parametrize(("used", "status"), [(0.5, "ok"), (3.9, "ok"), (5.0, "warn"), (15.9, "warn"), (17.0, "fail")])
def test_memory_that_others_hold_is_judged_by_its_share(used: float, status: str) -> None:
    finding = gpus.gpu_memory(case(StandInGpu(used=int(used * GIB), pids=(4711,))))
    assert (finding.status, finding.cause) == (status, "node" if status == "fail" else None)
    assert "by process 4711" in finding.detail
    assert ("ps -p 4711" in finding.fix) == (status != "ok")


# --- hardware errors ---


@pytest.mark.parametrize(
    ("gpu", "status", "message"),
    [
        (StandInGpu(), "ok", "none uncorrected"),
        (StandInGpu(uncorrected=2), "fail", "2 memory errors"),
        (StandInGpu(rows=(0, 1, 1, 0)), "fail", "at the next reset"),
        (StandInGpu(rows=(0, 1, 0, 1)), "fail", "no spare memory row"),
        (StandInGpu(rows=None, retired_pending=1), "fail", "at the next reset"),
        (StandInGpu(rows=None, retired_pending=0), "ok", "none uncorrected"),
        (StandInGpu(uncorrected=None, rows=None), "skip", "no ECC"),
    ],
)
def test_memory_errors_that_the_driver_counts(gpu: StandInGpu, status: str, message: str) -> None:
    finding = gpus.ecc(case(gpu))
    assert (finding.status, finding.cause) == (status, "node" if status == "fail" else None)
    assert message in finding.detail


def kernel(root: Path, *lines: str) -> Path:
    (root / "var/log").mkdir(parents=True)
    (root / "var/log/kern.log").write_text("\n".join(lines))
    return root


def test_hardware_errors_of_these_gpus_in_the_kernels_log_are_counted(tmp_path: Path) -> None:
    root = kernel(
        tmp_path,
        "[1] NVRM: Xid (PCI:0000:3b:00): 79, pid=1, GPU has fallen off the bus.",
        "[2] NVRM: Xid (PCI:0000:3B:00.0): 79, again",
        "[3] NVRM: Xid (PCI:0000:3b:00): 31, a program's own page fault",
        "[4] NVRM: Xid (PCI:0000:af:00): 48, another job's GPU",
    )
    finding = gpus.xid(case(root=root))
    assert finding.status == "warn"
    assert "GPU 0: Xid 79 (2 times)" in finding.detail
    assert "31" not in finding.detail
    assert "48" not in finding.detail


def test_a_log_without_errors_is_ok_and_no_log_a_skip(tmp_path: Path) -> None:
    with mock.patch.object(gpus, "run_program", side_effect=OSError):
        assert gpus.xid(case(root=tmp_path)).status == "skip"
    assert gpus.xid(case(root=kernel(tmp_path, "[1] all is well"))).detail == "no hardware error in /var/log/kern.log"


def test_the_real_log_is_read_if_this_user_may() -> None:
    text, source = gpus.read_kernel_log(case(root=Path("/")))
    assert (text is None) == (source == "")


# --- reading ---


def test_devices_are_found_by_index_by_uuid_and_by_its_beginning() -> None:
    two = [StandInGpu(name="first"), StandInGpu(name="second")]
    for id in ("1", "GPU-00000001-0000", "GPU-00000001"):
        driver = read_driver([id], StandInNvml(two))
        assert driver is not None
        assert [(gpu.id, gpu.name) for gpu in driver.gpus] == [(id, "second")]
    slice = read_driver(["MIG-7e5c"], StandInNvml(two))
    assert slice is not None
    assert slice.gpus[0].capability == (9, 0)


def test_a_device_that_is_not_there_is_silent_and_the_others_are_read() -> None:
    driver = read_driver(["0", "7", "GPU-ffffffff"], StandInNvml())
    assert driver is not None
    assert [gpu.id for gpu in driver.gpus] == ["0"]
    assert set(driver.silent) == {"7", "GPU-ffffffff"}


def test_the_real_library_without_a_driver_gives_none() -> None:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        assert nvidia.read_driver(["0"]) is None
    else:
        pynvml.nvmlShutdown()
        assert nvidia.read_driver([]) is not None
