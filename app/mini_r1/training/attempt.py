"""One training run from recipe to finished run directory: fresh, resumed, interrupted or already done."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from transformers import set_seed

from mini_r1.disk_errors import disk_error, disk_errors
from mini_r1.errors import ExitCode, KitError, Stopped
from mini_r1.generation.model import eos_token_ids
from mini_r1.recipe.deepspeed_file import DeepSpeedFile
from mini_r1.recipe.fields import Recipe
from mini_r1.run.finished import finished_step, say_finished
from mini_r1.run.manifest import Saved
from mini_r1.run.run_dir import RunDir
from mini_r1.tasks.countdown import task
from mini_r1.training import order, prepare, pushing, records
from mini_r1.training.arguments import grpo_config
from mini_r1.training.callbacks import RunCallback
from mini_r1.training.checkpoints import checkpoint_to_resume, next_start
from mini_r1.training.completion_log import CompletionLog
from mini_r1.training.curves import Curves
from mini_r1.training.engine_setup import start_engine, sync_check
from mini_r1.training.gpu_check import refuse_broken_gpu
from mini_r1.training.phases import Phases
from mini_r1.training.run_logs import cut_samples
from mini_r1.training.signals import StopRequest
from mini_r1.training.supervised import Supervisor
from mini_r1.training.trainer import CountdownTrainer
from mini_r1.training.training_line import TrainingLine
from mini_r1.training.watch import Watch
from mini_r1.training.world import World

logger = logging.getLogger(__name__)

OnRollout = Callable[[int, list[dict[str, Any]]], None]
"""Takes a step and its completions."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a call of `train` ended."""

    exit_code: ExitCode
    step: int


@dataclass(frozen=True, slots=True)
class _Job:
    """What one start of the program works with."""

    recipe: Recipe
    run: RunDir
    command: Sequence[str]
    console: Console
    world: World
    stop: StopRequest
    deepspeed: DeepSpeedFile | None


def train(
    recipe: Recipe,
    run: RunDir,
    command: Sequence[str],
    console: Console,
    deepspeed: DeepSpeedFile | None = None,
) -> Outcome:
    """Train until the run is finished or the process is asked to stop: one worker's part of it.

    Args:
        recipe: what to train.
        run: where; a run that is already there is gone on with.
        command: the command line, for run.json.
        console: for progress; rank 0's is used.
        deepspeed: how to shard the training state over the workers; None: every worker holds all of it.

    Raises:
        KitError: the recipe, the data or the directory is wrong, or the machine failed.
        Stopped: asked to stop before an attempt began.
    """
    prepare.refuse_unlaunched(recipe, deepspeed)
    refuse_broken_gpu()
    prepare.tune_machine(recipe)
    world, supervisor = World(recipe.ddp_timeout), Supervisor.from_environment()
    world.on_done = supervisor.beat_again
    shown = console if world.main else Console(quiet=True)
    job = _Job(recipe, run, command, shown, world, StopRequest(supervisor, world), deepspeed)
    with ExitStack() as stack:
        stack.enter_context(job.stop)
        stack.callback(world.leave)
        stack.enter_context(world.lost_in_words())
        stack.enter_context(disk_errors(run.path, lambda: next_start(run)))
        world.from_main(lambda: stack.enter_context(run.claimed()))
        finished_at = world.from_main(lambda: finished_step(run, recipe))
        if finished_at is not None:
            say_finished(job.console, run, finished_at)
            return Outcome(ExitCode.FINISHED, finished_at)
        world.from_main(lambda: pushing.refuse(recipe))
        data_commit, model_commit = world.from_main(lambda: records.commits(run))
        phases = stack.enter_context(Phases(recipe, run, world, supervisor))
        phases.begin("data")
        stop = job.stop.on_any_rank
        data = world.main_first(lambda: prepare.load_task_data(recipe, data_commit, job.console, stop))
        world.from_main(lambda: records.refuse_other_data(run, data))
        world.from_main(lambda: prepare.refuse_unsolvable(data, job.console, stop))
        phases.begin("model")
        _refuse_if_stopped(job)
        origin = world.main_first(lambda: prepare.find_model(recipe, data, job.console, model_commit, stop))
        _refuse_if_stopped(job)
        schedule = _schedule(job, data)
        # First, because loading a model's weights may take minutes.
        dataset = prepare.ordered_dataset(recipe, data, origin.tokenizer, schedule.steps * schedule.prompts)
        held_out = prepare.held_out_rows(recipe, data, origin.tokenizer)
        policy = world.main_first(lambda: prepare.load_policy(recipe, origin))
        _refuse_if_stopped(job)
        return _attempt(job, data, schedule, dataset, held_out, policy, phases)


