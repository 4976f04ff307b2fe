"""One attempt: what the trainer reports to it, what it decides after each step, and how it ends."""

import logging
import math
import os
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import TrainerCallback

from mini_r1.disk_errors import disk_error
from mini_r1.errors import ExitCode, KitError
from mini_r1.machine.trackers import tracker_error
from mini_r1.plan.timing import GRACE_VARIABLE
from mini_r1.recipe.deepspeed_file import DeepSpeedFile
from mini_r1.recipe.fields import Recipe
from mini_r1.run.files import AppendFile
from mini_r1.run.finished import Outcome
from mini_r1.run.manifest import Saved
from mini_r1.run.run_dir import RunDir
from mini_r1.tasks.reward_file import CodeReward
from mini_r1.tasks.task_data import TaskData
from mini_r1.training import pushing, records
from mini_r1.training.checkpoints import next_start
from mini_r1.training.curves import Curves, shown_completions
from mini_r1.training.prepare import Policy
from mini_r1.training.run_logs import CompletionLog, cut_samples
from mini_r1.training.schedule import Schedule
from mini_r1.training.supervised import Phases, StopRequest, Supervisor
from mini_r1.training.tracking import Trackers
from mini_r1.training.training_line import TrainingLine
from mini_r1.training.watch import Alert
from mini_r1.training.world import World

logger = logging.getLogger(__name__)

END_S = 5.0
"""Seconds of a grace period that are left for the end of a run after its save: logs, other ranks, vLLM's process."""


@dataclass(frozen=True, slots=True)
class WorkerContext:
    """What this worker trains, where, and with which others."""

    recipe: Recipe
    run: RunDir
    command: Sequence[str]
    console: Console
    world: World
    stop: StopRequest
    phases: Phases
    deepspeed: DeepSpeedFile | None


@dataclass(frozen=True, slots=True)
class Inputs:
    """Data and model of a run, loaded."""

    data: TaskData[Any]
    schedule: Schedule
    dataset: Any  # rows in the order in which they are trained on
    held_out: list[dict[str, Any]]
    policy: Policy
    code: Sequence[CodeReward] = ()


