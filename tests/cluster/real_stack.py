"""`mini-r1 launch` with the real vLLM 0.7.0 and DeepSpeed 0.15.4, from the environment that `make vllm-cpu` makes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import pytest
from mini_r1.recipe.deepspeed_file import find_deepspeed
from mini_r1.run.reader import read_completions, read_metrics
from mini_r1.run.run_dir import RunDir
from safetensors.torch import load_file

from tests.conftest import ASSETS, REPO, rows, without_times

PYTHON = REPO / ".venv-vllm" / "bin" / "python"
needs_vllm = pytest.mark.skipif(not PYTHON.exists(), reason="no .venv-vllm: `make vllm-cpu`")
ENVIRONMENT = {"MINI_R1_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "MINI_R1_VERIFY_SYNC": "1"}
START_S, STOP_S = 300, 60
STEPS = 6


def random_model(folder: Path) -> Path:
    """Return the smoke test's model: vLLM has no kernel for the demo model's small heads."""
    from mini_r1.training.from_scratch import DEMO_FOR_VLLM, save_untrained

    return save_untrained(folder, kind=DEMO_FOR_VLLM)


def write_recipe(path: Path, model: Path | str, **changes: Any) -> Path:
    """Write a recipe of six cheap steps on real rows."""
    values = {
        "model_name_or_path": str(model), "dataset_id_or_path": str(ASSETS / "countdown_rows.jsonl"),
        "test_fraction": 0.25, "max_steps": STEPS, "save_steps": 2, "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 2, "num_generations": 4, "max_prompt_length": 64, "max_completion_length": 32,
        # So high that each step changes the model's completions.
        "learning_rate": 5e-3, "lr_scheduler_type": "constant", "beta": 0.01, "temperature": 1.0, "seed": 3,
        # A random model is never right: random rewards make the completions of a group differ.
        "rewards": {"format": 1.0, "equation": 1.0, "random": 1.0},
        "use_vllm": True,
    }  # fmt: skip
    path.write_text(json.dumps({**values, **changes}))  # JSON is YAML
    return path


def sharding_everything(folder: Path) -> str:
    """Write the shipped ZeRO-3 configuration, changed to shard the weights of a small model too."""
    values = find_deepspeed("zero3").values
    values["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    path = folder / "zero3.json"
    path.write_text(json.dumps(values))
    return str(path)


class Launch:
    """`mini-r1 launch ARGS`, killed with all that it started if it is left early.

    Args:
        args: of the command.
        log: where it writes.
        environment: in addition to ENVIRONMENT.
        inside: a command that runs it, e.g. in another network namespace.
    """

    def __init__(
        self,
        *args: str | Path,
        log: Path,
        environment: Mapping[str, str] | None = None,
        inside: tuple[str, ...] = (),
    ) -> None:
        self._log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [*inside, str(PYTHON), "-m", "mini_r1", "launch", *map(str, args)],
                env={**os.environ, **ENVIRONMENT, **(environment or {})},
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        self._seen: dict[int, psutil.Process] = {}

    def __enter__(self) -> Launch:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        if self._process.poll() is None:
            self.all_processes()
            self._process.kill()
            self._process.wait()
            for process in self._seen.values():
                if process.is_running():
                    process.kill()

    @property
    def said(self) -> str:
        """Its output so far."""
        return self._log.read_text(errors="replace")

    def all_processes(self) -> list[psutil.Process]:
        """Return the launcher and all its descendants."""
        launcher = psutil.Process(self._process.pid)
        found = [launcher, *launcher.children(recursive=True)]
        self._seen |= {process.pid: process for process in found}
        return found

    def find(self, *words: str, rank: int | None = None) -> psutil.Process:
        """Return the only descendant whose command line has these words, and this rank if given.

        What it has just forked has the same line until it runs its own program, so a match below a match is left out.
        """
        found = {}
        for process in self.all_processes():
            with suppress(psutil.NoSuchProcess):  # a process that has ended since
                of_rank = rank is None or process.environ().get("RANK") == str(rank)
                if of_rank and all(word in " ".join(process.cmdline()) for word in words):
                    found[process.pid] = (process, process.ppid())
        (process,) = [process for process, parent in found.values() if parent not in found]
        return process

    def worker(self, rank: int) -> psutil.Process:
        """Return the worker of a rank."""
        return self.find(" train ", rank=rank)

    def vllm(self) -> psutil.Process:
        """Return vLLM's process."""
        return self.find("vllm_child")

    def wait_for(self, done: Callable[[], bool], timeout_s: float = START_S) -> None:
        """Wait until a condition holds; the launcher must not end before."""
        deadline = time.monotonic() + timeout_s
        while not done():
            assert self._process.poll() is None, f"ended with {self._process.returncode}:\n{self.said}"
            assert time.monotonic() < deadline, f"not there after {timeout_s:g} s:\n{self.said}"
            time.sleep(0.01)

    def terminate(self) -> None:
        """Send SIGTERM to the launcher."""
        self.all_processes()
        self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL to the launcher, as when its node loses power."""
        self.all_processes()
        self._process.kill()

    def wait(self, timeout_s: float = START_S) -> int:
        """Return its exit code, after checking that it left no process."""
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still runs after {timeout_s:g} s:\n{self.said}") from None
        _, left = psutil.wait_procs(list(self._seen.values()), timeout=10)
        assert not left, f"left behind: {left}\n{self.said}"
        return code


def reached(run: RunDir, step: int, phase: str | None = None) -> Callable[[], bool]:
    """Return a condition: the run is in the step after this many, and in this phase if given."""

    def done() -> bool:
        state = run.read_state()
        return state.get("step", -1) >= step and phase in (None, state.get("phase"))

    return done


def same(run: RunDir, whole: RunDir) -> None:
    """Assert that both took the same steps, to the bit."""
    assert _lasting(read_metrics(run)) == _lasting(read_metrics(whole))
    assert list(read_completions(run)) == list(read_completions(whole))
    for name, tensor in load_file(whole.snapshots / f"step-{STEPS}" / "model.safetensors").items():
        assert tensor.equal(load_file(run.snapshots / f"step-{STEPS}" / "model.safetensors")[name]), name


def assert_repeated(run: RunDir, attempt: int, step: int) -> None:
    """Assert that the next attempt repeated a step that was lost with this one, to the bit."""
    before, after = run.attempts / str(attempt), run.attempts / str(attempt + 1)
    for name in ("metrics.jsonl", "completions.jsonl"):
        first, second = ([row for row in rows(folder / name) if row["step"] == step] for folder in (before, after))
        assert first, f"{before} did not take step {step}"
        assert _lasting(first) == _lasting(second)


def _lasting(logged: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows without times; the change since the last sync is unknown in an attempt's first step."""
    return [{name: value for name, value in row.items() if name != "sync/changed"} for row in without_times(logged)]
