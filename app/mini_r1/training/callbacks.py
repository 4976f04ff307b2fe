"""The run directory and the terminal kept up to date, and the decision at each step: save, evaluate, stop, go on."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mini_r1.recipe.fields import Recipe
from mini_r1.run.append_file import JsonLines
from mini_r1.training.phases import Phases
from mini_r1.training.signals import StopRequest
from mini_r1.training.training_line import TrainingLine
from mini_r1.training.watch import Trouble
from mini_r1.training.world import World

logger = logging.getLogger(__name__)


class RunCallback(TrainerCallback):
    """Writes metrics.jsonl (rank 0), tells phases and asks for saves and evaluations.

    Args:
        recipe: for save_strategy, save_steps, save_minutes and eval_every.
        attempt: this attempt's directory.
        world: this process among the workers.
        stop: whether a worker was asked to stop; one is enough to stop them all.
        phases: hears of every phase.
        steps_per_epoch: optimizer steps of one pass over the training problems.
        line: the terminal's.
        on_saved: called on rank 0 after each save.
    """

    def __init__(
        self,
        recipe: Recipe,
        attempt: Path,
        world: World,
        stop: StopRequest,
        phases: Phases,
        steps_per_epoch: float,
        line: TrainingLine,
        on_saved: Callable[[], None],
    ) -> None:
        self._recipe = recipe
        self._world = world
        self._stop = stop
        self._phases = phases
        self._steps_per_epoch = steps_per_epoch
        self._line = line
        self._on_saved = on_saved
        self._metrics = JsonLines(attempt / "metrics.jsonl") if world.main else None
        self._step = 0
        self._saved_at = 0.0  # or training began: seconds of a clock that only goes forward
        self._checkpoint_only = False

    def checkpoint_only(self) -> bool:
        """Whether the save of the last finished step is one that `save_minutes` adds: it has no snapshot."""
        return self._checkpoint_only

    def phase(self, name: str) -> None:
        """Record that a phase begins: what a run that hangs was doing."""
        self._phases.begin(name, self._step)

    def trouble(self, step: int, found: list[Trouble]) -> None:
        """Record what the watch found, and say it."""
        self._write(step, {"trouble": {trouble.name: trouble.sentence for trouble in found}})
        for trouble in found:
            logger.warning("step %d: %s", step, trouble.sentence)
            self._line.warn(f"step {step}: {trouble.sentence}")

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._step = state.global_step
        self._saved_at = time.monotonic()
        self._line.begin()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._step = state.global_step
        last = state.global_step >= state.max_steps
        stop = self._world.any(self._stop.on_any_rank())
        periodic = self._recipe.save_strategy == "steps" and state.global_step % self._recipe.save_steps == 0
        every = self._recipe.eval_every
        control.should_evaluate = every is not None and (last or state.global_step % every == 0)
        regular = last or periodic or stop
        self._checkpoint_only = self._minutes_have_passed() and not regular
        control.should_save = regular or self._checkpoint_only
        if stop and not last:
            control.should_training_stop = True
        if last:
            control.should_log = control.should_training_stop = True

    def _minutes_have_passed(self) -> bool:
        """Whether `save_minutes` have passed since the last save by rank 0's clock; the same on every rank."""
        if not self._recipe.save_minutes or self._recipe.save_strategy == "no":
            return False
        passed = time.monotonic() - self._saved_at >= 60 * self._recipe.save_minutes
        return self._world.any(passed and self._world.main)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if not logs or not ("loss" in logs or "eval_success" in logs):
            return  # transformers' summary at the end
        self._write(state.global_step, {**logs, "epoch": state.global_step / self._steps_per_epoch})
        self._line.update(state.global_step, logs)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._saved_at = time.monotonic()
        if self._world.main:
            self._on_saved()

    def close(self) -> None:
        """Close the files and the live line."""
        if self._metrics is not None:
            self._metrics.close()
        self._line.close()

    def _write(self, step: int, values: dict[str, Any]) -> None:
        if self._metrics is not None:
            # JSON has no NaN and no infinity, and a strict reader would refuse the line.
            known = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
            self._metrics.write({**known, "step": step, "time": time.time()})