def _refuse_if_stopped(job: _Job) -> None:
    """Go no further when a worker was asked to stop; nothing is written yet.

    Raises:
        Stopped: on every rank.
    """
    if job.world.any(job.stop.on_any_rank()):
        raise Stopped(f"stopped before an attempt began in {job.run.path}: run the same command again")


@dataclass(frozen=True, slots=True)
class _Schedule:
    """How the whole run is divided into optimizer steps."""

    prompts: int
    """Prompts of one optimizer step, over all workers."""
    accumulation: int
    """Micro steps of each worker in a step."""
    steps: int


def _schedule(job: _Job, data: task.TaskData) -> _Schedule:
    """Divide the run into steps.

    Raises:
        KitError: the workers cannot share a step's prompts evenly.
    """
    recipe, world = job.recipe, job.world
    prompts = world.from_main(lambda: records.prompts_per_step(job.run, recipe, world.size))
    accumulation = order.accumulation_steps(prompts, recipe.per_device_train_batch_size, world.size)
    steps = order.total_steps(recipe.max_steps, recipe.num_train_epochs, len(data.train), prompts)
    return _Schedule(prompts, accumulation, steps)


def _attempt(
    job: _Job,
    data: task.TaskData,
    schedule: _Schedule,
    dataset: Any,
    held_out: list[dict[str, Any]],
    policy: prepare.Policy,
    phases: Phases,
) -> Outcome:
    """One start of the program on this run, with a directory of its own; state.json says how it ended."""
    recipe, run, world, steps, prompts = job.recipe, job.run, job.world, schedule.steps, schedule.prompts
    stage = job.deepspeed.stage if job.deepspeed else 0
    resume = world.from_main(lambda: checkpoint_to_resume(run, job.console, world.size, stage))
    args = grpo_config(
        recipe,
        run.path,
        max_steps=steps,
        accumulation=schedule.accumulation,
        evaluate_first=_evaluate_first(recipe, resume),
        deepspeed=job.deepspeed,
    )
    attempt = world.from_main(run.start_attempt)
    with records.log_to(attempt / f"rank-{world.rank}.log"), ExitStack() as stack:
        start = resume.step if resume else 0
        if world.main:
            sharding = job.deepspeed.name if job.deepspeed else None
            records.write(
                run, recipe, data, policy.model, job.command, int(attempt.name), world.size, prompts, sharding
            )
            records.announce(job.console, recipe, run, data, policy.model, steps, start, prompts)
        line = TrainingLine(job.console, steps, start)
        # Started by one rank alone, which has written the run's recipe by now.
        push = pushing.Pushing(recipe, run, attempt, job.console) if world.main else None
        if push is not None:
            stack.callback(push.leave)
            push.saved()  # what an earlier attempt saved, and did not push
        callback = RunCallback(
            recipe, attempt, world, job.stop, phases, len(data.train) / prompts, line, push.saved if push else _nothing
        )
        stack.callback(callback.close)
        if world.main:
            cut_samples(run, resume)
        log = stack.enter_context(CompletionLog(attempt, run.completion_samples)) if world.main else None
        curves = Curves(run, start, steps) if world.main else None
        eos = eos_token_ids(policy.model, policy.tokenizer)
        try:
            phases.attempt(int(attempt.name), start)
            stop = job.stop.on_any_rank
            engine = start_engine(recipe, policy, eos, world, attempt / "vllm.log", stack, stop)
            set_seed(recipe.seed)
            trainer = CountdownTrainer(
                policy.model,
                reference=policy.reference,
                rewards=prepare.reward_plan(recipe),
                args=args,
                train_dataset=dataset,
                held_out=held_out,
                processing_class=policy.tokenizer,
                eos_token_ids=eos,
                engine=engine,
                sync_check=sync_check(
                    engine, policy, eos, world, dataset["prompt"][: recipe.per_device_train_batch_size]
                ),
                run=run,
                world=world,
                stop=stop,
                checkpoint_only=callback.checkpoint_only,
                watch=Watch(recipe.watch),
                on_rollout=_both(log.write, curves.completions) if log and curves else None,
                on_phase=callback.phase,
                on_trouble=callback.trouble,
                callbacks=[callback, *([curves] if curves else [])],
            )
            with world.lost_in_words():
                trainer.train(resume_from_checkpoint=str(resume.path) if resume else None)
        except Stopped:
            return _interrupted(job, int(attempt.name), start)
        except BaseException as error:
            _failed(job, int(attempt.name), error)
            raise
        outcome = _ended(job, int(attempt.name), trainer, steps)
        if push is not None and outcome.exit_code == ExitCode.FINISHED:
            Supervisor.from_environment().beat("push", outcome.step, int(attempt.name))
            push.finish(lambda: bool(job.stop))
        return outcome


