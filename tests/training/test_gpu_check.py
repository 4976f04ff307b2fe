"""The check of GPUs with torch. There is no GPU here: torch's answers are made up."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mini_r1.errors import ExitCode, KitError
from mini_r1.generation.model import device
from mini_r1.training import gpu_check


class MadeUpGpus:
    """A stand-in for `torch.cuda` with given answers; records which GPU was asked to calculate."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answers: list[str | float]) -> None:
        self.asked: list[int] = []
        self._answers = answers
        monkeypatch.setattr(torch.version, "cuda", "12.4")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(answers))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(answers))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
        ones = torch.ones
        monkeypatch.setattr(torch, "ones", lambda *size, device=None: self._ones(ones, size, device))

    def _ones(self, ones: Any, size: tuple[int, ...], device: str | None) -> Any:
        if device is None:
            return ones(*size)
        index = int(device.removeprefix("cuda:"))
        self.asked.append(index)
        answer = self._answers[index]
        if isinstance(answer, str):
            raise RuntimeError(answer)
        return ones(*size) * answer


@pytest.fixture(autouse=True)
def two_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker of two, with GPUs granted."""
    monkeypatch.delenv("MINI_R1_ACCELERATOR", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setenv("LOCAL_RANK", "1")


def test_on_the_cpu_there_is_nothing_to_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINI_R1_ACCELERATOR", "cpu")
    gpu_check.refuse_broken_gpu()
    assert gpu_check.check_gpus().detail.endswith("on the CPU")


def test_a_worker_checks_its_own_gpu_and_the_doctor_all(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = MadeUpGpus(monkeypatch, ["broken", 1.0])
    gpu_check.refuse_broken_gpu()
    assert set(gpus.asked) == {1}
    found = gpu_check.check_gpus()
    assert (found.status, found.cause) == ("fail", "node")
    assert set(gpus.asked) == {0, 1}


@pytest.mark.parametrize(
    ("answer", "said", "code"),
    [
        ("CUDA error: uncorrectable ECC error\nmore", "GPU 1 cannot be used: CUDA error: uncorr", ExitCode.RETRY),
        (0.5, "GPU 1 calculates wrong", ExitCode.RETRY),
        ("CUDA error: no kernel image is available", "has no code for it: use a GPU of another kind", ExitCode.CONFIG),
    ],
)
def test_a_broken_gpu_ends_its_worker(
    monkeypatch: pytest.MonkeyPatch, answer: str | float, said: str, code: ExitCode
) -> None:
    MadeUpGpus(monkeypatch, [1.0, answer])
    with pytest.raises(KitError, match=said) as refused:
        gpu_check.refuse_broken_gpu()
    assert refused.value.exit_code == code


def test_a_gpu_that_torch_does_not_see_is_the_nodes_error(monkeypatch: pytest.MonkeyPatch) -> None:
    MadeUpGpus(monkeypatch, [1.0])
    with pytest.raises(KitError, match="sees 1 of 2 GPUs: see whether nvidia-smi lists them") as refused:
        gpu_check.refuse_broken_gpu()
    assert refused.value.exit_code == ExitCode.RETRY


def test_a_torch_without_cuda_is_the_installations_error(monkeypatch: pytest.MonkeyPatch) -> None:
    MadeUpGpus(monkeypatch, [])
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(KitError, match="was built without CUDA, and GPUs were given: install the lock") as refused:
        gpu_check.refuse_broken_gpu()
    assert refused.value.exit_code == ExitCode.CONFIG


@pytest.mark.parametrize(
    ("visible", "accelerator", "gpus", "expected"),
    [
        ("4,5", "", 0, "CUDA_VISIBLE_DEVICES=4,5, but torch sees no GPU here"),
        ("GPU-aaaa", "cuda", 0, "MINI_R1_ACCELERATOR=cuda, but torch sees no GPU here"),
        ("", "cuda", 0, "MINI_R1_ACCELERATOR=cuda, but"),
        ("4,5", "cpu", 0, "cpu"),
        ("", "", 0, "cpu"),
        ("-1", "", 0, "cpu"),
        ("NoDevFiles", "", 0, "cpu"),
        ("4,5", "", 2, "cuda"),
        ("0", "cpu", 1, "cpu"),
    ],
)
def test_a_named_gpu_is_never_replaced_by_the_cpu(
    visible: str, accelerator: str, gpus: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setenv("MINI_R1_ACCELERATOR", accelerator)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    if "but" in expected:
        with pytest.raises(KitError, match=expected) as refused:
            device()
        assert refused.value.exit_code == ExitCode.RETRY
    else:
        assert device().type == expected


def test_no_device_by_name_is_none_to_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_check.check_gpus().detail.endswith("on the CPU")
