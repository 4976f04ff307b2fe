"""The run directory and the terminal kept up to date, and the decision at each step: save, stop, go on."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mini_r1.recipe import Recipe
from mini_r1.rundir import JsonLines, RunDir
from mini_r1.training.signals import StopRequest
from mini_r1.training.terminal import TrainingLine


class RunCallback(TrainerCallback):
    """Writes state.json and metrics.jsonl (rank 0) and asks for saves.

    Args:
        recipe: for save_strategy and save_steps.
        run: the run directory.
        attempt: this attempt's directory.
        stop: set when a signal asked to stop.
        steps_per_epoch: optimizer steps of one pass over the training problems.
        line: the terminal's.
    """

    def __init__(
        self, recipe: Recipe, run: RunDir, attempt: Path, stop: StopRequest, steps_per_epoch: float, line: TrainingLine
    ) -> None:
        self._recipe = recipe
        self._run = run
        self._attempt = int(attempt.name)
        self._stop = stop
        self._steps_per_epoch = steps_per_epoch
        self._line = line
        self._metrics = JsonLines(attempt / "metrics.jsonl")
        self._step = 0

    def phase(self, name: str) -> None:
        """Record that a phase begins: what a run that hangs was doing."""
        self._run.write_state("running", step=self._step, phase=name, attempt=self._attempt, pid=os.getpid())

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._step = state.global_step

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._step = state.global_step
        last = state.global_step >= state.max_steps
        periodic = self._recipe.save_strategy == "steps" and state.global_step % self._recipe.save_steps == 0
        if last or self._stop:
            control.should_log = True  # the window that is open now would be lost
            control.should_training_stop = True
        control.should_save = last or periodic or bool(self._stop)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if not logs or "loss" not in logs or not state.is_world_process_zero:
            return  # transformers' summary at the end
        row = {"step": state.global_step, "epoch": state.global_step / self._steps_per_epoch, "time": time.time()}
        self._metrics.write({**logs, **row})
        self._line.update(state.global_step, logs)

    def close(self) -> None:
        """Close the files and the live line."""
        self._metrics.close()
        self._line.close()
