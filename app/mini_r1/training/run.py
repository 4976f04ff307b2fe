"""One training run from recipe to finished run directory: fresh, resumed, interrupted or already done."""

from __future__ import annotations

import errno
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from transformers import PreTrainedTokenizerBase, set_seed

from mini_r1.countdown import task
from mini_r1.errors import ExitCode, KitError
from mini_r1.generation.model import eos_token_ids
from mini_r1.recipe import Recipe
from mini_r1.rundir import RunDir
from mini_r1.training import order, prepare, records
from mini_r1.training.arguments import grpo_config
from mini_r1.training.callbacks import RunCallback
from mini_r1.training.checkpoints import checkpoint_to_resume
from mini_r1.training.samples import CompletionLog
from mini_r1.training.signals import StopRequest
from mini_r1.training.terminal import TrainingLine
from mini_r1.training.trainer import CountdownTrainer, RewardPlan

logger = logging.getLogger(__name__)

RETRYABLE_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE})
"""Disk full, quota, I/O error, stale network file: the machine's fault, not the recipe's."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a call of `train` ended."""

    exit_code: ExitCode
    step: int


def train(
    recipe: Recipe, run: RunDir, command: Sequence[str], console: Console, data: task.TaskData | None = None
) -> Outcome:
    """Train until the run is finished or the process is asked to stop.

    Args:
        recipe: what to train.
        run: where; a run that is already there is gone on with.
        command: the command line, for run.json.
        console: for progress.
        data: the recipe's data, if the caller has loaded it already.

    Raises:
        KitError: the recipe, the data or the directory is wrong, or the machine failed.
    """
    prepare.refuse_unsupported(recipe)
    prepare.refuse_several_devices()
    prepare.tune_machine(recipe)
    with run.claimed(), StopRequest() as stop:
        records.refuse_other_recipe(run, recipe)
        state = run.read_state()
        if state.get("state") == "finished":
            console.print(f"{run.path} is finished at step {state['step']}: nothing to do", markup=False)
            return Outcome(ExitCode.FINISHED, state["step"])
        data_commit, model_commit = records.commits(run)
        data = data or prepare.load_task_data(recipe, data_commit)
        model, tokenizer = prepare.load_trainable(recipe, data, console, model_commit)
        return _attempt(recipe, run, command, console, data, model, tokenizer, stop)


def _attempt(
    recipe: Recipe,
    run: RunDir,
    command: Sequence[str],
    console: Console,
    data: task.TaskData,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    stop: StopRequest,
) -> Outcome:
    """One start of the program on this run, with a directory of its own; state.json says how it ended."""
    prompts_per_step = recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps
    steps = order.total_steps(recipe.max_steps, recipe.num_train_epochs, len(data.train), prompts_per_step)
    args = grpo_config(recipe, run.path, run.tensorboard, steps)
    dataset = prepare.ordered_dataset(recipe, data, tokenizer, steps * prompts_per_step)
    resume = checkpoint_to_resume(run, console)
    records.refuse_other_data(run, data)
    attempt = run.start_attempt()
    number = int(attempt.name)
    with records.log_to(attempt / "rank-0.log"):
        records.write(run, recipe, data, model, command, number)
        records.announce(console, recipe, run, data, model, steps, resume.step if resume else 0)
        line = TrainingLine(console, steps, resume.step if resume else 0)
        callback = RunCallback(recipe, run, attempt, stop, len(data.train) / prompts_per_step, line)
        completions = CompletionLog(attempt, run.completion_samples)
        rewards = recipe.resolved_rewards()
        try:
            set_seed(recipe.seed)
            trainer = CountdownTrainer(
                model,
                rewards=RewardPlan(tuple(rewards), tuple(rewards.values())),
                args=args,
                train_dataset=dataset,
                processing_class=tokenizer,
                eos_token_ids=eos_token_ids(model, tokenizer),
                run=run,
                on_rollout=completions.write,
                on_phase=callback.phase,
                callbacks=[callback],
            )
            trainer.train(resume_from_checkpoint=str(resume.path) if resume else None)
        except BaseException as error:
            _failed(run, number, error)
            raise
        finally:
            callback.close()
            completions.close()
        return _ended(run, number, trainer.state.global_step, steps, stop)


def _ended(run: RunDir, attempt: int, step: int, steps: int, stop: StopRequest) -> Outcome:
    """Record a run that reached its last step, or stopped in order before it."""
    state, code, reason = (
        ("finished", ExitCode.FINISHED, "finished")
        if step >= steps
        else ("interrupted", ExitCode.INTERRUPTED, stop.signal_name)
    )
    run.write_state(state, step=step, exit_code=int(code), reason=reason, attempt=attempt)
    return Outcome(code, step)


def _failed(run: RunDir, attempt: int, error: BaseException) -> None:
    """Record how a run failed.

    Raises:
        KitError: the machine was at fault: the same command may succeed later.
    """
    logger.exception("training failed")
    retry = isinstance(error, OSError) and error.errno in RETRYABLE_ERRNOS
    code = ExitCode.RETRY if retry else error.exit_code if isinstance(error, KitError) else ExitCode.FAILED
    reason = f"{type(error).__name__}: {error}"
    step = run.read_state().get("step", 0)
    try:
        run.write_state("failed", step=step, exit_code=int(code), reason=reason, attempt=attempt)
    except OSError:
        logger.exception("state.json could not be written either")
    if retry:
        raise KitError(f"{reason}; the last complete checkpoint stands: mend that and start again", code) from error