def _evaluate_first(recipe: Recipe, resume: Saved | None) -> bool:
    if recipe.eval_every is None:
        return False
    return recipe.eval_on_start if resume is None else bool(resume.facts.get("evaluation_due"))


def _both(*hearers: OnRollout) -> OnRollout:
    """Tell several of a step's completions."""

    def tell(step: int, completions: list[dict[str, Any]]) -> None:
        for hear in hearers:
            hear(step, completions)

    return tell


def _nothing() -> None:
    """For the ranks that push nothing."""


def _ended(job: _Job, attempt: int, trainer: CountdownTrainer, steps: int) -> Outcome:
    """Record a run that reached its last step, or stopped in order before it.

    Raises:
        KitError: the run stopped because of what its recipe watches for, or its end cannot be recorded.
    """
    step, trouble = trainer.state.global_step, trainer.stopped_by
    if trouble is not None:
        state, code, reason = "failed", ExitCode.FAILED, trouble.sentence
    elif step >= steps and not trainer.evaluation_due:
        state, code, reason = "finished", ExitCode.FINISHED, "finished"
    else:
        return _interrupted(job, attempt, step)
    _record_end(job, state, step=step, exit_code=int(code), reason=reason, attempt=attempt)
    if trouble is not None:
        raise KitError(
            f"stopped at step {step} because the recipe says watch.{trouble.name}: stop: {reason}. The last complete "
            f"checkpoint stands; the same command with --set watch.{trouble.name}=warn goes on",
            code,
        )
    return Outcome(code, step)


def _interrupted(job: _Job, attempt: int, step: int) -> Outcome:
    """Record a run that was asked to stop after this step."""
    code, reason = ExitCode.INTERRUPTED, job.stop.signal_name or "a signal to another worker"
    _record_end(job, "interrupted", step=step, exit_code=int(code), reason=reason, attempt=attempt)
    return Outcome(code, step)


def _record_end(job: _Job, state: str, *, attempt: int, **facts: Any) -> None:
    """Record how a run ended; every rank has to call it, because they end alike.

    Raises:
        KitError: the disk failed, and so the run did.
    """

    def record() -> None:
        try:
            job.run.write_state(state, attempt=attempt, **facts)
        except OSError as error:
            _failed(job, attempt, error)
            raise

    job.world.from_main(record)


def _failed(job: _Job, attempt: int, error: BaseException) -> None:
    """Record how a run failed.

    Raises:
        KitError: the machine was at fault: the same command may succeed later.
    """
    described = disk_error(error, job.run.path, next_start(job.run)) if isinstance(error, OSError) else None
    logger.exception("training failed")
    failure = described or error
    code, reason = ExitCode.FAILED, f"{type(error).__name__}: {error}"
    if isinstance(failure, KitError):
        code, reason = failure.exit_code, failure.message
    if job.world.main:
        step = job.run.read_state().get("step", 0)
        if not job.run.write_last_state("failed", step=step, exit_code=int(code), reason=reason, attempt=attempt):
            logger.error("state.json cannot be written either")
    if described is not None:
        raise described from error
