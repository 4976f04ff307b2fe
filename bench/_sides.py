"""Two trainers compared step by step: each in its own process, taking turns. Shared by trainer_speed and newest_trl."""

from __future__ import annotations

import json
import multiprocessing
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

KIT = "kit"
SAMPLES = 4
"""Completions of each held-out problem for the comparison of what was learned."""

START = """
import json, sys
from importlib import import_module
from multiprocessing.connection import Connection
sys.path.insert(0, sys.argv[1])
import_module(sys.argv[2]).work(*json.loads(sys.argv[3]), Connection(int(sys.argv[4])))
"""
"""What a side's Python runs: `work` of the bench's module, with the arguments and the pipe."""


class Side:
    """A side's process, seen from the bench."""

    def __init__(
        self, name: str, module: str, arguments: list[Any], folder: Path, python: str = sys.executable
    ) -> None:
        """Start `work(name, *arguments, folder, pipe)` of a module in bench/, in any environment's Python."""
        folder.mkdir()
        self.name, self.seconds, self._log = name, list[tuple[float, float]](), folder / "log.txt"
        self._pipe, child = multiprocessing.Pipe()
        call = json.dumps([name, *arguments, str(folder)])
        command = [python, "-c", START, str(Path(__file__).parent), module, call, str(child.fileno())]
        self._process = subprocess.Popen(command, pass_fds=[child.fileno()])
        child.close()

    def ready(self) -> None:
        """Wait until it is about to begin its first step."""
        self._receive()

    def take(self, steps: int) -> None:
        """Let it do its next steps, and wait until they are done."""
        self._pipe.send(steps)
        self.seconds += [self._receive() for _ in range(steps)]

    def report(self) -> dict[str, Any]:
        """Return what it sends after its last step."""
        self._pipe.send(1)
        report: dict[str, Any] = self._receive()
        self._process.wait()
        return {**report, "seconds": self.seconds}

    def kill(self) -> None:
        """End the process, if it is still running."""
        self._process.kill()
        self._process.wait()

    def _receive(self) -> Any:
        try:
            return self._pipe.recv()
        except EOFError:
            code = self._process.wait()
            log = self._log.read_text() if self._log.is_file() else ""
            sys.exit(f"{self.name}: its process ended with {code}\n{log[-2000:]}")


def take_turns(sides: list[Side], steps: int, turn: int) -> dict[str, dict[str, Any]]:
    """Let the sides do `turn` steps each in turn; who begins changes from round to round. Return their reports."""
    names = [side.name for side in sides]
    try:
        for side in sides:
            side.ready()
        for done in range(0, steps, turn):
            for side in sides:
                side.take(min(turn, steps - done))
            sides.reverse()
        return {side.name: side.report() for side in sorted(sides, key=lambda side: names.index(side.name))}
    finally:
        for side in sides:
            side.kill()


def turns(parent: Connection) -> Any:
    """A callback that lets the parent say when the next steps run; it times from one step's end to the next's."""
    from transformers import TrainerCallback

    class Turns(TrainerCallback):  # type: ignore[misc]
        permits = 0
        started = cpu = 0.0

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            parent.send("ready")
            self.wait()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            parent.send((time.perf_counter() - self.started, time.process_time() - self.cpu))
            self.permits -= 1
            self.wait()  # after the last step too: what follows it would disturb the others' turns

        def wait(self) -> None:
            while self.permits == 0:
                self.permits = parent.recv()
            self.started = time.perf_counter()
            self.cpu = time.process_time()

    return Turns()


def train_kit(recipe: Any, folder: Path) -> tuple[Any, Any, dict[str, Any]]:
    """Train through `mini_r1.training.train.train`, as the command line does it.

    Returns:
        The trained model, its tokenizer, and `phases` (seconds a step), `lengths` and `rewards` (means of each step).
    """
    from mini_r1.generation.model import load_model, load_tokenizer
    from mini_r1.run.reader import read_metrics
    from mini_r1.run.run_dir import RunDir
    from mini_r1.training.train import train
    from rich.console import Console

    run = RunDir(folder / "run")
    train(recipe, run, ["bench"], Console(file=sys.stdout))
    rows = [row for row in read_metrics(run) if "loss" in row]
    # Not the kit's own figure for the update: its clock runs on while this side waits for its turn.
    phases = {
        name: statistics.mean(row.get(f"time/{name}", 0.0) for row in rows)
        for name in ("rollout", "score", "reference", "save")
        if any(f"time/{name}" in row for row in rows)
    }
    snapshot = str(run.complete_snapshots()[0].path)
    report = {
        "phases": phases,
        "lengths": [row["completion_length"] for row in rows],
        "rewards": [row["reward"] for row in rows],
    }
    return load_model(snapshot, None, "float32", None), load_tokenizer(snapshot, None), report


def reward_function(name: str) -> Callable[..., list[float]]:
    """One of the kit's rewards as TRL calls it: texts and the columns of the data set in, floats out."""
    from mini_r1.tasks.countdown.problem import Problem
    from mini_r1.tasks.countdown.rewards import judge

    def reward(completions: list[str], nums: list[list[int]], target: list[int], **_: Any) -> list[float]:
        values = []
        for text, numbers, wanted in zip(completions, nums, target, strict=True):
            problem = Problem(tuple(numbers), wanted)
            values.append(float(judge(text, problem, [name]).rewards[name]))
        return values

    reward.__name__ = name
    return reward


def held_out(model: Any, tokenizer: Any, data: Any, recipe: Any) -> dict[str, Any]:
    """Success on the held-out problems, each once."""
    from mini_r1.evaluation.measuring import measure
    from mini_r1.generation.completers import TransformersCompleter
    from mini_r1.generation.sampler import SamplingConfig
    from mini_r1.tasks.registry import find_task

    problems = list({problem.key: problem for problem in data.held_out}.values())
    facts = measure(
        find_task(recipe.task), TransformersCompleter(model, tokenizer), problems, samples=SAMPLES,
        sampling=SamplingConfig.from_recipe(recipe), prompt_style=recipe.prompt_style, seed=recipe.seed,
    ).to_json(None)  # fmt: skip
    return {key: facts[key] for key in ("problems", "sampled", "ci95", "tries")}