class Attempt(TrainerCallback):
    """One start of the program on a run, with a directory `attempts/N/`.

    The trainer reports to it: `rollout`, `phase`, `trouble`, `saved`. As a transformers callback it decides after each
    step whether to save, to evaluate and to stop. At the end one of `ended`, `interrupted`, `failed` records how.
    `stack` closes the attempt's files.
    """

    def __init__(
        self, context: WorkerContext, inputs: Inputs, resume: Saved | None, folder: Path, stack: ExitStack
    ) -> None:
        recipe, run, world, schedule = context.recipe, context.run, context.world, inputs.schedule
        self.recipe, self.run, self.world, self.stop = recipe, run, world, context.stop.on_any_rank
        self.start = self._step = resume.step if resume else 0
        self.checkpoint_only = False  # set when a save is one that `save_minutes` adds: it has no snapshot
        self.callbacks: list[TrainerCallback] = [self]
        self._number = int(folder.name)
        self._context = context
        self._steps = schedule.steps
        self._steps_per_epoch = len(inputs.data.train) / schedule.prompts
        self._saved_at = 0.0
        self._push: pushing.Pushing | None = None
        self._metrics: AppendFile | None = None
        if world.main:
            records.write(context, inputs, self._number)
            records.announce(context, inputs, self.start)
            if recipe.push_to_hub:
                self._push = pushing.Pushing(recipe, run, folder, context.console)
                stack.callback(self._push.leave)
                self._push.push()
            self._metrics = stack.enter_context(closing(AppendFile(folder / "metrics.jsonl")))
            cut_samples(run, resume)
            self._completions = stack.enter_context(closing(CompletionLog(folder, run.completion_samples)))
            self._curves = Curves(run, self.start, recipe)
            self._trackers = stack.enter_context(Trackers(recipe, run))
            self.callbacks += [self._curves, *self._trackers.callbacks]
        self._line = stack.enter_context(closing(TrainingLine(context.console, schedule.steps, self.start)))

    # --- what the trainer reports ---

    def rollout(self, step: int, completions: list[dict[str, Any]]) -> None:
        """Record the completions of all ranks for an optimizer step."""
        if self.world.main:
            self._completions.write(step, completions)
            if shown := shown_completions(step, self._steps, completions):
                self._curves.add_completions(step, shown)
                self._trackers.add_completions(step, shown)

    def phase(self, name: str, in_flight: int | None = None) -> None:
        """Record that a phase begins: engine, sync, rollout, score, reference, update, evaluate or save.

        `in_flight` is the step whose rollout vLLM samples meanwhile.
        """
        self._context.phases.begin(name, self._step, self._number, in_flight)

    def grace_is_over(self) -> bool:
        """Return whether a stopping run has to end now; False if no grace period is known (GRACE_VARIABLE)."""
        asked = self._context.stop.asked_since_s()
        try:
            grace = float(os.environ.get(GRACE_VARIABLE, "inf"))
        except ValueError:
            return False
        return asked is not None and asked >= grace - END_S

    def trouble(self, step: int, alerts: list[Alert]) -> None:
        """Record and print the watch's alerts after a step."""
        self._write(step, {"trouble": {alert.name: alert.sentence for alert in alerts}})
        for alert in alerts:
            logger.warning("step %d: %s", step, alert.sentence)
            self._line.warn(f"step {step}: {alert.sentence}")

    def saved(self) -> None:
        """Record that a save is complete."""
        self._saved_at = time.monotonic()
        if self._push is not None:
            self._push.push()

    # --- what transformers calls ---

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._step = state.global_step
        self._saved_at = time.monotonic()
        self._line.begin()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._step = step = state.global_step
        last = step >= state.max_steps
        stop = self.world.any(self.stop())
        periodic = self.recipe.save_strategy == "steps" and step % self.recipe.save_every(state.max_steps) == 0
        every = self.recipe.eval_every(state.max_steps)
        control.should_evaluate = every is not None and (last or step % every == 0)
        regular = last or periodic or stop
        self.checkpoint_only = self._save_minutes_passed() and not regular
        control.should_save = regular or self.checkpoint_only
        if stop or last:
            control.should_training_stop = True
        if last:
            control.should_log = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if not logs or not ("loss" in logs or "eval_success" in logs):
            return  # transformers' summary at the end
        self._write(state.global_step, {**logs, "epoch": state.global_step / self._steps_per_epoch})
        self._line.update(state.global_step, logs)

    def _save_minutes_passed(self) -> bool:
        """Whether `save_minutes` have passed since the last save by rank 0's clock; the same on every rank."""
        if not self.recipe.save_minutes or self.recipe.save_strategy == "no":
            return False
        passed = time.monotonic() - self._saved_at >= 60 * self.recipe.save_minutes
        return self.world.any(passed and self.world.main)

    def _write(self, step: int, values: dict[str, Any]) -> None:
        if self._metrics is not None:
            # JSON has no NaN and no infinity, and a strict reader would refuse the line.
            known = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
            self._metrics.write_rows({**known, "step": step, "time": time.time()})

    # --- the end; every rank has to call the same method ---

    def ended(self, step: int, alert: Alert | None, *, evaluation_due: bool) -> Outcome:
        """Record a run that reached its last step or stopped before it; raise KitError if the watch stopped it."""
        if alert is not None:
            self._record_end("failed", step, ExitCode.FAILED, alert.sentence)
            raise KitError(
                f"stopped at step {step} because the recipe says watch.{alert.name}: stop: {alert.sentence}. To "
                f"resume from the last complete checkpoint, run the same command with --set watch.{alert.name}=warn",
                ExitCode.FAILED,
            )
        if step < self._steps or evaluation_due:
            return self.interrupted(step)
        outcome = self._record_end("finished", step, ExitCode.FINISHED, "finished")
        if self._push is not None:
            Supervisor.from_environment().beat("push", step, self._number)
            self._push.finish(lambda: bool(self._context.stop))
        return outcome

    def interrupted(self, step: int) -> Outcome:
        """Record a run that was asked to stop after this step."""
        reason = self._context.stop.signal_name or "a signal to another worker"
        return self._record_end("interrupted", step, ExitCode.INTERRUPTED, reason)

    def _record_end(self, state: str, step: int, code: ExitCode, reason: str) -> Outcome:
        def record() -> None:
            try:
                self.run.write_state(state, step=step, exit_code=int(code), reason=reason, attempt=self._number)
            except OSError as error:
                self.failed(error)
                raise

        self.world.from_main(record)
        return Outcome(code, step)

    def failed(self, error: BaseException) -> None:
        """Record how the run failed; ranks need not agree on it. Raise KitError if disk or tracker did."""
        disk = disk_error(error, self.run.path, next_start(self.run)) if isinstance(error, OSError) else None
        described = disk or tracker_error(error)
        logger.exception("training failed")
        failure = described or error
        code, reason = ExitCode.FAILED, f"{type(error).__name__}: {error}"
        if isinstance(failure, KitError):
            code, reason = failure.exit_code, failure.message
        if self.world.main:
            facts = {"step": self.run.read_state().get("step", 0), "exit_code": int(code), "reason": reason}
            if not self.run.write_last_state("failed", **facts, attempt=self._number):
                logger.error("state.json cannot be written either")
        if described is not None:
            raise described from error
