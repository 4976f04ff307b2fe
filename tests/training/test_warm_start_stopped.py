"""A stopped warm start exits 143, keeps its progress, and is resumed to the bits of an uninterrupted one."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from mini_r1.console import ProgressLine
from mini_r1.recipe.builtin_models import BUILTIN_MODELS, SCRATCH_MODEL
from mini_r1.recipe.fields import WarmStartRecipe
from mini_r1.tasks.countdown import traces
from mini_r1.tasks.countdown.problem import Problem
from mini_r1.training import from_scratch, warm_start
from mini_r1.training.muon import Muon
from mini_r1.training.warm_progress import Training

from tests.training.workers import Ended, Workers, kit

STEPS, TRACES = 12, 300
DEMO = {
    "model_name_or_path": "builtin:demo", "dataset_id_or_path": "generated", "dataset_rows": 40, "max_steps": 1,
    "per_device_train_batch_size": 1, "gradient_accumulation_steps": 1, "num_generations": 2,
    "max_completion_length": 8, "max_prompt_length": 128, "save_strategy": "no",
    "warm_start": {"steps": STEPS, "traces": TRACES, "min_accuracy": 0},
}  # fmt: skip
SCRATCH = {
    **DEMO, "model_name_or_path": "builtin:scratch",
    # All weights are AdamW's here; in the demo's model the matrices are Muon's.
    "warm_start": {**DEMO["warm_start"], "layers": 1, "hidden_size": 32, "batch": 32},  # type: ignore[dict-item]
}  # fmt: skip


def start_and_stop(moment: str, count: int, number: signal.Signals, *args: str | Path) -> None:
    """`mini-r1 ARGS`, which gets a signal when a moment of its warm start comes for the `count`-th time.

    Args:
        moment: trace, loss (in the middle of a step), step (its end) or sample (of the completions that its arithmetic
            is measured on).
        count: 1 is the first time.
        number: the signal.
        args: of the command.
    """
    left = [count]

    def reached(name: str) -> None:
        left[0] -= name == moment
        if name == moment and left[0] == 0:
            os.kill(os.getpid(), number)

    def watched(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **kwargs: Any) -> Any:
            reached(name)
            return function(*given, **kwargs)

        return call

    class WatchedLine(ProgressLine):
        def update(self, *given: Any) -> None:
            reached("step")
            super().update(*given)

    traces.trace, warm_start.ProgressLine = watched("trace", traces.trace), WatchedLine  # type: ignore[misc]
    functional = warm_start.torch.nn.functional
    functional.cross_entropy = watched("loss", functional.cross_entropy)
    warm_start.sample = watched("sample", warm_start.sample)
    kit(*args)


@pytest.fixture(
    params=[pytest.param(DEMO, id="Muon and AdamW"), pytest.param(SCRATCH, id="AdamW", marks=pytest.mark.exhaustive)]
)
def start(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Ended]:
    """Train with a cache of some name to its end, or until a signal comes."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(request.param))

    def run(cache: str, moment: str = "", count: int = 0, number: signal.Signals = signal.SIGTERM) -> Ended:
        environment = {"MINI_R1_CACHE": str(tmp_path / cache)}
        args = (moment, count, number, "train", recipe, "--run-dir", tmp_path / f"{cache}-run")
        with Workers(None, start_and_stop, *args, folder=tmp_path / "logs", environment=environment) as workers:
            (ended,) = workers.wait(120)
        return ended

    return run


def kept(folder: Path) -> list[str]:
    """Names in a cache's folder of models."""
    return sorted(path.name for path in (folder / "models").iterdir())


def test_a_stopped_warm_start_resumes_to_the_same_bits(start: Callable[..., Ended], tmp_path: Path) -> None:
    assert start("whole").code == 0
    (made,) = kept(tmp_path / "whole")
    stopped, progress = tmp_path / "stopped", f"{made}.progress.safetensors"

    def stop(*moment: Any, message: str, files: list[str]) -> None:
        ended = start("stopped", *moment)
        assert ended.code == 143, ended.errors
        assert message in ended.errors
        assert "error" not in ended.errors
        assert kept(stopped) == files
        assert not (tmp_path / "stopped-run").exists()

    kept_in = f"kept in {stopped / 'models' / progress}: the same command resumes it"
    stop("trace", 20, message=f"stopped at step 0 of {STEPS}: run the same command again", files=[])
    stop("step", 3, signal.SIGINT, message=f"stopped at step 3 of {STEPS}, {kept_in}", files=[progress])
    stop("trace", 200, signal.SIGUSR1, message=f"stopped at step 3 of {STEPS}, {kept_in}", files=[progress])
    stop("loss", 3, message=f"stopped at step 5 of {STEPS}, {kept_in}", files=[progress])
    stop("step", 3, message=f"stopped at step 8 of {STEPS}, {kept_in}", files=[progress])
    stop("sample", 1, message=f"stopped at step {STEPS} of {STEPS}, {kept_in}", files=[progress])
    ended = start("stopped")
    assert ended.code == 0, ended.errors
    assert kept(stopped) == [made]
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        ours, theirs = ((cache / "models" / made / name).read_bytes() for cache in (stopped, tmp_path / "whole"))
        assert ours == theirs, name


