"""A worker that has one device together with vLLM: it uses the device only when vLLM, which measures it, is ready."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mini_r1.errors import ExitCode, KitError
from mini_r1.machine.lifeline import VLLM_DEVICE, VLLM_SHARED
from mini_r1.machine.nvidia import Driver, Gpu
from mini_r1.recipe.recipe_file import find_recipe, load_recipe
from mini_r1.run.run_dir import RunDir
from mini_r1.training import rollout_engines
from mini_r1.training import train as train_module
from mini_r1.training.records import vllm_change
from mini_r1.training.train import train
from rich.console import Console


def run(recipe: Path, folder: Path) -> RunDir:
    made = RunDir(folder / "run")
    outcome = train(load_recipe(recipe), made, ["mini-r1"], Console(quiet=True))
    assert outcome.exit_code == ExitCode.FINISHED
    return made


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        ("3", "2,3", "vLLM's devices were 1 and are 2 now"),
        ("cpu,cpu", "cpu", "vLLM's devices were 2 and are 1 now"),
        ("3", "7", None),
        (None, "3", None),  # another recipe: refused elsewhere
    ],
)
def test_a_resume_with_another_number_of_vllm_devices_is_told(before: str | None, now: str, said: str | None) -> None:
    attempts = [{"vllm_device": "1,2,3"}, {"vllm_device": before}, {"vllm_device": now}]
    found = vllm_change(attempts)
    assert (found is None) == (said is None)
    assert found is None or found.startswith(f"{said}: the same seed gives the same completions only with the same")
    assert vllm_change(attempts[:1]) is None


class EngineStarts(Exception):
    """Raised by the stand-in for the engine's start."""


@pytest.mark.parametrize("shared", [True, False])
def test_no_cuda_before_vllm_is_ready(
    shared: bool, small_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stand-in for a GPU: torch says that there is one, and any use of it, which needs _lazy_init, is an error."""

    def use(*_: Any) -> None:
        raise AssertionError("CUDA is used")

    def start(*_: Any) -> None:
        raise EngineStarts

    monkeypatch.delenv("MINI_R1_ACCELERATOR", raising=False)
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", VLLM_DEVICE: "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(VLLM_SHARED, "1" if shared else "")
    monkeypatch.setattr(torch.version, "cuda", "12.4")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "_lazy_init", use)
    monkeypatch.setattr(torch.cuda, "set_device", use)
    monkeypatch.setattr(train_module, "start_engine", start)
    with pytest.raises(EngineStarts if shared else AssertionError):
        run(small_recipe(), tmp_path)


def test_the_device_is_checked_and_set_after_the_engine_has_started(
    small_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = []

    def record(name: str) -> None:
        function: Callable[..., Any] = getattr(train_module, name)

        def recorded(*args: Any, **values: Any) -> Any:
            order.append(name)
            return function(*args, **values)

        monkeypatch.setattr(train_module, name, recorded)

    for name in ("refuse_broken_gpu", "grpo_config", "start_engine"):
        record(name)
    monkeypatch.setenv(VLLM_DEVICE, "cpu")
    monkeypatch.setenv(VLLM_SHARED, "1")
    made = run(small_recipe(max_steps=1), tmp_path)
    assert order == ["start_engine", "refuse_broken_gpu", "grpo_config"]
    (attempt,) = made.read_record()["attempts"]
    assert (attempt["vllm_device"], attempt["vllm_shared"]) == ("cpu", True)


@pytest.mark.parametrize(("shared", "given", "share"), [(True, None, 0.29), (True, 0.5, 0.5), (False, None, 0.9)])
def test_vllm_gets_the_planned_share_of_the_gpu(
    shared: bool, given: float | None, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stand-in for the NVIDIA library."""
    driver = Driver("550.54.14", (12, 4), gpus=(Gpu("0", "made up", (8, 6), 24 * 2**30, 0),))
    monkeypatch.setattr(rollout_engines, "read_driver", lambda ids: driver)
    monkeypatch.setenv(VLLM_DEVICE, "0")
    monkeypatch.setenv(VLLM_SHARED, "1" if shared else "")
    recipe = load_recipe(find_recipe("lora-1.5b")).model_copy(update={"vllm_gpu_memory_utilization": given})
    assert rollout_engines._vllm_share(recipe) == share
    monkeypatch.setattr(rollout_engines, "read_driver", lambda ids: None)
    if shared and given is None:
        with pytest.raises(KitError, match="set vllm_gpu_memory_utilization"):
            rollout_engines._vllm_share(recipe)