def test_the_demo_stops_in_its_warm_start_too(tmp_path: Path) -> None:
    environment = {"MINI_R1_CACHE": str(tmp_path / "cache")}
    small = ("--quick", "--set", "warm_start.traces=300", "--set", "dataset_rows=40", "--run-dir", tmp_path / "run")
    args = ("step", 4, signal.SIGTERM, "demo", *small)
    with Workers(None, start_and_stop, *args, folder=tmp_path / "logs", environment=environment) as workers:
        (ended,) = workers.wait(120)
    assert ended.code == 143, ended.errors
    assert "the warm start of builtin:demo was stopped at step 4 of 60, kept in" in ended.errors
    assert len(kept(tmp_path / "cache")) == 1


@pytest.mark.parametrize("start", [DEMO], indirect=True, ids=["demo"])
@pytest.mark.parametrize(
    "content", [b"", b"no safetensors", b"\x08\0\0\0\0\0\0\0{}      "], ids=["empty", "text", "bare"]
)
def test_an_unreadable_progress_file_is_ignored(start: Callable[..., Ended], tmp_path: Path, content: bytes) -> None:
    assert start("cache", "step", 3).code == 143
    (progress,) = (tmp_path / "cache" / "models").iterdir()
    progress.write_bytes(content)
    ended = start("cache", "step", 1)
    assert ended.code == 143, ended.errors
    assert f"stopped at step 1 of {STEPS}" in ended.errors


def test_a_large_step_is_computed_in_parts_and_stop_is_asked_inside_each_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradients are those of the whole step: a long part of a stop's wait was one pass of one layer."""
    kind = replace(BUILTIN_MODELS[SCRATCH_MODEL], layers=2, hidden_size=32)
    tokenizer = from_scratch.build_tokenizer(kind)
    rows = [([3 + i % 7] * (20 + i), 4) for i in range(12)]
    passes: list[int] = []

    def gradients(work: float) -> tuple[float, torch.Tensor]:
        monkeypatch.setattr(warm_start, "WORK_AT_ONCE", work)
        model = from_scratch.build_model(tokenizer, 1, kind)
        passes.clear()
        model.model.layers[0].register_forward_pre_hook(lambda layer, args: passes.append(args[0].shape[:2].numel()))
        loss = warm_start.accumulate_gradients(model, rows, tokenizer.pad_token_id)
        return loss, torch.cat([p.grad.flatten() for p in model.parameters()])

    loss, whole = gradients(1e9)
    assert passes == [12 * 31]
    loss_of_parts, of_parts = gradients(4 * 31 * 32**2)
    assert len(passes) == 3
    assert max(passes) <= 4 * 31
    assert loss_of_parts == pytest.approx(loss, rel=1e-6)
    torch.testing.assert_close(of_parts, whole, rtol=1e-4, atol=1e-6)

    job = warm_start.WarmStart([Problem((1, 2, 3), 6)], "script", kind, WarmStartRecipe(steps=1, traces=256))
    model, looks = from_scratch.build_model(tokenizer, 1, kind), [0]

    def stop() -> bool:
        looks[0] += bool(passes)
        return False

    passes.clear()
    model.model.layers[0].register_forward_pre_hook(lambda layer, args: passes.append(1))
    parameters = list(model.parameters())
    adamw = torch.optim.AdamW(parameters)
    training = Training(model, parameters, adamw, Muon([]), random.Random(1))
    warm_start.train(training, tokenizer, job, lambda step, loss: None, stop)
    assert len(passes) > 1
    matrices = 7 * kind.layers  # four of attention and three of the MLP, in the forward and the backward pass
    assert looks[0] >= 2 * matrices * len(passes) - 3
